package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	keystile "github.com/supportstation/keystile/sdk"
)

const (
	// DefaultTimeout bounds one call from its start to its last byte, retry
	// included. It is long because changes wait for replicas, and imports and
	// verifications for Postgres. [WithTimeout] changes it.
	DefaultTimeout = 35 * time.Second

	// MaxAnswerBytes bounds the body of an answer. A longer one is an error.
	MaxAnswerBytes = 16 << 20

	userAgent = "keystile-go-admin"
)

// Client manages one Keystile service as one admin. It is safe for concurrent
// use, keeps its connections alive, and prints without its token.
//
// Each method is one call, but for those that return iterators. Its errors are
// an [*Error] when the service refused or failed, and a [*TransportError] when
// no answer came. A GET, and a POST, which has an Idempotency-Key for that, is
// sent a second time when its connection broke; nothing else is repeated.
type Client struct {
	base string
	api  *endpoints
	http *http.Client
	// sender is below api.
	sender *sender
}

// Option changes how a [Client] reaches the service.
type Option func(*settings)

type settings struct {
	timeout   time.Duration
	plaintext bool
	tls       *tls.Config
	transport http.RoundTripper
}

// WithTimeout bounds each call; the default is [DefaultTimeout]. It must be
// positive. A shorter deadline of the caller's context wins.
func WithTimeout(d time.Duration) Option {
	return func(s *settings) { s.timeout = d }
}

// WithTLSConfig sets the TLS configuration, for a private certificate authority
// or a client certificate. It is ignored together with [WithTransport].
func WithTLSConfig(config *tls.Config) Option {
	return func(s *settings) { s.tls = config.Clone() }
}

// WithTransport replaces the client's own transport, for tracing or a proxy.
// The default uses no proxy, not even one from the environment. The transport
// sees the admin's token in the Authorization header.
func WithTransport(transport http.RoundTripper) Option {
	return func(s *settings) { s.transport = transport }
}

// WithInsecurePlaintext accepts an http URL whose host is not a loopback
// address. Whoever can read that network reads the admin's token; the default
// refuses.
func WithInsecurePlaintext() Option {
	return func(s *settings) { s.plaintext = true }
}

// New returns a client of the service at baseURL that presents the admin's
// token (ksa_…). It does not connect. URLs are taken and refused as by
// [keystile.New]; no error holds the URL or the token.
func New(baseURL, token string, opts ...Option) (*Client, error) {
	s := settings{timeout: DefaultTimeout}
	for _, opt := range opts {
		opt(&s)
	}
	if s.timeout <= 0 {
		return nil, fmt.Errorf("keystile: timeout %v: must be positive", s.timeout)
	}
	if err := checkURL(baseURL, s.plaintext); err != nil {
		return nil, err
	}
	if err := checkToken(token); err != nil {
		return nil, err
	}
	if s.transport == nil {
		s.transport = newTransport(s.tls)
	}
	base := strings.TrimSuffix(baseURL, "/")
	client := &http.Client{
		Transport: s.transport,
		// A redirect could carry the token to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	below := &sender{http: client, timeout: s.timeout, admin: &credential{token: token, authorization: "Bearer " + token}}
	api, err := NewClient(base, WithHTTPClient(below))
	if err != nil {
		return nil, fmt.Errorf("keystile: %w", err)
	}
	return &Client{base: base, api: api, http: client, sender: below}, nil
}

// checkURL has the check client judge, so that there is one rule for both.
func checkURL(baseURL string, plaintext bool) error {
	var opts []keystile.Option
	if plaintext {
		opts = append(opts, keystile.WithInsecurePlaintext())
	}
	_, err := keystile.New(baseURL, "unused", opts...)
	return err
}

func checkToken(token string) error {
	switch {
	case token == "":
		return errors.New("keystile: the admin's token (ksa_…) is empty")
	case strings.HasPrefix(token, "ksc_"):
		return errors.New("keystile: that is a caller token (ksc_…), which asks for checks; an admin token (ksa_…) manages")
	case !strings.HasPrefix(token, "ksa_"):
		return errors.New("keystile: that is not an admin token; it begins with ksa_")
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return errors.New("keystile: the admin's token holds a space, a line end or another byte that no token has")
		}
	}
	return nil
}

func newTransport(config *tls.Config) *http.Transport {
	dialer := &net.Dialer{KeepAlive: 15 * time.Second}
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config,
		ForceAttemptHTTP2:      true,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 32 << 10,
	}
}

// CloseIdleConnections closes connections that wait for the next call.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// Format prints the client as its service's address, under every verb.
func (c *Client) Format(f fmt.State, _ rune) {
	base := "nil"
	if c != nil {
		base = c.base
	}
	_, _ = io.WriteString(f, "admin.Client("+base+")")
}

// WithDryRun has the service do everything but keep nothing: the answer is what it
// would be, without a secret.
func WithDryRun() RequestEditorFn {
	return func(_ context.Context, req *http.Request) error {
		query := req.URL.Query()
		query.Set("dry_run", "true")
		req.URL.RawQuery = query.Encode()
		return nil
	}
}

// WithIfMatch has an update refused with status 412 unless version is still the
// thing's.
func WithIfMatch(version int) RequestEditorFn {
	return func(_ context.Context, req *http.Request) error {
		req.Header.Set("If-Match", `"`+strconv.Itoa(version)+`"`)
		return nil
	}
}

// WithIdempotencyKey names a POST, so that the same one sent again within 24 hours
// gets the same answer without its secret. Each POST has a random one unless
// this is given.
func WithIdempotencyKey(key string) RequestEditorFn {
	return func(_ context.Context, req *http.Request) error {
		req.Header.Set(idempotencyKey, key)
		return nil
	}
}
