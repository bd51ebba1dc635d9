package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

const keysSQL = `
SELECT id, organization_id, external_id, name, environment, scopes, created_at, created_by, expires_at, lifetime_seconds,
	revoked_at, disabled_at, restricted, allowed_cidrs::text[] AS allowed_cidrs,
	rate_limit_rate, rate_limit_period_seconds, rate_limit_burst, metadata, version,
	(SELECT max(used_at) FROM secret_uses WHERE key_id = api_keys.id) AS last_used_at
FROM api_keys WHERE ($1::boolean OR organization_id = $2::uuid)`

type managedKeyRow struct {
	ID              authz.KeyID          `db:"id"`
	OrganizationID  authz.OrganizationID `db:"organization_id"`
	ExternalID      sql.NullString       `db:"external_id"`
	Name            string               `db:"name"`
	Environment     string               `db:"environment"`
	Scopes          pq.StringArray       `db:"scopes"`
	CreatedAt       sql.NullTime         `db:"created_at"`
	CreatedBy       string               `db:"created_by"`
	ExpiresAt       sql.NullTime         `db:"expires_at"`
	LifetimeSeconds sql.NullInt64        `db:"lifetime_seconds"`
	RevokedAt       sql.NullTime         `db:"revoked_at"`
	DisabledAt      sql.NullTime         `db:"disabled_at"`
	Restricted      bool                 `db:"restricted"`
	AllowedCIDRs    pq.StringArray       `db:"allowed_cidrs"`
	RateLimitRate   sql.NullInt64        `db:"rate_limit_rate"`
	RateLimitPeriod sql.NullInt64        `db:"rate_limit_period_seconds"`
	RateLimitBurst  sql.NullInt64        `db:"rate_limit_burst"`
	Metadata        []byte               `db:"metadata"`
	Version         int                  `db:"version"`
	LastUsedAt      sql.NullTime         `db:"last_used_at"`
}

// thing takes scopes and limit as they stand: what checks would not believe must be
// seen, and revoked, all the same.
func (r managedKeyRow) thing() (manage.Key, error) {
	k := manage.Key{
		ID: r.ID, OrganizationID: r.OrganizationID, ExternalID: r.ExternalID.String, Name: r.Name,
		Environment: authz.Environment(r.Environment), Scopes: strung[authz.Scope](r.Scopes), CreatedAt: utc(r.CreatedAt),
		CreatedBy: r.CreatedBy, ExpiresAt: utc(r.ExpiresAt), Lifetime: time.Duration(r.LifetimeSeconds.Int64) * time.Second,
		RevokedAt: utc(r.RevokedAt), DisabledAt: utc(r.DisabledAt), Restricted: r.Restricted,
		RateLimit: rate(r.RateLimitRate, r.RateLimitPeriod, r.RateLimitBurst), Version: r.Version,
		LastUsedAt: utc(r.LastUsedAt),
	}
	var err error
	if k.AllowedCIDRs, err = prefixes(r.AllowedCIDRs); err != nil {
		return manage.Key{}, fmt.Errorf("key %s: %w", r.ID, err)
	}
	if k.Metadata, err = metadata(r.Metadata); err != nil {
		return manage.Key{}, fmt.Errorf("key %s: %w", r.ID, err)
	}
	return k, nil
}

// Key implements manage.Reader.
func (r *reads) Key(
	ctx context.Context, t manage.Tenant, organization authz.OrganizationID, id authz.KeyID,
) (*manage.Key, error) {
	k, err := one[manage.Key, managedKeyRow](ctx, r, "read a key",
		keysSQL+` AND ($3::uuid IS NULL OR organization_id = $3::uuid) AND id = $4::uuid`,
		t.Everyone(), t.Organization(), organization, id)
	if err != nil {
		return nil, err
	}
	keys := []manage.Key{*k}
	if err := r.addSecrets(ctx, keys); err != nil {
		return nil, err
	}
	return &keys[0], nil
}

// Keys implements manage.Reader. Every page is read from where it begins in the index
// of an organization's keys.
func (r *reads) Keys(
	ctx context.Context, t manage.Tenant, organization authz.OrganizationID, f manage.KeyFilter, p manage.Page,
) ([]manage.Key, error) {
	var after authz.KeyID
	if err := cursor(p.After, &after); err != nil {
		return nil, err
	}
	// The CASE is manage.Key.Status.
	keys, err := list[manage.Key, managedKeyRow](ctx, r, "list keys", keysSQL+`
		AND organization_id = $3::uuid AND ($4::uuid IS NULL OR id < $4::uuid)
		AND ($5::text = '' OR environment = $5::text) AND ($6::text = '' OR scopes @> ARRAY[$6::text])
		AND ($7::text = '' OR external_id = $7::text)
		AND ($8::text = '' OR $8::text = CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= $9 THEN 'expired'
			WHEN disabled_at IS NOT NULL THEN 'disabled' ELSE 'active' END)
		AND ($10::boolean IS NULL OR $10::boolean <> EXISTS (SELECT FROM secret_uses WHERE key_id = api_keys.id))
		ORDER BY id DESC LIMIT $11`,
		t.Everyone(), t.Organization(), organization, after, string(f.Environment), string(f.Scope), f.ExternalID,
		f.Status, r.now, f.Unused, p.Limit)
	if err != nil {
		return nil, err
	}
	return keys, r.addSecrets(ctx, keys)
}

// CountKeys implements manage.Reader.
func (r *reads) CountKeys(ctx context.Context, t manage.Tenant, organization authz.OrganizationID) (n int, err error) {
	err = r.tx.GetContext(ctx, &n, `
		SELECT count(*) FROM api_keys WHERE ($1::boolean OR organization_id = $2::uuid) AND organization_id = $3::uuid
			AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $4)`,
		t.Everyone(), t.Organization(), organization, r.now)
	return n, translate("count keys", err)
}

// addSecrets reads the secrets of all these keys in one statement.
func (r *reads) addSecrets(ctx context.Context, keys []manage.Key) error {
	if len(keys) == 0 {
		return nil
	}
	ids, at := make([]any, len(keys)), make(map[authz.KeyID]*manage.Key, len(keys))
	for i := range keys {
		ids[i], at[keys[i].ID] = uuid(keys[i].ID), &keys[i]
	}
	var rows []struct {
		ID        authz.SecretID `db:"id"`
		KeyID     authz.KeyID    `db:"key_id"`
		Hint      string         `db:"hint"`
		CreatedAt sql.NullTime   `db:"created_at"`
		ExpiresAt sql.NullTime   `db:"expires_at"`
		UsedAt    sql.NullTime   `db:"used_at"`
	}
	// The keys have been found within the tenant.
	err := r.tx.SelectContext(ctx, &rows, `
		SELECT s.id, s.key_id, s.hint, s.created_at, s.expires_at, u.used_at
		FROM key_secrets s LEFT JOIN secret_uses u ON u.secret_id = s.id
		WHERE s.key_id = ANY ($1::uuid[]) AND s.revoked_at IS NULL ORDER BY s.created_at DESC, s.id DESC`, pq.Array(ids))
	if err != nil {
		return translate("read secrets", err)
	}
	for _, row := range rows {
		k := at[row.KeyID]
		k.Secrets = append(k.Secrets, manage.KeySecret{
			ID: row.ID, Hint: row.Hint, CreatedAt: utc(row.CreatedAt), ExpiresAt: utc(row.ExpiresAt),
			LastUsedAt: utc(row.UsedAt),
		})
	}
	return nil
}
