package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// maxForgottenNarrowings bounds the narrowings that one change clears away.
const maxForgottenNarrowings = 100

// KeyTraffic implements manage.Reader. Callers are nobody's, but those that asked about the
// key are read with it: policy looks at them.
func (r *reads) KeyTraffic(ctx context.Context, t manage.Tenant, f manage.KeyTrafficFilter) (*manage.KeyTraffic, error) {
	const doing = "read the recorded requests of a key"
	var rows []struct {
		recordedRow

		Passed int64 `db:"passed"`
	}
	err := r.tx.SelectContext(ctx, &rows, `
		SELECT u.key_id, u.caller_id, u.shape_id, sum(u.requests)::bigint AS requests,
			COALESCE(sum(u.requests) FILTER (WHERE u.code <> ALL ($6::text[])), 0)::bigint AS passed
		FROM usage_by_day(($4::timestamptz AT TIME ZONE 'UTC')::date, ($5::timestamptz AT TIME ZONE 'UTC')::date + 1) u
		WHERE ($1::boolean OR u.organization_id = $2::uuid) AND u.key_id = $3::uuid AND u.shape_id <> '`+noUUID+`'::uuid
		GROUP BY u.key_id, u.caller_id, u.shape_id ORDER BY requests DESC, u.shape_id, u.caller_id LIMIT $7`,
		t.Everyone(), t.Organization(), f.Key, f.Since, f.Until, texts(authz.PolicyDenials()), f.Limit+1)
	if err != nil {
		return nil, translate(doing, err)
	}
	out := &manage.KeyTraffic{More: len(rows) > f.Limit}
	rows = rows[:min(len(rows), f.Limit)]
	keys, err := r.keysOf(ctx, t, pq.StringArray{uuidOrZero(f.Key)})
	if err != nil {
		return nil, err
	}
	out.Key = keys[f.Key]
	callers, err := r.callersOf(ctx, t, f)
	if err != nil {
		return nil, err
	}
	recorded := make([]recordedRow, len(rows))
	for i := range rows {
		recorded[i] = rows[i].recordedRow
	}
	shapes := map[string]authz.Shape{}
	if err := r.recordedShapes(ctx, shapes, recorded); err != nil {
		return nil, err
	}
	out.Recorded = make([]authz.RecordedOfKey, 0, len(rows))
	for _, row := range rows {
		shape, known := shapes[row.ShapeID]
		if !known {
			shape = authz.CollapsedShape() // whatever became of it
		}
		out.Recorded = append(out.Recorded, authz.RecordedOfKey{
			CallerID: row.CallerID, Caller: callers[row.CallerID], Shape: shape, Requests: row.Requests, Passed: row.Passed,
		})
	}
	return out, nil
}

// callersOf are the callers that are there now and asked about a key.
func (r *reads) callersOf(ctx context.Context, t manage.Tenant, f manage.KeyTrafficFilter) (map[authz.CallerID]*authz.Caller, error) {
	return r.readCallersForPolicy(ctx, `
		SELECT id, name, environments FROM callers WHERE disabled_at IS NULL AND revoked_at IS NULL AND id IN (
			SELECT u.caller_id
			FROM usage_by_day(($4::timestamptz AT TIME ZONE 'UTC')::date, ($5::timestamptz AT TIME ZONE 'UTC')::date + 1) u
			WHERE ($1::boolean OR u.organization_id = $2::uuid) AND u.key_id = $3::uuid)`,
		t.Everyone(), t.Organization(), f.Key, f.Since, f.Until)
}

// narrowingRow is a row of key_narrowings.
type narrowingRow struct {
	KeyID          authz.KeyID          `db:"key_id"`
	Revision       int64                `db:"revision"`
	OrganizationID authz.OrganizationID `db:"organization_id"`
	NarrowedAt     time.Time            `db:"narrowed_at"`
	NarrowedBy     string               `db:"narrowed_by"`
	Before         pq.StringArray       `db:"scopes_before"`
	After          pq.StringArray       `db:"scopes_after"`
	Version        int                  `db:"key_version"`
	Evidence       []byte               `db:"evidence"`
	UndoneAt       sql.NullTime         `db:"undone_at"`
	UndoneBy       sql.NullString       `db:"undone_by"`
	Widened        sql.NullBool         `db:"widened"`
}

