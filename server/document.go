package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/supportstation/keystile/server/api"
)

// document is what the API's document says about requests. It is read once and
// never changed. Safe for concurrent use.
type document struct {
	// operations are by method and Gin's template of the path.
	operations map[string]*operation
}

// operation is what the document says about one method of one path.
type operation struct {
	id string
	// route is method and path as in the document, for example GET /v1/keys/{key}.
	route          string
	query, headers []parameter
	// body is nil for an operation that takes none, and for rows.
	body *openapi3.Schema
	// rows tells that the body is JSON lines, each of which is judged by itself.
	rows bool
}

// parameter is a parameter of a query or a header.
type parameter struct {
	name     string
	required bool
	schema   *openapi3.Schema
}

// newDocument reads and validates the API's document.
func newDocument(ctx context.Context) (*document, error) {
	doc, err := openapi3.NewLoader().LoadFromData(api.Document())
	if err != nil {
		return nil, fmt.Errorf("read the API's document: %w", err)
	}
	if err := doc.Validate(ctx); err != nil {
		return nil, fmt.Errorf("the API's document is not valid: %w", err)
	}
	d := &document{operations: make(map[string]*operation)}
	for path, item := range doc.Paths.Map() {
		for method, described := range item.Operations() {
			op := &operation{id: described.OperationID, route: method + " " + path}
			for _, p := range slices.Concat(item.Parameters, described.Parameters) {
				op.add(p.Value)
			}
			if described.RequestBody != nil {
				content := described.RequestBody.Value.Content
				op.rows = content[mediaRows] != nil
				if media := content[mediaJSON]; media != nil {
					op.body = media.Schema.Value
				}
			}
			d.operations[method+" "+ginPath(path)] = op
		}
	}
	return d, nil
}

func (o *operation) add(p *openapi3.Parameter) {
	switch added := (parameter{p.Name, p.Required, p.Schema.Value}); p.In {
	case openapi3.ParameterInQuery:
		o.query = append(o.query, added)
	case openapi3.ParameterInHeader:
		o.headers = append(o.headers, added)
	}
}

// ginPath writes a path of the document as Gin does: /v1/keys/{key} is /v1/keys/:key.
func ginPath(path string) string {
	return strings.ReplaceAll(strings.ReplaceAll(path, "{", ":"), "}", "")
}

// lookup returns what the document says about a route of Gin's, or nil.
func (d *document) lookup(method, fullPath string) *operation {
	return d.operations[method+" "+fullPath]
}

// takes tells whether the document gives the operation this header.
func (o *operation) takes(header string) bool {
	return slices.ContainsFunc(o.headers, func(p parameter) bool { return p.name == header })
}

// checkParameters takes the query and the headers that the document knows, each at
// most once. Other headers belong to nobody here; other query parameters are refused.
func (o *operation) checkParameters(r *http.Request) *problem {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return unacceptable("out_of_range", fieldIssue{"", "the query is not well-formed"})
	}
	var found issues
	for name := range query {
		if !slices.ContainsFunc(o.query, func(p parameter) bool { return p.name == name }) {
			return unacceptable("unknown_parameter", fieldIssue{"", o.knownParameters()})
		}
	}
	for _, p := range o.query {
		found.parameter("query parameter "+p.name+" ", p, query[p.name])
	}
	for _, p := range o.headers {
		found.parameter("header "+p.name+" ", p, r.Header[http.CanonicalHeaderKey(p.name)])
	}
	return found.problem()
}

func (o *operation) knownParameters() string {
	if len(o.query) == 0 {
		return "the query has a parameter, and this takes none"
	}
	names := make([]string, len(o.query))
	for i, p := range o.query {
		names[i] = p.name
	}
	return "the query has a parameter that is not one of " + strings.Join(names, ", ")
}

// parameter checks the values that a parameter was sent with.
func (i *issues) parameter(what string, p parameter, values []string) {
	if len(values) == 0 {
		if p.required {
			i.add("missing_field", "", what+"is required")
		}
		return
	}
	if len(values) > 1 {
		i.add("duplicate_parameter", "", what+"must be sent once")
		return
	}
	text := values[0]
	if !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
		i.add("out_of_range", "", what+"must be UTF-8 without NUL characters")
		return
	}
	var value any = text
	switch {
	case p.schema.Type.Is(openapi3.TypeInteger):
		n, err := strconv.ParseInt(text, 10, 53)
		if err != nil || strconv.FormatInt(n, 10) != text {
			i.add("invalid_type", "", what+"must be "+numberRange(p.schema))
			return
		}
		value = n
	case p.schema.Type.Is(openapi3.TypeBoolean):
		if text != "true" && text != "false" {
			i.add("invalid_type", "", what+"must be true or false")
			return
		}
		value = text == "true"
	}
	for _, issue := range schemaIssues(p.schema, value) {
		i.add(issue.code, "", what+issue.message)
	}
}

// checkBody takes the JSON that the document describes: syntax first, then names,
// then values. An operation without a body takes none, or an empty object.
func (o *operation) checkBody(body []byte) *problem {
	if issue := checkSyntax(body); issue != nil {
		return issue
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber() // numbers of metadata are not ours to round
	var value any
	if err := decoder.Decode(&value); err != nil {
		return badRequest("malformed_json", "The body is not valid JSON.")
	}
	schema := o.body
	if schema == nil {
		closed := false
		schema = openapi3.NewObjectSchema()
		schema.AdditionalProperties.Has = &closed
	}
	var found issues
	for _, issue := range schemaIssues(schema, value) {
		found.add(issue.code, issue.pointer, issue.message)
	}
	return found.problem()
}
