package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// maxShadowReplicas bounds the replicas, and those that were started anew, that write what came
// of one shadow.
const maxShadowReplicas = 1_000

// PolicyShadow is a policy that all replicas ask beside the one in force, or did.
type PolicyShadow struct {
	authz.PolicyShadow

	// Archive is the policy itself; nil when it has ended.
	Archive []byte
}

const shadowSQL = `
SELECT n, candidate, started_at, ends_at, started_by, note, share, per_second, ended_at, ended_by, reason, why FROM policy_shadows`

type shadowRow struct {
	N         int64        `db:"n"`
	Candidate string       `db:"candidate"`
	StartedAt time.Time    `db:"started_at"`
	EndsAt    time.Time    `db:"ends_at"`
	StartedBy string       `db:"started_by"`
	Note      string       `db:"note"`
	Share     float64      `db:"share"`
	PerSecond int          `db:"per_second"`
	EndedAt   sql.NullTime `db:"ended_at"`
	EndedBy   string       `db:"ended_by"`
	Reason    string       `db:"reason"`
	Why       string       `db:"why"`
}

func (r shadowRow) thing() (authz.PolicyShadow, error) { //nolint:unparam // what one asks for
	return authz.PolicyShadow{
		Change: r.N, Candidate: r.Candidate, StartedAt: r.StartedAt.UTC(), EndsAt: r.EndsAt.UTC(), StartedBy: r.StartedBy, Note: r.Note,
		Share: r.Share, PerSecond: r.PerSecond, EndedAt: utc(r.EndedAt), EndedBy: r.EndedBy, Reason: authz.PolicyShadowEnd(r.Reason), Why: r.Why,
	}, nil
}

// shadow implements source.
func (p postgres) shadow(ctx context.Context) (*PolicyShadow, error) {
	ctx, cancel := context.WithTimeout(ctx, manageReadDeadline)
	defer cancel()
	var row struct {
		shadowRow

		Archive []byte `db:"archive"`
	}
	err := p.changing.GetContext(ctx, &row, `
		SELECT n, candidate, archive, started_at, ends_at, started_by, note, share, per_second, ended_at, ended_by, reason, why
		FROM policy_shadows ORDER BY n DESC LIMIT 1`)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, translate("read the policy's shadow", err)
	}
	shadow, err := row.thing()
	return &PolicyShadow{shadow, row.Archive}, err
}

// PolicyShadow returns the newest one, as far as changes are applied; nil for none.
// PolicyShadowChanged tells when to look again.
func (s *Store) PolicyShadow() *PolicyShadow { return s.shadow.Load() }

// PolicyShadowChanged receives after what PolicyShadow returns has changed. It is for one reader.
func (s *Store) PolicyShadowChanged() <-chan struct{} { return s.shadowChanged }

// learnShadow takes what the database says. What nobody decides by may be as it was in a database
// that was put back.
func (s *Store) learnShadow(shadow *PolicyShadow) {
	s.shadow.Store(shadow)
	select {
	case s.shadowChanged <- struct{}{}:
	default:
	}
}

