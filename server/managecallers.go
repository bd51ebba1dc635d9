package server

import (
	"context"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// ListCallers implements api.StrictServerInterface.
func (m *management) ListCallers(ctx context.Context, in api.ListCallersRequestObject) (api.ListCallersResponseObject, error) {
	ctx, r := requestOf(ctx)
	page, err := pageOf(in.Params.Cursor, in.Params.Limit, &authz.CallerID{})
	if err != nil {
		return nil, err
	}
	list, err := m.service.ListCallers(ctx, r, string(value(in.Params.Status)), page)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	items := each(list.Items, func(c manage.Caller) api.Caller { return toCaller(c, list.At) })
	return api.ListCallers200JSONResponse{Items: items, NextCursor: optional(list.Next)}, nil
}

// CreateCaller implements api.StrictServerInterface.
func (m *management) CreateCaller(ctx context.Context, in api.CreateCallerRequestObject) (api.CreateCallerResponseObject, error) {
	ctx, r := requestOf(ctx)
	input := manage.CallerInput{
		Name: in.Body.Name, Environments: words[authz.Environment](in.Body.Environments),
		ExpiresInDays: value(in.Body.ExpiresInDays),
	}
	if in.Body.Permissions != nil {
		input.Permissions = words[authz.Permission](*in.Body.Permissions)
	}
	change, err := m.service.CreateCaller(ctx, r, input)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.CreateCaller201JSONResponse(toCallerChange(change, r.DryRun)), nil
}

// GetCaller implements api.StrictServerInterface.
func (m *management) GetCaller(ctx context.Context, in api.GetCallerRequestObject) (api.GetCallerResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.CallerID
	if err := pathID(in.Caller, &id, "caller"); err != nil {
		return nil, err
	}
	c, at, err := m.service.GetCaller(ctx, r, id)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.GetCaller200JSONResponse(toCaller(*c, at)), nil
}

// RotateCaller implements api.StrictServerInterface.
func (m *management) RotateCaller(ctx context.Context, in api.RotateCallerRequestObject) (api.RotateCallerResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.CallerID
	if err := pathID(in.Caller, &id, "caller"); err != nil {
		return nil, err
	}
	change, err := m.service.RotateCaller(ctx, r, id, manage.TokenRotation{
		Grace: time.Duration(in.Body.GraceSeconds) * time.Second, ExpiresInDays: value(in.Body.ExpiresInDays),
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.RotateCaller200JSONResponse(toCallerChange(change, r.DryRun)), nil
}

// DeleteCaller implements api.StrictServerInterface.
func (m *management) DeleteCaller(ctx context.Context, in api.DeleteCallerRequestObject) (api.DeleteCallerResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.CallerID
	if err := pathID(in.Caller, &id, "caller"); err != nil {
		return nil, err
	}
	change, err := m.service.DeleteCaller(ctx, r, id)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.DeleteCaller200JSONResponse(toCallerChange(change, r.DryRun)), nil
}
