package keystile_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/keystiletest"
)

// rig is an application behind Protect, a stand-in service, and a known key.
type rig struct {
	service *keystiletest.Service
	app     *httptest.Server
	secret  string
	// served holds the requests that reached the application.
	served chan *http.Request
}

func newRig(t *testing.T, opts ...keystile.GuardOption) *rig {
	t.Helper()
	service := keystiletest.New(token)
	server, _ := startService(t, service)
	return newRigOn(t, service, newClient(t, server.URL), opts...)
}

func newRigOn(t *testing.T, service *keystiletest.Service, checker keystile.Checker, opts ...keystile.GuardOption) *rig {
	t.Helper()
	r := &rig{service: service, secret: keystiletest.Secret(keystile.Live), served: make(chan *http.Request, 16)}
	service.Grant(r.secret, acme, keystile.Live, "tickets:read")
	r.app = httptest.NewServer(keystile.Protect(checker, opts...)(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.served <- req
		_, _ = io.WriteString(w, "served")
	})))
	t.Cleanup(r.app.Close)
	return r
}

// raw sends bytes and returns the raw answer, headers as they were spelled.
func (r *rig) raw(t *testing.T, method, target string, headers ...string) string {
	t.Helper()
	conn, err := net.Dial("tcp", r.app.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	lines := append([]string{method + " " + target + " HTTP/1.1", "Host: app", "Connection: close"}, headers...)
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(bufio.NewReader(conn))
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

func (r *rig) bearer() string { return "Authorization: Bearer " + r.secret }

func wantStatus(t *testing.T, answer string, status string) {
	t.Helper()
	if !strings.HasPrefix(answer, "HTTP/1.1 "+status+" ") {
		t.Errorf("want %s, got:\n%s", status, answer)
	}
}

func wantProblem(t *testing.T, answer, status string, code keystile.Code) {
	t.Helper()
	wantStatus(t, answer, status)
	head, body, _ := strings.Cut(answer, "\r\n\r\n")
	if !strings.Contains(head, "\r\nContent-Type: application/problem+json\r\n") || !strings.Contains(head, "\r\nCache-Control: no-store\r\n") {
		t.Errorf("no problem+json, or not no-store:\n%s", head)
	}
	var p keystile.Problem
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Code != code {
		t.Errorf("problem %s (%v); want code %s", body, err, code)
	}
}

func TestProtect_AllowedRequestIsServedWithHeadersInExactSpelling(t *testing.T) {
	r := newRig(t)
	answer := r.raw(t, "GET", tickets, r.bearer())
	wantStatus(t, answer, "200")
	for _, line := range []string{
		"X-RateLimit-Limit: 100", "X-RateLimit-Remaining: 99", "X-RateLimit-Reset: 1795420801",
		`RateLimit-Policy: "key";q=100;w=60`, `RateLimit: "key";r=99;t=1`,
	} {
		if !strings.Contains(answer, "\r\n"+line+"\r\n") {
			t.Errorf("no line %q in:\n%s", line, answer)
		}
	}
	passed := <-r.served
	d, ok := keystile.FromContext(passed.Context())
	if !ok || d.Organization.ID != acme || d.Key.Environment != keystile.Live {
		t.Errorf("identity = %+v, %v", d, ok)
	}
}

func TestProtect_DenialIsSentOnAsItIs(t *testing.T) {
	r := newRig(t)
	d := keystiletest.Denied(keystile.CodeRateLimited, http.StatusTooManyRequests)
	if err := json.Unmarshal([]byte(`{"type":"t","title":"T","status":429,"code":"rate_limited","later":{"b":1,"a":2}}`), &d.Problem); err != nil {
		t.Fatal(err)
	}
	r.service.ReplyDecision(d)
	answer := r.raw(t, "GET", tickets, r.bearer())
	wantProblem(t, answer, "429", keystile.CodeRateLimited)
	for _, part := range []string{"\r\nX-RateLimit-Remaining: 98\r\n", "\r\nRetry-After: 1\r\n", `{"type":"t","title":"T","status":429,"code":"rate_limited","later":{"b":1,"a":2}}`} {
		if !strings.Contains(answer, part) {
			t.Errorf("no %q in:\n%s", part, answer)
		}
	}
	if len(r.served) != 0 {
		t.Error("the application served it")
	}
}

func TestProtect_ChallengeKeepsItsSpelling(t *testing.T) {
	r := newRig(t)
	answer := r.raw(t, "GET", tickets)
	wantProblem(t, answer, "401", keystile.CodeKeyMissing)
	if !strings.Contains(answer, "\r\nWWW-Authenticate: Bearer realm=") {
		t.Errorf("no challenge in:\n%s", answer)
	}
}

func TestProtect_TakesTheKeyFromEitherHeader(t *testing.T) {
	r := newRig(t)
	for _, headers := range [][]string{
		{r.bearer()},
		{"authorization: bearer " + r.secret},
		{"AUTHORIZATION:   BEARER   " + r.secret + "  "},
		{"X-API-Key: " + r.secret},
		{r.bearer(), "X-API-Key: " + r.secret},
		{r.bearer(), "X-API-Key:"},
	} {
		wantStatus(t, r.raw(t, "GET", tickets, headers...), "200")
		passed := <-r.served
		if passed.Header.Get("Authorization") != "" || passed.Header.Get("X-Api-Key") != "" {
			t.Errorf("%q: the handler can see the key", headers)
		}
	}
}

func TestProtect_AmbiguousCredentialsAreRefusedUnasked(t *testing.T) {
	r := newRig(t)
	other := keystiletest.Secret(keystile.Live)
	tests := []struct {
		status  string
		code    keystile.Code
		headers []string
	}{
		{"400", keystile.CodeDuplicateCredential, []string{r.bearer(), r.bearer()}},
		{"400", keystile.CodeDuplicateCredential, []string{r.bearer(), "authorization: Bearer " + other}},
		{"400", keystile.CodeDuplicateCredential, []string{"X-API-Key: " + r.secret, "x-api-key: " + r.secret}},
		{"401", keystile.CodeConflictingCredentials, []string{r.bearer(), "X-API-Key: " + other}},
		{"401", keystile.CodeConflictingCredentials, []string{"Authorization: Basic YTpi", "X-API-Key: " + r.secret}},
	}
	for _, tt := range tests {
		answer := r.raw(t, "GET", tickets, tt.headers...)
		wantProblem(t, answer, tt.status, tt.code)
		if !strings.Contains(answer, "\r\nWWW-Authenticate: Bearer error=") {
			t.Errorf("no challenge in:\n%s", answer)
		}
	}
	if len(r.served) != 0 || len(r.service.Asked()) != 0 {
		t.Errorf("served %d, asked %d; want none", len(r.served), len(r.service.Asked()))
	}
}

func TestProtect_MethodOverrideIsRefused(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"X-HTTP-Method-Override", "x-http-method", "X-Method-Override"} {
		for _, value := range []string{"DELETE", ""} {
			wantProblem(t, r.raw(t, "GET", tickets, r.bearer(), name+": "+value), "400", keystile.CodeMethodOverride)
		}
	}
	if len(r.served) != 0 {
		t.Error("the application served one")
	}
}

func TestProtect_AsksAboutTheRequestAsItIs(t *testing.T) {
	r := newRig(t)
	tests := []struct {
		method, target, path string
	}{
		{"GET", tickets + "/4%2F2?key=x&_method=DELETE", tickets + "/4%2F2"},
		{"HEAD", tickets + "/../customers", tickets + "/../customers"},
		{"GET", "//" + "x//y/", "//x//y/"},
		{"PURGE", "http://other.example" + tickets, tickets},
	}
	for i, tt := range tests {
		r.raw(t, tt.method, tt.target, r.bearer(), "X-Forwarded-For: 203.0.113.9", "X-Real-IP: 203.0.113.9", "Forwarded: for=203.0.113.9")
		asked := r.service.Asked()
		if len(asked) != i+1 {
			t.Fatalf("%s %s: not asked", tt.method, tt.target)
		}
		got := asked[i]
		if got.Method != tt.method || got.Path != tt.path || got.Browser || got.ClientIP != "127.0.0.1" {
			t.Errorf("%s %s asked as %+v", tt.method, tt.target, got)
		}
	}
}

// Headers as they were seen of each client.
func TestProtect_TellsBrowsersFromServers(t *testing.T) {
	const (
		chrome  = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"
		safari  = "User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/15.6 Safari/605.1.15"
		shop    = "Origin: https://shop.example"
		fetched = "Sec-Fetch-Mode: cors"
	)
	tests := map[string]struct {
		headers []string
		browser bool
	}{
		"Chrome, from another site":       {[]string{shop, "Sec-Fetch-Site: cross-site", fetched, "Sec-Fetch-Dest: empty", chrome}, true},
		"Chrome, from the same origin":    {[]string{"Sec-Fetch-Site: same-origin", fetched, "Sec-Fetch-Dest: empty", chrome}, true},
		"a page that hides the agent":     {[]string{shop, "Sec-Fetch-Site: same-site", fetched, "User-Agent: server/1.0"}, true},
		"an extension":                    {[]string{"Sec-Fetch-Site: none", fetched, chrome}, true},
		"Safari before it sent Sec-Fetch": {[]string{shop, safari}, true},
		"a page in a sandbox, plain http": {[]string{"Origin: null", chrome}, true},
		"Node's fetch":                    {[]string{fetched, "User-Agent: node"}, false},
		"Node's fetch that says more":     {[]string{fetched, "Sec-Fetch-Dest: empty", "User-Agent: node"}, false},
		"a client of websockets":          {[]string{shop, "Connection: Upgrade", "Upgrade: websocket", "User-Agent: Python/3.13 websockets/15.0"}, false},
		"a server that names an origin":   {[]string{shop, "User-Agent: Go-http-client/1.1"}, false},
		"a server that poses as Mozilla":  {[]string{"User-Agent: Mozilla/5.0 (compatible; monitor/2.1)"}, false},
		"a value that no browser sends":   {[]string{"Sec-Fetch-Site: yes"}, false},
		"curl":                            {[]string{"User-Agent: curl/8.14.1"}, false},
		"nothing":                         {nil, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.raw(t, "GET", tickets, append([]string{r.bearer()}, tt.headers...)...)
			if asked := r.service.Asked(); len(asked) != 1 || asked[0].Browser != tt.browser {
				t.Errorf("asked %+v; want one with browser %v", asked, tt.browser)
			}
		})
	}
}

