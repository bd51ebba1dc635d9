package server

import (
	"errors"
	"net/http"
	"net/http/pprof"
	"slices"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// route is one row of the route table.
type route struct {
	method, path string
	handle       gin.HandlerFunc
}

// checkPath is where checks are asked for.
const checkPath = "/v1/check"

// checkRoutes is the route table of checks.
func (s *Server) checkRoutes() []route {
	return []route{{http.MethodPost, checkPath, s.check}, {http.MethodPost, checkPath + "/explain", s.explain}}
}

// healthRoutes are on every listener but the ops listener, which tells more.
func (s *Server) healthRoutes() []route {
	return []route{
		{http.MethodGet, "/healthz", s.healthz},
		{http.MethodHead, "/healthz", s.healthz},
		{http.MethodGet, "/readyz", s.readyz},
		{http.MethodHead, "/readyz", s.readyz},
	}
}

// managementRoutes are those that the API's document does not describe; the others
// are generated from it. Without management there are none.
func (s *Server) managementRoutes() []route {
	if s.management == nil {
		return nil
	}
	document := serveDocument()
	return []route{
		{http.MethodGet, "/openapi.yaml", document},
		{http.MethodHead, "/openapi.yaml", document},
	}
}

// engines makes the engine of each kind of listener.
func (s *Server) engines() error {
	var err error
	if s.checks, err = s.engine(slices.Concat(s.checkRoutes(), s.healthRoutes())); err != nil {
		return err
	}
	if s.api, err = s.engine(slices.Concat(s.checkRoutes(), s.healthRoutes(), s.managementRoutes())); err != nil {
		return err
	}
	if s.admin, err = s.engine(slices.Concat(s.healthRoutes(), s.managementRoutes())); err != nil {
		return err
	}
	if s.ops, err = s.engine(s.opsRoutes()); err != nil || s.management == nil {
		return err
	}
	return errors.Join(s.management.register(s.api), s.management.register(s.admin))
}

// opsRoutes is the route table of the ops listener.
func (s *Server) opsRoutes() []route {
	routes := []route{
		{http.MethodGet, "/healthz", s.healthz},
		{http.MethodGet, "/readyz", s.readyzDetails},
		{http.MethodGet, "/metrics", gin.WrapH(promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))},
	}
	if s.pprof {
		routes = append(routes,
			route{http.MethodGet, "/debug/pprof/*profile", servePprof})
	}
	return routes
}

func servePprof(c *gin.Context) {
	switch c.Param("profile") {
	case "/cmdline":
		pprof.Cmdline(c.Writer, c.Request)
	case "/profile":
		pprof.Profile(c.Writer, c.Request)
	case "/symbol":
		pprof.Symbol(c.Writer, c.Request)
	case "/trace":
		pprof.Trace(c.Writer, c.Request)
	default:
		pprof.Index(c.Writer, c.Request)
	}
}

// engine makes a Gin engine of a route table. A path has one spelling: no
// redirects, no decoding before matching, no trust in proxies' headers.
func (s *Server) engine(routes []route) (*gin.Engine, error) {
	engine := gin.New()
	engine.RedirectTrailingSlash = false
	engine.RedirectFixedPath = false
	engine.HandleMethodNotAllowed = true
	engine.UseRawPath = true
	engine.UnescapePathValues = false
	engine.ForwardedByClientIP = false
	if err := engine.SetTrustedProxies(nil); err != nil {
		return nil, err //nolint:wrapcheck // nil proxies cannot be wrong
	}
	engine.Use(s.common)
	for _, r := range routes {
		engine.Handle(r.method, r.path, r.handle)
	}
	engine.NoRoute(func(c *gin.Context) {
		fail(c, &problem{
			Status: http.StatusNotFound, Code: "not_found", Title: "Not found",
			Detail: "There is nothing at this path. Paths have one exact spelling.",
		})
	})
	engine.NoMethod(func(c *gin.Context) {
		// Gin has set Allow.
		fail(c, &problem{
			Status: http.StatusMethodNotAllowed, Code: "method_not_allowed", Title: "Method not allowed",
			Detail: "This path answers to other methods; see Allow.",
		})
	})
	return engine, nil
}
