package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// parts is everything a Server asks, answering what a test says.
type parts struct {
	key      *authz.Key
	secret   *authz.KeySecret
	verdict  authz.Verdict
	panics   bool
	ready    Readiness
	findErr  error
	caller   *authz.Caller
	lookedUp int
}

func (p *parts) FindKey(context.Context, authz.CallerID, authz.SecretHash) (authz.FoundKey, error) {
	p.lookedUp++
	return authz.FoundKey{Key: p.key, Secret: p.secret}, p.findErr
}

func (p *parts) FindCaller(context.Context, authz.SecretHash) (*authz.Caller, error) {
	return p.caller, nil
}

func (p *parts) Evaluate(context.Context, *authz.Key, *authz.Check) (authz.Verdict, error) {
	if p.panics {
		panic("a fault")
	}
	return p.verdict, nil
}
func (p *parts) Revision() string { return "sha256:abc" }
func (p *parts) Now() time.Time   { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }
func (p *parts) Charge(context.Context, *authz.Key, authz.Limit, int) (authz.Charge, error) {
	return authz.Charge{Allowed: true, ResetAfter: 3 * time.Second, Mode: authz.LimiterExact}, nil
}

func newParts() *parts {
	now := time.Now()
	return &parts{
		key: &authz.Key{
			ID: authz.NewKeyID(now), Name: `<script>"ci"`, Environment: authz.EnvironmentLive,
			Scopes: []authz.Scope{"tickets:read"}, Metadata: `{"team":"billing"}`,
			Organization: &authz.Organization{ID: authz.NewOrganizationID(now), Name: "Acmé \u2028", Plan: "standard"},
		},
		secret: &authz.KeySecret{ID: authz.NewSecretID(now), Hint: "sk_live_4fGh…9aBc"},
		verdict: authz.Verdict{
			Allow: true, Route: "/api/v1/tickets", Required: []authz.Scope{"tickets:read"},
			Limits: []authz.Limit{{Name: "key", Rate: authz.Rate{Rate: 100, Period: time.Minute, Burst: 100}, Cost: 1}},
		},
		ready: Readiness{Ready: true, Details: map[string]any{"figure": 1}},
		caller: &authz.Caller{
			Name: "tickets", Environments: []authz.Environment{"live"}, Permissions: []authz.Permission{authz.PermissionCheck},
		},
	}
}