func TestProtect_TheApplicationMayKnowBrowsersBetter(t *testing.T) {
	never := keystile.WithBrowser(func(*http.Request) bool { return false })
	some := keystile.WithQuestion(func(r *http.Request, q *keystile.Question) {
		q.Browser = q.Browser && r.Header.Get("X-Partner") == ""
	})
	page, partner := "Sec-Fetch-Site: cross-site", "X-Partner: yes"
	tests := map[string]struct {
		option  keystile.GuardOption
		headers []string
		browser bool
	}{
		"none at all":         {never, []string{page}, false},
		"all but some":        {some, []string{page}, true},
		"one of the some":     {some, []string{page, partner}, false},
		"nil is the default":  {keystile.WithBrowser(nil), []string{page}, true},
		"nil is no yes, also": {keystile.WithBrowser(nil), nil, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tt.option)
			r.raw(t, "GET", tickets, append([]string{r.bearer()}, tt.headers...)...)
			if asked := r.service.Asked(); len(asked) != 1 || asked[0].Browser != tt.browser {
				t.Errorf("asked %+v; want one with browser %v", asked, tt.browser)
			}
		})
	}
}

func TestProtect_TargetsThatCannotBeAskedAreTheClientsFault(t *testing.T) {
	r := newRig(t)
	wantProblem(t, r.raw(t, "GET", "/"+strings.Repeat("a", 8<<10), r.bearer()), "414", keystile.CodePathTooLong)
	wantProblem(t, r.raw(t, strings.Repeat("G", 64), tickets, r.bearer()), "400", keystile.CodeMethodTooLong)
	wantProblem(t, r.raw(t, "GET", "http://app", r.bearer()), "400", keystile.CodeInvalidTarget)
	if len(r.service.Asked()) != 0 {
		t.Errorf("asked %d; want none", len(r.service.Asked()))
	}
}

