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

var update = flag.Bool("update", false, "write the tables of codes into policies/README.md")

var (
	reasonText = regexp.MustCompile(`(?s)^([a-z][a-z0-9_]*)\. (.*)$`)
	reasonCode = regexp.MustCompile(`"code": "([a-z0-9_]+)"`)
)

const (
	guide = "../../policies/README.md"
	// tables begin and end so, with the name of what they are of.
	tableBegins = "<!-- %s: go test ./authz/policy -run Reasons -update -->\n"
	tableEnds   = "<!-- end of %s -->\n"
)

// The tables of codes are what the rules' METADATA says, and every code has its METADATA.
func TestReasons_EveryCodeIsDocumentedByItsMetadata(t *testing.T) {
	source := candidate(t, nil)
	p, err := source.parse()
	if err != nil {
		t.Fatal(err)
	}
	documented, rows := map[string]bool{}, map[string][]string{}
	for _, m := range p.live {
		for _, a := range m.Annotations {
			if found := reasonText.FindStringSubmatch(strings.TrimSpace(a.Description)); found != nil && a.Title != "" {
				documented[found[1]] = true
				table := "reasons"
				if m.Package.Path.String() == "data.keystile.findings" {
					table = "findings"
				}
				rows[table] = append(rows[table], fmt.Sprintf("| %#q | %s | %s |", found[1], a.Title, oneLine(found[2])))
			}
		}
	}
	for name, text := range source.Files() {
		for _, found := range reasonCode.FindAllStringSubmatch(text, -1) {
			if !strings.HasSuffix(name, "_test.rego") && !documented[found[1]] {
				t.Errorf("%s gives the reason %s, which no METADATA describes as \"%s. …\"", name, found[1], found[1])
			}
		}
	}
	raw, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	want := string(raw)
	for table, lines := range rows {
		slices.Sort(lines)
		begins, ends := fmt.Sprintf(tableBegins, table), fmt.Sprintf(tableEnds, table)
		before, rest, ok := strings.Cut(want, begins)
		_, after, closed := strings.Cut(rest, ends)
		if !ok || !closed {
			t.Fatalf("the guide has no place for the table of %s", table)
		}
		want = before + begins + "| code | rule | when |\n|---|---|---|\n" + strings.Join(lines, "\n") + "\n" + ends + after
	}
	if *update && want != string(raw) {
		if err := os.WriteFile(guide, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	} else if want != string(raw) {
		t.Errorf("the tables in policies/README.md are not what METADATA says; run go test ./authz/policy -run Reasons -update. Wanted:\n%s", want)
	}
}
