package authz

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is a Checker on parts that answer what a test says and remember what they were asked.
type world struct {
	found   FoundKey
	findErr error
	verdict Verdict
	evalErr error
	charges []Charge // one a call; an empty list allows
	limErr  error
	now     time.Time

	looked, evaluated int
	charged           []int
	stale             bool
	opaque            bool
}

func (w *world) FindKey(context.Context, CallerID, SecretHash) (FoundKey, error) {
	w.looked++
	return w.found, w.findErr
}

func (w *world) Evaluate(_ context.Context, _ *Key, c *Check) (Verdict, error) {
	w.evaluated++
	w.stale = c.Stale
	return w.verdict, w.evalErr
}
func (w *world) Revision() string { return "sha256:active" }
func (w *world) Now() time.Time   { return w.now }

func (w *world) Charge(_ context.Context, _ *Key, _ Limit, cost int) (Charge, error) {
	w.charged = append(w.charged, cost)
	if len(w.charges) == 0 {
		return Charge{Allowed: true, ResetAfter: 600 * time.Millisecond, Mode: LimiterExact}, w.limErr
	}
	c := w.charges[0]
	w.charges = w.charges[1:]
	return c, w.limErr
}

func (w *world) check(t *testing.T, change ...func(*Check)) *Decision {
	t.Helper()
	d, err := w.ask(t, change...)
	if err != nil {
		t.Fatalf("the question was refused: %v", err)
	}
	return d
}

func (w *world) ask(t *testing.T, change ...func(*Check)) (*Decision, error) {
	t.Helper()
	c, err := NewChecker(CheckerOptions{Keys: w, Policy: w, Limiter: w, Clock: w, Opaque401: w.opaque})
	if err != nil {
		t.Fatal(err)
	}
	q := &Check{Presented: PresentHash(SecretHash{1}), Cost: 1}
	q.SetRequest("GET", "/api/v1/tickets")
	for _, f := range change {
		f(q)
	}
	return c.Check(t.Context(), q)
}

var standard = Limit{Name: "key", Rate: minute(100, 100), Cost: 1}

func newWorld() *world {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	return &world{
		now: now,
		found: FoundKey{
			Key: &Key{
				ID: NewKeyID(now), Name: "ci", Environment: EnvironmentLive, Scopes: []Scope{"tickets:read"},
				Organization: &Organization{ID: NewOrganizationID(now), Name: "Acme", Plan: "standard"},
			},
			Secret: &KeySecret{ID: NewSecretID(now), Hint: "hint"},
		},
		verdict: Verdict{
			Allow: true, Required: []Scope{"tickets:read"}, Route: "/api/v1/tickets", Limits: []Limit{standard},
			Revision: "sha256:asked",
		},
	}
}

func TestCheck_AnAllowCarriesTheHeadersOfTheContract(t *testing.T) {
	w := newWorld()
	d := w.check(t)
	if !d.Allow || d.Code != CodeAllowed || d.Status != 200 || d.Problem != nil || d.PolicyRevision != "sha256:asked" {
		t.Fatalf("%+v", d)
	}
	want := []Header{
		{"X-RateLimit-Limit", "100"},
		{"X-RateLimit-Remaining", "99"},
		{"X-RateLimit-Reset", "1795435201"},
		{"RateLimit-Policy", `"key";q=100;w=60`},
		{"RateLimit", `"key";r=99;t=1`},
	}
	if !slices.Equal(d.Headers, want) {
		t.Errorf("headers %q, want %q", d.Headers, want)
	}
}

func TestCheck_MissingAndMalformedKeysCostNoLookUp(t *testing.T) {
	for _, c := range []struct {
		text string
		code Code
	}{{"", CodeKeyMissing}, {"sk_live_x", CodeKeyMalformed}, {"Bearer", CodeKeyMalformed}} {
		w := newWorld()
		d := w.check(t, func(q *Check) { q.Presented = PresentSecret(KeyFormat{}, c.text) })
		if d.Allow || d.Code != c.code || d.Status != 401 || w.looked+w.evaluated+len(w.charged) != 0 {
			t.Errorf("%q: %s, %d look-ups, %d evaluations, %d charges", c.text, d.Code, w.looked, w.evaluated, len(w.charged))
		}
	}
}

