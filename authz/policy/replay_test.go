package policy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/supportstation/keystile/authz"
)

// withoutDoubts leaves out of a generated policy the rules that look at what is not recorded.
func withoutDoubts(files fstest.MapFS) {
	const name = "keystile/rules/generated/generated.rego"
	rules := strings.Split(string(files[name].Data), "\ndeny ")
	kept := rules[:1]
	for _, rule := range rules[1:] {
		blurredOnes := []string{"request.path", "request.segments", "client_ip", "resource.id", "resource.type"}
		if !containsAny(rule, blurredOnes) {
			kept = append(kept, rule)
		}
	}
	files[name] = &fstest.MapFile{Data: []byte(strings.Join(kept, "\ndeny "))}
}

func containsAny(text string, parts []string) bool {
	for _, part := range parts {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

// What a replay tells of a shape is what happens to each request of it, unless it says that
// this may not be so; and what it asks once it would have been told each time.
func TestReplay_WhatIsNotApproximateIsWhatHappens(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 7))
	pairs, checks := 60, 60
	if raceEnabled {
		pairs /= 10
	}
	kinds := map[authz.PolicyDifferenceKind]int{}
	exact, approximate := 0, 0
	for n := range pairs {
		before, after := generated(t, random), generated(t, random)
		if n%4 > 0 {
			withoutDoubts(before)
			withoutDoubts(after)
		}
		active, candidate := mustRead(t, before), mustRead(t, after)
		r, err := loadedReplay(t, active, candidate)
		if err != nil {
			t.Fatal(err)
		}
		engine := NewEngine(r.active.snapshot)
		want := map[authz.PolicyDifferenceKind]int64{}
		organization := authz.NewOrganizationID(time.Now())
		for range checks {
			k, c := generatedKey(random), generatedCheck(random)
			k.ID, k.Organization.ID = authz.NewKeyID(time.Now()), organization
			verdict, err := engine.Evaluate(t.Context(), k, c)
			verdict.Revision = active.revision
			shape := authz.ShapeOf(k, c, &verdict)
			was := authz.AnswerOf(verdict, err)
			is, _ := r.candidate.ask(t.Context(), k, c)
			question, faithful := shape.Check(k, c.Caller)
			told := r.ask(t.Context(), k, question, shape, faithful)
			want[told.kind]++
			r.add(t.Context(), authz.Recorded{Key: k, Caller: c.Caller, Shape: shape, Requests: 1})
			if told.approximate {
				approximate++
				continue
			}
			exact++
			if happens := was.Difference(is); happens != told.kind {
				t.Fatalf("pair %d: told %q, happens %q\n%s %s %+v\nshape %+v\n%+v → %+v\n%s", n, told.kind, happens, c.Method, c.Path, k, shape, was, is,
					after["keystile/catalog/data.yaml"].Data)
			}
			kinds[told.kind]++
		}
		delete(want, "")
		got := r.end().Totals
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("pair %d: asked once for all that look alike: %v, each by itself: %v", n, got, want)
		}
	}
	t.Logf("%d exact, %d approximate, %v", exact, approximate, kinds)
	for _, kind := range []authz.PolicyDifferenceKind{"", authz.DenyToAllow, authz.AllowToDeny, authz.OtherReasons, authz.OtherLimits} {
		if kinds[kind] == 0 && !raceEnabled {
			t.Errorf("no difference of kind %q was exact", kind)
		}
	}
	if approximate == 0 {
		t.Error("nothing was approximate")
	}
}

// loadedReplay loads two policies for a replay.
func loadedReplay(t *testing.T, active, candidate *Source) (*replay, error) {
	t.Helper()
	before, err := active.Load(t.Context())
	if err != nil {
		return nil, err
	}
	after, err := candidate.Load(t.Context())
	if err != nil {
		return nil, err
	}
	return newReplay(active, candidate, mustRead(t, shipped()), before, after)
}

