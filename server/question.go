package server

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxCheckBody bounds the body of a check in bytes.
	maxCheckBody = 64 << 10
	// maxCheckString bounds each string of a check in bytes.
	maxCheckString = 8 << 10
)

// questionField is a field of a check's question.
type questionField int

const (
	fieldNone questionField = iota
	fieldKey
	fieldKeySHA256
	fieldMethod
	fieldPath
	fieldAction
	fieldEnvironment
	fieldResource
	fieldClientIP
	fieldBrowser
	fieldCost
	fieldResourceType
	fieldResourceID
	fieldResourceOrganization
	questionFields // how many there are
)

// pointer returns the field's JSON Pointer (RFC 6901).
func (f questionField) pointer() string {
	switch f {
	case fieldKey:
		return "/key"
	case fieldKeySHA256:
		return "/key_sha256"
	case fieldMethod:
		return "/method"
	case fieldPath:
		return "/path"
	case fieldAction:
		return "/action"
	case fieldEnvironment:
		return "/environment"
	case fieldResource:
		return "/resource"
	case fieldClientIP:
		return "/client_ip"
	case fieldBrowser:
		return "/browser"
	case fieldCost:
		return "/cost"
	case fieldResourceType:
		return "/resource/type"
	case fieldResourceID:
		return "/resource/id"
	case fieldResourceOrganization:
		return "/resource/organization"
	}
	return ""
}

// checkField and resourceField match names exactly: encoding/json would take KEY
// and even a Kelvin sign for key.
func checkField(name string) questionField {
	switch name {
	case "key":
		return fieldKey
	case "key_sha256":
		return fieldKeySHA256
	case "method":
		return fieldMethod
	case "path":
		return fieldPath
	case "action":
		return fieldAction
	case "environment":
		return fieldEnvironment
	case "resource":
		return fieldResource
	case "client_ip":
		return fieldClientIP
	case "browser":
		return fieldBrowser
	case "cost":
		return fieldCost
	}
	return fieldNone
}

func resourceField(name string) questionField {
	switch name {
	case "type":
		return fieldResourceType
	case "id":
		return fieldResourceID
	case "organization":
		return fieldResourceOrganization
	}
	return fieldNone
}

const (
	checkFieldNames    = "key, key_sha256, method, path, action, environment, resource, client_ip, browser, cost"
	resourceFieldNames = "type, id, organization"
)

// question reads one check's JSON. It is used once.
type question struct {
	decoder *jsontext.Decoder
	// text is the whole body: the strings of the check are parts of it.
	text    string
	seen    [questionFields]bool
	values  [questionFields]string
	hash    authz.SecretHash
	browser bool
	cost    int
	issues  []fieldIssue
	code    string
}

// fieldIssue is one thing wrong with one field. It never holds a value that was given.
type fieldIssue struct{ pointer, message string }

// decoders are kept for reuse: a decoder and its buffers cost more than a check.
type decoderPool struct{ pool sync.Pool }

type pooledDecoder struct {
	buffer  bytes.Buffer
	decoder *jsontext.Decoder
}

func newDecoderPool() *decoderPool {
	return &decoderPool{sync.Pool{New: func() any {
		return &pooledDecoder{decoder: jsontext.NewDecoder(bytes.NewReader(nil))}
	}}}
}

// decodeCheck reads a question strictly: every field at most once, in its exact
// spelling, of its type and within its bounds, and nothing after it. The check's
// strings share the memory of body's text, not of body. foreign, when not nil, tells
// which keys that are not of our own form are looked up all the same.
func (p *decoderPool) decodeCheck(
	body []byte, format authz.KeyFormat, foreign func(string) bool,
) (*authz.Check, *problem) {
	if issue := checkText(body); issue != nil {
		return nil, issue
	}
	pooled, ok := p.pool.Get().(*pooledDecoder)
	if !ok {
		return nil, internalProblem()
	}
	defer func() {
		pooled.buffer.Reset()
		pooled.decoder.Reset(&pooled.buffer)
		p.pool.Put(pooled)
	}()
	pooled.buffer.Reset()
	pooled.buffer.Write(body)
	pooled.decoder.Reset(&pooled.buffer)
	q := question{decoder: pooled.decoder, text: string(body), cost: authz.MinCost}
	if issue := q.read(); issue != nil {
		return nil, issue
	}
	return q.check(format, foreign)
}

func (q *question) read() *problem {
	if kind := q.decoder.PeekKind(); kind != '{' {
		if err := q.decoder.SkipValue(); err != nil {
			return syntaxProblem(err)
		}
		q.issue("invalid_type", fieldNone, "the body must be a JSON object")
		return q.trailing()
	}
	if issue := q.object(checkField, checkFieldNames, ""); issue != nil {
		return issue
	}
	return q.trailing()
}

// trailing refuses whatever follows the object.
func (q *question) trailing() *problem {
	return trailingData(q.decoder)
}

// object reads an object whose fields are those that lookup knows.
func (q *question) object(lookup func(string) questionField, names, at string) *problem {
	if _, err := q.decoder.ReadToken(); err != nil {
		return syntaxProblem(err)
	}
	for {
		switch q.decoder.PeekKind() {
		case '}':
			if _, err := q.decoder.ReadToken(); err != nil {
				return syntaxProblem(err)
			}
			return nil
		case '"':
		default:
			_, err := q.decoder.ReadToken()
			return syntaxProblem(err)
		}
		name, err := q.string()
		if err != nil {
			return syntaxProblem(err)
		}
		field := lookup(name)
		if field == fieldNone {
			return badRequest("unknown_field", "A field is unknown; names are case-sensitive. Accepted: "+names+".",
				fieldIssue{at, "has a field that is not one of " + names})
		}
		q.seen[field] = true
		if err := q.value(field); err != nil {
			return err
		}
	}
}