func TestCheck_AKeysStateDeniesInTheOrderOfTheContractBeforePolicy(t *testing.T) {
	now := newWorld().now
	revoke := func(w *world) { w.found.Key.RevokedAt = now.Add(-time.Hour) }
	revokeSecret := func(w *world) { w.found.Secret.RevokedAt = now.Add(-time.Hour) }
	expire := func(w *world) { w.found.Key.ExpiresAt = now }
	expireSecret := func(w *world) { w.found.Secret.ExpiresAt = now }
	disable := func(w *world) { w.found.Key.Disabled = true }
	suspend := func(w *world) { w.found.Key.Organization.Suspended = true }
	unknown := func(w *world) { w.found = FoundKey{} }
	orphan := func(w *world) { w.found.Key.Organization = nil }
	for _, c := range []struct {
		code   Code
		change []func(*world)
	}{
		{CodeKeyUnknown, []func(*world){unknown}},
		{CodeKeyUnknown, []func(*world){orphan}},
		{CodeKeyRevoked, []func(*world){revoke, expire, disable, suspend}},
		{CodeKeyRevoked, []func(*world){revokeSecret, expire, disable, suspend}},
		{CodeKeyExpired, []func(*world){expire, disable, suspend}},
		{CodeKeyExpired, []func(*world){expireSecret, disable, suspend}},
		{CodeKeyDisabled, []func(*world){disable, suspend}},
		{CodeOrganizationSuspended, []func(*world){suspend}},
	} {
		w := newWorld()
		for _, f := range c.change {
			f(w)
		}
		d := w.check(t)
		if d.Allow || d.Code != c.code || d.Status != c.code.Status() || w.evaluated+len(w.charged) != 0 {
			t.Errorf("want %s: %s (%d), %d evaluations, %d charges", c.code, d.Code, d.Status, w.evaluated, len(w.charged))
		}
		if d.PolicyRevision != "sha256:active" {
			t.Errorf("%s: policy revision %q", c.code, d.PolicyRevision)
		}
	}
	w := newWorld()
	w.found.Key.ExpiresAt = now.Add(time.Nanosecond)
	if d := w.check(t); !d.Allow || len(d.Warnings) != 1 || d.Warnings[0].Code != "expires_soon" {
		t.Errorf("a key about to expire: %s, warnings %v", d.Code, d.Warnings)
	}
}

func TestCheck_DoubtDenies(t *testing.T) {
	for name, change := range map[string]func(*world){
		"store away":               func(w *world) { w.findErr = Unavailable("x", nil) },
		"policy failed":            func(w *world) { w.evalErr = errors.New("x") },
		"policy failed, yet allow": func(w *world) { w.evalErr = errors.New("x"); w.verdict.Allow = true },
		"no limit":                 func(w *world) { w.verdict.Limits = nil },
		"invalid limit":            func(w *world) { w.verdict.Limits = []Limit{{Name: "key"}} },
		"limit costs over burst":   func(w *world) { w.verdict.Limits = []Limit{{Name: "key", Rate: minute(1, 1), Cost: 2}} },
		"unlimited among others":   func(w *world) { w.verdict.Limits = []Limit{{Name: Unlimited}, standard} },
		"limiter failed":           func(w *world) { w.limErr = errors.New("x") },
		"limiter closed":           func(w *world) { w.charges = []Charge{{Mode: LimiterClosed}} },
		"allow with a reason":      func(w *world) { w.verdict.Reasons = []Reason{{Code: "x", Message: "y"}} },
		"allow with missing scope": func(w *world) { w.verdict.Missing = []Scope{"a:b"} },
		"policy says rate_limited": func(w *world) { w.verdict = Verdict{Reasons: []Reason{{Code: CodeRateLimited, Message: "y"}}} },
		"policy says allowed":      func(w *world) { w.verdict = Verdict{Reasons: []Reason{{Code: CodeAllowed, Message: "y"}}} },
	} {
		w := newWorld()
		change(w)
		d := w.check(t)
		if d.Allow || d.Code != CodeUnavailable || d.Status != 503 || d.Cause == nil || d.Problem == nil {
			t.Errorf("%s: allow %v, %s (%d), cause %v", name, d.Allow, d.Code, d.Status, d.Cause)
		}
	}
	w := newWorld()
	w.verdict = Verdict{Limits: []Limit{standard}}
	if d := w.check(t); d.Allow || d.Code != CodePolicyDenied {
		t.Errorf("the zero verdict: %s", d.Code)
	}
	if (&Decision{}).Allow || (Charge{}).Allowed || (Verdict{}).Allow {
		t.Error("a zero value allows")
	}
}

