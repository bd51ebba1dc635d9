package policy

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz/policy/routes"
)

var (
	fence    = regexp.MustCompile("(?s)```(diff|rego)\n(.*?)```")
	fileLine = regexp.MustCompile(`^(?:# )?--- (\S+)\n`)
)

// The guide for whoever edits policies: every edit in it is applied to the shipped policy, by
// itself and with all before it, and passes the gate against it.
func TestGuide_EachEditPassesAsItStands(t *testing.T) {
	raw, err := os.ReadFile("../../policies/README.md")
	if err != nil {
		t.Fatal(err)
	}
	active, edits := mustRead(t, with(t, nil)), map[string]string{}
	files := active.Files()
	n := 0
	for _, block := range fence.FindAllStringSubmatch(string(raw), -1) {
		kind, text := block[1], block[2]
		named := fileLine.FindStringSubmatch(text)
		if named == nil {
			t.Fatalf("a block does not name its file:\n%s", text)
		}
		name, body := named[1], text[len(named[0]):]
		n++
		if kind == "rego" {
			files[name] = body
		} else {
			files[name] = patched(t, name, files[name], body)
		}
		edits[name] = files[name]
		// A new rule comes with its test in the next block.
		if kind == "rego" && !strings.HasSuffix(name, "_test.rego") {
			continue
		}
		if r := (Trial{Candidate: mustRead(t, with(t, edits)), Active: active, CoverageFloor: 95}).Try(t.Context()); !r.Passed() {
			t.Errorf("after the edit of %s: %v", name, r.Problems)
		}
	}
	if n < 7 {
		t.Errorf("the guide has %d edits", n)
	}
}

// What the guide shows of an import is what an import does.
func TestGuide_TheDocumentIsImportedAsItShows(t *testing.T) {
	raw, err := os.ReadFile("../../policies/README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```yaml\n(.*?)```\n```diff\n--- (\\S+)\n(.*?)```").FindStringSubmatch(string(raw))
	if found == nil {
		t.Fatal("the guide has no document, and what comes of it")
	}
	document, name := found[1], found[2]
	catalogue := candidate(t, nil).Files()[name]
	d, err := routes.Read("attachments.yaml", []byte(document), routes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	entered, err := routes.Enter(name, []byte(catalogue), d)
	if err != nil || string(entered.Catalogue) != patched(t, name, catalogue, found[3]) {
		t.Fatalf("it is imported as\n%s\n%v", entered.Catalogue, err)
	}
	test, err := routes.Test("attachments.yaml", entered.All)
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]string{name: string(entered.Catalogue), "keystile/catalog/" + routes.TestFile("attachments.yaml"): string(test)}
	if r := (Trial{Candidate: candidate(t, written), Active: candidate(t, nil), CoverageFloor: 100}).Try(t.Context()); !r.Passed() {
		t.Errorf("%v", r.Problems)
	}
	// A route that is lost, or needs less, fails there.
	for _, from := range []string{"{ticket_id}/attachments: {scopes: [tickets:write]}", "[tickets:write]}\n  PATCH:"} {
		lost := strings.Replace(string(entered.Catalogue), from, strings.Replace(strings.Replace(from, "attachments", "attached", 1), "write", "read", 1), 1)
		written[name] = lost
		if r := (Trial{Candidate: candidate(t, written)}).Try(t.Context()); r.Passed() {
			t.Errorf("the test passes with\n%s", lost)
		}
	}
}

// patched applies a diff whose lines stand together exactly once in the file.
func patched(t *testing.T, name, text, diff string) string {
	t.Helper()
	var before, after strings.Builder
	for line := range strings.Lines(diff) {
		switch line[0] {
		case '+':
			after.WriteString(line[1:])
		case '-':
			before.WriteString(line[1:])
		default:
			before.WriteString(line[1:])
			after.WriteString(line[1:])
		}
	}
	if strings.Count(text, before.String()) != 1 {
		t.Fatalf("%s has these lines %d times, not once:\n%s", name, strings.Count(text, before.String()), before.String())
	}
	return strings.Replace(text, before.String(), after.String(), 1)
}
