package keystile

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
)

const problemType = "application/problem+json"

// Decision is the service's answer about one key and one request. Its zero
// value denies. Treat one that [FromContext] returns as read-only: it is shared
// by everything that handles the request.
type Decision struct { //nolint:recvcheck // values are encoded too
	// Allow is the decision; see also [Decision.Allowed].
	Allow bool `json:"allow"`
	// Code says why, in one stable word.
	Code Code `json:"code"`
	// Status is the HTTP status for the end client: 200 on allow.
	Status int `json:"status"`

	// Organization owns the key. Nil when the key is not known; never nil on allow.
	Organization *Organization `json:"organization"`
	// Key is the presented key. Nil when it is not known; never nil on allow.
	Key *Key `json:"key"`

	// Scopes are those of the key; RequiredScopes those that the request needs;
	// MissingScopes the difference.
	Scopes         []string `json:"scopes"`
	RequiredScopes []string `json:"required_scopes"`
	MissingScopes  []string `json:"missing_scopes"`
	// Route is the template that the path matched; empty when none did.
	Route string `json:"route"`

	// Reasons for a denial, the deciding one first. Warnings, such as
	// "expires_soon", come with allowed requests too.
	Reasons  []Reason `json:"reasons"`
	Warnings []Reason `json:"warnings"`

	// RateLimit is the limit that was counted. Nil when none was.
	RateLimit *RateLimit `json:"rate_limit"`
	// Headers are for the end client, in exactly this spelling.
	Headers map[string]string `json:"headers"`
	// Problem is the body for the end client of a denied request. Nil on allow.
	Problem *Problem `json:"problem"`

	// ID names the decision in the service's records.
	ID string `json:"decision_id"`
	// PolicyRevision is the hash of the policies that decided. May be empty.
	PolicyRevision string `json:"policy_revision"`
	// Degraded lists parts of the service that it decided without: "limiter",
	// "store".
	Degraded []string `json:"degraded"`
}

// Organization is the tenant that owns a key.
type Organization struct {
	ID string `json:"id"`
	// ExternalID is the adopter's own id of it. Empty when it has none.
	ExternalID string `json:"external_id"`
	Name       string `json:"name"`
	Plan       string `json:"plan"`
}

// Key is the presented key. Its ID never changes; SecretID does at a rotation.
type Key struct {
	ID       string `json:"id"`
	SecretID string `json:"secret_id"`
	Name     string `json:"name"`
	// Hint shows the secret's ends only; it may be logged.
	Hint        string         `json:"hint"`
	Environment Environment    `json:"environment"`
	Metadata    map[string]any `json:"metadata"`
}

// Reason is a stable code and a sentence.
type Reason struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// RateLimit is the state of one limit after the request was counted. Times are
// whole seconds.
type RateLimit struct {
	Name              string `json:"name"`
	Limit             int64  `json:"limit"`
	Remaining         int64  `json:"remaining"`
	PeriodSeconds     int64  `json:"period_seconds"`
	ResetSeconds      int64  `json:"reset_seconds"`
	RetryAfterSeconds int64  `json:"retry_after_seconds"`
	// Mode is exact, local, open or closed.
	Mode string `json:"mode"`
}

// Problem is a problem document (RFC 9457). One that came from the service
// encodes to the bytes that came, members unknown here included.
type Problem struct { //nolint:recvcheck // values are encoded too
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   Code   `json:"code"`
	Detail string `json:"detail,omitempty"`

	raw []byte
}

type plainProblem Problem

// UnmarshalJSON keeps the bytes as they are.
func (p *Problem) UnmarshalJSON(data []byte) error {
	var plain plainProblem
	if err := json.Unmarshal(data, &plain); err != nil {
		return err
	}
	plain.raw = append([]byte(nil), data...)
	*p = Problem(plain)
	return nil
}

// MarshalJSON returns the bytes that came, if any came.
func (p Problem) MarshalJSON() ([]byte, error) {
	if p.raw != nil {
		return p.raw, nil
	}
	return json.Marshal(plainProblem(p))
}

// Allowed reports whether the request may go on. It is false on a nil decision
// and on one that contradicts itself.
func (d *Decision) Allowed() bool {
	return d != nil && d.check() == nil && d.Allow
}

// SetHeaders puts the decision's headers into h, spelled as they are, in place
// of any that differ in case only.
func (d *Decision) SetHeaders(h http.Header) {
	if d == nil {
		return
	}
	for name, value := range d.Headers {
		h.Del(name)
		// Set would send X-Ratelimit-Limit.
		h[name] = []string{value}
	}
}

// WriteTo answers a denied request: status, headers and problem as the service
// wants them, and Cache-Control: no-store. A decision that neither allows nor
// denies, such as the zero one or nil, is answered with 503. For an allowed one
// it sets the headers and writes nothing. It returns the error of the write.
func (d *Decision) WriteTo(w http.ResponseWriter) error {
	if d.Allowed() {
		d.SetHeaders(w.Header())
		return nil
	}
	if d == nil || d.check() != nil {
		return refuse(w, CodeUnavailable)
	}
	d.SetHeaders(w.Header())
	return d.Problem.write(w, d.Status)
}

