package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/plugins/logs"

	"github.com/supportstation/keystile/authz"
)

// presented is what the client of an example sent.
var presented = authz.NewSecret("sk_live_" + strings.Repeat("0aZ", 12))

// decided is an example of a denial, as it is recorded.
func decided(t testing.TB, change ...func(*authz.Check, *authz.Decision)) *authz.DecisionRecord {
	t.Helper()
	q := exampleCheck("POST", "/api/v1/tickets/42")
	q.Presented = authz.PresentHash(presented.Hash())
	q.Resource = authz.Resource{Type: "ticket", ID: "42"}
	d := &authz.Decision{
		Code: authz.CodeInsufficientScope, Status: 403, Key: exampleKey(), Secret: &authz.KeySecret{ID: authz.NewSecretID(time.Now()), Hint: "sk_live_0123…2345"},
		Required: []authz.Scope{"tickets:write"}, Missing: []authz.Scope{"tickets:write"}, Route: "/api/v1/tickets/{id}",
		Reasons: []authz.Reason{{Code: authz.CodeInsufficientScope, Message: "The key lacks tickets:write."}},
		RateLimit: &authz.RateLimit{
			Limit: authz.Limit{Name: "key", Rate: authz.Rate{Rate: 100, Period: time.Minute, Burst: 100}, Cost: 1}, Remaining: 99, Mode: authz.LimiterExact,
		},
		ID: authz.NewDecisionID(time.Unix(1_795_000_000, 0)), PolicyRevision: "sha256:x", Degraded: authz.Degraded{Store: true},
	}
	for _, f := range change {
		f(q, d)
	}
	return authz.RecordDecision(q, d)
}

// masking is the shipped policy with another mask, "" for none.
func masking(t testing.TB, mask string) *Engine {
	t.Helper()
	files := minimal("default decision := " + allowing("false"))
	if mask != "" {
		files["system/log/mask.rego"] = &fstest.MapFile{Data: []byte("package system.log\n\n" + mask)}
	}
	return NewEngine(mustLoad(t, files))
}

// What the policy does not want logged has no line; nothing but true says so.
func TestEncode_WhatIsDroppedHasNoLineAndInDoubtThereIsOne(t *testing.T) {
	for drop, tt := range map[string]struct {
		dropped bool
		doubt   string
	}{
		`drop if input.result.code == "insufficient_scope"`:         {true, ""},
		`drop := input.input.request.method == "POST"`:              {true, ""},
		`drop if input.result.allow`:                                {false, ""},
		`default drop := false`:                                     {false, ""},
		`drop := "true"`:                                            {false, ""},
		"drop := true if input.decision_id\ndrop := false if input": {false, dropError + " at system/log/mask.rego:6"},
		`drop if to_number(input.input.request.path) > 0`:           {false, dropError + " at system/log/mask.rego:5"},
	} {
		line, hidden := patient(masking(t, "mask := set()\n\n"+drop), nil).Encode(t.Context(), decided(t))
		if (line == nil) != tt.dropped || hidden != "" {
			t.Errorf("%s: %q, %s", drop, hidden, line)
			continue
		}
		if line == nil {
			continue
		}
		if told, _ := opaEvent(t, line).Custom["drop"].(string); told != tt.doubt {
			t.Errorf("%s: doubt is told as %q, not %q", drop, told, tt.doubt)
		}
	}
}

// patient is an encoder that no busy machine hurries.
func patient(e *Engine, labels map[string]string) *EventEncoder {
	encoder := NewEventEncoder(e, labels)
	encoder.budget = 30 * time.Second
	return encoder
}

// opaEvent reads a line as OPA does, and wants nothing in it that OPA does not know.
func opaEvent(t testing.TB, line []byte) logs.EventV1 {
	t.Helper()
	var e logs.EventV1
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil || bytes.ContainsRune(line, '\n') {
		t.Fatalf("not one of OPA's events: %v: %s", err, line)
	}
	return e
}

