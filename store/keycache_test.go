package store

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// entryOf is a record as a look-up makes it: of an ordinary key, with texts of its own.
func entryOf(n int, of *organizationState, organization *authz.Organization) (authz.Digest, *cachedKey) {
	now := time.Unix(1_800_000_000, 0)
	return authz.Digest(sha256.Sum256(fmt.Append(nil, n))), &cachedKey{
		key: &authz.Key{
			ID: authz.NewKeyID(now), Organization: organization, Name: fmt.Sprintf("integration %07d", n),
			Environment: authz.EnvironmentLive, Scopes: []authz.Scope{"tickets:read", "tickets:write"}, CreatedAt: now, Revision: 1,
		},
		secret: &authz.KeySecret{
			ID: authz.NewSecretID(now), Hint: fmt.Sprintf("sk_live_%04d…abcd", n%10_000), PepperID: "p1", CreatedAt: now,
		},
		organization: of, asOf: 1,
	}
}

func newTestCache(t testing.TB, bytes uint64) *keyCache {
	t.Helper()
	c, err := newKeyCache(bytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// The bound is of bytes, and what is said of it is about what the heap says.
func TestKeyCache_ItsBytesAreBoundedAndKnown(t *testing.T) {
	const bound = 16 << 20
	c := newTestCache(t, bound)
	of := c.organizations.organization(authz.NewOrganizationID(time.Now()))
	organization := &authz.Organization{Name: "Acme"}
	before := heap()
	for n := range 100_000 {
		d, e := entryOf(n, of, organization)
		c.put(d, e)
	}
	c.known.CleanUp()
	records, said := c.size()
	took := int64(heap()) - int64(before) // what other tests leave may be collected meanwhile
	if said > bound || records < 1000 {
		t.Errorf("%d records of %d bytes are kept, the bound is %d", records, said, bound)
	}
	if took > 2*bound {
		t.Errorf("they took %d bytes", took)
	}
	runtime.KeepAlive(c)
}

// After the database was put back, what is kept of before and what is read since stay within the
// bound together; of what found no place it is known that an older row is not to be served.
func TestKeyCache_WhatAPutBackKeepsIsWithinItsBound(t *testing.T) {
	const bound, keys = 1 << 20, 2000
	c := newTestCache(t, bound)
	of := c.organizations.organization(authz.NewOrganizationID(time.Now()))
	organization := &authz.Organization{Name: "Acme"}
	entries := map[authz.Digest]*cachedKey{}
	for n := range keys {
		d, e := entryOf(n, of, organization)
		e.key.Revision = 7
		c.put(d, e)
		entries[d] = e
	}
	c.known.CleanUp()
	cached := map[authz.Digest]bool{}
	for d := range c.known.All() {
		cached[d] = true
	}
	c.putBack(8)
	if c.learned.keptBytes > bound/2 || len(c.learned.kept) < 100 || c.known.GetMaximum()+c.learned.keptBytes > bound {
		t.Errorf("%d records of %d bytes are kept, beside a cache of %d", len(c.learned.kept), c.learned.keptBytes, c.known.GetMaximum())
	}
	served, refused := 0, 0
	for d := range cached {
		older := entries[d].key.Copy()
		older.Revision = 3
		e := c.learned.judge(&cachedKey{key: older, secret: entries[d].secret, organization: of, asOf: 9})
		switch {
		case e.bad != nil:
			refused++
		case e.key.Revision == 7:
			served++
		default:
			t.Fatalf("an older row is served: %+v", e.key)
		}
	}
	if served == 0 || refused == 0 {
		t.Errorf("%d as they were, %d refused", served, refused)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // what the first has found to be finalized, and what pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// What was read together is not read again together.
func TestKeyCache_ExpiryIsSpread(t *testing.T) {
	c := newTestCache(t, 64<<20)
	of := c.organizations.organization(authz.NewOrganizationID(time.Now()))
	organization := &authz.Organization{Name: "Acme"}
	minutes := map[time.Duration]int{}
	for n := range 1000 {
		d, e := entryOf(n, of, organization)
		c.put(d, e)
		entry, ok := c.known.GetEntryQuietly(d)
		if !ok {
			t.Fatal("what was put is not there")
		}
		left := time.Until(entry.ExpiresAt())
		if left > cachedKeyTTL || left < cachedKeyTTL*3/4 {
			t.Errorf("a record is kept for %v", left)
		}
		minutes[left.Round(10*time.Second)]++
	}
	for at, n := range minutes {
		if n > 250 {
			t.Errorf("%d of 1000 expire about %v from now", n, at)
		}
	}
}

// A change of an organization reaches every record of it at once, without a search, and
// states that no record holds are not kept.
func TestOrganizationCache_AChangeOutdatesAllItsRecords(t *testing.T) {
	c := newTestCache(t, 64<<20)
	ids := []authz.OrganizationID{authz.NewOrganizationID(time.Now()), authz.NewOrganizationID(time.Now())}
	for n := range 200 {
		of := c.organizations.organization(ids[n%2])
		d, e := entryOf(n, of, &authz.Organization{ID: ids[n%2]})
		if _, ok := c.put(d, e); !ok {
			t.Fatal("a record is refused")
		}
	}
	c.apply(&changeSet{n: 2, organizations: []changedOrganization{{id: ids[0], revision: 2}}})
	for n := range 200 {
		d, stale := entryOf(n, c.organizations.organization(ids[n%2]), &authz.Organization{ID: ids[n%2]})
		if found := c.get(d) != nil; found != (n%2 == 1) {
			t.Fatalf("record %d of organization %d is found: %t", n, n%2, found)
		}
		if _, ok := c.put(d, stale); ok != (n%2 == 1) {
			t.Fatalf("a slow read of organization %d is taken: %t", n%2, ok)
		}
	}
	for range 2 * minOrganizationSweep {
		c.organizations.organization(authz.NewOrganizationID(time.Now()))
	}
	runtime.GC()
	c.organizations.sweepAt = 0
	c.organizations.organization(authz.NewOrganizationID(time.Now()))
	if n := len(c.organizations.states); n > minOrganizationSweep {
		t.Errorf("%d states are kept", n)
	}
}

// What was read before a change that has been applied is refused, whatever is remembered
// of the change.
func TestKeyCache_ASlowReadPutsNothingBack(t *testing.T) {
	for name, change := range map[string]func(*keyCache, authz.Digest){
		"of the key":       func(c *keyCache, d authz.Digest) { c.apply(&changeSet{n: 2, keys: []changedKey{{digest: d}}}) },
		"of its digest":    func(c *keyCache, d authz.Digest) { c.apply(&changeSet{n: 2, retired: []authz.Digest{d}}) },
		"of everything":    func(c *keyCache, _ authz.Digest) { c.forget(2, nil) },
		"of another world": func(c *keyCache, _ authz.Digest) { c.putBack(2) },
		"of more than fits": func(c *keyCache, _ authz.Digest) {
			c.apply(&changeSet{n: 2, keys: make([]changedKey, maxRecentChanges+1)})
		},
	} {
		c := newTestCache(t, 64<<20)
		d, slow := entryOf(1, c.organizations.organization(authz.NewOrganizationID(time.Now())), &authz.Organization{})
		change(c, d)
		if _, ok := c.put(d, slow); ok || c.get(d) != nil {
			t.Errorf("a change %s is overtaken by a read that began before it", name)
		}
		_, fresh := entryOf(1, c.organizations.organization(authz.NewOrganizationID(time.Now())), &authz.Organization{})
		fresh.asOf = 2
		if _, ok := c.put(d, fresh); !ok || c.get(d) == nil {
			t.Errorf("after a change %s nothing can be read", name)
		}
	}
}

// A record that was read while the database was put back is not kept: no later change of
// its organization would find it.
func TestKeyCache_AReadDuringAPutBackIsReadAgain(t *testing.T) {
	c := newTestCache(t, 64<<20)
	d, e := entryOf(1, c.organizations.organization(authz.NewOrganizationID(time.Now())), &authz.Organization{})
	e.asOf = 101
	c.putBack(100)
	if _, ok := c.put(d, e); ok {
		t.Error("it is kept")
	}
}
