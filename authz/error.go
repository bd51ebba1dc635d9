package authz

import "errors"

// Kind sorts errors by who can do something about them. The zero Kind is an
// unexpected fault of ours.
type Kind int

// The kinds of errors.
const (
	// KindInternal is a fault of ours; its sentence is not for the outside.
	KindInternal Kind = iota
	// KindInvalid means that the question cannot be answered as it stands.
	KindInvalid
	// KindUnauthenticated means that the caller's token is missing or not accepted.
	KindUnauthenticated
	// KindForbidden means that the caller is known and may not ask this.
	KindForbidden
	// KindUnavailable means that a dependency did not answer in time.
	KindUnavailable
	// KindNotFound means that there is nothing of that id, or nothing that the asker may see.
	KindNotFound
	// KindConflict means that what is there does not permit it.
	KindConflict
	// KindThrottled means that the caller has asked for too much at once.
	KindThrottled
	// KindPrecondition means that the thing has changed since the asker read it.
	KindPrecondition
)

// Error is an error with two halves: a code and a sentence that may be shown,
// and a cause that belongs in the log.
type Error struct {
	Kind Kind
	// Code is the stable code of the answer, for example "cost_exceeds_burst".
	Code string
	// Message is a sentence for the caller. It never holds a value that was given.
	Message string
	// Pointer is the JSON Pointer (RFC 6901) of the field at fault, or empty.
	Pointer string
	// Reasons are policy's, when it was policy that refused a management action.
	Reasons []Reason
	// Cause is for the log, and may be nil.
	Cause error
}

// Error implements error with the code, the sentence and the cause.
func (e *Error) Error() string {
	s := e.Code + ": " + e.Message
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// KindOf returns the kind of the first *Error in err's chain, or KindInternal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindInternal
}

// Unavailable wraps the error of a dependency that did not answer.
func Unavailable(what string, cause error) *Error {
	return &Error{Kind: KindUnavailable, Code: string(CodeUnavailable), Message: what, Cause: cause}
}

// CallerThrottled tells a caller that it has more waiting than its share.
func CallerThrottled(what string) *Error {
	return &Error{
		Kind: KindThrottled, Code: "caller_throttled",
		Message: "This caller has too many checks of keys waiting that are not in memory; ask again in a second.",
		Cause:   errors.New(what),
	}
}
