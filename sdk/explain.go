package keystile

import (
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
)

// Explanation is what a check would be, and why. It is no decision, whatever it says:
// nothing was charged, and nobody may be let in for it.
type Explanation struct {
	// WouldAllow tells that policy allows; rate limits are not asked.
	WouldAllow bool `json:"would_allow"`
	Code       Code `json:"code"`
	// Status is the HTTP status that the end client would get.
	Status         int               `json:"status"`
	Key            *ExplainedKey     `json:"key"`
	Scopes         []string          `json:"scopes"`
	RequiredScopes []string          `json:"required_scopes"`
	MissingScopes  []string          `json:"missing_scopes"`
	Route          string            `json:"route"`
	Reasons        []Reason          `json:"reasons"`
	Limits         []ExplainedLimit  `json:"limits"`
	Remedies       []ExplainedRemedy `json:"remedies"`
	Rules          []ExplainedRule   `json:"rules"`
	PolicyRevision string            `json:"policy_revision"`
	Degraded       []string          `json:"degraded"`
}

// ExplainedKey is the key that was presented.
type ExplainedKey struct {
	ID             string      `json:"id"`
	Hint           string      `json:"hint"`
	Environment    Environment `json:"environment"`
	OrganizationID string      `json:"organization_id"`
}

// ExplainedLimit is a limit that the check would be charged to.
type ExplainedLimit struct {
	Name          string `json:"name"`
	Rate          int64  `json:"rate"`
	PeriodSeconds int64  `json:"period_seconds"`
	Burst         int64  `json:"burst"`
	Cost          int64  `json:"cost"`
}

// ExplainedRemedy is a smallest set of changes that would turn a denial into an allow.
type ExplainedRemedy struct {
	Changes []ExplainedChange `json:"changes"`
	// Tried tells that the policy was asked with these changes, and allows then.
	Tried bool `json:"tried"`
}

// ExplainedChange is one change.
type ExplainedChange struct {
	// Kind is stable, for programs, such as grant_scope.
	Kind    string `json:"kind"`
	Message string `json:"message"`
	// Scope is the scope to grant, with grant_scope.
	Scope string `json:"scope"`
}

// ExplainedRule is a rule of the policy that was looked at.
type ExplainedRule struct {
	Name  string `json:"name"`
	Title string `json:"title"`
	File  string `json:"file"`
	Line  int    `json:"line"`
	// Fired tells that its body held.
	Fired bool `json:"fired"`
}

// Explain asks what a check would decide, and why. The caller needs the permission
// "explain". It charges nothing. Errors are those of [Client.Check].
func (c *Client) Explain(ctx context.Context, q Question) (*Explanation, error) {
	if c == nil {
		return nil, &Error{Code: CodeUnreachable, Detail: "there is no client"}
	}
	body, err := q.encode()
	if err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	a, err := c.ask(ctx, bounded, checkPath+"/explain", body)
	if err != nil {
		return nil, err
	}
	var e struct {
		*Explanation

		WouldAllow *bool `json:"would_allow"`
	}
	e.Explanation = new(Explanation)
	media, _, err := mime.ParseMediaType(a.contentType)
	if err == nil && media != "application/json" {
		err = errors.New("it is not JSON")
	}
	if err == nil && len(a.body) > MaxAnswerBytes {
		err = errors.New("it is too long")
	}
	if err == nil {
		err = json.Unmarshal(a.body, &e)
	}
	if err != nil || e.WouldAllow == nil {
		return nil, &Error{Code: CodeInvalidAnswer, Status: http.StatusOK, RequestID: a.requestID, Detail: "the service answered something that is not an explanation"}
	}
	e.Explanation.WouldAllow = *e.WouldAllow
	return e.Explanation, nil
}
