package authz

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Bounds of a check's cost.
const (
	MinCost = 1
	MaxCost = 10_000
)

// Check is one question: may this presented key do this request? Build it with
// what the caller sent; SetRequest fills what follows from method and path.
type Check struct {
	Caller    *Caller
	Presented Presented
	// Method and Path are the client's, or both empty. HEAD is GET.
	Method string
	Path   string
	// Segments is the path split and decoded; nil when there is none or it is ambiguous.
	Segments  []string
	Ambiguous bool
	// Action is a scope's name or empty. With method and path both must pass.
	Action string
	// Environment narrows; empty means whatever the key's is.
	Environment Environment
	Resource    Resource
	// ClientIP is the end client's address, unmapped and without zone; the zero Addr is unknown.
	ClientIP netip.Addr
	// Browser tells that the request came from a browser.
	Browser bool
	// Cost is between MinCost and MaxCost.
	Cost int
	// Stale is set by Checker: the key's record has not been confirmed for a while.
	Stale bool
}

// Resource is what the request is about, as far as the caller knows. Empty means unknown.
type Resource struct {
	Type, ID     string
	Organization string
}

// SetRequest sets method and path and what follows from them.
func (c *Check) SetRequest(method, path string) {
	if method == "HEAD" {
		method = "GET"
	}
	c.Method, c.Path = method, path
	c.Segments, c.Ambiguous = SplitPath(path)
}

// NormalizeAddr reads an address as apps have it: with or without a port, with a
// zone, or IPv4 in IPv6. What is not an address is the zero Addr, which passes no
// fence.
func NormalizeAddr(s string) netip.Addr {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		withPort, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}
		}
		addr = withPort.Addr()
	}
	return addr.Unmap().WithZone("")
}

// Presented is what a client presented as its key. The zero Presented is a missing key.
type Presented struct {
	state presentedState
	hash  SecretHash
}

type presentedState int

const (
	presentedNothing presentedState = iota
	presentedMalformed
	presentedHash
)

// PresentSecret takes the text that the client sent, "" for none. A text that is
// not one of ours is malformed, and is never looked up.
func PresentSecret(f KeyFormat, text string) Presented {
	if text == "" {
		return Presented{}
	}
	if _, ok := f.Accepts(text); !ok {
		return Presented{state: presentedMalformed}
	}
	return Presented{state: presentedHash, hash: NewSecret(text).Hash()}
}

// PresentForeign takes a text of a foreign form that has been declared: see
// ForeignFormat.Accepts.
func PresentForeign(text string) Presented { return PresentHash(NewSecret(text).Hash()) }

// Malformed tells whether a text was presented that is never looked up.
func (p Presented) Malformed() bool { return p.state == presentedMalformed }

// PresentHash takes the SHA-256 of what the client sent. That of the empty text is of
// a client that sent nothing.
func PresentHash(h SecretHash) Presented {
	empty := SecretHash{
		0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14,
		0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
		0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c,
		0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
	}
	if h == empty {
		return Presented{}
	}
	return Presented{state: presentedHash, hash: h}
}

// CheckerOptions are what a Checker needs and how it speaks to end clients.
type CheckerOptions struct {
	Keys    KeyReader
	Policy  PolicyEvaluator
	Limiter Limiter
	Clock   Clock
	// Decisions are told what was decided; none for nobody.
	Decisions []DecisionRecorder
	// Realm is named in challenges; default "api". Printable ASCII without quotes.
	Realm string
	// Opaque401 gives one and the same 401 to the end client for all reasons.
	Opaque401 bool
	// Budget is the one deadline of a check; 0 means DefaultCheckBudget.
	Budget time.Duration
}

// Checker decides checks. This is the only place where their order stands. It is
// safe for concurrent use.
type Checker struct {
	keys      KeyReader
	policy    PolicyEvaluator
	limiter   Limiter
	clock     Clock
	decisions []DecisionRecorder
	realm     string
	opaque401 bool
	budget    time.Duration
}

// NewChecker returns a Checker, or an error when a part is missing.
func NewChecker(o CheckerOptions) (*Checker, error) {
	if o.Keys == nil || o.Policy == nil || o.Limiter == nil || o.Clock == nil {
		return nil, errors.New("a checker needs keys, policy, limiter and clock")
	}
	if o.Realm == "" {
		o.Realm = "api"
	}
	for i := range len(o.Realm) {
		if c := o.Realm[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return nil, errors.New("realm must be printable ASCII without quotes and backslashes")
		}
	}
	if o.Budget == 0 {
		o.Budget = DefaultCheckBudget
	}
	return &Checker{
		budget: o.Budget,
		keys:   o.Keys, policy: o.Policy, limiter: o.Limiter, clock: o.Clock, decisions: o.Decisions, realm: o.Realm, opaque401: o.Opaque401,
	}, nil
}

