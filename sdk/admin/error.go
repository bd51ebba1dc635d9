package admin

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Codes of errors that the client itself finds.
const (
	// CodeInvalidAnswer: an answer came that is not one of the management API.
	CodeInvalidAnswer = "invalid_answer"
	// CodeUnavailable: the service, or something in front of it, could not answer.
	CodeUnavailable = "unavailable"
)

// maxErrorText bounds each text that an [Error] takes from an answer, in bytes.
const maxErrorText = 512

// maxErrorItems bounds the fields, and the reasons, that an [Error] takes.
const maxErrorItems = 16

// Error is a refusal or failure that the service answered. It never holds a
// token or a value that was sent.
type Error struct {
	// Status is the HTTP status of the answer.
	Status int
	// Code is the service's stable word (not_found, version_mismatch, …) or one
	// of this package's.
	Code string
	// Detail is a sentence for a person.
	Detail string
	// RequestID names the exchange in the service's log. May be empty.
	RequestID string
	// Fields are the faulty fields of the request.
	Fields []FieldError
	// Reasons are policy's, when it refused.
	Reasons []Reason
}

// Error tells what went wrong in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("keystile: " + strconv.Itoa(e.Status) + " " + e.Code)
	said := make([]Reason, 0, len(e.Fields)+len(e.Reasons))
	for _, f := range e.Fields {
		said = append(said, Reason{Code: f.Pointer, Message: f.Message})
	}
	tell(&b, e.Detail, append(said, e.Reasons...))
	if e.RequestID != "" {
		b.WriteString(" (request " + e.RequestID + ")")
	}
	return b.String()
}

// tell writes detail behind what it is said of, and then what says something else:
// the service's detail often is the message of a field.
func tell(b *strings.Builder, detail string, list []Reason) {
	var of, more []string
	for _, r := range list {
		text := r.Message
		if r.Code != "" {
			text = r.Code + ": " + text
		}
		switch {
		case r.Message != detail:
			more = append(more, text)
		case r.Code != "":
			of = append(of, r.Code)
		}
	}
	if len(of) > 0 {
		b.WriteString(": " + strings.Join(slices.Compact(of), ", "))
	}
	if detail != "" {
		b.WriteString(": " + detail)
	}
	for _, text := range slices.Compact(more) {
		b.WriteString("; " + text)
	}
}

// ErrAnswerTooLong is the cause of a [*TransportError] when an answer exceeds
// [MaxAnswerBytes].
var ErrAnswerTooLong = fmt.Errorf("the answer is longer than %d bytes", MaxAnswerBytes)

// TransportError means that no whole answer came: a change may have been made
// or not.
type TransportError struct {
	// Detail is a sentence for a person.
	Detail string

	cause error
}

// Error tells what went wrong in one line.
func (e *TransportError) Error() string {
	if cause := e.cause.Error(); cause != e.Detail {
		return "keystile: " + e.Detail + ": " + cause
	}
	return "keystile: " + e.Detail
}

// Unwrap returns the cause, such as [context.DeadlineExceeded].
func (e *TransportError) Unwrap() error { return e.cause }

// refusal takes the known members of a problem, each bounded and without the
// token: a service that echoes its input must not put it into an error.
func refusal(resp *http.Response, body []byte, token string) *Error {
	clean := func(s string) string {
		s = strings.ReplaceAll(s, token, "[redacted]")
		if len(s) > maxErrorText {
			s = strings.ToValidUTF8(s[:maxErrorText], "")
		}
		return s
	}
	e := &Error{
		Status: resp.StatusCode, Code: CodeInvalidAnswer, RequestID: clean(resp.Header.Get("X-Request-Id")),
		Detail: "the answer is not one of Keystile's management API; is the URL right?",
	}
	if resp.StatusCode >= http.StatusInternalServerError {
		e.Code, e.Detail = CodeUnavailable, "the service could not answer"
	}
	var p Problem
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || media != "application/problem+json" || json.Unmarshal(body, &p) != nil || p.Code == "" {
		return e
	}
	e.Code, e.Detail = clean(p.Code), clean(p.Detail)
	if e.Detail == "" {
		e.Detail = clean(p.Title)
	}
	if p.RequestID != "" {
		e.RequestID = clean(p.RequestID)
	}
	if p.Errors != nil {
		for _, f := range (*p.Errors)[:min(len(*p.Errors), maxErrorItems)] {
			e.Fields = append(e.Fields, FieldError{Pointer: clean(f.Pointer), Message: clean(f.Message)})
		}
	}
	if p.Reasons != nil {
		for _, r := range (*p.Reasons)[:min(len(*p.Reasons), maxErrorItems)] {
			e.Reasons = append(e.Reasons, Reason{Code: clean(r.Code), Message: clean(r.Message)})
		}
	}
	return e
}