//nolint:unparam // rows of other things can be bad
func (r narrowingRow) thing() (manage.KeyNarrowing, error) {
	return manage.KeyNarrowing{
		Key: r.KeyID, Organization: r.OrganizationID, Revision: r.Revision, At: r.NarrowedAt.UTC(), By: r.NarrowedBy,
		Before: strung[authz.Scope](r.Before), After: strung[authz.Scope](r.After), Version: r.Version, Evidence: r.Evidence,
		UndoneAt: utc(r.UndoneAt), UndoneBy: r.UndoneBy.String, Widened: r.Widened.Bool,
	}, nil
}

// widenedSince tells that key k was given scopes since its narrowing n, but for what an undoing
// has given back.
const widenedSince = `COALESCE(k.scopes_since > GREATEST(n.narrowed_at, (SELECT max(u.undone_at) FROM key_narrowings u WHERE u.key_id = n.key_id)), false)`

// KeyNarrowing implements manage.Reader.
func (r *reads) KeyNarrowing(ctx context.Context, t manage.Tenant, key authz.KeyID, since time.Time) (*manage.KeyNarrowing, error) {
	return one[manage.KeyNarrowing, narrowingRow](ctx, r, "read what was taken from a key", `
		SELECT n.key_id, n.revision, n.organization_id, n.narrowed_at, n.narrowed_by, n.scopes_before, n.scopes_after, n.key_version, n.evidence,
			n.undone_at, n.undone_by,
			`+widenedSince+` AS widened
		FROM key_narrowings n JOIN api_keys k ON k.id = n.key_id
		WHERE ($1::boolean OR n.organization_id = $2::uuid) AND n.key_id = $3::uuid AND n.undone_at IS NULL AND n.narrowed_at > $4
		ORDER BY n.revision DESC LIMIT 1`, t.Everyone(), t.Organization(), key, since)
}

// InsertKeyNarrowing implements manage.Writer, and forgets some that cannot be undone any more.
func (c *Change) InsertKeyNarrowing(ctx context.Context, t manage.Tenant, n *manage.KeyNarrowing) error {
	_, err := c.execMany(ctx, "forget what was taken from keys", `
		DELETE FROM key_narrowings WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM key_narrowings WHERE narrowed_at <= $1 ORDER BY narrowed_at LIMIT $2))`,
		c.now.Add(-manage.UndoneFor), maxForgottenNarrowings)
	if err != nil {
		return err
	}
	// Somebody has decided anew what the key should have: what was taken before that stays taken.
	_, err = c.execMany(ctx, "forget what was decided anew", `
		DELETE FROM key_narrowings n USING api_keys k
		WHERE ($1::boolean OR n.organization_id = $2::uuid) AND n.key_id = $3::uuid AND k.id = n.key_id AND n.undone_at IS NULL AND `+widenedSince,
		t.Everyone(), t.Organization(), n.Key)
	if err != nil {
		return err
	}
	n.Revision, n.At = c.revision, c.now
	return c.exec(ctx, "keep what was taken from a key", `
		INSERT INTO key_narrowings (key_id, revision, organization_id, narrowed_at, narrowed_by, scopes_before, scopes_after, key_version, evidence)
		SELECT k.id, $4, k.organization_id, $5, $6, $7, $8, $9, $10::json
		FROM api_keys k WHERE ($1::boolean OR k.organization_id = $2::uuid) AND k.id = $3::uuid`,
		t.Everyone(), t.Organization(), n.Key, c.revision, c.now, n.By, texts(n.Before), texts(n.After), n.Version, string(n.Evidence))
}

// EndKeyNarrowing implements manage.Writer.
func (c *Change) EndKeyNarrowing(ctx context.Context, t manage.Tenant, n *manage.KeyNarrowing) error {
	return c.exec(ctx, "note that a key has got back what was taken", `
		UPDATE key_narrowings SET undone_at = $5, undone_by = $6
		WHERE ($1::boolean OR organization_id = $2::uuid) AND key_id = $3::uuid AND revision = $4 AND undone_at IS NULL`,
		t.Everyone(), t.Organization(), n.Key, n.Revision, n.UndoneAt, n.UndoneBy)
}
