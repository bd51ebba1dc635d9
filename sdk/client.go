package keystile

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// DefaultTimeout bounds one [Client.Check] from its start to its last byte,
	// retry included. [WithTimeout] changes it.
	DefaultTimeout = time.Second

	// MaxAnswerBytes bounds the body of an answer. A longer one is an error.
	MaxAnswerBytes = 256 << 10

	// maxIdleConns keeps enough connections open for a busy application; the
	// standard library's default of 2 a host would open one for most checks.
	maxIdleConns = 128

	// idleTimeout is shorter than that of common servers and load balancers, so
	// that the client and not the other side closes an idle connection: a POST
	// that meets a closing connection cannot be repeated safely.
	idleTimeout = 30 * time.Second

	checkPath = "/v1/check"
	userAgent = "keystile-go"
)

// Checker answers questions; [*Client] is one, and tests of an application may
// bring their own. Check must be safe for concurrent use. A nil error comes
// with a non-nil decision; an error means that the question was not decided.
type Checker interface {
	Check(ctx context.Context, q Question) (*Decision, error)
}

var _ Checker = (*Client)(nil)

// Client asks one Keystile service. It is safe for concurrent use, keeps its
// connections alive, and is meant to be made once for the life of the process.
// It prints without its token.
type Client struct {
	base    string
	caller  *credential
	timeout time.Duration
	http    *http.Client
}

// credential is reached by a pointer, which prints as an address.
type credential struct{ token, authorization string }

// Option changes how a [Client] reaches the service.
type Option func(*settings)

type settings struct {
	timeout   time.Duration
	plaintext bool
	tls       *tls.Config
	transport http.RoundTripper
}

// WithTimeout bounds each check; the default is [DefaultTimeout]. It must be
// positive. A shorter deadline of the caller's context wins.
func WithTimeout(d time.Duration) Option {
	return func(s *settings) { s.timeout = d }
}

// WithTLSConfig sets the TLS configuration, for a private certificate authority
// or a client certificate. The default verifies against the system's
// authorities. It is ignored together with [WithTransport].
func WithTLSConfig(config *tls.Config) Option {
	return func(s *settings) { s.tls = config.Clone() }
}

// WithTransport replaces the client's own transport, for tracing or a proxy.
// The default uses no proxy, not even one from the environment. The transport
// sees the caller's token in the Authorization header.
func WithTransport(transport http.RoundTripper) Option {
	return func(s *settings) { s.transport = transport }
}

// WithInsecurePlaintext accepts an http URL whose host is not a loopback
// address. Whoever can read that network reads the caller's token; the default
// refuses.
func WithInsecurePlaintext() Option {
	return func(s *settings) { s.plaintext = true }
}

// New returns a client of the service at baseURL that presents the caller's
// token (ksc_…). It does not connect.
//
// baseURL is scheme, host and port only: https, or http to a loopback address
// ([WithInsecurePlaintext] lifts that). User info, path, query and fragment are
// refused, as is a token that is empty, holds anything but visible ASCII, or is
// an admin's (ksa_…), which must not travel with checks. No error holds the
// token.
func New(baseURL, token string, opts ...Option) (*Client, error) {
	s := settings{timeout: DefaultTimeout}
	for _, opt := range opts {
		opt(&s)
	}
	if s.timeout <= 0 {
		return nil, fmt.Errorf("keystile: timeout %v: must be positive", s.timeout)
	}
	base, err := parseBase(baseURL, s.plaintext)
	if err != nil {
		return nil, err
	}
	if err := checkToken(token); err != nil {
		return nil, err
	}
	if s.transport == nil {
		s.transport = newTransport(s.tls)
	}
	return &Client{
		base:    base,
		caller:  &credential{token: token, authorization: "Bearer " + token},
		timeout: s.timeout,
		http: &http.Client{
			Transport: s.transport,
			// A redirect could carry the token to another host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// parseBase never puts the URL itself into an error: it may hold a password.
func parseBase(raw string, plaintext bool) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return "", errors.New("keystile: the service's URL cannot be parsed; it looks like https://keystile.example")
	case u.Scheme != "https" && u.Scheme != "http", u.Opaque != "", u.Hostname() == "":
		return "", errors.New("keystile: the service's URL must be absolute, http or https; it looks like https://keystile.example")
	case u.User != nil:
		return "", errors.New("keystile: the service's URL must not hold user info; the token is given apart")
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return "", errors.New("keystile: the service's URL must end after host and port; path, query and fragment are refused")
	case u.Scheme == "http" && !plaintext && !isLoopback(u.Hostname()):
		return "", errors.New("keystile: plain http is for loopback addresses only, else the token is readable on the network; use https, or WithInsecurePlaintext")
	}
	return u.Scheme + "://" + u.Host, nil
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

func checkToken(token string) error {
	if token == "" {
		return errors.New("keystile: the caller's token (ksc_…) is empty")
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return errors.New("keystile: the caller's token holds a space, a line end or another byte that no token has")
		}
	}
	if strings.HasPrefix(token, "ksa_") {
		return errors.New("keystile: that is an admin token (ksa_…); checks are asked with a caller token (ksc_…)")
	}
	return nil
}

func newTransport(config *tls.Config) *http.Transport {
	dialer := &net.Dialer{KeepAlive: 15 * time.Second}
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           maxIdleConns,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: 32 << 10,
		DisableCompression:     true,
	}
}

