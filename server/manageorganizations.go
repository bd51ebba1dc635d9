package server

import (
	"context"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// ListOrganizations implements api.StrictServerInterface.
func (m *management) ListOrganizations(
	ctx context.Context, in api.ListOrganizationsRequestObject,
) (api.ListOrganizationsResponseObject, error) {
	ctx, r := requestOf(ctx)
	page, err := pageOf(in.Params.Cursor, in.Params.Limit, &authz.OrganizationID{})
	if err != nil {
		return nil, err
	}
	list, err := m.service.ListOrganizations(ctx, r, manage.OrganizationFilter{
		Status: string(value(in.Params.Status)), ExternalID: value(in.Params.ExternalID),
	}, page)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.ListOrganizations200JSONResponse{Items: each(list.Items, toOrganization), NextCursor: optional(list.Next)}, nil
}

// CreateOrganization implements api.StrictServerInterface.
func (m *management) CreateOrganization(
	ctx context.Context, in api.CreateOrganizationRequestObject,
) (api.CreateOrganizationResponseObject, error) {
	ctx, r := requestOf(ctx)
	change, err := m.service.CreateOrganization(ctx, r, manage.OrganizationInput{
		Name: in.Body.Name, Plan: in.Body.Plan, ExternalID: value(in.Body.ExternalID), Metadata: in.Body.Metadata,
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.CreateOrganization201JSONResponse(toOrganizationChange(change, r.DryRun)), nil
}

// GetOrganization implements api.StrictServerInterface.
func (m *management) GetOrganization(
	ctx context.Context, in api.GetOrganizationRequestObject,
) (api.GetOrganizationResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.OrganizationID
	if err := pathID(in.Org, &id, "organization"); err != nil {
		return nil, err
	}
	o, err := m.service.GetOrganization(ctx, r, id)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.GetOrganization200JSONResponse{
		Body: toOrganization(*o), Headers: api.GetOrganization200ResponseHeaders{ETag: etag(o.Version)},
	}, nil
}

// UpdateOrganization implements api.StrictServerInterface.
func (m *management) UpdateOrganization(
	ctx context.Context, in api.UpdateOrganizationRequestObject,
) (api.UpdateOrganizationResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.OrganizationID
	if err := pathID(in.Org, &id, "organization"); err != nil {
		return nil, err
	}
	update := manage.OrganizationUpdate{
		Name: in.Body.Name, Plan: in.Body.Plan, Suspended: in.Body.Suspended, Metadata: in.Body.Metadata,
	}
	if in.Body.ExternalID.IsSpecified() {
		text, _ := in.Body.ExternalID.Get() // null is ""
		update.ExternalID = &text
	}
	change, err := m.service.UpdateOrganization(ctx, r, id, update)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.UpdateOrganization200JSONResponse{
		Body:    toOrganizationChange(change, r.DryRun),
		Headers: api.UpdateOrganization200ResponseHeaders{ETag: etag(change.Organization.Version)},
	}, nil
}

// DeleteOrganization implements api.StrictServerInterface.
func (m *management) DeleteOrganization(
	ctx context.Context, in api.DeleteOrganizationRequestObject,
) (api.DeleteOrganizationResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.OrganizationID
	if err := pathID(in.Org, &id, "organization"); err != nil {
		return nil, err
	}
	change, err := m.service.DeleteOrganization(ctx, r, id)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.DeleteOrganization200JSONResponse(toOrganizationChange(change, r.DryRun)), nil
}
