package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// maxEvidenceDays bounds a window: days are kept for about so long.
const maxEvidenceDays = 800

// evidenceKeys picks keys. Its arguments are the tenant, the organization and the key (NULL for
// all), and until when.
const evidenceKeys = `
	FROM api_keys k JOIN organizations o ON o.id = k.organization_id
	WHERE ($1::boolean OR k.organization_id = $2::uuid) AND ($3::uuid IS NULL OR k.organization_id = $3::uuid)
		AND ($4::uuid IS NULL OR k.id = $4::uuid) AND k.created_at < $5::timestamptz AND o.deleted_at IS NULL AND ` + keyFinite

func evidenceArgs(t manage.Tenant, f manage.EvidenceFilter) []any {
	return []any{t.Everyone(), t.Organization(), f.Organization, f.Key, f.Until}
}

// EvidenceKeys implements manage.Reader.
func (r *reads) EvidenceKeys(ctx context.Context, t manage.Tenant, f manage.EvidenceFilter) (int64, error) {
	var n int64
	err := r.tx.GetContext(ctx, &n, `SELECT count(*)`+evidenceKeys, evidenceArgs(t, f)...)
	return n, translate("count keys", err)
}

// Evidence implements manage.Reader. Keys, their secrets, their use and their networks are read
// side by side, each in the order of keys: whatever there is takes no more memory than a part
// of each. Use is read by the month, so that Postgres sorts no more than that at once.
func (r *reads) Evidence(ctx context.Context, t manage.Tenant, f manage.EvidenceFilter, each func(*authz.Evidence) error) error {
	w, err := r.evidenceWindow(ctx, f)
	if err != nil {
		return err
	}
	// All of it will be read; and to compile a query takes longer than to run it for one key.
	if _, err := r.tx.ExecContext(ctx, `SET LOCAL cursor_tuple_fraction = 1; SET LOCAL jit = off; SET LOCAL work_mem = '32MB'`); err != nil {
		return translate("read evidence", err)
	}
	c := &evidenceReader{reads: r, window: w, shapes: map[string]*evidenceShape{}, networks: map[string]int{}, scopeNetworks: map[scopeNetwork]bool{}}
	if err := c.open(ctx, t, f); err != nil {
		return err
	}
	for {
		key, err := c.keys.peek(ctx)
		if err != nil || key == nil {
			return errors.Join(err, c.close(ctx))
		}
		e, err := c.evidence(ctx, key)
		if err != nil {
			return err
		}
		c.keys.at++
		if err := each(e); err != nil {
			return err
		}
	}
}

// evidenceWindow is what is asked about in whole days, as far as it goes, and since when there
// is anything to know of it.
func (r *reads) evidenceWindow(ctx context.Context, f manage.EvidenceFilter) (authz.Window, error) {
	w := authz.Window{Since: f.Since.UTC().Truncate(24 * time.Hour), Until: f.Until.UTC()}
	if !w.Since.Before(w.Until) || w.Until.Sub(w.Since) > maxEvidenceDays*24*time.Hour {
		return w, fmt.Errorf("read evidence: a window begins before its end, and has at most %d days", maxEvidenceDays)
	}
	var first sql.NullTime
	// Which days were counted is nobody's.
	err := r.tx.GetContext(ctx, &first, `SELECT `+countedByDay)
	if err != nil {
		return w, translate("read since when usage is counted", err)
	}
	if first.Valid && first.Time.Before(w.Until) {
		w.RecordedSince = first.Time.UTC()
	}
	return w, nil
}

// evidenceReader reads evidence. What it hands out is written over for the next key.
type evidenceReader struct {
	*reads
	window  authz.Window
	keys    keyCursor[evidenceKey]
	secrets keyCursor[evidenceSecret]
	scopes  keyCursor[evidenceScope]
	months  []evidenceMonth
	// shapes are known ones, by their ids.
	shapes map[string]*evidenceShape

	e evidence
	// networks are the current key's, with the day of the window on which each was first seen.
	networks      map[string]int
	scopeNetworks map[scopeNetwork]bool
}

// evidenceMonth is the use of all keys in one month. Day 0 of it is the offset-th of the window.
type evidenceMonth struct {
	offset   int
	uses     *keyCursor[evidenceUse]
	networks *keyCursor[evidenceNetwork]
}

type scopeNetwork struct{ scope, network string }

