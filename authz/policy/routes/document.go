// Package routes reads from an OpenAPI document which scopes its operations need, and enters
// them into a policy's catalogue.
package routes

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/supportstation/keystile/authz"
)

const (
	// MaxDocument is how large a document may be, in bytes.
	MaxDocument = 8 << 20
	// MaxRoutes is how many operations it may have.
	MaxRoutes = 10_000
)

// Extensions of an operation, or of all operations of a path, that say what OpenAPI cannot.
const (
	// ExtensionScopes are the scopes that it needs, all of them: a text or a list. It takes the
	// place of what security says.
	ExtensionScopes = "x-keystile-scopes"
	// ExtensionSkip true leaves it out: it is not asked about, or not protected by Keystile.
	ExtensionSkip = "x-keystile-skip"
)

// Route is one operation as the catalogue has it.
type Route struct {
	Method   string
	Template string
	// Scopes are sorted, and never none.
	Scopes []authz.Scope
	// From is the operation as the document has it, such as GET /tickets/{ticketId}, and Line
	// where; 0 is unknown.
	From string
	Line int
}

// size is the catalogue's number of segments.
func (r Route) size() int { return len(segments(r.Template)) }

// Document is what is read of an OpenAPI document.
type Document struct {
	// Name is the document's, for messages.
	Name string
	// Routes are in the order of the document, or by path where that is not known. Each method
	// has each path once.
	Routes []Route
	// Skipped are the operations that were left out.
	Skipped []string
	// Descriptions of scopes, where the document has them.
	Descriptions map[authz.Scope]string
}

// Options say what the document does not.
type Options struct {
	// BasePath is put before every path, in place of what the servers say; nil for what they say.
	BasePath *string
	// ScopeMap are scopes of the catalogue by the document's own.
	ScopeMap map[string]authz.Scope
	// DefaultScope is for operations without one; "" for none.
	DefaultScope authz.Scope
	// Skip leaves operations out, such as GET /healthz, as the document has them.
	Skip []string
}

// Problem is one thing that keeps a document from being imported.
type Problem struct {
	File    string
	Line    int
	Message string
}

// Error is a problem a line, as editors read them.
type Error []Problem

// Error implements error.
func (e Error) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = authz.PolicyProblem{File: p.File, Line: p.Line, Message: p.Message}.String()
	}
	return strings.Join(lines, "\n")
}

// reader reads one document.
type reader struct {
	name     string
	doc      *openapi3.T
	options  Options
	skip     map[string]bool
	out      *Document
	problems Error
}

func (r *reader) problem(line int, format string, args ...any) {
	r.problems = append(r.problems, Problem{r.name, line, fmt.Sprintf(format, args...)})
}

// Read reads an OpenAPI 3.0 or 3.1 document, as YAML or JSON. It refers to no other file. What
// it says that the catalogue cannot say is refused, all of it at once, as an Error: nothing is
// guessed, because a wrong guess protects too little.
func Read(name string, raw []byte, o Options) (*Document, error) {
	if len(raw) > MaxDocument {
		return nil, Error{{File: name, Message: fmt.Sprintf("the document has more than %d MiB", MaxDocument>>20)}}
	}
	root, err := rootOnce(raw)
	var doc *openapi3.T
	if err == nil {
		doc, err = load(raw)
	}
	if err != nil {
		return nil, Error{{File: name, Message: oneLine(err.Error())}}
	}
	r := &reader{
		name: name, doc: doc, options: o, skip: make(map[string]bool),
		out: &Document{Name: name, Descriptions: make(map[authz.Scope]string)},
	}
	for _, operation := range o.Skip {
		r.skip[operation] = false
	}
	r.descriptions()
	r.form(root)
	r.operations()
	for _, operation := range slices.Sorted(maps.Keys(r.skip)) {
		if !r.skip[operation] {
			r.problem(0, "there is no operation %s to skip", operation)
		}
	}
	if len(r.out.Routes)+len(r.out.Skipped) == 0 && len(r.problems) == 0 {
		r.problem(0, "the document has no operations")
	}
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	return r.out, nil
}

// load parses a document. The library has panicked on malformed ones before.
func load(raw []byte) (doc *openapi3.T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it cannot be read: %v", p)
		}
	}()
	loader := openapi3.NewLoader()
	loader.IncludeOrigin = true
	if doc, err = loader.LoadFromData(raw); err != nil {
		return nil, fmt.Errorf("it cannot be read; a document in several files must be bundled into one first: %w", err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.0.") && !strings.HasPrefix(doc.OpenAPI, "3.1.") {
		return nil, errors.New("it is no OpenAPI 3.0 or 3.1 document")
	}
	return doc, nil
}

