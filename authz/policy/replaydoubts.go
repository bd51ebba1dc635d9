package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

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

//nolint:gochecknoglobals // constants, were these constant
var (
	requestMethod = ast.MustParseRef("input.request.method")
	requestAction = ast.MustParseRef("input.request.action")
	resourceType  = ast.MustParseRef("input.request.resource.type")
	// ownRules is where policies have rules of their own.
	ownRules = ast.MustParseRef("data.keystile.rules")
)

// doubts tell where the answer about a shape may not be the one about each request of it.
//
// What matches a route, and what a fence is, must be as in the built-in policy, to the last
// character: all modules but those of single rules, and of the catalogue's data what is read
// of it. A rule of its own must look at nothing that is blurred, and at nothing that looks at it.
type doubts struct {
	// reasons are what holds for every shape.
	reasons []authz.PolicyProblem
	// methods, actions and types tell that rules of their own look at these, of which shapes
	// keep the ordinary ones.
	methods, actions, types bool
	before, after           *replayRoutes
	told                    map[string]bool
}

// doubtsOf finds what cannot be known.
func doubtsOf(builtIn, active, candidate *Source, before, after *Snapshot) (*doubts, error) {
	d := &doubts{told: map[string]bool{}}
	core, err := builtIn.core()
	if err != nil {
		return nil, err
	}
	for _, side := range []struct {
		of       *Source
		snapshot *Snapshot
		routes   **replayRoutes
	}{{active, before, &d.before}, {candidate, after, &d.after}} {
		own, err := side.of.core()
		if err != nil {
			return nil, err
		}
		d.compareCore(core, own)
		d.judgeRules(side.snapshot)
		data, err := parseData(side.of.files)
		if err != nil {
			return nil, err
		}
		d.judgeData(data)
		*side.routes = replayRoutesOf(side.of.revision, data)
	}
	if slices.Contains(d.before.literals, authz.Blank) || slices.Contains(d.after.literals, authz.Blank) {
		d.doubt("", 0, "the catalogue has a route with the segment _, which stands for all others in what is recorded")
	}
	// A scope that is new is an action that was not one, and the other way round.
	name := func(a, b authz.CatalogueScope) bool { return a.Scope == b.Scope }
	d.actions = d.actions || !slices.EqualFunc(before.catalogue.Scopes, after.catalogue.Scopes, name)
	slices.SortStableFunc(d.reasons, func(a, b authz.PolicyProblem) int { return strings.Compare(a.String(), b.String()) })
	return d, nil
}

// doubt notes a reason, as many as anyone reads.
func (d *doubts) doubt(file string, line int, message string) {
	p := authz.PolicyProblem{Stage: authz.StageLoad, File: file, Line: line, Message: message}
	if len(d.reasons) < maxReplayReasons && !slices.Contains(d.reasons, p) {
		d.reasons = append(d.reasons, p)
	}
}

// coreModules are a policy's modules but for those of single rules and of what checks do not
// ask, by package and content.
type coreModules map[string]string

// core finds them; the values are their paths.
func (s *Source) core() (coreModules, error) {
	live, _, err := parseModules(s.files)
	if err != nil {
		return nil, err
	}
	core := coreModules{}
	for _, f := range s.files {
		m := live[f.path]
		if m == nil {
			continue
		}
		path := m.Package.Path
		apart := len(path) > len(ownRules) && path.HasPrefix(ownRules)
		for _, other := range []string{"data.keystile.admin", "data.keystile.findings", "data.keystile.anomaly", "data.system.log"} {
			apart = apart || path.HasPrefix(ast.MustParseRef(other))
		}
		if !apart {
			core[path.String()+"\n"+string(f.content)] = f.path
		}
	}
	return core, nil
}

func (d *doubts) compareCore(builtIn, own coreModules) {
	for text, path := range own {
		if _, ok := builtIn[text]; !ok {
			d.doubt(path, 0, "it is not as in the built-in policy; only what that one looks at is recorded of paths, addresses and resources")
		}
	}
	for text, path := range builtIn {
		if _, ok := own[text]; !ok {
			d.doubt(path, 0, "it is in the built-in policy, and not as it is there in this one")
		}
	}
}

