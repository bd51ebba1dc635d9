package server

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

func TestDecision_WhatIsKeptIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.keptDecision(w.acme)
	got := w.must(200, w.acme.tokens[authz.RoleAuditor], "GET", "/v1/decisions/"+id, "")
	var found map[string]any
	if err := json.Unmarshal(got.Body.Bytes(), &found); err != nil {
		t.Fatal(err)
	}
	delete(found, "at")
	want := map[string]any{
		"id": id, "allow": false, "code": "insufficient_scope", "status": 403.0, "title": "Insufficient scope", "organization_id": w.acme.id,
		"key_id": w.acme.key, "secret_id": nil, "caller_id": nil, "environment": "live", "method": "POST", "route": "/api/v1/tickets", "action": nil,
		"reasons": []any{"insufficient_scope"}, "required_scopes": []any{"tickets:write"}, "missing_scopes": []any{"tickets:write"},
		"policy_revision": "sha256:x", "network": "203.0.113.0/24", "degraded": []any{"limiter"}, "browser": false,
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
}

// A decision that is not there: why is told as far as the id tells it, and nothing tells a
// foreign one from one that never was.
func TestDecision_WhatIsNotKeptIsToldHonestly(t *testing.T) {
	t.Parallel()
	kept := manage.DecisionsKept{For: 7 * 24 * time.Hour, Sample: 1000}
	w := newWorld(t, func(_ *Options, o *manage.Options) { o.Decisions = kept })
	owner := w.acme.tokens[authz.RoleOwner]
	ask := func(id authz.DecisionID) string {
		t.Helper()
		return w.must(404, owner, "GET", "/v1/decisions/"+id.String(), "").str("detail")
	}
	sampled, other := authz.DecisionID{}, authz.DecisionID{}
	for sampled.IsZero() || other.IsZero() {
		if id := authz.NewDecisionID(time.Now().Add(-time.Hour)); id.OneIn(kept.Sample) {
			sampled = id
		} else {
			other = id
		}
	}
	for name, tt := range map[string]struct {
		id   authz.DecisionID
		says string
	}{
		"older":        {authz.NewDecisionID(time.Now().Add(-kept.For - time.Hour)), "kept for 7 days"},
		"not sampled":  {other, "of allows one in 1000 is kept, and this is none of them"},
		"sampled":      {sampled, "there was none"},
		"just decided": {authz.NewDecisionID(time.Now()), "within two seconds"},
		"to come":      {authz.NewDecisionID(time.Now().Add(time.Hour)), "to come"},
	} {
		if detail := ask(tt.id); !strings.Contains(detail, tt.says) {
			t.Errorf("%s: %q, want one that says %q", name, detail, tt.says)
		}
	}
	foreign := mustID[authz.DecisionID](t, w.keptDecision(w.globex))
	never := foreign
	for never == foreign || never.OneIn(kept.Sample) != foreign.OneIn(kept.Sample) {
		never = authz.NewDecisionID(foreign.Time())
	}
	if a, b := ask(foreign), ask(never); a != b {
		t.Errorf("a foreign one is told from one that never was: %q, %q", a, b)
	}
}
