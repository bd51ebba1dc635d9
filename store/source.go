package store

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
)

// source is what a replica reads and writes to keep its memory true: Postgres, or a
// simulation of it in tests. Every method has a deadline of its own.
type source interface {
	// changes tells what has changed after revision since, and which mark that has here,
	// all of one snapshot. For 0 it tells the present revision and no change.
	changes(ctx context.Context, since int64) (*changeSet, error)
	// missed looks at keys behind one, some at a time, and tells which changed after revision since.
	missed(ctx context.Context, since int64, after authz.KeyID) (*missedKeys, error)
	callers(ctx context.Context) (callerTable, error)
	// admins reads those that changed after revision since, with each of their tokens.
	admins(ctx context.Context, since int64) ([]readAdmin, error)
	formats(ctx context.Context) (*[]authz.ForeignFormat, error)
	// policy reads which policy is in force.
	policy(ctx context.Context) (*Policy, error)
	// shadow reads which policy is asked beside it; nil for none.
	shadow(ctx context.Context) (*PolicyShadow, error)
	// lookup reads the keys that have these digests, all of one snapshot: an entry for
	// every digest.
	lookup(ctx context.Context, digests []authz.Digest, o *organizationCache) (map[authz.Digest]*cachedKey, error)
	// beat writes a heartbeat, and clears away replicas that are gone.
	beat(ctx context.Context, h heartbeat, sweep bool) error
	// nobodyWrites tells of a failed heartbeat that nobody can commit a change either.
	nobodyWrites(ctx context.Context, err error) bool
	// raise takes the revision above n, as a change of its own.
	raise(ctx context.Context, n int64) error
}

// mark tells one revision from another of the same number; "" is none.
type mark string

// changeSet is what one synchronization reads.
type changeSet struct {
	// n and mark are the database's revision; markThen is the mark of the revision that
	// was asked for, empty when it is not known here any more.
	n              int64
	mark, markThen mark
	// now is Postgres' time.
	now time.Time
	// live is the number of replicas with a fresh heartbeat, counting are the ids of those that
	// receipts count.
	live          int64
	counting      []string
	keys          []changedKey
	retired       []authz.Digest
	organizations []changedOrganization
	// callers, admins, formats, policy and shadow tell that any of them has changed, everything that too much has.
	callers, admins, formats, policy, shadow, everything bool
}

// changedKey is a key that has changed, with one of its secrets.
type changedKey struct {
	digest   authz.Digest
	id       authz.KeyID
	secret   authz.SecretID
	revision int64
	// keyRevoked and secretRevoked are Unix seconds; they are not valid while neither is.
	keyRevoked, secretRevoked sql.NullInt64
}

type changedOrganization struct {
	id        authz.OrganizationID
	revision  int64
	suspended bool
}

// postgres is the source of a replica that serves.
type postgres struct {
	check, changing, manage *sqlx.DB
}

var _ source = postgres{}

// revokedAt is a time as Unix seconds; what is no time of this world is long ago.
const (
	revokedKeyAt = `CASE WHEN k.revoked_at IS NULL THEN NULL WHEN isfinite(k.revoked_at)
		THEN floor(extract(epoch FROM k.revoked_at))::bigint ELSE 0 END AS key_revoked`
	revokedSecretAt = `CASE WHEN s.revoked_at IS NULL THEN NULL WHEN isfinite(s.revoked_at)
		THEN floor(extract(epoch FROM s.revoked_at))::bigint ELSE 0 END AS secret_revoked`
)

// changesSQL tells the revision, Postgres' time and everything that changed after
// revision $1, all of one snapshot. Revision order is commit order, so nothing
// after the revision it tells can appear later with a smaller one.
const changesSQL = `
SELECT r.n, r.mark::text AS mark, COALESCE(m.mark::text, '') AS mark_then, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us,
	(SELECT count(*) FROM replicas WHERE heartbeat_at > clock_timestamp() - $4::bigint * interval '1 ms') AS live,
	(SELECT COALESCE(string_agg(id::text, ' '), '') FROM replicas
		WHERE heartbeat_at + (stale_max_ms + $5::bigint) * interval '1 ms' > clock_timestamp()) AS counting, x.*
FROM revision r LEFT JOIN revision_marks m ON m.n = $3 LEFT JOIN (
	SELECT 'key' AS kind, s.digest, k.id AS key_id, s.id AS secret_id, NULL::uuid AS organization_id, k.revision, ` + revokedKeyAt + `, ` + revokedSecretAt + `, NULL::boolean AS suspended
	FROM api_keys k JOIN key_secrets s ON s.key_id = k.id WHERE k.revision > $1
	UNION ALL
	SELECT 'retired', digest, NULL, NULL, NULL, revision, NULL, NULL, NULL FROM retired_digests WHERE revision > $1
	UNION ALL
	SELECT 'everything', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM settings
	WHERE CASE WHEN name = 'retired_pruned' THEN value::bigint > $1 ELSE false END
	UNION ALL
	SELECT 'organization', NULL, NULL, NULL, id, revision, NULL, NULL, (suspended_at IS NOT NULL OR deleted_at IS NOT NULL)
	FROM organizations WHERE revision > $1
	UNION ALL
	SELECT 'callers', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE EXISTS (SELECT FROM callers WHERE revision > $1)
	UNION ALL
	SELECT 'admins', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE EXISTS (SELECT FROM admins WHERE revision > $1)
	UNION ALL
	SELECT 'formats', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE EXISTS (SELECT FROM foreign_formats WHERE revision > $1)
	UNION ALL
	SELECT 'policy', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE EXISTS (SELECT FROM policy_activations WHERE n > $1)
	UNION ALL
	SELECT 'shadow', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL WHERE EXISTS (SELECT FROM policy_shadows WHERE revision > $1)
	LIMIT $2
) x ON true`

