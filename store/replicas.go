package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

const (
	// liveFor is how long a heartbeat is fresh.
	liveFor = 2 * time.Second
	// heartbeatGrace is how long after a heartbeat polls may still extend the right to
	// serve: until so much after its stale limit a replica counts.
	heartbeatGrace = 2 * time.Second
	// sweepEvery is how often a replica clears away rows of those that are gone.
	sweepEvery = time.Minute
	// unregisterWithin bounds what a replica that ends does for its row.
	unregisterWithin = time.Second
	// effectiveWithin bounds how long a receipt waits, effectivePoll how often it looks.
	effectiveWithin = time.Second
	effectivePoll   = 10 * time.Millisecond
	// countedWithin is how long is waited for what replicas have counted: they write it each
	// flushEvery, and say so with the next heartbeat.
	countedWithin = 4 * time.Second
)

// heartbeatSQL says that a replica lives and how far it is. sweepSQL before it clears
// away those that cannot serve any more.
const (
	heartbeatSQL = `
INSERT INTO replicas (id, name, started_at, heartbeat_at, applied_revision, stale_max_ms, pepper_ids, applied_mark, policy_revision,
	counted_revision)
VALUES ($1, $2, clock_timestamp() - make_interval(secs => $3), clock_timestamp(), $4, $5, $6, NULLIF($7::text, '')::uuid, $8, $9)
ON CONFLICT (id) DO UPDATE SET heartbeat_at = excluded.heartbeat_at, applied_revision = excluded.applied_revision,
	applied_mark = excluded.applied_mark, policy_revision = excluded.policy_revision, counted_revision = excluded.counted_revision`

	sweepSQL = `
WITH gone AS (DELETE FROM replicas
	WHERE id <> $1 AND heartbeat_at + stale_max_ms * interval '1 ms' + interval '1 minute' < clock_timestamp())`
)

// counting is which replicas may still serve what they know; its argument is heartbeatGrace in ms.
const counting = `heartbeat_at + (stale_max_ms + $1::bigint) * interval '1 ms' > clock_timestamp()`

var errNoRevision = errors.New("read the replicas: the revision's row is missing")

// never is long before any clock of ours began.
const never = time.Duration(-1 << 62)

// replica is this process among the replicas. Its fields are guarded by Store.syncing
// once the store is open.
type replica struct {
	id, name string
	// beaten and swept are when a heartbeat and a sweep last succeeded, on the clock's
	// elapsed time. covered is when a heartbeat last did, or was not needed.
	beaten, swept, covered time.Duration
	// unsure is until when fewer replicas may be seen than there are.
	unsure  time.Duration
	failing bool
	// policy is the revision of the policy that decides here, told what the last heartbeat
	// said of that.
	policy, told string
	// countedTold is what the last heartbeat said of Store.countedRevision.
	countedTold int64
}

func newReplica() replica {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	// The bits of any id will do.
	id, _ := uuid(authz.NewEventID(time.Now())).(string)
	return replica{id: id, name: fmt.Sprintf("%s:%d", host, os.Getpid()), beaten: never, swept: never, covered: never}
}

// mustBeat tells that a heartbeat should be written before the next poll, which without
// one gives no right to serve on. While heartbeats fail, changes are not kept waiting.
func (s *Store) mustBeat() bool {
	return !s.replica.failing && s.clock.elapsed()-s.replica.beaten > s.staleMax/2
}

// coveredUntil is how far heartbeats let polls extend the right to serve: a receipt
// counts this replica for staleMax more at least.
func (s *Store) coveredUntil() time.Duration { return s.replica.covered + heartbeatGrace }

// heartbeat is what a replica says of itself.
type heartbeat struct {
	id, name string
	// age is the time since it began.
	age, staleMax time.Duration
	applied       int64
	mark          mark
	peppers       []string
	// policy is the revision of the policy that decides there.
	policy string
	// counted is Store.countedRevision.
	counted int64
}

// beat writes the heartbeat. A failure is told once and stops no change from being
// applied, but the right to serve ends unless nobody can write.
func (s *Store) beat(ctx context.Context) {
	r, now := &s.replica, s.clock.elapsed()
	sweep := now-r.swept > sweepEvery
	counted := s.countedRevision.Load()
	err := s.source.beat(ctx, heartbeat{
		r.id, r.name, now, s.staleMax, s.applied.Load(), s.appliedMark, s.peppers.IDs(), r.policy, counted,
	}, sweep)
	if err != nil {
		if s.source.nobodyWrites(ctx, err) {
			r.covered = now
			s.doubtReplicas()
		}
		if ctx.Err() == nil && !r.failing {
			r.failing = true
			s.log.Warn("cannot write this replica's heartbeat; unless nobody can write, it will stop serving at its stale limit",
				slog.Any("error", translate("write a heartbeat", err)))
		}
		return
	}
	r.failing, r.beaten, r.covered, r.told, r.countedTold = false, now, now, r.policy, counted
	if sweep {
		r.swept = now
	}
}

// unregister removes the row of a replica that serves no more. Without it the row ends by itself.
func (s *Store) unregister() {
	ctx, cancel := context.WithTimeout(context.Background(), unregisterWithin)
	defer cancel()
	_, _ = s.changes.ExecContext(ctx, `DELETE FROM replicas WHERE id = $1`, s.replica.id)
}

