// Package keystiletest is a stand-in for a Keystile service, for tests of
// applications that use the SDK. It answers POST /v1/check from a list, and is
// strict: what the real service refuses, it refuses. It imports the standard
// library and the SDK only, and belongs into tests alone.
package keystiletest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	keystile "github.com/supportstation/keystile/sdk"
)

// maxBody is the service's own bound, in bytes.
const maxBody = 64 << 10

// Asked is one question as it reached the service.
type Asked struct {
	Key         *string            `json:"key"`
	KeySHA256   string             `json:"key_sha256"`
	Method      string             `json:"method"`
	Path        string             `json:"path"`
	Action      string             `json:"action"`
	Environment string             `json:"environment"`
	Resource    *keystile.Resource `json:"resource"`
	ClientIP    string             `json:"client_ip"`
	Browser     bool               `json:"browser"`
	Cost        int                `json:"cost"`
}

// Service is an [http.Handler] that answers checks. It is safe for concurrent
// use. Its zero value knows no key and accepts no caller; use [New].
type Service struct {
	token string

	mu    sync.Mutex
	keys  map[string]grant
	asked []Asked
	reply func(*http.Request, Asked) (status int, contentType, body string)
}

type grant struct {
	decision keystile.Decision
	scopes   []string
}

// New returns a service that accepts the caller's token.
func New(token string) *Service {
	return &Service{token: token, keys: map[string]grant{}}
}

// Secret returns a new random secret of the environment, in the real form but
// for its checksum.
func Secret(environment keystile.Environment) string {
	return "sk_" + string(environment) + "_" + rand.Text() + rand.Text()[:10]
}

// Grant makes secret a key of the organization with the scopes. Requests under
// method and path are allowed when the path's resource, the segment after
// /api/v1/, and the method give one of the scopes: GET and HEAD read, others
// write.
func (s *Service) Grant(secret, organization string, environment keystile.Environment, scopes ...string) {
	digest := sha256.Sum256([]byte(secret))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[hex.EncodeToString(digest[:])] = grant{scopes: scopes, decision: keystile.Decision{
		Organization: &keystile.Organization{ID: organization, Name: organization, Plan: "standard"},
		Key: &keystile.Key{
			ID: "key_" + organization, SecretID: "sec_" + organization, Name: "test",
			Hint: "sk_" + string(environment) + "_…", Environment: environment, Metadata: map[string]any{},
		},
	}}
}

// Reply makes the service answer every question by reply, after it has checked
// its form. Nil restores the list.
func (s *Service) Reply(reply func(r *http.Request, asked Asked) (status int, contentType, body string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reply = reply
}

// ReplyDecision makes the service answer every question with d.
func (s *Service) ReplyDecision(d keystile.Decision) {
	body, err := json.Marshal(d)
	s.Reply(func(*http.Request, Asked) (int, string, string) {
		if err != nil {
			return http.StatusInternalServerError, "text/plain", err.Error()
		}
		return http.StatusOK, "application/json", string(body)
	})
}

// Asked returns all well-formed questions so far, oldest first.
func (s *Service) Asked() []Asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Asked(nil), s.asked...)
}

// ServeHTTP answers POST /v1/check and nothing else.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header()["X-Request-Id"] = []string{"req-test"}
	if r.URL.Path != "/v1/check" || r.URL.RawQuery != "" {
		refuse(w, http.StatusNotFound, "not_found", "")
		return
	}
	if r.Method != http.MethodPost {
		refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "")
		return
	}
	if got := r.Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+s.token {
		refuse(w, http.StatusUnauthorized, "caller_unauthorized", "")
		return
	}
	if r.Header.Get("Content-Type") != "application/json" {
		refuse(w, http.StatusUnsupportedMediaType, "unsupported_media_type", "")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "body_too_large", "")
		return
	}
	asked, pointer, err := decode(body)
	if err != nil {
		refuse(w, http.StatusUnprocessableEntity, err.Error(), pointer)
		return
	}
	s.answer(w, r, asked)
}

func decode(body []byte) (asked Asked, pointer string, err error) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if decoder.Decode(&asked) != nil {
		return asked, "", errors.New("malformed_json")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return asked, "", errors.New("trailing_data")
	}
	digest, hexErr := hex.DecodeString(asked.KeySHA256)
	switch {
	case asked.Key != nil && *asked.Key != "":
		return asked, "/key", errors.New("secret_sent")
	case (asked.Key == nil) == (asked.KeySHA256 == ""):
		return asked, "/key_sha256", errors.New("missing_field")
	case asked.Key == nil && (hexErr != nil || len(digest) != sha256.Size):
		return asked, "/key_sha256", errors.New("invalid_type")
	case (asked.Method == "") != (asked.Path == ""), asked.Method == "" && asked.Action == "":
		return asked, "/method", errors.New("missing_field")
	case asked.Environment != "" && asked.Environment != "live" && asked.Environment != "test":
		return asked, "/environment", errors.New("invalid_type")
	case asked.Cost < 0 || asked.Cost > 10_000:
		return asked, "/cost", errors.New("out_of_range")
	}
	return asked, "", nil
}

