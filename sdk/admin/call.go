//nolint:bodyclose // decode closes every body
package admin

import (
	"bytes"
	"context"
	"strings"

	"github.com/oapi-codegen/nullable"
)

// Set is a new value for a field of an update that may also be null.
func Set[T any](value T) nullable.Nullable[T] { return nullable.NewNullableWithValue(value) }

// Null takes the value of such a field away.
func Null[T any]() nullable.Nullable[T] { return nullable.NewNullNullable[T]() }

// id keeps what is no id from reaching another path than its call's: an empty
// one, or dot segments. The service answers 404 to what it makes of them.
func id(s string) string {
	if s == "" || strings.Trim(s, ".") == "" {
		return "not-an-id"
	}
	return s
}

// ListOrganizations returns one page. Organization roles see their own.
func (c *Client) ListOrganizations(ctx context.Context, filter ListOrganizationsParams) (*OrganizationList, error) {
	return decode[OrganizationList](c.api.ListOrganizations(ctx, &filter))
}

// GetOrganization returns an organization.
func (c *Client) GetOrganization(ctx context.Context, org string) (*Organization, error) {
	return decode[Organization](c.api.GetOrganization(ctx, id(org)))
}

// CreateOrganization makes an organization.
func (c *Client) CreateOrganization(ctx context.Context, wanted OrganizationCreate, opts ...RequestEditorFn) (*OrganizationChange, error) {
	return decode[OrganizationChange](c.api.CreateOrganization(ctx, nil, wanted, opts...))
}

// UpdateOrganization changes what wanted holds. [WithIfMatch] guards against a lost
// race.
func (c *Client) UpdateOrganization(ctx context.Context, org string, wanted OrganizationUpdate, opts ...RequestEditorFn) (*OrganizationChange, error) {
	return decode[OrganizationChange](c.api.UpdateOrganization(ctx, id(org), nil, wanted, opts...))
}

// DeleteOrganization revokes an organization's keys and admins for ever.
func (c *Client) DeleteOrganization(ctx context.Context, org string, opts ...RequestEditorFn) (*OrganizationChange, error) {
	return decode[OrganizationChange](c.api.DeleteOrganization(ctx, id(org), nil, opts...))
}

// ListKeys returns one page of an organization's keys.
func (c *Client) ListKeys(ctx context.Context, org string, filter ListKeysParams) (*KeyList, error) {
	return decode[KeyList](c.api.ListKeys(ctx, id(org), &filter))
}

// GetKey returns a key.
func (c *Client) GetKey(ctx context.Context, key string) (*Key, error) {
	return decode[Key](c.api.GetKey(ctx, id(key)))
}

// CreateKey makes a key. Its secret is in this answer alone.
func (c *Client) CreateKey(ctx context.Context, org string, wanted KeyCreate, opts ...RequestEditorFn) (*KeyChange, error) {
	return decode[KeyChange](c.api.CreateKey(ctx, id(org), nil, wanted, opts...))
}

// UpdateKey changes what wanted holds. [WithIfMatch] guards against a lost race.
func (c *Client) UpdateKey(ctx context.Context, key string, wanted KeyUpdate, opts ...RequestEditorFn) (*KeyChange, error) {
	return decode[KeyChange](c.api.UpdateKey(ctx, id(key), nil, wanted, opts...))
}

// RotateKey gives a key a new secret, which is in this answer alone. The old one
// works on for the grace.
func (c *Client) RotateKey(ctx context.Context, key string, wanted KeyRotate, opts ...RequestEditorFn) (*KeyChange, error) {
	return decode[KeyChange](c.api.RotateKey(ctx, id(key), nil, wanted, opts...))
}

// RevokeKey revokes a key with all its secrets, for ever.
func (c *Client) RevokeKey(ctx context.Context, key string, opts ...RequestEditorFn) (*KeyChange, error) {
	return decode[KeyChange](c.api.RevokeKey(ctx, id(key), nil, opts...))
}

// RevokeKeySecret revokes one of a key's secrets by its id (sec_…), for ever.
func (c *Client) RevokeKeySecret(ctx context.Context, key, secret string, opts ...RequestEditorFn) (*KeyChange, error) {
	return decode[KeyChange](c.api.RevokeKeySecret(ctx, id(key), id(secret), nil, opts...))
}