func TestCheck_TheFirstReasonInTheOrderOfTheContractWins(t *testing.T) {
	order := []Code{
		CodeEnvironmentMismatch, CodeOrganizationMismatch, CodeIPNotAllowed, CodeAmbiguousPath, CodeUnknownRoute,
		CodeBrowserUse, CodeInsufficientScope, "custom_rule",
	}
	for i, want := range order {
		w := newWorld()
		w.verdict.Allow = false
		for _, code := range slices.Backward(order[i:]) {
			w.verdict.Reasons = append(w.verdict.Reasons, Reason{Code: code, Message: "m"})
		}
		d := w.check(t)
		if want == "custom_rule" {
			want = CodePolicyDenied
		}
		if d.Allow || d.Code != want || d.Status != 403 {
			t.Errorf("want %s: %s (%d)", want, d.Code, d.Status)
		}
		if charged := len(w.charged) > 0; charged == (i < 3) {
			t.Errorf("%s: charged %v", want, charged)
		}
		if len(d.Reasons) != len(order)-i {
			t.Errorf("%s: %d reasons, want %d", want, len(d.Reasons), len(order)-i)
		}
	}
}

func TestCheck_ALimitWinsOverADenyAndStillTellsTheMissingScopes(t *testing.T) {
	w := newWorld()
	w.verdict.Allow = false
	w.verdict.Missing = []Scope{"tickets:write"}
	w.verdict.Reasons = []Reason{{Code: CodeInsufficientScope, Message: "m"}}
	w.charges = []Charge{{RetryAfter: 400 * time.Millisecond, ResetAfter: time.Minute, Mode: LimiterExact}}
	d := w.check(t)
	if d.Code != CodeRateLimited || d.Status != 429 || len(d.Missing) != 1 || d.Reasons[0].Code != CodeRateLimited {
		t.Fatalf("%s (%d), missing %v, reasons %v", d.Code, d.Status, d.Missing, d.Reasons)
	}
	if !slices.Contains(d.Headers, Header{"Retry-After", "1"}) || d.RateLimit.Remaining != 0 {
		t.Errorf("headers %v, remaining %d", d.Headers, d.RateLimit.Remaining)
	}
	if d.Problem.Type != quotaExceeded || !slices.Equal(d.Problem.Policies, []string{"key"}) {
		t.Errorf("problem %+v", d.Problem)
	}
}

func TestCheck_LimitsAreAskedInOrderUpToTheFirstRefusal(t *testing.T) {
	w := newWorld()
	wide := Limit{Name: "organization", Rate: minute(1000, 1000), Cost: 3}
	w.verdict.Limits = []Limit{standard, wide, standard}
	w.charges = []Charge{
		{Allowed: true, ResetAfter: 600 * time.Millisecond, Mode: LimiterExact},
		{RetryAfter: time.Second, ResetAfter: time.Minute, Mode: LimiterLocal},
	}
	d := w.check(t, func(q *Check) { q.Cost = 2 })
	if !slices.Equal(w.charged, []int{2, 6}) {
		t.Errorf("charged %v, want cost times the limit's cost, and nothing after the refusal", w.charged)
	}
	if d.Code != CodeRateLimited || d.RateLimit.Name != "organization" || !d.Degraded.Limiter {
		t.Errorf("%s by %s, degraded %v", d.Code, d.RateLimit.Name, d.Degraded)
	}

	w = newWorld()
	w.verdict.Limits = []Limit{standard, wide}
	w.charges = []Charge{
		{Allowed: true, ResetAfter: 30 * time.Second, Mode: LimiterExact},
		{Allowed: true, ResetAfter: time.Second, Mode: LimiterExact},
	}
	if d := w.check(t); d.RateLimit.Name != "key" || d.RateLimit.Remaining != 50 {
		t.Errorf("reported %s with %d, want the least remaining", d.RateLimit.Name, d.RateLimit.Remaining)
	}
}

func TestCheck_UnlimitedIsSaidAndChargesNothing(t *testing.T) {
	w := newWorld()
	w.verdict.Limits = []Limit{{Name: Unlimited}}
	if d := w.check(t); !d.Allow || d.RateLimit != nil || len(d.Headers) != 0 || len(w.charged) != 0 {
		t.Errorf("%s, %v, headers %v", d.Code, d.RateLimit, d.Headers)
	}
}