// maxChanges bounds what one synchronization reads; when more has changed,
// everything in memory is forgotten instead.
const maxChanges = 10_000

type changeRow struct {
	N              int64                `db:"n"`
	Mark           mark                 `db:"mark"`
	MarkThen       mark                 `db:"mark_then"`
	NowUS          int64                `db:"now_us"`
	Live           int64                `db:"live"`
	Counting       string               `db:"counting"`
	Kind           sql.NullString       `db:"kind"`
	Digest         []byte               `db:"digest"`
	KeyID          authz.KeyID          `db:"key_id"`
	SecretID       authz.SecretID       `db:"secret_id"`
	OrganizationID authz.OrganizationID `db:"organization_id"`
	Revision       sql.NullInt64        `db:"revision"`
	KeyRevoked     sql.NullInt64        `db:"key_revoked"`
	SecretRevoked  sql.NullInt64        `db:"secret_revoked"`
	Suspended      sql.NullBool         `db:"suspended"`
}

func (p postgres) changes(ctx context.Context, since int64) (*changeSet, error) {
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	at := since
	if since == 0 {
		since = math.MaxInt64 // nothing is in memory yet that could have changed
	}
	var rows []changeRow
	err := p.changing.SelectContext(ctx, &rows, changesSQL, since, maxChanges, at, liveFor.Milliseconds(), heartbeatGrace.Milliseconds())
	if err != nil {
		return nil, translate("read what has changed", err)
	}
	if len(rows) == 0 {
		return nil, errors.New("read what has changed: the revision's row is missing")
	}
	first := &rows[0]
	set := &changeSet{
		n: first.N, mark: first.Mark, markThen: first.MarkThen, now: time.UnixMicro(first.NowUS), live: first.Live,
		counting:   strings.Fields(first.Counting),
		everything: len(rows) >= maxChanges,
	}
	for i := range rows {
		set.add(&rows[i])
	}
	return set, nil
}

func (set *changeSet) add(r *changeRow) {
	switch r.Kind.String {
	case "key":
		if d, ok := digest(r.Digest); ok {
			set.keys = append(set.keys, r.key(d))
		}
	case "retired":
		if d, ok := digest(r.Digest); ok {
			set.retired = append(set.retired, d)
		}
	case "organization":
		set.organizations = append(set.organizations, changedOrganization{
			id: r.OrganizationID, revision: r.Revision.Int64, suspended: r.Suspended.Bool,
		})
	case "callers":
		set.callers = true
	case "admins":
		set.admins = true
	case "formats":
		set.formats = true
	case "policy":
		set.policy = true
	case "shadow":
		set.shadow = true
	case "everything":
		set.everything = true
	}
}

// digest is what a stored digest must be; nothing in memory has one that is not.
func digest(stored []byte) (authz.Digest, bool) {
	if len(stored) != len(authz.Digest{}) {
		return authz.Digest{}, false
	}
	return authz.Digest(stored), true
}

func (r *changeRow) key(d authz.Digest) changedKey {
	return changedKey{
		digest: d, id: r.KeyID, secret: r.SecretID, revision: r.Revision.Int64,
		keyRevoked: r.KeyRevoked, secretRevoked: r.SecretRevoked,
	}
}

func (p postgres) callers(ctx context.Context) (callerTable, error) {
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	return readCallers(ctx, p.changing)
}

func (p postgres) formats(ctx context.Context) (*[]authz.ForeignFormat, error) {
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	return readFormats(ctx, p.changing)
}

func (p postgres) lookup(
	ctx context.Context, digests []authz.Digest, o *organizationCache,
) (map[authz.Digest]*cachedKey, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout+lookupReadDeadline)
	defer cancel()
	return lookup(ctx, p.check, digests, o)
}

// nextRevision takes the next revision; its row lock is held to the commit. A trigger
// gives it its mark.
const nextRevision = `UPDATE revision SET n = GREATEST(n, $1::bigint) + 1 RETURNING n, clock_timestamp()`

func (p postgres) raise(ctx context.Context, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	tx, err := p.changing.BeginTxx(ctx, nil)
	if err != nil {
		return translate("raise the revision", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	if _, err := tx.ExecContext(ctx, limitChange); err != nil {
		return translate("raise the revision", err)
	}
	if _, err := tx.ExecContext(ctx, nextRevision, n); err != nil {
		return translate("raise the revision", err)
	}
	if _, err := tx.ExecContext(ctx, `SELECT pg_notify($1, '')`, notifyChannel); err != nil {
		return translate("raise the revision", err)
	}
	return translate("raise the revision", tx.Commit())
}

func (p postgres) beat(ctx context.Context, h heartbeat, sweep bool) error {
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	query := heartbeatSQL
	if sweep {
		query = sweepSQL + heartbeatSQL
	}
	_, err := p.changing.ExecContext(ctx, query, h.id, h.name, h.age.Seconds(), h.applied, h.staleMax.Milliseconds(),
		pq.StringArray(h.peppers), h.mark, h.policy, h.counted)
	return err //nolint:wrapcheck // nobodyWrites looks into it
}

func (p postgres) nobodyWrites(ctx context.Context, err error) bool {
	var server *pq.Error
	if !errors.As(err, &server) {
		return false
	}
	switch server.Code {
	case "53100": // disk_full; others of its class, such as too many connections, may strike us alone
		return true
	case "25006": // read_only_sql_transaction
		// A standby refuses what its primary may take.
		ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
		defer cancel()
		var standby bool
		err := p.changing.GetContext(ctx, &standby, `SELECT pg_is_in_recovery()`)
		return err == nil && !standby
	}
	return false
}
