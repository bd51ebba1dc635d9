package keystile_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/keystiletest"
)

const (
	token   = "ksc_for_tests_only"
	acme    = "org_acme"
	tickets = "/api/v1/tickets"
)

// tap keeps every byte that its connections read.
type tap struct {
	net.Listener
	mu       sync.Mutex
	received bytes.Buffer
	accepted atomic.Int64
}

type tappedConn struct {
	net.Conn
	tap *tap
}

func (t *tap) Accept() (net.Conn, error) {
	conn, err := t.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t.accepted.Add(1)
	return &tappedConn{conn, t}, nil
}

func (c *tappedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.tap.mu.Lock()
	defer c.tap.mu.Unlock()
	c.tap.received.Write(p[:n])
	return n, err
}

func (t *tap) bytes() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.received.String()
}

func startService(t *testing.T, handler http.Handler) (*httptest.Server, *tap) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	wire := &tap{Listener: server.Listener}
	server.Listener = wire
	server.Start()
	t.Cleanup(server.Close)
	return server, wire
}

func newClient(t *testing.T, url string, opts ...keystile.Option) *keystile.Client {
	t.Helper()
	client, err := keystile.New(url, token, append([]keystile.Option{keystile.WithTimeout(10 * time.Second)}, opts...)...)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

func question(key string) keystile.Question {
	return keystile.Question{Key: key, Method: http.MethodGet, Path: tickets}
}

func TestCheck_SecretNeverReachesTheService(t *testing.T) {
	service := keystiletest.New(token)
	server, wire := startService(t, service)
	secret := keystiletest.Secret(keystile.Live)
	service.Grant(secret, acme, keystile.Live, "tickets:read")

	d, err := newClient(t, server.URL).Check(t.Context(), question(secret))
	if err != nil || !d.Allowed() {
		t.Fatalf("Check = %v, %v; want an allow", d, err)
	}
	received := wire.bytes()
	if !strings.Contains(received, `"key_sha256":"`) {
		t.Fatalf("the service received no digest:\n%s", received)
	}
	if strings.Contains(received, secret) || strings.Contains(received, secret[len(secret)-12:]) {
		t.Error("the service received the secret")
	}
}

func TestCheck_AbsentKeyIsAskedAsEmpty(t *testing.T) {
	service := keystiletest.New(token)
	server, _ := startService(t, service)
	d, err := newClient(t, server.URL).Check(t.Context(), question(""))
	if err != nil || d.Code != keystile.CodeKeyMissing || d.Allowed() {
		t.Fatalf("Check = %+v, %v; want key_missing", d, err)
	}
}

func TestCheck_SendsWhatTheQuestionSays(t *testing.T) {
	service := keystiletest.New(token)
	server, _ := startService(t, service)
	resource := &keystile.Resource{Type: "ticket", ID: "42", Organization: acme}
	_, err := newClient(t, server.URL).Check(t.Context(), keystile.Question{
		Key: keystiletest.Secret(keystile.Test), Method: http.MethodPatch, Path: tickets + "/42?", Action: "tickets:write",
		Environment: keystile.Test, Resource: resource, ClientIP: "203.0.113.7", Browser: true, Cost: 7,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := keystiletest.Asked{
		Method: http.MethodPatch, Path: tickets + "/42?", Action: "tickets:write", Environment: "test",
		Resource: resource, ClientIP: "203.0.113.7", Browser: true, Cost: 7,
	}
	if diff := cmp.Diff([]keystiletest.Asked{want}, service.Asked(), cmpopts.IgnoreFields(keystiletest.Asked{}, "KeySHA256")); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

const deniedAnswer = `{"allow":false,"code":"insufficient_scope","status":403,
 "organization":{"id":"org_1","external_id":null,"name":"Acme","plan":"standard"},
 "key":{"id":"key_1","secret_id":"sec_1","name":"ci","hint":"sk_live_4fGh…9aBc","environment":"live","metadata":{"team":"a"}},
 "scopes":["tickets:read"],"required_scopes":["tickets:write"],"missing_scopes":["tickets:write"],"route":"/api/v1/tickets/{id}",
 "reasons":[{"code":"insufficient_scope","message":"The key lacks tickets:write."}],"warnings":[{"code":"expires_soon","message":"…"}],
 "rate_limit":{"name":"key","limit":100,"remaining":95,"period_seconds":60,"reset_seconds":3,"retry_after_seconds":0,"mode":"exact"},
 "headers":{"X-RateLimit-Limit":"100"},"problem":{"type":"urn:x","title":"Insufficient scope","status":403,"code":"insufficient_scope","detail":"d","new":[1]},
 "decision_id":"dec_1","policy_revision":"sha256:1","degraded":["limiter"],"a_later_field":{"x":1}}`

func answerWith(status int, contentType, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header()["X-Request-Id"] = []string{"req-1"}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

func TestCheck_EveryFieldArrivesAndUnknownOnesAreIgnored(t *testing.T) {
	server, _ := startService(t, answerWith(200, "application/json", deniedAnswer))
	got, err := newClient(t, server.URL).Check(t.Context(), question("k"))
	if err != nil {
		t.Fatal(err)
	}
	want := &keystile.Decision{
		Code: keystile.CodeInsufficientScope, Status: 403,
		Organization: &keystile.Organization{ID: "org_1", Name: "Acme", Plan: "standard"},
		Key: &keystile.Key{
			ID: "key_1", SecretID: "sec_1", Name: "ci", Hint: "sk_live_4fGh…9aBc",
			Environment: keystile.Live, Metadata: map[string]any{"team": "a"},
		},
		Scopes: []string{"tickets:read"}, RequiredScopes: []string{"tickets:write"}, MissingScopes: []string{"tickets:write"},
		Route:     "/api/v1/tickets/{id}",
		Reasons:   []keystile.Reason{{Code: keystile.CodeInsufficientScope, Message: "The key lacks tickets:write."}},
		Warnings:  []keystile.Reason{{Code: "expires_soon", Message: "…"}},
		RateLimit: &keystile.RateLimit{Name: "key", Limit: 100, Remaining: 95, PeriodSeconds: 60, ResetSeconds: 3, Mode: "exact"},
		Headers:   map[string]string{"X-RateLimit-Limit": "100"},
		Problem:   &keystile.Problem{Type: "urn:x", Title: "Insufficient scope", Status: 403, Code: keystile.CodeInsufficientScope, Detail: "d"},
		ID:        "dec_1", PolicyRevision: "sha256:1", Degraded: []string{"limiter"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(keystile.Problem{})); diff != "" {
		t.Errorf("decision (-want +got):\n%s", diff)
	}
}

func TestDecision_EncodesAsTheServiceDoes(t *testing.T) {
	server, _ := startService(t, answerWith(200, "application/json", deniedAnswer))
	d, err := newClient(t, server.URL).Check(t.Context(), question("k"))
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var got, want map[string]any
	if err := errors.Join(json.Unmarshal(encoded, &got), json.Unmarshal([]byte(deniedAnswer), &want)); err != nil {
		t.Fatal(err)
	}
	delete(want, "a_later_field")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("encoded (-want +got):\n%s", diff)
	}
	if !bytes.HasPrefix(encoded, []byte(`{"allow":false,"code":"insufficient_scope","status":403,"organization":{"id":"org_1","external_id":null,`)) {
		t.Errorf("another order than the service's: %s", encoded)
	}
	empty, err := json.Marshal(keystile.Decision{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"route":null`, `"policy_revision":null`, `"scopes":[]`, `"warnings":[]`, `"headers":{}`, `"key":null`} {
		if !bytes.Contains(empty, []byte(want)) {
			t.Errorf("the zero decision encodes without %s: %s", want, empty)
		}
	}
}

// edited is a complete decision that allows, with one member changed; nil drops it.
func edited(t *testing.T, member string, value any) string {
	t.Helper()
	encoded, err := json.Marshal(keystiletest.Allowed(acme, keystile.Live, "tickets:read"))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(encoded, &m); err != nil {
		t.Fatal(err)
	}
	if member != "" {
		if m[member] = value; value == nil {
			delete(m, member)
		}
	}
	encoded, err = json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(encoded)
}

func TestCheck_AnswerThatContradictsItselfIsAnError(t *testing.T) {
	const contentType = "application/json"
	tests := []struct {
		name, contentType, body string
		status                  int
		environment             keystile.Environment
	}{
		{"allow with another status", contentType, edited(t, "status", 403), 200, ""},
		{"allow without status", contentType, edited(t, "status", nil), 200, ""},
		{"no allow", contentType, edited(t, "allow", nil), 200, ""},
		{"allow as a string", contentType, edited(t, "allow", "true"), 200, ""},
		{"no code", contentType, edited(t, "code", nil), 200, ""},
		{"no headers", contentType, edited(t, "headers", nil), 200, ""},
		{"no decision id", contentType, edited(t, "decision_id", nil), 200, ""},
		{"allow without organization", contentType, edited(t, "organization", nil), 200, ""},
		{"allow with an empty organization", contentType, edited(t, "organization", map[string]any{"id": ""}), 200, ""},
		{"allow without key", contentType, edited(t, "key", nil), 200, ""},
		{"allow without environment", contentType, edited(t, "key", map[string]any{"id": "key_1", "environment": ""}), 200, ""},
		{"allow with missing scopes", contentType, edited(t, "missing_scopes", []string{"tickets:write"}), 200, ""},
		{"allow with a problem", contentType, edited(t, "problem", map[string]any{"code": "x"}), 200, ""},
		{"allow of another environment than asked", contentType, edited(t, "", nil), 200, keystile.Test},
		{"deny without a problem", contentType, edited(t, "allow", false), 200, ""},
		{"deny with status 200", contentType, strings.Replace(deniedAnswer, `"status":403`, `"status":200`, 1), 200, ""},
		{"allow under HTTP 201", contentType, edited(t, "", nil), 201, ""},
		{"allow under HTTP 403", contentType, edited(t, "", nil), 403, ""},
		{"allow as text", "text/html", edited(t, "", nil), 200, ""},
		{"two documents", contentType, edited(t, "", nil) + edited(t, "", nil), 200, ""},
		{"empty", contentType, "", 200, ""},
		{"null", contentType, "null", 200, ""},
		{"too long", contentType, edited(t, "", nil) + strings.Repeat(" ", keystile.MaxAnswerBytes), 200, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server, _ := startService(t, answerWith(tt.status, tt.contentType, tt.body))
			q := question("k")
			q.Environment = tt.environment
			d, err := newClient(t, server.URL).Check(t.Context(), q)
			var fault *keystile.Error
			if d != nil || !errors.As(err, &fault) || fault.Code != keystile.CodeInvalidAnswer || fault.RequestID != "req-1" {
				t.Fatalf("Check = %v, %v; want no decision and invalid_answer", d, err)
			}
			if fault.Unavailable() {
				t.Error("a wrong answer counts as unavailability, which may fail open")
			}
		})
	}
	t.Run("the unedited one is an allow", func(t *testing.T) {
		server, _ := startService(t, answerWith(200, contentType+"; charset=utf-8", edited(t, "", nil)))
		if d, err := newClient(t, server.URL).Check(t.Context(), question("k")); err != nil || !d.Allowed() {
			t.Fatalf("Check = %v, %v; want an allow", d, err)
		}
	})
}

func TestCheck_RefusalOfTheServiceIsATypedError(t *testing.T) {
	tests := []struct {
		status      int
		body        string
		want        keystile.Error
		unavailable bool
	}{
		{
			422, `{"code":"missing_field","detail":"path is missing","errors":[{"pointer":"/path","message":"is required"}]}`,
			keystile.Error{Code: "missing_field", Detail: "path is missing", Pointers: []keystile.Pointer{{Pointer: "/path", Message: "is required"}}},
			false,
		},
		{401, `{"code":"caller_unauthorized","title":"Unauthorized"}`, keystile.Error{Code: "caller_unauthorized", Detail: "Unauthorized"}, false},
		{429, `{"code":"caller_throttled"}`, keystile.Error{Code: "caller_throttled"}, false},
		{503, `{"code":"caller_unverified"}`, keystile.Error{Code: "caller_unverified"}, true},
		{502, `<html>`, keystile.Error{Code: keystile.CodeUnavailable}, true},
	}
	for _, tt := range tests {
		t.Run(string(tt.want.Code), func(t *testing.T) {
			server, _ := startService(t, answerWith(tt.status, "application/problem+json", tt.body))
			d, err := newClient(t, server.URL).Check(t.Context(), question("k"))
			var got *keystile.Error
			if d != nil || !errors.As(err, &got) {
				t.Fatalf("Check = %v, %v; want an *Error", d, err)
			}
			tt.want.Status, tt.want.RequestID = tt.status, "req-1"
			opts := cmp.Options{cmpopts.IgnoreUnexported(keystile.Error{})}
			if tt.want.Detail == "" {
				opts = append(opts, cmpopts.IgnoreFields(keystile.Error{}, "Detail"))
			}
			if diff := cmp.Diff(&tt.want, got, opts); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if got.Unavailable() != tt.unavailable {
				t.Errorf("Unavailable = %v", got.Unavailable())
			}
		})
	}
}

func TestError_SaysNothingTwice(t *testing.T) {
	at := func(pointer, message string) keystile.Pointer {
		return keystile.Pointer{Pointer: pointer, Message: message}
	}
	for want, pointers := range map[string][]keystile.Pointer{
		"keystile: check: 422 c: /path: is missing":                  {at("/path", "is missing")},
		"keystile: check: 422 c: is missing; /method: is required":   {at("/method", "is required"), at("/method", "is required")},
		"keystile: check: 422 c: /a, /b: is missing; /d: is wrong":   {at("/a", "is missing"), at("/d", "is wrong"), at("/b", "is missing")},
		"keystile: check: 422 c: is missing; the query is malformed": {at("", "is missing"), at("", "the query is malformed")},
	} {
		if got := (&keystile.Error{Code: "c", Status: 422, Detail: "is missing", Pointers: pointers}).Error(); got != want {
			t.Errorf("%s; want %s", got, want)
		}
	}
}

func TestCheck_NoErrorAndNoPrintHoldsASecret(t *testing.T) {
	secret := keystiletest.Secret(keystile.Live)
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/problem+json")
		w.Header().Set("X-Request-ID", r.Header.Get("Authorization"))
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"code": r.Header.Get("Authorization"), "detail": r.Header.Get("Authorization") + string(body),
			"errors": []any{map[string]any{"pointer": token, "message": token}},
		})
	})
	server, _ := startService(t, echo)
	client := newClient(t, server.URL)
	q := question(secret)
	_, err := client.Check(t.Context(), q)
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("m", "client", client, "question", q, "error", err)
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("m", "client", client, "question", q, "error", err)
	encoded, jsonErr := json.Marshal(q)
	if err == nil || jsonErr != nil {
		t.Fatalf("err %v, json %v", err, jsonErr)
	}
	var fault *keystile.Error
	errors.As(err, &fault)
	printed := fmt.Sprintf("%v %+v %s %#v | %v %+v %#v %q %x | %v %+v %#v %+v", err, err, err, *fault, q, q, q, q, q, client, client, client, *client)
	for _, text := range []string{printed, logged.String(), string(encoded)} {
		if strings.Contains(text, secret) || strings.Contains(text, token) || strings.Contains(text, fmt.Sprintf("%x", secret)) {
			t.Errorf("a secret is printed: %s", text)
		}
	}
}

func TestCheck_RedirectsAreNotFollowed(t *testing.T) {
	other, elsewhere := startService(t, answerWith(200, "application/json", edited(t, "", nil)))
	server, _ := startService(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+"/v1/check", http.StatusTemporaryRedirect)
	}))
	d, err := newClient(t, server.URL).Check(t.Context(), question("k"))
	if d != nil || err == nil {
		t.Errorf("Check = %v, %v; want an error", d, err)
	}
	if got := elsewhere.bytes(); got != "" {
		t.Errorf("the redirect's target received %q", got)
	}
}

func TestCheck_SilentServiceIsUnavailable(t *testing.T) {
	release := make(chan struct{})
	server, _ := startService(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer close(release)
	d, err := newClient(t, server.URL, keystile.WithTimeout(20*time.Millisecond)).Check(t.Context(), question("k"))
	var fault *keystile.Error
	if d != nil || !errors.As(err, &fault) || !fault.Unavailable() || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Check = %v, %v; want unavailability by deadline", d, err)
	}
}

func TestCheck_CallerWhoGivesUpIsNotAnOutage(t *testing.T) {
	release := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	server, _ := startService(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { cancel(); <-release }))
	defer close(release)
	_, err := newClient(t, server.URL).Check(ctx, question("k"))
	var fault *keystile.Error
	if !errors.As(err, &fault) || fault.Unavailable() || !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v; want the cancellation, not unavailability", err)
	}
}

func TestCheck_IsTriedAgainOnceAndOnlyWhenNothingWasSent(t *testing.T) {
	t.Run("no connection, then one", func(t *testing.T) {
		service := keystiletest.New(token)
		server, _ := startService(t, service)
		var dials atomic.Int64
		transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				return nil, errors.New("refused")
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}}
		if _, err := newClient(t, server.URL, keystile.WithTransport(transport)).Check(t.Context(), question("k")); err != nil {
			t.Errorf("Check: %v; want an answer by the second attempt", err)
		}
		transport.CloseIdleConnections()
	})
	t.Run("never a connection", func(t *testing.T) {
		var dials atomic.Int64
		transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			dials.Add(1)
			return nil, errors.New("refused")
		}}
		_, err := newClient(t, "http://127.0.0.1:1", keystile.WithTransport(transport)).Check(t.Context(), question("k"))
		var fault *keystile.Error
		if !errors.As(err, &fault) || !fault.Unavailable() || dials.Load() != 2 {
			t.Errorf("err = %v after %d dials; want unavailability after 2", err, dials.Load())
		}
	})
	t.Run("asked and cut off", func(t *testing.T) {
		var asked atomic.Int64
		server, _ := startService(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			asked.Add(1)
			panic(http.ErrAbortHandler)
		}))
		_, err := newClient(t, server.URL).Check(t.Context(), question("k"))
		if err == nil || asked.Load() != 1 {
			t.Errorf("err = %v, asked %d times; want an error and one question", err, asked.Load())
		}
	})
}

func TestCheck_ConcurrentChecksReuseConnections(t *testing.T) {
	service := keystiletest.New(token)
	server, wire := startService(t, service)
	client := newClient(t, server.URL)
	const workers, rounds = 8, 25
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for range rounds {
				if _, err := client.Check(t.Context(), question("k")); err != nil {
					t.Errorf("Check: %v", err)
				}
			}
		})
	}
	group.Wait()
	// A dial that loses against a connection that came free is kept as well.
	if got := wire.accepted.Load(); got > 3*workers {
		t.Errorf("%d connections for %d checks by %d workers; they are not reused", got, workers*rounds, workers)
	}
}

func TestCheck_TextThatJSONWouldChangeIsNotAsked(t *testing.T) {
	service := keystiletest.New(token)
	server, _ := startService(t, service)
	_, err := newClient(t, server.URL).Check(t.Context(), keystile.Question{Method: "GET", Path: "/a\xff"})
	var fault *keystile.Error
	if !errors.As(err, &fault) || fault.Code != keystile.CodeInvalidUTF8 || len(service.Asked()) != 0 {
		t.Errorf("err = %v, asked %v; want invalid_utf8, nothing asked", err, service.Asked())
	}
}

func TestCheck_NilClientDeniesWithAnError(t *testing.T) {
	var client *keystile.Client
	if d, err := client.Check(t.Context(), question("k")); d != nil || err == nil {
		t.Errorf("Check = %v, %v; want an error", d, err)
	}
}
