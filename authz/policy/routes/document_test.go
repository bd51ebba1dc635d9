package routes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
)

// shown is a route in one line.
func shown(all []Route) []string {
	lines := make([]string, len(all))
	for i, r := range all {
		lines[i] = r.Method + " " + r.Template + " " + list(r.Scopes)
	}
	return lines
}

func example(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../../testdata/openapi", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRead_WhatOperationsNeedIsReadOfADocument(t *testing.T) {
	d, err := Read("billing.yaml", example(t, "billing.yaml"), Options{Skip: []string{"GET /healthz"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"GET /api/v1/customers/{customer_id}/invoices invoices:read",
		"POST /api/v1/customers/{customer_id}/invoices customers:read, invoices:write",
		"GET /api/v1/customers/{customer_id} customers:read",
		"GET /api/v1/reports/latest invoices:read",
	}
	if got := shown(d.Routes); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if want := []string{"GET /customers/{customerId}/invoices/{invoiceID}.pdf", "POST /reports:run", "GET /healthz"}; !slices.Equal(d.Skipped, want) {
		t.Errorf("left out: %q", d.Skipped)
	}
	if d.Descriptions["invoices:read"] != "List and view invoices." || d.Routes[0].Line != 20 {
		t.Errorf("%q, line %d", d.Descriptions, d.Routes[0].Line)
	}
}

func TestRead_WhatADocumentDoesNotSayIsSaidByOptions(t *testing.T) {
	base := "/v2"
	d, err := Read("orders.json", example(t, "orders.json"), Options{
		ScopeMap: map[string]authz.Scope{"read_orders": "orders:read", "write_orders": "orders:write"}, DefaultScope: "orders:admin",
		Skip: []string{"GET /ping"}, BasePath: &base,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"GET /v2/orders orders:read", "POST /v2/orders orders:write",
		"DELETE /v2/orders/{order_id} orders:admin", "GET /v2/orders/{order_id} orders:read",
	}
	if got := shown(d.Routes); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// document is one with these paths, and what else stands at its top.
func document(paths string, more ...string) string {
	return "openapi: 3.1.0\ninfo: {title: t, version: '1'}\n" + strings.Join(more, "") + "paths:\n" + paths
}

// operation is one that needs a scope.
func operation(path string) string {
	return "  " + path + ":\n    get: {security: [{k: [a:b]}]}\n"
}

// Nothing is guessed: what the catalogue cannot say is refused with its line.
func TestRead_WhatCannotBeSaidIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no scope":                     {document("  /a:\n    get: {}\n"), "d.yaml:5: GET /a: it names no scope"},
		"no scope by choice":           {document("  /a:\n    get: {security: []}\n", "security: [{k: [a:b]}]\n"), "d.yaml:6: GET /a: it names no scope"},
		"an alternative":               {document("  /a:\n    get: {security: [{k: [a:b]}, {k: [c:d]}]}\n"), "the choice between a:b and c:d"},
		"a scope of another form":      {document("  /a:\n    get: {security: [{k: [read]}]}\n"), `"read" does not have the form resource:verb: say which one it is with --scope-map read=resource:verb`},
		"an extension of no form":      {document("  /a:\n    get: {x-keystile-scopes: {a: b}}\n"), "x-keystile-scopes is a scope or a list of scopes"},
		"an extension of nothing":      {document("  /a:\n    get: {x-keystile-scopes: [], security: [{k: [a:b]}]}\n"), "x-keystile-scopes is a scope or a list of scopes"},
		"an extension of numbers":      {document("  /a:\n    get: {x-keystile-scopes: [1]}\n"), "x-keystile-scopes is a scope or a list of scopes"},
		"skipped perhaps":              {document("  /a:\n    get: {x-keystile-skip: 'yes', security: [{k: [a:b]}]}\n"), "x-keystile-skip is true or false"},
		"several base paths":           {document(operation("/a"), "servers: [{url: 'https://x/v1'}, {url: 'https://x/v2'}]\n"), "several paths (/v1, /v2): choose one with --base-path"},
		"a base path that depends":     {document(operation("/a"), "servers: [{url: 'https://x/{v}', variables: {v: {default: v1, enum: [v1, v2]}}}]\n"), "depends on {v}"},
		"an unknown variable":          {document(operation("/a"), "servers: [{url: 'https://x/{v}'}]\n"), "cannot be read"},
		"a relative server":            {document(operation("/a"), "servers: [{url: 'v1'}]\n"), "relative to the document's"},
		"a variable in part":           {document(operation("/a/{b}.pdf")), `"{b}.pdf" is a variable in part`},
		"a variable and a verb":        {document(operation("/a/{b}:run")), "a variable in part"},
		"several segments":             {document(operation("'/a/{b+}'")), "stands for several segments"},
		"a slash at the end":           {document(operation("/a/")), "denied as ambiguous"},
		"an empty segment":             {document(operation("/a//b")), "other characters"},
		"dots":                         {document(operation("/a/../b")), "other characters"},
		"other characters":             {document(operation("/a/b;c")), "other characters"},
		"an encoded slash":             {document(operation("/a%2Fb")), "other characters"},
		"a query":                      {document(operation("'/a?b=c'")), "neither a query nor a fragment"},
		"HEAD needs something else":    {document("  /a:\n    get: {security: [{k: [a:b]}]}\n    head: {security: [{k: [c:d]}]}\n"), "HEAD /a matches the same requests as GET /a and needs other scopes"},
		"the same path twice":          {document(operation("/a/{b}") + "  /a/{c}:\n    get: {security: [{k: [c:d]}]}\n"), "GET /a/{c} matches the same requests as GET /a/{b}"},
		"no operation":                 {document("  {}\n"), "has no operations"},
		"Swagger":                      {"swagger: '2.0'\ninfo: {title: t, version: '1'}\npaths: {}\n", "no OpenAPI 3.0 or 3.1 document"},
		"nothing":                      {"", "d.yaml: "},
		"a list":                       {"- 1\n", "d.yaml: "},
		"no YAML":                      {"openapi: [\n", "d.yaml: "},
		"a binary":                     {"\x00\x01\xff", "d.yaml: "},
		"wrong types":                  {"openapi: 3.1.0\npaths: [1, 2]\n", "d.yaml: "},
		"another file":                 {document("  /a: {$ref: 'other.yaml#/a'}\n"), "must be bundled into one"},
		"a file of the machine":        {document("  /a: {$ref: '/etc/passwd'}\n"), "must be bundled into one"},
		"a place in the network":       {document("  /a: {$ref: 'http://127.0.0.1:1/a'}\n"), "must be bundled into one"},
		"a reference to nothing":       {document("  /a: {$ref: '#/components/pathItems/a'}\n"), "d.yaml: "},
		"a second document":            {document(operation("/a")) + "---\n" + document(operation("/b")), "more than one document"},
		"a method of no form":          {document(operation("/a") + "    PUT: {security: [{k: [c:d]}]}\n"), `/a: "PUT" is no method of OpenAPI`},
		"an unknown method":            {document(operation("/a") + "    propfind: {security: [{k: [c:d]}]}\n"), `/a: "propfind" is no method of OpenAPI`},
		"an empty operation":           {document(operation("/a") + "    put:\n"), "d.yaml:6: /a: put is empty"},
		"beside a reference":           {document("  /a: {$ref: '#/components/pathItems/a', get: {security: [{k: [a:b]}]}}\n") + "components: {pathItems: {a: {get: {security: [{k: [c:d]}]}}}}\n", "d.yaml:4: /a: get stands beside $ref"},
		"an operation elsewhere":       {document("  /a:\n    get: {$ref: '#/x-a', security: [{k: [a:b]}]}\n"), `GET /a: "$ref" means nothing here`},
		"a misspelled extension":       {document("  /a:\n    get: {x-keystile-scope: c:d, security: [{k: [a:b]}]}\n"), `d.yaml:5: GET /a: "x-keystile-scope" means nothing here`},
		"an extension in another case": {document("  /a:\n    get: {X-Keystile-Scopes: c:d, security: [{k: [a:b]}]}\n"), `"X-Keystile-Scopes" means nothing here`},
		"an extension for everything":  {document(operation("/a"), "x-keystile-scopes: c:d\n"), `the document: "x-keystile-scopes" means nothing here`},
		"an extension for all paths":   {document(operation("/a") + "  x-keystile-scopes: c:d\n"), `paths: "x-keystile-scopes" means nothing here`},
		"security in another case":     {document("  /a:\n    get: {security: [{k: [a:b]}], Security: [{k: [c:d]}]}\n"), `GET /a: "Security" means nothing here`},
		"paths in another case":        {document(operation("/a")) + "Paths: {/b: {get: {}}}\n", `the document: "Paths" means nothing here`},
		"JSON with a path twice":       {`{"openapi": "3.1.0", "paths": {"/a": {"get": {"security": [{"k": ["a:b"]}]}}, "/a": {}}}`, `duplicate object member name "/a"`},
		"JSON with scopes twice":       {`{"openapi": "3.1.0", "paths": {"/a": {"get": {"x-keystile-scopes": "c:d", "x-keystile-scopes": "a:b"}}}}`, "duplicate object member name"},
		"JSON and more":                {`{"openapi": "3.1.0", "paths": {"/a": {"get": {"security": [{"k": ["a:b"]}]}}}} {}`, "more than one document"},
		"a base path with a slash":     {document(operation("/a"), "servers: [{url: 'https://x/v%2F1'}]\n"), "other characters"},
		"a base path encoded twice":    {document(operation("/a"), "servers: [{url: 'https://x/%2561'}]\n"), "other characters"},
		"too large":                    {document(operation("/a")) + strings.Repeat("#", MaxDocument), "more than 8 MiB"},
		"an operation to skip, but no": {document(operation("/a")), "there is no operation GET /b to skip"},
	} {
		o := Options{}
		if strings.Contains(c.want, "to skip") {
			o.Skip = []string{"GET /b"}
		}
		d, err := Read("d.yaml", []byte(c.text), o)
		var problems Error
		if d != nil || !errors.As(err, &problems) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; wanted %q", name, err, c.want)
		}
	}
}

func TestRead_AllProblemsAreToldAtOnce(t *testing.T) {
	_, err := Read("d.yaml", []byte(document("  /a:\n    get: {}\n    post: {}\n"+operation("/b/"))), Options{})
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], "d.yaml:5: GET /a: ") || !strings.HasPrefix(lines[1], "d.yaml:6: POST /a: ") {
		t.Errorf("%q", lines)
	}
}

