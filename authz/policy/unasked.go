package policy

import (
	"errors"

	"github.com/supportstation/keystile/authz"
)

var errUnasked = errors.New("no decision looks at the rules of this package, so that they would deny nothing; " +
	"a rule's package is keystile.rules.NAME, with nothing below it")

// unasked are the packages among those of single rules that no entry point reaches: a rule that
// its author takes for being in force, and that is not.
func (s *Snapshot) unasked() []authz.PolicyProblem {
	w := newWalk(s)
	entrypoints := []string{checkEntrypoint, adminEntrypoint}
	if s.findings != nil {
		entrypoints = append(entrypoints, findingsEntrypoint)
	}
	for _, entrypoint := range entrypoints {
		w.entrypoint(entrypoint)
	}
	reached := map[string]bool{}
	for rule := range w.seen {
		reached[rule.Module.Package.Path.String()] = true
	}
	var problems []authz.PolicyProblem
	for _, m := range s.compiler.Modules {
		path := m.Package.Path
		if len(path) <= len(ownRules) || !path.HasPrefix(ownRules) || len(m.Rules) == 0 || reached[path.String()] {
			continue
		}
		problems = append(problems, problemsOf(authz.StageLoad, atLocation(m.Package.Location, errUnasked))...)
	}
	return problems
}
