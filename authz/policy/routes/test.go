package routes

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/format"
)

var notWord = regexp.MustCompile(`[^a-z0-9]+`)

// TestFile is the name of the test that belongs to a document, beside the catalogue.
func TestFile(document string) string { return slug(document) + "_routes_test.rego" }

// Lost is how many routes a test held that another in its place does not hold, or not to the
// same scopes.
func Lost(before, after []byte) int {
	held := map[string]int{}
	count := func(test []byte, by int) {
		for line := range strings.Lines(string(test)) {
			if line = strings.TrimSuffix(strings.TrimSpace(line), ","); strings.HasPrefix(line, `"/`) {
				held[line] += by
			}
		}
	}
	count(before, 1)
	count(after, -1)
	lost := 0
	for _, n := range held {
		lost += max(n, 0)
	}
	return lost
}

// slug is a document's name as a word of Rego.
func slug(document string) string {
	base := path.Base(strings.ReplaceAll(document, `\`, "/"))
	if i := strings.LastIndexByte(base, '.'); i > 0 {
		base = base[:i]
	}
	word := strings.Trim(notWord.ReplaceAllString(strings.ToLower(base), "_"), "_")
	if word == "" || word[0] < 'a' {
		word = "document_" + word
	}
	return word
}

// Test writes the test that holds a catalogue to a document: no route of it may be lost, or need
// less. Where it needs more, that is the operator's choice.
func Test(document string, all []Route) ([]byte, error) {
	word := slug(document)
	var text strings.Builder
	fmt.Fprintf(&text, "# Written by `keystile policy routes import`; the next import of the document writes it anew.\n"+
		"package keystile.catalog_test\n\nimport data.keystile.catalog\n\n"+
		"# No route that the document has is lost here, or needs less.\n"+
		"test_%[1]s_routes_need_their_scopes if {\n"+
		"\tevery method, sizes in %[1]s_routes {\n\t\tevery size, templates in sizes {\n\t\t\tevery template, scopes in templates {\n"+
		"\t\t\t\tneeded := {scope | some scope in catalog.routes[method][size][template].scopes}\n"+
		"\t\t\t\t{scope | some scope in scopes} - needed == set()\n\t\t\t}\n\t\t}\n\t}\n}\n\n%[1]s_routes := {\n", word)
	sorted := slices.SortedFunc(slices.Values(all), func(a, b Route) int {
		return slices.Compare([]string{a.Method, fmt.Sprintf("%03d", a.size()), a.Template}, []string{b.Method, fmt.Sprintf("%03d", b.size()), b.Template})
	})
	for i, r := range sorted {
		newMethod := i == 0 || sorted[i-1].Method != r.Method
		newSize := newMethod || sorted[i-1].size() != r.size()
		if newSize && i > 0 {
			text.WriteString("\t\t},\n")
		}
		if newMethod {
			if i > 0 {
				text.WriteString("\t},\n")
			}
			fmt.Fprintf(&text, "\t%q: {\n", r.Method)
		}
		if newSize {
			fmt.Fprintf(&text, "\t\t%q: {\n", strconv.Itoa(r.size()))
		}
		names := make([]string, len(r.Scopes))
		for i, s := range r.Scopes {
			names[i] = strconv.Quote(string(s))
		}
		fmt.Fprintf(&text, "\t\t\t%q: [%s],\n", r.Template, strings.Join(names, ", "))
	}
	if len(sorted) > 0 {
		text.WriteString("\t\t},\n\t},\n")
	}
	text.WriteString("}\n")
	out, err := format.Source(TestFile(document), []byte(text.String()))
	if err != nil {
		return nil, fmt.Errorf("write the test of the routes: %w", err)
	}
	return out, nil
}