// Check decides q, in the order of the contract: the secret's form, look-up, the
// key's state, policy, limits. It sets q.Stale and changes nothing else of q.
//
// The errors are the question's own: of KindInvalid when it cannot be answered
// (cost_exceeds_burst), of KindThrottled when its caller has asked for too much at once.
// Everything else, also what could not be decided, is a Decision. It does not stop when
// ctx is cancelled: a client that leaves must not cost a connection, and the whole has
// one deadline, of which every part takes its share.
func (c *Checker) Check(ctx context.Context, q *Check) (*Decision, error) {
	ctx = withBudget(ctx, c.budget)
	now := c.clock.Now()
	d := &Decision{ID: newID[decisionKind](now), at: now}
	if err := c.decide(ctx, q, d); err != nil {
		return nil, err
	}
	c.finish(d)
	for _, recorder := range c.decisions {
		recorder.Decided(q, d)
	}
	return d, nil
}

// decide decides q into d.
func (c *Checker) decide(ctx context.Context, q *Check, d *Decision) error {
	if passed, err := c.resolve(ctx, q, d); !passed {
		return err
	}
	d.warnOfExpiry(d.at)
	verdict, err := c.policy.Evaluate(ctx, d.Key, q)
	d.PolicyRevision = verdict.Revision
	if err != nil {
		d.undecided("The policy did not decide.", err)
		return nil
	}
	if err := d.take(verdict); err != nil {
		d.undecided("The policy's answer is not a decision.", err)
		return nil
	}
	if d.Code.fence() {
		return nil
	}
	return c.charge(ctx, d, q, verdict.Limits)
}

// resolve is what comes before policy: the secret's form, look-up, the key's state. It
// tells whether policy is to be asked; else d is the decision, or the error the question's.
func (c *Checker) resolve(ctx context.Context, q *Check, d *Decision) (passed bool, err error) {
	switch q.Presented.state {
	case presentedHash:
	case presentedMalformed:
		d.deny(CodeKeyMalformed, "The API key does not have the form of a key.")
		return false, nil
	default:
		d.deny(CodeKeyMissing, "No API key was presented.")
		return false, nil
	}
	found, err := c.keys.FindKey(ctx, q.Caller.id(), q.Presented.hash)
	if err != nil {
		if KindOf(err) == KindThrottled {
			return false, err //nolint:wrapcheck // the port says what it means
		}
		d.Degraded.Store = true
		d.undecided("The key could not be looked up.", err)
		return false, nil
	}
	d.Degraded.Store = found.Degraded
	if found.Key == nil || found.Secret == nil {
		d.deny(CodeKeyUnknown, "No key has this secret.")
		return false, nil
	}
	d.Key, d.Secret = found.Key, found.Secret
	if code, message := keyState(found.Key, found.Secret, d.at); code != "" {
		d.deny(code, message)
		return false, nil
	}
	q.Stale = found.Stale
	d.asked = true
	return true, nil
}

// keyState returns why a known key is denied before policy is asked, or "".
func keyState(k *Key, s *KeySecret, now time.Time) (Code, string) {
	switch {
	case !k.RevokedAt.IsZero():
		return CodeKeyRevoked, "The key was revoked at " + timestamp(k.RevokedAt) + "."
	case !s.RevokedAt.IsZero():
		return CodeKeyRevoked, "This secret of the key was revoked at " + timestamp(s.RevokedAt) + "."
	case ended(k.ExpiresAt, now):
		return CodeKeyExpired, "The key expired at " + timestamp(k.ExpiresAt) + "."
	case ended(s.ExpiresAt, now):
		return CodeKeyExpired, "This secret of the key expired at " + timestamp(s.ExpiresAt) + "."
	case k.Disabled:
		return CodeKeyDisabled, "The key is disabled."
	case k.Organization == nil:
		return CodeKeyUnknown, "The key belongs to no organization."
	case k.Organization.Suspended:
		return CodeOrganizationSuspended, "The organization is suspended."
	}
	return "", ""
}

// secretEnded tells whether the presented secret is all that keeps the key from being asked about:
// it was rotated away or revoked, and the key works with another one.
func (d *Decision) secretEnded() bool {
	if d.Key == nil || d.Secret == nil || d.Secret.RevokedAt.IsZero() && !ended(d.Secret.ExpiresAt, d.at) {
		return false
	}
	return d.Key.Asked(d.at)
}

