package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// insertKeysSQL and insertSecretsSQL store any number of rows in one statement each.
const (
	insertKeysSQL = `
INSERT INTO api_keys (id, organization_id, external_id, name, environment, scopes, created_at, created_by,
	expires_at, lifetime_seconds, revoked_at, disabled_at, restricted, allowed_cidrs,
	rate_limit_rate, rate_limit_period_seconds, rate_limit_burst, metadata, revision)
SELECT r.id, o.id, r.external_id, r.name, r.environment, r.scopes, r.created_at, r.created_by,
	r.expires_at, r.lifetime_seconds, r.revoked_at, r.disabled_at, r.restricted, r.allowed_cidrs,
	r.rate, r.period_seconds, r.burst, r.metadata::json, $4::bigint
FROM json_to_recordset($3::json) AS r(id uuid, organization_id uuid, external_id text, name text, environment text,
	scopes text[], created_at timestamptz, created_by text, expires_at timestamptz, lifetime_seconds bigint,
	revoked_at timestamptz, disabled_at timestamptz, restricted boolean, allowed_cidrs cidr[],
	rate integer, period_seconds integer, burst integer, metadata text)
JOIN organizations o ON o.id = r.organization_id
WHERE ($1::boolean OR o.id = $2::uuid)`

	insertSecretsSQL = `
INSERT INTO key_secrets (digest, id, key_id, pepper_id, hint, created_at, expires_at, revoked_at)
SELECT decode(r.digest, 'hex'), r.id, k.id, $4::text, r.hint, r.created_at, r.expires_at, r.revoked_at
FROM json_to_recordset($3::json) AS r(digest text, id uuid, key_id uuid, hint text,
	created_at timestamptz, expires_at timestamptz, revoked_at timestamptz)
JOIN api_keys k ON k.id = r.key_id
WHERE ($1::boolean OR k.organization_id = $2::uuid)`
)

// keyRecord is a row of insertKeysSQL, secretRecord one of insertSecretsSQL.
type (
	keyRecord struct {
		ID              any           `json:"id"`
		OrganizationID  any           `json:"organization_id"`
		ExternalID      any           `json:"external_id"`
		Name            string        `json:"name"`
		Environment     string        `json:"environment"`
		Scopes          []authz.Scope `json:"scopes"`
		CreatedAt       time.Time     `json:"created_at"`
		CreatedBy       string        `json:"created_by"`
		ExpiresAt       any           `json:"expires_at"`
		LifetimeSeconds any           `json:"lifetime_seconds"`
		RevokedAt       any           `json:"revoked_at"`
		DisabledAt      any           `json:"disabled_at"`
		Restricted      bool          `json:"restricted"`
		AllowedCIDRs    []string      `json:"allowed_cidrs"`
		Rate            any           `json:"rate"`
		PeriodSeconds   any           `json:"period_seconds"`
		Burst           any           `json:"burst"`
		Metadata        string        `json:"metadata"` // as a string it stays byte for byte what it is
	}
	secretRecord struct {
		Digest    string    `json:"digest"`
		ID        any       `json:"id"`
		KeyID     any       `json:"key_id"`
		Hint      string    `json:"hint"`
		CreatedAt time.Time `json:"created_at"`
		ExpiresAt any       `json:"expires_at"`
		RevokedAt any       `json:"revoked_at"`
	}
)