func TestProtect_OptionsNarrowTheQuestion(t *testing.T) {
	r := newRig(t, keystile.WithAction("tickets:read"), keystile.WithEnvironment(keystile.Test),
		keystile.WithClientIP(func(*http.Request) string { return "::ffff:203.0.113.7" }),
		keystile.WithQuestion(func(_ *http.Request, q *keystile.Question) { q.Cost = 3 }))
	wantProblem(t, r.raw(t, "GET", tickets, r.bearer()), "403", keystile.CodeEnvironmentMismatch)
	got := r.service.Asked()[0]
	if got.Action != "tickets:read" || got.Environment != "test" || got.ClientIP != "203.0.113.7" || got.Cost != 3 {
		t.Errorf("asked %+v", got)
	}
}

func TestProtect_IdentityComesFromTheServiceAlone(t *testing.T) {
	r := newRig(t)
	wantStatus(t, r.raw(t, "GET", tickets, r.bearer(), "X-Keystile-Organization: org_globex", "x-keystile-decision: allow"), "200")
	passed := <-r.served
	for name := range passed.Header {
		if strings.HasPrefix(name, "X-Keystile-") {
			t.Errorf("a forged %s reached the handler", name)
		}
	}
	if d, ok := keystile.FromContext(passed.Context()); !ok || d.Organization.ID != acme {
		t.Errorf("identity = %+v", d)
	}
	wantProblem(t, r.raw(t, "GET", tickets, "X-Keystile-Organization: org_globex", "X-Keystile-Decision: allow"), "401", keystile.CodeKeyMissing)
}