func TestCheck_ACostThatCouldNeverPassIsTheQuestionsFaultAndChargesNothing(t *testing.T) {
	w := newWorld()
	w.verdict.Limits = []Limit{standard, {Name: "small", Rate: minute(5, 5), Cost: 1}}
	_, err := w.ask(t, func(q *Check) { q.Cost = 6 })
	var e *Error
	if !errors.As(err, &e) || e.Kind != KindInvalid || e.Code != "cost_exceeds_burst" || len(w.charged) != 0 {
		t.Errorf("%v, charged %v", err, w.charged)
	}
	for _, cost := range []int{0, -1, MaxCost + 1} {
		if _, err := w.ask(t, func(q *Check) { q.Cost = cost }); KindOf(err) != KindInvalid {
			t.Errorf("cost %d: %v", cost, err)
		}
	}
}

func TestCheck_UnknownAndMalformedLookTheSameToTheEndClient(t *testing.T) {
	show := func(d *Decision) string {
		p := *d.Problem
		return strings.Join([]string{p.Type, p.Title, string(p.Code), p.Detail, d.Headers[0].Name, d.Headers[0].Value}, "|")
	}
	w := newWorld()
	w.found = FoundKey{}
	unknown := w.check(t)
	malformed := w.check(t, func(q *Check) { q.Presented = PresentSecret(KeyFormat{}, "x") })
	if show(unknown) != show(malformed) || unknown.Problem.Code != "invalid_key" {
		t.Errorf("unknown: %s\nmalformed: %s", show(unknown), show(malformed))
	}
	w = newWorld()
	w.opaque = true
	w.found.Key.RevokedAt = w.now
	missing := w.check(t, func(q *Check) { q.Presented = Presented{} })
	if revoked := w.check(t); show(revoked) != show(unknown) || show(missing) != show(unknown) {
		t.Errorf("with one 401 for all reasons, they differ: %s, %s", show(revoked), show(missing))
	}
}

func TestCheck_AnEndedSecretOfAKeyThatWorksSendsTheClientToTheKeysNewestSecret(t *testing.T) {
	const newest, other = "Use the newest secret of the same key", "Use another key of your organization"
	now := newWorld().now
	revokeSecret := func(w *world) { w.found.Secret.RevokedAt = now.Add(-time.Hour) }
	expireSecret := func(w *world) { w.found.Secret.ExpiresAt = now }
	expire := func(w *world) { w.found.Key.ExpiresAt = now }
	revoke := func(w *world) { w.found.Key.RevokedAt = now }
	disable := func(w *world) { w.found.Key.Disabled = true }
	for name, c := range map[string]struct {
		want   string
		remedy string
		change []func(*world)
	}{
		"rotated, the grace is over":      {newest, "use_newest_secret", []func(*world){expireSecret}},
		"rotated without a grace":         {newest, "use_newest_secret", []func(*world){revokeSecret}},
		"the key expired":                 {other, "extend_key", []func(*world){expire}},
		"the key was revoked":             {other, "use_other_key", []func(*world){revoke}},
		"secret and key have ended":       {other, "extend_key", []func(*world){expireSecret, expire}},
		"a secret of a key that is off":   {other, "extend_key", []func(*world){expireSecret, disable}},
		"revoked secret of a revoked key": {other, "use_other_key", []func(*world){revokeSecret, revoke}},
	} {
		w := newWorld()
		for _, f := range c.change {
			f(w)
		}
		d := w.check(t)
		if d.Problem == nil || !strings.Contains(d.Problem.Detail, c.want) {
			t.Errorf("%s: %+v; want %q", name, d.Problem, c.want)
		}
		if r := d.stateRemedy(); len(r) != 1 || r[0].Changes[0].Kind != c.remedy {
			t.Errorf("%s: remedies %+v; want %s", name, r, c.remedy)
		}
	}
}

