package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// keeping opens a store that keeps decisions, and writes when the test says.
func keeping(t testing.TB, at string, kept store.DecisionsKept) *store.Store {
	t.Helper()
	s := opened(t, at, kept)
	s.StopFollowing()
	return s
}

func opened(t testing.TB, at string, kept store.DecisionsKept) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: storetest.Peppers(t, "p1"), Decisions: kept})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var week = store.DecisionsKept{For: 7 * 24 * time.Hour, Sample: 1000}

// denied is a denial of a key of an organization, asked by a caller.
func denied(w *whole) (*authz.Check, *authz.Decision) {
	q := &authz.Check{
		Caller: &authz.Caller{ID: w.caller.ID}, ClientIP: netip.MustParseAddr("203.0.113.7"), Browser: true, Action: "tickets:write",
		Environment: authz.EnvironmentTest, Cost: 1,
	}
	q.SetRequest("POST", "/api/v1/tickets/42")
	d := &authz.Decision{
		ID: authz.NewDecisionID(time.Now()), Code: authz.CodeInsufficientScope, Status: 403, Route: "/api/v1/tickets/{id}",
		Key:    &authz.Key{ID: w.key.ID, Environment: authz.EnvironmentLive, Organization: &authz.Organization{ID: w.organization.ID}},
		Secret: &authz.KeySecret{ID: w.key.Secrets[0].ID}, Required: []authz.Scope{"tickets:write"}, Missing: []authz.Scope{"tickets:write"},
		Reasons: []authz.Reason{{Code: authz.CodeInsufficientScope, Message: "private"}, {Code: "mine", Message: "private"}}, PolicyRevision: "sha256:x",
		Degraded: authz.Degraded{Limiter: true, Store: true},
	}
	return q, d
}

func readDecision(t *testing.T, s *store.Store, tenant manage.Tenant, id authz.DecisionID) (out *manage.Decision) {
	t.Helper()
	manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
		var err error
		if out, err = r.Decision(ctx, tenant, id); errors.Is(err, manage.ErrNotFound) {
			return nil
		}
		return err
	})
	return out
}

