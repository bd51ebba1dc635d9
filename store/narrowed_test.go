package store

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// What a replica has read as narrowed stays so when an old copy is restored, however the record
// has left its memory meanwhile.
func TestKeyCache_WhatWasReadAsNarrowedStaysSoHoweverItLeftTheMemory(t *testing.T) {
	soon := time.Unix(1_900_000_000, 0)
	narrowings := map[string]struct {
		narrow func(*authz.Key, *authz.KeySecret)
		wide   func(*authz.Key, *authz.KeySecret) bool
		inRow  bool // a row alone tells that it was narrowed
	}{
		"disabled":   {func(k *authz.Key, _ *authz.KeySecret) { k.Disabled = true }, func(k *authz.Key, _ *authz.KeySecret) bool { return !k.Disabled }, true},
		"restricted": {func(k *authz.Key, _ *authz.KeySecret) { k.Restricted = true }, func(k *authz.Key, _ *authz.KeySecret) bool { return !k.Restricted }, true},
		"ends":       {func(k *authz.Key, _ *authz.KeySecret) { k.ExpiresAt = soon }, func(k *authz.Key, _ *authz.KeySecret) bool { return k.ExpiresAt.IsZero() }, true},
		"its secret ends": {
			func(_ *authz.Key, s *authz.KeySecret) { s.ExpiresAt = soon }, func(_ *authz.Key, s *authz.KeySecret) bool { return s.ExpiresAt.IsZero() }, true,
		},
		"fenced": {
			func(k *authz.Key, _ *authz.KeySecret) {
				k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			},
			func(k *authz.Key, _ *authz.KeySecret) bool { return len(k.AllowedCIDRs) == 0 }, true,
		},
		"fewer scopes": {func(k *authz.Key, _ *authz.KeySecret) { k.Scopes = k.Scopes[:1] }, func(k *authz.Key, _ *authz.KeySecret) bool { return len(k.Scopes) > 1 }, false},
	}
	leaves := map[string]struct {
		leave func(*keyCache, authz.Digest, authz.OrganizationID)
		gone  bool
	}{
		"stays": {func(*keyCache, authz.Digest, authz.OrganizationID) {}, false},
		"its organization changes": {func(c *keyCache, _ authz.Digest, o authz.OrganizationID) {
			c.apply(&changeSet{n: 70, organizations: []changedOrganization{{id: o, revision: 70}}})
		}, false},
		"expires or is evicted": {func(c *keyCache, d authz.Digest, _ authz.OrganizationID) { c.known.Invalidate(d) }, true},
		"too much changes":      {func(c *keyCache, _ authz.Digest, _ authz.OrganizationID) { c.forget(70, nil) }, true},
	}
	for what, n := range narrowings {
		for how, l := range leaves {
			if l.gone && !n.inRow {
				continue
			}
			c := newTestCache(t, 64<<20)
			id := authz.NewOrganizationID(time.Now())
			of := c.organizations.organization(id)
			d, old := entryOf(1, of, &authz.Organization{ID: id, Revision: 5})
			key, secret := old.key.Copy(), copySecret(old.secret)
			n.narrow(key, secret)
			key.Revision = 60
			if _, ok := c.put(d, &cachedKey{key: key, secret: secret, organization: of, asOf: 65}); !ok || c.get(d) == nil {
				t.Fatal("it is not known")
			}
			l.leave(c, d, id)
			c.putBack(101)
			e, ok := c.put(d, &cachedKey{key: old.key, secret: old.secret, organization: c.organizations.organization(id), asOf: 101})
			if ok && e.bad == nil && n.wide(e.key, e.secret) {
				t.Errorf("%s, and %s: it is wide again", what, how)
			}
			// What changes from now on is the last word.
			key = old.key.Copy()
			key.Revision = 102
			e, ok = c.put(d, &cachedKey{key: key, secret: old.secret, organization: c.organizations.organization(id), asOf: 102})
			if !ok || e.bad != nil || !n.wide(e.key, e.secret) {
				t.Errorf("%s, and %s: a change after the restore does not apply: %+v, %t", what, how, e, ok)
			}
		}
	}
}

