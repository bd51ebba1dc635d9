package policy

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of reason codes into policies/README.md")

var (
	reasonText = regexp.MustCompile(`(?s)^([a-z][a-z0-9_]*)\. (.*)$`)
	reasonCode = regexp.MustCompile(`"code": "([a-z0-9_]+)"`)
)

const (
	guide       = "../../policies/README.md"
	tableBegins = "<!-- reasons: go test ./authz/policy -run Reasons -update -->\n"
	tableEnds   = "<!-- end of reasons -->\n"
)

// The table of reason codes is what the rules' METADATA says, and every code has its METADATA.
func TestReasons_EveryCodeIsDocumentedByItsMetadata(t *testing.T) {
	source := candidate(t, nil)
	p, err := source.parse()
	if err != nil {
		t.Fatal(err)
	}
	documented, rows := map[string]bool{}, []string{}
	for _, m := range p.live {
		for _, a := range m.Annotations {
			if found := reasonText.FindStringSubmatch(strings.TrimSpace(a.Description)); found != nil && a.Title != "" {
				documented[found[1]] = true
				rows = append(rows, fmt.Sprintf("| %#q | %s | %s |", found[1], a.Title, oneLine(found[2])))
			}
		}
	}
	slices.Sort(rows)
	for name, text := range source.Files() {
		for _, found := range reasonCode.FindAllStringSubmatch(text, -1) {
			if !strings.HasSuffix(name, "_test.rego") && !documented[found[1]] {
				t.Errorf("%s gives the reason %s, which no METADATA describes as \"%s. …\"", name, found[1], found[1])
			}
		}
	}
	table := tableBegins + "| code | rule | when |\n|---|---|---|\n" + strings.Join(rows, "\n") + "\n" + tableEnds
	raw, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), tableBegins)
	_, after, ends := strings.Cut(rest, tableEnds)
	if !ok || !ends {
		t.Fatal("the guide has no place for the table")
	}
	if want := before + table + after; *update && want != string(raw) {
		if err := os.WriteFile(guide, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	} else if want != string(raw) {
		t.Errorf("the table in policies/README.md is not what METADATA says; run go test ./authz/policy -run Reasons -update. Wanted:\n%s", table)
	}
}
