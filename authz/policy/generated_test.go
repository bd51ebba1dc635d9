package policy

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/supportstation/keystile/authz"
)

// generatedPolicies is how many policies are made, each of which is asked generatedChecks times.
const (
	generatedPolicies = 100
	generatedChecks   = 20
)

// Whatever the policy: the service, which folds constants, guards builtins and makes its input
// by hand, answers as a stock evaluation of the same files does.
func TestEngine_AnswersAsStockOPADoes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 5))
	allowed, denied, undecided := 0, 0, 0
	policies := generatedPolicies
	if raceEnabled {
		policies /= 10
	}
	for n := range policies {
		files := generated(t, random)
		snapshot, err := Load(t.Context(), files)
		if err != nil {
			t.Fatalf("policy %d: %v\n%s", n, err, files["keystile/rules/generated/generated.rego"].Data)
		}
		engine, stock := NewEngine(snapshot), stockOf(t, files)
		for range generatedChecks {
			k, c := generatedKey(random), generatedCheck(random)
			got, gotErr := evaluate(t, engine, k, c)
			want, wantErr := askStock(t, stock, engine.names, k, c)
			if (gotErr != nil) != (wantErr != nil) {
				t.Fatalf("policy %d: %v; stock: %v\n%s", n, gotErr, wantErr, files["keystile/rules/generated/generated.rego"].Data)
			}
			got.Revision, got.Cataloged = "", false
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("policy %d: %s %s %s: (-stock +ours)\n%s\n%s", n, c.Method, c.Path, c.Action, diff, files["keystile/rules/generated/generated.rego"].Data)
			}
			switch {
			case gotErr != nil:
				undecided++
			case got.Allow:
				allowed++
			default:
				denied++
			}
		}
	}
	t.Logf("%d allowed, %d denied, %d undecided", allowed, denied, undecided)
	if allowed == 0 || denied == 0 {
		t.Error("the policies are too much alike")
	}
}

