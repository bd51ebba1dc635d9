package manage_test

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/policies"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// proposing finds that every key would do without some scopes, whatever it uses.
type proposing struct {
	remove []authz.Scope
	// meanwhile runs while keys are judged; nil for nothing.
	meanwhile func()
}

func (p *proposing) Audit(
	ctx context.Context, evidence authz.EvidenceStream, each func(*authz.KeyFindings) error,
) (authz.AuditSummary, error) {
	err := evidence(ctx, func(e *authz.Evidence) error {
		k := &authz.KeyFindings{Evidence: *e, Coverage: "Covers 90 days."}
		for _, s := range e.Scopes {
			if s.Granted && !slices.Contains(p.remove, s.Scope) {
				k.ProposedScopes = append(k.ProposedScopes, s.Scope)
			}
		}
		k.Findings = []authz.Finding{{
			Code: authz.FindingUnusedScope, Severity: authz.SeverityMedium, Scopes: p.remove, RemoveScopes: p.remove, Remedy: authz.RemedyNarrow,
			Message: "It was not exercised.",
		}}
		return each(k)
	})
	if p.meanwhile != nil {
		p.meanwhile()
	}
	return authz.AuditSummary{}, err
}

func (*proposing) Kinds() ([]authz.FindingCode, error) {
	return []authz.FindingCode{authz.FindingUnusedScope}, nil
}

// narrowRig is a rig whose keys are checked by the shipped policy, and narrowed.
type narrowRig struct {
	*rig

	keeper   *policy.Keeper
	engine   *policy.Engine
	auditor  *proposing
	callers  []*authz.Caller
	replicas []*store.Store
}

