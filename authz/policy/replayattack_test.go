package policy

import (
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/supportstation/keystile/authz"
)

// These are edits, and changes since, that a replay was once wrong about.

const (
	catData   = "keystile/catalog/data.yaml"
	catRego   = "keystile/catalog/catalog.rego"
	routeRego = "keystile/check/route.rego"
)

type attack struct {
	older, active, candidate map[string]string // changes of the shipped one; older nil: active
	check                    *authz.Check
	then, now                func(*authz.Key) // what the key was when recorded, and is now
}

func srcText(t *testing.T, name string) string {
	t.Helper()
	b, err := fs.ReadFile(shipped(), name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func repl(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if strings.Count(text, pairs[i]) != 1 {
			t.Fatalf("%q is there %d times", pairs[i], strings.Count(text, pairs[i]))
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

func noTests(m fstest.MapFS) fstest.MapFS {
	for n := range m {
		if strings.HasSuffix(n, "_test.rego") {
			delete(m, n)
		}
	}
	return m
}

func TestReplay_AnExactAnswerIsWhatHappensWhateverIsEdited(t *testing.T) {
	get4 := "      /api/v1/tickets/{id}: {scopes: [tickets:read]}\n"
	export := get4 + "      /api/v1/tickets/export: {scopes: [tickets:read]}\n"
	exportW := get4 + "      /api/v1/tickets/export: {scopes: [customers:write]}\n"
	cat := srcText(t, catData)
	noWrite := func(k *authz.Key) { k.Scopes = []authz.Scope{"tickets:read"} }
	purge := func(more string) string {
		return repl(t, cat, "  DELETE:\n", "  PURGE:\n    \"3\":\n      /api/v1/tickets: {scopes: [tickets:write]}\n"+more+"  DELETE:\n")
	}
	res := func(c *authz.Check, r authz.Resource) *authz.Check { c.Resource = r; return c }
	fence := func(s ...string) func(*authz.Key) {
		return func(k *authz.Key) {
			k.AllowedCIDRs = nil
			for _, x := range s {
				k.AllowedCIDRs = append(k.AllowedCIDRs, netip.MustParsePrefix(x))
			}
		}
	}
	tests := map[string]attack{
		"A helper of a constant is edited (literals_of)": {
			candidate: map[string]string{catRego: repl(t, srcText(t, catRego),
				"shapes_of(bucket) := [shape |", "shapes_of(bucket) := array.concat([{\"literals\": [3], \"routes\": {[\"4711\"]: {\"route\": \"/x\", \"scopes\": [\"customers:write\"]}}}], [shape |",
				"\t}\n]\n\n# false sorts", "\t}\n])\n\n# false sorts")},
			check: exampleCheck("GET", "/api/v1/tickets/4711"), then: noWrite,
		},
		"B a route written in Rego": {
			candidate: map[string]string{"keystile/catalog/more.rego": "package keystile.catalog\n\nroutes.GET[\"4\"][\"/api/v1/tickets/export\"] := {\"scopes\": [\"customers:write\"]}\n"},
			check:     exampleCheck("GET", "/api/v1/tickets/export"), then: noWrite,
		},
		"B2 all routes written in Rego": {
			candidate: map[string]string{
				catData:                      repl(t, cat, "routes:\n", "routes_:\n"),
				"keystile/catalog/more.rego": "package keystile.catalog\n\nroutes := object.union(data.keystile.catalog.routes_, {\"GET\": {\"4\": {\"/api/v1/tickets/export\": {\"scopes\": [\"customers:write\"]}}}})\n",
			},
			check: exampleCheck("GET", "/api/v1/tickets/export"), then: noWrite,
		},
		"C with allowed_cidrs": {
			candidate: map[string]string{ruleRego: ruleOf(`data.keystile.check.address_matches with input.key.allowed_cidrs as ["203.0.113.0/24"]`)},
			check:     exampleCheck("GET", "/api/v1/tickets/1"),
		},
		"D with literal_routes": {
			candidate: map[string]string{ruleRego: ruleOf(`data.keystile.check.matched.route == "x" with data.keystile.catalog.literal_routes as {"GET": {"/api/v1/tickets/4711": {"route": "x", "scopes": []}}}`)},
			check:     exampleCheck("GET", "/api/v1/tickets/4711"),
		},
		"E with method": {
			active:    map[string]string{catData: repl(t, cat, "      /api/v1/tickets/{id}: {scopes: [tickets:write]}\n", "      /api/v1/tickets/{id}: {scopes: [tickets:write]}\n      /api/v1/tickets/export: {scopes: [tickets:write]}\n")},
			candidate: map[string]string{catData: repl(t, cat, "      /api/v1/tickets/{id}: {scopes: [tickets:write]}\n", "      /api/v1/tickets/{id}: {scopes: [tickets:write]}\n      /api/v1/tickets/export: {scopes: [tickets:write]}\n"), ruleRego: ruleOf("data.keystile.check.matched.route == \"/api/v1/tickets/export\" with input.request.method as \"PATCH\"")},
			check:     exampleCheck("GET", "/api/v1/tickets/export"),
		},
		"F literal_routes are data": {
			candidate: map[string]string{
				catRego: func() string {
					x := srcText(t, catRego)
					a, b := strings.Index(x, "# METADATA\n# title: Routes without"), strings.Index(x, "# METADATA\n# title: Routes with variables")
					return x[:a] + x[b:]
				}(),
				catData: cat + "\nliteral_routes: {GET: {/api/v1/tickets/4711: {route: /x, scopes: [\"customers:write\"]}}}\n",
			},
			check: exampleCheck("GET", "/api/v1/tickets/4711"), then: noWrite,
		},
		"S import of other data": {
			candidate: map[string]string{
				routeRego:          repl(t, srcText(t, routeRego), "import data.keystile.catalog\n", "import data.custom as catalog\n"),
				"custom/c.rego":    "package custom\n\nunknown_route_status := 403\n\nscopes := data.keystile.catalog.scopes\n\nvariable_routes := data.keystile.catalog.variable_routes\n",
				"custom/data.yaml": "literal_routes: {GET: {/api/v1/tickets/4711: {route: /x, scopes: [\"customers:write\"]}}}\n",
			},
			check: exampleCheck("GET", "/api/v1/tickets/4711"), then: noWrite,
		},
		"G shadowed object.get": {
			candidate: map[string]string{"keystile/check/zz.rego": "package keystile.check\n\nobject.get(r, _, _) := \"other\" if r.id == \"4711\"\n\nelse := r.organization\n"},
			check:     res(exampleCheck("GET", "/api/v1/tickets/1"), authz.Resource{ID: "4711", Organization: "acme-1"}),
		},
		"G2 shadowed net.cidr_contains": {
			candidate: map[string]string{"keystile/check/zz.rego": "package keystile.check\n\nnet.cidr_contains(_, ip) if not endswith(ip, \".7\")\n"},
			check:     exampleCheck("GET", "/api/v1/tickets/1"), then: fence("203.0.113.0/24"),
		},
		"T an action beside a path that had no route": {
			candidate: map[string]string{catData: repl(t, cat, get4, get4+"      /api/v1/{kind}/mine: {scopes: [tickets:read]}\n")},
			check:     func() *authz.Check { c := exampleCheck("GET", "/api/v1/x/mine"); c.Action = "tickets:read"; return c }(),
		},
		"H rule on TRACE": {
			candidate: map[string]string{ruleRego: ruleOf(`input.request.method == "TRACE"`)},
			check:     exampleCheck("TRACE", "/api/v1/tickets/1"),
		},
		"I new route of a method that both have": {
			active: map[string]string{catData: purge("")}, candidate: map[string]string{catData: purge("      /api/v1/cache: {scopes: [tickets:write]}\n")},
			check: exampleCheck("PURGE", "/api/v1/cache"),
		},
		"J a route is gone, a less narrow one was there": {
			active:    map[string]string{catData: repl(t, cat, get4, get4+"      /api/v1/{kind}/export: {scopes: [tickets:read]}\n")},
			candidate: map[string]string{catData: repl(t, cat, get4, "      /api/v1/{kind}/export: {scopes: [tickets:read]}\n")},
			check:     exampleCheck("GET", "/api/v1/tickets/export"),
		},
		"K recorded under an older policy": {
			older: map[string]string{}, active: map[string]string{catData: repl(t, cat, get4, export)}, candidate: map[string]string{catData: repl(t, cat, get4, exportW)},
			check: exampleCheck("GET", "/api/v1/tickets/export"), then: noWrite,
		},
		"L external_id _": {
			candidate: map[string]string{ruleRego: ruleOf(`not data.keystile.check.organization_matches`)},
			then:      func(k *authz.Key) { k.Organization.ExternalID = "_" },
			check:     res(exampleCheck("GET", "/api/v1/tickets/1"), authz.Resource{Organization: "other"}),
		},
		"M fence is new since": {
			candidate: map[string]string{ruleRego: ruleOf(`input.request.method == "GET"`)},
			then:      fence(), now: fence("203.0.113.0/24"), check: exampleCheck("GET", "/api/v1/tickets/1"),
		},
		"M2 fence moved": {
			candidate: map[string]string{ruleRego: ruleOf(`input.request.method == "GET"`)},
			then:      fence("10.0.0.0/8"), now: fence("203.0.113.0/24"), check: exampleCheck("GET", "/api/v1/tickets/1"),
		},
		"M3 external id gone": {
			candidate: map[string]string{ruleRego: ruleOf(`input.request.method == "GET"`)},
			now:       func(k *authz.Key) { k.Organization.ExternalID = "" },
			check:     res(exampleCheck("GET", "/api/v1/tickets/1"), authz.Resource{Organization: "acme-1"}),
		},
		"M4 outside of everything now": {
			candidate: map[string]string{ruleRego: ruleOf(`input.request.method == "GET"`)},
			then:      fence("10.0.0.0/8"), now: fence("0.0.0.0/0", "::/0"), check: exampleCheck("GET", "/api/v1/tickets/1"),
		},
		"O literal _": {
			active:    map[string]string{catData: repl(t, cat, get4, get4+"      /api/v1/tickets/_: {scopes: [tickets:read]}\n")},
			candidate: map[string]string{catData: repl(t, cat, get4, "      /api/v1/tickets/{id}: {scopes: [customers:write]}\n      /api/v1/tickets/_: {scopes: [tickets:read]}\n")},
			check:     exampleCheck("GET", "/api/v1/tickets/1"), then: noWrite,
		},
		"P label as route": {
			active: labelled(), candidate: func() map[string]string {
				m := labelled()
				m[catData] = repl(t, cat, get4, "      /api/v1/tickets/{id}: {scopes: [customers:write]}\n")
				return m
			}(),
			check: exampleCheck("GET", "/api/v1/tickets/1"), then: noWrite,
		},
		"Q method rule on a path that no route has": {
			candidate: map[string]string{ruleRego: ruleOf(`count(input.request.method) > 6`)},
			check:     exampleCheck("PROPFIND", "/api/v1/tickets/1"),
		},
		"R decision compares organization": {
			candidate: map[string]string{ruleRego: ruleOf(`data.keystile.check.organization_matches with input.organization.external_id as "partner-7"`)},
			check:     res(exampleCheck("GET", "/api/v1/tickets/1"), authz.Resource{Organization: "partner-7"}),
		},
	}
	for name, a := range tests {
		t.Run(name, func(t *testing.T) {
			load := func(m map[string]string) *Source { return mustRead(t, noTests(with(t, m))) }
			active, candidate := load(a.active), load(a.candidate)
			older := active
			if a.older != nil {
				older = load(a.older)
			}
			os, err := older.Load(t.Context())
			if err != nil {
				t.Fatal("older", err)
			}
			r, err := loadedReplay(t, active, candidate)
			if err != nil {
				t.Fatal("REFUSED ", err)
			}
			then, now := exampleKey(), exampleKey()
			now.ID, now.Organization.ID = then.ID, then.Organization.ID
			if a.then != nil {
				a.then(then)
				a.then(now)
			}
			if a.now != nil {
				a.now(now)
			}
			v, _ := NewEngine(os).Evaluate(t.Context(), then, a.check)
			shape := authz.ShapeOf(then, a.check, &v)
			r.add(t.Context(), authz.Recorded{Key: now, Caller: a.check.Caller, Shape: shape, Requests: 1})
			d := r.end()
			was, _ := r.active.ask(t.Context(), now, a.check)
			is, _ := r.candidate.ask(t.Context(), now, a.check)
			told := authz.PolicyDifferenceKind("")
			for k := range d.Totals {
				told = k
			}
			happens := was.Difference(is)
			verdict := "ok"
			if d.Exact() && told != happens {
				verdict = "WRONG"
			}
			t.Logf("%-8s exact=%v told=%q happens=%q  %s→%s  shape=%+v reasons=%v", verdict, d.Exact(), told, happens, was.Code, is.Code, shape, d.Reasons)
			if verdict == "WRONG" {
				t.Fail()
			}
		})
	}
}

func labelled() map[string]string {
	return map[string]string{checkRego: `package keystile.check

import data.keystile.rules

decision := {"allow": allowed, "reasons": [r | not allowed; some r in reasons], "required_scopes": required_scopes, "missing_scopes": missing_scopes, "route": label, "limits": limits}

default label := null

label := "tickets-read" if matched.route == "/api/v1/tickets/{id}"

default allowed := false

allowed if {
	environment_matches
	organization_matches
	address_matches
	required_scopes != []
	missing_scopes == []
	not denied_by_rule
}

denied_by_rule if {
	some name
	rules[name].deny != set()
}
`}
}

// A candidate that is slow for one request is not slow for the next, and says that it is.
func TestReplay_WhatIsSlowIsToldAndHeldAgainstNobody(t *testing.T) {
	slow := ruleOf("input.request.method == \"POST\"\n\tcount([1 | some i in numbers.range(1, 1000000); some j in numbers.range(1, 1000); i + j < 0]) > 0")
	k, c := exampleKey(), exampleCheck("GET", "/")
	row := func(m, route string) authz.Recorded {
		return authz.Recorded{Key: k, Caller: c.Caller, Shape: authz.Shape{Policy: mustRead(t, shipped()).revision, Method: m, Route: route}, Requests: 1}
	}
	d := replayOf(t, map[string]string{ruleRego: slow}, row("POST", "/api/v1/tickets"), row("POST", "/api/v1/customers"), row("GET", "/api/v1/tickets"), row("GET", "/api/v1/tickets/{id}"))
	if d.Approximate != 2 || d.Totals[authz.AllowToDeny] != 2 || !strings.Contains(fmt.Sprint(d.Reasons), "took longer than") {
		t.Errorf("%d approximate, %v, %v", d.Approximate, d.Totals, d.Reasons)
	}
}