func TestRead_OperationsAreBounded(t *testing.T) {
	var paths strings.Builder
	for i := range MaxRoutes + 1 {
		fmt.Fprintf(&paths, "  /a%d: {get: {security: [{k: [a:b]}]}}\n", i)
	}
	if _, err := Read("d.yaml", []byte(document(paths.String())), Options{}); err == nil || !strings.Contains(err.Error(), "more than 10000 operations") {
		t.Error(err)
	}
}

// The nearest server counts, and what has no path has none.
func TestRead_BasePathsAreOfTheNearestServer(t *testing.T) {
	servers := func(url string) string { return "servers: [{url: '" + url + "'}]" }
	for name, c := range map[string]struct{ text, want string }{
		"none":            {document(operation("/a")), "/a"},
		"the document's":  {document(operation("/a"), servers("https://x/v1/")+"\n"), "/v1/a"},
		"a relative one":  {document(operation("/a"), servers("/v1")+"\n"), "/v1/a"},
		"the path's":      {document("  /a:\n    "+servers("https://x/v2")+"\n    get: {security: [{k: [a:b]}]}\n", servers("https://x/v1")+"\n"), "/v2/a"},
		"the operation's": {document("  /a:\n    get: {security: [{k: [a:b]}], "+servers("https://x")+"}\n", servers("https://x/v1")+"\n"), "/a"},
		"a host's variable": {document(operation("/a"),
			"servers: [{url: 'https://{r}.x/v1', variables: {r: {default: eu, enum: [eu, us]}}}]\n"), "/v1/a"},
		"the root": {document(operation("/")), "/"},
	} {
		d, err := Read("d.yaml", []byte(c.text), Options{})
		if err != nil || d.Routes[0].Template != c.want {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(example(f, "billing.yaml"))
	f.Add(example(f, "orders.json"))
	f.Add([]byte(document(operation("/a/{b}"), "servers: [{url: 'https://x/{v}', variables: {v: {default: v1}}}]\n")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := Read("d.yaml", raw, Options{DefaultScope: "a:b"})
		if err != nil {
			return
		}
		for _, r := range d.Routes {
			if !soundTemplate.MatchString(r.Template) || len(r.Scopes) == 0 || slices.ContainsFunc(r.Scopes, func(s authz.Scope) bool { return !s.Valid() }) {
				t.Errorf("%+v", r)
			}
		}
	})
}