func newNarrowRig(t *testing.T, replicas int) *narrowRig {
	t.Helper()
	source, err := policy.ReadSource(t.Context(), policies.FS)
	if err != nil {
		t.Fatal(err)
	}
	r := &narrowRig{engine: policy.NewEngine(nil), auditor: &proposing{}}
	r.keeper = policy.NewKeeper(policy.KeeperOptions{Engine: r.engine, BuiltIn: source, Origin: authz.OriginDatabase})
	if err := r.keeper.Offer(t.Context(), policy.Offer{Source: source, Origin: authz.OriginBuiltIn, Proved: true}); err != nil {
		t.Fatal(err)
	}
	r.rig = newRigWith(t, r.engine)
	r.Service, err = manage.New(manage.Options{
		Store: r.store, Policy: r.engine, Policies: r.keeper, Auditor: r.auditor, Format: r.format, AuditKeys: r.keys,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, environments := range [][]authz.Environment{{authz.EnvironmentLive, authz.EnvironmentTest}, {authz.EnvironmentLive}} {
		name := fmt.Sprint("caller ", len(r.callers))
		made, err := r.CreateCaller(t.Context(), r.as(r.platform), manage.CallerInput{Name: name, Environments: environments})
		if err != nil {
			t.Fatal(err)
		}
		r.callers = append(r.callers, &authz.Caller{ID: made.Caller.ID, Name: name, Environments: environments})
	}
	r.replicas = []*store.Store{r.store}
	for range replicas - 1 {
		r.replicas = append(r.replicas, storetest.Open(t, r.at, r.peppers))
	}
	return r
}

// boundless refuses nobody.
type boundless struct{}

func (boundless) Charge(context.Context, *authz.Key, authz.Limit, int) (authz.Charge, error) {
	return authz.Charge{Allowed: true, Mode: authz.LimiterExact}, nil
}

// check asks a replica as an application does; it is counted.
func (r *narrowRig) check(t *testing.T, replica *store.Store, count bool, q authz.Check) *authz.Decision {
	t.Helper()
	o := authz.CheckerOptions{Keys: replica, Policy: r.engine, Limiter: boundless{}, Clock: replica.Clock(), Budget: time.Minute}
	if count {
		o.Decisions = []authz.DecisionRecorder{replica}
	}
	checker, err := authz.NewChecker(o)
	if err != nil {
		t.Fatal(err)
	}
	d, err := checker.Check(t.Context(), &q)
	if err != nil || d.Code == authz.CodeUnavailable {
		t.Fatalf("%v, %+v", err, d)
	}
	return d
}

func (r *narrowRig) get(t *testing.T, caller int, secret authz.Secret, method, path string) authz.Check {
	t.Helper()
	q := authz.Check{Caller: r.callers[caller], Presented: authz.PresentHash(secret.Hash()), Cost: 1}
	q.SetRequest(method, path)
	return q
}

func allScopes() []authz.Scope {
	return []authz.Scope{"customers:read", "customers:write", "tickets:read", "tickets:write"}
}

func (r *narrowRig) apply(t *testing.T, key authz.KeyID, in manage.NarrowingInput) (*manage.NarrowingChange, error) {
	t.Helper()
	return r.ApplyFindings(t.Context(), r.as(r.platform), r.org, key, in)
}

// Whatever was proposed, and whatever was asked before: once a key is
// narrowed, each request that was allowed is allowed again; and what is undone is exactly as it
// was.
func TestApplyFindings_ReplayedTrafficIsDeniedNothing(t *testing.T) {
	r := newNarrowRig(t, 1)
	applied, refused, kept := 0, 0, 0
	fewer(t, "8") // each waits twice until replicas have written what they counted
	history := func(rt *rapid.T) {
		in := manage.KeyInput{
			Name: "ci", Environment: rapid.SampledFrom([]authz.Environment{"live", "test"}).Draw(rt, "environment"),
			Scopes: rapid.SliceOfNDistinct(rapid.SampledFrom(allScopes()), 2, 4, rapid.ID).Draw(rt, "scopes"),
		}
		if rapid.Bool().Draw(rt, "fence") {
			in.AllowedCIDRs = []string{"203.0.113.0/24"}
		}
		made, err := r.CreateKey(t.Context(), r.as(r.platform), r.org, in)
		if err != nil {
			rt.Fatal(err)
		}
		key := made.Key.ID
		type sent struct {
			q       authz.Check
			allowed bool
		}
		var requests []sent
		// What many a key does: always the same, which it may.
		used, plain := rapid.SampledFrom(in.Scopes).Draw(rt, "used"), rapid.Bool().Draw(rt, "plain throughout")
		for range rapid.SampledFrom([]int{0, 4, 8, 12}).Draw(rt, "requests") {
			q := r.get(t, rapid.IntRange(0, 1).Draw(rt, "caller"), made.Secret,
				rapid.SampledFrom([]string{"GET", "POST", "PATCH", "DELETE", "PURGE"}).Draw(rt, "method"),
				rapid.SampledFrom([]string{
					"/api/v1/tickets", "/api/v1/tickets/42", "/api/v1/tickets/x/messages", "/api/v1/customers", "/api/v1/customers/7", "/nowhere", "/a//b",
				}).Draw(rt, "path"))
			q.ClientIP = netip.MustParseAddr("203.0.113.9")
			if rapid.Bool().Draw(rt, "odd") { // more is told, or less
				q.Action = rapid.SampledFrom([]string{"", "tickets:read", "customers:write", "no scope"}).Draw(rt, "action")
				q.Environment = rapid.SampledFrom([]authz.Environment{"", "live"}).Draw(rt, "asked environment")
				q.ClientIP = rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("198.51.100.9")}).Draw(rt, "address")
				q.Resource.Organization = rapid.SampledFrom([]string{"", r.org.String(), "another"}).Draw(rt, "owner")
				if rapid.IntRange(0, 2).Draw(rt, "action alone") == 0 {
					q.Method, q.Path, q.Segments, q.Ambiguous, q.Action = "", "", nil, false, "tickets:write"
				}
			}
			if plain || rapid.Bool().Draw(rt, "plain") {
				resource, verb, _ := strings.Cut(string(used), ":")
				q = r.get(t, 0, made.Secret, map[string]string{"read": "GET", "write": "POST"}[verb], "/api/v1/"+resource)
				q.ClientIP = netip.MustParseAddr("203.0.113.9")
			}
			requests = append(requests, sent{q, r.check(t, r.store, true, q).Allow})
		}
		if rapid.IntRange(0, 3).Draw(rt, "another fence") == 0 {
			cidrs := []string{"198.51.100.0/24"}
			if _, err := r.UpdateKey(t.Context(), r.as(r.platform), r.org, key, manage.KeyUpdate{AllowedCIDRs: &cidrs}); err != nil {
				rt.Fatal(err)
			}
		}
		before := r.answers(t, func(each func(authz.Check)) {
			for _, s := range requests {
				each(s.q)
			}
		})
		r.auditor.remove = rapid.SliceOfNDistinct(rapid.SampledFrom(allScopes()), 1, 2, rapid.ID).Draw(rt, "proposed to go")
		was, _, err := r.GetKey(t.Context(), r.as(r.platform), r.org, key)
		if err != nil {
			rt.Fatal(err)
		}
		change, err := r.apply(t, key, manage.NarrowingInput{})
		switch code(err) {
		case "":
			applied++
		case "traffic_needs_scopes":
			refused++
			return
		case "nothing_to_apply", "nothing_left":
			return
		default:
			rt.Fatal(err)
		}
		if err := r.store.Synchronize(t.Context()); err != nil {
			rt.Fatal(err)
		}
		for i, s := range requests {
			d := r.check(t, r.store, false, s.q)
			if s.allowed && before[i].Allow && !d.Allow {
				rt.Fatalf("%s %s %s: %s with %v in place of %v", s.q.Method, s.q.Path, s.q.Action, d.Code, change.Narrowing.After, change.Narrowing.Before)
			}
			if s.allowed && d.Allow {
				kept++
			}
		}
		undone, err := r.UndoFindings(t.Context(), r.as(r.platform), r.org, key)
		if err != nil {
			rt.Fatal(err)
		}
		if !slices.Equal(undone.Key.Scopes, was.Scopes) {
			rt.Fatalf("undone to %v, was %v", undone.Key.Scopes, was.Scopes)
		}
		undone.Key.Version = was.Version
		if a, b := fmt.Sprintf("%+v", keyWithoutUses(undone.Key)), fmt.Sprintf("%+v", keyWithoutUses(*was)); a != b {
			rt.Fatalf("undone:\n%s\nwas:\n%s", a, b)
		}
		if err := r.store.Synchronize(t.Context()); err != nil {
			rt.Fatal(err)
		}
		for i, s := range requests {
			if d := r.check(t, r.store, false, s.q); d.Code != before[i].Code {
				rt.Fatalf("undone, it is %s; was %s", d.Code, before[i].Code)
			}
		}
	}
	for range 6 { // few histories may be much alike
		if rapid.Check(t, history); applied > 0 && refused > 0 && kept > 0 {
			break
		}
	}
	t.Logf("%d applied, %d refused; %d allowed requests stayed so", applied, refused, kept)
	if applied == 0 || refused == 0 || kept == 0 {
		t.Error("the histories are too much alike")
	}
}