func (p *Problem) write(w http.ResponseWriter, status int) error {
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", problemType)
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, err = w.Write(append(body, '\n'))
	return err
}

// check finds what a decision must not say. A tenant's rows hang on
// Organization and Environment, so an allow without them is none.
func (d *Decision) check() error {
	switch {
	case d.Code == "":
		return errors.New("the decision has no code")
	case d.Allow && d.Status != http.StatusOK:
		return fmt.Errorf("the decision allows with status %d", d.Status)
	case d.Allow && d.Problem != nil:
		return errors.New("the decision allows and has a problem")
	case d.Allow && len(d.MissingScopes) != 0:
		return errors.New("the decision allows and misses scopes")
	case d.Allow && (d.Organization == nil || d.Organization.ID == ""):
		return errors.New("the decision allows and names no organization")
	case d.Allow && (d.Key == nil || d.Key.ID == ""):
		return errors.New("the decision allows and names no key")
	case d.Allow && d.Key.Environment != Live && d.Key.Environment != Test:
		return errors.New("the decision allows and names no environment")
	case !d.Allow && (d.Status < 400 || d.Status > 599):
		return fmt.Errorf("the decision denies with status %d", d.Status)
	case !d.Allow && d.Problem == nil:
		return errors.New("the decision denies and has no problem")
	}
	return nil
}

type plainDecision Decision

// decodeDecision takes an answer of status 200. Fields unknown here are
// ignored, so that the service may add some.
func decodeDecision(body []byte, contentType string, q Question) (*Decision, error) {
	if len(body) > MaxAnswerBytes {
		return nil, fmt.Errorf("the answer is longer than %d bytes", MaxAnswerBytes)
	}
	if media, _, err := mime.ParseMediaType(contentType); err != nil || media != "application/json" {
		return nil, errors.New("the answer is not application/json")
	}
	var wire struct {
		plainDecision
		Allow   *bool             `json:"allow"`
		Code    *Code             `json:"code"`
		Status  *int              `json:"status"`
		Headers map[string]string `json:"headers"`
		ID      *string           `json:"decision_id"`
	}
	if err := json.Unmarshal(body, &wire); err != nil {
		return nil, errors.New("the answer is not a decision's JSON")
	}
	if wire.Allow == nil || wire.Code == nil || wire.Status == nil || wire.Headers == nil || wire.ID == nil {
		return nil, errors.New("the answer lacks one of allow, code, status, headers, decision_id")
	}
	d := Decision(wire.plainDecision)
	d.Allow, d.Code, d.Status, d.Headers, d.ID = *wire.Allow, *wire.Code, *wire.Status, wire.Headers, *wire.ID
	if err := d.check(); err != nil {
		return nil, err
	}
	if d.Allow && q.Environment != "" && d.Key.Environment != q.Environment {
		return nil, errors.New("the decision allows a key of another environment than was asked for")
	}
	return &d, nil
}

// MarshalJSON writes what is unknown as null or [], in the order of the service.
func (d Decision) MarshalJSON() ([]byte, error) {
	headers := d.Headers
	if headers == nil {
		headers = map[string]string{}
	}
	return json.Marshal(struct {
		Allow          bool              `json:"allow"`
		Code           Code              `json:"code"`
		Status         int               `json:"status"`
		Organization   *Organization     `json:"organization"`
		Key            *Key              `json:"key"`
		Scopes         []string          `json:"scopes"`
		RequiredScopes []string          `json:"required_scopes"`
		MissingScopes  []string          `json:"missing_scopes"`
		Route          *string           `json:"route"`
		Reasons        []Reason          `json:"reasons"`
		Warnings       []Reason          `json:"warnings"`
		RateLimit      *RateLimit        `json:"rate_limit"`
		Headers        map[string]string `json:"headers"`
		Problem        *Problem          `json:"problem"`
		ID             string            `json:"decision_id"`
		PolicyRevision *string           `json:"policy_revision"`
		Degraded       []string          `json:"degraded"`
	}{
		d.Allow, d.Code, d.Status, d.Organization, d.Key,
		orEmpty(d.Scopes), orEmpty(d.RequiredScopes), orEmpty(d.MissingScopes), orNull(d.Route),
		orEmpty(d.Reasons), orEmpty(d.Warnings), d.RateLimit, headers, d.Problem,
		d.ID, orNull(d.PolicyRevision), orEmpty(d.Degraded),
	})
}

// MarshalJSON writes an absent external id as null.
func (o Organization) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ID         string  `json:"id"`
		ExternalID *string `json:"external_id"`
		Name       string  `json:"name"`
		Plan       string  `json:"plan"`
	}{o.ID, orNull(o.ExternalID), o.Name, o.Plan})
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
