package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unique"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
)

// finite is a time that Go can hold, or NULL: lib/pq fails the whole statement for one
// infinity, and a bad row must deny its own key alone.
func finite(column, as string) string {
	return "CASE WHEN isfinite(" + column + ") THEN " + column + " END AS " + as
}

// keyFinite tells that no time of a key was left out, allFinite that of its secret neither.
const (
	keyFinite = `(isfinite(k.created_at) AND isfinite(COALESCE(k.expires_at, k.created_at)) AND isfinite(COALESCE(k.revoked_at, k.created_at)))`
	allFinite = `(isfinite(s.created_at) AND isfinite(COALESCE(s.expires_at, s.created_at))
		AND isfinite(COALESCE(s.revoked_at, s.created_at)) AND ` + keyFinite + `)`
)

// keyColumns are what checks know of a key and its organization.
//
//nolint:gochecknoglobals // a constant, were functions constant
var keyColumns = `k.id AS key_id, k.external_id, k.name, k.environment, k.scopes,
		` + finite("k.created_at", "created_at") + `, ` + finite("k.expires_at", "expires_at") + `, ` + finite("k.revoked_at", "revoked_at") + `,
		k.disabled_at IS NOT NULL AS disabled, k.restricted, k.allowed_cidrs::text[] AS allowed_cidrs,
		k.rate_limit_rate, k.rate_limit_period_seconds, k.rate_limit_burst, k.metadata, k.revision,
		o.id AS organization_id, o.external_id AS organization_external_id, o.name AS organization_name, o.plan,
		o.metadata AS organization_metadata,
		(o.suspended_at IS NOT NULL OR o.deleted_at IS NOT NULL) AS suspended, o.revision AS organization_revision`

// lookupSQL reads keys by digest, each with its organization, under the revision of the same snapshot.
//
//nolint:gochecknoglobals // a constant, were functions constant
var lookupSQL = `
SELECT r.n, x.*
FROM revision r LEFT JOIN (
	SELECT s.digest, s.id AS secret_id, s.hint, s.pepper_id, ` + finite("s.created_at", "secret_created_at") + `,
		` + finite("s.expires_at", "secret_expires_at") + `, ` + finite("s.revoked_at", "secret_revoked_at") + `,
		` + keyColumns + `,
		` + allFinite + ` AS finite
	FROM key_secrets s
	JOIN api_keys k ON k.id = s.key_id
	JOIN organizations o ON o.id = k.organization_id
	WHERE s.digest = ANY ($1)
) x ON true`

type keyRow struct {
	N                      int64                `db:"n"`
	Digest                 []byte               `db:"digest"`
	SecretID               authz.SecretID       `db:"secret_id"`
	Hint                   sql.NullString       `db:"hint"`
	PepperID               sql.NullString       `db:"pepper_id"`
	SecretCreatedAt        sql.NullTime         `db:"secret_created_at"`
	SecretExpiresAt        sql.NullTime         `db:"secret_expires_at"`
	SecretRevokedAt        sql.NullTime         `db:"secret_revoked_at"`
	KeyID                  authz.KeyID          `db:"key_id"`
	ExternalID             sql.NullString       `db:"external_id"`
	Name                   sql.NullString       `db:"name"`
	Environment            sql.NullString       `db:"environment"`
	Scopes                 textArray            `db:"scopes"`
	CreatedAt              sql.NullTime         `db:"created_at"`
	ExpiresAt              sql.NullTime         `db:"expires_at"`
	RevokedAt              sql.NullTime         `db:"revoked_at"`
	Disabled               sql.NullBool         `db:"disabled"`
	Restricted             sql.NullBool         `db:"restricted"`
	AllowedCIDRs           textArray            `db:"allowed_cidrs"`
	RateLimitRate          sql.NullInt64        `db:"rate_limit_rate"`
	RateLimitPeriod        sql.NullInt64        `db:"rate_limit_period_seconds"`
	RateLimitBurst         sql.NullInt64        `db:"rate_limit_burst"`
	Metadata               []byte               `db:"metadata"`
	Revision               sql.NullInt64        `db:"revision"`
	OrganizationID         authz.OrganizationID `db:"organization_id"`
	OrganizationExternalID sql.NullString       `db:"organization_external_id"`
	OrganizationName       sql.NullString       `db:"organization_name"`
	Plan                   sql.NullString       `db:"plan"`
	OrganizationMetadata   []byte               `db:"organization_metadata"`
	Suspended              sql.NullBool         `db:"suspended"`
	OrganizationRevision   sql.NullInt64        `db:"organization_revision"`
	Finite                 sql.NullBool         `db:"finite"`
}

// lookup reads the keys that have these digests. The result has an entry for every
// digest; one without a key is an unknown digest.
func lookup(
	ctx context.Context, db *sqlx.DB, digests []authz.Digest, o *organizationCache,
) (map[authz.Digest]*cachedKey, error) {
	arg := make(pq.ByteaArray, len(digests))
	for i := range digests {
		arg[i] = digests[i][:]
	}
	var rows []keyRow
	if err := db.SelectContext(ctx, &rows, lookupSQL, arg); err != nil {
		return nil, translate("look up a key", err)
	}
	if len(rows) == 0 {
		return nil, errors.New("look up a key: the revision's row is missing")
	}
	found := make(map[authz.Digest]*cachedKey, len(digests))
	for _, d := range digests {
		found[d] = &cachedKey{asOf: rows[0].N}
	}
	// One record a key, though two of its secrets be asked for at once.
	records := make(map[authz.KeyID]*authz.Key, len(rows))
	for i := range rows {
		r := &rows[i]
		if r.Digest == nil {
			continue // nothing was found: the join's one empty row
		}
		d, _ := digest(r.Digest)
		e := found[d]
		if e == nil {
			return nil, errors.New("look up a key: Postgres answered what was not asked")
		}
		e.organization = o.organization(r.OrganizationID)
		key := records[r.KeyID]
		if key == nil {
			var err error
			if key, err = r.key(e.organization); err != nil {
				// A bad row denies its own key and nobody else's.
				e.bad = fmt.Errorf("read key %s: %w", r.KeyID, err)
				continue
			}
			records[r.KeyID] = key
		}
		e.key, e.secret = key, r.secret()
	}
	return found, nil
}

