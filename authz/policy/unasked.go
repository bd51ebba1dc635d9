package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"
	"go.yaml.in/yaml/v3"

	"github.com/supportstation/keystile/authz"
)

var (
	errUnasked = errors.New("no decision looks at the rules of this package, so that they would deny nothing; " +
		"a rule's package is keystile.rules.NAME, with nothing below it")
	errUnused = errors.New("no decision looks at the rules of this package, so that they would decide nothing; " +
		"a deny rule is a package keystile.rules.NAME in a folder keystile/rules/NAME, and what tests alone use stands in a file *_test.rego with a package *_test")
)

// rulesFolder is where the folders of deny rules are.
const rulesFolder = "keystile/rules/"

// unaskedOf are the packages that no entry point reaches, and those that stand where the folder
// of another rule is: rules that their author takes for being in force, and that are not.
//
// It is asked of a policy as it was written: constants that are folded lead nowhere any more.
func (s *Snapshot) unaskedOf(modules map[string]*ast.Module) []authz.PolicyProblem {
	w := newWalk(s)
	for _, entrypoint := range []string{checkEntrypoint, adminEntrypoint, findingsEntrypoint, maskEntrypoint, dropEntrypoint} {
		w.entrypoint(entrypoint)
	}
	reached := map[string]bool{}
	for rule := range w.seen {
		reached[rule.Module.Package.Path.String()] = true
	}
	var problems []authz.PolicyProblem
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		m := modules[name]
		own := m.Package.Path
		var err error
		switch wanted := packageOfFolder(name); {
		case len(m.Rules) == 0:
		case wanted != nil && !own.HasPrefix(wanted):
			err = fmt.Errorf("the package %s is not that of its folder, where the rule %s is looked for; write: package %s",
				packageName(own), path.Base(ruleFolder(name)), packageName(wanted))
		case reached[own.String()]:
		case len(own) > len(ownRules) && own.HasPrefix(ownRules):
			err = errUnasked
		default:
			err = errUnused
		}
		if err != nil {
			problems = append(problems, problemsOf(authz.StageLoad, atLocation(m.Package.Location, err))...)
		}
	}
	return problems
}

// ruleFolder is the folder of a rule that a file stands in, at any depth, such as
// keystile/rules/browser_use; "" for a file elsewhere.
func ruleFolder(name string) string {
	below, ok := strings.CutPrefix(name, rulesFolder)
	rule, _, inFolder := strings.Cut(below, "/")
	if !ok || !inFolder {
		return ""
	}
	return rulesFolder + rule
}

// packageOfFolder is the package that a file in the folder of a rule has; nil elsewhere.
func packageOfFolder(name string) ast.Ref {
	folder := ruleFolder(name)
	if folder == "" {
		return nil
	}
	return append(slices.Clone(ownRules), ast.StringTerm(path.Base(folder)))
}

// packageName is how a package is written in its file.
func packageName(p ast.Ref) string { return strings.TrimPrefix(p.String(), "data.") }

// switchesOf are the rules whose `enabled` is no boolean. `enabled == true` is then never so,
// and the rule is off, though its author has written "yes".
func switchesOf(files []file) []authz.PolicyProblem {
	var problems []authz.PolicyProblem
	for _, f := range files {
		if f.isRego() {
			continue
		}
		for _, rule := range slices.Sorted(maps.Keys(rulesData(f))) {
			settings, _ := rulesData(f)[rule].(map[string]any)
			value, ok := settings["enabled"]
			if _, is := value.(bool); !ok || is {
				continue
			}
			err := fmt.Errorf("enabled of the rule %s is %s; write enabled: true or enabled: false, without quotes", rule, typed(value))
			problems = append(problems, problemsOf(authz.StageLoad, at(f.path, lineOf(f, rule, "enabled"), err))...)
		}
	}
	return problems
}

// rulesData is what a data file says of each rule, by its name.
func rulesData(f file) map[string]any {
	var value map[string]any
	root := map[string]any{}
	if util.Unmarshal(f.content, &value) != nil || place(root, path.Dir(f.path), value) != nil {
		return nil // which parseData has refused
	}
	keystile, _ := root["keystile"].(map[string]any)
	rules, _ := keystile["rules"].(map[string]any)
	return rules
}

// typed is a value with its type, as a person says it.
func typed(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case string:
		return fmt.Sprintf("the string %q", shortened(v))
	case json.Number:
		return "the number " + v.String()
	case []any:
		return "a list"
	}
	return "an object"
}

// shortened keeps a message readable.
func shortened(s string) string {
	const most = 40
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// lineOf is the line of what a data file says of a rule under key; 0 when it is not found.
func lineOf(f file, rule, key string) int {
	var document yaml.Node
	if yaml.Unmarshal(f.content, &document) != nil || len(document.Content) != 1 {
		return 0
	}
	above := strings.Split(path.Dir(f.path), "/")
	keys := []string{"keystile", "rules", rule, key}
	node := document.Content[0]
	for i, wanted := range keys {
		if i < len(above) && above[i] == wanted {
			continue // its folder says so
		}
		at := slices.IndexFunc(node.Content, func(n *yaml.Node) bool { return n.Value == wanted })
		if node.Kind != yaml.MappingNode || at < 0 || at+1 >= len(node.Content) {
			return 0
		}
		if i == len(keys)-1 {
			return node.Content[at].Line
		}
		node = node.Content[at+1]
	}
	return 0
}
