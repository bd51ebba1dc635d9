package routes

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/supportstation/keystile/authz"
)

func shippedCatalogue(t testing.TB) []byte {
	t.Helper()
	raw, err := os.ReadFile("../../../policies/keystile/catalog/data.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// of is a document of these routes, each METHOD TEMPLATE SCOPES.
func of(lines ...string) *Document {
	d := &Document{Name: "d.yaml", Descriptions: map[authz.Scope]string{"invoices:read": "List invoices."}}
	for i, line := range lines {
		parts := strings.Fields(line)
		r := Route{Method: parts[0], Template: parts[1], From: parts[0] + " " + parts[1], Line: i + 1}
		for _, s := range parts[2:] {
			r.Scopes = append(r.Scopes, authz.Scope(s))
		}
		d.Routes = append(d.Routes, r)
	}
	return d
}

// added are the lines that an edit of a text has put into it; nothing else may be changed.
func addedLines(t *testing.T, before, after string) []string {
	t.Helper()
	var added []string
	rest := strings.SplitAfter(before, "\n")
	for line := range strings.Lines(after) {
		if len(rest) > 0 && strings.TrimSuffix(rest[0], "\n") == strings.TrimSuffix(line, "\n") {
			rest = rest[1:]
			continue
		}
		added = append(added, line)
	}
	if strings.Join(rest, "") != "" {
		t.Errorf("lines are changed or gone: %q", rest)
	}
	return added
}

func TestEnter_RoutesAreAddedLineByLine(t *testing.T) {
	before := string(shippedCatalogue(t))
	entered, err := Enter("data.yaml", []byte(before), of(
		"GET /api/v1/tickets/{ticket_id} tickets:read", // there already, by another name
		"GET /api/v1/tickets/{ticket_id}/messages tickets:read",
		"POST /api/v1/tickets/{ticket_id}/close customers:read tickets:write",
		"GET /api/v1/customers/{id} customers:read",
		"GET /api/v1/tickets/open tickets:read",
		"PUT /api/v1/tickets/{id} tickets:write",
		"GET / tickets:read",
	))
	if err != nil {
		t.Fatal(err)
	}
	want := `    "0":
      /: {scopes: [tickets:read]}
      /api/v1/tickets/open: {scopes: [tickets:read]}
    "5":
      /api/v1/tickets/{ticket_id}/messages: {scopes: [tickets:read]}
      /api/v1/tickets/{ticket_id}/close: {scopes: [customers:read, tickets:write]}
  PUT:
    "4":
      /api/v1/tickets/{id}: {scopes: [tickets:write]}
`
	if got := strings.Join(addedLines(t, before, string(entered.Catalogue)), ""); got != want {
		t.Errorf("added:\n%s", got)
	}
	if len(entered.Added) != 5 || len(entered.All) != 7 || entered.All[0].Template != "/api/v1/tickets/{id}" {
		t.Errorf("%q, %q", shown(entered.Added), shown(entered.All))
	}
	again, err := Enter("data.yaml", entered.Catalogue, of(shown(entered.Added)[0]))
	if err != nil || len(again.Added) != 0 || !bytes.Equal(again.Catalogue, entered.Catalogue) {
		t.Errorf("again: %q, %v", shown(again.Added), err)
	}
}

// Whoever writes a catalogue by hand finds it as it was, whatever it looks like.
func TestEnter_CommentsAndOrderStay(t *testing.T) {
	for name, c := range map[string]struct{ before, after string }{
		"comments of what comes next": {
			"scopes: {a:b: {}}\nroutes:\n  GET:\n    \"1\":\n      /x: {scopes: [a:b]} # the first\n      # of the same\n\n    # of two\n    \"2\":\n      /x/y: {scopes: [a:b]}\n\n# behind\nplans: {}\n",
			"scopes: {a:b: {}}\nroutes:\n  GET:\n    \"1\":\n      /x: {scopes: [a:b]} # the first\n      # of the same\n      /n: {scopes: [a:b]}\n\n    # of two\n    \"2\":\n      /x/y: {scopes: [a:b]}\n\n# behind\nplans: {}\n",
		},
		"entries of several lines": {
			"routes:\n  GET:\n    \"1\":\n      /x: {\n        scopes: [a:b],\n      }\nscopes: {a:b: {}}\n",
			"routes:\n  GET:\n    \"1\":\n      /x: {\n        scopes: [a:b],\n      }\n      /n: {scopes: [a:b]}\nscopes: {a:b: {}}\n",
		},
		"deep, and at the end without a line break": {
			"scopes: {a:b: {}}\nroutes:\n    GET:\n        \"1\":\n            /x:\n                scopes:\n                - a:b",
			"scopes: {a:b: {}}\nroutes:\n    GET:\n        \"1\":\n            /x:\n                scopes:\n                - a:b\n            /n: {scopes: [a:b]}\n",
		},
		"a level that is empty": {
			"scopes: {a:b: {}}\nroutes:\n  GET:\n  POST:\n    \"1\":\n      /x: {scopes: [a:b]}\n",
			"scopes: {a:b: {}}\nroutes:\n  GET:\n    \"1\":\n      /n: {scopes: [a:b]}\n  POST:\n    \"1\":\n      /x: {scopes: [a:b]}\n",
		},
		"no routes at all": {
			"scopes: {a:b: {}}\nroutes:\n\n# limits\nplans: {}\n",
			"scopes: {a:b: {}}\nroutes:\n  GET:\n    \"1\":\n      /n: {scopes: [a:b]}\n\n# limits\nplans: {}\n",
		},
		"another method": {
			"scopes: {a:b: {}}\nroutes:\n  PUT:\n    \"1\":\n      /x: {scopes: [a:b]}\n  # nothing more\nplans: {}\n",
			"scopes: {a:b: {}}\nroutes:\n  PUT:\n    \"1\":\n      /x: {scopes: [a:b]}\n  # nothing more\n  GET:\n    \"1\":\n      /n: {scopes: [a:b]}\nplans: {}\n",
		},
		"before larger ones": {
			"scopes: {a:b: {}}\nroutes:\n  GET:\n    # of two\n    \"2\":\n      /x/y: {scopes: [a:b]}\n    \"10\": {}\n",
			"scopes: {a:b: {}}\nroutes:\n  GET:\n    \"1\":\n      /n: {scopes: [a:b]}\n    # of two\n    \"2\":\n      /x/y: {scopes: [a:b]}\n    \"10\": {}\n",
		},
		"lines as Windows ends them": {
			"scopes: {a:b: {}}\r\nroutes:\r\n  GET:\r\n    \"1\":\r\n      /x: {scopes: [a:b]}\r\n",
			"scopes: {a:b: {}}\r\nroutes:\r\n  GET:\r\n    \"1\":\r\n      /x: {scopes: [a:b]}\r\n      /n: {scopes: [a:b]}\r\n",
		},
	} {
		entered, err := Enter("data.yaml", []byte(c.before), of("GET /n a:b"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if string(entered.Catalogue) != c.after {
			t.Errorf("%s:\n%s", name, entered.Catalogue)
		}
	}
}

func TestEnter_WhatContradictsTheCatalogueIsRefused(t *testing.T) {
	shipped := string(shippedCatalogue(t))
	const some = "scopes: {a:b: {}}\n"
	for name, c := range map[string]struct {
		before string
		d      *Document
		want   string
	}{
		"another scope": {
			shipped, of("GET /api/v1/tickets/{x} tickets:write"),
			"d.yaml:1: GET /api/v1/tickets/{x}: it needs tickets:write, and tickets:read in the catalogue (data.yaml:22); change one of them",
		},
		"fewer scopes": {
			some + "routes:\n  GET:\n    \"1\":\n      /x: {scopes: [a:b, c:d]}\n", of("GET /x a:b"), "it needs a:b, and a:b, c:d in the catalogue",
		},
		"a route without scopes": {some + "routes:\n  GET:\n    \"1\":\n      /x: {}\n", of("GET /x a:b"), "it needs a:b, and no scope in the catalogue"},
		"an unknown scope": {
			shipped, of("GET /api/v1/invoices invoices:read"),
			`the scope invoices:read is not in the catalogue; add it to scopes in data.yaml ("invoices:read: {description: List invoices.}"), or say which one it is with --scope-map`,
		},
		"an unknown scope without words": {shipped, of("GET /x none:such"), `("none:such: {description: What it permits.}")`},
		"mistaken for one that is there": {
			shipped, of("GET /api/{version}/tickets/open tickets:read"),
			"/api/{version}/tickets/open and /api/v1/tickets/{id} match the same paths, and neither is the narrower one",
		},
		"mistaken for another new one": {shipped, of("GET /{a}/x tickets:read", "GET /y/{b} tickets:read"), "d.yaml:2: GET /y/{b}: /y/{b} and /{a}/x match the same paths"},
		"routes in braces":             {some + "routes: {GET: {}}\n", of("GET /x a:b"), "data.yaml: line 2: routes is not written a line each"},
		"a method in braces":           {some + "routes:\n  GET: {\"1\": {}}\n", of("GET /x a:b"), "data.yaml: line 3: routes is not written a line each"},
		"an alias":                     {some + "x: &x\n  \"1\": {}\nroutes:\n  GET: *x\n", of("GET /x a:b"), "not written a line each"},
		"an anchor":                    {some + "routes:\n  GET: &x\n    \"1\":\n      /y: {scopes: [a:b]}\n  POST: *x\n", of("GET /x a:b"), "not written a line each"},
		"no routes":                    {some, of("GET /x a:b"), "it has no routes"},
		"a number that is one":         {some + "routes:\n  GET:\n    1:\n      /y: {scopes: [a:b]}\n", of("GET /x a:b"), "too unusual to be edited"},
		"a key twice":                  {some + "routes:\n  GET:\n  GET:\n", of("GET /x a:b"), "data.yaml: it cannot be read as a catalogue"},
		"a list":                       {"- 1\n", of("GET /x a:b"), "data.yaml: it cannot be read as a catalogue"},
		"several documents":            {some + "routes:\n---\na: b\n", of("GET /x a:b"), "more than one document"},
		"nothing":                      {"", of("GET /x a:b"), "data.yaml: "},
		"no YAML":                      {"a: [", of("GET /x a:b"), "data.yaml: "},
		"too large":                    {some + strings.Repeat("#", MaxCatalogue), of("GET /x a:b"), "more than 8 MiB"},
	} {
		entered, err := Enter("data.yaml", []byte(c.before), c.d)
		var problems Error
		if !errors.As(err, &problems) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; wanted %q", name, err, c.want)
		}
		if entered != nil && len(entered.Catalogue) > 0 && string(entered.Catalogue) != c.before {
			t.Errorf("%s: it was entered all the same", name)
		}
	}
	_, err := Enter("data.yaml", []byte(shipped), of("GET /a x:y", "GET /b x:y", "GET /c x:z", "GET /api/v1/tickets tickets:write"))
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 3 {
		t.Errorf("each problem is told once: %q", lines)
	}
}

func TestTest_IsOfADocumentAndOfNothingElse(t *testing.T) {
	for document, want := range map[string]string{
		"openapi.yaml": "openapi_routes_test.rego", "dir/Billing API.v2.json": "billing_api_v2_routes_test.rego", `c:\x\a.yml`: "a_routes_test.rego",
		"2.yaml": "document_2_routes_test.rego", ".yaml": "yaml_routes_test.rego", "é.yaml": "document__routes_test.rego",
	} {
		if got := TestFile(document); got != want {
			t.Errorf("%s: %s", document, got)
		}
	}
	text, err := Test("dir/openapi.yaml", of("GET /a/{x} c:d a:b", "GET /a a:b", "POST /a a:b", "GET /b/{x} a:b").Routes)
	if err != nil {
		t.Fatal(err)
	}
	want := `openapi_routes := {
	"GET": {
		"1": {
			"/a": ["a:b"],
		},
		"2": {
			"/a/{x}": ["c:d", "a:b"],
			"/b/{x}": ["a:b"],
		},
	},
	"POST": {
		"1": {
			"/a": ["a:b"],
		},
	},
}
`
	if !strings.HasSuffix(string(text), want) || strings.Contains(string(text), "dir/") {
		t.Errorf("it is\n%s", text)
	}
	if empty, err := Test("a.yaml", nil); err != nil || !strings.Contains(string(empty), "a_routes := {}") {
		t.Errorf("%s, %v", empty, err)
	}
}

// Two documents may have one name: what the first one held must not go without a word.
func TestLost_CountsWhatATestNoLongerHolds(t *testing.T) {
	test := func(lines ...string) []byte {
		text, err := Test("openapi.yaml", of(lines...).Routes)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	before := test("GET /a a:b", "POST /a a:b", "GET /b/{c} a:b c:d")
	for name, c := range map[string]struct {
		after []byte
		want  int
	}{
		"the same":       {before, 0},
		"more":           {test("GET /a a:b", "POST /a a:b", "GET /b/{c} a:b c:d", "GET /d a:b"), 0},
		"one less":       {test("GET /a a:b", "GET /b/{c} a:b c:d"), 1},
		"a scope less":   {test("GET /a a:b", "POST /a a:b", "GET /b/{c} a:b"), 1},
		"quite another":  {test("GET /x a:b"), 3},
		"nothing at all": {test(), 3},
	} {
		if got := Lost(before, c.after); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if got := Lost(nil, before); got != 0 {
		t.Errorf("of no test %d are lost", got)
	}
}

// Whatever the catalogue looks like: it is refused, or has what it had and the route, and a
// second time changes nothing.
func FuzzEnter(f *testing.F) {
	f.Add(shippedCatalogue(f))
	f.Add([]byte("scopes: {a:b: {}}\nroutes:\n  GET:\n    # x\n    \"2\":\n      /x/y: {scopes: [a:b]}\n"))
	f.Add([]byte("a: |\n  routes:\nscopes: {a:b: {}}\nroutes:\n  GET:\n    \"1\":\n      ? /x\n      : {scopes: [a:b]}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d := of("GET /n a:b", "GET /n/{m} a:b", "POST /n a:b")
		entered, err := Enter("data.yaml", raw, d)
		if err != nil {
			return
		}
		var c catalogue
		if err := yaml.Unmarshal(entered.Catalogue, &c); err != nil {
			t.Fatal(err)
		}
		for _, r := range entered.All {
			if e, ok := c.Routes[r.Method][strconv.Itoa(r.size())][r.Template]; ok && !slices.Equal(slices.Sorted(slices.Values(e.Scopes)), r.Scopes) {
				t.Errorf("%+v: %v", r, e.Scopes)
			}
		}
		again, err := Enter("data.yaml", entered.Catalogue, d)
		if err != nil || len(again.Added) != 0 || !bytes.Equal(again.Catalogue, entered.Catalogue) {
			t.Errorf("again: %v, %v", again, err)
		}
	})
}