type (
	evidenceKey struct {
		id                     authz.KeyID
		organization           authz.OrganizationID
		organizationName, name string
		environment            string
		scopes                 pq.StringArray
		created                time.Time
		expires, revoked       sql.NullTime
		scopesSince, usable    sql.NullTime
		disabled, suspended    bool
		version                int
	}
	evidenceSecret struct {
		key                      authz.KeyID
		hint                     string
		created                  time.Time
		revoked                  bool
		expires, first, lastUsed sql.NullTime
	}
	evidenceScope struct {
		key         authz.KeyID
		scope       string
		first, last time.Time
	}
	// evidenceUse is how often, and on which days of a month (a bit each).
	evidenceUse struct {
		key     authz.KeyID
		shapeID shapeID
		shape   *evidenceShape
		code    authz.Code
		// secret is that of calls with one that has ended.
		secret   authz.SecretID
		days     int64
		requests int64
	}
	evidenceNetwork struct {
		key     authz.KeyID
		scopes  string
		network string
		// first is a day of the month.
		first int
	}
	// evidenceShape is what matters here of a shape. unknown tells that it does not tell its scopes.
	evidenceShape struct {
		scopes           []authz.Scope
		browser, unknown bool
	}
)

func (k evidenceKey) keyID() authz.KeyID     { return k.id }
func (s evidenceSecret) keyID() authz.KeyID  { return s.key }
func (s evidenceScope) keyID() authz.KeyID   { return s.key }
func (u evidenceUse) keyID() authz.KeyID     { return u.key }
func (n evidenceNetwork) keyID() authz.KeyID { return n.key }

// shapeID is a uuid as Postgres writes it.
type shapeID [36]byte

// Scan implements sql.Scanner.
func (s *shapeID) Scan(src any) error {
	text, ok := src.([]byte)
	if !ok || copy(s[:], text) != len(s) {
		return fmt.Errorf("read a shape's id: %T", src)
	}
	return nil
}

// open begins to read everything.
func (c *evidenceReader) open(ctx context.Context, t manage.Tenant, f manage.EvidenceFilter) error {
	args := evidenceArgs(t, f)
	c.keys = keyCursor[evidenceKey]{r: c.reads, name: "evidence_keys", scan: func(rows *sql.Rows, k *evidenceKey) error {
		return rows.Scan(&k.id, &k.organization, &k.organizationName, &k.name, &k.environment, &k.scopes, &k.created, &k.expires, &k.revoked,
			&k.disabled, &k.suspended, &k.version, &k.scopesSince, &k.usable)
	}}
	c.secrets = keyCursor[evidenceSecret]{r: c.reads, name: "evidence_secrets", scan: func(rows *sql.Rows, s *evidenceSecret) error {
		return rows.Scan(&s.key, &s.hint, &s.created, &s.expires, &s.revoked, &s.first, &s.lastUsed)
	}}
	c.scopes = keyCursor[evidenceScope]{r: c.reads, name: "evidence_scopes", scan: func(rows *sql.Rows, s *evidenceScope) error {
		return rows.Scan(&s.key, &s.scope, &s.first, &s.last)
	}}
	err := errors.Join(
		c.keys.open(ctx, `
			SELECT k.id, k.organization_id, o.name, k.name, k.environment, k.scopes, k.created_at, k.expires_at, k.revoked_at,
				k.disabled_at IS NOT NULL, o.suspended_at IS NOT NULL, k.version, CASE WHEN isfinite(k.scopes_since) THEN k.scopes_since END,
				GREATEST(CASE WHEN isfinite(k.usable_since) THEN k.usable_since END, CASE WHEN isfinite(o.usable_since) THEN o.usable_since END)`+evidenceKeys+` ORDER BY k.id`, args...),
		c.secrets.open(ctx, `
			SELECT s.key_id, s.hint, s.created_at, s.expires_at, s.revoked_at IS NOT NULL, u.first_used_at, u.used_at
			FROM (SELECT k.id`+evidenceKeys+`) k JOIN key_secrets s ON s.key_id = k.id LEFT JOIN secret_uses u ON u.secret_id = s.id
			WHERE isfinite(s.created_at) AND isfinite(COALESCE(s.expires_at, s.created_at)) AND s.created_at < $5::timestamptz
			ORDER BY s.key_id`, args...),
		c.scopes.open(ctx, `
			SELECT u.key_id, u.scope, u.first_used_at, u.used_at
			FROM (SELECT k.id`+evidenceKeys+`) k JOIN scope_uses u ON u.key_id = k.id ORDER BY u.key_id`, args...),
	)
	if err != nil || c.window.RecordedSince.IsZero() {
		return err
	}
	end := c.window.Until.Add(24*time.Hour - 1).Truncate(24 * time.Hour)
	for since := c.window.Since; since.Before(end); {
		until := time.Date(since.Year(), since.Month()+1, 1, 0, 0, 0, 0, time.UTC)
		if until.After(end) {
			until = end
		}
		if err := c.openMonth(ctx, t, f, since, until); err != nil {
			return err
		}
		since = until
	}
	return nil
}