func encoded(t testing.TB, e *Engine, r *authz.DecisionRecord) (logs.EventV1, string) {
	t.Helper()
	line, hidden := patient(e, map[string]string{"id": "replica"}).Encode(t.Context(), r)
	return opaEvent(t, line), hidden
}

func TestEvent_IsOPAsAndHasWhatThePolicySaw(t *testing.T) {
	engine, r := masking(t, "mask := set()"), decided(t)
	event, hidden := encoded(t, engine, r)
	saw, err := engine.names.input(r.Decision.Key, &r.Check)
	if err != nil {
		t.Fatal(err)
	}
	want, err := ast.JSON(saw.Value)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rejsoned(t, want), *event.Input); diff != "" || hidden != "" {
		t.Errorf("hidden %q; input:\n%s", hidden, diff)
	}
	result := rejsoned(t, map[string]any{
		"allow": false, "code": "insufficient_scope", "status": 403, "reasons": []any{map[string]any{"code": "insufficient_scope", "message": "The key lacks tickets:write."}},
		"required_scopes": []any{"tickets:write"}, "missing_scopes": []any{"tickets:write"}, "route": "/api/v1/tickets/{id}", "degraded": []any{"store"},
		"rate_limit": map[string]any{"name": "key", "limit": 100, "remaining": 99, "period_seconds": 60, "reset_seconds": 0, "retry_after_seconds": 0, "mode": "exact"},
	})
	if diff := cmp.Diff(result, *event.Result); diff != "" {
		t.Errorf("result:\n%s", diff)
	}
	if event.DecisionID != r.Decision.ID.String() || event.Path != "keystile/check/decision" || event.Labels["id"] != "replica" ||
		event.RequestedBy != r.Check.Caller.ID.String() || event.Bundles["keystile"].Revision != "sha256:x" ||
		event.Custom["mask_revision"] != engine.Revision() || len(event.Erased)+len(event.Masked) > 0 {
		t.Errorf("%+v", event)
	}
}

func rejsoned(t testing.TB, v any) (out any) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What is decided before policy is asked has no path, and an input of the same form.
func TestEvent_WithoutThePolicyTellsWhatWasKnown(t *testing.T) {
	engine := masking(t, "mask := set()")
	event, hidden := encoded(t, engine, decided(t, func(_ *authz.Check, d *authz.Decision) {
		d.Code, d.Key, d.Secret, d.RateLimit, d.Route = authz.CodeKeyUnknown, nil, nil, nil, ""
	}))
	input := (*event.Input).(map[string]any)
	key := input["key"].(map[string]any)
	if hidden != "" || event.Path != "" || key["id"] != "" || len(key) != 7 || input["caller"].(map[string]any)["name"] != "tickets" ||
		input["request"].(map[string]any)["path"] != "/api/v1/tickets/42" {
		t.Errorf("hidden %q: %+v: %v", hidden, event, input)
	}
	event, _ = encoded(t, engine, decided(t, func(_ *authz.Check, d *authz.Decision) { d.Code = authz.CodeKeyRevoked }))
	if key := (*event.Input).(map[string]any)["key"].(map[string]any); event.Path != "" || key["id"] == "" {
		t.Errorf("%+v: %v", event, key)
	}
}