// CloseIdleConnections closes connections that wait for the next check.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// Format prints the client as its service's address, under every verb.
func (c *Client) Format(f fmt.State, _ rune) {
	base := "nil"
	if c != nil {
		base = c.base
	}
	_, _ = io.WriteString(f, "keystile.Client("+base+")")
}

// Check asks q and returns the service's decision, allowed or not.
//
// An error is always an [*Error] and means that nothing was decided: treat it
// as "not allowed". It comes when the service was not reached within the
// timeout, refused the question or the caller, or gave an answer that
// contradicts itself.
//
// A check is sent once. Only when no connection could be made, so that nothing
// was sent, is it tried once more at once. An application that repeats a check
// by itself may be charged twice for it.
func (c *Client) Check(ctx context.Context, q Question) (*Decision, error) {
	if c == nil {
		return nil, &Error{Code: CodeUnreachable, Detail: "there is no client"}
	}
	body, err := q.encode()
	if err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	a, err := c.ask(ctx, bounded, checkPath, body)
	if err != nil {
		return nil, err
	}
	d, err := decodeDecision(a.body, a.contentType, q)
	if err != nil {
		return nil, &Error{Code: CodeInvalidAnswer, Status: http.StatusOK, RequestID: a.requestID, Detail: err.Error()}
	}
	return d, nil
}

// answered is what the service answered with 200.
type answered struct {
	body                   []byte
	contentType, requestID string
}

// ask sends a body within bounded. ctx is the application's own.
func (c *Client) ask(ctx, bounded context.Context, path string, body []byte) (answered, error) {
	resp, err := c.send(bounded, path, body)
	if err != nil {
		return answered{}, c.unreachable(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	read, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswerBytes+1))
	if err != nil {
		return answered{}, c.unreachable(ctx, err)
	}
	requestID := c.redact(resp.Header.Get("X-Request-ID"))
	if resp.StatusCode != http.StatusOK {
		return answered{}, c.refusal(resp, read, requestID)
	}
	return answered{read, resp.Header.Get("Content-Type"), requestID}, nil
}

func (c *Client) send(ctx context.Context, path string, body []byte) (*http.Response, error) {
	resp, connected, err := c.post(ctx, path, body)
	if err == nil || connected || ctx.Err() != nil {
		return resp, err
	}
	resp, _, err = c.post(ctx, path, body)
	return resp, err
}

// post also tells whether there was a connection, after which bytes may have
// been sent.
func (c *Client) post(ctx context.Context, path string, body []byte) (*http.Response, bool, error) {
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, true, err
	}
	req.Header["Authorization"] = []string{c.caller.authorization}
	req.Header["Content-Type"] = []string{"application/json"}
	req.Header["Accept"] = []string{"application/json"}
	req.Header["User-Agent"] = []string{userAgent}
	resp, err := c.http.Do(req)
	return resp, connected.Load(), err
}

// unreachable is unavailability, unless the caller itself gave up.
func (c *Client) unreachable(ctx context.Context, err error) *Error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if ctx.Err() != nil {
		return &Error{Code: CodeUnreachable, Detail: "the caller gave up before the service answered", cause: ctx.Err()}
	}
	detail := "the service did not answer"
	if errors.Is(err, context.DeadlineExceeded) {
		detail = fmt.Sprintf("the service did not answer within %v", c.timeout)
	}
	return &Error{Code: CodeUnreachable, Detail: detail, cause: err, unavailable: true}
}

// refusal turns an answer that is not a decision into an error. Of its body
// only the known members of a problem are taken.
func (c *Client) refusal(resp *http.Response, body []byte, requestID string) *Error {
	e := &Error{
		Code:        CodeInvalidAnswer,
		Status:      resp.StatusCode,
		RequestID:   requestID,
		Detail:      "the service answered something that is not a decision",
		unavailable: resp.StatusCode >= http.StatusInternalServerError,
	}
	if e.unavailable {
		e.Code = CodeUnavailable
		e.Detail = "the service could not answer"
	}
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || media != problemType {
		return e
	}
	e.fill(body, c.redact)
	return e
}

// redact keeps a service that echoes its input from putting the token into an
// error.
func (c *Client) redact(s string) string {
	return strings.ReplaceAll(s, c.caller.token, "[redacted]")
}
