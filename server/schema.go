package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
)

// maxIssues bounds the errors that one problem tells.
const maxIssues = 20

// issues gathers what is wrong with a request. The first decides the code, but for
// an unknown field, which is told alone: what else is wrong may follow from it.
type issues struct {
	code    string
	list    []fieldIssue
	unknown []fieldIssue
}

func (i *issues) add(code, pointer, message string) {
	if code == "unknown_field" {
		if issue := (fieldIssue{pointer, message}); !slices.Contains(i.unknown, issue) && len(i.unknown) < maxIssues {
			i.unknown = append(i.unknown, issue)
		}
		return
	}
	if i.code == "" {
		i.code = code
	}
	if len(i.list) < maxIssues {
		i.list = append(i.list, fieldIssue{pointer, message})
	}
}

func (i *issues) problem() *problem {
	switch {
	case len(i.unknown) > 0:
		return badRequest("unknown_field", "A field is unknown; names are case-sensitive. See errors.", i.unknown...)
	case len(i.list) > 0:
		return unacceptable(i.code, i.list...)
	}
	return nil
}

// unacceptable is the problem of a request that can be read but not carried out.
func unacceptable(code string, list ...fieldIssue) *problem {
	return &problem{
		Status: http.StatusUnprocessableEntity, Code: code, Title: titleUnacceptable,
		Detail: "Some fields or parameters are missing or not acceptable; see errors.", Issues: list,
	}
}

// schemaIssue is one way in which a value is not as its schema says. Its sentence is
// made of the schema alone: the library's own repeat what was sent.
type schemaIssue struct{ code, pointer, message string }

// schemaIssues holds a value to a schema.
func schemaIssues(schema *openapi3.Schema, value any) []schemaIssue {
	// The document keeps to what this validator knows of JSON Schema 2020-12 (types
	// with null); the library's other one compiles the schema on each call.
	err := schema.VisitJSON(value, openapi3.MultiErrors(), openapi3.EnableFormatValidation(),
		openapi3.WithStringFormatValidator("date-time", dateTime{}))
	return appendIssues(nil, schema, err)
}

// appendIssues turns the library's errors about a value of schema into sentences.
func appendIssues(list []schemaIssue, schema *openapi3.Schema, err error) []schemaIssue {
	var many openapi3.MultiError
	var one *openapi3.SchemaError
	switch {
	case err == nil:
	case errors.As(err, &one) && one == err: //nolint:errorlint // the error itself, not one that it wraps
		if inner := alternative(one); inner != nil {
			base := pointer(schema, one.JSONPointer())
			for _, issue := range schemaIssues(inner, one.Value) {
				list = append(list, schemaIssue{issue.code, base + issue.pointer, issue.message})
			}
			return list
		}
		code, message := sentence(one)
		return append(list, schemaIssue{code, pointer(schema, one.JSONPointer()), message})
	case errors.As(err, &many):
		for _, e := range many {
			list = appendIssues(list, schema, e)
		}
	default:
		list = append(list, schemaIssue{"out_of_range", "", "is not as the API's document says"})
	}
	return list
}

// alternative returns the schema that a value of "this or null" should have met, or nil.
func alternative(err *openapi3.SchemaError) *openapi3.Schema {
	if err.SchemaField != "oneOf" || err.Schema == nil {
		return nil
	}
	for _, of := range err.Schema.OneOf {
		if of.Value != nil && !of.Value.Type.Is(openapi3.TypeNull) {
			return of.Value
		}
	}
	return nil
}

// pointer writes a path as a JSON Pointer (RFC 6901), as far as the schema knows its
// names: whatever a client may name as it likes is not repeated.
func pointer(schema *openapi3.Schema, path []string) string {
	var b strings.Builder
	for _, name := range path {
		var next *openapi3.SchemaRef
		if schema != nil {
			next = schema.Properties[name]
			if _, err := strconv.Atoi(name); err == nil && next == nil {
				next = schema.Items
			}
		}
		if next == nil {
			break
		}
		b.WriteByte('/')
		b.WriteString(name)
		schema = next.Value
	}
	return b.String()
}