func TestDecisions_ADenialIsKeptAndOnlyItsOrganizationSeesIt(t *testing.T) {
	s := keeping(t, storetest.Migrated(t), week)
	w, foreign := newWhole(t, s, "acme"), newWhole(t, s, "globex")
	q, d := denied(w)
	s.Decided(q, d)
	unknown := &authz.Decision{ID: authz.NewDecisionID(time.Now()), Code: authz.CodeKeyUnknown, Status: 401}
	s.Decided(&authz.Check{}, unknown)
	if err := s.FlushDecisions(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := &manage.Decision{
		ID: d.ID, Organization: w.organization.ID, Key: w.key.ID, Secret: w.key.Secrets[0].ID, Caller: w.caller.ID,
		Environment: authz.EnvironmentLive, Method: "POST", Route: "/api/v1/tickets/{id}", Action: "tickets:write",
		Code: authz.CodeInsufficientScope, Status: 403, Reasons: []authz.Code{"insufficient_scope", "mine"},
		Required: []authz.Scope{"tickets:write"}, Missing: []authz.Scope{"tickets:write"}, PolicyRevision: "sha256:x",
		Network: netip.MustParsePrefix("203.0.113.0/24"), Degraded: []string{"limiter", "store"}, Browser: true,
	}
	got := readDecision(t, s, of(w.organization.ID), d.ID)
	if got == nil {
		t.Fatal("the denial is not kept")
	}
	want.At = got.At
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	for name, found := range map[string]*manage.Decision{
		"a foreign organization's": readDecision(t, s, of(foreign.organization.ID), d.ID), "nobody's": readDecision(t, s, manage.Tenant{}, d.ID),
		"an unknown key's to an organization": readDecision(t, s, of(w.organization.ID), unknown.ID),
	} {
		if found != nil {
			t.Errorf("%s: %+v", name, found)
		}
	}
	if found := readDecision(t, s, all(), unknown.ID); found == nil || !found.Key.IsZero() || found.Network.IsValid() {
		t.Errorf("everyone: %+v", found)
	}
}

// Whatever a client wrote where: what cannot be what it should be is left out.
func TestDecisions_NothingOfWhatWasPresentedIsKept(t *testing.T) {
	at := storetest.Migrated(t)
	s := keeping(t, at, store.DecisionsKept{For: week.For, Sample: 1, NoNetworks: true})
	secret := format(t).Generate(authz.EnvironmentLive).Reveal()
	q, d := denied(newWhole(t, s, "acme"))
	q.SetRequest(secret, "/a/"+secret)
	q.Action, q.Resource = secret, authz.Resource{Type: secret, ID: secret, Organization: secret}
	d.Route, d.Reasons = q.Path, []authz.Reason{{Code: authz.Code(secret), Message: secret}, {Code: "nul\x00", Message: "\x00"}}
	d.Required, d.Missing = []authz.Scope{authz.Scope(secret)}, nil
	s.Decided(q, d)
	if err := s.FlushDecisions(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := storetest.Count(t, at, `SELECT count(*) FROM decisions d WHERE d::text LIKE '%' || $1 || '%' OR network IS NOT NULL`, secret[12:30])
	if kept := storetest.Count(t, at, `SELECT count(*) FROM decisions`); n != 0 || kept != 1 {
		t.Errorf("%d of %d rows hold a secret or a network", n, kept)
	}
}

func TestDecisions_OfAllowsASampleIsKept(t *testing.T) {
	for sample, want := range map[int]int{0: 0, 1: 5, 1 << 60: 0} {
		at := storetest.Migrated(t)
		s := keeping(t, at, store.DecisionsKept{For: time.Hour, Sample: sample})
		q, d := denied(newWhole(t, s, "acme"))
		d.Allow, d.Code, d.Reasons, d.Missing = true, authz.CodeAllowed, nil, nil
		for range 5 {
			d.ID = authz.NewDecisionID(time.Now())
			s.Decided(q, d)
		}
		if err := s.FlushDecisions(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := storetest.Count(t, at, `SELECT count(*) FROM decisions WHERE code = 'allowed'`); n != want {
			t.Errorf("one in %d: %d of 5", sample, n)
		}
	}
}

// A flood neither fills the disk nor pushes out what somebody else would ask about: the first
// of everybody is kept, and everything that is not is counted.
func TestDecisions_AFloodIsBoundedAndPushesNobodyOut(t *testing.T) {
	at := storetest.Migrated(t)
	s := keeping(t, at, week)
	w := newWhole(t, s, "acme")
	decide := func(key authz.KeyID, code authz.Code) authz.DecisionID {
		q, d := denied(w)
		d.Key, d.Code = &authz.Key{ID: key, Organization: d.Key.Organization}, code
		s.Decided(q, d)
		return d.ID
	}
	flooding := make([]authz.KeyID, 500)
	for i := range flooding {
		flooding[i] = authz.NewKeyID(time.Now())
	}
	total, quiet := 0, []authz.DecisionID(nil)
	for range 2 * store.MaxDecisionsOfOne {
		for _, key := range flooding {
			decide(key, authz.CodeRateLimited)
			total++
		}
	}
	// After the flood, in the same second: others, and another code of one that floods.
	for range 100 {
		quiet = append(quiet, decide(authz.NewKeyID(time.Now()), authz.CodeKeyRevoked))
	}
	quiet = append(quiet, decide(flooding[0], authz.CodeInsufficientScope))
	total += len(quiet)
	s.SetDecisionBudget(1_000)
	if err := s.FlushDecisions(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range quiet {
		if readDecision(t, s, all(), id) == nil {
			t.Errorf("%s was pushed out", id)
		}
	}
	kept := storetest.Count(t, at, `SELECT count(*) FROM decisions`)
	most := storetest.Count(t, at, `SELECT max(n) FROM (SELECT count(*) AS n FROM decisions GROUP BY key_id, code) x`)
	h := s.Health()
	if kept > 1_000 || most > 3 || h.KeptDecisions != int64(kept) || h.KeptDecisions+h.DroppedDecisions != int64(total) {
		t.Errorf("of %d: %d kept, at most %d of one; it says %d kept and %d dropped", total, kept, most, h.KeptDecisions, h.DroppedDecisions)
	}
}

// However much room there is, one key has so much of it a second.
func TestDecisions_OneKeyHasItsShare(t *testing.T) {
	at := storetest.Migrated(t)
	s := keeping(t, at, week)
	w := newWhole(t, s, "acme")
	for range 2 {
		for range 3 * store.MaxDecisionsOfOne {
			q, d := denied(w)
			s.Decided(q, d)
		}
		if err := s.FlushDecisions(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := storetest.Count(t, at, `SELECT count(*) FROM decisions`); n != 2*store.MaxDecisionsOfOne {
		t.Errorf("%d of one key in two turns, want %d", n, 2*store.MaxDecisionsOfOne)
	}
}

func TestDecisions_WhatIsTooOldIsDeletedByAnyReplica(t *testing.T) {
	at := storetest.Migrated(t)
	s := keeping(t, at, week)
	other := keeping(t, at, week)
	w := newWhole(t, s, "acme")
	var young authz.DecisionID
	for i, age := range []time.Duration{0, week.For - time.Minute, week.For + time.Minute, 20 * week.For} {
		q, d := denied(w)
		d.ID = authz.NewDecisionID(time.Now().Add(-age))
		d.Code = authz.Code(fmt.Sprint("c", i))
		if s.Decided(q, d); i == 0 {
			young = d.ID
		}
	}
	if err := s.FlushDecisions(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, replica := range []*store.Store{other, s, other} {
		if err := replica.ExpireDecisions(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := storetest.Count(t, at, `SELECT count(*) FROM decisions`); n != 2 || readDecision(t, s, all(), young) == nil {
		t.Errorf("%d are left, want 2", n)
	}
}

// What cannot be written waits, once; what Postgres refuses does not stop what comes after it.
func TestDecisions_WaitForPostgresAndAreWrittenOnce(t *testing.T) {
	at := storetest.Migrated(t)
	s := keeping(t, at, week)
	w := newWhole(t, s, "acme")
	q, d := denied(w)
	s.Decided(q, d)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.FlushDecisions(gone); err == nil {
		t.Fatal("it was written without Postgres")
	}
	if err := s.FlushDecisions(t.Context()); err != nil || readDecision(t, s, all(), d.ID) == nil {
		t.Fatalf("what waited was not written: %v", err)
	}
	s.Decided(q, d) // the same, as if an answer had been lost
	if err := s.FlushDecisions(t.Context()); err != nil {
		t.Fatal(err)
	}
	storetest.Exec(t, at, `ALTER TABLE decisions ADD CHECK (code <> 'bad')`)
	_, refused := denied(w)
	refused.Code = "bad"
	s.Decided(q, refused)
	if err := s.FlushDecisions(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, next := denied(w)
	s.Decided(q, next)
	if err := s.FlushDecisions(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := s.Health()
	if n := storetest.Count(t, at, `SELECT count(*) FROM decisions`); n != 2 || h.DroppedDecisions != 1 || readDecision(t, s, all(), next.ID) == nil {
		t.Errorf("%d rows, %+v", n, h)
	}
}

// A store that is closed has written what it knew by then.
func TestDecisions_ClosingLosesNothing(t *testing.T) {
	at := storetest.Migrated(t)
	s := opened(t, at, week)
	q, d := denied(newWhole(t, s, "acme"))
	s.Decided(q, d)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := storetest.Count(t, at, `SELECT count(*) FROM decisions`); n != 1 {
		t.Errorf("%d rows", n)
	}
}

// Most allows cost a look at their id, and what is off nothing at all.
func TestDecisions_WhatIsNotKeptAllocatesNothing(t *testing.T) {
	at := storetest.Migrated(t)
	for name, kept := range map[string]store.DecisionsKept{"not sampled": {For: time.Hour, Sample: 1 << 60}, "off": {}} {
		s := keeping(t, at, kept)
		q, d := &authz.Check{}, &authz.Decision{Allow: true, ID: authz.NewDecisionID(time.Now())}
		if n := testing.AllocsPerRun(100, func() { s.Decided(q, d) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkDecided(b *testing.B) {
	s := keeping(b, storetest.Migrated(b), week)
	w := newWhole(b, s, "acme")
	run := func(name string, change func(*authz.Decision)) {
		b.Run(name, func(b *testing.B) {
			q, d := denied(w)
			change(d)
			b.ReportAllocs()
			for b.Loop() {
				s.Decided(q, d)
			}
		})
	}
	for { // one that is not in the sample
		if _, d := denied(w); !d.ID.OneIn(1000) {
			run("allow", func(x *authz.Decision) { x.Allow, x.Code, x.ID = true, authz.CodeAllowed, d.ID })
			break
		}
	}
	run("flood of denials", func(*authz.Decision) {})
}

// BenchmarkDecisions_BytesPerRow is what a kept decision takes on disk, index included.
func BenchmarkDecisions_BytesPerRow(b *testing.B) {
	at := storetest.Migrated(b)
	s := keeping(b, at, week)
	w := newWhole(b, s, "acme")
	const n = 5_000
	for b.Loop() {
		s.SetDecisionBudget(n)
		for i := range n {
			q, d := denied(w)
			d.Code = authz.Code(fmt.Sprint("code", i))
			s.Decided(q, d)
		}
		if err := s.FlushDecisions(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	rows := storetest.Count(b, at, `SELECT count(*) FROM decisions`)
	b.ReportMetric(float64(storetest.Count(b, at, `SELECT pg_total_relation_size('decisions')`))/float64(rows), "B/row")
	if rows == 0 {
		b.Fatal("nothing was kept")
	}
}
