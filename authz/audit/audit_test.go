package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/audit"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/policies"
)

var (
	since = time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	until = time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)
)

func shipped(t testing.TB) *policy.Engine {
	t.Helper()
	s, err := policy.Load(t.Context(), policies.FS)
	if err != nil {
		t.Fatal(err)
	}
	return policy.NewEngine(s)
}

// asking judges without classes, and counts.
type asking struct {
	authz.FindingsPolicy

	asked int
	exact bool
}

func (a *asking) Findings() (authz.FindingsPolicy, error) { return a, nil }

func (a *asking) Judge(ctx context.Context, f *authz.Facts) (authz.Ruling, error) {
	a.asked++
	return a.FindingsPolicy.Judge(ctx, f)
}

// Steps are none where nothing is to be rounded.
func (a *asking) Steps() *authz.EvidenceSteps {
	steps := a.FindingsPolicy.Steps()
	if !a.exact {
		return steps
	}
	var all authz.EvidenceSteps
	for i := range all.Key {
		for n := range int64(2000) {
			all.Key[i] = append(all.Key[i], n+1)
		}
	}
	for i := range all.Scope {
		for n := range int64(2000) {
			all.Scope[i] = append(all.Scope[i], n+1)
		}
	}
	return &all
}

// randomEvidence is of a key of which little is out of the ordinary, often just at a threshold.
func randomEvidence(r *rand.Rand, i int) *authz.Evidence {
	days := func(most int) int {
		at := []int{0, 1, 2, 3, 9, 10, 11, 19, 20, 21, 29, 30, 31, 59, 60, 61, 89, 90, 91, r.IntN(most + 1)}
		return min(at[r.IntN(len(at))], most)
	}
	ago := func(most int) time.Time {
		return until.Add(-time.Duration(days(most))*24*time.Hour - time.Duration(r.IntN(3))*time.Second)
	}
	counted := func() authz.Counted {
		n := days(92)
		return authz.Counted{Requests: int64(n) * int64(1+r.IntN(50)), Days: n, LastOn: ago(90)}
	}
	e := quiet()
	e.KeyName = fmt.Sprintf("key %d", i)
	states := []authz.KeyState{authz.KeyRevoked, authz.KeyExpired, authz.KeyDisabled, authz.KeySuspended}
	changes := []func(){
		func() { e.State = states[r.IntN(len(states))] },
		func() { e.Environment = authz.EnvironmentTest },
		func() { e.CreatedAt, e.RotatedAt = ago(400), time.Time{} },
		func() { e.RotatedAt = ago(200) },
		func() { e.ExpiresAt = time.Time{} },
		func() { e.Window.RecordedSince = ago(100) },
		func() { e.DaysUsed = days(92) },
		func() { e.Limited, e.Allowed = counted(), counted() },
		func() { e.Expired = counted() },
		func() { e.Revoked = counted() },
		func() { e.Mismatched, e.Environment = counted(), authz.EnvironmentTest },
		func() { e.Browser = counted() },
		func() { e.Networks, e.NetworksSince = days(40), ago(92) },
		func() { e.Scopes = e.Scopes[:r.IntN(2)+1] },
		func() { e.Scopes[0].DaysUsed = days(92) },
		func() { e.Scopes[len(e.Scopes)-1].DaysUsed = days(92) },
		func() { e.Scopes[0].Granted = false },
		func() {
			e.Scopes[0].Networks, e.Scopes[0].NetworkSince, e.Scopes[0].FirstUsedAt = r.IntN(4), ago(92), ago(92)
		},
	}
	for range r.IntN(4) {
		changes[r.IntN(len(changes))]()
	}
	return e
}

func streamOf(all []*authz.Evidence) authz.EvidenceStream {
	return func(_ context.Context, each func(*authz.Evidence) error) error {
		for _, e := range all {
			if err := each(e); err != nil {
				return err
			}
		}
		return nil
	}
}

func collect(t testing.TB, a *audit.Auditor, all []*authz.Evidence) ([]*authz.KeyFindings, authz.AuditSummary) {
	t.Helper()
	var found []*authz.KeyFindings
	summary, err := a.Audit(t.Context(), streamOf(all), func(k *authz.KeyFindings) error {
		found = append(found, k)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, summary
}

// What a key is told is what it would be told alone, with all its figures, whatever was judged
// before and remembered.
func TestAudit_AClassIsToldWhatEachOfItsKeysWouldBe(t *testing.T) {
	engine := shipped(t)
	inForce, err := engine.Findings()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	var all []*authz.Evidence
	for i := range 3_000 {
		all = append(all, randomEvidence(random, i))
	}
	classes, exact := &asking{FindingsPolicy: inForce}, &asking{FindingsPolicy: inForce, exact: true}
	got, summary := collect(t, audit.New(classes), all)
	want, _ := collect(t, audit.New(exact), all)
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Fatalf("of %+v is found\n%+v\nand by its class\n%+v", all[i], want[i].Findings, got[i].Findings)
		}
	}
	if int64(classes.asked) != summary.Classes || classes.asked >= exact.asked {
		t.Errorf("policy is asked %d times for %d classes, and %d times without", classes.asked, summary.Classes, exact.asked)
	}
}

