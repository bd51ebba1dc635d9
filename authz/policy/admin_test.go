package policy_test

import (
	"context"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/policies"
)

func adminQuestion(role authz.Role, action string) authz.AdminQuestion {
	id := authz.NewOrganizationID(time.Now())
	actor := &authz.Admin{ID: authz.NewAdminID(time.Now()), Role: role}
	if role != authz.RolePlatformAdmin {
		actor.Organization = id
	}
	return authz.AdminQuestion{Actor: actor, Action: action, Organization: map[string]any{"id": id.String()}}
}

func TestDecideAdmin_ShippedPolicyKnowsTheRoles(t *testing.T) {
	snapshot, err := policy.Load(t.Context(), policies.FS)
	if err != nil {
		t.Fatal(err)
	}
	e := policy.NewEngine(snapshot)
	for _, tt := range []struct {
		role   authz.Role
		action string
		allow  bool
	}{
		{authz.RolePlatformAdmin, "callers.create", true},
		{authz.RoleOwner, "keys.create", true},
		{authz.RoleDeveloper, "audit_log.list", false},
		{authz.RoleAuditor, "keys.create", false},
		{authz.RoleAuditor, "audit_log.verify", true},
		{"", "keys.get", false},
	} {
		v, err := e.DecideAdmin(t.Context(), adminQuestion(tt.role, tt.action))
		if err != nil || v.Allow != tt.allow || v.Allow == (len(v.Reasons) > 0) {
			t.Errorf("%s %s: %+v, %v; want allow %t", tt.role, tt.action, v, err, tt.allow)
		}
	}
	foreign := adminQuestion(authz.RoleOwner, "keys.list")
	foreign.Organization = map[string]any{"id": "org_other"}
	if v, err := e.DecideAdmin(t.Context(), foreign); err != nil || v.Allow {
		t.Errorf("another organization's: %+v, %v", v, err)
	}
}

// Nothing but a complete answer whose allow is true allows.
func TestDecideAdmin_OddAnswersNeverAllow(t *testing.T) {
	for name, rule := range map[string]string{
		"undefined":              `decision := {"allow": true, "reasons": []} if input.action == "other"`,
		"not an object":          `decision := true`,
		"allow is a string":      `decision := {"allow": "true", "reasons": []}`,
		"a field more":           `decision := {"allow": true, "reasons": [], "x": 1}`,
		"no reasons":             `decision := {"allow": true}`,
		"allowed, with a reason": `decision := {"allow": true, "reasons": [{"code": "a", "message": "b"}]}`,
		"reason without message": `decision := {"allow": false, "reasons": [{"code": "a"}]}`,
		"a conflict":             "decision := {\"allow\": true, \"reasons\": []} if input.action != \"\"\ndecision := {\"allow\": false, \"reasons\": []}",
		"a builtin's error":      `decision := {"allow": count(split(input.action, ".")[0]) > to_number("x"), "reasons": []}`,
	} {
		t.Run(name, func(t *testing.T) {
			e := policy.NewEngine(loadAdmin(t, rule))
			if v, err := e.DecideAdmin(t.Context(), adminQuestion(authz.RolePlatformAdmin, "keys.create")); err == nil || v.Allow {
				t.Errorf("%+v, %v; want an error", v, err)
			}
		})
	}
}

func TestDecideAdmin_EndlessPolicyEndsInTime(t *testing.T) {
	e := policy.NewEngine(loadAdmin(t, `decision := {"allow": true, "reasons": []} if {
	some a in numbers.range(1, 100000)
	some b in numbers.range(1, 100000)
	a * b == -1
}`))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if v, err := e.DecideAdmin(ctx, adminQuestion(authz.RolePlatformAdmin, "keys.create")); err == nil || v.Allow || ctx.Err() != nil {
		t.Errorf("%+v, %v, %v", v, err, ctx.Err())
	}
}

func TestDecideAdmin_WithoutPolicyNothingIsDecided(t *testing.T) {
	e := policy.NewEngine(nil)
	if v, err := e.DecideAdmin(t.Context(), adminQuestion(authz.RolePlatformAdmin, "keys.get")); err == nil || v.Allow {
		t.Errorf("%+v, %v", v, err)
	}
	if c := e.Catalogue(); len(c.Scopes)+len(c.Plans) != 0 {
		t.Errorf("%+v", c)
	}
}

func TestCatalogue_ListsWhatTheDataSays(t *testing.T) {
	snapshot, err := policy.Load(t.Context(), policies.FS)
	if err != nil {
		t.Fatal(err)
	}
	c := policy.NewEngine(snapshot).Catalogue()
	if len(c.Scopes) != 4 || !c.Has("tickets:write") || c.Has("tickets:delete") || c.Scopes[0].Description == "" {
		t.Errorf("scopes %+v", c.Scopes)
	}
	plan, ok := c.Plan("standard")
	if !ok || plan.Rate != (authz.Rate{Rate: 100, Period: time.Minute, Burst: 100}) || plan.MaxKeys != 1000 || c.Revision == "" {
		t.Errorf("%+v %t %q", plan, ok, c.Revision)
	}
}

func TestCatalogue_WhatHasNoSenseIsRefused(t *testing.T) {
	for name, data := range map[string]string{
		"a scope without a verb": "scopes: {tickets: {description: x}}",
		"scopes as a list":       "scopes: [tickets:read]",
		"a plan without a rate":  "plans: {p: {period_seconds: 60, burst: 1}}",
		"fewer than no keys":     "plans: {p: {rate: 1, period_seconds: 60, burst: 1, max_keys: -1}}",
	} {
		t.Run(name, func(t *testing.T) {
			files := minimal(`decision := {"allow": true, "reasons": []}`)
			files["keystile/catalog/data.yaml"] = &fstest.MapFile{Data: []byte(data)}
			if _, err := policy.Load(t.Context(), files); err == nil || !strings.Contains(err.Error(), "catalog") {
				t.Errorf("loaded, or not told why: %v", err)
			}
		})
	}
}

func minimal(adminRule string) fstest.MapFS {
	return fstest.MapFS{
		"keystile/check/check.rego": {Data: []byte("package keystile.check\n\ndecision := {}\n")},
		"keystile/admin/admin.rego": {Data: []byte("package keystile.admin\n\n" + adminRule + "\n")},
	}
}

func loadAdmin(t *testing.T, rule string) *policy.Snapshot {
	t.Helper()
	s, err := policy.Load(t.Context(), minimal(rule))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
