package server

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/supportstation/keystile/authz"
)

const (
	// explainsPerSecond bounds the explanations of one replica, explainsAtOnce those that
	// run: each can take as much as a hundred checks.
	explainsPerSecond = 20
	explainsAtOnce    = 2
)

// explanation is the answer of POST /v1/check/explain. It says would_allow and never allow:
// nobody may take it for a decision.
type explanation struct {
	WouldAllow     bool             `json:"would_allow"`
	Code           string           `json:"code"`
	Status         int              `json:"status"`
	Key            *explainedKey    `json:"key"`
	Scopes         []authz.Scope    `json:"scopes"`
	Required       []authz.Scope    `json:"required_scopes"`
	Missing        []authz.Scope    `json:"missing_scopes"`
	Route          *string          `json:"route"`
	Reasons        []explainedWhy   `json:"reasons"`
	Limits         []explainedLimit `json:"limits"`
	Remedies       []explainedCure  `json:"remedies"`
	Rules          []explainedRule  `json:"rules"`
	PolicyRevision *string          `json:"policy_revision"`
	Degraded       []string         `json:"degraded"`
}

type explainedKey struct {
	ID             string `json:"id"`
	Hint           string `json:"hint"`
	Environment    string `json:"environment"`
	OrganizationID string `json:"organization_id"`
}

type explainedWhy struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

type explainedLimit struct {
	Name          string `json:"name"`
	Rate          int    `json:"rate"`
	PeriodSeconds int    `json:"period_seconds"`
	Burst         int    `json:"burst"`
	Cost          int    `json:"cost"`
}

type explainedCure struct {
	Changes []explainedChange `json:"changes"`
	// Tried tells that policy allows with these changes.
	Tried bool `json:"tried"`
}

type explainedChange struct {
	Kind    string  `json:"kind"`
	Message string  `json:"message"`
	Scope   *string `json:"scope"`
}

type explainedRule struct {
	Name  string  `json:"name"`
	Title *string `json:"title"`
	File  string  `json:"file"`
	Line  int     `json:"line"`
	Fired bool    `json:"fired"`
}

// explain answers POST /v1/check/explain: what a check would be, and why. It charges nothing.
func (s *Server) explain(c *gin.Context) {
	c.Writer.Header()["X-Keystile-Decision"] = decisionError // it is none, whatever it says
	body := s.buffers.get()
	defer s.buffers.put(body)
	q, issue := s.question(c, body, authz.PermissionExplain)
	if issue != nil {
		fail(c, issue)
		return
	}
	if !s.mayExplain() {
		fail(c, &problem{
			Status: http.StatusTooManyRequests, Code: "caller_throttled", Title: "Too many explanations",
			Detail: "A replica explains 20 checks a second, and 2 at a time; ask again in a second.", RetryAfter: 1,
		})
		return
	}
	defer s.explains.Add(-1)
	e, err := s.checker.Explain(c.Request.Context(), q)
	if err != nil {
		fail(c, s.problemOf(c, err))
		return
	}
	s.metrics.explained(e)
	raw, err := json.Marshal(toExplanation(e))
	if err != nil {
		fail(c, internalProblem())
		return
	}
	c.Writer.Header()["Content-Type"] = contentTypeJSON
	send(c, http.StatusOK, append(raw, '\n'))
}

// mayExplain takes a place among the explanations that run, which the caller gives back.
func (s *Server) mayExplain() bool {
	if s.explains.Add(1) <= explainsAtOnce && s.explaining.Allow() {
		return true
	}
	s.explains.Add(-1)
	return false
}

func toExplanation(e *authz.Explanation) explanation {
	out := explanation{
		WouldAllow: e.WouldAllow, Code: string(e.Code), Status: e.Status, Scopes: []authz.Scope{}, Required: orNone(e.Required), Missing: orNone(e.Missing),
		Route: optional(e.Route), Reasons: []explainedWhy{}, Limits: []explainedLimit{}, Remedies: []explainedCure{}, Rules: []explainedRule{},
		PolicyRevision: optional(e.PolicyRevision), Degraded: []string{},
	}
	if e.Key != nil && e.Key.Organization != nil && e.Secret != nil {
		out.Key = &explainedKey{e.Key.ID.String(), e.Secret.Hint, string(e.Key.Environment), e.Key.Organization.ID.String()}
		out.Scopes = orNone(e.Key.Scopes)
	}
	for _, r := range e.Reasons {
		out.Reasons = append(out.Reasons, explainedWhy{string(r.Code), r.Message})
	}
	for _, l := range e.Limits {
		out.Limits = append(out.Limits, explainedLimit{l.Name, l.Rate.Rate, int(l.Period / time.Second), l.Burst, l.Cost})
	}
	for _, r := range e.Remedies {
		cure := explainedCure{Tried: r.Tried}
		for _, change := range r.Changes {
			cure.Changes = append(cure.Changes, explainedChange{change.Kind, change.Message, optional(string(change.Scope))})
		}
		out.Remedies = append(out.Remedies, cure)
	}
	for _, r := range e.Rules {
		out.Rules = append(out.Rules, explainedRule{r.Name, optional(r.Title), r.File, r.Line, r.Fired})
	}
	if e.Degraded.Store {
		out.Degraded = append(out.Degraded, "store")
	}
	return out
}

func orNone(scopes []authz.Scope) []authz.Scope {
	if scopes == nil {
		return []authz.Scope{}
	}
	return scopes
}