func (s *Service) answer(w http.ResponseWriter, r *http.Request, asked Asked) {
	s.mu.Lock()
	s.asked = append(s.asked, asked)
	reply := s.reply
	key, known := s.keys[asked.KeySHA256]
	s.mu.Unlock()
	if reply != nil {
		status, contentType, body := reply(r, asked)
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return
	}
	d := decide(asked, key, known)
	w.Header().Set("Content-Type", "application/json")
	w.Header()["X-Keystile-Decision"] = []string{verdict(d)}
	_ = json.NewEncoder(w).Encode(d)
}

func decide(asked Asked, key grant, known bool) keystile.Decision {
	required := requiredScope(asked)
	switch {
	case !known && asked.Key != nil:
		return Denied(keystile.CodeKeyMissing, http.StatusUnauthorized)
	case !known:
		return Denied(keystile.CodeKeyUnknown, http.StatusUnauthorized)
	case asked.Environment != "" && asked.Environment != string(key.decision.Key.Environment):
		return Denied(keystile.CodeEnvironmentMismatch, http.StatusForbidden)
	}
	allowed := false
	for _, scope := range key.scopes {
		allowed = allowed || scope == required
	}
	if !allowed {
		d := Denied(keystile.CodeInsufficientScope, http.StatusForbidden)
		d.Organization, d.Key, d.Scopes = key.decision.Organization, key.decision.Key, key.scopes
		d.RequiredScopes, d.MissingScopes = []string{required}, []string{required}
		return d
	}
	d := Allowed(key.decision.Organization.ID, key.decision.Key.Environment, key.scopes...)
	d.Key = key.decision.Key
	d.RequiredScopes = []string{required}
	return d
}

func requiredScope(asked Asked) string {
	if asked.Action != "" {
		return asked.Action
	}
	resource, _, _ := strings.Cut(strings.TrimPrefix(asked.Path, "/api/v1/"), "/")
	if asked.Method == http.MethodGet || asked.Method == http.MethodHead {
		return resource + ":read"
	}
	return resource + ":write"
}

// Allowed returns a complete decision that allows.
func Allowed(organization string, environment keystile.Environment, scopes ...string) keystile.Decision {
	return keystile.Decision{
		Allow: true, Code: keystile.CodeAllowed, Status: http.StatusOK,
		Organization: &keystile.Organization{ID: organization, Name: organization, Plan: "standard"},
		Key: &keystile.Key{
			ID: "key_" + organization, SecretID: "sec_" + organization, Name: "test",
			Hint: "sk_…", Environment: environment, Metadata: map[string]any{},
		},
		Scopes:    scopes,
		RateLimit: &keystile.RateLimit{Name: "key", Limit: 100, Remaining: 99, PeriodSeconds: 60, ResetSeconds: 1, Mode: "exact"},
		Headers:   rateHeaders("99"),
		ID:        "dec_test", PolicyRevision: "sha256:test",
	}
}

// Denied returns a complete decision that denies with code and status.
func Denied(code keystile.Code, status int) keystile.Decision {
	headers := rateHeaders("98")
	switch status {
	case http.StatusUnauthorized:
		headers = map[string]string{"WWW-Authenticate": `Bearer realm="api", error="invalid_token"`}
	case http.StatusTooManyRequests:
		headers["Retry-After"] = "1"
	}
	return keystile.Decision{
		Code: code, Status: status, Headers: headers,
		Reasons: []keystile.Reason{{Code: code, Message: "The request is denied: " + string(code) + "."}},
		Problem: &keystile.Problem{
			Type: "urn:keystile:problem:" + string(code), Title: http.StatusText(status), Status: status,
			Code: code, Detail: "The request is denied: " + string(code) + ".",
		},
		ID: "dec_test", PolicyRevision: "sha256:test",
	}
}

func rateHeaders(remaining string) map[string]string {
	return map[string]string{
		"X-RateLimit-Limit":     "100",
		"X-RateLimit-Remaining": remaining,
		"X-RateLimit-Reset":     "1795420801",
		"RateLimit-Policy":      `"key";q=100;w=60`,
		"RateLimit":             `"key";r=` + remaining + `;t=1`,
	}
}

func refuse(w http.ResponseWriter, status int, code, pointer string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	faults := []keystile.Pointer{}
	if pointer != "" {
		faults = append(faults, keystile.Pointer{Pointer: pointer, Message: "is not accepted"})
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": "urn:keystile:problem:" + code, "title": http.StatusText(status), "status": status,
		"code": code, "errors": faults,
	})
}

func verdict(d keystile.Decision) string {
	switch {
	case d.Allow:
		return "allow"
	case d.Code == keystile.CodeRateLimited:
		return "limited"
	case d.Code == keystile.CodeUnavailable:
		return "error"
	}
	return "deny"
}
