package server

import (
	"context"
	"strconv"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// GetPolicy implements api.StrictServerInterface.
func (m *management) GetPolicy(ctx context.Context, _ api.GetPolicyRequestObject) (api.GetPolicyResponseObject, error) {
	ctx, r := requestOf(ctx)
	p, err := m.service.Policy(ctx, r)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	out := api.GetPolicy200JSONResponse{
		Revision: optional(p.State.Revision), Origin: api.PolicyOrigin(p.State.Origin), Source: api.PolicyOrigin(p.Origin),
		Since: optionalTime(p.State.Since),
	}
	if p.Activation != nil {
		activation := toActivation(*p.Activation)
		out.Activation = &activation
	}
	if f := p.Failing; f.Errors > 0 {
		out.RuntimeErrors = &api.PolicyRuntimeErrors{
			Errors: f.Errors, Organizations: f.Organizations, WindowSeconds: int(f.Window.Seconds()), Kind: api.PolicyRuntimeErrorsKind(f.Kind),
			Where: optional(f.Where), Stays: optional(f.Stays),
		}
	}
	if refused := p.State.Refused; refused != nil {
		out.Refused = &api.PolicyRefusal{
			Revision: optional(refused.Revision), Origin: api.PolicyOrigin(refused.Origin), At: refused.At.UTC(),
			Problems: each(refused.Problems, toPolicyProblem),
		}
	}
	if b := p.State.Bundle; b != nil {
		out.Bundle = &api.PolicyBundle{
			URL: b.URL, ContactAt: optionalTime(b.ContactAt), Error: optional(b.Error),
			FailingSince: optionalTime(b.FailingSince), StorageError: optional(b.StorageError),
		}
		if b.Version > 0 {
			out.Bundle.Version = &b.Version
		}
	}
	return out, nil
}

// AnalyzePolicy implements api.StrictServerInterface.
func (m *management) AnalyzePolicy(ctx context.Context, _ api.AnalyzePolicyRequestObject) (api.AnalyzePolicyResponseObject, error) {
	ctx, r := requestOf(ctx)
	revision, entrypoints, err := m.service.AnalyzePolicy(ctx, r)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.AnalyzePolicy200JSONResponse{
		Revision: revision,
		Entrypoints: each(entrypoints, func(a authz.PolicyAnalysis) api.PolicyEntrypoint {
			return api.PolicyEntrypoint{
				Entrypoint: a.Entrypoint, Rules: a.Rules, Deterministic: a.Deterministic(), Reads: a.Reads, Data: a.Data,
				Builtins: a.Builtins, Nondeterministic: a.Nondeterministic,
			}
		}),
	}, nil
}

// ListPolicyHistory implements api.StrictServerInterface.
func (m *management) ListPolicyHistory(
	ctx context.Context, in api.ListPolicyHistoryRequestObject,
) (api.ListPolicyHistoryResponseObject, error) {
	ctx, r := requestOf(ctx)
	before := int64(0)
	if in.Params.Cursor != nil {
		var err error
		if before, err = strconv.ParseInt(*in.Params.Cursor, 10, 64); err != nil || before < 1 {
			return nil, errCursor()
		}
	}
	list, err := m.service.PolicyHistory(ctx, r, before, manage.Page{Limit: value(in.Params.Limit)})
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.ListPolicyHistory200JSONResponse{Items: each(list.Items, toActivation), NextCursor: optional(list.Next)}, nil
}

// TestPolicy implements api.StrictServerInterface.
func (m *management) TestPolicy(ctx context.Context, in api.TestPolicyRequestObject) (api.TestPolicyResponseObject, error) {
	ctx, r := requestOf(ctx)
	report, err := m.service.TestPolicy(ctx, r, manage.PolicyInput{
		Files: value(in.Body.Files), Revision: value(in.Body.Revision), Accept: value(in.Body.AcceptRemovedTests),
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.TestPolicy200JSONResponse(toPolicyReport(report)), nil
}

// ActivatePolicy implements api.StrictServerInterface.
func (m *management) ActivatePolicy(
	ctx context.Context, in api.ActivatePolicyRequestObject,
) (api.ActivatePolicyResponseObject, error) {
	ctx, r := requestOf(ctx)
	change, err := m.service.ActivatePolicy(ctx, r, manage.PolicyInput{
		Files: value(in.Body.Files), Revision: value(in.Body.Revision), Accept: value(in.Body.AcceptRemovedTests),
		Note: value(in.Body.Note), SecurityFix: value(in.Body.SecurityFix),
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.ActivatePolicy200JSONResponse(toPolicyChange(change, r.DryRun)), nil
}

// RollBackPolicy implements api.StrictServerInterface.
func (m *management) RollBackPolicy(
	ctx context.Context, in api.RollBackPolicyRequestObject,
) (api.RollBackPolicyResponseObject, error) {
	ctx, r := requestOf(ctx)
	change, err := m.service.RollBackPolicy(ctx, r, manage.PolicyRollback{
		Revision: value(in.Body.Revision), Note: value(in.Body.Note), PastSecurityFix: value(in.Body.PastSecurityFix),
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.RollBackPolicy200JSONResponse(toPolicyChange(change, r.DryRun)), nil
}

func toActivation(a authz.PolicyActivation) api.PolicyActivation {
	accepted := a.Accepted
	if accepted == nil {
		accepted = []string{}
	}
	return api.PolicyActivation{
		Revision: optional(a.Revision), BuiltIn: a.Revision == "", ActivatedAt: a.At.UTC(), ActivatedBy: a.By, Note: a.Note,
		SecurityFix: a.SecurityFix, RolledBack: a.RolledBack, AcceptedTests: accepted,
	}
}

func toPolicyChange(c *manage.PolicyChange, dryRun bool) api.PolicyChange {
	out := api.PolicyChange{Activation: toActivation(c.Activation), Effective: toEffective(c.Effective), DryRun: dryRun}
	if c.Report != nil {
		report := toPolicyReport(c.Report)
		out.Report = &report
	}
	return out
}

func toPolicyReport(r *authz.PolicyReport) api.PolicyReport {
	accepted := r.Accepted
	if accepted == nil {
		accepted = []string{}
	}
	return api.PolicyReport{
		Passed: r.Passed(), Revision: optional(r.Revision), Against: optional(r.Against), Problems: each(r.Problems, toPolicyProblem),
		Tests: each(r.Tests, toPolicyTest), CoveragePercent: r.Coverage, Gaps: each(r.Gaps, toPolicyGap),
		ActiveTests: each(r.ActiveTests, toPolicyTest), AcceptedTests: accepted, InvariantQuestions: r.Questions, Seconds: r.Seconds,
	}
}

func toPolicyProblem(p authz.PolicyProblem) api.PolicyProblem {
	out := api.PolicyProblem{Stage: api.PolicyProblemStage(p.Stage), File: optional(p.File), Test: optional(p.Test), Message: p.Message}
	if p.Line > 0 {
		out.Line = &p.Line
	}
	return out
}

func toPolicyTest(t authz.PolicyTest) api.PolicyTest {
	return api.PolicyTest{
		Name: t.Name, File: t.File, Line: t.Line, Outcome: api.PolicyTestOutcome(t.Outcome), Message: optional(t.Message), Seconds: t.Seconds,
	}
}

func toPolicyGap(g authz.PolicyGap) api.PolicyGap {
	return api.PolicyGap{File: g.File, From: g.From, To: g.To}
}