func TestCheck_ChallengesFollowRFC6750(t *testing.T) {
	challenge := func(d *Decision) string {
		for _, h := range d.Headers {
			if h.Name == "WWW-Authenticate" {
				return h.Value
			}
		}
		return ""
	}
	w := newWorld()
	if got := challenge(w.check(t, func(q *Check) { q.Presented = Presented{} })); got != `Bearer realm="api"` {
		t.Errorf("no key: %s", got)
	}
	w.verdict.Allow = false
	w.verdict.Required = []Scope{"a:b", "c:d"}
	w.verdict.Reasons = []Reason{{Code: CodeInsufficientScope, Message: "m"}}
	if got := challenge(w.check(t)); got != `Bearer realm="api", error="insufficient_scope", scope="a:b c:d"` {
		t.Errorf("missing scope: %s", got)
	}
	w.found = FoundKey{}
	if got := challenge(w.check(t)); got != `Bearer realm="api", error="invalid_token"` {
		t.Errorf("unknown key: %s", got)
	}
}

func TestCheck_StandInsAreSaid(t *testing.T) {
	w := newWorld()
	w.found.Degraded, w.found.Stale = true, true
	w.charges = []Charge{{Allowed: true, Mode: LimiterLocal}}
	d := w.check(t)
	if !d.Allow || d.Degraded != (Degraded{Limiter: true, Store: true}) || !w.stale || d.RateLimit.Mode != LimiterLocal {
		t.Errorf("%s, degraded %+v, policy saw stale %v", d.Code, d.Degraded, w.stale)
	}
}

func TestCheck_ALeavingClientStopsNothing(t *testing.T) {
	w := newWorld()
	c, err := NewChecker(CheckerOptions{Keys: w, Policy: w, Limiter: w, Clock: w})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	q := &Check{Presented: PresentHash(SecretHash{}), Cost: 1}
	if d, err := c.Check(ctx, q); err != nil || !d.Allow {
		t.Errorf("%v, %v", d, err)
	}
}

type callerReader struct {
	caller *Caller
	err    error
	asked  int
}

func (r *callerReader) FindCaller(context.Context, SecretHash) (*Caller, error) {
	r.asked++
	return r.caller, r.err
}

func TestCallers_OnlyAKnownLiveCallerWithThePermissionPasses(t *testing.T) {
	now := newWorld().now
	good := func() *Caller {
		return &Caller{Name: "tickets", Permissions: []Permission{PermissionCheck}}
	}
	token := CallerTokens().Generate().Reveal()
	for name, c := range map[string]struct {
		token  string
		caller *Caller
		err    error
		want   string
	}{
		"good":            {token, good(), nil, ""},
		"no token":        {"", good(), nil, "caller_unauthorized"},
		"an API key":      {testFormat(t).Generate(EnvironmentLive).Reveal(), good(), nil, "caller_unauthorized"},
		"an admin":        {AdminTokens().Generate().Reveal(), good(), nil, "caller_unauthorized"},
		"unknown":         {token, nil, nil, "caller_unauthorized"},
		"disabled":        {token, &Caller{Permissions: good().Permissions, Disabled: true}, nil, "caller_unauthorized"},
		"revoked":         {token, &Caller{Permissions: good().Permissions, RevokedAt: now}, nil, "caller_unauthorized"},
		"token revoked":   {token, &Caller{Permissions: good().Permissions, TokenRevokedAt: now}, nil, "caller_unauthorized"},
		"token expired":   {token, &Caller{Permissions: good().Permissions, TokenExpiresAt: now}, nil, "caller_unauthorized"},
		"no permission":   {token, &Caller{}, nil, "caller_forbidden"},
		"other's":         {token, &Caller{Permissions: []Permission{"search"}}, nil, "caller_forbidden"},
		"store away":      {token, nil, errors.New("x"), "unavailable"},
		"store says both": {token, good(), errors.New("x"), "unavailable"},
	} {
		reader := &callerReader{caller: c.caller, err: c.err}
		caller, err := NewCallers(reader, newWorld()).Authenticate(t.Context(), c.token, PermissionCheck)
		var e *Error
		errors.As(err, &e)
		switch {
		case c.want == "" && (err != nil || caller == nil):
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (e == nil || e.Code != c.want || caller != nil):
			t.Errorf("%s: %v, %v; want %s", name, caller, err, c.want)
		}
		if c.token != token && reader.asked > 0 {
			t.Errorf("%s: was looked up", name)
		}
	}
}

// An app that hashes what its client did not send asks with the hash of nothing.
func TestPresentHash_OfNothingIsNothing(t *testing.T) {
	if p := PresentHash(NewSecret("").Hash()); p != (Presented{}) {
		t.Errorf("%+v", p)
	}
	if p := PresentHash(NewSecret("x").Hash()); p == (Presented{}) {
		t.Error("something is nothing")
	}
}