// A record that was kept when the database was put back is older than a change that was heard of
// since: when an old copy is restored again, it is not served for it.
func TestKeyCache_WhatIsKeptIsNoLaterWordThanAChange(t *testing.T) {
	c := newTestCache(t, 64<<20)
	id := authz.NewOrganizationID(time.Now())
	d, old := entryOf(1, c.organizations.organization(id), &authz.Organization{ID: id})
	known := old.key.Copy()
	known.Revision = 60
	c.put(d, &cachedKey{key: known, secret: old.secret, organization: old.organization, asOf: 65})
	c.putBack(101)
	c.apply(&changeSet{n: 102, keys: []changedKey{{digest: d, id: known.ID, secret: old.secret.ID, revision: 102}}}) // disabled
	c.putBack(201)
	e, ok := c.put(d, &cachedKey{key: old.key, secret: old.secret, organization: c.organizations.organization(id), asOf: 201})
	if ok && e.bad == nil {
		t.Errorf("%+v is served", e.key)
	}
}

// Of two look-ups the slower one may bring what the other has seen changed: it is read again, for
// nothing has been put back.
func TestKeyCache_ASlowReadBehindANarrowerOneIsReadAgain(t *testing.T) {
	c := newTestCache(t, 64<<20)
	id := authz.NewOrganizationID(time.Now())
	d, old := entryOf(1, c.organizations.organization(id), &authz.Organization{ID: id})
	now := old.key.Copy()
	now.Disabled, now.Revision = true, 60
	c.put(d, &cachedKey{key: now, secret: old.secret, organization: old.organization, asOf: 60})
	if e, ok := c.put(d, &cachedKey{key: old.key, secret: old.secret, organization: old.organization, asOf: 59}); ok {
		t.Errorf("what was read before is served: %+v", e)
	}
	if e := c.get(d); e == nil || !e.key.Disabled {
		t.Errorf("%+v is known", e)
	}
}

type putBackSource struct {
	massSource

	n int64
}

func (p *putBackSource) changes(context.Context, int64) (*changeSet, error) {
	return &changeSet{n: p.n, mark: "another", now: time.Now(), live: 1}, nil
}

func (p *putBackSource) raise(_ context.Context, n int64) error {
	p.n = max(p.n, n) + 1
	return nil
}

// A look-up may have read what was not applied yet when the database is put back. The revision is
// raised above that too, so that what is read then is not taken for a slow read.
func TestSynchronize_WhatWasReadAheadIsDecidedAfterAPutBack(t *testing.T) {
	s, _, known := newMass(t) // which has applied revision 1
	e := s.keys.get(known)
	ahead := e.key.Copy()
	ahead.Disabled, ahead.Revision = true, 30
	s.keys.put(known, &cachedKey{key: ahead, secret: e.secret, organization: e.organization, asOf: 30})
	s.source = &putBackSource{n: 1}
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	of := s.keys.organizations.organization(e.organization.id)
	served, ok := s.keys.put(known, &cachedKey{key: e.key, secret: e.secret, organization: of, asOf: s.applied.Load()})
	if !ok || served.key == nil || !served.key.Disabled {
		t.Errorf("%+v, %t at revision %d", served, ok, s.applied.Load())
	}
}

// When there is no room for all revocations it is the oldest that are forgotten, and that is counted.
func TestLearned_TheNewestRevocationIsNeverTheOneForgotten(t *testing.T) {
	const most, all = 10, 100
	l := newLearned()
	l.revoked.most, l.secrets.most, l.organizations.most = most, most, most
	for i := range all {
		k := changedKey{id: authz.NewKeyID(time.Now()), secret: authz.NewSecretID(time.Now()), revision: int64(i)}
		k.keyRevoked = unixOf(time.Unix(5, 0))
		k.secretRevoked = k.keyRevoked
		o := changedOrganization{authz.NewOrganizationID(time.Now()), int64(i), true}
		l.learn([]changedKey{k}, []changedOrganization{o, {id: authz.NewOrganizationID(time.Now())}})
		_, key := l.revoked.get(k.id)
		_, secret := l.secrets.get(k.secret)
		_, organization := l.organizations.get(o.id)
		if !key || !secret || !organization {
			t.Fatalf("revocation %d is not learned: %t, %t, %t", i, key, secret, organization)
		}
	}
	if remembered := int64(l.revoked.len() + l.secrets.len() + l.organizations.len()); remembered > 6*most || remembered+l.forgotten() != 3*all {
		t.Errorf("%d are remembered and %d counted as forgotten", remembered, l.forgotten())
	}
}