// WritePolicyShadow writes what came of a shadow on this replica, all in all, and those of its
// differences that have changed. It may be written again. Nothing is written of a shadow that
// another one has replaced.
func (s *Store) WritePolicyShadow(ctx context.Context, change int64, c authz.PolicyShadowCounts, changed []authz.PolicyShadowDifference) error {
	if !s.admitted.Load() {
		return authz.Unavailable("write a shadow's counts", errNoContact)
	}
	totals, err := json.Marshal(c.Totals)
	if err != nil {
		return translate("write a shadow's counts", err)
	}
	rows := make([]shadowDifferenceRecord, len(changed))
	for i, d := range changed {
		if rows[i], err = newShadowDifferenceRecord(d); err != nil {
			return translate("write a shadow's counts", err)
		}
	}
	differences, err := json.Marshal(rows)
	if err != nil {
		return translate("write a shadow's counts", err)
	}
	ctx, cancel := context.WithTimeout(ctx, manageReadDeadline)
	defer cancel()
	_, err = s.manage.ExecContext(ctx, `
		WITH shadow AS (
			SELECT n FROM policy_shadows WHERE n = $1 FOR KEY SHARE
		), counts AS (
			INSERT INTO policy_shadow_replicas AS r (shadow, replica_id, written_at, seen, asked, failed, dropped, undecided, restarts, totals, took, active_took)
			SELECT n, $2::uuid, clock_timestamp(), $3::bigint, $4::bigint, $5::bigint, $6::bigint, $7::bigint, $8::bigint, $9::json, $10::bigint[], $11::bigint[]
			FROM shadow WHERE EXISTS (SELECT FROM policy_shadow_replicas WHERE shadow = $1 AND replica_id = $2::uuid)
				OR (SELECT count(*) FROM policy_shadow_replicas WHERE shadow = $1) < $13
			ON CONFLICT (shadow, replica_id) DO UPDATE SET written_at = excluded.written_at, seen = excluded.seen, asked = excluded.asked,
				failed = excluded.failed, dropped = excluded.dropped, undecided = excluded.undecided, restarts = excluded.restarts,
				totals = excluded.totals, took = excluded.took, active_took = excluded.active_took
			RETURNING r.shadow
		)
		INSERT INTO policy_shadow_differences AS d (shadow, replica_id, id, organization_id, key_id, kind, description, requests, first_seen, last_seen)
		SELECT counts.shadow, $2::uuid, x.* FROM counts, json_to_recordset($12::json) AS x(id uuid, organization_id uuid, key_id uuid, kind text,
			description json, requests bigint, first_seen timestamptz, last_seen timestamptz)
		ON CONFLICT (shadow, replica_id, id) DO UPDATE SET requests = excluded.requests, last_seen = excluded.last_seen`,
		change, s.replica.id, c.Seen, c.Asked, c.Failed, c.Dropped, c.Undecided, c.Restarts, string(totals),
		pq.Int64Array(c.Took[:]), pq.Int64Array(c.ActiveTook[:]), string(differences), maxShadowReplicas)
	return translate("write a shadow's counts", err)
}

type shadowDifferenceRecord struct {
	ID             string          `json:"id"`
	OrganizationID any             `json:"organization_id"`
	KeyID          any             `json:"key_id"`
	Kind           string          `json:"kind"`
	Description    json.RawMessage `json:"description"`
	Requests       int64           `json:"requests"`
	FirstSeen      time.Time       `json:"first_seen"`
	LastSeen       time.Time       `json:"last_seen"`
}

func newShadowDifferenceRecord(d authz.PolicyShadowDifference) (shadowDifferenceRecord, error) {
	r := shadowDifferenceRecord{
		OrganizationID: uuid(d.Organization), KeyID: uuid(d.Key), Kind: string(d.Kind), Requests: d.Requests,
		FirstSeen: d.FirstSeen.UTC(), LastSeen: d.LastSeen.UTC(),
	}
	// What is left tells one from another, on every replica.
	d.OrganizationName, d.KeyName, d.Requests, d.FirstSeen, d.LastSeen = "", "", 0, time.Time{}, time.Time{}
	text, err := json.Marshal(d)
	sum := sha256.Sum256(text)
	r.ID, r.Description = hex.EncodeToString(sum[:16]), text
	return r, err //nolint:wrapcheck // WritePolicyShadow does
}

// PolicyShadow implements manage.Reader.
func (r *reads) PolicyShadow(ctx context.Context, t manage.Tenant) (*authz.PolicyShadow, error) {
	return one[authz.PolicyShadow, shadowRow](ctx, r, "read the policy's shadow", shadowSQL+`
		WHERE $1::boolean ORDER BY n DESC LIMIT 1`, t.Everyone())
}

