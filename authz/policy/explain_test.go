package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
)

func explained(t *testing.T, k *authz.Key, c *authz.Check) authz.PolicyExplanation {
	t.Helper()
	e, err := NewEngine(mustLoad(t, shipped())).Explain(t.Context(), k, c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// kinds are the changes of each remedy.
func kinds(e authz.PolicyExplanation) []string {
	var all []string
	for _, r := range e.Remedies {
		var one []string
		for _, c := range r.Changes {
			one = append(one, c.Kind+strings.Repeat(" "+string(c.Scope), min(len(c.Scope), 1)))
		}
		all = append(all, strings.Join(one, ", "))
	}
	return all
}

func TestExplain_TheSmallestChangeAllowsWhatIsDenied(t *testing.T) {
	for name, c := range map[string]struct {
		method, path string
		change       func(*authz.Key, *authz.Check)
		want         []string
	}{
		"allowed":      {"GET", "/api/v1/tickets", nil, nil},
		"a scope":      {"POST", "/api/v1/tickets", func(k *authz.Key, _ *authz.Check) { k.Scopes = []authz.Scope{"tickets:read"} }, []string{"grant_scope tickets:write"}},
		"two scopes":   {"POST", "/api/v1/tickets", func(k *authz.Key, c *authz.Check) { k.Scopes, c.Action = nil, "customers:read" }, []string{"grant_scope customers:read, grant_scope tickets:write", "grant_scope tickets:write, drop_action"}},
		"environment":  {"GET", "/api/v1/tickets", func(_ *authz.Key, c *authz.Check) { c.Caller.Environments = []authz.Environment{authz.EnvironmentTest} }, []string{"use_environment"}},
		"asked":        {"GET", "/api/v1/tickets", func(_ *authz.Key, c *authz.Check) { c.Environment = authz.EnvironmentTest }, []string{"use_environment", "ask_environment"}},
		"organization": {"GET", "/api/v1/tickets", func(_ *authz.Key, c *authz.Check) { c.Resource.Organization = "other" }, []string{"use_own_resource"}},
		"address": {"GET", "/api/v1/tickets", func(k *authz.Key, _ *authz.Check) {
			k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
		}, []string{"call_from_allowed_address"}},
		"two things":    {"POST", "/api/v1/tickets", func(k *authz.Key, c *authz.Check) { k.Scopes, c.Resource.Organization = nil, "other" }, []string{"grant_scope tickets:write, use_own_resource"}},
		"method":        {"PUT", "/api/v1/tickets/42", nil, []string{"use_method", "use_method"}},
		"no such route": {"GET", "/api/v1/nowhere", nil, []string{"add_route"}},
		"ambiguous":     {"GET", "/api/v1/../v1/tickets", nil, []string{"spell_path"}},
	} {
		k, check := exampleKey(), exampleCheck(c.method, c.path)
		if c.change != nil {
			c.change(k, check)
		}
		before := *check
		e := explained(t, k, check)
		if got := kinds(e); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, wanted %q", name, got, c.want)
		}
		if e.Verdict.Allow != (c.want == nil) {
			t.Errorf("%s: allow is %t", name, e.Verdict.Allow)
		}
		if check.Path != before.Path || check.Method != before.Method || check.Action != before.Action {
			t.Errorf("%s: the check was changed", name)
		}
		for _, r := range e.Remedies {
			if r.Tried != (r.Changes[0].Kind != "add_route") {
				t.Errorf("%s: tried is %t", name, r.Tried)
			}
		}
	}
}

func TestExplain_NamesTheRulesByFileLineAndTitle(t *testing.T) {
	k := exampleKey()
	k.Scopes = []authz.Scope{"tickets:read"}
	e := explained(t, k, exampleCheck("POST", "/api/v1/tickets"))
	find := func(title string) (authz.PolicyRule, bool) {
		i := slices.IndexFunc(e.Rules, func(r authz.PolicyRule) bool { return r.Title == title })
		if i < 0 {
			return authz.PolicyRule{}, false
		}
		return e.Rules[i], true
	}
	lacks, ok := find("Insufficient scope")
	if !ok || !lacks.Fired || lacks.File != "keystile/check/scopes.rego" || lacks.Line == 0 || lacks.Name != "data.keystile.check.reason" {
		t.Errorf("the rule that denies: %+v, %t in %v", lacks, ok, e.Rules)
	}
	if wrong, ok := find("Wrong environment"); !ok || wrong.Fired {
		t.Errorf("a rule that does not: %+v, %t", wrong, ok)
	}
	for i := range e.Rules {
		if i > 0 && e.Rules[i-1].File > e.Rules[i].File {
			t.Error("the rules are in no order")
		}
	}
}

func TestExplain_AnswersAsEvaluateDoes(t *testing.T) {
	engine := NewEngine(mustLoad(t, shipped()))
	for _, path := range []string{"/api/v1/tickets", "/api/v1/tickets/1", "/api/v1/nowhere", "/a//b"} {
		k, c := exampleKey(), exampleCheck("GET", path)
		want, err := evaluate(t, engine, k, c)
		if err != nil {
			t.Fatal(err)
		}
		e, err := engine.Explain(t.Context(), k, c)
		if err != nil || e.Verdict.Allow != want.Allow || e.Verdict.Revision != want.Revision || !slices.Equal(e.Verdict.Reasons, want.Reasons) {
			t.Errorf("%s: %+v, %v; evaluated it is %+v", path, e.Verdict, err, want)
		}
	}
}

func TestExplain_WhatCannotBeDecidedIsAnError(t *testing.T) {
	if e, err := NewEngine(nil).Explain(t.Context(), exampleKey(), exampleCheck("GET", "/")); err == nil || e.Verdict.Allow {
		t.Errorf("%+v", e)
	}
	broken := mustLoad(t, minimal("decision := "+allowing("\"yes\"")+"\n"))
	if e, err := NewEngine(broken).Explain(t.Context(), exampleKey(), exampleCheck("GET", "/")); err == nil || e.Verdict.Allow {
		t.Errorf("%+v", e)
	}
}