func (q *question) value(field questionField) *problem {
	kind := q.decoder.PeekKind()
	switch {
	case field == fieldResource && kind == '{':
		return q.object(resourceField, resourceFieldNames, field.pointer())
	case field == fieldBrowser && (kind == 't' || kind == 'f'):
		q.browser = kind == 't'
	case field == fieldCost && kind == '0':
		return q.number()
	case field != fieldResource && field != fieldBrowser && field != fieldCost && kind == '"':
		text, err := q.string()
		if err != nil {
			return syntaxProblem(err)
		}
		return q.textValue(field, text)
	case kind == 0: // a syntax error, which the next read tells
	default:
		q.issue("invalid_type", field, "must be "+wantedType(field))
	}
	if err := q.decoder.SkipValue(); err != nil {
		return syntaxProblem(err)
	}
	return nil
}

func wantedType(field questionField) string {
	switch field {
	case fieldResource:
		return "an object"
	case fieldBrowser:
		return "true or false"
	case fieldCost:
		return "a whole number from 1 to 10000"
	}
	return "a string"
}

func (q *question) number() *problem {
	raw, err := q.decoder.ReadValue()
	if err != nil {
		return syntaxProblem(err)
	}
	n, err := strconv.Atoi(string(raw))
	var numError *strconv.NumError
	switch {
	case errors.As(err, &numError) && errors.Is(numError.Err, strconv.ErrSyntax):
		q.issue("invalid_type", fieldCost, "must be a whole number from 1 to 10000")
	case err != nil || n < authz.MinCost || n > authz.MaxCost:
		q.issue("out_of_range", fieldCost, "must be from 1 to 10000")
	default:
		q.cost = n
	}
	return nil
}

// string reads a string; without escapes it is a part of the text and costs no memory.
func (q *question) string() (string, error) {
	raw, err := q.decoder.ReadValue()
	if err != nil {
		return "", err //nolint:wrapcheck // syntaxProblem reads it
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		end := int(q.decoder.InputOffset())
		return q.text[end-len(raw)+1 : end-1], nil
	}
	unquoted, err := jsontext.AppendUnquote(nil, raw)
	return string(unquoted), err //nolint:wrapcheck // syntaxProblem reads it
}

// textValue takes one string value.
func (q *question) textValue(field questionField, text string) *problem {
	if strings.IndexByte(text, 0) >= 0 {
		return badRequest("nul_character", "A string contains a NUL character.",
			fieldIssue{field.pointer(), "contains a NUL character"})
	}
	if len(text) > maxCheckString {
		q.issue("string_too_long", field, "must be at most 8192 bytes")
		return nil
	}
	q.values[field] = text
	switch field {
	case fieldKeySHA256:
		hash, ok := authz.ParseSecretHash(text)
		if !ok {
			q.issue("out_of_range", field, "must be the SHA-256 of the key as 64 hexadecimal characters")
		}
		q.hash = hash
	case fieldEnvironment:
		if text != "" && !authz.Environment(text).Valid() {
			q.issue("out_of_range", field, "must be live or test")
		}
	}
	return nil
}

// issue notes something wrong with a field; the first decides the code.
func (q *question) issue(code string, field questionField, message string) {
	if q.code == "" {
		q.code = code
	}
	q.issues = append(q.issues, fieldIssue{field.pointer(), message})
}

// check makes the check of what was read.
func (q *question) check(format authz.KeyFormat, foreign func(string) bool) (*authz.Check, *problem) {
	if q.seen[fieldKey] && q.seen[fieldKeySHA256] {
		return nil, badRequest("duplicate_field", "The key is given twice. Send either key or key_sha256.",
			fieldIssue{"/key_sha256", "must not be sent together with key"})
	}
	if q.code == "" {
		q.requireFields()
	}
	if q.code != "" {
		return nil, &problem{
			Status: http.StatusUnprocessableEntity, Code: q.code, Title: "The question cannot be answered",
			Detail: "Some fields are missing or not acceptable; see errors.", Issues: q.issues,
		}
	}
	c := &authz.Check{
		Action:      q.values[fieldAction],
		Environment: authz.Environment(q.values[fieldEnvironment]),
		Resource: authz.Resource{
			Type: q.values[fieldResourceType], ID: q.values[fieldResourceID],
			Organization: q.values[fieldResourceOrganization],
		},
		Browser: q.browser,
		Cost:    q.cost,
	}
	if ip := q.values[fieldClientIP]; ip != "" {
		c.ClientIP = authz.NormalizeAddr(ip)
	}
	if q.values[fieldMethod] != "" {
		c.SetRequest(q.values[fieldMethod], q.values[fieldPath])
	}
	if q.seen[fieldKeySHA256] {
		c.Presented = authz.PresentHash(q.hash)
	} else {
		c.Presented = authz.PresentSecret(format, q.values[fieldKey])
		if foreign != nil && c.Presented.Malformed() && foreign(q.values[fieldKey]) {
			c.Presented = authz.PresentForeign(q.values[fieldKey])
		}
	}
	return c, nil
}

func (q *question) requireFields() {
	if !q.seen[fieldKey] && !q.seen[fieldKeySHA256] {
		q.issue("missing_field", fieldKey, `is required: the presented key, "" when the client sent none, or send key_sha256`)
	}
	method, path, action := q.values[fieldMethod], q.values[fieldPath], q.values[fieldAction]
	switch {
	case method == "" && path != "":
		q.issue("missing_field", fieldMethod, "is required together with path")
	case method != "" && path == "":
		q.issue("missing_field", fieldPath, "is required together with method")
	case method == "" && action == "":
		q.issue("missing_field", fieldMethod, "is required, together with path, unless action is given")
	}
}