func TestAudit_PolicyIsAskedOncePerClass(t *testing.T) {
	inForce, err := shipped(t).Findings()
	if err != nil {
		t.Fatal(err)
	}
	a := &asking{FindingsPolicy: inForce}
	var all []*authz.Evidence
	for i := range 500 {
		e := quiet()
		// Figures that no threshold lies between.
		e.Allowed.Requests, e.Networks, e.DaysUsed = int64(1000+i), 1+i%19, 1+i%90
		all = append(all, e)
	}
	found, summary := collect(t, audit.New(a), all)
	if a.asked != 1 || summary.Keys != 500 || summary.Findings != 0 || len(found) != 500 {
		t.Errorf("asked %d times: %+v", a.asked, summary)
	}
}

// quiet is the evidence of a key of which there is nothing to say.
func quiet() *authz.Evidence {
	return &authz.Evidence{
		Organization: authz.NewOrganizationID(since), OrganizationName: "Acme", Key: authz.NewKeyID(since), KeyName: "ci", Hint: "sk_live_4fGh…9aBc",
		Environment: authz.EnvironmentLive, State: authz.KeyActive, CreatedAt: since.AddDate(0, -2, 0), ExpiresAt: until.AddDate(0, 1, 0),
		RotatedAt: until.AddDate(0, 0, -40), FirstUsedAt: since.AddDate(0, -2, 0), LastUsedAt: until.AddDate(0, 0, -1),
		Window:   authz.Window{Since: since, Until: until, RecordedSince: since.AddDate(0, -1, 0)},
		DaysUsed: 60, Allowed: authz.Counted{Requests: 12_345, Days: 60}, Networks: 2, NetworksSince: since,
		Scopes: []authz.ScopeEvidence{
			{Scope: "tickets:read", Granted: true, Requests: 12_000, DaysUsed: 60, FirstUsedAt: since, LastUsedAt: until.AddDate(0, 0, -1), Networks: 2, NetworkSince: since},
			{Scope: "tickets:write", Granted: true, Requests: 345, DaysUsed: 20, FirstUsedAt: since, LastUsedAt: until.AddDate(0, 0, -2), Networks: 2, NetworkSince: since},
		},
	}
}

func TestAudit_FindingsHaveExactFiguresAndAProposal(t *testing.T) {
	e := quiet()
	e.Scopes[1].DaysUsed, e.Scopes[1].Requests, e.Scopes[1].LastUsedAt = 0, 0, time.Time{}
	e.Networks = 1_234
	found, summary := collect(t, audit.New(shipped(t)), []*authz.Evidence{e})
	k := found[0]
	var messages []string
	for _, f := range k.Findings {
		messages = append(messages, string(f.Severity)+" "+string(f.Code)+": "+f.Message)
	}
	want := []string{
		"high write_never_used: The key may write (tickets:write) and only read: this covers 92 days; nothing older was asked. It was used on 60 days.",
		"medium shared_key: The key was used from 1,234 networks: many clients seem to share it.",
	}
	if !slices.Equal(messages, want) {
		t.Errorf("it says %q", messages)
	}
	if !slices.Equal(k.ProposedScopes, []authz.Scope{"tickets:read"}) || k.Coverage != "Covers 92 days, from 2026-07-01 to 2026-10-01; nothing older was asked." {
		t.Errorf("proposed %v, %q", k.ProposedScopes, k.Coverage)
	}
	if summary.BySeverity[authz.SeverityHigh] != 1 || summary.ByCode[authz.FindingSharedKey] != 1 || summary.Flagged != 1 || summary.Undecided != 0 {
		t.Errorf("%+v", summary)
	}
}

// A window that is too short never says unused.
func TestAudit_AShortWindowIsNotEnoughEvidence(t *testing.T) {
	for name, change := range map[string]func(*authz.Evidence){
		"counting began lately": func(e *authz.Evidence) { e.Window.RecordedSince = until.AddDate(0, 0, -29) },
		"nothing was counted":   func(e *authz.Evidence) { e.Window.RecordedSince = time.Time{} },
		"a new key":             func(e *authz.Evidence) { e.CreatedAt, e.RotatedAt = until.AddDate(0, 0, -20), time.Time{} },
		"a short question":      func(e *authz.Evidence) { e.Window.Since = until.AddDate(0, 0, -7) },
	} {
		t.Run(name, func(t *testing.T) {
			unused, idle := quiet(), quiet()
			unused.Scopes[0].DaysUsed = 0
			idle.DaysUsed, idle.Scopes[0].DaysUsed, idle.Scopes[1].DaysUsed = 0, 0, 0
			change(unused)
			change(idle)
			found, summary := collect(t, audit.New(shipped(t)), []*authz.Evidence{unused, idle})
			if summary.Findings != 0 || summary.Undecided != 2 {
				t.Errorf("%+v: %+v", summary, found[0].Findings)
			}
			if !slices.Contains(found[0].Undecided, authz.FindingUnusedScope) || !slices.Contains(found[1].Undecided, authz.FindingUnusedKey) {
				t.Errorf("undecided are %v and %v", found[0].Undecided, found[1].Undecided)
			}
		})
	}
}

func TestAudit_ErrorsEndIt(t *testing.T) {
	a := audit.New(shipped(t))
	wrong := errors.New("wrong")
	if _, err := a.Audit(t.Context(), streamOf([]*authz.Evidence{quiet()}), func(*authz.KeyFindings) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("it says %v", err)
	}
	if _, err := a.Audit(t.Context(), func(context.Context, func(*authz.Evidence) error) error { return wrong }, nil); !errors.Is(err, wrong) {
		t.Errorf("it says %v", err)
	}
	if _, err := audit.New(policy.NewEngine(nil)).Audit(t.Context(), streamOf(nil), nil); !errors.Is(err, policy.ErrNoPolicy) {
		t.Errorf("it says %v", err)
	}
}
