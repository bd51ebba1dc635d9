package policy

import (
	"errors"
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

var errUnasked = errors.New("no decision looks at the rules of this package, so that they would deny nothing; " +
	"a rule's package is keystile.rules.NAME, with nothing below it")

// unasked are the packages among those of single rules that no entry point reaches: a rule that
// its author takes for being in force, and that is not.
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
		path := m.Package.Path
		if len(path) <= len(ownRules) || !path.HasPrefix(ownRules) || len(m.Rules) == 0 || reached[path.String()] {
			continue
		}
		problems = append(problems, problemsOf(authz.StageLoad, atLocation(m.Package.Location, errUnasked))...)
	}
	return problems
}
