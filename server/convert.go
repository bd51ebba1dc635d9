package server

import (
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// The translations from manage's types to the document's. Lists are never null,
// what is absent is null, times are UTC.

// each translates a list.
func each[A, B any](in []A, to func(A) B) []B {
	out := make([]B, len(in))
	for i := range in {
		out[i] = to(in[i])
	}
	return out
}

// words turns words of one kind into another.
func words[B, A ~string](in []A) []B {
	return each(in, func(a A) B { return B(a) })
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func optionalTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func optionalID(id interface {
	IsZero() bool
	String() string
},
) *string {
	if id.IsZero() {
		return nil
	}
	return optional(id.String())
}

// etag is the version as an entity tag (RFC 9110 §8.8.3).
func etag(version int) *string {
	tag := `"` + strconv.Itoa(version) + `"`
	return &tag
}

// reveal is the one place of the management API that shows a secret.
func reveal(s authz.Secret) *string { return optional(s.Reveal()) }

func toOrganization(o manage.Organization) api.Organization {
	return api.Organization{
		ID: o.ID.String(), ExternalID: optional(o.ExternalID), Name: o.Name, Plan: o.Plan,
		Status: api.OrganizationStatus(o.Status()), Suspended: !o.SuspendedAt.IsZero(),
		Metadata: json.RawMessage(o.Metadata.JSON()), CreatedAt: o.CreatedAt.UTC(), Version: o.Version,
	}
}

func toOrganizationChange(c *manage.OrganizationChange, dryRun bool) api.OrganizationChange {
	return api.OrganizationChange{
		Organization: toOrganization(c.Organization), Effective: toEffective(c.Effective), DryRun: dryRun,
	}
}

func toKey(k manage.Key, at time.Time) api.Key {
	out := api.Key{
		ID: k.ID.String(), OrganizationID: k.OrganizationID.String(), ExternalID: optional(k.ExternalID), Name: k.Name,
		Environment: api.Environment(k.Environment), Scopes: words[string](k.Scopes), Status: api.KeyStatus(k.Status(at)),
		Secrets: each(k.LiveSecrets(at), toKeySecret), CreatedAt: k.CreatedAt.UTC(), CreatedBy: k.CreatedBy,
		ExpiresAt: optionalTime(k.ExpiresAt), AllowedCidrs: make([]string, len(k.AllowedCIDRs)),
		Metadata: json.RawMessage(k.Metadata.JSON()), Version: k.Version, LastUsedAt: optionalTime(k.LastUsedAt),
	}
	if len(out.Secrets) > 0 {
		out.Hint = optional(out.Secrets[0].Hint)
	}
	for i, prefix := range k.AllowedCIDRs {
		out.AllowedCidrs[i] = prefix.String()
	}
	if k.RateLimit != nil {
		limit := toRate(*k.RateLimit)
		out.RateLimit = &limit
	}
	return out
}

func toKeySecret(s manage.KeySecret) api.KeySecret {
	return api.KeySecret{
		ID: s.ID.String(), Hint: s.Hint, CreatedAt: s.CreatedAt.UTC(),
		ExpiresAt: optionalTime(s.ExpiresAt), LastUsedAt: optionalTime(s.LastUsedAt),
	}
}

func toKeyChange(c *manage.KeyChange, dryRun bool) api.KeyChange {
	return api.KeyChange{
		Key: toKey(c.Key, c.At), Secret: reveal(c.Secret), SecretAlreadyShown: c.SecretAlreadyShown,
		Effective: toEffective(c.Effective), DryRun: dryRun,
	}
}

func toRate(r authz.Rate) api.Rate {
	return api.Rate{Rate: r.Rate, PeriodSeconds: int(r.Period / time.Second), Burst: r.Burst}
}

func fromRate(r api.Rate) *authz.Rate {
	return &authz.Rate{Rate: r.Rate, Period: time.Duration(r.PeriodSeconds) * time.Second, Burst: r.Burst}
}

func toEffective(e *manage.Effective) *api.Effective {
	if e == nil {
		return nil
	}
	return &api.Effective{
		Replicas: e.Replicas, Acknowledged: e.Acknowledged, WithinMs: int(e.Within.Milliseconds()),
		Silent: each(e.Silent, func(s manage.SilentReplica) api.SilentReplica {
			return api.SilentReplica{Replica: s.Replica, ServesUntil: optionalTime(s.ServesUntil)}
		}),
	}
}

func toToken(t manage.Token) api.Token {
	return api.Token{ID: t.ID.String(), Hint: t.Hint, CreatedAt: t.CreatedAt.UTC(), ExpiresAt: optionalTime(t.ExpiresAt)}
}

func toCaller(c manage.Caller, at time.Time) api.Caller {
	return api.Caller{
		ID: c.ID.String(), Name: c.Name, Environments: words[api.Environment](c.Environments),
		Permissions: words[api.Permission](c.Permissions), Status: api.CallerStatus(c.Status()),
		Tokens: each(c.LiveTokens(at), toToken), CreatedAt: c.CreatedAt.UTC(), CreatedBy: c.CreatedBy,
	}
}

func toCallerChange(c *manage.CallerChange, dryRun bool) api.CallerChange {
	return api.CallerChange{
		Caller: toCaller(c.Caller, c.At), Secret: reveal(c.Secret), SecretAlreadyShown: c.SecretAlreadyShown,
		Effective: toEffective(c.Effective), DryRun: dryRun,
	}
}

func toAdmin(a manage.Admin, at time.Time) api.Admin {
	return api.Admin{
		ID: a.ID.String(), OrganizationID: optionalID(a.OrganizationID), Name: a.Name, Role: api.Role(a.Role),
		Status: api.AdminStatus(a.Status(at)), Tokens: each(a.LiveTokens(at), toToken),
		CreatedAt: a.CreatedAt.UTC(), CreatedBy: a.CreatedBy, ExpiresAt: a.ExpiresAt.UTC(),
	}
}

func toAdminChange(c *manage.AdminChange, dryRun bool) api.AdminChange {
	return api.AdminChange{
		Admin: toAdmin(c.Admin, c.At), Secret: reveal(c.Secret), SecretAlreadyShown: c.SecretAlreadyShown, DryRun: dryRun,
	}
}

func toAuditEvent(e manage.AuditEvent) api.AuditEvent {
	out := api.AuditEvent{
		ID: e.ID.String(), OrganizationID: optionalID(e.Chain), Sequence: e.Sequence, At: e.At.UTC(), Revision: e.Revision,
		Actor: api.Actor{Type: e.ActorType, ID: e.ActorID}, Action: e.Action, Target: e.Target,
		Before: e.Before, After: e.After, RequestID: optional(e.RequestID), KeyID: e.KeyID,
		PreviousMac: optional(hex.EncodeToString(e.PreviousMAC)), Mac: hex.EncodeToString(e.MAC),
	}
	if e.Address.IsValid() {
		out.Address = optional(e.Address.String())
	}
	return out
}

func toVerification(v *manage.Verification) api.AuditLogVerification {
	return api.AuditLogVerification{
		Valid: len(v.Problems) == 0, Chains: v.Chains, Rows: v.Rows, Checkpoints: v.Checkpoints,
		Problems: each(v.Problems, toAuditProblem),
	}
}

func toAuditProblem(p manage.AuditProblem) api.AuditProblem {
	out := api.AuditProblem{Code: api.AuditProblemCode(p.Code), Message: p.Message}
	var chain authz.OrganizationID
	if chain.UnmarshalText([]byte(p.Chain)) == nil { // else the platform's, or none
		out.OrganizationID = optional(p.Chain)
	}
	if p.Sequence != 0 {
		out.Sequence = &p.Sequence
	}
	return out
}

func toRejectedRow(r manage.RejectedRow) api.RejectedRow {
	return api.RejectedRow{Line: r.Line, Code: api.RejectedRowCode(r.Code), Pointer: optional(r.Pointer), Message: r.Message}
}

func toCatalogue(c authz.Catalogue) api.Catalogue {
	return api.Catalogue{
		Scopes: each(c.Scopes, func(s authz.CatalogueScope) api.CatalogueScope {
			return api.CatalogueScope{Name: string(s.Scope), Description: s.Description}
		}),
		Plans: each(c.Plans, func(p authz.Plan) api.Plan {
			return api.Plan{Name: p.Name, RateLimit: toRate(p.Rate), MaxKeys: p.MaxKeys}
		}),
		PolicyRevision: c.Revision,
	}
}

func toReplica(r manage.Replica) api.Replica {
	return api.Replica{
		ID: r.ID, Name: r.Name, StartedAt: r.StartedAt.UTC(), HeartbeatAt: r.HeartbeatAt.UTC(),
		AppliedRevision: r.AppliedRevision, Live: r.Live, ServesUntil: r.ServesUntil.UTC(), PolicyRevision: optional(r.PolicyRevision),
	}
}