// The shipped mask: neither persons nor secrets, nor digests of them, in whatever a client put
// where.
func TestEvent_ShippedMaskHidesPersonsAndSecrets(t *testing.T) {
	engine := NewEngine(mustLoad(t, shipped()))
	encoder := patient(engine, nil)
	hash := fmt.Sprintf("%x", presented.Hash())
	for name, r := range map[string]*authz.DecisionRecord{
		"ordinary": decided(t),
		"in the path": decided(t, func(q *authz.Check, d *authz.Decision) {
			q.SetRequest("GET", "/api/v1/tickets/"+presented.Reveal())
			d.Route = q.Path // a policy that calls the raw path a route
		}),
		"in the resource": decided(t, func(q *authz.Check, _ *authz.Decision) {
			q.Resource = authz.Resource{Type: presented.Reveal(), ID: "42", Organization: presented.Reveal()}
		}),
		"in action and reason": decided(t, func(q *authz.Check, d *authz.Decision) {
			q.Action, d.Reasons[0].Message = presented.Reveal(), "No "+presented.Reveal()
		}),
		"unknown key": decided(t, func(_ *authz.Check, d *authz.Decision) { d.Code, d.Key, d.Route = authz.CodeKeyUnknown, nil, "" }),
	} {
		line, hidden := encoder.Encode(t.Context(), r)
		event := opaEvent(t, line)
		for what, secret := range map[string]string{
			"secret": presented.Reveal(), "hash": hash, "tail": presented.Reveal()[8:], "address": "203.0.113.7", "metadata": "billing", "path": "tickets/42",
		} {
			if strings.Contains(string(line), secret) {
				t.Errorf("%s: the %s is in %s", name, what, line)
			}
		}
		if hidden != "" || event.Input == nil || !strings.Contains(string(line), "203.0.113.0/24") {
			t.Errorf("%s: hidden %q: %s", name, hidden, line)
		}
	}
	long := decided(t, func(q *authz.Check, _ *authz.Decision) { q.ClientIP = netip.MustParseAddr("2001:db8:1:2::7") })
	if line, _ := encoder.Encode(t.Context(), long); !strings.Contains(string(line), `"2001:db8:1::/48"`) {
		t.Errorf("%s", line)
	}
}

// Doubt hides: a mask that gives no answer to rely on leaves nothing of question and answer.
func TestMask_ThatFailsHidesEverything(t *testing.T) {
	for name, tt := range map[string]struct{ mask, why string }{
		"none":             {"", hiddenNoMask},
		"undefined":        {`mask := set() if input.decision_id == "x"`, hiddenUndefined},
		"a conflict":       {"mask := {1} if input.path\nmask := {2} if input.decision_id", hiddenError + " at system/log/mask.rego:4"},
		"a builtin fails":  {`mask contains "/input/key" if to_number(input.input.request.path) > 0`, hiddenError + " at system/log/mask.rego:3"},
		"not a set":        {`mask := "/input"`, hiddenNotMask},
		"a number":         {`mask := {"/input/key", 1}`, hiddenNotMask},
		"elsewhere":        {`mask := {"/labels/id"}`, hiddenNotMask},
		"no slash":         {`mask := {"input"}`, hiddenNotMask},
		"unknown op":       {`mask := {{"op": "replace", "path": "/input/key", "value": 1}}`, hiddenNotMask},
		"no op":            {`mask := {{"path": "/input/key"}}`, hiddenNotMask},
		"endless":          {"mask := {\"/input\"} if {\n\tsome a in numbers.range(1, 100000)\n\tsome b in numbers.range(1, 100000)\n\ta * b == -1\n}", hiddenTimeout},
		"a large one ends": {`mask := {x | some n in numbers.range(1, 10001); x := sprintf("/input/%d", [n])}`, hiddenNotMask},
	} {
		t.Run(name, func(t *testing.T) {
			encoder := patient(masking(t, tt.mask), nil)
			if tt.why == hiddenTimeout {
				encoder.budget = maskBudget
			}
			line, hidden := encoder.Encode(t.Context(), decided(t))
			event := opaEvent(t, line)
			if hidden != tt.why || event.Input != nil || event.Result != nil || event.Custom["hidden"] != hidden ||
				!slices.Equal(event.Erased, []string{"/input", "/result"}) || event.DecisionID == "" {
				t.Errorf("hidden %q, want %q: %s", hidden, tt.why, line)
			}
		})
	}
	if _, hidden := NewEventEncoder(NewEngine(nil), nil).Encode(t.Context(), decided(t)); hidden != hiddenNoPolicy {
		t.Errorf("without a policy: %q", hidden)
	}
}

