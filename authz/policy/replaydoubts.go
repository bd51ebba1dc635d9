package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

// A shape keeps of these parts of a request only what the built-in policy looks at: of a
// path the route that it matches, of an address whether it is inside of the key's fence, of
// a resource whose it is. Rules that look at them otherwise may decide otherwise.
//
//nolint:gochecknoglobals // a constant, were slices constant
var blurred = []ast.Ref{
	ast.MustParseRef("input.request.path"), ast.MustParseRef("input.request.segments"), ast.MustParseRef("input.request.client_ip"),
	ast.MustParseRef("input.request.resource.id"), ast.MustParseRef("input.request.resource.organization"),
}

// carriers are rules of the built-in policy whose values have such a part in them: who uses
// them looks at it.
func carriers() []string {
	return []string{"data.keystile.check.decoded_path", "data.keystile.check.variable_matches"}
}

// matchers are rules of the built-in policy that look such a part up in the values of other
// rules: these must be the built-in ones, too.
func matchers() []string { return append(carriers(), "data.keystile.check.matched") }

// doubts tell where the answer about a shape may not be the one about each request of it.
type doubts struct {
	// reasons are what holds for every shape.
	reasons []authz.PolicyProblem
	// typed tells that a policy looks at a resource's type.
	typed bool
	// before are the routes that the policy in force tells apart, after those of the other
	// one, by method.
	before, after map[string][]templatePath
	told          map[string]bool
}

// templatePath is a route's template, in its segments.
type templatePath []string

// doubtsOf finds what cannot be known. Rules that look at what is blurred must be the
// built-in ones. What they use is judged by itself: a rule's value has nothing of what is
// blurred in it, unless it looks at it.
func doubtsOf(trusted, before, after *Snapshot, active, candidate *Source) (*doubts, error) {
	d := &doubts{told: map[string]bool{}}
	known := textsOf(trusted)
	for _, s := range []*Snapshot{before, after} {
		for _, rule := range s.reached() {
			if what := s.looksAt(rule); what != "" {
				d.judge(s, rule, what, known)
			}
		}
		for _, ref := range s.reads() {
			d.typed = d.typed || overlaps(ref, ast.MustParseRef("input.request.resource.type"))
		}
	}
	var err error
	if d.before, err = active.routes(); err != nil {
		return nil, err
	}
	d.after, err = candidate.routes()
	return d, err
}

// judge doubts a rule, and what it looks up in, unless the built-in policy has the same.
func (d *doubts) judge(s *Snapshot, rule *ast.Rule, what string, known map[string]bool) {
	looked := map[*ast.Rule]bool{rule: true}
	if slices.Contains(matchers(), rule.Ref().String()) {
		w := newWalk(s)
		w.rule(rule)
		looked = w.seen
	}
	for used := range looked {
		if known[textOfRule(used)] {
			continue
		}
		p := authz.PolicyProblem{Stage: authz.StageLoad}
		if l := used.Location; l != nil {
			p.File, p.Line = l.File, l.Row
		}
		p.Message = fmt.Sprintf("%s is not as in the built-in policy, and looks at %s, of which only what that one looks at is recorded", used.Ref(), what)
		if len(d.reasons) < maxReplayReasons && !slices.Contains(d.reasons, p) {
			d.reasons = append(d.reasons, p)
		}
	}
	slices.SortFunc(d.reasons, func(a, b authz.PolicyProblem) int { return strings.Compare(a.String(), b.String()) })
}

// reached are the rules that the entry point for checks reaches.
func (s *Snapshot) reached() []*ast.Rule {
	w := newWalk(s)
	w.entrypoint(checkEntrypoint)
	rules := make([]*ast.Rule, 0, len(w.seen))
	for rule := range w.seen {
		rules = append(rules, rule)
	}
	return rules
}

// looksAt is what of the blurred parts a rule looks at by itself, or through a carrier; "" is
// nothing.
func (s *Snapshot) looksAt(rule *ast.Rule) string {
	w := newWalk(s)
	w.look(rule)
	for _, ref := range w.reads {
		for _, part := range blurred {
			if overlaps(ref, part) {
				return part.String()
			}
		}
	}
	for dependency := range s.compiler.Graph.Dependencies(rule) {
		if next, ok := dependency.(*ast.Rule); ok && slices.Contains(carriers(), next.Ref().String()) {
			return next.Ref().String()
		}
	}
	return ""
}

// overlaps tells whether one of two references leads into the other.
func overlaps(a, b ast.Ref) bool { return a.HasPrefix(b) || b.HasPrefix(a) }

func textsOf(s *Snapshot) map[string]bool {
	texts := map[string]bool{}
	for _, rule := range s.reached() {
		if text := textOfRule(rule); text != "" {
			texts[text] = true
		}
	}
	return texts
}

// textOfRule is a rule's name and text as it was written; "" for none, which is no rule's.
func textOfRule(rule *ast.Rule) string {
	if rule.Location == nil || len(rule.Location.Text) == 0 {
		return ""
	}
	return rule.Ref().String() + "\n" + string(rule.Location.Text)
}

// routes are those of the catalogue; what has not its form has none.
func (s *Source) routes() (map[string][]templatePath, error) {
	data, err := parseData(s.files)
	if err != nil {
		return nil, err
	}
	at := any(data)
	for _, name := range []string{"keystile", "catalog", "routes"} {
		object, _ := at.(map[string]any)
		at = object[name]
	}
	all := map[string][]templatePath{}
	methods, _ := at.(map[string]any)
	for method, sizes := range methods {
		buckets, _ := sizes.(map[string]any)
		for _, templates := range buckets {
			bucket, _ := templates.(map[string]any)
			for template := range bucket {
				all[method] = append(all[method], strings.Split(template, "/"))
			}
		}
	}
	return all, nil
}

// about tells whether the answer about a shape may not be the one about each of its
// requests, and notes why.
func (d *doubts) about(shape authz.Shape, diff *authz.PolicyDiff) bool {
	if len(d.reasons) > 0 {
		return true
	}
	if d.typed && shape.ResourceType == blank || shape.Action == blank || shape.Method == blank && d.newMethods() {
		return true
	}
	path := shape.Template()
	if path == "" {
		return false
	}
	segments := strings.Split(path, "/")
	for _, r := range d.after[shape.Method] {
		if !r.mayBe(segments) || slices.ContainsFunc(d.before[shape.Method], func(b templatePath) bool { return slices.Equal(b, r) }) {
			continue
		}
		message := fmt.Sprintf("some of the requests recorded as %s %s may be %s, which the policy in force does not tell apart",
			shape.Method, path, strings.Join(r, "/"))
		if !d.told[message] && len(diff.Reasons) < maxReplayReasons {
			d.told[message] = true
			diff.Reasons = append(diff.Reasons, authz.PolicyProblem{Stage: authz.StageLoad, Message: message})
		}
		return true
	}
	return false
}

// blank is what a shape has in place of what it does not keep.
const blank = "_"

// mayBe tells whether a route could match more narrowly what was recorded.
func (r templatePath) mayBe(segments []string) bool {
	if len(r) != len(segments) {
		return false
	}
	narrower := false
	for i, part := range r {
		switch literal := !strings.HasPrefix(part, "{"); {
		case literal && segments[i] == blank:
			narrower = true
		case literal && segments[i] != part:
			return false
		}
	}
	return narrower
}

// newMethods tells whether the other policy has routes of methods that shapes do not keep.
func (d *doubts) newMethods() bool {
	for method := range d.after {
		if _, ok := d.before[method]; !ok {
			return true
		}
	}
	return false
}