func TestProtect_KeepCredentialsLeavesTheKey(t *testing.T) {
	r := newRig(t, keystile.KeepCredentials())
	wantStatus(t, r.raw(t, "GET", tickets, r.bearer()), "200")
	if got := (<-r.served).Header.Get("Authorization"); got != "Bearer "+r.secret {
		t.Errorf("Authorization = %q", got)
	}
}

type brokenChecker struct {
	decision *keystile.Decision
	err      error
}

func (b brokenChecker) Check(context.Context, keystile.Question) (*keystile.Decision, error) {
	return b.decision, b.err
}

func TestProtect_FailsClosed(t *testing.T) {
	down, _ := startService(t, http.NotFoundHandler())
	down.Close()
	outage := newClient(t, down.URL)
	lying := keystiletest.Allowed(acme, keystile.Live)
	lying.Status = http.StatusForbidden
	tests := map[string]keystile.Checker{
		"service down":             outage,
		"no client":                nil,
		"nil client":               (*keystile.Client)(nil),
		"neither answer nor error": brokenChecker{},
		"zero decision":            brokenChecker{decision: &keystile.Decision{}},
		"allow that contradicts":   brokenChecker{decision: &lying},
		"foreign error":            brokenChecker{err: errors.New("x")},
		"allow with an error":      brokenChecker{decision: new(keystiletest.Allowed(acme, keystile.Live)), err: errors.New("x")},
	}
	for name, checker := range tests {
		t.Run(name, func(t *testing.T) {
			var told error
			r := newRigOn(t, keystiletest.New(token), checker, keystile.OnError(func(_ *http.Request, err error) { told = err }))
			wantProblem(t, r.raw(t, "GET", tickets, r.bearer()), "503", keystile.CodeUnavailable)
			if _, answered := checker.(brokenChecker); told == nil && (!answered || checker.(brokenChecker).decision == nil) {
				t.Error("nobody is told that nothing was decided")
			}
			if len(r.served) != 0 {
				t.Error("the application served it")
			}
		})
	}
}

func TestProtect_UndecidedRequestsAreTold(t *testing.T) {
	told := make(chan error, 1)
	r := newRig(t, keystile.OnError(func(_ *http.Request, err error) { told <- err }))
	r.service.Reply(func(*http.Request, keystiletest.Asked) (int, string, string) {
		return 401, "application/problem+json", `{"code":"caller_unauthorized"}`
	})
	wantProblem(t, r.raw(t, "GET", tickets, r.bearer()), "503", keystile.CodeUnavailable)
	var fault *keystile.Error
	if err := <-told; !errors.As(err, &fault) || fault.Code != "caller_unauthorized" {
		t.Errorf("told %v", err)
	}
}