// Asked tells whether policy is asked about a key at all, with a secret that works.
func (k *Key) Asked(now time.Time) bool {
	code, _ := keyState(k, &KeySecret{}, now)
	return code == ""
}

func ended(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// take carries a verdict over into the decision, or says why it is none. An allow
// that gives reasons or lacks scopes contradicts itself, and doubt denies.
func (d *Decision) take(v Verdict) error {
	d.Required, d.Missing, d.Route, d.cataloged = v.Required, v.Missing, v.Route, v.Cataloged
	if err := v.contradiction(); err != nil {
		return err
	}
	if v.Allow {
		d.Allow, d.Code, d.Status = true, CodeAllowed, CodeAllowed.Status()
		return nil
	}
	d.Reasons = slices.Clone(v.Reasons)
	if len(d.Reasons) == 0 {
		d.Reasons = []Reason{{Code: CodePolicyDenied, Message: "The policy denies this request."}}
	}
	slices.SortStableFunc(d.Reasons, func(a, b Reason) int { return a.Code.policyRank() - b.Code.policyRank() })
	first := d.Reasons[0]
	d.Code = first.Code
	if d.Code.policyRank() == CodePolicyDenied.policyRank() {
		d.Code = CodePolicyDenied
	}
	d.Status = d.Code.Status()
	if d.Code == CodeUnknownRoute && first.Status == 404 {
		d.Status = 404
	}
	return nil
}

// contradiction says why a verdict is none, nil when it is one.
func (v Verdict) contradiction() error {
	for _, r := range v.Reasons {
		if r.Code.reserved() || r.Message == "" {
			return fmt.Errorf("policy gave the reason %q, which is not a policy's to give or has no message", r.Code)
		}
	}
	if v.Allow && (len(v.Reasons) > 0 || len(v.Missing) > 0) {
		return errors.New("policy allowed and gave reasons against it")
	}
	return nil
}

// errNoLimit is of a verdict without limits, where something is to be charged.
var errNoLimit = errors.New("policy gave no limit")

// Undecided says why a check with this verdict cannot be decided, nil when it can: what take
// and charge would say.
func (v Verdict) Undecided() error {
	if err := v.contradiction(); err != nil {
		return err
	}
	fenced := slices.ContainsFunc(v.Reasons, func(r Reason) bool { return r.Code.fence() })
	if len(v.Limits) == 0 && !fenced {
		return errNoLimit
	}
	return nil
}

// charge asks the limits in their order and stops at the first refusal. It turns
// the decision into rate_limited or unavailable; the error is the question's own.
func (c *Checker) charge(ctx context.Context, d *Decision, q *Check, limits []Limit) error {
	if len(limits) == 1 && limits[0].Name == Unlimited {
		return nil
	}
	if len(limits) == 0 {
		d.undecided("The policy gave no limit.", errNoLimit)
		return nil
	}
	if q.Cost < MinCost || q.Cost > MaxCost {
		return &Error{Kind: KindInvalid, Code: "out_of_range", Pointer: "/cost", Message: "cost must be between 1 and 10000"}
	}
	for _, l := range limits {
		if err := l.Validate(); err != nil {
			d.undecided("The policy gave an invalid limit.", err)
			return nil
		}
		if q.Cost*l.Cost > l.Burst {
			return &Error{
				Kind: KindInvalid, Code: "cost_exceeds_burst", Pointer: "/cost",
				Message: fmt.Sprintf("limit %q holds at most %d units; a check of this cost could never pass", l.Name, l.Burst),
			}
		}
	}
	for _, l := range limits {
		charge, err := c.limiter.Charge(ctx, d.Key, l, q.Cost*l.Cost)
		if err != nil {
			d.Degraded.Limiter = true
			d.undecided("The rate limit could not be counted.", err)
			return nil
		}
		if charge.Mode != LimiterExact {
			d.Degraded.Limiter = true
		}
		report := newRateLimit(l, charge, d.at)
		if !charge.Allowed {
			d.RateLimit = report
			if charge.Mode == LimiterClosed {
				d.undecided("The rate limit could not be counted.", errors.New("limiter is closed while its server is away"))
				return nil
			}
			d.limited(report)
			return nil
		}
		if d.RateLimit == nil || report.Remaining < d.RateLimit.Remaining {
			d.RateLimit = report
		}
	}
	return nil
}

func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
