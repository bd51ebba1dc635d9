package manage

import (
	"encoding/json"
	"time"
)

// The documents are what policy and the audit log see of a thing: JSON objects with
// the names of the API, times in RFC 3339 UTC, nothing secret.

func (o *Organization) document() map[string]any {
	return map[string]any{
		"id": o.ID.String(), "external_id": optional(o.ExternalID), "name": o.Name, "plan": o.Plan,
		"status": o.Status(), "suspended": !o.SuspendedAt.IsZero(), "metadata": json.RawMessage(o.Metadata.JSON()),
		"version": o.Version,
	}
}

// document tells a key. renewed_at is when its newest secret was made: from then on
// its life counts.
func (k *Key) document(now time.Time) map[string]any {
	scopes := make([]any, len(k.Scopes))
	for i, s := range k.Scopes {
		scopes[i] = string(s)
	}
	cidrs := make([]any, len(k.AllowedCIDRs))
	for i, c := range k.AllowedCIDRs {
		cidrs[i] = c.String()
	}
	var rate any
	if r := k.RateLimit; r != nil {
		rate = map[string]any{"rate": r.Rate, "period_seconds": int(r.Period / time.Second), "burst": r.Burst}
	}
	renewed := k.CreatedAt
	secrets := make([]any, 0, len(k.Secrets))
	for _, s := range k.Secrets {
		if s.CreatedAt.After(renewed) {
			renewed = s.CreatedAt
		}
		if s.live(now) {
			secrets = append(secrets, map[string]any{
				"id": s.ID.String(), "hint": s.Hint, "created_at": timestamp(s.CreatedAt), "expires_at": optionalTime(s.ExpiresAt),
			})
		}
	}
	return map[string]any{
		"id": k.ID.String(), "organization_id": k.OrganizationID.String(), "external_id": optional(k.ExternalID),
		"name": k.Name, "environment": string(k.Environment), "scopes": scopes, "status": k.Status(now),
		"disabled": !k.DisabledAt.IsZero(), "secrets": secrets,
		"created_at": timestamp(k.CreatedAt), "created_by": k.CreatedBy, "renewed_at": timestamp(renewed),
		"expires_at": optionalTime(k.ExpiresAt), "allowed_cidrs": cidrs, "rate_limit": rate,
		"metadata": json.RawMessage(k.Metadata.JSON()), "version": k.Version,
	}
}

func tokenDocuments(tokens []Token) []any {
	out := make([]any, 0, len(tokens))
	for _, t := range tokens {
		out = append(out, map[string]any{
			"id": t.ID.String(), "hint": t.Hint, "created_at": timestamp(t.CreatedAt), "expires_at": optionalTime(t.ExpiresAt),
		})
	}
	return out
}

func (c *Caller) document(now time.Time) map[string]any {
	environments := make([]any, len(c.Environments))
	for i, e := range c.Environments {
		environments[i] = string(e)
	}
	permissions := make([]any, len(c.Permissions))
	for i, p := range c.Permissions {
		permissions[i] = string(p)
	}
	return map[string]any{
		"id": c.ID.String(), "name": c.Name, "environments": environments, "permissions": permissions,
		"status": c.Status(), "tokens": tokenDocuments(c.LiveTokens(now)),
	}
}

func (a *Admin) document(now time.Time) map[string]any {
	return map[string]any{
		"id": a.ID.String(), "name": a.Name, "role": string(a.Role), "organization_id": optional(idText(a.OrganizationID)),
		"status": a.Status(now), "expires_at": timestamp(a.ExpiresAt), "tokens": tokenDocuments(a.LiveTokens(now)),
	}
}

func idText(id interface {
	IsZero() bool
	String() string
},
) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func optionalTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return timestamp(t)
}

func optional(s string) any {
	if s == "" {
		return nil
	}
	return s
}
