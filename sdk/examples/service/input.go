package service

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
)

const (
	// maxBody bounds a request's body, in bytes.
	maxBody = 64 << 10
	// defaultPage and maxPage are how many items a page has.
	defaultPage = 20
	maxPage     = 100
)

// Field is a member that a body may have. All are strings.
type Field struct {
	Name string
	// Max is the greatest length, in characters. The least is one, and not
	// spaces alone.
	Max int
	// Required refuses a body without it.
	Required bool
	// Check, if any, returns what is wrong with a value, without the value.
	Check func(string) error
}

// fault is a body that is refused.
type fault struct {
	status       int
	code, detail string
	faults       []Fault
}

func (f *fault) Error() string { return f.code + ": " + f.detail }

func malformed(code, detail string) error {
	return &fault{status: http.StatusBadRequest, code: code, detail: detail}
}

func invalid(code, field, message string) error {
	return &fault{
		status: http.StatusUnprocessableEntity, code: code, detail: "A field of the body is not valid.",
		faults: []Fault{{Pointer: "/" + field, Message: message}},
	}
}

// ReadFields reads a JSON object of fields and returns the ones that were sent,
// at least one. Otherwise it has refused the request, and returns false. It is
// strict where [encoding/json] is not: duplicates, other cases of a name,
// unknown names, a second document, and NUL are errors.
func ReadFields(c *gin.Context, fields ...Field) (map[string]string, bool) {
	values, err := readFields(c, fields)
	var refused *fault
	switch {
	case err == nil:
		return values, true
	case errors.As(err, &refused):
		Refuse(c, refused.status, refused.code, refused.detail, refused.faults...)
	default:
		Refuse(c, http.StatusBadRequest, "malformed_json", "The body could not be read.")
	}
	return nil, false
}

func readFields(c *gin.Context, fields []Field) (map[string]string, error) {
	if media, _, err := mime.ParseMediaType(c.GetHeader("Content-Type")); err != nil || media != "application/json" {
		return nil, &fault{status: http.StatusUnsupportedMediaType, code: "unsupported_media_type", detail: "Send JSON, with Content-Type: application/json."}
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &fault{status: http.StatusRequestEntityTooLarge, code: "body_too_large", detail: "The body is longer than 65536 bytes."}
	case err != nil:
		return nil, err
	case !utf8.Valid(body):
		return nil, malformed("invalid_utf8", "The body is not UTF-8.")
	}
	values, err := decodeObject(body, fields)
	if err != nil {
		return nil, err
	}
	if err := validate(values, fields); err != nil {
		return nil, err
	}
	if len(values) == 0 {
		return nil, &fault{status: http.StatusUnprocessableEntity, code: "missing_field", detail: "The body holds no field; at least one is needed."}
	}
	return values, nil
}

func decodeObject(body []byte, fields []Field) (map[string]string, error) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil, malformed("malformed_json", "The body must be a JSON object.")
	}
	values := make(map[string]string, len(fields))
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, malformed("malformed_json", "The body is not JSON.")
		}
		field, known := find(fields, name)
		if !known {
			return nil, malformed("unknown_field", "The body holds a field that is not known here; names are case-sensitive.")
		}
		if _, twice := values[field.Name]; twice {
			return nil, malformed("duplicate_field", "The body holds a field twice.")
		}
		var raw json.RawMessage
		if decoder.Decode(&raw) != nil {
			return nil, malformed("malformed_json", "The body is not JSON.")
		}
		var value string
		if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &value) != nil {
			return nil, invalid("invalid_type", field.Name, "must be a string")
		}
		if strings.ContainsRune(value, 0) {
			return nil, malformed("nul_character", "A field holds the character NUL.")
		}
		values[field.Name] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, malformed("malformed_json", "The body is not JSON.")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed("trailing_data", "There is something behind the JSON object.")
	}
	return values, nil
}

func find(fields []Field, name json.Token) (Field, bool) {
	for _, field := range fields {
		if name == field.Name {
			return field, true
		}
	}
	return Field{}, false
}

func validate(values map[string]string, fields []Field) error {
	for _, field := range fields {
		value, sent := values[field.Name]
		switch {
		case !sent && field.Required:
			return invalid("missing_field", field.Name, "is required")
		case !sent:
			continue
		case strings.TrimSpace(value) == "":
			return invalid("out_of_range", field.Name, "must not be empty")
		case utf8.RuneCountInString(value) > field.Max:
			return invalid("string_too_long", field.Name, fmt.Sprintf("must have at most %d characters", field.Max))
		}
		if field.Check != nil {
			if err := field.Check(value); err != nil {
				return invalid("out_of_range", field.Name, err.Error())
			}
		}
	}
	return nil
}

// PathID returns the number in the path's {id}, written as this API writes it.
// Otherwise it has answered 404, and returns false.
func PathID(c *gin.Context) (int64, bool) {
	text := c.Param("id")
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id <= 0 || strconv.FormatInt(id, 10) != text {
		NotFound(c)
		return 0, false
	}
	return id, true
}

// PageRequest is which part of a list was asked for, newest first.
type PageRequest struct {
	// Before bounds the ids from above, exclusively.
	Before int64
	// Limit is how many items at most, 1 to 100.
	Limit int
}

// ReadPage reads the parameters limit (default 20) and cursor. Otherwise it has
// refused the request, and returns false. Other parameters mean nothing.
func ReadPage(c *gin.Context) (PageRequest, bool) {
	page := PageRequest{Before: math.MaxInt64, Limit: defaultPage}
	if text, sent := c.GetQuery("limit"); sent {
		limit, err := strconv.Atoi(text)
		if err != nil || limit < 1 || limit > maxPage {
			Refuse(c, http.StatusBadRequest, "out_of_range", "limit must be a number from 1 to 100.")
			return PageRequest{}, false
		}
		page.Limit = limit
	}
	if text, sent := c.GetQuery("cursor"); sent {
		before, err := decodeCursor(text)
		if err != nil {
			Refuse(c, http.StatusBadRequest, "invalid_cursor", "cursor must be the next_cursor of an earlier page.")
			return PageRequest{}, false
		}
		page.Before = before
	}
	return page, true
}

// Page is one part of a list. NextCursor is null at the end.
type Page[T any] struct {
	Items      []T     `json:"items"`
	NextCursor *string `json:"next_cursor"`
}

// NewPage makes a page of rows, of which one more than the limit was asked for.
func NewPage[T any](rows []T, request PageRequest, id func(T) int64) Page[T] {
	if len(rows) <= request.Limit {
		return Page[T]{Items: append([]T{}, rows...)}
	}
	rows = rows[:request.Limit]
	next := encodeCursor(id(rows[len(rows)-1]))
	return Page[T]{Items: rows, NextCursor: &next}
}

func encodeCursor(id int64) string {
	return base64.RawURLEncoding.EncodeToString([]byte("before " + strconv.FormatInt(id, 10)))
}

func decodeCursor(text string) (int64, error) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return 0, err
	}
	number, ok := strings.CutPrefix(string(raw), "before ")
	if !ok {
		return 0, errors.New("not a cursor")
	}
	id, err := strconv.ParseInt(number, 10, 64)
	if err == nil && id <= 0 {
		err = errors.New("not an id")
	}
	return id, err
}