// PolicyShadowReport implements manage.Reader.
func (r *reads) PolicyShadowReport(ctx context.Context, t manage.Tenant, out *authz.PolicyShadowReport, differences int) error {
	if err := r.shadowCounts(ctx, t, out); err != nil {
		return err
	}
	var rows []struct {
		Description      []byte         `db:"description"`
		OrganizationName sql.NullString `db:"organization_name"`
		KeyName          sql.NullString `db:"key_name"`
		Requests         int64          `db:"requests"`
		FirstSeen        time.Time      `db:"first_seen"`
		LastSeen         time.Time      `db:"last_seen"`
		All              int64          `db:"all"`
	}
	kinds := authz.PolicyDifferenceKinds()
	err := r.tx.SelectContext(ctx, &rows, `
		SELECT d.description, o.name AS organization_name, k.name AS key_name, d.requests, d.first_seen, d.last_seen, d."all"
		FROM (
			SELECT id, min(organization_id::text)::uuid AS organization_id, min(key_id::text)::uuid AS key_id, min(kind) AS kind, min(description::text) AS description,
				sum(requests)::bigint AS requests, min(first_seen) AS first_seen, max(last_seen) AS last_seen, count(*) OVER () AS "all"
			FROM policy_shadow_differences WHERE $1::boolean AND shadow = $2 GROUP BY id
			ORDER BY array_position($3::text[], min(kind)), sum(requests) DESC, id LIMIT $4
		) d LEFT JOIN organizations o ON o.id = d.organization_id LEFT JOIN api_keys k ON k.id = d.key_id`,
		t.Everyone(), out.Shadow.Change, texts(kinds), differences)
	if err != nil {
		return translate("read a shadow's differences", err)
	}
	out.Differences = make([]authz.PolicyShadowDifference, 0, len(rows))
	for _, row := range rows {
		var d authz.PolicyShadowDifference
		if err := json.Unmarshal(row.Description, &d); err != nil {
			return translate("read a shadow's differences", fmt.Errorf("a description is not one: %w", err))
		}
		d.OrganizationName, d.KeyName, d.Requests = row.OrganizationName.String, row.KeyName.String, row.Requests
		d.FirstSeen, d.LastSeen = row.FirstSeen.UTC(), row.LastSeen.UTC()
		out.Differences = append(out.Differences, d)
		out.Unlisted = row.All - int64(len(rows))
	}
	authz.SortShadowDifferences(out.Differences)
	return nil
}

// shadowCounts adds up what the replicas have counted.
func (r *reads) shadowCounts(ctx context.Context, t manage.Tenant, out *authz.PolicyShadowReport) error {
	var rows []struct {
		Seen       int64         `db:"seen"`
		Asked      int64         `db:"asked"`
		Failed     int64         `db:"failed"`
		Dropped    int64         `db:"dropped"`
		Undecided  int64         `db:"undecided"`
		Restarts   int64         `db:"restarts"`
		Totals     []byte        `db:"totals"`
		Took       pq.Int64Array `db:"took"`
		ActiveTook pq.Int64Array `db:"active_took"`
	}
	err := r.tx.SelectContext(ctx, &rows, `
		SELECT seen, asked, failed, dropped, undecided, restarts, totals, took, active_took
		FROM policy_shadow_replicas WHERE $1::boolean AND shadow = $2`, t.Everyone(), out.Shadow.Change)
	if err != nil {
		return translate("read a shadow's counts", err)
	}
	out.Replicas, out.Counts = len(rows), authz.PolicyShadowCounts{}
	for _, row := range rows {
		c := authz.PolicyShadowCounts{
			Seen: row.Seen, Asked: row.Asked, Failed: row.Failed, Dropped: row.Dropped, Undecided: row.Undecided, Restarts: row.Restarts,
		}
		if err := json.Unmarshal(row.Totals, &c.Totals); err != nil {
			return translate("read a shadow's counts", fmt.Errorf("totals are not what they should be: %w", err))
		}
		copy(c.Took[:], row.Took)
		copy(c.ActiveTook[:], row.ActiveTook)
		out.Counts.Add(c)
	}
	return nil
}

// StartPolicyShadow implements manage.Writer.
func (c *Change) StartPolicyShadow(ctx context.Context, t manage.Tenant, s *authz.PolicyShadow, archive []byte) error {
	s.Change = c.revision
	if _, err := c.execMany(ctx, "forget a shadow", `DELETE FROM policy_shadows WHERE $1::boolean`, t.Everyone()); err != nil {
		return err
	}
	return c.exec(ctx, "start a shadow", `
		INSERT INTO policy_shadows (n, revision, candidate, archive, started_at, ends_at, started_by, note, share, per_second)
		SELECT $2::bigint, $2::bigint, $3::text, $4::bytea, $5::timestamptz, $6::timestamptz, $7::text, $8::text, $9::double precision, $10::integer WHERE $1::boolean`,
		t.Everyone(), c.revision, s.Candidate, archive, s.StartedAt, s.EndsAt, s.StartedBy, s.Note, s.Share, s.PerSecond)
}

// EndPolicyShadow implements manage.Writer.
func (c *Change) EndPolicyShadow(ctx context.Context, t manage.Tenant, s authz.PolicyShadow) error {
	return c.exec(ctx, "end a shadow", `
		UPDATE policy_shadows SET revision = $2, archive = NULL, ended_at = $4, ended_by = $5, reason = $6, why = $7
		WHERE $1::boolean AND n = $3`, t.Everyone(), c.revision, s.Change, s.EndedAt, s.EndedBy, string(s.Reason), s.Why)
}
