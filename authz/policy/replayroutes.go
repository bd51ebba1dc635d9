package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/supportstation/keystile/authz"
)

// replayRoutes are the templates of a policy's catalogue, in their segments.
type replayRoutes struct {
	revision string
	byMethod map[string][]templatePath
	// literals are all literal segments.
	literals []string
	// unusual tells that there are routes of methods that shapes do not keep.
	unusual bool
}

// templatePath is a route's template, in its segments; the first is before the slash.
type templatePath []string

func (t templatePath) String() string { return strings.Join(t, "/") }

// templatesOf are the templates of all routes, as far as they are such as a shape may have.
func templatesOf(data map[string]any) map[string]bool {
	all := map[string]bool{}
	eachTemplate(data, func(_, template string) {
		if strings.HasPrefix(template, "/") && strings.IndexFunc(template, func(r rune) bool { return r <= ' ' || r > '~' }) < 0 {
			all[template] = true
		}
	})
	return all
}

func replayRoutesOf(revision string, data map[string]any) *replayRoutes {
	r := &replayRoutes{revision: revision, byMethod: map[string][]templatePath{}}
	eachTemplate(data, func(method, template string) {
		path := templatePath(strings.Split(template, "/"))
		r.byMethod[method] = append(r.byMethod[method], path)
		for _, part := range path {
			if !strings.HasPrefix(part, "{") {
				r.literals = append(r.literals, part)
			}
		}
		r.unusual = r.unusual || !authz.RecordsMethod(method)
	})
	return r
}

func (r *replayRoutes) has(method string, t templatePath) bool {
	return slices.ContainsFunc(r.byMethod[method], func(own templatePath) bool { return slices.Equal(own, t) })
}

// doubt tells why the requests of a shape may match another route of these than what stands in
// for all of them does; "" is that they do not. before are the routes of the policy in force:
// what was recorded under it did not match what wins over the route that it matched.
func (r *replayRoutes) doubt(shape authz.Shape, before *replayRoutes, other bool) string {
	path := shape.Template()
	if path == "" {
		return ""
	}
	segments, matched := strings.Split(path, "/"), templatePath(strings.Split(shape.Route, "/"))
	recordedUnder := shape.Policy == before.revision
	if !other && recordedUnder {
		return "" // it was asked
	}
	for _, t := range r.byMethod[shape.Method] {
		switch {
		case !t.mayBe(segments):
		case shape.Route != "" && (slices.Equal(t, matched) || r.has(shape.Method, matched) && matched.wins(t)):
		case recordedUnder && before.has(shape.Method, t) && (shape.Route == "" || t.wins(matched)):
			// It would have been recorded as that.
		case recordedUnder:
			return fmt.Sprintf("some of the requests recorded as %s %s may be %s, which the policy in force does not tell apart", shape.Method, path, t)
		default:
			return fmt.Sprintf("some of the requests recorded as %s %s, under another policy, may be %s", shape.Method, path, t)
		}
	}
	return ""
}

// mayBe tells whether some of what was recorded may match, and not all of it.
func (t templatePath) mayBe(segments []string) bool {
	if len(t) != len(segments) {
		return false
	}
	some := false
	for i, part := range t {
		switch literal := !strings.HasPrefix(part, "{"); {
		case literal && segments[i] == authz.Blank:
			some = true
		case literal && segments[i] != part:
			return false
		}
	}
	return some
}

// wins tells whether a template wins over another one that matches the same path: a literal
// segment wins over a variable one, the leftmost first.
func (t templatePath) wins(other templatePath) bool {
	for i := range min(len(t), len(other)) {
		variable, others := strings.HasPrefix(t[i], "{"), strings.HasPrefix(other[i], "{")
		if variable != others {
			return others
		}
	}
	return false
}
