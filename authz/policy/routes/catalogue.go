package routes

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/supportstation/keystile/authz"
)

// MaxCatalogue is how large a catalogue may be, in bytes.
const MaxCatalogue = 8 << 20

// Entered is what came of entering a document into a catalogue.
type Entered struct {
	// Catalogue is the file as it is then; the same when there is nothing to add.
	Catalogue []byte
	// Added are the routes that it did not have. All are those of the document, with the
	// templates that the catalogue has for them.
	Added, All []Route
}

// entries are the catalogue's routes: method, number of segments, template.
type entries map[string]map[string]map[string]entry

type entry struct {
	Scopes []authz.Scope `yaml:"scopes"`
}

// catalogue is a catalogue's file as far as it is looked at.
type catalogue struct {
	name   string
	Scopes map[authz.Scope]any `yaml:"scopes"`
	Routes entries             `yaml:"routes"`
	lines  map[string]int
}

// Enter adds a document's routes to a catalogue's file, line by line: comments and the order of
// what is there stay. A route that is there already stays as it is. What contradicts it, needs a
// scope that it has not, or could be mistaken for another route, is refused, all of it at once,
// as an Error; then nothing is added.
func Enter(name string, raw []byte, d *Document) (*Entered, error) {
	c, err := readCatalogue(name, raw)
	if err != nil {
		return nil, err
	}
	out := &Entered{Catalogue: raw}
	var problems Error
	problem := func(r Route, format string, args ...any) {
		problems = append(problems, Problem{d.Name, r.Line, r.From + ": " + fmt.Sprintf(format, args...)})
	}
	unknown := map[authz.Scope]Route{}
	all := c.byShape()
	for _, r := range d.Routes {
		for _, scope := range r.Scopes {
			if _, known := c.Scopes[scope]; !known {
				if _, told := unknown[scope]; !told {
					unknown[scope] = r
				}
			}
		}
		group := all[r.Method+" "+strconv.Itoa(r.size())]
		if there, ok := group[shape(r.Template)]; ok {
			if !slices.Equal(there.Scopes, r.Scopes) {
				problem(r, "it needs %s, and %s in the catalogue (%s:%d); change one of them", list(r.Scopes), list(there.Scopes), name, there.Line)
			}
			r.Template = there.Template
			out.All = append(out.All, r)
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(group)) {
			if other := group[key]; ambiguous(r.Template, other.Template) {
				problem(r, "%s and %s match the same paths, and neither is the narrower one", r.Template, other.Template)
			}
		}
		if group == nil {
			group = map[string]Route{}
			all[r.Method+" "+strconv.Itoa(r.size())] = group
		}
		group[shape(r.Template)] = r
		out.Added, out.All = append(out.Added, r), append(out.All, r)
	}
	for _, scope := range slices.Sorted(maps.Keys(unknown)) {
		r := unknown[scope]
		problem(r, "the scope %s is not in the catalogue; add it to scopes in %s (\"%s: {description: %s}\"), or say which one it is with --scope-map",
			scope, name, scope, cmp.Or(d.Descriptions[scope], "What it permits."))
	}
	if len(problems) > 0 {
		slices.SortStableFunc(problems, func(a, b Problem) int { return a.Line - b.Line })
		return nil, problems
	}
	out.Catalogue, err = c.with(raw, out.Added)
	return out, err
}

func list(scopes []authz.Scope) string {
	if len(scopes) == 0 {
		return "no scope"
	}
	names := make([]string, len(scopes))
	for i, s := range scopes {
		names[i] = string(s)
	}
	return strings.Join(names, ", ")
}

// readCatalogue reads a catalogue's file.
func readCatalogue(name string, raw []byte) (*catalogue, error) {
	if len(raw) > MaxCatalogue {
		return nil, Error{{File: name, Message: fmt.Sprintf("the catalogue has more than %d MiB", MaxCatalogue>>20)}}
	}
	c := &catalogue{name: name, lines: map[string]int{}}
	if err := yaml.Unmarshal(raw, c); err != nil {
		return nil, Error{{File: name, Message: "it cannot be read as a catalogue: " + oneLine(err.Error())}}
	}
	root, err := rootOf(raw)
	if err != nil {
		return nil, Error{{File: name, Message: oneLine(err.Error())}}
	}
	_, routes := child(root, "routes")
	each(routes, func(method, sizes *yaml.Node) {
		each(sizes, func(_, templates *yaml.Node) {
			each(templates, func(template, _ *yaml.Node) { c.lines[method.Value+" "+template.Value] = template.Line })
		})
	})
	return c, nil
}

// byShape are the routes by method and number of segments, and then by what they match.
func (c *catalogue) byShape() map[string]map[string]Route {
	all := map[string]map[string]Route{}
	for method, sizes := range c.Routes {
		for _, templates := range sizes {
			for template, e := range templates {
				r := Route{Method: method, Template: template, Scopes: slices.Sorted(slices.Values(e.Scopes)), Line: c.lines[method+" "+template]}
				key := method + " " + strconv.Itoa(r.size())
				if all[key] == nil {
					all[key] = map[string]Route{}
				}
				all[key][shape(template)] = r
			}
		}
	}
	return all
}

// with enters routes, and reads what has come of it: nothing else may have changed.
func (c *catalogue) with(raw []byte, added []Route) ([]byte, error) {
	var want map[string]any
	if err := yaml.Unmarshal(raw, &want); err != nil {
		return nil, Error{{File: c.name, Message: oneLine(err.Error())}}
	}
	edited := raw
	for _, group := range grouped(added) {
		var err error
		if edited, err = insert(edited, group); err != nil {
			return nil, Error{{File: c.name, Message: err.Error()}}
		}
		for _, r := range group {
			enter(want, r)
		}
	}
	var got map[string]any
	if err := yaml.Unmarshal(edited, &got); err != nil || !reflect.DeepEqual(got, want) {
		return nil, Error{{File: c.name, Message: "its form is too unusual to be edited; write its routes as the shipped catalogue does"}}
	}
	return edited, nil
}

// enter is what insert does to text, done to what the text says.
func enter(to map[string]any, r Route) {
	for _, name := range []string{"routes", r.Method, strconv.Itoa(r.size())} {
		next, ok := to[name].(map[string]any)
		if !ok {
			next = map[string]any{}
			to[name] = next
		}
		to = next
	}
	scopes := make([]any, len(r.Scopes))
	for i, s := range r.Scopes {
		scopes[i] = string(s)
	}
	to[r.Template] = map[string]any{"scopes": scopes}
}

// grouped are routes that stand together, by method and number of segments, each group by template.
func grouped(routes []Route) [][]Route {
	var order []string
	groups := map[string][]Route{}
	for _, r := range routes {
		key := r.Method + " " + strconv.Itoa(r.size())
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], r)
	}
	all := make([][]Route, len(order))
	for i, key := range order {
		all[i] = slices.SortedFunc(slices.Values(groups[key]), func(a, b Route) int { return cmp.Compare(a.Template, b.Template) })
	}
	return all
}

var errForm = errors.New("routes is not written a line each; write it as the shipped catalogue does")
