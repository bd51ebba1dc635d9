package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/supportstation/keystile/sdk/admin"
)

const token = "ksa_for_tests_only"

func serve(t *testing.T, handler http.HandlerFunc, opts ...admin.Option) *admin.Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	client, err := admin.New(server.URL+"/", token, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

func write(w http.ResponseWriter, status int, media, body string) {
	w.Header().Set("Content-Type", media)
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

func TestNew_RefusesWhatCouldLeakTheToken(t *testing.T) {
	const fine = "https://keystile.example"
	tests := map[string]struct {
		url, token string
		opts       []admin.Option
		ok         bool
	}{
		"https":          {fine, token, nil, true},
		"loopback":       {"http://127.0.0.1:8080", token, nil, true},
		"plain":          {"http://keystile.example", token, nil, false},
		"plain on call":  {"http://keystile.example", token, []admin.Option{admin.WithInsecurePlaintext()}, true},
		"user info":      {"https://u:hunter2@keystile.example", token, nil, false},
		"a path":         {fine + "/v1", token, nil, false},
		"no URL":         {"", token, nil, false},
		"no token":       {fine, "", nil, false},
		"a caller token": {fine, "ksc_hunter2", nil, false},
		"an API key":     {fine, "sk_live_hunter2", nil, false},
		"a line end":     {fine, "ksa_hunter2\n", nil, false},
		"no time":        {fine, token, []admin.Option{admin.WithTimeout(0)}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			client, err := admin.New(tt.url, tt.token, tt.opts...)
			if (err == nil) != tt.ok {
				t.Errorf("%v; want ok %t", err, tt.ok)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is in %v", err)
			}
			if printed := fmt.Sprintf("%v %+v %#v", client, client, client); strings.Contains(printed, token) {
				t.Errorf("the token is in %s", printed)
			}
		})
	}
}

func TestCall_SendsItsHeadersAndOptions(t *testing.T) {
	var got *http.Request
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		write(w, 200, "application/json", `{"dry_run":true}`)
	})
	change, err := client.UpdateKey(t.Context(), "key_1", admin.KeyUpdate{}, admin.WithDryRun(), admin.WithIfMatch(7))
	if err != nil || !change.DryRun {
		t.Fatalf("%v, %+v", err, change)
	}
	if got.Header.Get("Authorization") != "Bearer "+token || got.Header.Get("User-Agent") != "keystile-go-admin" || got.Header.Get("If-Match") != `"7"` ||
		got.URL.String() != "/v1/keys/key_1?dry_run=true" || got.Header.Get("Idempotency-Key") != "" {
		t.Errorf("%s %s %v", got.Method, got.URL, got.Header)
	}
	if _, err := client.RevokeKey(t.Context(), "key_1", admin.WithIdempotencyKey("mine")); err != nil || got.Header.Get("Idempotency-Key") != "mine" {
		t.Errorf("%v, %v", err, got.Header)
	}
}

// An id of dots would be resolved into another path than the call's.
func TestCall_NoIDReachesAnotherPath(t *testing.T) {
	var paths []string
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.EscapedPath())
		write(w, 404, "application/problem+json", `{"code":"not_found","detail":"there is no such key"}`)
	})
	for _, id := range []string{"", ".", "..", "../organizations", "a/b", "x?y=1", "%2e%2e"} {
		var refusal *admin.Error
		if _, err := client.GetKey(t.Context(), id); !errors.As(err, &refusal) || refusal.Code != "not_found" {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, path := range paths {
		if rest, ok := strings.CutPrefix(path, "/v1/keys/"); !ok || rest == "" || strings.Contains(rest, "/") {
			t.Errorf("%s was asked", path)
		}
	}
}

func TestError_HoldsTheProblemAndNoToken(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		write(w, 422, "application/problem+json", `{"code":"out_of_range","detail":"`+r.Header.Get("Authorization")+`","request_id":"req_1",
			"errors":[{"pointer":"/name","message":"is too long"}],"reasons":[{"code":"lifetime","message":"at most 90 days"}]}`)
	})
	_, err := client.GetKey(t.Context(), "key_1")
	var refusal *admin.Error
	if !errors.As(err, &refusal) || refusal.Status != 422 || refusal.Code != "out_of_range" || refusal.RequestID != "req_1" ||
		len(refusal.Fields) != 1 || len(refusal.Reasons) != 1 {
		t.Fatalf("%+v", err)
	}
	want := "keystile: 422 out_of_range: Bearer [redacted]; /name: is too long; lifetime: at most 90 days (request req_1)"
	if err.Error() != want {
		t.Errorf("%v; want %s", err, want)
	}
}

