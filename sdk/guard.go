package keystile

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
)

const (
	// maxPath is the service's bound for a string, in bytes.
	maxPath = 8 << 10
	// maxMethod holds every registered method twice.
	maxMethod = 32
)

// Guard checks requests; it is what [Protect] and the adapters for frameworks
// share. It is safe for concurrent use.
type Guard struct {
	checker     Checker
	action      string
	environment Environment
	clientIP    func(*http.Request) string
	browser     func(*http.Request) bool
	adjust      func(*http.Request, *Question)
	keepKey     bool
	failOpen    func(*http.Request, error)
	onError     func(*http.Request, error)
}

// GuardOption changes what a [Guard] asks and does.
type GuardOption func(*Guard)

// WithAction asks for a scope, such as "tickets:read", besides method and path.
// Default: none.
func WithAction(action string) GuardOption {
	return func(g *Guard) { g.action = action }
}

// WithEnvironment admits keys of that environment only. Default: both; then
// take the environment from the decision and keep the data apart by it.
func WithEnvironment(environment Environment) GuardOption {
	return func(g *Guard) { g.environment = environment }
}

// WithClientIP tells where the end client's address stands, for applications
// behind a proxy. The default is the connection's peer, since every client can
// send X-Forwarded-For; take a header only from a proxy that overwrites it.
// What is not an IP address counts as unknown. A nil from leaves the default.
func WithClientIP(from func(*http.Request) string) GuardOption {
	return func(g *Guard) {
		if from != nil {
			g.clientIP = from
		}
	}
}

// WithBrowser tells which requests come from a browser, where a key is in the
// hands of everyone who opens the page. By default those with Sec-Fetch-Site,
// and those with an Origin and a browser's User-Agent. Whoever has the key can
// leave these out: it finds keys that were put into pages, and keeps nobody out.
// A customer's server that passes a page's headers on with its own key looks
// like a browser, too. A nil from leaves the default; to change some of its
// answers, use [WithQuestion].
func WithBrowser(from func(*http.Request) bool) GuardOption {
	return func(g *Guard) {
		if from != nil {
			g.browser = from
		}
	}
}

// WithQuestion lets adjust change each question before it is asked, to name a
// resource or a cost. It runs after all else has been filled in.
func WithQuestion(adjust func(*http.Request, *Question)) GuardOption {
	return func(g *Guard) { g.adjust = adjust }
}

// KeepCredentials leaves Authorization and X-API-Key on the request that the
// handler gets. The default removes them, so that no handler logs a key.
func KeepCredentials() GuardOption {
	return func(g *Guard) { g.keepKey = true }
}

// FailOpen lets requests that present a key through UNCHECKED while the service
// is unavailable (see [Error.Unavailable]). During such an outage revoked keys
// work, made-up keys work, and no limit holds; a handler finds no decision in
// the context, and so no organization. It never applies to a denial, to a
// refusal of the question or the caller, or to a request without a key.
//
// notify is called for each such request, to log and to count it; it must be
// safe for concurrent use. A nil notify leaves the guard closed.
func FailOpen(notify func(*http.Request, error)) GuardOption {
	return func(g *Guard) { g.failOpen = notify }
}

// OnError is called for each request that was answered with 503 because it
// could not be decided. It must be safe for concurrent use. The default logs
// the error through [slog.Default].
func OnError(notify func(*http.Request, error)) GuardOption {
	return func(g *Guard) { g.onError = notify }
}

// NewGuard returns a guard that asks checker, usually a [*Client]. With a nil
// checker every request gets 503.
func NewGuard(checker Checker, opts ...GuardOption) *Guard {
	g := &Guard{
		checker: checker, clientIP: remoteAddress, onError: logError,
		browser: func(r *http.Request) bool { return fromBrowser(r.Header) },
	}
	for _, opt := range opts {
		opt(g)
	}
	return g
}

func logError(r *http.Request, err error) {
	//nolint:sloglint // it is the documented default; OnError replaces it
	slog.ErrorContext(r.Context(), "a request could not be checked and was answered with 503", "method", r.Method, "error", err)
}