func (r *narrowRig) answers(t *testing.T, all func(func(authz.Check))) []*authz.Decision {
	t.Helper()
	if err := r.store.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out []*authz.Decision
	all(func(q authz.Check) { out = append(out, r.check(t, r.store, false, q)) })
	return out
}

// keyWithoutUses leaves out what uses change, and pointers.
func keyWithoutUses(k manage.Key) manage.Key {
	k.LastUsedAt, k.RateLimit = time.Time{}, nil
	k.Secrets = slices.Clone(k.Secrets)
	for i := range k.Secrets {
		k.Secrets[i].LastUsedAt = time.Time{}
	}
	return k
}

// used makes a key with all scopes, and uses it for reading tickets.
func (r *narrowRig) used(t *testing.T) *manage.KeyChange {
	t.Helper()
	in := keyInput()
	in.Scopes = allScopes()
	made := r.key(t, in)
	if d := r.check(t, r.store, true, r.get(t, 0, made.Secret, "GET", "/api/v1/tickets")); !d.Allow {
		t.Fatalf("%+v", d)
	}
	return made
}

// fewer has rapid try less often, until the test ends, unless a flag says how often.
func fewer(t *testing.T, checks string) {
	t.Helper()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if given {
		return
	}
	was := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", checks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set("rapid.checks", was) })
}

