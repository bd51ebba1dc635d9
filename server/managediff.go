package server

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// diffTellEvery is how often a streamed answer tells how far it is.
const diffTellEvery = 100 * time.Millisecond

// DiffPolicy implements api.StrictServerInterface.
func (m *management) DiffPolicy(ctx context.Context, in api.DiffPolicyRequestObject) (api.DiffPolicyResponseObject, error) {
	c, _ := ctx.(*gin.Context)
	ctx, r := requestOf(ctx)
	wanted := manage.PolicyDiffInput{
		Files: value(in.Body.Files), Revision: value(in.Body.Revision), Since: value(in.Body.Since), Until: value(in.Body.Until),
	}
	if id := in.Body.OrganizationID; id != nil {
		if err := wanted.Organization.UnmarshalText([]byte(*id)); err != nil {
			return nil, badField("/organization_id", "must be an organization's id, org_…")
		}
	}
	if c != nil && strings.Contains(c.Request.Header.Get("Accept"), mediaRows) {
		return &diffStream{m, c, r, wanted}, nil
	}
	diff, err := m.service.DiffPolicy(ctx, r, wanted, nil)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.DiffPolicy200JSONResponse(toPolicyDiff(diff)), nil
}

// diffStream is an answer in lines. What goes wrong before the first one is an answer like
// all others, what goes wrong after it is the last one.
type diffStream struct {
	m       *management
	c       *gin.Context
	request manage.Request
	wanted  manage.PolicyDiffInput
}

// VisitDiffPolicyResponse implements api.DiffPolicyResponseObject.
func (s *diffStream) VisitDiffPolicyResponse(w http.ResponseWriter) error {
	var last time.Time
	begun := false
	line := func(v any) {
		if !begun {
			begun = true
			w.Header()["Content-Type"] = []string{mediaRows}
			w.WriteHeader(http.StatusOK)
		}
		// Each line has its own time to be taken; what cannot be extended keeps its limits.
		_ = http.NewResponseController(s.c.Writer).SetWriteDeadline(time.Now().Add(longRequest))
		_ = json.NewEncoder(w).Encode(v) // a client that left is nobody's error
		s.c.Writer.Flush()
	}
	diff, err := s.m.service.DiffPolicy(s.c.Request.Context(), s.request, s.wanted, func(asked, of int64) {
		if now := time.Now(); now.Sub(last) >= diffTellEvery {
			last = now
			line(map[string]any{"progress": map[string]int64{"asked": asked, "requests": of}})
		}
	})
	switch {
	case err != nil && !begun:
		return err //nolint:wrapcheck // fail reads it
	case err != nil:
		line(map[string]json.RawMessage{"problem": problemBody(s.m.judged(s.c, err), requestID(s.c))})
	default:
		out := toPolicyDiff(diff)
		line(map[string]any{"diff": out})
	}
	return nil
}

func toPolicyDiff(d *authz.PolicyDiff) api.PolicyDiff {
	out := api.PolicyDiff{
		Active: d.Active, Candidate: d.Candidate, Since: d.Since, Until: d.Until, Requests: d.Requests, Questions: d.Questions,
		Exact: d.Exact(), Approximate: d.Approximate, ApproximateReasons: each(d.Reasons, toPolicyProblem),
		Differences: each(d.Differences, toPolicyDifference), Unlisted: d.Unlisted, Seconds: d.Seconds,
	}
	out.Skipped.Gone, out.Skipped.Collapsed = d.Skipped.Gone, d.Skipped.Collapsed
	out.Totals.DenyToAllow, out.Totals.AllowToDeny = d.Totals[authz.DenyToAllow], d.Totals[authz.AllowToDeny]
	out.Totals.Reasons, out.Totals.Limits = d.Totals[authz.OtherReasons], d.Totals[authz.OtherLimits]
	return out
}

func toPolicyDifference(d authz.PolicyDifference) api.PolicyDifference {
	return api.PolicyDifference{
		Kind: api.PolicyDifferenceKind(d.Kind), OrganizationID: optionalID(d.Organization), OrganizationName: optional(d.OrganizationName),
		KeyID: optionalID(d.Key), KeyName: optional(d.KeyName), Method: d.Method, Path: d.Path, Action: d.Action,
		Before: toPolicyAnswer(d.Before), After: toPolicyAnswer(d.After), Requests: d.Requests, Approximate: d.Approximate,
	}
}

func toPolicyAnswer(a authz.PolicyAnswer) api.PolicyAnswer {
	return api.PolicyAnswer{
		Allow: a.Allow, Code: string(a.Code), Status: a.Status, Reasons: words[string](a.Reasons), MissingScopes: words[string](a.Missing),
		Limits: each(a.Limits, func(l authz.Limit) api.PolicyLimit {
			return api.PolicyLimit{Name: l.Name, Rate: l.Rate.Rate, PeriodSeconds: int(l.Period / time.Second), Burst: l.Burst, Cost: l.Cost}
		}),
	}
}