// stockOf is the policy as `opa eval -d` reads it.
func stockOf(t *testing.T, files fstest.MapFS) rego.PreparedEvalQuery {
	t.Helper()
	source := mustRead(t, files)
	data, err := parseData(source.files)
	if err != nil {
		t.Fatal(err)
	}
	options := []func(*rego.Rego){
		rego.Query(checkEntrypoint), rego.Store(inmem.NewFromObject(data)), rego.StrictBuiltinErrors(true),
	}
	for _, f := range source.files {
		if f.isRego() && !f.isTest() {
			options = append(options, rego.Module(f.path, string(f.content)))
		}
	}
	query, err := rego.New(options...).PrepareForEval(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return query
}

func askStock(t *testing.T, query rego.PreparedEvalQuery, n *names, k *authz.Key, c *authz.Check) (authz.Verdict, error) {
	t.Helper()
	input, err := n.input(k, c)
	if err != nil {
		t.Fatal(err)
	}
	// Through JSON, as an input file would be.
	plain, err := ast.JSON(input.Value)
	if err != nil {
		t.Fatal(err)
	}
	results, err := query.Eval(t.Context(), rego.EvalInput(plain))
	if err != nil {
		return authz.Verdict{}, err
	}
	if len(results) == 0 {
		return authz.Verdict{}, errUndefined
	}
	value, err := ast.InterfaceToValue(results[0].Expressions[0].Value)
	if err != nil {
		return authz.Verdict{}, err
	}
	return verdict(value)
}

func pick[T any](r *rand.Rand, all ...T) T { return all[r.IntN(len(all))] }

// generated is the shipped policy with another catalogue and rules of its own.
func generated(t *testing.T, r *rand.Rand) fstest.MapFS {
	t.Helper()
	conditions := []string{
		`input.request.method == "GET"`, `input.request.method in {"POST", "PATCH"}`, `input.key.environment == "test"`, `input.request.browser`,
		`input.stale`, `startswith(input.request.path, "/api")`, `"tickets:read" in input.key.scopes`, `input.organization.plan != "standard"`,
		`not input.request.ambiguous`, `not "customers:write" in input.key.scopes`, `regex.match("^/api/v[0-9]+/t", input.request.path)`,
		`object.get(input.key.metadata, "team", "") == "billing"`, `sprintf("%d", [count(input.request.segments)]) == "4"`,
		`every s in input.key.scopes { contains(s, ":") }`, `count({s | some s in input.key.scopes; endswith(s, ":write")}) > 1`,
		`net.cidr_contains("203.0.113.0/24", input.request.client_ip)`, `input.request.resource.type != ""`, `to_number(input.request.resource.id) > 40`,
		`data.keystile.rules.generated.limit > count(input.request.segments)`, `lower(input.request.method) != "delete"`, `table[input.request.method] > 1`,
		`input.key.rate_limit != null`, `glob.match("/api/v1/*/*", ["/"], input.request.path)`, `max([count(input.key.scopes), 2]) == 2`,
		`some i, s in input.request.segments; i == 3; to_number(s) % 2 == 0`, `input.caller.name == "tickets"`, `trim_prefix(input.request.path, "/api/v1") == "/tickets"`,
	}
	var rules strings.Builder
	rules.WriteString("# METADATA\n# title: Generated\npackage keystile.rules.generated\n\n")
	rules.WriteString("# METADATA\n# custom:\n#   constant: true\ntable := {method: size | some method, size in data.keystile.rules.generated.sizes}\n")
	for i := range 1 + r.IntN(4) {
		fmt.Fprintf(&rules, "\ndeny contains {\"code\": \"generated_%d\", \"message\": sprintf(\"%%s %%d\", [input.request.method, %d])} if {\n", i, r.IntN(100))
		for _, j := range r.Perm(len(conditions))[:2+r.IntN(3)] { // no variable twice
			fmt.Fprintf(&rules, "\t%s\n", conditions[j])
		}
		rules.WriteString("}\n")
	}
	routes := "  GET:\n    \"3\":\n      /api/v1/tickets: {scopes: [tickets:read]}\n    \"4\":\n      /api/v1/tickets/{id}: {scopes: [" + pick(r, "tickets:read", "tickets:read, customers:read", "tickets:write") + "]}\n"
	if r.IntN(2) == 0 {
		routes += "      /api/v1/tickets/open: {scopes: [tickets:write]}\n      /api/v1/{kind}/mine: {scopes: [customers:read]}\n"
	}
	routes += "  POST:\n    \"3\":\n      /api/v1/tickets: {scopes: [" + pick(r, "tickets:write", "tickets:read, tickets:write") + "]}\n"
	catalog := "scopes:\n"
	for _, s := range []string{"tickets:read", "tickets:write", "customers:read", "customers:write"} {
		catalog += "  " + s + ":\n    description: x\n"
	}
	catalog += "routes:\n" + routes + "unknown_route_status: " + pick(r, "403", "404") + "\nplans:\n" +
		fmt.Sprintf("  standard: {rate: %d, period_seconds: %d, burst: %d}\n", 1+r.IntN(500), 1+r.IntN(3600), 1+r.IntN(500)) +
		"  large: {rate: 10000, period_seconds: 1, burst: 10000, max_keys: 3}\n"
	files := fstest.MapFS{}
	err := fs.WalkDir(shipped(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.rego") {
			return err
		}
		data, err := fs.ReadFile(shipped(), name)
		files[name] = &fstest.MapFile{Data: data}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	files["keystile/rules/generated/generated.rego"] = &fstest.MapFile{Data: []byte(rules.String())}
	files["keystile/rules/generated/data.yaml"] = &fstest.MapFile{Data: fmt.Appendf(nil, "limit: %d\nsizes: {GET: %d, POST: %d}\n", r.IntN(6), r.IntN(4), r.IntN(4))}
	files["keystile/rules/browser_use/data.yaml"] = &fstest.MapFile{Data: []byte("enabled: " + pick(r, "true", "false") + "\n")}
	files["keystile/catalog/data.yaml"] = &fstest.MapFile{Data: []byte(catalog)}
	return files
}

func generatedKey(r *rand.Rand) *authz.Key {
	k := exampleKey()
	k.Environment = pick(r, authz.EnvironmentLive, authz.EnvironmentTest)
	k.Scopes = nil
	for _, s := range []authz.Scope{"customers:read", "customers:write", "tickets:read", "tickets:write"} {
		if r.IntN(3) > 0 {
			k.Scopes = append(k.Scopes, s)
		}
	}
	k.Organization.Plan = pick(r, "standard", "standard", "large", "unknown")
	k.Metadata = pick(r, authz.Metadata(""), `{"team":"billing"}`, `{"n":1e3,"x":[1,null]}`)
	if r.IntN(4) == 0 {
		k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix(pick(r, "203.0.113.0/24", "198.51.100.0/24"))}
	}
	if r.IntN(3) == 0 {
		k.RateLimit = &authz.Rate{Rate: 1 + r.IntN(100), Period: time.Minute, Burst: 1 + r.IntN(100)}
	}
	return k
}

func generatedCheck(r *rand.Rand) *authz.Check {
	path := pick(r, "/api/v1/tickets", "/api/v1/tickets/42", "/api/v1/tickets/41", "/api/v1/tickets/open", "/api/v1/x/mine", "/api/v1/tickets/mine",
		"/api/v1/%74ickets", "/api//tickets", "/nowhere", "/")
	c := exampleCheck(pick(r, "GET", "GET", "POST", "PUT", ""), path)
	c.Action = pick(r, "", "", "tickets:read", "tickets:nothing")
	if c.Method == "" {
		c.Path, c.Segments, c.Ambiguous = "", nil, false
	}
	c.Environment = pick(r, "", "", authz.EnvironmentLive)
	c.Caller.Environments = slices.Clone(pick(r, []authz.Environment{"live", "test"}, []authz.Environment{"live"}, nil))
	c.Resource = pick(r, authz.Resource{}, authz.Resource{}, authz.Resource{Type: "ticket", ID: "42"}, authz.Resource{Organization: "other"}, authz.Resource{ID: "x"})
	c.ClientIP = pick(r, netip.Addr{}, netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::1"))
	c.Browser, c.Stale = r.IntN(5) == 0, r.IntN(8) == 0
	return c
}
