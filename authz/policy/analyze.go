package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

// Analyze walks what the entry points reach. It costs about as much as a hundred evaluations.
func (s *Snapshot) Analyze() []authz.PolicyAnalysis {
	entrypoints := []string{checkEntrypoint, adminEntrypoint}
	if s.findings != nil {
		entrypoints = append(entrypoints, findingsEntrypoint)
	}
	all := make([]authz.PolicyAnalysis, 0, len(entrypoints))
	for _, entrypoint := range entrypoints {
		w := newWalk(s)
		w.entrypoint(entrypoint)
		a := authz.PolicyAnalysis{
			Entrypoint: entrypoint, Rules: len(w.seen), Builtins: slices.Sorted(maps.Keys(w.builtins)), Nondeterministic: []string{},
			Reads: widest(w.reads), Data: widest(w.data),
		}
		for _, name := range a.Builtins {
			if b := ast.BuiltinMap[name]; b == nil || b.IsNondeterministic() {
				a.Nondeterministic = append(a.Nondeterministic, name)
			}
		}
		all = append(all, a)
	}
	return all
}

// walk is one walk over the rules that an entry point reaches.
type walk struct {
	s           *Snapshot
	seen        map[*ast.Rule]bool
	builtins    map[string]bool
	reads, data map[string]ast.Ref
}

func newWalk(s *Snapshot) *walk {
	return &walk{s: s, seen: map[*ast.Rule]bool{}, builtins: map[string]bool{}, reads: map[string]ast.Ref{}, data: map[string]ast.Ref{}}
}

// entrypoint walks all that an entry point reaches.
func (w *walk) entrypoint(name string) {
	for _, rule := range w.s.compiler.GetRulesExact(ast.MustParseRef(name)) {
		w.rule(rule)
	}
}

func (w *walk) rule(rule *ast.Rule) {
	if w.seen[rule] {
		return
	}
	w.seen[rule] = true
	w.look(rule)
	if rule.Else != nil { // a rule of its own to the graph, to which nothing there leads
		w.rule(rule.Else)
	}
	for dependency := range w.s.compiler.Graph.Dependencies(rule) {
		if next, ok := dependency.(*ast.Rule); ok {
			w.rule(next)
		}
	}
}

// look notes what one rule looks at by itself.
func (w *walk) look(rule *ast.Rule) {
	ast.WalkTerms(rule, func(t *ast.Term) bool {
		if t.Equal(ast.InputRootDocument) {
			w.reads["input"] = ast.InputRootRef // all of it
			return false
		}
		ref, ok := t.Value.(ast.Ref)
		if !ok {
			return false
		}
		switch {
		case ref[0].Equal(ast.InputRootDocument):
			prefix := ref.ConstantPrefix()
			w.reads[prefix.String()] = prefix
			// What indexes it is looked at by itself; the root is not all of the input here.
			for _, index := range ref[1:] {
				ast.WalkTerms(index, func(t *ast.Term) bool { w.term(t); return false })
			}
			return true
		case ref[0].Equal(ast.DefaultRootDocument):
			prefix := ref.ConstantPrefix()
			if len(w.s.compiler.GetRules(prefix)) == 0 {
				w.data[prefix.String()] = prefix
			}
		default:
			w.builtin(ref)
		}
		return false
	})
}

// term looks at a term inside of a reference into the input.
func (w *walk) term(t *ast.Term) {
	ref, ok := t.Value.(ast.Ref)
	if !ok {
		return
	}
	if ref[0].Equal(ast.InputRootDocument) {
		prefix := ref.ConstantPrefix()
		w.reads[prefix.String()] = prefix
		return
	}
	w.builtin(ref)
}

func (w *walk) builtin(ref ast.Ref) {
	name := strings.TrimPrefix(ref.String(), guardedPrefix)
	if ast.BuiltinMap[name] != nil {
		w.builtins[name] = true
	}
}

// widest leaves out what is below another one.
func widest(refs map[string]ast.Ref) []string {
	names := []string{}
	for name, ref := range refs {
		below := false
		for other, wider := range refs {
			below = below || other != name && len(wider) < len(ref) && ref.HasPrefix(wider)
		}
		if !below {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
