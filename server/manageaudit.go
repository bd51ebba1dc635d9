package server

import (
	"context"
	"strconv"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// auditFilter is what narrows a list of the audit log.
type auditFilter struct {
	cursor, action, target *string
	limit                  *int
	oldestFirst            bool
}

func (m *management) listAuditLog(ctx context.Context, chain authz.OrganizationID, f auditFilter) (api.AuditLogList, error) {
	ctx, r := requestOf(ctx)
	filter := manage.AuditFilter{
		Action: value(f.action), Target: value(f.target), OldestFirst: f.oldestFirst, Limit: value(f.limit),
	}
	if f.cursor != nil {
		after, err := strconv.ParseInt(*f.cursor, 10, 64)
		if err != nil || after < 1 {
			return api.AuditLogList{}, errCursor()
		}
		filter.After = after
	}
	list, err := m.service.ListAuditLog(ctx, r, chain, filter)
	if err != nil {
		return api.AuditLogList{}, err //nolint:wrapcheck // fail reads it
	}
	return api.AuditLogList{Items: each(list.Items, toAuditEvent), NextCursor: optional(list.Next)}, nil
}

// ListAuditLog implements api.StrictServerInterface.
func (m *management) ListAuditLog(ctx context.Context, in api.ListAuditLogRequestObject) (api.ListAuditLogResponseObject, error) {
	list, err := m.listAuditLog(ctx, authz.OrganizationID{}, auditFilter{
		cursor: in.Params.Cursor, action: in.Params.Action, target: in.Params.Target, limit: in.Params.Limit,
		oldestFirst: value(in.Params.Order) == api.ListAuditLogParamsOrderOldest,
	})
	return api.ListAuditLog200JSONResponse(list), err
}

// ListOrganizationAuditLog implements api.StrictServerInterface.
func (m *management) ListOrganizationAuditLog(
	ctx context.Context, in api.ListOrganizationAuditLogRequestObject,
) (api.ListOrganizationAuditLogResponseObject, error) {
	var chain authz.OrganizationID
	if err := pathID(in.Org, &chain, "organization"); err != nil {
		return nil, err
	}
	list, err := m.listAuditLog(ctx, chain, auditFilter{
		cursor: in.Params.Cursor, action: in.Params.Action, target: in.Params.Target, limit: in.Params.Limit,
		oldestFirst: value(in.Params.Order) == api.ListOrganizationAuditLogParamsOrderOldest,
	})
	return api.ListOrganizationAuditLog200JSONResponse(list), err
}

// VerifyAuditLog implements api.StrictServerInterface.
func (m *management) VerifyAuditLog(
	ctx context.Context, in api.VerifyAuditLogRequestObject,
) (api.VerifyAuditLogResponseObject, error) {
	ctx, r := requestOf(ctx)
	found, err := m.service.VerifyAuditLog(ctx, r, authz.OrganizationID{}, value(in.Body.Checkpoints))
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.VerifyAuditLog200JSONResponse(toVerification(found)), nil
}

// VerifyOrganizationAuditLog implements api.StrictServerInterface.
func (m *management) VerifyOrganizationAuditLog(
	ctx context.Context, in api.VerifyOrganizationAuditLogRequestObject,
) (api.VerifyOrganizationAuditLogResponseObject, error) {
	ctx, r := requestOf(ctx)
	var chain authz.OrganizationID
	if err := pathID(in.Org, &chain, "organization"); err != nil {
		return nil, err
	}
	found, err := m.service.VerifyAuditLog(ctx, r, chain, value(in.Body.Checkpoints))
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.VerifyOrganizationAuditLog200JSONResponse(toVerification(found)), nil
}