func testFormat(t testing.TB) authz.KeyFormat {
	t.Helper()
	f, err := authz.NewKeyFormat(authz.DefaultKeyPrefix)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func newServer(t testing.TB, p *parts) *Server {
	t.Helper()
	checker, err := authz.NewChecker(authz.CheckerOptions{Keys: p, Policy: p, Limiter: p, Clock: p})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{
		Checker: checker, Callers: authz.NewCallers(p, p), Format: testFormat(t), Ready: func() Readiness { return p.ready },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ask(s *Server, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/v1/check", strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+authz.CallerTokens().Generate().Reveal())
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

func goodBody(t testing.TB) string {
	t.Helper()
	return `{"key":"` + testFormat(t).Generate(authz.EnvironmentLive).Reveal() + `","method":"GET","path":"/api/v1/tickets"}`
}

// decisionDocument is the contract's decision; every field must be there.
type decisionDocument struct {
	Allow        *bool `json:"allow"`
	Code         string
	Status       int
	Organization *struct {
		ID, Name, Plan string
		ExternalID     *string `json:"external_id"`
	}
	Key *struct {
		ID, Name, Hint, Environment string
		SecretID                    string `json:"secret_id"`
		Metadata                    map[string]any
	}
	Scopes         []string
	Required       []string `json:"required_scopes"`
	Missing        []string `json:"missing_scopes"`
	Route          *string
	Reasons        []struct{ Code, Message string }
	Warnings       []struct{ Code, Message string }
	RateLimit      *struct{ Limit, Remaining int } `json:"rate_limit"`
	Headers        map[string]string
	Problem        *struct{ Type, Title, Code, Detail string }
	DecisionID     string `json:"decision_id"`
	PolicyRevision string `json:"policy_revision"`
	Degraded       []string
}

func decode(t *testing.T, w *httptest.ResponseRecorder) (decisionDocument, map[string]json.RawMessage) {
	t.Helper()
	var d decisionDocument
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil {
		t.Fatalf("not JSON: %v: %s", err, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &fields); err != nil {
		t.Fatal(err)
	}
	return d, fields
}

func TestAnswer_EveryFieldOfADecisionIsAlwaysPresent(t *testing.T) {
	names := []string{
		"allow", "code", "status", "organization", "key", "scopes", "required_scopes", "missing_scopes", "route", "reasons",
		"warnings", "rate_limit", "headers", "problem", "decision_id", "policy_revision", "degraded",
	}
	p := newParts()
	s := newServer(t, p)
	for name, w := range map[string]*httptest.ResponseRecorder{
		"allow": ask(s, goodBody(t)), "deny": ask(s, `{"key":"","method":"GET","path":"/"}`),
	} {
		d, fields := decode(t, w)
		for _, n := range names {
			if _, ok := fields[n]; !ok {
				t.Errorf("%s: %s is missing", name, n)
			}
		}
		if len(fields) != len(names) || d.Scopes == nil || d.Required == nil || d.Reasons == nil || d.Warnings == nil || d.Degraded == nil {
			t.Errorf("%s: lists are null or fields too many: %s", name, w.Body)
		}
	}
	d, _ := decode(t, ask(s, goodBody(t)))
	if d.Key.Name != p.key.Name || d.Organization.Name != p.key.Organization.Name || d.Key.Metadata["team"] != "billing" ||
		d.Key.Hint != p.secret.Hint || d.RateLimit.Remaining != 95 || d.Headers["X-RateLimit-Remaining"] != "95" {
		t.Errorf("%+v", d)
	}
}

func TestAnswer_StringsAreThoseOfEncodingJSON(t *testing.T) {
	for _, s := range []string{"", "a", `"\`, "\x00\x01\x1f\n\r\t\b\f", "<>&", "é日😀", "\u2028\u2029", "a\xffb\xc3", "\x7f"} {
		var got string
		b := appendString(nil, s)
		if err := json.Unmarshal(b, &got); err != nil {
			t.Errorf("%q: %v: %s", s, err, b)
			continue
		}
		wantJSON, _ := json.Marshal(s)
		var want string
		_ = json.Unmarshal(wantJSON, &want)
		if got != want || bytes.ContainsAny(b, "<>&\x00\u2028") {
			t.Errorf("%q: %s, encoding/json: %s", s, b, wantJSON)
		}
	}
}

func FuzzAnswer_Strings(f *testing.F) {
	f.Add("a\"\\\u2028\xff<")
	f.Fuzz(func(t *testing.T, s string) {
		var got, want string
		wantJSON, _ := json.Marshal(s)
		if json.Unmarshal(appendString(nil, s), &got) != nil || json.Unmarshal(wantJSON, &want) != nil || got != want {
			t.Errorf("%q: %q", s, got)
		}
	})
}

func TestServer_EveryAnswerHasARequestIDAndIsNotCached(t *testing.T) {
	s := newServer(t, newParts())
	for _, target := range []string{"/v1/check", "/healthz", "/readyz", "/nowhere"} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, httptest.NewRequest(method, target, nil))
			if w.Header().Get("X-Request-Id") == "" || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("%s %s: headers %v", method, target, w.Header())
			}
			if w.Code >= 300 && w.Code < 400 {
				t.Errorf("%s %s redirects", method, target)
			}
		}
	}
}

func TestServer_HeadersKeepTheirSpellingOnTheWire(t *testing.T) {
	w := ask(newServer(t, newParts()), goodBody(t))
	for _, name := range []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-Request-Id"} {
		if len(w.Header()[name]) != 1 {
			t.Errorf("%s is not there in this spelling: %v", name, w.Header())
		}
	}
}

func TestServer_APanicIsA500WithoutTheRequest(t *testing.T) {
	p := newParts()
	p.panics = true
	body := goodBody(t)
	w := ask(newServer(t, p), body)
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "sk_") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestServer_AnUnverifiableCallerIs503(t *testing.T) {
	p := newParts()
	checker, _ := authz.NewChecker(authz.CheckerOptions{Keys: p, Policy: p, Limiter: p, Clock: p})
	s, err := New(Options{
		Checker: checker, Callers: authz.NewCallers(awayCallers{}, p), Format: testFormat(t),
		Ready: func() Readiness { return Readiness{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if w := ask(s, goodBody(t)); w.Code != http.StatusServiceUnavailable || p.lookedUp != 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

type awayCallers struct{}

func (awayCallers) FindCaller(context.Context, authz.SecretHash) (*authz.Caller, error) {
	return nil, errors.New("away")
}

func TestServer_ReadinessSpeaksForOrchestrators(t *testing.T) {
	p := newParts()
	s := newServer(t, p)
	get := func(h http.Handler) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	if code, body := get(s.Handler()); code != 200 || body != `{"status":"ready"}` {
		t.Errorf("ready: %d %s", code, body)
	}
	p.ready.Degraded = []string{"limiter"}
	if code, body := get(s.Handler()); code != 200 || body != `{"status":"degraded"}` {
		t.Errorf("degraded: %d %s", code, body)
	}
	if code, body := get(s.OpsHandler()); code != 200 || !strings.Contains(body, `"figure":1`) || !strings.Contains(body, "limiter") {
		t.Errorf("details: %d %s", code, body)
	}
	p.ready.Ready = false
	if code, _ := get(s.Handler()); code != 503 {
		t.Errorf("past the stale limit: %d", code)
	}
	p.ready = Readiness{Ready: true}
	s.draining.Store(true)
	if code, body := get(s.Handler()); code != 503 || body != `{"status":"draining"}` {
		t.Errorf("draining: %d %s", code, body)
	}
	if w := ask(s, goodBody(t)); w.Code != 200 || w.Header().Get("Connection") != "close" {
		t.Errorf("a check during the drain: %d, Connection %q", w.Code, w.Header().Get("Connection"))
	}
}

func TestServer_ABodyTooLargeIsRefusedUnread(t *testing.T) {
	p := newParts()
	s := newServer(t, p)
	for _, announced := range []int64{10 << 20, -1} {
		body := &countingReader{left: 10 << 20}
		r := httptest.NewRequest(http.MethodPost, "/v1/check", body)
		r.ContentLength = announced
		r.Header.Set("Authorization", "Bearer "+authz.CallerTokens().Generate().Reveal())
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "body_too_large") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if body.read > 2*maxCheckBody {
			t.Errorf("%d bytes were read", body.read)
		}
	}
	if w := ask(s, `{"key":"","action":"a:b"}`+strings.Repeat(" ", maxCheckBody-25)); w.Code != 200 {
		t.Errorf("64 KiB exactly: %d %s", w.Code, w.Body)
	}
	long := strings.Repeat("a", maxCheckString+1)
	if w := ask(s, `{"key":"","action":"`+long+`"}`); w.Code != 422 || !strings.Contains(w.Body.String(), "string_too_long") {
		t.Errorf("a long string: %d %s", w.Code, w.Body)
	}
}

type countingReader struct{ left, read int }

func (r *countingReader) Read(b []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := min(len(b), r.left)
	r.left -= n
	r.read += n
	return n, nil
}

func TestCheck_OddHeadersAreNoCredentials(t *testing.T) {
	s := newServer(t, newParts())
	token := authz.CallerTokens().Generate().Reveal()
	for name, c := range map[string]struct {
		lines []string
		want  int
	}{
		"lower-case scheme": {[]string{"bearer " + token}, 200},
		"more spaces":       {[]string{"Bearer   " + token}, 200},
		"another scheme":    {[]string{"Basic " + token}, 401},
		"no scheme":         {[]string{token}, 401},
		"a list":            {[]string{"Bearer " + token + ", Bearer " + token}, 401},
		"two lines":         {[]string{"Bearer " + token, "Bearer " + token}, 401},
	} {
		r := httptest.NewRequest(http.MethodPost, "/v1/check", strings.NewReader(goodBody(t)))
		r.Header["Content-Type"] = []string{"application/json"}
		r.Header["Authorization"] = c.lines
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d", name, w.Code, c.want)
		}
	}
}

func TestQuestion_InvalidUTF8IsRefused(t *testing.T) {
	s := newServer(t, newParts())
	for body, code := range map[string]string{
		"{\"key\":\"\xff\",\"method\":\"GET\",\"path\":\"/\"}": "invalid_utf8",
		"{\"key\":\"\x00\",\"method\":\"GET\",\"path\":\"/\"}": "nul_character",
		`{"key":"\ud800","method":"GET","path":"/"}`:           "malformed_json",
		`{"key":"` + "\n" + `","method":"GET","path":"/"}`:     "malformed_json",
		`{"key":"",}`: "malformed_json",
		`{"key":"","method":"GET","path":"/","resource":{"id":"1","id":"2"}}`: "duplicate_field",
		strings.Repeat("[", 60_000): "malformed_json",
	} {
		w := ask(s, body)
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), `"code":"`+code+`"`) {
			t.Errorf("%.60q: %d %s", body, w.Code, w.Body)
		}
	}
}

func TestQuestion_NoRefusedValueOrUnknownNameIsRepeated(t *testing.T) {
	s := newServer(t, newParts())
	for _, body := range []string{
		`{"key":"","hunter2":1}`, `{"key":"","method":"GET","path":"/","environment":"hunter2"}`,
		`{"key_sha256":"hunter2","action":"x"}`, `{"key":"","method":"GET","path":"/","resource":{"hunter2":1}}`,
		`{"key":"","hunter2`, `hunter2`, `{"key":"","key":"hunter2"}`, `{"hunter2":1,"hunter2":2}`,
	} {
		if w := ask(s, body); strings.Contains(w.Body.String(), "hunter2") || w.Code < 400 {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
}

// Whatever the body, it is a 4xx or a decision; what is allowed was asked for in so many words.
func FuzzCheck(f *testing.F) {
	p := newParts()
	s := newServer(f, p)
	good := goodBody(f)
	for _, body := range []string{
		good, `{}`, `[]`, `null`, `{"key":"","key":""}`, `{"KEY":""}`, good + good, "\xff", `{"key":"\u0000"}`,
		`{"key_sha256":"` + strings.Repeat("a", 64) + `","action":"a:b","cost":1e9,"resource":{"id":"1"}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		w := ask(s, string(body))
		if w.Code != 200 && (w.Code < 400 || w.Code >= 500) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Fatalf("the answer is not JSON: %s", w.Body)
		}
		if w.Header().Get("X-Keystile-Decision") != "allow" {
			return
		}
		// encoding/json is lax where we are strict: it must at least agree.
		var q struct {
			Key  string
			Hash string `json:"key_sha256"`
		}
		if err := json.Unmarshal(body, &q); err != nil || (q.Key == "") == (q.Hash == "") {
			t.Fatalf("allowed: %q", body)
		}
	})
}
