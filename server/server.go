// Package server speaks HTTP: it reads questions strictly, asks authz, and writes
// decisions. It knows neither Postgres, nor Redis, nor OPA.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"
	"golang.org/x/time/rate"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// Time limits of connections. All headers must be there within readHeaderTimeout,
// a whole request within readTimeout.
const (
	readHeaderTimeout = 4 * time.Second
	readTimeout       = 10 * time.Second
	// writeTimeout is longer, so that a body that came too slowly still gets its answer.
	writeTimeout   = readTimeout + 5*time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	// drainNotice is how long answers close their connections before listeners close:
	// clients then open the next connection elsewhere, and none loses a request.
	drainNotice = time.Second
	// drainLimit bounds the wait for requests in flight.
	drainLimit = 15 * time.Second
)

// Options are what a Server needs.
type Options struct {
	Checker *authz.Checker
	Callers *authz.Callers
	// Format is the form of the secrets that are looked up.
	Format authz.KeyFormat
	// AcceptsForeign tells which presented keys that have not our own form are looked up
	// all the same, because keys of that form were imported; nil is none.
	AcceptsForeign func(text string) bool
	// Management does the management operations; without it there is no management API.
	Management *manage.Service
	// Admins recognizes those who manage; required with Management.
	Admins *authz.Admins
	// TrustedProxies are those whose X-Forwarded-For is believed for the addresses in
	// the audit log; default none.
	TrustedProxies []netip.Prefix
	// Ready tells how the parts are; called on each health request.
	Ready func() Readiness
	// Pprof serves profiles on the ops listener.
	Pprof bool
	// TLS is nil for plain HTTP.
	TLS *tls.Config
	// Logger gets what an operator should know; nil discards it.
	Logger *slog.Logger
}

// Server serves the check API, the management API and the ops listener. Safe for
// concurrent use.
type Server struct {
	checker  *authz.Checker
	callers  *authz.Callers
	format   authz.KeyFormat
	ready    func() Readiness
	pprof    bool
	tls      *tls.Config
	log      *slog.Logger
	metrics  *metrics
	decoders *decoderPool
	buffers  *buffers
	draining atomic.Bool
	// undecided keeps one line a second about what could not be decided.
	undecided rate.Sometimes
	// explaining bounds the explanations, each of which costs as much as a hundred checks.
	explaining *rate.Limiter
	// explains counts those that run.
	explains atomic.Int64
	// acceptsForeign is nil for none.
	acceptsForeign func(string) bool
	// management is nil without a management API.
	management *management

	// api has checks and management, checks and admin the one without the other.
	api, checks, admin, ops *gin.Engine
}

// New returns a Server, or an error when a part is missing.
func New(o Options) (*Server, error) {
	if o.Checker == nil || o.Callers == nil || o.Ready == nil {
		return nil, errors.New("a server needs a checker, callers and readiness")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		checker: o.Checker, callers: o.Callers, format: o.Format, ready: o.Ready, pprof: o.Pprof, tls: o.TLS,
		log: o.Logger, metrics: newMetrics(o.Ready), decoders: newDecoderPool(), buffers: newBuffers(),
		undecided: rate.Sometimes{Interval: time.Second}, explaining: rate.NewLimiter(explainsPerSecond, explainsPerSecond), acceptsForeign: o.AcceptsForeign,
	}
	if o.Management != nil {
		var err error
		if s.management, err = newManagement(o, s.metrics); err != nil {
			return nil, err
		}
	}
	// Process-wide in Gin, and the same for every engine here: debug mode would
	// print request headers in a panic.
	gin.SetMode(gin.ReleaseMode)
	if err := s.engines(); err != nil {
		return nil, err
	}
	return s, nil
}

// Handler returns checks and management as one listener has them, for tests and for
// serving them elsewhere.
func (s *Server) Handler() http.Handler { return s.api }

// OpsHandler returns the ops listener's API.
func (s *Server) OpsHandler() http.Handler { return s.ops }

// AdminHandler returns management alone, as a listener of its own has it.
func (s *Server) AdminHandler() http.Handler { return s.admin }

// Serve serves on its listeners until ctx ends, then drains: it says so in readyz,
// closes each connection after its answer for a second, stops listening and waits
// for requests in flight. All listeners are closed.
//
// With an admin listener management is there alone; when admin is nil it is where
// checks are. ops may be nil.
func (s *Server) Serve(ctx context.Context, api, ops, admin net.Listener) error {
	var servers []*http.Server
	var listeners []net.Listener
	add := func(l net.Listener, h http.Handler) *http.Server {
		server := s.httpServer(h)
		servers, listeners = append(servers, server), append(listeners, promptListener{l})
		return server
	}
	if admin == nil {
		add(api, s.api).TLSConfig = s.tls.Clone()
	} else {
		add(api, s.checks).TLSConfig = s.tls.Clone()
		add(admin, s.admin).TLSConfig = s.tls.Clone()
	}
	if ops != nil {
		add(ops, s.ops).WriteTimeout = 0 // a profile takes as long as it was asked to
	}
	failed := make(chan error, len(servers))
	for i, server := range servers {
		if server.TLSConfig != nil {
			go func() { failed <- server.ServeTLS(listeners[i], "", "") }()
			continue
		}
		go func() { failed <- server.Serve(listeners[i]) }()
	}
	var err error
	select {
	case <-ctx.Done():
		s.drain()
	case err = <-failed:
	}
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainLimit)
	defer cancel()
	for _, server := range servers {
		if e := server.Shutdown(shutdown); e != nil {
			_ = server.Close()
			err = errors.Join(err, fmt.Errorf("drain: requests were still in flight after %v: %w", drainLimit, e))
		}
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func (s *Server) drain() {
	s.draining.Store(true)
	s.log.Info("draining")
	<-time.After(drainNotice)
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h,
		// OPTIONS * is answered like everything else, by our routes.
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            readHeaderTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		ConnState:                    connState,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}
