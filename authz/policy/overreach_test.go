package policy

import (
	"net/netip"
	"testing"

	"github.com/supportstation/keystile/authz"
)

// lenient is a policy that allows whatever it is asked.
func lenient(t *testing.T, required string) *Engine {
	t.Helper()
	return NewEngine(mustLoad(t, minimal(`decision := {"allow": true, "reasons": [], "required_scopes": [`+required+`], "missing_scopes": [], "route": null,
	"limits": [{"name": "plan", "rate": 10, "period_seconds": 1, "burst": 10, "cost": 1}]}
`)))
}

func TestEvaluate_WhatNoPolicyMayAllowIsNeverAllowed(t *testing.T) {
	e := lenient(t, `"tickets:read"`)
	fence := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	for name, change := range map[string]func(*authz.Key, *authz.Check){
		"a scope that the key lacks":           func(k *authz.Key, _ *authz.Check) { k.Scopes = []authz.Scope{"tickets:write"} },
		"no scope at all":                      func(k *authz.Key, _ *authz.Check) { k.Scopes = nil },
		"a caller of other environments":       func(_ *authz.Key, c *authz.Check) { c.Caller.Environments = []authz.Environment{authz.EnvironmentTest} },
		"a caller of no environment":           func(_ *authz.Key, c *authz.Check) { c.Caller.Environments = nil },
		"no caller":                            func(_ *authz.Key, c *authz.Check) { c.Caller = nil },
		"another environment than asked for":   func(_ *authz.Key, c *authz.Check) { c.Environment = authz.EnvironmentTest },
		"a resource of another organization":   func(_ *authz.Key, c *authz.Check) { c.Resource.Organization = "org_foreign" },
		"an address outside of the fence":      func(k *authz.Key, _ *authz.Check) { k.AllowedCIDRs = fence },
		"a fenced key from an unknown address": func(k *authz.Key, c *authz.Check) { k.AllowedCIDRs, c.ClientIP = fence, netip.Addr{} },
		"a fenced key from an IPv6 address": func(k *authz.Key, c *authz.Check) {
			k.AllowedCIDRs, c.ClientIP = fence, netip.MustParseAddr("2001:db8::1")
		},
		"a path that can be read in two ways":   func(_ *authz.Key, c *authz.Check) { c.SetRequest("GET", "/api/v1/../x") },
		"and so while Postgres does not answer": func(k *authz.Key, c *authz.Check) { k.Scopes, c.Stale = nil, true },
	} {
		k, c := exampleKey(), exampleCheck("GET", "/api/v1/tickets")
		change(k, c)
		for range 3 { // the third time it would be from memory
			if v, err := evaluate(t, e, k, c); v.Allow || err == nil {
				t.Errorf("%s: allowed %t, error %v", name, v.Allow, err)
			}
		}
		if x, err := e.Explain(t.Context(), k, c); x.Verdict.Allow || err == nil {
			t.Errorf("%s: explained as allowed %t, error %v", name, x.Verdict.Allow, err)
		}
	}
	for name, change := range map[string]func(*authz.Key, *authz.Check){
		"an ordinary request":               func(*authz.Key, *authz.Check) {},
		"a resource by its id":              func(k *authz.Key, c *authz.Check) { c.Resource.Organization = k.Organization.ID.String() },
		"a resource by its external id":     func(k *authz.Key, c *authz.Check) { c.Resource.Organization = k.Organization.ExternalID },
		"the environment that is asked for": func(_ *authz.Key, c *authz.Check) { c.Environment = authz.EnvironmentLive },
		"an address inside of the fence": func(k *authz.Key, c *authz.Check) {
			k.AllowedCIDRs, c.ClientIP = fence, netip.MustParseAddr("198.51.100.7")
		},
		"the same, written as IPv6": func(k *authz.Key, c *authz.Check) {
			k.AllowedCIDRs, c.ClientIP = fence, netip.MustParseAddr("::ffff:198.51.100.7")
		},
	} {
		k, c := exampleKey(), exampleCheck("GET", "/api/v1/tickets")
		change(k, c)
		if v, err := evaluate(t, e, k, c); !v.Allow || err != nil {
			t.Errorf("%s: allowed %t, error %v", name, v.Allow, err)
		}
	}
	if v, err := evaluate(t, lenient(t, ""), exampleKey(), exampleCheck("GET", "/api/v1/tickets")); v.Allow || err == nil {
		t.Errorf("what requires no scope: allowed %t, error %v", v.Allow, err)
	}
}
