package server

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// promptListener accepts connections whose next request must be there soon after its
// first byte: net/http waits for the first four under the limit for idle connections.
type promptListener struct{ net.Listener }

// Accept implements net.Listener.
func (l promptListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err //nolint:wrapcheck // net/http inspects it
	}
	return &promptConn{Conn: c}, nil
}

// promptConn sets a deadline at the first byte after it was idle, and has the deadline for
// the headers that net/http sets some bytes later be no later.
type promptConn struct {
	net.Conn

	idle atomic.Bool
	// until is that deadline in Unix nanoseconds, 0 when there is none.
	until atomic.Int64
}

// Read implements net.Conn.
func (c *promptConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.idle.Load() && c.idle.Swap(false) {
		until := time.Now().Add(readHeaderTimeout)
		c.until.Store(until.UnixNano())
		if e := c.Conn.SetReadDeadline(until); e != nil && err == nil {
			err = e
		}
	}
	return n, err //nolint:wrapcheck // net/http inspects it
}

// SetReadDeadline implements net.Conn.
func (c *promptConn) SetReadDeadline(t time.Time) error {
	if n := c.until.Load(); n != 0 {
		switch until := time.Unix(0, n); {
		case t.After(time.Now().Add(readHeaderTimeout)):
			c.until.Store(0) // the headers are there; this is for the body
		case t.IsZero() || t.After(until):
			t = until
		}
	}
	return c.Conn.SetReadDeadline(t) //nolint:wrapcheck // net/http inspects it
}

// CloseWrite ends what is written and leaves reading open, so that a client which is
// still sending reads its answer. net/http looks for it.
func (c *promptConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite() //nolint:wrapcheck // net/http inspects it
	}
	return nil
}

// connState is told by net/http what becomes of a connection.
func connState(c net.Conn, state http.ConnState) {
	if secured, ok := c.(*tls.Conn); ok {
		if secured.ConnectionState().NegotiatedProtocol == "h2" {
			return // one reader for all of its requests: a deadline would cut those in flight
		}
		c = secured.NetConn()
	}
	prompt, ok := c.(*promptConn)
	if !ok {
		return
	}
	switch state {
	case http.StateIdle:
		prompt.idle.Store(true)
	case http.StateActive: // the headers are there, maybe read before they were waited for
		prompt.idle.Store(false)
	case http.StateNew, http.StateHijacked, http.StateClosed:
	}
}
