package authz

import "context"

// Callers recognizes callers by their tokens. It is safe for concurrent use.
type Callers struct {
	reader CallerReader
	clock  Clock
}

// NewCallers returns a Callers on a reader and a clock.
func NewCallers(reader CallerReader, clock Clock) *Callers { return &Callers{reader, clock} }

// Authenticate returns the caller that a token belongs to and that has the
// permission. Its errors are of KindUnauthenticated (caller_unauthorized: no
// token, not a caller's, unknown, expired or revoked, all with one message),
// KindForbidden (caller_forbidden) and KindUnavailable. A malformed token costs
// no I/O.
func (c *Callers) Authenticate(ctx context.Context, token string, p Permission) (*Caller, error) {
	refused := &Error{
		Kind: KindUnauthenticated, Code: "caller_unauthorized",
		Message: "send a caller's token as Authorization: Bearer ksc_…; it must be known, unexpired and not revoked",
	}
	if !CallerTokens().Accepts(token) {
		return nil, refused
	}
	caller, err := c.reader.FindCaller(context.WithoutCancel(ctx), NewSecret(token).Hash())
	if err != nil {
		return nil, Unavailable("the caller's token could not be verified; try again", err)
	}
	now := c.clock.Now()
	if caller == nil || caller.Disabled || !caller.RevokedAt.IsZero() || !caller.TokenRevokedAt.IsZero() ||
		ended(caller.TokenExpiresAt, now) {
		return nil, refused
	}
	if !caller.May(p) {
		return nil, &Error{
			Kind: KindForbidden, Code: "caller_forbidden",
			Message: "this caller lacks the permission " + string(p),
		}
	}
	return caller, nil
}

// id is the caller's, or the zero id of nobody.
func (c *Caller) id() CallerID {
	if c == nil {
		return CallerID{}
	}
	return c.ID
}