func TestProtect_QuestionRefusedForTheClientsInputIsNoServerError(t *testing.T) {
	r := newRig(t)
	r.service.Reply(func(*http.Request, keystiletest.Asked) (int, string, string) {
		return 422, "application/problem+json", `{"code":"string_too_long"}`
	})
	wantProblem(t, r.raw(t, "GET", tickets, r.bearer()), "400", keystile.CodeRequestRefused)
}

func TestFailOpen_OnlyForUnavailabilityAndWithAKey(t *testing.T) {
	answers := map[string]struct {
		status int
		body   string
		open   bool
	}{
		"503":                     {503, `{"code":"caller_unverified"}`, true},
		"502":                     {502, ``, true},
		"400":                     {400, `{"code":"malformed_json"}`, false},
		"401":                     {401, `{"code":"caller_unauthorized"}`, false},
		"403":                     {403, `{"code":"caller_forbidden"}`, false},
		"429":                     {429, `{"code":"caller_throttled"}`, false},
		"an answer without sense": {200, `{}`, false},
		"a redirect":              {302, ``, false},
	}
	for name, tt := range answers {
		t.Run(name, func(t *testing.T) {
			var told []error
			r := newRig(t, keystile.OnError(nil), keystile.FailOpen(func(_ *http.Request, err error) { told = append(told, err) }))
			r.service.Reply(func(*http.Request, keystiletest.Asked) (int, string, string) {
				return tt.status, "application/problem+json", tt.body
			})
			answer := r.raw(t, "GET", tickets, r.bearer())
			if !tt.open {
				wantProblem(t, answer, "503", keystile.CodeUnavailable)
				return
			}
			wantStatus(t, answer, "200")
			passed := <-r.served
			if d, ok := keystile.FromContext(passed.Context()); ok || d != nil {
				t.Errorf("an unchecked request has the identity %+v", d)
			}
			if len(told) != 1 || passed.Header.Get("Authorization") != "" {
				t.Errorf("told %v, credentials kept: %v", told, passed.Header.Get("Authorization") != "")
			}
			wantProblem(t, r.raw(t, "GET", tickets), "401", keystile.CodeKeyMissing)
		})
	}
	t.Run("a denial", func(t *testing.T) {
		r := newRig(t, keystile.FailOpen(func(*http.Request, error) { t.Error("opened") }))
		r.service.ReplyDecision(keystiletest.Denied(keystile.CodeUnavailable, http.StatusServiceUnavailable))
		wantProblem(t, r.raw(t, "GET", tickets, r.bearer()), "503", keystile.CodeUnavailable)
	})
	t.Run("without notify", func(t *testing.T) {
		r := newRig(t, keystile.OnError(nil), keystile.FailOpen(nil))
		r.service.Reply(func(*http.Request, keystiletest.Asked) (int, string, string) { return 503, "text/plain", "" })
		wantProblem(t, r.raw(t, "GET", tickets, r.bearer()), "503", keystile.CodeUnavailable)
	})
}

func TestDecision_ZeroDenies(t *testing.T) {
	var none *keystile.Decision
	for _, d := range []*keystile.Decision{none, {}, {Allow: true}, {Allow: true, Status: 200, Code: keystile.CodeAllowed}} {
		if d.Allowed() {
			t.Errorf("%+v is allowed", d)
		}
		w := httptest.NewRecorder()
		if err := d.WriteTo(w); err != nil || w.Code != http.StatusServiceUnavailable {
			t.Errorf("WriteTo(%+v) = %d, %v; want 503", d, w.Code, err)
		}
		if _, ok := keystile.FromContext(keystile.NewContext(t.Context(), d)); ok {
			t.Errorf("%+v is an identity", d)
		}
	}
	if _, ok := keystile.FromContext(t.Context()); ok {
		t.Error("an empty context has an identity")
	}
}

func TestDecision_HeadersReplaceTheirTwins(t *testing.T) {
	h := http.Header{"X-Ratelimit-Limit": {"7"}, "Other": {"kept"}}
	d := keystiletest.Allowed(acme, keystile.Live)
	d.SetHeaders(h)
	if got := map[string][]string(h)["X-RateLimit-Limit"]; !slices.Equal(got, []string{"100"}) || h["X-Ratelimit-Limit"] != nil || h.Get("Other") != "kept" {
		t.Errorf("headers = %v", h)
	}
}
