package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// On a connection that has served before, a request is given as long as on a new one,
// counted from its first byte; idle it may be for much longer.
func TestServe_SlowHeadersEndWhereverTheyBegin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	api := listenLocal(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, api, nil, nil) }()
	defer func() {
		cancel()
		<-done
	}()
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