// ImportKeys brings in the keys that rows describe, as JSON lines. A bad row
// stops nothing: the answer names it.
func (c *Client) ImportKeys(ctx context.Context, org string, format ImportKeysParams, rows []byte, opts ...RequestEditorFn) (*ImportResult, error) {
	return decode[ImportResult](c.api.ImportKeysWithBody(ctx, id(org), &format, "application/x-ndjson", bytes.NewReader(rows), opts...))
}

// ListCallers returns one page.
func (c *Client) ListCallers(ctx context.Context, filter ListCallersParams) (*CallerList, error) {
	return decode[CallerList](c.api.ListCallers(ctx, &filter))
}

// GetCaller returns a caller.
func (c *Client) GetCaller(ctx context.Context, caller string) (*Caller, error) {
	return decode[Caller](c.api.GetCaller(ctx, id(caller)))
}

// CreateCaller makes a caller. Its token is in this answer alone.
func (c *Client) CreateCaller(ctx context.Context, wanted CallerCreate, opts ...RequestEditorFn) (*CallerChange, error) {
	return decode[CallerChange](c.api.CreateCaller(ctx, nil, wanted, opts...))
}

// RotateCaller gives a caller a new token, which is in this answer alone.
func (c *Client) RotateCaller(ctx context.Context, caller string, wanted CallerRotate, opts ...RequestEditorFn) (*CallerChange, error) {
	return decode[CallerChange](c.api.RotateCaller(ctx, id(caller), nil, wanted, opts...))
}

// DeleteCaller refuses a caller's tokens for ever.
func (c *Client) DeleteCaller(ctx context.Context, caller string, opts ...RequestEditorFn) (*CallerChange, error) {
	return decode[CallerChange](c.api.DeleteCaller(ctx, id(caller), nil, opts...))
}

// ListAdmins returns one page. Organization roles see those of their own.
func (c *Client) ListAdmins(ctx context.Context, filter ListAdminsParams) (*AdminList, error) {
	return decode[AdminList](c.api.ListAdmins(ctx, &filter))
}

// GetAdmin returns an admin.
func (c *Client) GetAdmin(ctx context.Context, admin string) (*Admin, error) {
	return decode[Admin](c.api.GetAdmin(ctx, id(admin)))
}

// CreateAdmin makes an admin. Its token is in this answer alone.
func (c *Client) CreateAdmin(ctx context.Context, wanted AdminCreate, opts ...RequestEditorFn) (*AdminChange, error) {
	return decode[AdminChange](c.api.CreateAdmin(ctx, nil, wanted, opts...))
}

// RotateAdmin gives an admin a new token, which is in this answer alone, and a
// new life.
func (c *Client) RotateAdmin(ctx context.Context, admin string, wanted AdminRotate, opts ...RequestEditorFn) (*AdminChange, error) {
	return decode[AdminChange](c.api.RotateAdmin(ctx, id(admin), nil, wanted, opts...))
}

// DeleteAdmin refuses an admin's tokens for ever.
func (c *Client) DeleteAdmin(ctx context.Context, admin string, opts ...RequestEditorFn) (*AdminChange, error) {
	return decode[AdminChange](c.api.DeleteAdmin(ctx, id(admin), nil, opts...))
}

// ListAuditLog returns one page of an organization's chain, or of the
// platform's when org is "".
func (c *Client) ListAuditLog(ctx context.Context, org string, filter ListAuditLogParams) (*AuditLogList, error) {
	if org == "" {
		return decode[AuditLogList](c.api.ListAuditLog(ctx, &filter))
	}
	own := ListOrganizationAuditLogParams{Cursor: filter.Cursor, Limit: filter.Limit, Action: filter.Action, Target: filter.Target}
	if filter.Order != nil {
		own.Order = new(ListOrganizationAuditLogParamsOrder(*filter.Order))
	}
	return decode[AuditLogList](c.api.ListOrganizationAuditLog(ctx, id(org), &own))
}

// VerifyAuditLog checks an organization's chain, or every chain when org is "",
// and holds checkpoints against them: at most 10,000 lines, as they were written.
func (c *Client) VerifyAuditLog(ctx context.Context, org string, checkpoints []string) (*AuditLogVerification, error) {
	var wanted AuditLogVerify
	if len(checkpoints) > 0 {
		wanted.Checkpoints = &checkpoints
	}
	if org == "" {
		return decode[AuditLogVerification](c.api.VerifyAuditLog(ctx, nil, wanted))
	}
	return decode[AuditLogVerification](c.api.VerifyOrganizationAuditLog(ctx, id(org), nil, wanted))
}

