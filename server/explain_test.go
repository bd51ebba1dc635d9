package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/server/api"
)

// explaining is parts whose policy explains.
type explaining struct{ *parts }

func (e explaining) Explain(context.Context, *authz.Key, *authz.Check) (authz.PolicyExplanation, error) {
	return authz.PolicyExplanation{
		Verdict: authz.Verdict{
			Reasons:  []authz.Reason{{Code: authz.CodeInsufficientScope, Message: "The key lacks tickets:write."}},
			Required: []authz.Scope{"tickets:write"}, Missing: []authz.Scope{"tickets:write"}, Route: "/api/v1/tickets", Limits: e.verdict.Limits,
			Revision: "sha256:abc",
		},
		Rules: []authz.PolicyRule{
			{Name: "data.keystile.check.reason", Title: "Insufficient scope", File: "keystile/check/scopes.rego", Line: 6, Fired: true},
			{Name: "data.keystile.check.reason", File: "keystile/check/fences.rego", Line: 6},
		},
		Remedies: []authz.Remedy{{Tried: true, Changes: []authz.RemedyChange{{Kind: "grant_scope", Message: "Grant tickets:write to the key.", Scope: "tickets:write"}}}},
	}, nil
}

func newExplaining(t *testing.T, p *parts) *Server {
	t.Helper()
	checker, err := authz.NewChecker(authz.CheckerOptions{Keys: p, Policy: explaining{p}, Limiter: p, Clock: p})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Checker: checker, Callers: authz.NewCallers(p, p), Format: testFormat(t), Ready: func() Readiness { return p.ready }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func askExplain(s *Server, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/v1/check/explain", strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+authz.CallerTokens().Generate().Reveal())
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

func TestExplain_ItIsNoDecisionAndFitsTheDocument(t *testing.T) {
	p := newParts()
	p.caller.Permissions = append(p.caller.Permissions, authz.PermissionExplain)
	w := askExplain(newExplaining(t, p), goodBody(t))
	if w.Code != http.StatusOK || w.Header().Get("X-Keystile-Decision") != "error" {
		t.Fatalf("%d %s: %s", w.Code, w.Header().Get("X-Keystile-Decision"), w.Body)
	}
	doc, err := openapi3.NewLoader().LoadFromData(api.Document())
	if err != nil {
		t.Fatal(err)
	}
	var value map[string]any
	decoder := json.NewDecoder(strings.NewReader(w.Body.String()))
	decoder.UseNumber()
	if err := decoder.Decode(&value); err != nil {
		t.Fatal(err)
	}
	for _, issue := range schemaIssues(doc.Components.Schemas["Explanation"].Value, value) {
		t.Errorf("%s %s", issue.pointer, issue.message)
	}
	if _, is := value["allow"]; is || value["would_allow"] != false || value["code"] != "insufficient_scope" || value["route"] != "/api/v1/tickets" {
		t.Errorf("%s", w.Body)
	}
	if text := w.Body.String(); !strings.Contains(text, `"scopes.rego`) && !strings.Contains(text, `keystile/check/scopes.rego","line":6,"fired":true`) {
		t.Errorf("%s", text)
	}
}

func TestExplain_NeedsItsOwnPermission(t *testing.T) {
	if w := askExplain(newExplaining(t, newParts()), goodBody(t)); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "caller_forbidden") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
}

func TestExplain_IsLimited(t *testing.T) {
	p := newParts()
	p.caller.Permissions = []authz.Permission{authz.PermissionExplain}
	s := newExplaining(t, p)
	for range 2 * explainsPerSecond {
		if w := askExplain(s, goodBody(t)); w.Code == http.StatusTooManyRequests && w.Header().Get("Retry-After") == "1" {
			return
		}
	}
	t.Error("it was never refused")
}

func TestExplain_AKeyThatIsDeniedBeforePolicyHasItsOwnRemedy(t *testing.T) {
	p := newParts()
	p.caller.Permissions = []authz.Permission{authz.PermissionExplain}
	p.key.Disabled = true
	w := askExplain(newExplaining(t, p), goodBody(t))
	if !strings.Contains(w.Body.String(), `"code":"key_disabled"`) || !strings.Contains(w.Body.String(), `"kind":"enable_key"`) || strings.Contains(w.Body.String(), "scopes.rego") {
		t.Errorf("%s", w.Body)
	}
}
