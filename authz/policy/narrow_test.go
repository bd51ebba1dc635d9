package policy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// narrowed asks a policy about recorded requests of a key and of one with other scopes.
func narrowed(t *testing.T, active *Source, k *authz.Key, scopes []authz.Scope, traffic ...authz.RecordedOfKey) *authz.Narrowing {
	t.Helper()
	engine := NewEngine(nil)
	keeper := NewKeeper(KeeperOptions{Engine: engine, BuiltIn: mustRead(t, shipped()), Origin: authz.OriginDatabase})
	if err := keeper.Offer(t.Context(), Offer{Source: active, Origin: authz.OriginDatabase, Proved: true}); err != nil {
		t.Fatal(err)
	}
	out, err := keeper.Narrow(t.Context(), k, scopes, traffic)
	if err != nil {
		t.Fatal(err)
	}
	if out.Policy != active.revision {
		t.Fatalf("asked %s, not %s", out.Policy, active.revision)
	}
	return out
}

// sent is a request as it was sent and decided.
type sent struct {
	check   *authz.Check
	allowed bool
}

// Whatever the policies, the key and what became of it since: when nothing is against fewer
// scopes, no request that was allowed, and would be again, is denied with them.
func TestNarrow_WhatNothingIsAgainstDeniesNothing(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 11))
	rounds, checks := 36, 20
	if raceEnabled {
		rounds /= 10
	}
	outcomes := map[authz.NarrowingOutcome]int{}
	safe, kept := 0, 0
	for round := range rounds {
		recordedBy, inForce := generated(t, random), generated(t, random)
		switch round % 3 { // 2 is another policy since
		case 0:
			withoutDoubts(inForce)
		case 1:
			inForce["keystile/rules/generated/generated.rego"].Data = []byte("package keystile.rules.generated\n")
		}
		active := mustRead(t, inForce)
		is, err := active.Load(t.Context())
		was := is
		if err == nil && round%3 == 2 {
			was, err = mustRead(t, recordedBy).Load(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		before, now := NewEngine(was), NewEngine(is)
		k := generatedKey(random)
		k.Organization.Plan = "standard"
		byShape := map[authz.Shape][]sent{}
		order := []authz.Shape{}
		for range checks {
			c := generatedCheck(random)
			if random.IntN(4) > 0 { // an ordinary one
				c.Action, c.Environment, c.Resource, c.Browser = "", "", authz.Resource{}, false
				c.Caller.Environments = []authz.Environment{"live", "test"}
			}
			verdict, err := before.Evaluate(t.Context(), k, c)
			verdict.Revision = was.revision
			shape := authz.ShapeOf(k, c, &verdict)
			if random.IntN(30) == 0 {
				shape = authz.CollapsedShape()
			}
			if byShape[shape] == nil {
				order = append(order, shape)
			}
			byShape[shape] = append(byShape[shape], sent{c, authz.AnswerOf(verdict, err).Allow})
		}
		if random.IntN(3) == 0 { // another fence since, and so another record
			k = k.Copy()
			k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix(pick(random, "203.0.113.0/24", "2001:db8::/32"))}
		}
		narrow := k.Copy()
		narrow.Scopes = slices.DeleteFunc(narrow.Scopes, func(authz.Scope) bool { return random.IntN(4) == 0 })
		var traffic []authz.RecordedOfKey
		for _, shape := range order {
			row := authz.RecordedOfKey{Caller: byShape[shape][0].check.Caller, Shape: shape}
			// One row is of one caller.
			byShape[shape] = slices.DeleteFunc(byShape[shape], func(s sent) bool {
				return !slices.Equal(s.check.Caller.Environments, row.Caller.Environments)
			})
			for _, s := range byShape[shape] {
				row.Requests++
				if s.allowed {
					row.Passed++
				}
			}
			traffic = append(traffic, row)
		}
		out := narrowed(t, active, k, narrow.Scopes, traffic...)
		for _, r := range out.Requests {
			outcomes[r.Outcome]++
		}
		if len(out.Against()) > 0 {
			continue
		}
		safe++
		for _, all := range byShape {
			for _, s := range all {
				verdict, err := now.Evaluate(t.Context(), k, s.check)
				if !s.allowed || !authz.AnswerOf(verdict, err).Allow {
					continue
				}
				verdict, err = now.Evaluate(t.Context(), narrow, s.check)
				if then := authz.AnswerOf(verdict, err); !then.Allow {
					t.Fatalf("round %d: %s %s %s was allowed with %v, and is %s with %v\n%+v\n%s\n%s", round, s.check.Method, s.check.Path, s.check.Action,
						k.Scopes, then.Code, narrow.Scopes, out.Requests, inForce["keystile/rules/generated/generated.rego"].Data, inForce["keystile/catalog/data.yaml"].Data)
				}
				kept++
			}
		}
	}
	t.Logf("%d of %d had nothing against them, with %d allowed requests; %v", safe, rounds, kept, outcomes)
	if raceEnabled {
		return
	}
	for _, outcome := range []authz.NarrowingOutcome{authz.NarrowingDenies, authz.NarrowingDoubtful, authz.NarrowingKeeps, authz.NarrowingSpares} {
		if outcomes[outcome] == 0 {
			t.Errorf("none was %s", outcome)
		}
	}
	if safe < rounds/20 || kept == 0 {
		t.Error("hardly anything was without something against it")
	}
}

