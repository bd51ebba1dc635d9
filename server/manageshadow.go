package server

import (
	"context"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// GetPolicyShadow implements api.StrictServerInterface.
func (m *management) GetPolicyShadow(ctx context.Context, _ api.GetPolicyShadowRequestObject) (api.GetPolicyShadowResponseObject, error) {
	ctx, r := requestOf(ctx)
	report, err := m.service.PolicyShadow(ctx, r)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.GetPolicyShadow200JSONResponse(toPolicyShadow(report)), nil
}

// StartPolicyShadow implements api.StrictServerInterface.
func (m *management) StartPolicyShadow(
	ctx context.Context, in api.StartPolicyShadowRequestObject,
) (api.StartPolicyShadowResponseObject, error) {
	ctx, r := requestOf(ctx)
	if share := in.Body.Share; share != nil && *share <= 0 {
		return nil, badField("/share", "must be above 0, and 1 at most")
	}
	report, effective, err := m.service.StartPolicyShadow(ctx, r, manage.PolicyShadowInput{
		Files: value(in.Body.Files), Revision: value(in.Body.Revision), For: time.Duration(value(in.Body.DurationSeconds)) * time.Second,
		Share: value(in.Body.Share), PerSecond: value(in.Body.PerSecond), Note: value(in.Body.Note),
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.StartPolicyShadow200JSONResponse{Shadow: toPolicyShadow(report), Effective: toEffective(effective), DryRun: r.DryRun}, nil
}

// StopPolicyShadow implements api.StrictServerInterface.
func (m *management) StopPolicyShadow(
	ctx context.Context, _ api.StopPolicyShadowRequestObject,
) (api.StopPolicyShadowResponseObject, error) {
	ctx, r := requestOf(ctx)
	report, err := m.service.StopPolicyShadow(ctx, r)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.StopPolicyShadow200JSONResponse{Shadow: toPolicyShadow(report), DryRun: r.DryRun}, nil
}

func toPolicyShadow(r *authz.PolicyShadowReport) api.PolicyShadow {
	s, c := r.Shadow, r.Counts
	out := api.PolicyShadow{
		Candidate: s.Candidate, State: api.ShadowRunning, StartedAt: s.StartedAt.UTC(), EndsAt: s.EndsAt.UTC(), StartedBy: s.StartedBy, Note: s.Note,
		Share: s.Share, PerSecond: s.PerSecond, EndedAt: optionalTime(s.EndedAt), EndedBy: optional(s.EndedBy), EndMessage: optional(s.Why),
		Replicas: r.Replicas, Seen: c.Seen, Asked: c.Asked, Failed: c.Failed, Dropped: c.Dropped, Undecided: c.Undecided, Restarts: c.Restarts,
		CandidateSeconds: toShadowSeconds(&c.Took), ActiveSeconds: toShadowSeconds(&c.ActiveTook),
		Differences: each(r.Differences, toPolicyShadowDifference), Unlisted: r.Unlisted,
	}
	if s.Reason != "" {
		reason := api.PolicyShadowEnd(s.Reason)
		out.State, out.EndReason = api.ShadowEnded, &reason
	}
	out.Totals.DenyToAllow, out.Totals.AllowToDeny, out.Totals.Unavailable = c.Totals[authz.DenyToAllow], c.Totals[authz.AllowToDeny], c.Totals[authz.CandidateFails]
	out.Totals.Reasons, out.Totals.Limits = c.Totals[authz.OtherReasons], c.Totals[authz.OtherLimits]
	return out
}

func toShadowSeconds(c *authz.DurationCounts) api.PolicyShadowSeconds {
	seconds := func(share float64) *float64 {
		d := c.Quantile(share).Seconds()
		if d == 0 {
			return nil
		}
		return &d
	}
	return api.PolicyShadowSeconds{P50: seconds(0.5), P99: seconds(0.99)}
}

func toPolicyShadowDifference(d authz.PolicyShadowDifference) api.PolicyShadowDifference {
	out := api.PolicyShadowDifference{
		Kind: api.PolicyShadowDifferenceKind(d.Kind), Active: d.Active, OrganizationID: optionalID(d.Organization),
		OrganizationName: optional(d.OrganizationName), KeyID: optionalID(d.Key), KeyName: optional(d.KeyName), Method: d.Method, Path: d.Path,
		Action: d.Action, Before: toPolicyAnswer(d.Before), After: toPolicyAnswer(d.After), Where: optional(d.Where), Requests: d.Requests,
		FirstSeen: d.FirstSeen.UTC(), LastSeen: d.LastSeen.UTC(),
	}
	if d.Failure != "" {
		failure := api.PolicyShadowFailure(d.Failure)
		out.Failure = &failure
	}
	return out
}
