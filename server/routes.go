package server

import (
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// route is one row of the route table.
type route struct {
	method, path string
	handle       gin.HandlerFunc
}

// apiRoutes is the one route table of the check API.
func (s *Server) apiRoutes() []route {
	return []route{
		{http.MethodPost, "/v1/check", s.check},
		{http.MethodGet, "/healthz", s.healthz},
		{http.MethodHead, "/healthz", s.healthz},
		{http.MethodGet, "/readyz", s.readyz},
		{http.MethodHead, "/readyz", s.readyz},
	}
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
	methods := make(map[string][]string)
	for _, r := range routes {
		engine.Handle(r.method, r.path, r.handle)
		methods[r.path] = append(methods[r.path], r.method)
	}
	engine.NoRoute(func(c *gin.Context) {
		fail(c, &problem{
			Status: http.StatusNotFound, Code: "not_found", Title: "Not found",
			Detail: "There is nothing at this path. Paths have one exact spelling.",
		})
	})
	engine.NoMethod(func(c *gin.Context) {
		allow := strings.Join(methods[c.Request.URL.Path], ", ")
		fail(c, &problem{
			Status: http.StatusMethodNotAllowed, Code: "method_not_allowed", Title: "Method not allowed",
			Detail: "This path answers to other methods; see Allow.", Allow: allow,
		})
	})
	return engine, nil
}
