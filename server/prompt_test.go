package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz/manage"
)

// serveLocal serves on a listener until the test ends.
func serveLocal(t *testing.T, w *world) net.Listener {
	t.Helper()
	api := listenLocal(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, api, nil, nil) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return api
}

// On a connection that has served before, a request is given as long as on a new one,
// counted from its first byte; idle it may be for much longer.
func TestServe_SlowHeadersEndWhereverTheyBegin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	api := serveLocal(t, w)
	open := func() (net.Conn, *bufio.Reader) {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", api.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c, bufio.NewReader(c)
	}
	ask := func(c net.Conn, r *bufio.Reader) {
		t.Helper()
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: keystile\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
	}
	idle, idleReader := open()
	ask(idle, idleReader)
	slow, slowReader := open()
	ask(slow, slowReader)
	began := time.Now()
	go func() {
		for _, b := range "GET /healthz HTTP/1.1" {
			if _, err := slow.Write([]byte{byte(b)}); err != nil {
				return
			}
			<-time.After(readHeaderTimeout * 3 / 4)
		}
	}()
	_ = slow.SetReadDeadline(began.Add(10 * readHeaderTimeout))
	_, _ = io.Copy(io.Discard, slowReader) // until it is closed
	// Counted from the fourth byte it would be more than three times as long.
	if took := time.Since(began); took > 2*readHeaderTimeout {
		t.Errorf("slow headers of a further request were borne for %v", took)
	}
	ask(idle, idleReader)
}

// A connection of HTTP/2 carries many requests at a time and is read all the time: the
// limit for headers does not end it, neither idle nor at work.
func TestServe_ConnectionsOfHTTP2OutliveTheLimitForHeaders(t *testing.T) {
	t.Parallel()
	other := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	defer other.Close()
	w := newWorld(t, func(o *Options, _ *manage.Options) {
		o.TLS = &tls.Config{Certificates: other.TLS.Certificates, MinVersion: tls.VersionTLS12}
	})
	api := serveLocal(t, w)
	client := other.Client()
	transport, ok := client.Transport.(*http.Transport)
	if !ok {
		t.Fatal("no transport")
	}
	transport.ForceAttemptHTTP2 = true
	ask := func() (reused bool) {
		t.Helper()
		traced := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused },
		})
		request, err := http.NewRequestWithContext(traced, http.MethodGet, "https://"+api.Addr().String()+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		if answer.ProtoMajor != 2 || answer.StatusCode != http.StatusOK {
			t.Fatalf("%s %d", answer.Proto, answer.StatusCode)
		}
		return reused
	}
	ask()
	ask()
	<-time.After(readHeaderTimeout + time.Second)
	if !ask() {
		t.Error("the connection was closed meanwhile")
	}
}

// Headers may have been read before they were waited for; then the body's own limit holds.
func TestPromptConn_ABodyIsNotHeldToTheLimitForHeaders(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	c := &promptConn{Conn: ours}
	connState(c, http.StateIdle)
	connState(c, http.StateActive) // of a request that was in the buffer
	go func() { _, _ = theirs.Write([]byte("body")) }()
	if _, err := c.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if c.until.Load() != 0 {
		t.Error("the body has a deadline for headers")
	}
}