func TestNarrow_TellsWhatIsAgainstIt(t *testing.T) {
	k := exampleKey()
	k.Scopes = []authz.Scope{"tickets:read", "tickets:write"}
	left := k.Scopes[:1]
	revision := builtInRevision(t)
	row := func(s authz.Shape, requests, passed int64) authz.RecordedOfKey {
		s.Policy = revision
		return authz.RecordedOfKey{Caller: exampleCheck("GET", "/").Caller, Shape: s, Requests: requests, Passed: passed}
	}
	post := authz.Shape{Method: "POST", Route: "/api/v1/tickets"}
	get := authz.Shape{Method: "GET", Route: "/api/v1/tickets"}
	outside := post
	outside.Address, outside.Relative = authz.AddressOutside, 7
	looksAtScopes := with(t, map[string]string{"keystile/rules/own/own.rego": `# METADATA
# title: Own
package keystile.rules.own

# METADATA
# title: Own
deny contains {"code": "own", "message": "No."} if {
	not "tickets:write" in input.key.scopes
	input.request.client_ip != ""
}
`})
	for name, tt := range map[string]struct {
		files   map[string]string
		traffic authz.RecordedOfKey
		want    authz.NarrowingOutcome
		why     string
	}{
		"a route that needs it":               {traffic: row(post, 3, 3), want: authz.NarrowingDenies},
		"such a route that was never allowed": {traffic: row(post, 3, 0), want: authz.NarrowingDenies},
		"a route that does not":               {traffic: row(get, 3, 3), want: authz.NarrowingKeeps},
		"no route":                            {traffic: row(authz.Shape{Method: "GET", Path: "/nowhere"}, 3, 0), want: authz.NarrowingSpares},
		"kinds that were not kept":            {traffic: row(authz.CollapsedShape(), 3, 1), want: authz.NarrowingDoubtful, why: "not kept"},
		"such kinds that were all denied":     {traffic: row(authz.CollapsedShape(), 3, 0), want: authz.NarrowingSpares},
		"another fence, and it needs it":      {traffic: row(outside, 3, 3), want: authz.NarrowingDenies},
		"a caller that is gone":               {traffic: authz.RecordedOfKey{Shape: post, Requests: 3, Passed: 3}, want: authz.NarrowingGone},
		"a word that is no scope":             {traffic: row(authz.Shape{Method: "GET", Route: "/api/v1/tickets", Action: authz.Blank}, 3, 3), want: authz.NarrowingDoubtful, why: "action"},
	} {
		t.Run(name, func(t *testing.T) {
			out := narrowed(t, mustRead(t, shipped()), k, left, tt.traffic)
			if len(out.Requests) != 1 || out.Requests[0].Outcome != tt.want || !strings.Contains(out.Requests[0].Why, tt.why) {
				t.Errorf("%+v; want %s", out.Requests, tt.want)
			}
			if safe := len(out.Against()) == 0; safe != tt.want.Safe() {
				t.Errorf("against it: %+v", out.Against())
			}
		})
	}
	t.Run("a rule that looks at scopes, and at what is not recorded", func(t *testing.T) {
		active := mustRead(t, looksAtScopes)
		out := narrowed(t, active, k, left, row(get, 3, 3))
		if r := out.Requests[0]; r.Outcome != authz.NarrowingDoubtful || !strings.Contains(r.Why, "own.rego:7") {
			t.Errorf("%+v", r)
		}
	})
}

func TestNarrow_OtherLimitsAreDoubtful(t *testing.T) {
	k := exampleKey()
	k.Scopes = []authz.Scope{"tickets:read", "tickets:write"}
	const limits = "keystile/check/limits.rego"
	active := mustRead(t, with(t, map[string]string{limits: edited(t, limits, "limits := catalog.plan_limits[input.organization.plan] if {",
		"limits := [object.union(l, {\"rate\": count(input.key.scopes)}) | some l in catalog.plan_limits[input.organization.plan]] if {")}))
	out := narrowed(t, active, k, k.Scopes[:1], authz.RecordedOfKey{
		Caller: exampleCheck("GET", "/").Caller, Shape: authz.Shape{Policy: active.revision, Method: "GET", Route: "/api/v1/tickets"}, Requests: 1, Passed: 1,
	})
	if r := out.Requests[0]; r.Outcome != authz.NarrowingDoubtful || !strings.Contains(r.Why, "limits") {
		t.Errorf("%+v", r)
	}
}
