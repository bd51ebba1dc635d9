package manage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

// The actions on callers. They are the platform's.
const (
	actionCallersList   = "callers.list"
	actionCallersGet    = "callers.get"
	actionCallersCreate = "callers.create"
	actionCallersRotate = "callers.rotate"
	actionCallersDelete = "callers.delete"
)

// CallerChange is the answer of a change of a caller.
type CallerChange struct {
	Caller Caller
	// At is when; which tokens work is as of then.
	At time.Time
	// Secret is the new token after a create or a rotation, empty otherwise.
	Secret             authz.Secret `json:"-"`
	SecretAlreadyShown bool
	Effective          *Effective `json:"-"`
}

// CallerInput is what a new caller is made of.
type CallerInput struct {
	Name string
	// Environments has no default: whose keys it may have checked.
	Environments []authz.Environment
	// Permissions nil means check alone.
	Permissions []authz.Permission
	// ExpiresInDays 0 means never.
	ExpiresInDays int
}

// ListCallers lists callers, newest first.
func (s *Service) ListCallers(ctx context.Context, r Request, status string, p Page) (List[Caller], error) {
	var out List[Caller]
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		if err := s.may(ctx, r, operation{action: actionCallersList}, nil, nil); err != nil {
			return err
		}
		items, err := re.Callers(ctx, TenantOf(r.Actor), status, p.more())
		out = paged(items, p, re.Now(), func(c *Caller) string { return c.ID.String() })
		return err //nolint:wrapcheck // read does
	})
	return out, err
}

// GetCaller returns a caller, and the time as of which its tokens work.
func (s *Service) GetCaller(ctx context.Context, r Request, id authz.CallerID) (*Caller, time.Time, error) {
	var out *Caller
	var at time.Time
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		c, err := s.caller(ctx, re, r, operation{action: actionCallersGet}, id)
		if err != nil {
			return err
		}
		out, at = c, re.Now()
		return s.decide(ctx, r, actionCallersGet, nil, c.document(at), nil)
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	return out, at, nil
}

// CreateCaller makes a caller and its token, which is in this answer alone.
func (s *Service) CreateCaller(ctx context.Context, r Request, in CallerInput) (*CallerChange, error) {
	out := &CallerChange{}
	return s.changeCaller(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		op := operation{action: actionCallersCreate}
		if err := op.allows(r.Actor); err != nil {
			return outcome{}, err
		}
		c, err := newCaller(w.Now(), r, in)
		if err := first(err, s.notKey("/name", in.Name)); err != nil {
			return outcome{}, err
		}
		if err := s.decide(ctx, r, op.action, nil, nil, c.document(w.Now())); err != nil {
			return outcome{}, err
		}
		if err := checkTokens(ctx, w, r); err != nil {
			return outcome{}, err
		}
		token := authz.CallerTokens().Generate()
		c.Tokens[0].Hint = authz.CallerTokens().Hint(token)
		if err := w.InsertCaller(ctx, TenantOf(r.Actor), c, token); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Caller, out.At, out.Secret = *c, w.Now(), token
		return logged(outcome{gives: true}, authz.OrganizationID{}, op.action, c.ID.String(), nil, c.document(w.Now()))
	})
}

// MaxCallerTokens is how many tokens of callers may work: every replica holds them all, so that
// an unknown one costs no statement.
const MaxCallerTokens = 10_000

// checkTokens takes one more token.
func checkTokens(ctx context.Context, re Reader, r Request) error {
	n, err := re.CountCallerTokens(ctx, TenantOf(r.Actor))
	if err != nil {
		return err //nolint:wrapcheck // change does
	}
	if n >= MaxCallerTokens {
		return conflict("quota_exceeded", fmt.Sprintf("%d tokens of callers work already, which is the most there may be; remove unused callers", n))
	}
	return nil
}

func newCaller(now time.Time, r Request, in CallerInput) (*Caller, error) {
	if in.Permissions == nil {
		in.Permissions = []authz.Permission{authz.PermissionCheck}
	}
	c := &Caller{
		ID: authz.NewCallerID(now), Name: in.Name, Environments: sorted(in.Environments), Permissions: sorted(in.Permissions),
		CreatedAt: now, CreatedBy: r.Actor.ID.String(),
		Tokens: []Token{{ID: authz.NewSecretID(now), CreatedAt: now}},
	}
	life, err := lifetime(in.ExpiresInDays, maxLifetimeDays)
	if life > 0 {
		c.Tokens[0].ExpiresAt = now.Add(life)
	}
	if len(c.Environments) == 0 {
		err = first(err, outOfRange("/environments", "must name live, test or both"))
	}
	for _, e := range c.Environments {
		if !e.Valid() {
			err = first(err, outOfRange("/environments", "must name live, test or both"))
		}
	}
	for _, p := range c.Permissions {
		switch p {
		case authz.PermissionCheck, authz.PermissionExplain, authz.PermissionIntrospect, authz.PermissionSearch:
		default:
			err = first(err, outOfRange("/permissions", "must be of check, explain, introspect, search"))
		}
	}
	return c, first(checkName(in.Name), err)
}

