package store

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

func prefixesOf(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// Of two pasts a key has what both give it: no scope, no time and no address that one of
// them takes away.
func TestLearned_WhatIsKeptIsNoWiderThanWhatIsStored(t *testing.T) {
	soon := time.Unix(1_900_000_000, 0)
	wide := func() *authz.Key {
		return &authz.Key{Organization: &authz.Organization{}, Scopes: []authz.Scope{"a:b", "c:d"}}
	}
	for name, c := range map[string]struct {
		stored func(*authz.Key)
		holds  func(*authz.Key) bool
	}{
		"revoked":    {func(k *authz.Key) { k.RevokedAt = soon }, func(k *authz.Key) bool { return k.RevokedAt.Equal(soon) }},
		"ends":       {func(k *authz.Key) { k.ExpiresAt = soon }, func(k *authz.Key) bool { return k.ExpiresAt.Equal(soon) }},
		"disabled":   {func(k *authz.Key) { k.Disabled = true }, func(k *authz.Key) bool { return k.Disabled }},
		"restricted": {func(k *authz.Key) { k.Restricted = true }, func(k *authz.Key) bool { return k.Restricted }},
		"scopes": {
			func(k *authz.Key) { k.Scopes = []authz.Scope{"c:d", "e:f"} },
			func(k *authz.Key) bool { return slices.Equal(k.Scopes, []authz.Scope{"c:d"}) },
		},
		"fenced": {
			func(k *authz.Key) { k.AllowedCIDRs = prefixesOf("10.0.0.0/8") },
			func(k *authz.Key) bool { return slices.Equal(k.AllowedCIDRs, prefixesOf("10.0.0.0/8")) },
		},
		"suspended": {
			func(k *authz.Key) { k.Organization = &authz.Organization{Suspended: true} },
			func(k *authz.Key) bool { return k.Organization.Suspended },
		},
	} {
		stored := wide()
		c.stored(stored)
		for order, got := range map[string]*authz.Key{"kept wide": narrower(wide(), stored), "stored wide": narrower(stored, wide())} {
			if !c.holds(got) {
				t.Errorf("%s, %s: %+v", name, order, got)
			}
		}
	}
}

// A fence that has nothing in common with another holds nobody, and not everybody.
func TestLearned_FencesInCommon(t *testing.T) {
	for _, c := range []struct{ a, b, both []netip.Prefix }{
		{nil, nil, nil},
		{prefixesOf("10.0.0.0/8"), nil, prefixesOf("10.0.0.0/8")},
		{prefixesOf("10.0.0.0/8", "192.0.2.0/24"), prefixesOf("10.1.0.0/16"), prefixesOf("10.1.0.0/16")},
		{prefixesOf("10.1.0.0/16"), prefixesOf("10.0.0.0/8", "2001:db8::/32"), prefixesOf("10.1.0.0/16")},
		{prefixesOf("10.0.0.0/8"), prefixesOf("192.0.2.0/24"), []netip.Prefix{{}}},
	} {
		if got := within(c.a, c.b); !slices.Equal(got, c.both) {
			t.Errorf("%v and %v: %v, want %v", c.a, c.b, got, c.both)
		}
	}
	if (netip.Prefix{}).Contains(netip.MustParseAddr("10.0.0.1")) {
		t.Error("the prefix that is none holds an address")
	}
}