// Check decides about r. When it is allowed, Check sets the decision's headers
// on w and returns the request to go on with: its context holds the decision,
// its headers no credential. Otherwise Check has answered, and returns nil and
// false; the answer is the service's, or
//
//   - 400 for two credentials of one kind, a method-override header, or a
//     request target that is no path; 414 for a path over 8 KiB
//   - 401 for Authorization and X-API-Key that differ
//   - 503 when it could not be decided
func (g *Guard) Check(w http.ResponseWriter, r *http.Request) (*http.Request, bool) {
	q, refused := g.question(r)
	if refused != "" {
		_ = refuse(w, refused)
		return nil, false
	}
	d, err := g.ask(r.Context(), q)
	if err != nil {
		return g.undecided(w, r, q, err)
	}
	if !d.Allowed() {
		_ = d.WriteTo(w)
		return nil, false
	}
	d.SetHeaders(w.Header())
	return g.passOn(NewContext(r.Context(), d), r), true
}

func (g *Guard) question(r *http.Request) (Question, Code) {
	path := r.URL.EscapedPath()
	switch {
	case overridesMethod(r.Header):
		return Question{}, CodeMethodOverride
	case !strings.HasPrefix(path, "/"):
		return Question{}, CodeInvalidTarget
	case len(path) > maxPath:
		return Question{}, CodePathTooLong
	case len(r.Method) > maxMethod:
		return Question{}, CodeMethodTooLong
	}
	key, refused := presentedKey(r.Header)
	if refused != "" {
		return Question{}, refused
	}
	q := Question{
		Key:         key,
		Method:      r.Method,
		Path:        path,
		Action:      g.action,
		Environment: g.environment,
		ClientIP:    normalAddress(g.clientIP(r)),
		Browser:     g.browser(r),
	}
	if g.adjust != nil {
		g.adjust(r, &q)
	}
	return q, ""
}

func (g *Guard) ask(ctx context.Context, q Question) (*Decision, error) {
	if g.checker == nil {
		return nil, &Error{Code: CodeUnreachable, Detail: "there is no client"}
	}
	d, err := g.checker.Check(ctx, q)
	if err == nil && d == nil {
		err = &Error{Code: CodeInvalidAnswer, Detail: "there is neither a decision nor an error"}
	}
	return d, err
}

func (g *Guard) undecided(w http.ResponseWriter, r *http.Request, q Question, err error) (*http.Request, bool) {
	var fault *Error
	isFault := errors.As(err, &fault)
	if isFault && fault.Unavailable() && g.failOpen != nil {
		if q.Key == "" {
			_ = refuse(w, CodeKeyMissing)
			return nil, false
		}
		g.failOpen(r, err)
		return g.passOn(r.Context(), r), true
	}
	if isFault && fault.ofClient() {
		_ = refuse(w, CodeRequestRefused)
		return nil, false
	}
	if r.Context().Err() == nil && g.onError != nil {
		g.onError(r, err)
	}
	_ = refuse(w, CodeUnavailable)
	return nil, false
}

// ofClient tells whether the end client's own input made the question bad.
func (e *Error) ofClient() bool {
	switch e.Code {
	case "string_too_long", "nul_character", "body_too_large", CodeInvalidUTF8:
		return true
	default:
		return false
	}
}

func (g *Guard) passOn(ctx context.Context, r *http.Request) *http.Request {
	passed := r.WithContext(ctx)
	if !g.keepKey {
		passed.Header = withoutCredentials(r.Header)
	}
	return passed
}

// Protect lets through what the service allows, with the decision in the
// request's context ([FromContext]), and answers everything else itself; see
// [Guard.Check]. Put it around all routes, outside of anything that rewrites
// the path, such as [http.StripPrefix]: the path that is checked is the one
// that next routes by.
func Protect(checker Checker, opts ...GuardOption) func(next http.Handler) http.Handler {
	guard := NewGuard(checker, opts...)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if passed, ok := guard.Check(w, r); ok {
				next.ServeHTTP(w, passed)
			}
		})
	}
}

type contextKey struct{}

// NewContext returns a context that holds d, for tests of handlers.
func NewContext(ctx context.Context, d *Decision) context.Context {
	return context.WithValue(ctx, contextKey{}, d)
}

// FromContext returns the decision that allowed the request. It is false when
// no guard did; then there is no organization, and a handler must not serve.
func FromContext(ctx context.Context) (*Decision, bool) {
	d, _ := ctx.Value(contextKey{}).(*Decision)
	if !d.Allowed() {
		return nil, false
	}
	return d, true
}