// operations reads all of them, in their order.
func (r *reader) operations() {
	type found struct {
		path, method string
		item         *openapi3.PathItem
		operation    *openapi3.Operation
	}
	var all []found
	if r.doc.Paths != nil {
		for path, item := range r.doc.Paths.Map() {
			if item == nil {
				continue
			}
			for method, operation := range item.Operations() {
				all = append(all, found{path, method, item, operation})
			}
		}
	}
	if len(all) > MaxRoutes {
		r.problem(0, "the document has more than %d operations", MaxRoutes)
		return
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(lineOf(a.operation)-lineOf(b.operation), cmp.Compare(a.path, b.path), cmp.Compare(a.method, b.method))
	})
	for _, f := range all {
		r.operation(f.path, f.method, f.item, f.operation)
	}
	r.out.Routes = r.once(r.out.Routes)
}

func lineOf(o *openapi3.Operation) int {
	if o.Origin == nil || o.Origin.Key == nil {
		return 0
	}
	return o.Origin.Key.Line
}

func (r *reader) operation(path, method string, item *openapi3.PathItem, o *openapi3.Operation) {
	from, line := method+" "+path, lineOf(o)
	if _, named := r.skip[from]; named {
		r.skip[from] = true
		r.out.Skipped = append(r.out.Skipped, from)
		return
	}
	if skip, err := skips(item, o); err != nil {
		r.problem(line, "%s: %v", from, err)
		return
	} else if skip {
		r.out.Skipped = append(r.out.Skipped, from)
		return
	}
	base, err := r.base(item, o)
	if err != nil {
		r.problem(line, "%s: %v", from, err)
		return
	}
	template, err := Template(base, path)
	if err != nil {
		r.problem(line, "%s: %v", from, err)
		return
	}
	scopes, err := r.scopes(item, o)
	if err != nil {
		r.problem(line, "%s: %v", from, err)
		return
	}
	if method == "HEAD" {
		method = "GET" // a check asks for HEAD as for GET
	}
	r.out.Routes = append(r.out.Routes, Route{Method: method, Template: template, Scopes: scopes, From: from, Line: line})
}

// once leaves one route of those that match the same paths, which must need the same.
func (r *reader) once(all []Route) []Route {
	first, kept := make(map[string]Route), all[:0:0]
	for _, route := range all {
		key := route.Method + " " + shape(route.Template)
		other, ok := first[key]
		switch {
		case !ok:
			first[key] = route
			kept = append(kept, route)
		case !slices.Equal(other.Scopes, route.Scopes):
			r.problem(route.Line, "%s matches the same requests as %s and needs other scopes", route.From, other.From)
		}
	}
	return kept
}

// skips tells whether an operation is marked to be left out.
func skips(item *openapi3.PathItem, o *openapi3.Operation) (bool, error) {
	for _, extensions := range []map[string]any{o.Extensions, item.Extensions} {
		value, ok := extensions[ExtensionSkip]
		if !ok {
			continue
		}
		skip, ok := value.(bool)
		if !ok {
			return false, errors.New(ExtensionSkip + " is true or false")
		}
		return skip, nil
	}
	return false, nil
}

// base is the path of the servers that serve an operation.
func (r *reader) base(item *openapi3.PathItem, o *openapi3.Operation) (string, error) {
	if r.options.BasePath != nil {
		return *r.options.BasePath, nil
	}
	servers := r.doc.Servers
	switch {
	case o.Servers != nil:
		servers = *o.Servers
	case len(item.Servers) > 0:
		servers = item.Servers
	}
	bases := map[string]bool{}
	for _, s := range servers {
		base, err := basePath(s)
		if err != nil {
			return "", err
		}
		bases[base] = true
	}
	switch len(bases) {
	case 0:
		return "", nil
	case 1:
		return slices.Collect(maps.Keys(bases))[0], nil
	}
	return "", fmt.Errorf("its servers have several paths (%s): choose one with --base-path", strings.Join(slices.Sorted(maps.Keys(bases)), ", "))
}

// basePath is the path of a server's URL.
func basePath(s *openapi3.Server) (string, error) {
	if s == nil {
		return "", nil
	}
	text := s.URL
	for name, v := range s.Variables {
		if v == nil {
			continue
		}
		value := v.Default
		if _, after, ok := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(text, "https://"), "http://"), "/"); ok &&
			strings.Contains(after, "{"+name+"}") && len(v.Enum) > 1 {
			return "", fmt.Errorf("the path of a server depends on {%s}: choose one with --base-path", name)
		}
		text = strings.ReplaceAll(text, "{"+name+"}", value)
	}
	u, err := url.Parse(text)
	if err != nil || strings.ContainsAny(u.Path, "{}") {
		return "", errors.New("the URL of a server cannot be read: say the path with --base-path")
	}
	if u.Path != "" && u.Path[0] != '/' {
		return "", errors.New("the URL of a server is relative to the document's: say the path with --base-path")
	}
	return strings.TrimRight(u.EscapedPath(), "/"), nil // its characters are judged with the path's
}

// oneLine is a text without line breaks.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