func TestApplyFindings_WhatIsStillInAReplicasMemoryIsAskedAbout(t *testing.T) {
	r := newNarrowRig(t, 2)
	made := r.used(t)
	if err := r.replicas[1].Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Nobody waits: it was counted a moment ago, by the other replica.
	if d := r.check(t, r.replicas[1], true, r.get(t, 1, made.Secret, "POST", "/api/v1/customers")); !d.Allow {
		t.Fatalf("%+v", d)
	}
	r.auditor.remove = []authz.Scope{"customers:write"}
	_, err := r.apply(t, made.Key.ID, manage.NarrowingInput{})
	var refused *authz.Error
	if code(err) != "traffic_needs_scopes" || !asError(err, &refused) || len(refused.Reasons) != 1 {
		t.Fatalf("%v", err)
	}
	want := "POST /api/v1/customers, once: allowed now, insufficient_scope then: it needs customers:write."
	if got := refused.Reasons[0]; got.Code != "denied" || got.Message != want {
		t.Errorf("%+v, want %q", got, want)
	}
}

func TestApplyFindings_WhatComesWhileItIsAskedIsAskedAbout(t *testing.T) {
	r := newNarrowRig(t, 1)
	made := r.used(t)
	r.auditor.remove = []authz.Scope{"tickets:write"}
	r.auditor.meanwhile = func() {
		if d := r.check(t, r.store, true, r.get(t, 0, made.Secret, "POST", "/api/v1/tickets")); !d.Allow {
			t.Errorf("%+v", d)
		}
		revision, err := r.store.Write(t.Context(), true, func(context.Context, manage.Writer) error { return nil })
		if err != nil {
			t.Error(err)
		}
		if counted, err := r.store.Counted(t.Context(), revision); err != nil || len(counted.Silent) > 0 {
			t.Errorf("%+v, %v", counted, err)
		}
	}
	if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); code(err) != "traffic_needs_scopes" {
		t.Fatalf("%v", err)
	}
	k, _, err := r.GetKey(t.Context(), r.as(r.platform), r.org, made.Key.ID)
	if err != nil || len(k.Scopes) != 4 || k.Version != 1 {
		t.Errorf("%+v, %v", k, err)
	}
}