// evidenceWhere picks rows of use. Its arguments are the tenant, the organization and the key
// (NULL for all), and days.
const evidenceWhere = `
	WHERE ($1::boolean OR u.organization_id = $2::uuid) AND ($3::uuid IS NULL OR u.organization_id = $3::uuid)
		AND ($4::uuid IS NULL OR u.key_id = $4::uuid) AND u.key_id <> '` + noUUID + `'::uuid`

// openMonth begins to read days of one month.
func (c *evidenceReader) openMonth(ctx context.Context, t manage.Tenant, f manage.EvidenceFilter, since, until time.Time) error {
	m := evidenceMonth{offset: int(since.Sub(c.window.Since) / (24 * time.Hour))}
	args := []any{t.Everyone(), t.Organization(), f.Organization, f.Key, since.Format(time.DateOnly), until.Format(time.DateOnly)}
	n := len(c.months)
	m.uses = &keyCursor[evidenceUse]{
		r: c.reads, name: fmt.Sprintf("evidence_uses_%d", n), loaded: c.loadShapes,
		scan: func(rows *sql.Rows, u *evidenceUse) error {
			return rows.Scan(&u.key, &u.shapeID, (*scannedCode)(&u.code), &u.secret, &u.days, &u.requests)
		},
	}
	m.networks = &keyCursor[evidenceNetwork]{
		r: c.reads, name: fmt.Sprintf("evidence_networks_%d", n),
		scan: func(rows *sql.Rows, n *evidenceNetwork) error {
			return rows.Scan(&n.key, &n.scopes, &n.network, &n.first)
		},
	}
	c.months = append(c.months, m)
	return errors.Join(
		m.uses.open(ctx, `
			SELECT u.key_id, u.shape_id, u.code, CASE WHEN u.code IN ('key_expired', 'key_revoked') THEN u.secret_id END AS ended,
				bit_or(1::bigint << (u.day - $5::date)), sum(u.requests)::bigint
			FROM usage_by_day($5::date, $6::date) u`+evidenceWhere+`
			GROUP BY u.key_id, u.shape_id, u.code, ended ORDER BY u.key_id`, args...),
		m.networks.open(ctx, `
			SELECT u.key_id, u.scopes, u.network, min(u.day) - $5::date
			FROM usage_networks u`+evidenceWhere+` AND u.day >= $5::date AND u.day < $6::date AND u.allowed AND u.network <> '`+noNetwork.String()+`'
			GROUP BY u.key_id, u.scopes, u.network ORDER BY u.key_id`, args...),
	)
}

// close ends all cursors, so that the transaction can read evidence again.
func (c *evidenceReader) close(ctx context.Context) error {
	_, err := c.tx.ExecContext(ctx, `CLOSE ALL`)
	return translate("read evidence", err)
}

// scannedCode is a code that is read without a copy of its own.
type scannedCode authz.Code

// Scan implements sql.Scanner.
func (s *scannedCode) Scan(src any) error {
	text, ok := src.([]byte)
	if !ok {
		word, _ := src.(string)
		text = []byte(word)
	}
	switch authz.Code(text) {
	case authz.CodeAllowed:
		*s = scannedCode(authz.CodeAllowed)
	case authz.CodeRateLimited:
		*s = scannedCode(authz.CodeRateLimited)
	case authz.CodeInsufficientScope:
		*s = scannedCode(authz.CodeInsufficientScope)
	default:
		*s = scannedCode(text)
	}
	return nil
}

// loadShapes completes rows of use with what matters of their shapes. Shapes are nobody's:
// what tells tenants apart is not in them.
func (c *evidenceReader) loadShapes(ctx context.Context, rows []evidenceUse) error {
	if len(c.shapes) > maxKnownShapes {
		clear(c.shapes)
	}
	var ids pq.StringArray
	for i := range rows {
		id := string(rows[i].shapeID[:])
		if _, known := c.shapes[id]; !known {
			c.shapes[id] = nil
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		var found []struct {
			ID        string         `db:"id"`
			Scopes    pq.StringArray `db:"scopes"`
			Browser   bool           `db:"browser"`
			Collapsed bool           `db:"collapsed"`
		}
		err := c.tx.SelectContext(ctx, &found, `SELECT id, scopes, browser, collapsed FROM usage_shapes WHERE id = ANY ($1::uuid[])`, ids)
		if err != nil {
			return translate("read the shapes of evidence", err)
		}
		for _, s := range found {
			c.shapes[s.ID] = &evidenceShape{strung[authz.Scope](s.Scopes), s.Browser, s.Collapsed || len(s.Scopes) == 0}
		}
	}
	for i := range rows {
		if rows[i].shape = c.shapes[string(rows[i].shapeID[:])]; rows[i].shape == nil {
			rows[i].shape = &evidenceShape{unknown: true} // none, or forgotten
		}
	}
	return nil
}
