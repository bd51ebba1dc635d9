package server

import (
	"context"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// ListAdmins implements api.StrictServerInterface.
func (m *management) ListAdmins(ctx context.Context, in api.ListAdminsRequestObject) (api.ListAdminsResponseObject, error) {
	ctx, r := requestOf(ctx)
	page, err := pageOf(in.Params.Cursor, in.Params.Limit, &authz.AdminID{})
	if err != nil {
		return nil, err
	}
	filter := manage.AdminFilter{Status: string(value(in.Params.Status))}
	if in.Params.OrganizationID != nil {
		if filter.Organization, err = organizationID("", "query parameter organization_id ", *in.Params.OrganizationID); err != nil {
			return nil, err
		}
	}
	list, err := m.service.ListAdmins(ctx, r, filter, page)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	items := each(list.Items, func(a manage.Admin) api.Admin { return toAdmin(a, list.At) })
	return api.ListAdmins200JSONResponse{Items: items, NextCursor: optional(list.Next)}, nil
}

// organizationID reads an organization's id that is not a path's. The zero id would
// mean every organization, or none.
func organizationID(pointer, what, text string) (authz.OrganizationID, error) {
	var id authz.OrganizationID
	if err := id.UnmarshalText([]byte(text)); err != nil || id.IsZero() {
		return authz.OrganizationID{}, badField(pointer, what+"must be the id of an organization")
	}
	return id, nil
}

// CreateAdmin implements api.StrictServerInterface.
func (m *management) CreateAdmin(ctx context.Context, in api.CreateAdminRequestObject) (api.CreateAdminResponseObject, error) {
	ctx, r := requestOf(ctx)
	input := manage.AdminInput{
		Name: in.Body.Name, Role: authz.Role(in.Body.Role), ExpiresInDays: in.Body.ExpiresInDays,
	}
	if in.Body.OrganizationID != nil {
		var err error
		if input.Organization, err = organizationID("/organization_id", "", *in.Body.OrganizationID); err != nil {
			return nil, err
		}
	}
	change, err := m.service.CreateAdmin(ctx, r, input)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.CreateAdmin201JSONResponse(toAdminChange(change, r.DryRun)), nil
}

// GetAdmin implements api.StrictServerInterface.
func (m *management) GetAdmin(ctx context.Context, in api.GetAdminRequestObject) (api.GetAdminResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.AdminID
	if err := pathID(in.Admin, &id, "admin"); err != nil {
		return nil, err
	}
	a, at, err := m.service.GetAdmin(ctx, r, id)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.GetAdmin200JSONResponse(toAdmin(*a, at)), nil
}

// RotateAdmin implements api.StrictServerInterface.
func (m *management) RotateAdmin(ctx context.Context, in api.RotateAdminRequestObject) (api.RotateAdminResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.AdminID
	if err := pathID(in.Admin, &id, "admin"); err != nil {
		return nil, err
	}
	change, err := m.service.RotateAdmin(ctx, r, id, manage.TokenRotation{
		Grace: time.Duration(value(in.Body.GraceSeconds)) * time.Second, ExpiresInDays: in.Body.ExpiresInDays,
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.RotateAdmin200JSONResponse(toAdminChange(change, r.DryRun)), nil
}

// DeleteAdmin implements api.StrictServerInterface.
func (m *management) DeleteAdmin(ctx context.Context, in api.DeleteAdminRequestObject) (api.DeleteAdminResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.AdminID
	if err := pathID(in.Admin, &id, "admin"); err != nil {
		return nil, err
	}
	change, err := m.service.DeleteAdmin(ctx, r, id)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.DeleteAdmin200JSONResponse(toAdminChange(change, r.DryRun)), nil
}