func TestApplyFindings_AKeyThatChangedMeanwhileStaysAsItIs(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *narrowRig, authz.KeyID){
		"the key": func(t *testing.T, r *narrowRig, key authz.KeyID) {
			t.Helper()
			name := "renamed"
			if _, err := r.UpdateKey(t.Context(), r.as(r.platform), r.org, key, manage.KeyUpdate{Name: &name}); err != nil {
				t.Error(err)
			}
		},
		"its organization": func(t *testing.T, r *narrowRig, _ authz.KeyID) {
			t.Helper()
			name := "renamed"
			if _, err := r.UpdateOrganization(t.Context(), r.as(r.platform), r.org, manage.OrganizationUpdate{Name: &name}); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newNarrowRig(t, 1)
			made := r.used(t)
			r.auditor.remove, r.auditor.meanwhile = []authz.Scope{"tickets:write"}, nil
			changed := false
			r.auditor.meanwhile = func() {
				if !changed {
					changed = true
					change(t, r, made.Key.ID)
				}
			}
			if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); code(err) != "key_changed" {
				t.Fatalf("%v", err)
			}
			if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

func TestApplyFindings_IsOneChangeWithItsEvidence(t *testing.T) {
	r := newNarrowRig(t, 1)
	made := r.used(t)
	r.auditor.remove = []authz.Scope{"customers:write", "tickets:write"}
	owner := r.admin(t, authz.RoleOwner, r.org)
	request := r.as(owner)
	request.IdempotencyKey, request.Operation = "once", "apply"
	request.DryRun = true
	if would, err := r.ApplyFindings(t.Context(), request, r.org, made.Key.ID, manage.NarrowingInput{}); err != nil || would.Effective != nil || would.Kinds != 1 {
		t.Fatalf("%+v, %v", would, err)
	}
	request.DryRun = false
	first, err := r.ApplyFindings(t.Context(), request, r.org, made.Key.ID, manage.NarrowingInput{Keep: []authz.Scope{"customers:write"}})
	if err != nil {
		t.Fatal(err)
	}
	if want := []authz.Scope{"customers:read", "customers:write", "tickets:read"}; !slices.Equal(first.Key.Scopes, want) || first.Key.Version != 2 ||
		first.Effective == nil || first.Effective.Acknowledged != 1 || len(first.Narrowing.Before) != 4 || first.Kinds != 1 || first.Requests != 1 {
		t.Errorf("%+v", first)
	}
	if caller := first.Asked.Requests[0].Caller; caller != "" {
		t.Errorf("an owner is told the caller %q, which is the platform's", caller)
	}
	again, err := r.ApplyFindings(t.Context(), request, r.org, made.Key.ID, manage.NarrowingInput{Keep: []authz.Scope{"customers:write"}})
	if err != nil || again.Key.Version != 2 || !slices.Equal(again.Narrowing.Before, first.Narrowing.Before) || again.Findings.Coverage != "Covers 90 days." {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	request.IdempotencyKey, request.IfVersion = "", 1
	if _, err := r.ApplyFindings(t.Context(), request, r.org, made.Key.ID, manage.NarrowingInput{}); code(err) != "version_mismatch" {
		t.Errorf("%v", err)
	}
	log, err := r.ListAuditLog(t.Context(), r.as(r.platform), r.org, manage.AuditFilter{Action: "keys.rightsize", Limit: 10})
	if err != nil || len(log.Items) != 1 {
		t.Fatalf("%+v, %v", log, err)
	}
	for _, part := range []string{`"coverage":"Covers 90 days."`, `"policy_revision":"sha256:`, `"requests":1`, `"message":"It was not exercised."`} {
		if !strings.Contains(string(log.Items[0].After), part) {
			t.Errorf("the audit log has no %s: %s", part, log.Items[0].After)
		}
	}
}

func TestApplyFindings_WhatCannotBeAppliedSaysWhy(t *testing.T) {
	r := newNarrowRig(t, 1)
	made := r.used(t)
	auditor := r.admin(t, authz.RoleAuditor, r.org)
	foreign := r.admin(t, authz.RoleOwner, r.organization(t, "Globex"))
	for name, tt := range map[string]struct {
		as     *authz.Admin
		remove []authz.Scope
		in     manage.NarrowingInput
		want   string
	}{
		"nothing is proposed":    {r.platform, nil, manage.NarrowingInput{}, "nothing_to_apply"},
		"everything is":          {r.platform, allScopes(), manage.NarrowingInput{}, "nothing_left"},
		"keep what it has not":   {r.platform, allScopes(), manage.NarrowingInput{Keep: []authz.Scope{"a:b"}}, "out_of_range"},
		"a window of the future": {r.platform, allScopes(), manage.NarrowingInput{Since: time.Now().Add(time.Hour)}, "out_of_range"},
		"a window of years":      {r.platform, allScopes(), manage.NarrowingInput{Since: time.Now().AddDate(-2, 0, 0)}, "out_of_range"},
		"an auditor":             {auditor, allScopes()[3:], manage.NarrowingInput{}, "role_forbidden"},
		"a stranger":             {foreign, allScopes()[3:], manage.NarrowingInput{}, "not_found"},
	} {
		r.auditor.remove = tt.remove
		if _, err := r.ApplyFindings(t.Context(), r.as(tt.as), authz.OrganizationID{}, made.Key.ID, tt.in); code(err) != tt.want {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
	if k, _, err := r.GetKey(t.Context(), r.as(r.platform), r.org, made.Key.ID); err != nil || k.Version != 1 {
		t.Errorf("%+v, %v", k, err)
	}
}

func TestUndoFindings_IsRefusedWhereItIsNotClearWhatToGiveBack(t *testing.T) {
	r := newNarrowRig(t, 1)
	made := r.used(t)
	undo := func() error {
		_, err := r.UndoFindings(t.Context(), r.as(r.platform), r.org, made.Key.ID)
		return err
	}
	rescope := func(scopes ...authz.Scope) {
		if _, err := r.UpdateKey(t.Context(), r.as(r.platform), r.org, made.Key.ID, manage.KeyUpdate{Scopes: scopes}); err != nil {
			t.Fatal(err)
		}
	}
	if err := undo(); code(err) != "nothing_to_undo" {
		t.Errorf("before anything: %v", err)
	}
	r.auditor.remove = []authz.Scope{"tickets:write"}
	if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); err != nil {
		t.Fatal(err)
	}
	rescope("tickets:read")
	if err := undo(); code(err) != "scopes_changed" || !strings.Contains(err.Error(), "left with customers:read customers:write tickets:read") ||
		!strings.Contains(err.Error(), "to tickets:read;") {
		t.Errorf("changed by hand: %v", err)
	}
	rescope(allScopes()...)
	if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); err != nil {
		t.Fatal(err)
	}
	r.auditor.remove = []authz.Scope{"customers:write"}
	if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); err != nil {
		t.Fatal(err)
	}
	// The last one first.
	if err := undo(); err != nil {
		t.Error(err)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
	k, _, err := r.GetKey(t.Context(), r.as(r.platform), r.org, made.Key.ID)
	if err != nil || !slices.Equal(k.Scopes, allScopes()) {
		t.Errorf("%+v, %v", k, err)
	}
	if err := undo(); code(err) != "nothing_to_undo" {
		t.Errorf("after both: %v", err)
	}
	// For 400 days.
	r.auditor.remove = []authz.Scope{"tickets:write"}
	if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); err != nil {
		t.Fatal(err)
	}
	storetest.Exec(t, r.at, `UPDATE key_narrowings SET narrowed_at = now() - interval '400 days' - interval '1 second' WHERE undone_at IS NULL`)
	if err := undo(); code(err) != "nothing_to_undo" {
		t.Errorf("after 400 days: %v", err)
	}
	storetest.Exec(t, r.at, `UPDATE key_narrowings SET narrowed_at = now() - interval '399 days' WHERE undone_at IS NULL`)
	storetest.Exec(t, r.at, `UPDATE key_narrowings SET scopes_before = scopes_before || '{reports:read}' WHERE undone_at IS NULL`)
	if err := undo(); code(err) != "scopes_gone" || !strings.Contains(err.Error(), "reports:read no more") {
		t.Errorf("a scope that is no more: %v", err)
	}
	if _, err := r.RevokeKey(t.Context(), r.as(r.platform), r.org, made.Key.ID); err != nil {
		t.Fatal(err)
	}
	if err := undo(); code(err) != "key_revoked" {
		t.Errorf("revoked: %v", err)
	}
}

// A replica that has not said that its counts are written may know of traffic that nobody else
// knows of.
func TestApplyFindings_ASilentReplicaKeepsTheKeyAsItIs(t *testing.T) {
	r := newNarrowRig(t, 1)
	made := r.used(t)
	storetest.Exec(t, r.at, `INSERT INTO replicas (id, name, started_at, heartbeat_at, applied_revision, stale_max_ms, pepper_ids)
		VALUES (gen_random_uuid(), 'silent', now(), now(), 0, 300000, '{}')`)
	r.auditor.remove = []authz.Scope{"tickets:write"}
	_, err := r.apply(t, made.Key.ID, manage.NarrowingInput{})
	var refused *authz.Error
	if code(err) != "usage_not_written" || !asError(err, &refused) || len(refused.Reasons) != 1 || !strings.Contains(refused.Message, "1 of 2 replicas") {
		t.Errorf("%v", err)
	}
}