func (r *keyRow) secret() *authz.KeySecret {
	return &authz.KeySecret{
		ID: r.SecretID, Hint: r.Hint.String, PepperID: shared(r.PepperID.String), CreatedAt: r.SecretCreatedAt.Time,
		ExpiresAt: r.SecretExpiresAt.Time, RevokedAt: r.SecretRevokedAt.Time,
	}
}

// shared is the one copy of a text that many records have.
func shared(s string) string { return unique.Make(s).Value() }

func (r *keyRow) organization() (*authz.Organization, error) {
	o := &authz.Organization{
		ID: r.OrganizationID, ExternalID: r.OrganizationExternalID.String, Name: r.OrganizationName.String,
		Plan: shared(r.Plan.String), Suspended: r.Suspended.Bool, Revision: r.OrganizationRevision.Int64,
	}
	var err error
	if o.Metadata, err = boundedMetadata(r.OrganizationMetadata); err != nil {
		return nil, fmt.Errorf("its organization: %w", err)
	}
	return o, nil
}

func (r *keyRow) key(of *organizationState) (*authz.Key, error) {
	organization, err := of.record(r.OrganizationRevision.Int64, r.organization)
	if err != nil {
		return nil, err
	}
	return r.keyOf(organization)
}

func (r *keyRow) keyOf(organization *authz.Organization) (*authz.Key, error) {
	if !r.Finite.Bool {
		return nil, errors.New("one of its times is not finite")
	}
	var err error
	k := &authz.Key{
		ID: r.KeyID, Organization: organization, ExternalID: r.ExternalID.String, Name: r.Name.String,
		Environment: authz.Environment(shared(r.Environment.String)), CreatedAt: r.CreatedAt.Time,
		ExpiresAt: r.ExpiresAt.Time, RevokedAt: r.RevokedAt.Time, Disabled: r.Disabled.Bool,
		Restricted: r.Restricted.Bool, Revision: r.Revision.Int64,
	}
	if !k.Environment.Valid() {
		return nil, errors.New("its environment is neither live nor test")
	}
	if !r.Scopes.valid || !r.AllowedCIDRs.valid || !r.Restricted.Valid {
		return nil, errors.New("its scopes, its allowed CIDRs or whether it is restricted cannot be read")
	}
	for _, s := range r.Scopes.texts {
		scope := authz.Scope(shared(s))
		if !scope.Valid() {
			return nil, errors.New("one of its scopes does not have the form resource:verb")
		}
		k.Scopes = append(k.Scopes, scope)
	}
	slices.Sort(k.Scopes)
	k.Scopes = slices.Compact(k.Scopes)
	if k.AllowedCIDRs, err = prefixes(r.AllowedCIDRs.texts); err != nil {
		return nil, err
	}
	if k.RateLimit = rate(r.RateLimitRate, r.RateLimitPeriod, r.RateLimitBurst); k.RateLimit != nil {
		if err := k.RateLimit.Validate(); err != nil {
			return nil, fmt.Errorf("its rate limit is invalid: %w", err)
		}
	}
	if k.Metadata, err = boundedMetadata(r.Metadata); err != nil {
		return nil, err
	}
	return k, nil
}

// textArray reads an array of texts, or tells that it is none: NULL, with a NULL in it or
// of two dimensions. Such a row denies itself; an error would fail all of its statement.
type textArray struct {
	texts pq.StringArray
	valid bool
}

// Scan implements sql.Scanner.
func (a *textArray) Scan(src any) error {
	*a = textArray{}
	a.valid = src != nil && a.texts.Scan(src) == nil
	return nil
}

// prefixes reads a cidr[].
func prefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range texts {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, errors.New("one of its allowed CIDRs cannot be read")
		}
		out = append(out, prefix)
	}
	return out, nil
}

// rate is nil for NULLs. One that is NULL in part is not valid.
func rate(rate, periodSeconds, burst sql.NullInt64) *authz.Rate {
	if !rate.Valid && !periodSeconds.Valid && !burst.Valid {
		return nil
	}
	return &authz.Rate{
		Rate: int(rate.Int64), Burst: int(burst.Int64), Period: time.Duration(periodSeconds.Int64) * time.Second,
	}
}

// maxMetadata bounds what a check holds and answers; management takes far less.
const maxMetadata = 64 << 10

// boundedMetadata is metadata for checks, which keep it in memory.
func boundedMetadata(raw []byte) (authz.Metadata, error) {
	if len(raw) > maxMetadata {
		return "", fmt.Errorf("its metadata has more than %d bytes", maxMetadata)
	}
	return metadata(raw)
}

// metadata compacts a JSON object and changes nothing else, so that answers can carry
// its owner's text as it is.
func metadata(raw []byte) (authz.Metadata, error) {
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil || compact.Len() == 0 || compact.Bytes()[0] != '{' {
		return "", errors.New("its metadata is not a JSON object")
	}
	if compact.Len() == len("{}") {
		return "", nil
	}
	return authz.Metadata(compact.String()), nil
}