// TokenRotation is how a caller or an admin gets a new token.
type TokenRotation struct {
	// Grace is how long the old token works on; 0 ends it at once.
	Grace time.Duration
	// ExpiresInDays is the new token's life; 0 is never, for callers alone.
	ExpiresInDays int
}

// RotateCaller gives a caller a new token.
func (s *Service) RotateCaller(ctx context.Context, r Request, id authz.CallerID, in TokenRotation) (*CallerChange, error) {
	out := &CallerChange{}
	op := operation{action: actionCallersRotate}
	return s.changeCaller(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		c, err := s.caller(ctx, w, r, op, id)
		if err != nil {
			return outcome{}, err
		}
		if !c.RevokedAt.IsZero() {
			return outcome{}, conflict("caller_revoked", "the caller is removed for ever; create another one")
		}
		now := w.Now()
		before := c.document(now)
		next := Token{ID: authz.NewSecretID(now), CreatedAt: now}
		life, err := lifetime(in.ExpiresInDays, maxLifetimeDays)
		if err != nil {
			return outcome{}, err
		}
		if life > 0 {
			next.ExpiresAt = now.Add(life)
		}
		ended, kept, err := endTokens(now, c.Tokens, in.Grace, MaxGrace)
		if err != nil {
			return outcome{}, err
		}
		c.Tokens = slices.Insert(kept, 0, next)
		if err := s.decide(ctx, r, op.action, nil, before, c.document(now)); err != nil {
			return outcome{}, err
		}
		for i := range ended {
			if err := w.EndCallerToken(ctx, TenantOf(r.Actor), c, &ended[i]); err != nil {
				return outcome{}, err //nolint:wrapcheck // change does
			}
		}
		if err := checkTokens(ctx, w, r); err != nil {
			return outcome{}, err
		}
		token := authz.CallerTokens().Generate()
		c.Tokens[0].Hint = authz.CallerTokens().Hint(token)
		if err := w.InsertCallerToken(ctx, TenantOf(r.Actor), c, &c.Tokens[0], token); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Caller, out.At, out.Secret = *c, now, token
		return logged(outcome{takes: len(ended) > 0, gives: true}, authz.OrganizationID{}, op.action, c.ID.String(), before, c.document(now))
	})
}

// endTokens brings the end of the tokens that work nearer; with a grace one old
// token works beside the new one, the rest end at once. It returns those it touched
// and those that are left.
func endTokens(now time.Time, tokens []Token, grace, longest time.Duration) (ended, kept []Token, err error) {
	if grace < 0 || grace > longest {
		return nil, nil, outOfRange("/grace_seconds", "must not be negative, nor longer than the documentation says")
	}
	first := true
	for _, t := range tokens {
		if !t.live(now) {
			continue
		}
		if grace == 0 || !first {
			t.RevokedAt = now
		} else {
			t.ExpiresAt = authz.Earlier(t.ExpiresAt, now.Add(grace))
			kept = append(kept, t)
		}
		first = false
		ended = append(ended, t)
	}
	return ended, kept, nil
}

// DeleteCaller removes a caller: its tokens are refused for ever.
func (s *Service) DeleteCaller(ctx context.Context, r Request, id authz.CallerID) (*CallerChange, error) {
	out := &CallerChange{}
	op := operation{action: actionCallersDelete}
	return s.changeCaller(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		c, err := s.caller(ctx, w, r, op, id)
		if err != nil {
			return outcome{}, err
		}
		before := c.document(w.Now())
		if err := s.decide(ctx, r, op.action, nil, before, nil); err != nil {
			return outcome{}, err
		}
		out.Caller, out.At = *c, w.Now()
		if !c.RevokedAt.IsZero() {
			return outcome{takes: true}, nil
		}
		c.RevokedAt = w.Now()
		if err := w.UpdateCaller(ctx, TenantOf(r.Actor), c); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Caller = *c
		return logged(outcome{takes: true}, authz.OrganizationID{}, op.action, c.ID.String(), before, c.document(w.Now()))
	})
}

// caller finds a caller for an actor whose role may: the role is asked first, so
// that nobody learns which callers there are.
func (s *Service) caller(ctx context.Context, re Reader, r Request, op operation, id authz.CallerID) (*Caller, error) {
	if err := op.allows(r.Actor); err != nil {
		return nil, err
	}
	c, err := re.Caller(ctx, TenantOf(r.Actor), id)
	if errors.Is(err, ErrNotFound) {
		return nil, notFound("caller")
	}
	return c, err //nolint:wrapcheck // change and read do
}

func (s *Service) changeCaller(
	ctx context.Context, r Request, out *CallerChange, do func(context.Context, Writer) (outcome, error),
) (*CallerChange, error) {
	done, err := s.change(ctx, r, out, do)
	if err != nil {
		return nil, err
	}
	out.Effective = done.effective
	out.SecretAlreadyShown = done.replayed
	if r.DryRun && out.Secret != (authz.Secret{}) {
		out.Secret, out.Caller.Tokens = authz.Secret{}, out.Caller.Tokens[1:]
	}
	return out, nil
}

func sorted[T ~string](in []T) []T {
	out := slices.Clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}