// insertKeys stores keys without their secrets.
func (c *Change) insertKeys(ctx context.Context, t manage.Tenant, keys []*manage.Key) error {
	records := make([]keyRecord, 0, len(keys))
	for _, k := range keys {
		if err := checkKey(k); err != nil {
			return err
		}
		rate, period, burst := rateColumns(k.RateLimit)
		records = append(records, keyRecord{
			ID: uuid(k.ID), OrganizationID: uuid(k.OrganizationID), ExternalID: optionalText(k.ExternalID), Name: k.Name,
			Environment: string(k.Environment), Scopes: sorted(k.Scopes), CreatedAt: c.timeOr(k.CreatedAt), CreatedBy: k.CreatedBy,
			ExpiresAt: optionalTime(k.ExpiresAt), LifetimeSeconds: lifetimeColumn(k.Lifetime), RevokedAt: optionalTime(k.RevokedAt),
			DisabledAt: optionalTime(k.DisabledAt), Restricted: k.Restricted, AllowedCIDRs: cidrs(k.AllowedCIDRs),
			Rate: rate, PeriodSeconds: period, Burst: burst, Metadata: k.Metadata.JSON(),
		})
	}
	return c.insertRecords(ctx, t, "add keys", insertKeysSQL, len(records), records, c.revision)
}

// newSecret is a secret whose hash is known.
type newSecret struct {
	key    authz.KeyID
	secret *manage.KeySecret
	hash   authz.SecretHash
}

// insertSecrets stores secrets of keys, under the first pepper.
func (c *Change) insertSecrets(ctx context.Context, t manage.Tenant, secrets []newSecret) error {
	records := make([]secretRecord, 0, len(secrets))
	var pepperID string
	for _, n := range secrets {
		var digest authz.Digest
		var err error
		if digest, pepperID, err = c.digest(ctx, n.hash); err != nil {
			return err
		}
		records = append(records, secretRecord{
			Digest: hex.EncodeToString(digest[:]), ID: uuid(n.secret.ID), KeyID: uuid(n.key), Hint: n.secret.Hint,
			CreatedAt: c.timeOr(n.secret.CreatedAt), ExpiresAt: optionalTime(n.secret.ExpiresAt), RevokedAt: optionalTime(n.secret.RevokedAt),
		})
	}
	return c.insertRecords(ctx, t, "add secrets", insertSecretsSQL, len(records), records, pepperID)
}

