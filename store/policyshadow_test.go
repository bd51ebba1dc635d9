package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// someShadow is one that runs so long, from now on.
func someShadow(runs time.Duration) authz.PolicyShadow {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return authz.PolicyShadow{
		Candidate: someRevision("5"), StartedAt: now, EndsAt: now.Add(runs), StartedBy: "admin_x", Note: "try", Share: 0.5, PerSecond: 7,
	}
}

func startShadow(t *testing.T, s *store.Store, shadow authz.PolicyShadow) authz.PolicyShadow {
	t.Helper()
	_, err := s.Change(t.Context(), func(ctx context.Context, c *store.Change) error {
		return c.StartPolicyShadow(ctx, everyoneHere(), &shadow, []byte("archive"))
	})
	if err != nil {
		t.Fatal(err)
	}
	return shadow
}

// awaitShadow waits until a store has a shadow as it should be.
func awaitShadow(t *testing.T, s *store.Store, is func(*store.PolicyShadow) bool) *store.PolicyShadow {
	t.Helper()
	for deadline := time.After(30 * time.Second); ; {
		if p := s.PolicyShadow(); is(p) {
			return p
		}
		select {
		case <-s.PolicyShadowChanged():
		case <-deadline:
			t.Fatalf("the store has %+v", s.PolicyShadow())
		}
	}
}

func shadowReport(t *testing.T, s *store.Store, of authz.PolicyShadow, most int) authz.PolicyShadowReport {
	t.Helper()
	report := authz.PolicyShadowReport{Shadow: of}
	err := s.Read(t.Context(), func(ctx context.Context, r manage.Reader) error {
		return r.PolicyShadowReport(ctx, everyoneHere(), &report, most)
	})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func shadowCounts(n int64) authz.PolicyShadowCounts {
	c := authz.PolicyShadowCounts{Seen: 10 * n, Asked: 5 * n, Failed: n, Dropped: 2 * n, Undecided: n, Restarts: 1, Totals: map[authz.PolicyDifferenceKind]int64{authz.DenyToAllow: n}}
	c.Took.Note(time.Millisecond)
	return c
}

func shadowDifference(o authz.OrganizationID, k authz.KeyID, path string, n int64) authz.PolicyShadowDifference {
	return authz.PolicyShadowDifference{
		Kind: authz.DenyToAllow, Active: someRevision("1"), Organization: o, Key: k, Method: "GET", Path: path, Before: authz.PolicyAnswer{Code: "policy_denied"},
		After: authz.PolicyAnswer{Allow: true, Code: "allowed"}, Requests: n, FirstSeen: time.Now().Add(-time.Duration(n) * time.Hour), LastSeen: time.Now(),
	}
}

func TestPolicyShadow_EveryReplicaLearnsOfItsBeginningAndItsEnd(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	one, two := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	if two.PolicyShadow() != nil {
		t.Fatalf("before the first: %+v", two.PolicyShadow())
	}
	made := startShadow(t, one, someShadow(time.Hour))
	for _, s := range []*store.Store{one, two, storetest.Open(t, at, peppers)} { // also one that starts
		p := awaitShadow(t, s, func(p *store.PolicyShadow) bool { return p != nil })
		if p.PolicyShadow != made || string(p.Archive) != "archive" || p.End(time.Now()) != "" {
			t.Errorf("%+v, not %+v", p, made)
		}
	}
	ended := made
	ended.EndedAt, ended.EndedBy, ended.Reason, ended.Why = made.EndsAt, "admin_y", authz.ShadowFailed, "a.rego:3: much"
	_, err := two.Change(t.Context(), func(ctx context.Context, c *store.Change) error { return c.EndPolicyShadow(ctx, everyoneHere(), ended) })
	if err != nil {
		t.Fatal(err)
	}
	if p := awaitShadow(t, one, func(p *store.PolicyShadow) bool { return p.Reason != "" }); p.PolicyShadow != ended || p.Archive != nil {
		t.Errorf("%+v", p)
	}
	// Another one takes its place, and what came of the first is forgotten.
	if err := one.WritePolicyShadow(t.Context(), made.Change, shadowCounts(1), nil); err != nil {
		t.Fatal(err)
	}
	second := startShadow(t, one, someShadow(time.Minute))
	awaitShadow(t, two, func(p *store.PolicyShadow) bool { return p.Change == second.Change })
	if err := one.WritePolicyShadow(t.Context(), made.Change, shadowCounts(2), nil); err != nil {
		t.Errorf("a replica that is late: %v", err)
	}
	if r := shadowReport(t, one, made, 10); r.Replicas != 0 {
		t.Errorf("of the one before: %+v", r)
	}
	if n := storetest.Count(t, at, `SELECT count(*) FROM policy_shadows`); n != 1 {
		t.Errorf("%d shadows are kept", n)
	}
}

// What replicas have counted is added up, whatever one writes twice, and the same difference of
// two is one.
func TestPolicyShadow_WhatReplicasCountIsAddedUpOnce(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	one, two := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	w := newWhole(t, one, "acme")
	made := startShadow(t, one, someShadow(time.Hour))
	difference := func(path string, n int64) authz.PolicyShadowDifference {
		return shadowDifference(w.organization.ID, w.key.ID, path, n)
	}
	several := authz.PolicyShadowDifference{
		Kind: authz.CandidateFails, Failure: authz.FailureError, Where: "a.rego:3", Requests: 1, FirstSeen: time.Now(), LastSeen: time.Now(),
	}
	write := func(s *store.Store, n int64, changed ...authz.PolicyShadowDifference) {
		t.Helper()
		if err := s.WritePolicyShadow(t.Context(), made.Change, shadowCounts(n), changed); err != nil {
			t.Fatal(err)
		}
	}
	write(one, 1, difference("/a", 1))
	write(one, 3, difference("/a", 2), difference("/b", 1))
	write(one, 3, difference("/a", 2), difference("/b", 1)) // its answer was lost
	write(two, 4, difference("/a", 3), several)
	r := shadowReport(t, one, made, 10)
	if c := r.Counts; r.Replicas != 2 || c.Seen != 70 || c.Asked != 35 || c.Failed != 7 || c.Dropped != 14 || c.Undecided != 7 || c.Restarts != 2 ||
		c.Totals[authz.DenyToAllow] != 7 || c.Took.Quantile(0.5) < time.Millisecond {
		t.Errorf("%+v", r)
	}
	if len(r.Differences) != 3 || r.Unlisted != 0 {
		t.Fatalf("%+v", r.Differences)
	}
	first := r.Differences[0]
	if first.Path != "/a" || first.Requests != 5 || first.OrganizationName != w.organization.Name || first.KeyName != w.key.Name ||
		first.LastSeen.Sub(first.FirstSeen) < 2*time.Hour || !first.After.Allow || first.Active != someRevision("1") {
		t.Errorf("%+v", first)
	}
	if last := r.Differences[2]; last.Kind != authz.CandidateFails || last.Where != "a.rego:3" || !last.Organization.IsZero() || last.OrganizationName != "" {
		t.Errorf("%+v", last)
	}
	if r = shadowReport(t, two, made, 1); len(r.Differences) != 1 || r.Differences[0].Path != "/a" || r.Unlisted != 2 {
		t.Errorf("%+v, %d more", r.Differences, r.Unlisted)
	}
}

func TestPolicyShadow_ThereIsNoneBeforeTheFirst(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	err := s.Read(t.Context(), func(ctx context.Context, r manage.Reader) error {
		_, err := r.PolicyShadow(ctx, everyoneHere())
		return err
	})
	if !errors.Is(err, manage.ErrNotFound) {
		t.Error(err)
	}
}
