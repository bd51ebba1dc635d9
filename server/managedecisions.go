package server

import (
	"context"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// GetDecision implements api.StrictServerInterface.
func (m *management) GetDecision(ctx context.Context, in api.GetDecisionRequestObject) (api.GetDecisionResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.DecisionID
	if err := pathID(in.Dec, &id, "decision"); err != nil {
		return nil, err
	}
	d, err := m.service.Decision(ctx, r, id)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.GetDecision200JSONResponse(toKeptDecision(d)), nil
}

func toKeptDecision(d *manage.Decision) api.KeptDecision {
	return api.KeptDecision{
		ID: d.ID.String(), At: d.At.UTC(), Allow: d.Code == authz.CodeAllowed, Code: string(d.Code), Status: d.Status, Title: d.Code.Title(),
		OrganizationID: optionalID(d.Organization), KeyID: optionalID(d.Key), SecretID: optionalID(d.Secret), CallerID: optionalID(d.Caller),
		Environment: optional(string(d.Environment)), Method: optional(d.Method), Route: optional(d.Route), Action: optional(d.Action),
		Reasons: words[string](d.Reasons), RequiredScopes: words[string](d.Required), MissingScopes: words[string](d.Missing),
		PolicyRevision: optional(d.PolicyRevision), Degraded: words[api.KeptDecisionDegraded](d.Degraded), Browser: d.Browser,
		Network: optionalNetwork(d.Network),
	}
}
