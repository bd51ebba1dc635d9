package store_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// moved waits until nothing in use is under the old pepper.
func moved(t *testing.T, at string, peppers authz.Peppers, use func()) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		use()
		uses, err := store.PepperStatus(t.Context(), storetest.Parse(t, at), peppers)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(uses, func(u store.PepperUse) bool { return u.ID == "p1" })
		if u := uses[i]; u.KeySecrets+u.CallerTokens+u.AdminTokens == 0 {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("still under the old pepper: %+v", uses)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// What is used ends under the first pepper, and the old one can be taken away.
func TestRehash_WhatIsUsedMovesToTheFirstPepper(t *testing.T) {
	at := storetest.Migrated(t)
	old, fresh := authz.NewPepper("p1"), authz.NewPepper("p2")
	before, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: parsePeppers(t, old)})
	if err != nil {
		t.Fatal(err)
	}
	w := newWhole(t, before, "acme")
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	both := parsePeppers(t, fresh, old)
	s := storetest.Open(t, at, both)
	use := func(s *store.Store) {
		t.Helper()
		found := find(t, s, w.keySecret)
		c, err1 := s.FindCaller(t.Context(), w.callerToken.Hash())
		a, err2 := s.FindAdmin(t.Context(), w.adminToken.Hash())
		if err := errors.Join(err1, err2); err != nil || found.Key == nil || c == nil || a == nil {
			t.Fatalf("%+v %+v %+v %v", found, c, a, err)
		}
	}
	moved(t, at, both, func() { use(s) })
	uses, err := store.PepperStatus(t.Context(), storetest.Parse(t, at), both)
	if err != nil || len(uses) != 2 || uses[0] != (store.PepperUse{
		ID: "p2", Configured: true, First: true, Matches: true, KeySecrets: 1, CallerTokens: 1, AdminTokens: 1,
	}) || uses[1] != (store.PepperUse{ID: "p1", Configured: true, Matches: true}) {
		t.Errorf("%+v, %v", uses, err)
	}
	use(storetest.Open(t, at, parsePeppers(t, fresh)))
	manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
		k, err := r.Key(ctx, all(), authz.OrganizationID{}, w.key.ID)
		if k.Version != 1 {
			t.Errorf("version %d: a move is no change", k.Version)
		}
		return err
	})
}

// The one unforgivable bug: a record that stayed under the old digest would survive a
// later revocation.
func TestRehash_ALaterRevocationDeniesWhereTheOldDigestWasKnown(t *testing.T) {
	for name, prune := range map[string]bool{"in time": false, "after retired digests were cleared away": true} {
		t.Run(name, func(t *testing.T) {
			at := storetest.Migrated(t)
			old, fresh := authz.NewPepper("p1"), authz.NewPepper("p2")
			first, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: parsePeppers(t, old)})
			if err != nil {
				t.Fatal(err)
			}
			w := newWhole(t, first, "acme")
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			both := parsePeppers(t, fresh, old)
			here, there := storetest.Open(t, at, both), storetest.Open(t, at, both)
			there.StopFollowing()
			if find(t, there, w.keySecret).Key == nil { // now it knows the old digest
				t.Fatal("unknown")
			}
			moved(t, at, both, func() {
				for _, err := range []error{second(here.FindCaller(t.Context(), w.callerToken.Hash())), second(here.FindAdmin(t.Context(), w.adminToken.Hash()))} {
					if err != nil {
						t.Fatal(err)
					}
				}
				find(t, here, w.keySecret)
			})
			if prune {
				storetest.Exec(t, at, `UPDATE retired_digests SET at = at - interval '25 hours'`)
				here.PruneRetired(t.Context())
				if n := storetest.Count(t, at, `SELECT count(*) FROM retired_digests`); n != 0 {
					t.Fatalf("%d digests are not cleared away", n)
				}
			}
			revoke(t, here, w)
			if err := there.Synchronize(t.Context()); err != nil {
				t.Fatal(err)
			}
			if found := find(t, there, w.keySecret); found.Key == nil || found.Key.RevokedAt.IsZero() {
				t.Errorf("a revoked key is served: %+v", found.Key)
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

// A secret that moves while it is looked up is not taken for unknown: neither from
// memory nor from statements at two different times.
func TestRehash_AMovingKeyIsAlwaysFound(t *testing.T) {
	at := storetest.Migrated(t)
	old, fresh := authz.NewPepper("p1"), authz.NewPepper("p2")
	newWhole(t, storetest.Open(t, at, parsePeppers(t, old)), "acme")
	s := storetest.Open(t, at, parsePeppers(t, fresh, old))
	s.StopFollowing()
	secret := authz.NewSecret("stray")
	from, _, err1 := parsePeppers(t, old).Digest(secret.Hash())
	to, _, err2 := parsePeppers(t, fresh).Digest(secret.Hash())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if find(t, s, secret).Key != nil {
		t.Fatal("known")
	}
	// Both digests are known to lead nowhere. Then the key is under the new one, and
	// the old one is read anew.
	storetest.Exec(t, at, `INSERT INTO peppers (id, fingerprint) VALUES ('p2', 'x')`)
	storetest.Exec(t, at, `UPDATE revision SET n = n + 1`)
	storetest.Exec(t, at, `UPDATE key_secrets SET digest = $1, pepper_id = 'p2'`, to[:])
	s.ForgetDigest(from)
	if err := s.LookUpDigest(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	if find(t, s, secret).Key == nil {
		t.Error("unknown from memory, as its digests were at two different times")
	}
	if store.Conclusive(1, 2) || store.Conclusive(2, 1) || !store.Conclusive(2, 2) {
		t.Error("unknown at two different times is taken for unknown")
	}
}

// Nothing moves while a replica has another first pepper, or would not find it.
func TestRehash_WaitsForEveryReplica(t *testing.T) {
	at := storetest.Migrated(t)
	old, fresh := authz.NewPepper("p1"), authz.NewPepper("p2")
	before := storetest.Open(t, at, parsePeppers(t, old))
	w := newWhole(t, before, "acme")
	s := storetest.Open(t, at, parsePeppers(t, fresh, old))
	deadline := time.After(2500 * time.Millisecond) // two turns of the worker
	for done := false; !done; {
		find(t, s, w.keySecret)
		select {
		case <-deadline:
			done = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	if n := storetest.Count(t, at, `SELECT count(*) FROM key_secrets WHERE pepper_id = 'p1'`); n != 1 {
		t.Error("moved, though a replica would not find it any more")
	}
	if find(t, before, w.keySecret).Key == nil {
		t.Error("unknown")
	}
}