// judgeRules doubts a rule of the policy's own that looks at what is not recorded.
func (d *doubts) judgeRules(s *Snapshot) {
	for _, rule := range s.reached() {
		path := rule.Ref()
		if len(path) <= len(ownRules) || !path.HasPrefix(ownRules) {
			continue
		}
		w := newWalk(s)
		w.look(rule)
		for _, ref := range w.reads {
			for _, part := range blurred {
				if overlaps(ref, part) {
					d.doubtRule(rule, "looks at "+part.String()+", which is not recorded as it was")
				}
			}
			d.methods = d.methods || overlaps(ref, requestMethod)
			d.actions = d.actions || overlaps(ref, requestAction)
			d.types = d.types || overlaps(ref, resourceType)
		}
		for dependency := range s.compiler.Graph.Dependencies(rule) {
			if next, ok := dependency.(*ast.Rule); ok && !next.Ref().HasPrefix(ownRules) {
				d.doubtRule(rule, "looks at "+next.Ref().String()+", which may look at what is not recorded")
			}
		}
	}
}

func (d *doubts) doubtRule(rule *ast.Rule, why string) {
	file, line := "", 0
	if l := rule.Location; l != nil {
		file, line = l.File, l.Row
	}
	d.doubt(file, line, rule.Ref().String()+" "+why)
}

// judgeData doubts data that stands where the built-in policy has rules.
func (d *doubts) judgeData(data map[string]any) {
	for _, part := range []struct {
		path  []string
		known []string
	}{
		{[]string{"keystile", "catalog"}, []string{"scopes", "routes", "plans", "unknown_route_status"}},
		{[]string{"keystile", "check"}, nil},
	} {
		for name := range objectAt(data, part.path...) {
			if !slices.Contains(part.known, name) {
				d.doubt("", 0, fmt.Sprintf("data.%s.%s is not in the built-in policy's data", strings.Join(part.path, "."), name))
			}
		}
	}
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

// overlaps tells whether one of two references leads into the other.
func overlaps(a, b ast.Ref) bool { return a.HasPrefix(b) || b.HasPrefix(a) }

// about tells whether the answer about a shape may not be the one about each of its
// requests, and notes why.
func (d *doubts) about(shape authz.Shape, faithful bool, diff *authz.PolicyDiff) bool {
	if len(d.reasons) > 0 {
		return true
	}
	why := d.why(shape, faithful)
	if why != "" && !d.told[why] && len(diff.Reasons) < maxReplayReasons {
		d.told[why] = true
		diff.Reasons = append(diff.Reasons, authz.PolicyProblem{Stage: authz.StageLoad, Message: why})
	}
	return why != ""
}

// why tells why that may be so, "" that it is not.
func (d *doubts) why(shape authz.Shape, faithful bool) string {
	switch {
	case len(d.reasons) > 0:
		return d.reasons[0].String()
	case !faithful:
		return "fences of keys, or external ids of organizations, have changed since"
	case d.types && shape.ResourceType == authz.Blank:
		return "rules look at the type of a resource, and some that were recorded are no plain words"
	}
	return d.whyRequired(shape)
}

// whyRequired is why for what tells which scopes a request needs: method, path and action.
func (d *doubts) whyRequired(shape authz.Shape) string {
	switch {
	case shape.Action == authz.Blank && (shape.Ambiguous || shape.Template() != ""):
		return "an action that came with a path was not required where that matched nothing, so it was not recorded"
	case shape.Action == authz.Blank && (d.actions || shape.Policy != d.before.revision):
		return "rules or new scopes look at an action, or the policy was another one, and some that were recorded were no scopes"
	case shape.Method == authz.Blank && (d.methods || d.before.unusual || d.after.unusual):
		return "rules or routes look at methods that are not recorded as they were"
	}
	return cmp.Or(d.after.doubt(shape, d.before, true), d.before.doubt(shape, d.before, false))
}

// tooSlow notes that answers took longer than a check waits for.
func (d *doubts) tooSlow(diff *authz.PolicyDiff, budget time.Duration) {
	why := fmt.Sprintf("some answers took longer than the %v that a check has", budget)
	if !d.told[why] && len(diff.Reasons) < maxReplayReasons {
		d.told[why] = true
		diff.Reasons = append(diff.Reasons, authz.PolicyProblem{Stage: authz.StageProcess, Message: why})
	}
}