// Catalogue returns the scopes and plans of the policy that is in force.
func (c *Client) Catalogue(ctx context.Context) (*Catalogue, error) {
	return decode[Catalogue](c.api.ListScopes(ctx))
}

// Policy tells which policy is in force, and which was refused and why.
func (c *Client) Policy(ctx context.Context) (*Policy, error) {
	return decode[Policy](c.api.GetPolicy(ctx))
}

// AnalyzePolicy tells what the answers of the policy in force can depend on.
func (c *Client) AnalyzePolicy(ctx context.Context) (*PolicyAnalysis, error) {
	return decode[PolicyAnalysis](c.api.AnalyzePolicy(ctx))
}

// ListPolicyHistory returns one page of how policies came into force, newest first.
func (c *Client) ListPolicyHistory(ctx context.Context, filter ListPolicyHistoryParams) (*PolicyActivationList, error) {
	return decode[PolicyActivationList](c.api.ListPolicyHistory(ctx, &filter))
}

// TestPolicy tries a policy by its own tests, by those of the one in force and by the
// invariants. Nothing changes.
func (c *Client) TestPolicy(ctx context.Context, wanted PolicyTestRequest) (*PolicyReport, error) {
	return decode[PolicyReport](c.api.TestPolicy(ctx, wanted))
}

// ActivatePolicy puts a policy in force on every replica, once it has passed; else the
// error is policy_refused, with a reason a problem.
func (c *Client) ActivatePolicy(ctx context.Context, wanted PolicyActivate, opts ...RequestEditorFn) (*PolicyChange, error) {
	return decode[PolicyChange](c.api.ActivatePolicy(ctx, nil, wanted, opts...))
}

// RollBackPolicy puts the policy in force again that was before, or an earlier one.
func (c *Client) RollBackPolicy(ctx context.Context, wanted PolicyRollback, opts ...RequestEditorFn) (*PolicyChange, error) {
	return decode[PolicyChange](c.api.RollBackPolicy(ctx, nil, wanted, opts...))
}

// StartPolicyShadow has every replica ask another policy beside the one in force. One that does
// not load is policy_refused, with a reason a problem.
func (c *Client) StartPolicyShadow(ctx context.Context, wanted PolicyShadowStart, opts ...RequestEditorFn) (*PolicyShadowChange, error) {
	return decode[PolicyShadowChange](c.api.StartPolicyShadow(ctx, nil, wanted, opts...))
}

// PolicyShadow tells what it decides otherwise so far.
func (c *Client) PolicyShadow(ctx context.Context) (*PolicyShadow, error) {
	return decode[PolicyShadow](c.api.GetPolicyShadow(ctx))
}

// StopPolicyShadow stops asking it.
func (c *Client) StopPolicyShadow(ctx context.Context, opts ...RequestEditorFn) (*PolicyShadowChange, error) {
	return decode[PolicyShadowChange](c.api.StopPolicyShadow(ctx, nil, opts...))
}

// GetDecision returns a decision that is kept.
func (c *Client) GetDecision(ctx context.Context, dec string) (*KeptDecision, error) {
	return decode[KeptDecision](c.api.GetDecision(ctx, id(dec)))
}

// OrganizationUsage tells what was asked of an organization's keys.
func (c *Client) OrganizationUsage(ctx context.Context, org string, wanted GetOrganizationUsageParams) (*Usage, error) {
	return decode[Usage](c.api.GetOrganizationUsage(ctx, id(org), &wanted))
}

// KeyUsage tells what was asked of a key, of an organization or of any when it is "".
func (c *Client) KeyUsage(ctx context.Context, org, key string, wanted GetKeyUsageParams) (*Usage, error) {
	if org == "" {
		return decode[Usage](c.api.GetKeyUsage(ctx, id(key), &wanted))
	}
	own := GetOrganizationKeyUsageParams(wanted)
	return decode[Usage](c.api.GetOrganizationKeyUsage(ctx, id(org), id(key), &own))
}

// Replicas returns the replicas, and how far each has applied changes.
func (c *Client) Replicas(ctx context.Context) (*ReplicaList, error) {
	return decode[ReplicaList](c.api.ListReplicas(ctx))
}