// insertRecords runs an INSERT from records, all of which must be within the tenant.
func (c *Change) insertRecords(ctx context.Context, t manage.Tenant, doing, query string, want int, records, last any) error {
	if want == 0 {
		return nil
	}
	text, err := json.Marshal(records)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	n, err := c.execMany(ctx, doing, query, t.Everyone(), t.Organization(), string(text), last)
	if err == nil && n != want {
		return fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	return err
}

// InsertKey implements manage.Writer.
func (c *Change) InsertKey(ctx context.Context, t manage.Tenant, k *manage.Key, secret authz.Secret) error {
	if len(k.Secrets) != 1 {
		return errOneSecret
	}
	if err := c.insertKeys(ctx, t, []*manage.Key{k}); err != nil {
		return err
	}
	return c.insertSecrets(ctx, t, []newSecret{{k.ID, &k.Secrets[0], secret.Hash()}})
}

// UpdateKey implements manage.Writer. Revoked is for ever.
func (c *Change) UpdateKey(ctx context.Context, t manage.Tenant, k *manage.Key) error {
	rate, period, burst := rateColumns(k.RateLimit)
	return c.raise(ctx, "change a key", &k.Version, `
		UPDATE api_keys SET external_id = $4, name = $5, scopes = $6, expires_at = $7, lifetime_seconds = $8,
			revoked_at = COALESCE(revoked_at, $9), disabled_at = $10, restricted = $11, allowed_cidrs = $12::cidr[],
			rate_limit_rate = $13, rate_limit_period_seconds = $14, rate_limit_burst = $15, metadata = $16,
			scopes_since = CASE WHEN scopes @> $6::text[] THEN scopes_since ELSE $18 END,
			usable_since = CASE WHEN disabled_at IS NOT NULL AND $10::timestamptz IS NULL
				OR expires_at <= $18 AND ($7::timestamptz IS NULL OR $7::timestamptz > $18) THEN $18 ELSE usable_since END,
			version = version + 1, revision = $17
		WHERE ($1::boolean OR organization_id = $2::uuid) AND id = $3::uuid RETURNING version`,
		t.Everyone(), t.Organization(), k.ID, optionalText(k.ExternalID), k.Name, texts(sorted(k.Scopes)),
		optionalTime(k.ExpiresAt), lifetimeColumn(k.Lifetime), optionalTime(k.RevokedAt), optionalTime(k.DisabledAt), k.Restricted,
		pq.StringArray(cidrs(k.AllowedCIDRs)), rate, period, burst, k.Metadata.JSON(), c.revision, c.now)
}

// InsertSecret implements manage.Writer.
func (c *Change) InsertSecret(
	ctx context.Context, t manage.Tenant, k *manage.Key, s *manage.KeySecret, secret authz.Secret,
) error {
	// What had no secret that worked until now could not be used.
	_, err := c.execMany(ctx, "note since when a key can be used", `
		UPDATE api_keys k SET usable_since = $4
		WHERE ($1::boolean OR k.organization_id = $2::uuid) AND k.id = $3::uuid AND NOT EXISTS (
			SELECT FROM key_secrets s WHERE s.key_id = k.id AND (s.revoked_at IS NULL OR s.revoked_at >= $4)
				AND (s.expires_at IS NULL OR s.expires_at >= $4))`, t.Everyone(), t.Organization(), k.ID, c.now)
	if err != nil {
		return err
	}
	if err := c.insertSecrets(ctx, t, []newSecret{{k.ID, s, secret.Hash()}}); err != nil {
		return err
	}
	return c.touchKey(ctx, t, k.ID, &k.Version)
}

// EndSecret implements manage.Writer. Revoked is for ever.
func (c *Change) EndSecret(ctx context.Context, t manage.Tenant, k *manage.Key, s *manage.KeySecret) error {
	err := c.exec(ctx, "end a secret", `
		UPDATE key_secrets s SET expires_at = $5, revoked_at = COALESCE(s.revoked_at, $6) FROM api_keys k
		WHERE ($1::boolean OR k.organization_id = $2::uuid) AND k.id = $3::uuid AND s.key_id = k.id AND s.id = $4::uuid`,
		t.Everyone(), t.Organization(), k.ID, s.ID, optionalTime(s.ExpiresAt), optionalTime(s.RevokedAt))
	if err != nil {
		return err
	}
	return c.touchKey(ctx, t, k.ID, &k.Version)
}

// touchKey takes a key's row to this revision, so that replicas read it anew.
func (c *Change) touchKey(ctx context.Context, t manage.Tenant, key authz.KeyID, version *int) error {
	return c.raise(ctx, "touch a key", version, `
		UPDATE api_keys SET version = version + 1, revision = $4
		WHERE ($1::boolean OR organization_id = $2::uuid) AND id = $3::uuid RETURNING version`,
		t.Everyone(), t.Organization(), key, c.revision)
}

// RevokeKeys implements manage.Writer. Of very many, replicas forget all they know
// rather than read each.
func (c *Change) RevokeKeys(ctx context.Context, t manage.Tenant, organization authz.OrganizationID) (int, error) {
	return c.revokeAll(ctx, t, organization, "revoke an organization's keys", `
		UPDATE api_keys SET revoked_at = $4, version = version + 1, revision = $5 FROM within
		WHERE organization_id = within.id AND revoked_at IS NULL RETURNING 1`)
}

// revokeAll runs an update of what belongs to an organization within.
func (c *Change) revokeAll(
	ctx context.Context, t manage.Tenant, organization authz.OrganizationID, doing, update string,
) (revoked int, err error) {
	var within int
	err = c.tx.QueryRowxContext(ctx, `
		WITH within AS (SELECT id FROM organizations WHERE ($1::boolean OR id = $2::uuid) AND id = $3::uuid),
		revoked AS (`+update+`)
		SELECT (SELECT count(*) FROM within), (SELECT count(*) FROM revoked)`,
		t.Everyone(), t.Organization(), organization, c.now, c.revision).Scan(&within, &revoked)
	if err == nil && within == 0 {
		err = ErrNotFound
	}
	return revoked, translate(doing, err)
}

// AddKey stores a new key of an organization, without secrets yet.
func (c *Change) AddKey(ctx context.Context, k *authz.Key, createdBy string) error {
	m := &manage.Key{
		ID: k.ID, OrganizationID: k.Organization.ID, ExternalID: k.ExternalID, Name: k.Name, Environment: k.Environment,
		Scopes: k.Scopes, CreatedBy: createdBy, ExpiresAt: k.ExpiresAt, RevokedAt: k.RevokedAt,
		Restricted: k.Restricted, AllowedCIDRs: k.AllowedCIDRs, RateLimit: k.RateLimit, Metadata: k.Metadata,
	}
	if k.Disabled {
		m.DisabledAt = c.now
	}
	return c.insertKeys(ctx, everyone(), []*manage.Key{m})
}

// AddKeySecret stores a further secret of a key: its digest under the first
// pepper and its hint.
func (c *Change) AddKeySecret(ctx context.Context, key authz.KeyID, s *authz.KeySecret, secret authz.Secret) error {
	m := &manage.KeySecret{ID: s.ID, Hint: s.Hint, ExpiresAt: s.ExpiresAt, RevokedAt: s.RevokedAt}
	return c.InsertSecret(ctx, everyone(), &manage.Key{ID: key}, m, secret)
}

// RevokeKey revokes a key with all its secrets, for ever. Revoking it again
// changes nothing but the revision.
func (c *Change) RevokeKey(ctx context.Context, organization authz.OrganizationID, key authz.KeyID) error {
	return c.updateKey(ctx, organization, key, func(k *manage.Key) { k.RevokedAt = c.now })
}

// DisableKey denies a key until that is taken back.
func (c *Change) DisableKey(ctx context.Context, organization authz.OrganizationID, key authz.KeyID, disabled bool) error {
	return c.updateKey(ctx, organization, key, func(k *manage.Key) {
		switch {
		case !disabled:
			k.DisabledAt = time.Time{}
		case k.DisabledAt.IsZero():
			k.DisabledAt = c.now
		}
	})
}

func (c *Change) updateKey(
	ctx context.Context, organization authz.OrganizationID, key authz.KeyID, change func(*manage.Key),
) error {
	k, err := c.Key(ctx, everyone(), organization, key)
	if err != nil {
		return err
	}
	change(k)
	return c.UpdateKey(ctx, everyone(), k)
}

// checkKey refuses a new key that checks could not read.
func checkKey(k *manage.Key) error {
	for i, s := range k.Scopes {
		if !s.Valid() {
			return fmt.Errorf("add a key: scope %d does not have the form resource:verb", i+1)
		}
	}
	if k.RateLimit != nil {
		if err := k.RateLimit.Validate(); err != nil {
			return fmt.Errorf("add a key: %w", err)
		}
	}
	if !k.Environment.Valid() {
		return errors.New("add a key: its environment is neither live nor test")
	}
	return nil
}

func sorted(scopes []authz.Scope) []authz.Scope {
	out := make([]authz.Scope, len(scopes))
	copy(out, scopes)
	slices.Sort(out)
	return slices.Compact(out)
}

func cidrs(prefixes []netip.Prefix) []string {
	out := make([]string, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.Masked().String()
	}
	return out
}

// rateColumns are NULLs without a rate.
func rateColumns(r *authz.Rate) (rate, periodSeconds, burst any) {
	if r == nil {
		return nil, nil, nil
	}
	return r.Rate, int(r.Period / time.Second), r.Burst
}

// lifetimeColumn is NULL for none, and whole seconds otherwise.
func lifetimeColumn(lifetime time.Duration) any {
	if lifetime <= 0 {
		return nil
	}
	return int64(max(lifetime.Round(time.Second), time.Second) / time.Second)
}
