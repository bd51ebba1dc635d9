package server

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// Readiness is what the parts together say about themselves.
type Readiness struct {
	// Ready tells that known keys can be decided.
	Ready bool
	// Degraded names the parts that do not answer and are stood in for: limiter, store.
	Degraded []string
	// Details are for the ops listener alone: figures and revisions, no secrets.
	Details map[string]any
	// Figures are for /metrics.
	Figures []Figure
}

// Figure is one number that a part tells about itself.
type Figure struct {
	// Name is the metric's without the prefix keystile_; one of a counter ends in _total.
	Name  string
	Help  string
	Value float64
	// Labels are the metric's; nil for none.
	Labels map[string]string
}

// healthz answers 200 while the process lives.
func (s *Server) healthz(c *gin.Context) {
	c.Writer.Header()["Content-Type"] = contentTypeJSON
	send(c, http.StatusOK, []byte("{\"status\":\"ok\"}\n"))
}

// readyz answers 200 while known keys can be decided, also with Redis or Postgres
// away: an orchestrator would otherwise remove every replica at the worst moment.
func (s *Server) readyz(c *gin.Context) {
	status, word, _ := s.readiness()
	c.Writer.Header()["Content-Type"] = contentTypeJSON
	send(c, status, []byte(`{"status":"`+word+"\"}\n"))
}

// readyzDetails is readyz with everything that an operator asks next.
func (s *Server) readyzDetails(c *gin.Context) {
	status, word, r := s.readiness()
	degraded := r.Degraded
	if degraded == nil {
		degraded = []string{}
	}
	c.JSON(status, gin.H{"status": word, "degraded": degraded, "details": r.Details})
}

func (s *Server) readiness() (status int, word string, r Readiness) {
	r = s.ready()
	switch {
	case s.draining.Load():
		return http.StatusServiceUnavailable, "draining", r
	case !r.Ready:
		return http.StatusServiceUnavailable, "unavailable", r
	case len(r.Degraded) > 0:
		return http.StatusOK, "degraded", r
	}
	return http.StatusOK, "ready", r
}
