package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/supportstation/keystile/authz"
)

// Secrets move to the first pepper as they are used: with a hash in hand, the digest
// under it can be made. A moved secret's old digest is retired under the revision of
// the move, so that every replica forgets it: a record that stayed under it would not
// be found by a later revocation.

const (
	// maxPendingMoves bounds the queue; what finds no place comes back with its next use.
	maxPendingMoves = 8192
	// maxMovesAtOnce bounds one transaction, moveEvery how often there is one.
	maxMovesAtOnce = 500
	moveEvery      = time.Second
	// retiredFor is how long replicas can learn of a retired digest; who comes later
	// forgets everything.
	retiredFor = 24 * time.Hour
	// pruneEvery and maxPruned bound the clearing away of retired digests.
	pruneEvery = time.Hour
	maxPruned  = 10_000
)

// moves are the statements by which the secrets of one kind change their digest: $1 is
// records of old and new, $2 the revision, $3 the first pepper, $4 the time.
type moves struct{ query string }

const movedSQL = `
WITH moved AS (
	UPDATE %[1]s s SET digest = decode(r.new, 'hex'), pepper_id = $3::text
	FROM json_to_recordset($1::json) AS r(old text, new text)
	WHERE s.digest = decode(r.old, 'hex') AND NOT EXISTS (SELECT FROM %[1]s WHERE digest = decode(r.new, 'hex'))
	RETURNING s.%[2]s AS owner, decode(r.old, 'hex') AS old
), touched AS (
	UPDATE %[3]s SET revision = $2::bigint WHERE id IN (SELECT owner FROM moved)
), retired AS (
	INSERT INTO retired_digests (digest, revision, at) SELECT old, $2::bigint, $4::timestamptz FROM moved
	ON CONFLICT (digest) DO UPDATE SET revision = excluded.revision, at = excluded.at
)
SELECT count(*) FROM moved`

//nolint:gochecknoglobals // constants, were there constant structs
var (
	keySecretMoves   = &moves{fmt.Sprintf(movedSQL, "key_secrets", "key_id", "api_keys")}
	callerTokenMoves = &moves{fmt.Sprintf(movedSQL, "caller_tokens", "caller_id", "callers")}
	adminTokenMoves  = &moves{fmt.Sprintf(movedSQL, "admin_tokens", "admin_id", "admins")}
)

// move is where a digest goes.
type move struct {
	kind *moves
	to   authz.Digest
}

// rehashQueue holds what waits to be moved, by old digest. Safe for concurrent use.
type rehashQueue struct {
	mu      sync.Mutex
	pending map[authz.Digest]move
	// filled has a value when something may be pending.
	filled chan struct{}
}

func newRehashQueue() *rehashQueue {
	return &rehashQueue{pending: make(map[authz.Digest]move), filled: make(chan struct{}, 1)}
}

// add queues a move, unless someone else is at the queue: a check never waits.
func (q *rehashQueue) add(old authz.Digest, m move) {
	if !q.mu.TryLock() {
		return
	}
	defer q.mu.Unlock()
	if _, ok := q.pending[old]; ok || len(q.pending) >= maxPendingMoves {
		return
	}
	q.pending[old] = m
	q.signal()
}

func (q *rehashQueue) signal() {
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// batch returns some of what is pending, which stays so until it is done.
func (q *rehashQueue) batch() map[authz.Digest]move {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch, to := make(map[authz.Digest]move), make(map[authz.Digest]bool)
	for old, m := range q.pending {
		if len(batch) == maxMovesAtOnce {
			break
		}
		if !to[m.to] { // two rows cannot have one digest
			batch[old], to[m.to] = m, true
		}
	}
	return batch
}

// done takes a batch out, and tells the worker when there is more.
func (q *rehashQueue) done(batch map[authz.Digest]move) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for old := range batch {
		delete(q.pending, old)
	}
	if len(q.pending) > 0 {
		q.signal()
	}
}

// errNothingMoved takes a change back that would only wake everyone.
var errNothingMoved = errors.New("nothing has moved")