// replayOf asks the shipped policy and a changed one about requests.
func replayOf(t *testing.T, changes map[string]string, traffic ...authz.Recorded) *authz.PolicyDiff {
	t.Helper()
	shippedOne := mustRead(t, shipped())
	r, err := loadedReplay(t, shippedOne, mustRead(t, with(t, changes)))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range traffic {
		r.add(t.Context(), row)
	}
	return r.end()
}

func builtInRevision(t *testing.T) string {
	t.Helper()
	return mustRead(t, shipped()).revision
}

func recordedGet(t *testing.T, route string, requests int64) authz.Recorded {
	t.Helper()
	k, c := exampleKey(), exampleCheck("GET", "/")
	return authz.Recorded{Key: k, Caller: c.Caller, Shape: authz.Shape{Policy: builtInRevision(t), Method: "GET", Route: route}, Requests: requests}
}

func TestReplay_ItSaysWhyItIsApproximate(t *testing.T) {
	const catalog = "keystile/catalog/data.yaml"
	const template = "/api/v1/tickets/{id}"
	narrower := edited(t, catalog, "      /api/v1/tickets/{id}: {scopes: [tickets:read]}\n",
		"      /api/v1/tickets/{id}: {scopes: [tickets:read]}\n      /api/v1/tickets/export: {scopes: [tickets:write]}\n")
	for name, tt := range map[string]struct {
		changes map[string]string
		exact   bool
		says    string
	}{
		"the same policy":                {nil, true, ""},
		"a rule about what is recorded":  {map[string]string{ruleRego: ruleOf(`input.request.method == "GET"`)}, true, ""},
		"a rule about a path":            {map[string]string{ruleRego: ruleOf(`contains(input.request.path, "42")`)}, false, "keystile/rules/bad/bad.rego:6: data.keystile.rules.bad.deny looks at input.request.path, which is not recorded as it was"},
		"a rule about all of a request":  {map[string]string{ruleRego: ruleOf(`json.marshal(input.request) != ""`)}, false, "bad.rego:6"},
		"a rule about all of the input":  {map[string]string{ruleRego: ruleOf(`json.marshal(input) != ""`)}, false, "bad.rego:6"},
		"a rule through another one":     {map[string]string{ruleRego: ruleOf(`data.keystile.check.decoded_path == "/x"`)}, false, "looks at data.keystile.check.decoded_path, which may look at"},
		"a fence of its own":             {map[string]string{fencesRego: edited(t, fencesRego, "address_matches if input.key.allowed_cidrs == []\n", "address_matches if count(input.key.allowed_cidrs) == 0\n")}, false, "keystile/check/fences.rego: it is not as in the built-in policy"},
		"an address looked at otherwise": {map[string]string{fencesRego: edited(t, fencesRego, `	input.request.client_ip != ""`, `	count(input.request.client_ip) > 0`)}, false, "keystile/check/fences.rego: it is not as in the built-in policy"},
		"a narrower route":               {map[string]string{catalog: narrower}, false, "some of the requests recorded as GET /api/v1/tickets/_ may be /api/v1/tickets/export"},
	} {
		t.Run(name, func(t *testing.T) {
			d := replayOf(t, tt.changes, recordedGet(t, template, 7))
			if d.Exact() != tt.exact || (d.Approximate == 7) == tt.exact || d.Requests != 7 {
				t.Errorf("exact %v, approximate %d of %d: %v", d.Exact(), d.Approximate, d.Requests, d.Reasons)
			}
			if said := fmt.Sprint(d.Reasons); !strings.Contains(said, tt.says) || tt.exact && len(d.Reasons) > 0 {
				t.Errorf("it says %s", said)
			}
		})
	}
}