// sentence says what a schema wanted.
func sentence(err *openapi3.SchemaError) (code, message string) {
	s := err.Schema
	if s == nil {
		return "out_of_range", "is not as the API's document says"
	}
	switch err.SchemaField {
	case "properties":
		return "unknown_field", unknownField(s)
	case "required":
		return "missing_field", "is required"
	case "minProperties":
		return "missing_field", "must have at least one of " + fieldNames(s)
	case "type", "nullable":
		return "invalid_type", "must be " + wantedKind(s)
	case "enum":
		code := "out_of_range"
		if !s.Type.Permits(kindOf(err.Value)) {
			code = "invalid_type"
		}
		return code, "must be one of: " + enumNames(s)
	case "minimum", "maximum":
		return "out_of_range", "must be " + numberRange(s)
	case "maxLength":
		return "string_too_long", "must have " + count(s.MinLength, s.MaxLength, "character")
	case "minLength":
		return "out_of_range", "must have " + count(s.MinLength, s.MaxLength, "character")
	case "minItems", "maxItems":
		return "out_of_range", "must have " + count(s.MinItems, s.MaxItems, "item")
	case "uniqueItems":
		return "out_of_range", "must not name anything twice"
	case "pattern":
		return "out_of_range", "must be " + patternForm(s.Pattern)
	case "format":
		return "out_of_range", "must be an RFC 3339 time such as 2027-01-31T00:00:00Z"
	}
	return "out_of_range", "is not as the API's document says"
}

func unknownField(s *openapi3.Schema) string {
	if len(s.Properties) == 0 {
		return "has a field, and this takes none"
	}
	return "has a field that is not one of " + fieldNames(s)
}

func fieldNames(s *openapi3.Schema) string {
	names := make([]string, 0, len(s.Properties))
	for name := range s.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func enumNames(s *openapi3.Schema) string {
	names := make([]string, 0, len(s.Enum))
	for _, value := range s.Enum {
		if name := fmt.Sprint(value); name != "" {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// wantedKind names the types that a schema permits.
func wantedKind(s *openapi3.Schema) string {
	if len(s.Enum) > 0 {
		return "one of: " + enumNames(s)
	}
	words := make([]string, 0, len(s.Type.Slice()))
	for _, t := range s.Type.Slice() {
		switch t {
		case openapi3.TypeString:
			words = append(words, "a string")
		case openapi3.TypeInteger:
			words = append(words, numberRange(s))
		case openapi3.TypeNumber:
			words = append(words, "a number")
		case openapi3.TypeBoolean:
			words = append(words, "true or false")
		case openapi3.TypeArray:
			words = append(words, "a list")
		case openapi3.TypeObject:
			words = append(words, "an object")
		case openapi3.TypeNull:
			words = append(words, "null")
		}
	}
	return strings.Join(words, " or ")
}

// kindOf returns the JSON type of a decoded value.
func kindOf(value any) string {
	switch value.(type) {
	case string:
		return openapi3.TypeString
	case bool:
		return openapi3.TypeBoolean
	case json.Number, int64, float64:
		return openapi3.TypeNumber
	case []any:
		return openapi3.TypeArray
	case map[string]any:
		return openapi3.TypeObject
	}
	return openapi3.TypeNull
}

func numberRange(s *openapi3.Schema) string {
	switch {
	case s.Type.Is(openapi3.TypeNumber) && s.Max != nil:
		return fmt.Sprintf("a number of at most %g", *s.Max)
	case s.Type.Is(openapi3.TypeNumber):
		return "a number"
	case s.Min != nil && s.Max != nil:
		return fmt.Sprintf("a whole number from %.0f to %.0f", *s.Min, *s.Max)
	case s.Min != nil:
		return fmt.Sprintf("a whole number of at least %.0f", *s.Min)
	}
	return "a whole number"
}

func count(least uint64, most *uint64, what string) string {
	switch {
	case most == nil && least == 1:
		return "at least 1 " + what
	case most == nil:
		return fmt.Sprintf("at least %d %ss", least, what)
	case least == 0:
		return fmt.Sprintf("at most %d %ss", *most, what)
	}
	return fmt.Sprintf("from %d to %d %ss", least, *most, what)
}

// patternForm says in words what the document's patterns accept.
func patternForm(pattern string) string {
	switch pattern {
	case "^[!-~]+$":
		return "printable ASCII without spaces"
	case "^[A-Za-z0-9_.-]+$":
		return "of letters, digits, _, . and -"
	case `^(\*|[1-9][0-9]{0,9}|"[1-9][0-9]{0,9}")$`:
		return "one version, as in ETag, or *"
	case "^[0-9A-Fa-f]{64}$":
		return "64 hexadecimal characters"
	}
	return "of the form that the API's document says"
}

// dateTime is the format date-time: what the decoder takes, and no more. The
// library's own lets the 31st of February pass.
type dateTime struct{}

// Validate implements openapi3.StringFormatValidator.
func (dateTime) Validate(text string) error {
	var t time.Time
	return t.UnmarshalText([]byte(text)) //nolint:wrapcheck // only whether there is one is asked
}
