package policy

import (
	"os"
	"regexp"
	"strings"
	"testing"
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
	active, edits := candidate(t, nil), map[string]string{}
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
		if r := (Trial{Candidate: candidate(t, edits), Active: active, CoverageFloor: 95}).Try(t.Context()); !r.Passed() {
			t.Errorf("after the edit of %s: %v", name, r.Problems)
		}
	}
	if n < 6 {
		t.Errorf("the guide has %d edits", n)
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