func TestReplay_DifferencesAreToldByKeyAndRouteGravestFirst(t *testing.T) {
	const catalog = "keystile/catalog/data.yaml"
	opened := edited(t, catalog, "      /api/v1/tickets/{id}: {scopes: [tickets:read]}\n", "      /api/v1/tickets/{id}: {scopes: [tickets:write]}\n")
	opened = strings.Replace(opened, "burst: 100", "burst: 120", 1)
	reader, writer := recordedGet(t, "/api/v1/tickets/{id}", 5), recordedGet(t, "/api/v1/tickets/{id}", 3)
	reader.Key.Scopes, writer.Key.Scopes = []authz.Scope{"tickets:read"}, []authz.Scope{"tickets:write"}
	writer.Key.ID, reader.Key.ID = authz.NewKeyID(time.Now()), authz.NewKeyID(time.Now())
	unknown := recordedGet(t, "", 2)
	unknown.Shape.Path = "/nowhere"
	gone := authz.Recorded{Shape: authz.CollapsedShape(), Requests: 4}
	d := replayOf(t, map[string]string{catalog: opened}, reader, unknown, writer, gone)
	if len(d.Differences) != 3 || d.Requests != 10 || d.Skipped.Collapsed != 4 || d.Exact() {
		t.Fatalf("%+v", d)
	}
	for i, want := range []struct {
		kind     authz.PolicyDifferenceKind
		key      authz.KeyID
		path     string
		requests int64
	}{
		{authz.DenyToAllow, writer.Key.ID, "/api/v1/tickets/{id}", 3},
		{authz.AllowToDeny, reader.Key.ID, "/api/v1/tickets/{id}", 5},
		{authz.OtherLimits, unknown.Key.ID, "/nowhere", 2},
	} {
		if got := d.Differences[i]; got.Kind != want.kind || got.Key != want.key || got.Path != want.path || got.Requests != want.requests {
			t.Errorf("%d: %+v, want %+v", i, got, want)
		}
	}
}

func TestGate_AReplayIsMadeInAProcessOfItsOwn(t *testing.T) {
	shippedOne := mustRead(t, shipped())
	candidate := mustRead(t, with(t, map[string]string{ruleRego: ruleOf(`input.request.method == "GET"`)}))
	row := recordedGet(t, "/api/v1/tickets/{id}", 2)
	const rows = 3*replayRows + 1
	told := int64(0)
	replay := Replay{
		Active: shippedOne, Candidate: candidate, BuiltIn: shippedOne, Told: func(n int64) { told = n },
		Traffic: func(_ context.Context, each func(authz.Recorded) error) error {
			for range rows {
				if err := each(row); err != nil {
					return err
				}
			}
			return each(authz.Recorded{Shape: row.Shape, Requests: 5})
		},
	}
	gate := newTestGate(t, 0)
	d, err := gate.Replay(t.Context(), replay)
	if err != nil {
		t.Fatal(err)
	}
	if d.Totals[authz.AllowToDeny] != 2*rows || d.Requests != 2*rows || d.Skipped.Gone != 5 || told != 2*rows+5 || d.Questions != 1 {
		t.Errorf("told %d, %+v", told, d)
	}
	replay.Candidate = mustRead(t, with(t, map[string]string{ruleRego: ruleOf("input.reqest == 1")}))
	if d, err := gate.Replay(t.Context(), replay); err == nil || !strings.Contains(err.Error(), "bad.rego:7") {
		t.Errorf("%+v, %v", d, err)
	}
	replay.Candidate = candidate
	replay.Traffic = func(context.Context, func(authz.Recorded) error) error { return context.DeadlineExceeded }
	if d, err := gate.Replay(t.Context(), replay); err == nil || d != nil {
		t.Errorf("traffic that ends early is taken for all: %+v", d)
	}
}

// A candidate that never ends does not hold up a replay: what it does not decide is denied.
func TestReplay_AnEndlessCandidateIsUndecided(t *testing.T) {
	endless := ruleOf("count([1 | some i in numbers.range(1, 1000000); some j in numbers.range(1, 1000); i + j < 0]) > 0")
	d := replayOf(t, map[string]string{ruleRego: endless}, recordedGet(t, "/api/v1/tickets/{id}", 1))
	if d.Totals[authz.AllowToDeny] != 1 || d.Differences[0].After.Code != authz.CodeUnavailable {
		t.Errorf("%+v", d)
	}
}