// replicaRow is one replica that counts, beside the revision and the time of its snapshot.
type replicaRow struct {
	N               int64          `db:"n"`
	Now             time.Time      `db:"now"`
	ID              sql.NullString `db:"id"`
	Name            sql.NullString `db:"name"`
	StartedAt       sql.NullTime   `db:"started_at"`
	HeartbeatAt     sql.NullTime   `db:"heartbeat_at"`
	AppliedRevision sql.NullInt64  `db:"applied_revision"`
	StaleMaxMS      sql.NullInt64  `db:"stale_max_ms"`
	PolicyRevision  sql.NullString `db:"policy_revision"`
	CountedRevision sql.NullInt64  `db:"counted_revision"`
	Current         sql.NullBool   `db:"current"`
}

func (r *replicaRow) staleMax() time.Duration {
	return time.Duration(r.StaleMaxMS.Int64) * time.Millisecond
}

// servesUntil bounds how long the replica may serve what it knows: while anyone can
// write, no poll extends that beyond what this heartbeat covers.
func (r *replicaRow) servesUntil() time.Time {
	return utc(r.HeartbeatAt).Add(r.staleMax() + heartbeatGrace)
}

func (s *Store) countingReplicas(ctx context.Context) ([]replicaRow, error) {
	var rows []replicaRow
	err := s.brief.SelectContext(ctx, &rows, `
		SELECT v.n, clock_timestamp() AS now, x.* FROM revision v LEFT JOIN (
			-- A revision counts as applied when it is the one of this database: after a restore
			-- the same number may have been another's.
			SELECT p.id, p.name, p.started_at, p.heartbeat_at, p.stale_max_ms, p.applied_revision, p.policy_revision, p.counted_revision,
				COALESCE(m.mark = p.applied_mark, p.applied_mark IS NULL) AS current
			FROM replicas p LEFT JOIN revision_marks m ON m.n = p.applied_revision WHERE `+counting+`
		) x ON true ORDER BY x.started_at, x.id`, heartbeatGrace.Milliseconds())
	return rows, translate("read the replicas", err)
}

// Replicas implements manage.Store.
func (s *Store) Replicas(ctx context.Context) ([]manage.Replica, int64, error) {
	rows, err := s.countingReplicas(ctx)
	if err != nil || len(rows) == 0 {
		return nil, 0, err
	}
	out := make([]manage.Replica, 0, len(rows))
	for i := range rows {
		r := &rows[i]
		if !r.ID.Valid {
			continue
		}
		heartbeat := utc(r.HeartbeatAt)
		out = append(out, manage.Replica{
			ID: r.ID.String, Name: r.Name.String, StartedAt: utc(r.StartedAt), HeartbeatAt: heartbeat,
			AppliedRevision: r.AppliedRevision.Int64, Live: r.Now.Sub(heartbeat) < liveFor,
			ServesUntil: r.servesUntil(), PolicyRevision: r.PolicyRevision.String,
		})
	}
	return out, rows[0].N, nil
}

// Effective implements manage.Store. A replica is silent by its id.
func (s *Store) Effective(ctx context.Context, revision int64) (manage.Effective, error) {
	return s.awaitReplicas(ctx, effectiveWithin, func(r *replicaRow) bool { return r.Current.Bool && r.AppliedRevision.Int64 >= revision })
}

// Counted implements manage.Store. A replica is silent by its id.
func (s *Store) Counted(ctx context.Context, revision int64) (manage.Effective, error) {
	// This replica need not wait for its next turn. What it cannot write now waits, and is told.
	if s.Synchronize(ctx) == nil {
		_ = s.flushUsage(ctx)
	}
	return s.awaitReplicas(ctx, countedWithin, func(r *replicaRow) bool { return r.Current.Bool && r.CountedRevision.Int64 >= revision })
}

// awaitReplicas waits until all that may still serve have done something, so long at most:
// also those, this one among them, of whom the table does not tell.
func (s *Store) awaitReplicas(ctx context.Context, within time.Duration, done func(*replicaRow) bool) (manage.Effective, error) {
	s.wakeUp() // this replica need not wait for its own notification
	ctx, cancel := context.WithTimeout(ctx, within+listenReadDeadline)
	defer cancel()
	started := time.Now()
	tick := time.NewTicker(effectivePoll)
	defer tick.Stop()
	var e manage.Effective
	for read := false; ; read = true {
		rows, err := s.countingReplicas(ctx)
		switch {
		case err != nil && read:
			e.Within = time.Since(started)
			return e, nil // who was silent then is named
		case err != nil:
			return manage.Effective{}, err
		case len(rows) == 0:
			return manage.Effective{}, errNoRevision
		}
		e = s.acknowledged(rows, done)
		if e.Within = time.Since(started); len(e.Silent) == 0 || e.Within >= within {
			return e, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return e, nil // what is known is more than nothing
		}
	}
}

// acknowledged is the receipt as of these rows. This replica has done nothing before its
// row says so, for until then it may not have noticed that the database was put back.
func (s *Store) acknowledged(rows []replicaRow, done func(*replicaRow) bool) (e manage.Effective) {
	told := make([]string, 0, len(rows))
	for i := range rows {
		r := &rows[i]
		if !r.ID.Valid {
			continue
		}
		told = append(told, r.ID.String)
		if done(r) {
			e.Acknowledged++
		} else {
			e.Silent = append(e.Silent, manage.SilentReplica{Replica: r.ID.String, ServesUntil: r.servesUntil()})
		}
	}
	missing, serve := s.peers.missing(told, s.clock.elapsed())
	if !slices.Contains(told, s.replica.id) && !slices.Contains(missing, s.replica.id) {
		missing, serve = append(missing, s.replica.id), max(serve, s.staleMax+heartbeatGrace)
	}
	for _, id := range missing {
		e.Silent = append(e.Silent, manage.SilentReplica{Replica: id, ServesUntil: rows[0].Now.Add(serve).UTC()})
	}
	e.Replicas = e.Acknowledged + len(e.Silent)
	return e
}
