package server

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"

	"github.com/gin-gonic/gin"
)

// maxRequestID bounds a request id that is taken from a caller.
const maxRequestID = 128

// common is what every answer has: a request id, no caching, and during a drain a
// closing connection. It also turns a panic into a 500 without a trace of the
// request in it.
func (s *Server) common(c *gin.Context) {
	header := c.Writer.Header()
	header["X-Request-Id"] = []string{saneRequestID(c.Request.Header["X-Request-Id"])}
	header["Cache-Control"] = noStore
	header["X-Content-Type-Options"] = nosniff
	if s.draining.Load() {
		header["Connection"] = []string{"close"}
	}
	defer func() {
		if fault := recover(); fault != nil {
			if err, ok := fault.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(fault) // net/http's own way to drop a connection
			}
			s.log.Error("panic", slog.String("fault", fmt.Sprintf("%T", fault)),
				slog.String("request_id", requestID(c)), slog.String("stack", string(debug.Stack())))
			if !c.Writer.Written() {
				fail(c, internalProblem())
			}
		}
	}()
	c.Next()
}

// saneRequestID echoes one id of letters, digits, '-', '_' and '.', or makes one.
func saneRequestID(lines []string) string {
	if len(lines) == 1 && lines[0] != "" && len(lines[0]) <= maxRequestID {
		sane := true
		for i := range len(lines[0]) {
			c := lines[0][i]
			sane = sane && (c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '-' || c == '_' || c == '.')
		}
		if sane {
			return lines[0]
		}
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // documented never to fail
	return hex.EncodeToString(id[:])
}

func requestID(c *gin.Context) string { return c.Writer.Header().Get("X-Request-Id") }

// buffers lends byte slices for bodies, so that a check does not make new ones.
type buffers struct{ pool sync.Pool }

type buffer struct{ bytes []byte }

func newBuffers() *buffers {
	return &buffers{sync.Pool{New: func() any { return &buffer{make([]byte, 0, 4096)} }}}
}

func (p *buffers) get() *buffer {
	b, ok := p.pool.Get().(*buffer)
	if !ok {
		b = &buffer{}
	}
	b.bytes = b.bytes[:0]
	return b
}

// put takes a buffer back. Its bytes, which may hold a secret, are wiped first.
func (p *buffers) put(b *buffer) {
	clear(b.bytes[:cap(b.bytes)])
	p.pool.Put(b)
}

// readFrom appends all of r.
func (b *buffer) readFrom(r io.Reader) error {
	for {
		if len(b.bytes) == cap(b.bytes) {
			b.bytes = append(b.bytes, 0)[:len(b.bytes)]
		}
		n, err := r.Read(b.bytes[len(b.bytes):cap(b.bytes)])
		b.bytes = b.bytes[:len(b.bytes)+n]
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the body: %w", err)
		}
	}
}
