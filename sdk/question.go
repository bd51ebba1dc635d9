package keystile

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"unicode/utf8"
)

// Environment tells live data from test data. Its zero value means "not said".
type Environment string

// The environments of a key.
const (
	Live Environment = "live"
	Test Environment = "test"
)

// Question is what a [Client] asks about one presented key and one request.
// Method and Path, or Action, or both must be given; with both, both must pass.
//
// A Question prints, logs and encodes without its key.
type Question struct {
	// Key is the secret as the client presented it; "" when it sent none. Only
	// its SHA-256 is sent.
	Key string `json:"-"`

	// Method and Path are the request's: the path as sent, still escaped,
	// without its query.
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`

	// Action is a scope that the key must have, such as "tickets:read".
	Action string `json:"action,omitempty"`

	// Environment narrows the check to keys of that environment. Default: both.
	Environment Environment `json:"environment,omitempty"`

	// Resource is what the request is about, for policies that ask. May be nil.
	Resource *Resource `json:"resource,omitempty"`

	// ClientIP is the address of the end client. Empty: not known, and a key
	// that is bound to addresses is then refused.
	ClientIP string `json:"client_ip,omitempty"`

	// Browser says that the request comes from a web page, where a key is in
	// the hands of everyone who opens it. It is kept as evidence, and a reason
	// to deny (browser_use) where policy says so.
	Browser bool `json:"browser,omitempty"`

	// Cost is what the request takes from the rate limit, 1 to 10,000. Zero
	// means 1.
	Cost int `json:"cost,omitempty"`
}

// Resource names what a request is about.
type Resource struct {
	Type         string `json:"type,omitempty"`
	ID           string `json:"id,omitempty"`
	Organization string `json:"organization,omitempty"`
}

// Format prints the question without its key, under every verb.
func (q Question) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "%s %s", q.Method, q.Path)
	if q.Action != "" {
		_, _ = io.WriteString(f, " "+q.Action)
	}
}

// LogValue logs the question without its key.
func (q Question) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("method", q.Method),
		slog.String("path", q.Path),
		slog.String("action", q.Action),
	)
}

type wireQuestion struct {
	Key       *string `json:"key,omitempty"`
	KeySHA256 string  `json:"key_sha256,omitempty"`
	Question
}

// encode refuses text that JSON cannot carry unchanged: the service would
// decide about another path than the one that is served.
func (q Question) encode() ([]byte, error) {
	texts := []string{q.Method, q.Path, q.Action, string(q.Environment), q.ClientIP}
	if q.Resource != nil {
		texts = append(texts, q.Resource.Type, q.Resource.ID, q.Resource.Organization)
	}
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return nil, &Error{Code: CodeInvalidUTF8, Detail: "a field of the question is not UTF-8; it was not asked"}
		}
	}
	wire := wireQuestion{Question: q}
	if q.Key == "" {
		wire.Key = new(string)
	} else {
		digest := sha256.Sum256([]byte(q.Key))
		wire.KeySHA256 = hex.EncodeToString(digest[:])
	}
	body, err := json.Marshal(wire)
	if err != nil {
		return nil, &Error{Code: CodeInvalidQuestion, Detail: "the question cannot be encoded", cause: err}
	}
	return body, nil
}