func TestError_SaysNothingTwice(t *testing.T) {
	const detail = "must be of the catalogue"
	for want, problem := range map[string]string{
		"keystile: 422 c: /scopes: must be of the catalogue":                       `"errors":[{"pointer":"/scopes","message":"must be of the catalogue"}]`,
		"keystile: 422 c: /a, /b: must be of the catalogue":                        `"errors":[{"pointer":"/a","message":"must be of the catalogue"},{"pointer":"/b","message":"must be of the catalogue"}]`,
		"keystile: 422 c: must be of the catalogue":                                `"errors":[{"pointer":"","message":"must be of the catalogue"}]`,
		"keystile: 422 c: must be of the catalogue; header If-Match is not taken":  `"errors":[{"pointer":"","message":"header If-Match is not taken"}]`,
		"keystile: 422 c: /a: must be of the catalogue; /b: is required":           `"errors":[{"pointer":"/a","message":"must be of the catalogue"},{"pointer":"/b","message":"is required"}]`,
		"keystile: 422 c: must be of the catalogue; /b: is required; r: too long":  `"errors":[{"pointer":"/b","message":"is required"}],"reasons":[{"code":"r","message":"too long"}]`,
		"keystile: 422 c: r: must be of the catalogue; other: must be something":   `"reasons":[{"code":"r","message":"must be of the catalogue"},{"code":"other","message":"must be something"}]`,
		"keystile: 422 c: must be of the catalogue; /b: is required; /d: is wrong": `"errors":[{"pointer":"/b","message":"is required"},{"pointer":"/b","message":"is required"},{"pointer":"/d","message":"is wrong"}]`,
	} {
		client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			write(w, 422, "application/problem+json", `{"code":"c","detail":"`+detail+`",`+problem+`}`)
		})
		if _, err := client.Catalogue(t.Context()); err == nil || err.Error() != want {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

func TestCall_AnAnswerTooLongIsToldApart(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		write(w, 200, "application/json", strings.Repeat(" ", admin.MaxAnswerBytes+1))
	})
	var silence *admin.TransportError
	_, err := client.Catalogue(t.Context())
	if !errors.Is(err, admin.ErrAnswerTooLong) || !errors.As(err, &silence) || err.Error() != "keystile: the answer is longer than 16777216 bytes" {
		t.Errorf("%v", err)
	}
}

func TestError_TellsAnotherServiceFromARefusal(t *testing.T) {
	tests := map[string]struct {
		status      int
		media, body string
		code        string
	}{
		"a web page":      {200, "text/html", "<html>", admin.CodeInvalidAnswer},
		"no JSON":         {200, "application/json", "hello", admin.CodeInvalidAnswer},
		"a redirect":      {302, "text/html", "", admin.CodeInvalidAnswer},
		"a gateway":       {502, "text/html", "bad gateway", admin.CodeUnavailable},
		"another problem": {404, "application/problem+json", "[]", admin.CodeInvalidAnswer},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://127.0.0.1:1/")
				write(w, tt.status, tt.media, tt.body)
			})
			var refusal *admin.Error
			if _, err := client.Catalogue(t.Context()); !errors.As(err, &refusal) || refusal.Code != tt.code || refusal.Status != tt.status {
				t.Errorf("%+v; want %d %s", err, tt.status, tt.code)
			}
		})
	}
}

func TestRetry_OnlyWhatIsSafeIsSentTwice(t *testing.T) {
	tests := []struct {
		name  string
		call  func(context.Context, *admin.Client) error
		times int
	}{
		{"GET", func(ctx context.Context, c *admin.Client) error { _, err := c.GetKey(ctx, "key_1"); return err }, 2},
		{"POST", func(ctx context.Context, c *admin.Client) error {
			_, err := c.CreateKey(ctx, "org_1", admin.KeyCreate{Name: "ci"})
			return err
		}, 2},
		{"import", func(ctx context.Context, c *admin.Client) error {
			_, err := c.ImportKeys(ctx, "org_1", admin.ImportKeysParams{}, []byte("{}\n"))
			return err
		}, 2},
		{"PATCH", func(ctx context.Context, c *admin.Client) error {
			_, err := c.UpdateKey(ctx, "key_1", admin.KeyUpdate{})
			return err
		}, 1},
		{"DELETE", func(ctx context.Context, c *admin.Client) error {
			_, err := c.DeleteCaller(ctx, "caller_1")
			return err
		}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			var bodies, keys []string
			client := serve(t, func(_ http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				body := make([]byte, 1024)
				n, _ := r.Body.Read(body)
				bodies, keys = append(bodies, string(body[:n])), append(keys, r.Header.Get("Idempotency-Key"))
				panic(http.ErrAbortHandler)
			})
			var silence *admin.TransportError
			if err := tt.call(t.Context(), client); !errors.As(err, &silence) {
				t.Errorf("%v is no TransportError", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(bodies) != tt.times {
				t.Fatalf("sent %d times; want %d", len(bodies), tt.times)
			}
			if tt.times == 2 && (bodies[0] != bodies[1] || keys[0] != keys[1]) {
				t.Errorf("the second was another request: %q, %q", bodies, keys)
			}
		})
	}
}

func TestRetry_TimeIsBoundedInAll(t *testing.T) {
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	client := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-end:
		case <-r.Context().Done():
		}
	}, admin.WithTimeout(50*time.Millisecond))
	_, err := client.GetKey(t.Context(), "key_1")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "within 50ms") {
		t.Errorf("%v; want a deadline", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.GetKey(ctx, "key_1"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want the caller's own end", err)
	}
}

func TestKeys_YieldsAllPagesAndStops(t *testing.T) {
	asked := 0
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		start, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
		switch {
		case start < 4:
			write(w, 200, "application/json", fmt.Sprintf(`{"items":[{"name":"%d"},{"name":"%d"}],"next_cursor":"%d"}`, start, start+1, start+2))
		case start == 4:
			write(w, 200, "application/json", `{"items":[{"name":"4"}],"next_cursor":null}`)
		default:
			write(w, 200, "application/json", fmt.Sprintf(`{"items":[],"next_cursor":"%d"}`, start))
		}
	})
	var names string
	for key, err := range client.Keys(t.Context(), "org_1", admin.ListKeysParams{}) {
		if err != nil {
			t.Fatal(err)
		}
		names += key.Name
	}
	if names != "01234" || asked != 3 {
		t.Errorf("%q in %d pages", names, asked)
	}
	asked = 0
	for range client.Keys(t.Context(), "org_1", admin.ListKeysParams{}) {
		break
	}
	if asked != 1 {
		t.Errorf("%d pages for one key", asked)
	}
	circle := "9"
	var failed error
	for _, err := range client.Keys(t.Context(), "org_1", admin.ListKeysParams{Cursor: &circle}) {
		failed = err
	}
	if failed == nil {
		t.Error("a page that leads to itself is no error")
	}
}