// What a mask says is of the policy in force when the event is written.
func TestMask_FollowsThePolicyInForce(t *testing.T) {
	engine := masking(t, "mask := set()")
	encoder := patient(engine, nil)
	if line, _ := encoder.Encode(t.Context(), decided(t)); !strings.Contains(string(line), "billing") {
		t.Errorf("%s", line)
	}
	engine.Swap(mustLoad(t, shipped()))
	if line, hidden := encoder.Encode(t.Context(), decided(t)); strings.Contains(string(line), "billing") || hidden != "" {
		t.Errorf("hidden %q: %s", hidden, line)
	}
}

// OPA's meaning of a mask, but that erasing one element of a list moves no other.
func TestMask_ErasesAndReplacesWhatItNames(t *testing.T) {
	document := `{"a":{"b":1,"c/d":2,"e~f":3,"g h":4},"list":[{"x":1},{"x":2},3,[4,5]],"t":"text"}`
	for name, tt := range map[string]struct{ mask, want string }{
		"a field":            {`{"/input/a/b"}`, `{"a":{"c/d":2,"e~f":3,"g h":4},"list":[{"x":1},{"x":2},3,[4,5]],"t":"text"}`},
		"JSON pointers":      {`{"/input/a/c~1d", "/input/a/e~0f"}`, `{"a":{"b":1,"g h":4},"list":[{"x":1},{"x":2},3,[4,5]],"t":"text"}`},
		"percent-encoded":    {`{"/input/a/g%20h", "/input/a/c%2Fd"}`, `{"a":{"b":1,"e~f":3},"list":[{"x":1},{"x":2},3,[4,5]],"t":"text"}`},
		"two of a list":      {`{"/input/list/0", "/input/list/1"}`, `{"a":{"b":1,"c/d":2,"e~f":3,"g h":4},"list":[3,[4,5]],"t":"text"}`},
		"lists in lists":     {`{"/input/list/3/0", "/input/list/2"}`, `{"a":{"b":1,"c/d":2,"e~f":3,"g h":4},"list":[{"x":1},{"x":2},[5]],"t":"text"}`},
		"what is not there":  {`{"/input/no", "/input/t/x", "/input/list/9", "/input/list/-1", "/nd_builtin_cache/x"}`, document},
		"the whole":          {`{"/input"}`, `null`},
		"another value":      {`{{"op": "upsert", "path": "/input/a", "value": {"n": 1}}, {"op": "remove", "path": "/input/list"}}`, `{"a":{"n":1},"t":"text"}`},
		"a new one":          {`{{"op": "upsert", "path": "/input/new/x", "value": "y"}, "/input/a", "/input/list"}`, `{"new":{"x":"y"},"t":"text"}`},
		"another whole":      {`{{"op": "upsert", "path": "/input", "value": "gone"}}`, `"gone"`},
		"in a list":          {`{{"op": "upsert", "path": "/input/list/1", "value": 0}, "/input/list/0", "/input/a"}`, `{"list":[0,3,[4,5]],"t":"text"}`},
		"erased, then known": {`{"/input/t", {"op": "upsert", "path": "/input/t", "value": "x"}, "/input/a", "/input/list"}`, `{"t":"x"}`},
	} {
		t.Run(name, func(t *testing.T) {
			term, err := ast.ParseTerm(tt.mask)
			if err != nil {
				t.Fatal(err)
			}
			ops, err := maskOps(term.Value)
			if err != nil {
				t.Fatal(err)
			}
			var input any
			if err := json.Unmarshal([]byte(document), &input); err != nil {
				t.Fatal(err)
			}
			parts := maskable{partInput: input}
			erased, masked := parts.apply(ops)
			var want any
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, rejsoned(t, parts[partInput])); diff != "" || name == "what is not there" && len(erased)+len(masked) > 0 {
				t.Errorf("erased %v, masked %v:\n%s", erased, masked, diff)
			}
		})
	}
}

func BenchmarkEncodeEvent(b *testing.B) {
	encoder, r := NewEventEncoder(NewEngine(mustLoad(b, shipped())), nil), decided(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, hidden := encoder.Encode(b.Context(), r); hidden != "" {
			b.Fatal(hidden)
		}
	}
}
