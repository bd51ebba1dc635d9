package policy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/supportstation/keystile/authz"
)

func TestEvaluate_ShippedPolicyDecides(t *testing.T) {
	standard := []authz.Limit{{Name: "key", Rate: authz.Rate{Rate: 100, Period: time.Minute, Burst: 100}, Cost: 1}}
	e := NewEngine(mustLoad(t, shipped()))
	for name, c := range map[string]struct {
		key   func(*authz.Key)
		check func(*authz.Check)
		want  authz.Verdict
	}{
		"allowed": {want: authz.Verdict{
			Allow: true, Required: []authz.Scope{"tickets:read"}, Route: "/api/v1/tickets/{id}", Limits: standard,
		}},
		"a scope is missing": {
			key: func(k *authz.Key) { k.Scopes = []authz.Scope{"tickets:write"} },
			want: authz.Verdict{
				Required: []authz.Scope{"tickets:read"}, Missing: []authz.Scope{"tickets:read"}, Route: "/api/v1/tickets/{id}",
				Limits: standard, Reasons: []authz.Reason{{Code: "insufficient_scope", Message: "The key lacks tickets:read."}},
			},
		},
		"unknown route": {
			check: func(c *authz.Check) { c.SetRequest("DELETE", "/api/v1/tickets/42") },
			want: authz.Verdict{Limits: standard, Reasons: []authz.Reason{
				{Code: "unknown_route", Message: "No route of the catalogue has this method and path.", Status: 403},
			}},
		},
		"ambiguous path": {
			check: func(c *authz.Check) { c.SetRequest("GET", "/api/v1//tickets") },
			want: authz.Verdict{Limits: standard, Reasons: []authz.Reason{
				{Code: "ambiguous_path", Message: "The path can be read in more than one way; send it without encoded or empty segments."},
			}},
		},
		"own limit, fences passed, resource named": {
			key: func(k *authz.Key) {
				k.RateLimit = &authz.Rate{Rate: 5, Period: time.Second, Burst: 7}
				k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
			},
			check: func(c *authz.Check) {
				c.Resource, c.Environment, c.Action = authz.Resource{Organization: "acme-1"}, authz.EnvironmentLive, "customers:read"
			},
			want: authz.Verdict{
				Allow: true, Required: []authz.Scope{"customers:read", "tickets:read"}, Route: "/api/v1/tickets/{id}",
				Limits: []authz.Limit{{Name: "key", Rate: authz.Rate{Rate: 5, Period: time.Second, Burst: 7}, Cost: 1}},
			},
		},
		"outside of all fences": {
			key: func(k *authz.Key) { k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")} },
			check: func(c *authz.Check) {
				c.ClientIP, c.Environment, c.Resource = netip.Addr{}, authz.EnvironmentTest, authz.Resource{Organization: "other"}
			},
			want: authz.Verdict{
				Required: []authz.Scope{"tickets:read"}, Route: "/api/v1/tickets/{id}", Limits: standard,
				Reasons: []authz.Reason{
					{Code: "environment_mismatch", Message: "The key's environment is not accepted here."},
					{Code: "organization_mismatch", Message: "The resource does not belong to the key's organization."},
					{Code: "ip_not_allowed", Message: "The key may not be used from this address."},
				},
			},
		},
		"unknown plan": {
			key:  func(k *authz.Key) { k.Organization.Plan = "" },
			want: authz.Verdict{Allow: true, Required: []authz.Scope{"tickets:read"}, Route: "/api/v1/tickets/{id}"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			k, check := exampleKey(), exampleCheck("GET", "/api/v1/tickets/42")
			if c.key != nil {
				c.key(k)
			}
			if c.check != nil {
				c.check(check)
			}
			c.want.Revision, c.want.Cataloged = e.Revision(), c.want.Route != ""
			for range 2 { // the second time the key's memo is there
				got, err := evaluate(t, e, k, check)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// Whatever is not a decision is an error, and an error never allows.
func TestEvaluate_OnlyACompleteDecisionCanAllow(t *testing.T) {
	changed := func(field, value string) string {
		return "decision := object.union(" + allowing("true") + `, {"` + field + `": ` + value + "})"
	}
	for name, check := range map[string]string{
		"undefined":                 "decision := " + allowing("true") + " if input.none",
		"a boolean":                 "decision := true",
		"null":                      "decision := null",
		"a set":                     "decision := {" + allowing("true") + "}",
		"undefined allow":           "decision := object.remove(" + allowing("true") + `, ["allow"])`,
		"allow is text":             "decision := " + allowing(`"true"`),
		"allow is a number":         "decision := " + allowing("1"),
		"allow is null":             "decision := " + allowing("null"),
		"allow is a set":            "decision := " + allowing("{true}"),
		"field missing":             "decision := object.remove(" + allowing("true") + `, ["limits"])`,
		"field unknown":             changed("alow", "true"),
		"field not text":            "decision := object.union(" + allowing("true") + ", {1: 2})",
		"conflict":                  "decision := " + allowing("true") + "\n\ndecision := " + allowing("false"),
		"builtin error":             "decision := " + allowing("true") + ` if net.cidr_contains("10.0.0.0/8", "")`,
		"builtin error under not":   "decision := " + allowing("true") + ` if not net.cidr_contains("10.0.0.0/8", "")`,
		"allow with reasons":        changed("reasons", `[{"code": "x", "message": "x"}]`),
		"allow with missing scopes": "decision := object.union(" + allowing("true") + `, {"required_scopes": ["a:b"], "missing_scopes": ["a:b"]})`,
		"missing, not required":     "decision := object.union(" + allowing("false") + `, {"missing_scopes": ["a:b"]})`,
		"reasons are text":          changed("reasons", `"x"`),
		"reasons are an object":     changed("reasons", "{}"),
		"reason is text":            changed("reasons", `["x"]`),
		"reason without message":    changed("reasons", `[{"code": "x"}]`),
		"reason with empty message": changed("reasons", `[{"code": "x", "message": ""}]`),
		"reason with odd code":      changed("reasons", `[{"code": "X y", "message": "x"}]`),
		"reason with more fields":   changed("reasons", `[{"code": "x", "message": "x", "more": 1}]`),
		"reason with own status":    changed("reasons", `[{"code": "x", "message": "x", "status": 404}]`),
		"reason with status 200":    changed("reasons", `[{"code": "unknown_route", "message": "x", "status": 200}]`),
		"too many reasons":          changed("reasons", `[{"code": "x", "message": "x"} | some _ in numbers.range(0, 64)]`),
		"scopes are null":           changed("required_scopes", "null"),
		"scope is no scope":         changed("required_scopes", `["tickets"]`),
		"scope is a number":         changed("required_scopes", "[1]"),
		"route is a number":         changed("route", "1"),
		"route is empty":            changed("route", `""`),
		"limits are an object":      changed("limits", "{}"),
		"limit of rate 0":           changed("limits", `[{"name": "key", "rate": 0, "period_seconds": 60, "burst": 1, "cost": 1}]`),
		"limit of half a unit":      changed("limits", `[{"name": "key", "rate": 0.5, "period_seconds": 60, "burst": 1, "cost": 1}]`),
		"limit of text":             changed("limits", `[{"name": "key", "rate": "1", "period_seconds": 60, "burst": 1, "cost": 1}]`),
		"limit of huge numbers":     changed("limits", `[{"name": "key", "rate": 1, "period_seconds": 99999999999999999999, "burst": 1, "cost": 1}]`),
		"limit beyond its burst":    changed("limits", `[{"name": "key", "rate": 1, "period_seconds": 60, "burst": 1, "cost": 2}]`),
		"limit without cost":        changed("limits", `[{"name": "key", "rate": 1, "period_seconds": 60, "burst": 1}]`),
		"limit with more fields":    changed("limits", `[{"name": "key", "rate": 1, "period_seconds": 60, "burst": 1, "cost": 1, "x": 1}]`),
		"no limit beside a limit":   changed("limits", `[{"name": "none"}, {"name": "key", "rate": 1, "period_seconds": 60, "burst": 1, "cost": 1}]`),
		"no limit with a rate":      changed("limits", `[{"name": "none", "rate": 1}]`),
		"limits without order": changed("limits", `{
			{"name": "a", "rate": 1, "period_seconds": 60, "burst": 1, "cost": 1}, {"name": "b", "rate": 1, "period_seconds": 60, "burst": 1, "cost": 1}}`),
	} {
		e := NewEngine(mustLoad(t, minimal(check+"\n")))
		got, err := evaluate(t, e, exampleKey(), exampleCheck("GET", "/"))
		if err == nil {
			t.Errorf("%s: %+v", name, got)
		}
		if diff := cmp.Diff(authz.Verdict{Revision: e.Revision()}, got); diff != "" {
			t.Errorf("%s: beside the error there is a verdict: %s", name, diff)
		}
	}
	// That the cases fail for what they name: the one that they were made of allows.
	e := NewEngine(mustLoad(t, minimal("decision := "+allowing("true")+"\n")))
	if got, err := evaluate(t, e, exampleKey(), exampleCheck("GET", "/")); err != nil || !got.Allow {
		t.Error(got, err)
	}
}

func TestEvaluate_UnlimitedIsSaidExplicitly(t *testing.T) {
	e := NewEngine(mustLoad(t, minimal("decision := object.union("+allowing("true")+`, {"limits": [{"name": "none"}]})`+"\n")))
	got, err := evaluate(t, e, exampleKey(), exampleCheck("GET", "/"))
	if err != nil || len(got.Limits) != 1 || got.Limits[0].Name != authz.Unlimited {
		t.Error(got, err)
	}
}

func TestEvaluate_WithoutAPolicyNothingIsDecided(t *testing.T) {
	e := NewEngine(nil)
	if got, err := evaluate(t, e, exampleKey(), exampleCheck("GET", "/")); !errors.Is(err, ErrNoPolicy) || got.Allow || e.Revision() != "" {
		t.Error(got, err)
	}
}

func TestEvaluate_BrokenRecordsAreErrors(t *testing.T) {
	e := NewEngine(mustLoad(t, shipped()))
	for name, change := range map[string]func(*authz.Key){
		"no organization":     func(k *authz.Key) { k.Organization = nil },
		"broken metadata":     func(k *authz.Key) { k.Metadata = "{" },
		"metadata is a list":  func(k *authz.Key) { k.Metadata = "[1]" },
		"metadata overflows":  func(k *authz.Key) { k.Metadata = `{"a":[{"n":1e999999999}]}` },
		"organization's, too": func(k *authz.Key) { k.Organization.Metadata = "x" },
		"zero prefix":         func(k *authz.Key) { k.AllowedCIDRs = []netip.Prefix{{}} },
	} {
		k := exampleKey()
		change(k)
		if got, err := evaluate(t, e, k, exampleCheck("GET", "/api/v1/tickets")); err == nil || got.Allow {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestEvaluate_MissingCallerIsDenied(t *testing.T) {
	e := NewEngine(mustLoad(t, shipped()))
	c := exampleCheck("GET", "/api/v1/tickets")
	c.Caller = nil
	if got, err := evaluate(t, e, exampleKey(), c); err != nil || got.Allow || got.Reasons[0].Code != authz.CodeEnvironmentMismatch {
		t.Error(got, err)
	}
}

// The document of the contract, with every field of it.
func TestEvaluate_InputIsTheContracts(t *testing.T) {
	k, c := exampleKey(), exampleCheck("POST", "/api/v1/tickets/4%202/messages")
	k.RateLimit = &authz.Rate{Rate: 5, Period: time.Minute, Burst: 7}
	k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	k.Restricted, c.Browser, c.Stale = true, true, true
	c.Action, c.Environment, c.Resource = "tickets:write", "live", authz.Resource{Type: "ticket", ID: "42", Organization: "acme-1"}
	term, err := newNames().input(k, c)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"caller": {"environments": ["live", "test"], "id": "` + c.Caller.ID.String() + `", "name": "tickets"}, ` +
		`"key": {"allowed_cidrs": ["203.0.113.0/24"], "environment": "live", "id": "` + k.ID.String() + `", ` +
		`"metadata": {"team": "billing"}, "rate_limit": {"burst": 7, "period_seconds": 60, "rate": 5}, "restricted": true, ` +
		`"scopes": ["customers:read", "customers:write", "tickets:read", "tickets:write"]}, ` +
		`"organization": {"external_id": "acme-1", "id": "` + k.Organization.ID.String() + `", "metadata": {"tier": "gold"}, "plan": "standard"}, ` +
		`"request": {"action": "tickets:write", "ambiguous": false, "browser": true, "client_ip": "203.0.113.7", "environment": "live", ` +
		`"method": "POST", "path": "/api/v1/tickets/4%202/messages", "resource": {"id": "42", "organization": "acme-1", "type": "ticket"}, ` +
		`"segments": ["api", "v1", "tickets", "4 2", "messages"]}, "stale": true}`
	if diff := cmp.Diff(want, term.String()); diff != "" {
		t.Error(diff)
	}
	unknown, err := newNames().input(&authz.Key{Organization: &authz.Organization{}}, &authz.Check{Ambiguous: true, Segments: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"allowed_cidrs": []`, `"rate_limit": null`, `"metadata": {}`, `"segments": []`, `"client_ip": ""`, `"environments": []`,
		`"resource": {"id": "", "organization": "", "type": ""}`, `"stale": false`, `"ambiguous": true`,
	} {
		if !strings.Contains(unknown.String(), want) {
			t.Errorf("the unknown question lacks %s: %s", want, unknown)
		}
	}
}

func TestEvaluate_TestsAreNoPartOfWhatIsEvaluated(t *testing.T) {
	files := with(t, map[string]string{
		"keystile/rules/x/x_test.rego": "package keystile.rules.x_test\n\ndeny contains {\"code\": \"x\", \"message\": \"x\"}\n",
	})
	if got, err := evaluate(t, NewEngine(mustLoad(t, files)), exampleKey(), exampleCheck("GET", "/api/v1/tickets")); err != nil || !got.Allow {
		t.Error(got, err)
	}
}

func TestEvaluate_NewRuleIsANewFolder(t *testing.T) {
	files := with(t, map[string]string{
		"keystile/rules/gold/gold.rego": `package keystile.rules.gold

deny contains {"code": "gold_only", "message": "Only for gold."} if input.organization.metadata.tier != "silver"
`,
	})
	e := NewEngine(mustLoad(t, files))
	got, err := evaluate(t, e, exampleKey(), exampleCheck("GET", "/api/v1/tickets"))
	if err != nil || got.Allow || len(got.Reasons) != 1 || got.Reasons[0].Code != "gold_only" {
		t.Error(got, err)
	}
}

func TestEvaluate_SwapIsSafeWhileOthersEvaluate(t *testing.T) {
	allow, deny := mustLoad(t, shipped()), mustLoad(t, minimal("decision := "+allowing("false")+"\n"))
	e := NewEngine(allow)
	k := exampleKey()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				got, err := e.Evaluate(context.Background(), k, exampleCheck("GET", "/api/v1/tickets"))
				if err != nil || got.Allow != (got.Revision == allow.Revision()) {
					t.Error("a verdict of one revision under another's name", got, err)
				}
			}
		})
	}
	for range 100 {
		e.Swap(deny)
		e.Swap(allow)
	}
	wg.Wait()
}