// rehashSecrets moves what is queued until ctx ends.
func (s *Store) rehashSecrets(ctx context.Context) {
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	waiting := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-prune.C:
			s.pruneRetired(ctx)
			continue
		case <-s.rehash.filled:
		}
		pause := time.NewTimer(moveEvery)
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		batch := s.rehash.batch()
		everywhere, err := s.firstPepperEverywhere(ctx, s.manage)
		switch {
		case err == nil && !everywhere:
			if !waiting {
				waiting = true
				s.log.Info("secrets move to the first pepper when it is the first of every replica",
					slog.String("pepper", s.peppers.IDs()[0]))
			}
			s.rehash.signal()
			continue
		case err == nil:
			err = s.moveBatch(ctx, batch)
		}
		waiting = false
		if err != nil && ctx.Err() == nil {
			s.log.Warn("secrets could not be moved to the first pepper; those in use are tried again", slog.Any("error", err))
		}
		s.rehash.done(batch)
	}
}

// firstPepperEverywhere tells whether every replica that may serve, this one among
// them, has our first pepper as its first. Else secrets would go to and fro, or be
// unknown to a replica that lacks it.
func (s *Store) firstPepperEverywhere(ctx context.Context, db rowQueryer) (everywhere bool, err error) {
	err = db.QueryRowContext(ctx, `
		SELECT COALESCE(bool_and(pepper_ids[1] = $2) AND bool_or(id = $3), false) FROM replicas WHERE `+counting,
		heartbeatGrace.Milliseconds(), s.peppers.IDs()[0], s.replica.id).Scan(&everywhere)
	return everywhere, translate("read the replicas' peppers", err)
}

func (s *Store) moveBatch(ctx context.Context, batch map[authz.Digest]move) error {
	type record struct {
		Old string `json:"old"`
		New string `json:"new"`
	}
	records := make(map[*moves][]record)
	for old, m := range batch {
		records[m.kind] = append(records[m.kind], record{hex.EncodeToString(old[:]), hex.EncodeToString(m.to[:])})
	}
	_, err := s.Change(ctx, func(ctx context.Context, c *Change) error {
		if ok, err := s.firstPepperEverywhere(ctx, c.tx); err != nil || !ok {
			return errors.Join(err, errNothingMoved)
		}
		pepperID, err := c.register(ctx)
		if err != nil {
			return err
		}
		total := 0
		for kind, list := range records {
			text, err := json.Marshal(list)
			if err != nil {
				return fmt.Errorf("move secrets: %w", err)
			}
			var n int
			if err := c.tx.GetContext(ctx, &n, kind.query, string(text), c.revision, pepperID, c.now); err != nil {
				return translate("move secrets", err)
			}
			total += n
		}
		if total == 0 {
			return errNothingMoved
		}
		return nil
	})
	if errors.Is(err, errNothingMoved) {
		return nil
	}
	if err != nil {
		return err
	}
	// Until it is applied here, checks would queue the same again.
	return s.Synchronize(ctx)
}

// pruneRetired clears away digests that every replica has had a day to forget, and
// notes up to which revision it did, for those that had not.
func (s *Store) pruneRetired(ctx context.Context) {
	for range maxPruned {
		result, err := s.manage.ExecContext(ctx, `
			WITH gone AS (
				DELETE FROM retired_digests WHERE digest = ANY (ARRAY(
					SELECT digest FROM retired_digests WHERE at < now() - make_interval(secs => $1) ORDER BY revision LIMIT $2))
				RETURNING revision
			)
			INSERT INTO settings (name, value) SELECT 'retired_pruned', max(revision)::text FROM gone HAVING count(*) > 0
			ON CONFLICT (name) DO UPDATE SET value = GREATEST(settings.value::bigint, excluded.value::bigint)::text`,
			retiredFor.Seconds(), maxPruned)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("retired digests could not be cleared away", slog.Any("error", translate("prune", err)))
			}
			return
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return
		}
	}
}

// rowQueryer is a pool or a transaction.
type rowQueryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}
