package keystile

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Code is a stable word for a decision or an error.
type Code string

// Codes of decisions. A service's own policies may deny with CodePolicyDenied
// and put theirs into [Decision.Reasons].
const (
	CodeAllowed               Code = "allowed"
	CodeKeyMissing            Code = "key_missing"
	CodeKeyMalformed          Code = "key_malformed"
	CodeKeyUnknown            Code = "key_unknown"
	CodeKeyRevoked            Code = "key_revoked"
	CodeKeyExpired            Code = "key_expired"
	CodeKeyDisabled           Code = "key_disabled"
	CodeOrganizationSuspended Code = "organization_suspended"
	CodeEnvironmentMismatch   Code = "environment_mismatch"
	CodeOrganizationMismatch  Code = "organization_mismatch"
	CodeIPNotAllowed          Code = "ip_not_allowed"
	CodeAmbiguousPath         Code = "ambiguous_path"
	CodeUnknownRoute          Code = "unknown_route"
	CodeBrowserUse            Code = "browser_use"
	CodeInsufficientScope     Code = "insufficient_scope"
	CodePolicyDenied          Code = "policy_denied"
	CodeRateLimited           Code = "rate_limited"
	CodeUnavailable           Code = "unavailable"
)

// Codes of errors that the client itself finds.
const (
	// CodeUnreachable: no answer came.
	CodeUnreachable Code = "unreachable"
	// CodeInvalidAnswer: an answer came that is no decision, or contradicts itself.
	CodeInvalidAnswer Code = "invalid_answer"
	// CodeInvalidQuestion: the question could not be encoded, and was not asked.
	CodeInvalidQuestion Code = "invalid_question"
	// CodeInvalidUTF8: text of the question is not UTF-8.
	CodeInvalidUTF8 Code = "invalid_utf8"
)

// maxErrorText bounds each text that an [Error] takes from an answer, in bytes.
const maxErrorText = 512

// maxPointers bounds the faults that an [Error] takes from an answer.
const maxPointers = 16

// Error means that a question was not decided; the request is not allowed. It
// never holds a key or a token.
type Error struct {
	// Code is the service's word (missing_field, caller_unauthorized, …) or one
	// of this package's.
	Code Code
	// Status is the HTTP status of the service's answer; 0 when there was none.
	Status int
	// RequestID names the exchange in the service's log. May be empty.
	RequestID string
	// Detail is a sentence for a person.
	Detail string
	// Pointers name the faulty fields of the question.
	Pointers []Pointer

	cause       error
	unavailable bool
}

// Pointer is one fault of a question.
type Pointer struct {
	// Pointer is the field's JSON pointer (RFC 6901), such as "/path".
	Pointer string `json:"pointer"`
	// Message says what is wrong with it, without its value.
	Message string `json:"message"`
}

// Error tells what went wrong in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("keystile: check: ")
	if e.Status != 0 {
		fmt.Fprintf(&b, "%d ", e.Status)
	}
	b.WriteString(string(e.Code))
	e.tell(&b)
	if e.cause != nil {
		b.WriteString(": " + e.cause.Error())
	}
	if e.RequestID != "" {
		b.WriteString(" (request " + e.RequestID + ")")
	}
	return b.String()
}

// tell writes the detail behind the fields that it is said of, and then what says
// something else: the service's detail often is the message of a field.
func (e *Error) tell(b *strings.Builder) {
	var of, more []string
	for _, p := range e.Pointers {
		text := p.Message
		if p.Pointer != "" {
			text = p.Pointer + ": " + text
		}
		switch {
		case p.Message != e.Detail:
			more = append(more, text)
		case p.Pointer != "":
			of = append(of, p.Pointer)
		}
	}
	if len(of) > 0 {
		b.WriteString(": " + strings.Join(slices.Compact(of), ", "))
	}
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	for _, text := range slices.Compact(more) {
		b.WriteString("; " + text)
	}
}

// Unwrap returns the cause, such as [context.DeadlineExceeded], or nil.
func (e *Error) Unwrap() error { return e.cause }

// Unavailable tells that the service did not answer in time, could not be
// reached, or answered with a 5xx. It is false when the service refused the
// question or the caller, when its answer made no sense, and when the asking
// side gave up.
func (e *Error) Unavailable() bool { return e != nil && e.unavailable }

// fill takes the known members of a problem, each bounded and without the token.
func (e *Error) fill(body []byte, redact func(string) string) {
	var p struct {
		Code   string    `json:"code"`
		Title  string    `json:"title"`
		Detail string    `json:"detail"`
		Errors []Pointer `json:"errors"`
	}
	if json.Unmarshal(body, &p) != nil {
		return
	}
	clean := func(s string) string {
		s = redact(s)
		if len(s) > maxErrorText {
			s = strings.ToValidUTF8(s[:maxErrorText], "")
		}
		return s
	}
	if p.Code != "" {
		e.Code = Code(clean(p.Code))
	}
	switch {
	case p.Detail != "":
		e.Detail = clean(p.Detail)
	case p.Title != "":
		e.Detail = clean(p.Title)
	}
	for _, fault := range p.Errors[:min(len(p.Errors), maxPointers)] {
		e.Pointers = append(e.Pointers, Pointer{Pointer: clean(fault.Pointer), Message: clean(fault.Message)})
	}
}
