package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
)

const (
	// pollInterval is the backstop behind NOTIFY: a lost notification costs no more.
	pollInterval = 500 * time.Millisecond
	// degradedAfter without a successful poll, answers say that the store is away.
	degradedAfter = 2 * time.Second
	// staleAfter without a successful poll, policy sees stale records.
	staleAfter = 10 * time.Second
	// reconnect bounds are those of the listener.
	reconnectMin = 100 * time.Millisecond
	reconnectMax = time.Second
)

// changesSQL tells the revision, Postgres' time and everything that changed after
// revision $1, all of one snapshot. Revision order is commit order, so nothing
// after the revision it tells can appear later with a smaller one.
const changesSQL = `
SELECT r.n, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us, x.kind, x.digest, x.organization_id
FROM revision r LEFT JOIN (
	SELECT 'digest' AS kind, s.digest, NULL::uuid AS organization_id
	FROM api_keys k JOIN key_secrets s ON s.key_id = k.id WHERE k.revision > $1
	UNION ALL
	SELECT 'digest', digest, NULL FROM retired_digests WHERE revision > $1
	UNION ALL
	SELECT 'everything', NULL, NULL FROM settings
	WHERE CASE WHEN name = 'retired_pruned' THEN value::bigint > $1 ELSE false END
	UNION ALL
	SELECT 'organization', NULL, id FROM organizations WHERE revision > $1
	UNION ALL
	SELECT 'callers', NULL, NULL WHERE EXISTS (SELECT FROM callers WHERE revision > $1)
	UNION ALL
	SELECT 'formats', NULL, NULL WHERE EXISTS (SELECT FROM foreign_formats WHERE revision > $1)
	LIMIT $2
) x ON true`

// maxChanges bounds what one synchronization reads; when more has changed,
// everything in memory is forgotten instead.
const maxChanges = 10_000

type changeRow struct {
	N              int64                `db:"n"`
	NowUS          int64                `db:"now_us"`
	Kind           *string              `db:"kind"`
	Digest         []byte               `db:"digest"`
	OrganizationID authz.OrganizationID `db:"organization_id"`
}

// follow keeps the caches true until ctx ends: whatever wakes it, it reads what
// changed since the last time, by revision. A notification only makes it sooner.
func (s *Store) follow(ctx context.Context) {
	listener := pq.NewDialListener(deadlineDialer{listenReadDeadline}, s.url.dsn(false), reconnectMin, reconnectMax, nil)
	pinging := make(chan struct{}, 1)
	defer func() {
		// Close waits for a ping that is under way, and that for its answer behind
		// notifications: someone must take them. The channel ends with the listener.
		taken := make(chan struct{})
		go func() {
			defer close(taken)
			for range listener.NotificationChannel() {
			}
		}()
		_ = listener.Close()
		<-taken
		pinging <- struct{}{} // waits for the last ping
	}()
	// Listen waits for the first connection, which may be long in coming. Its error
	// is a closed listener or a refusal, and polling goes on in either case.
	listening := make(chan error, 1)
	go func() { listening <- listener.Listen(notifyChannel) }()

	ping := time.NewTicker(listenPing)
	defer ping.Stop()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-listening:
			if err != nil {
				s.log.Warn("cannot listen for changes; polling alone", slog.Any("error", translate("listen", err)))
			}
			listening = nil
			continue
		case <-ping.C:
			// A ping on a wedged backend blocks until the read deadline: not here.
			select {
			case pinging <- struct{}{}:
				go func() { _ = listener.Ping(); <-pinging }()
			default:
			}
			continue
		case <-poll.C:
		case <-s.wake:
		case <-listener.NotificationChannel():
			// Also nil, which means reconnected: what was missed is read by revision.
			// One reading is enough for all that have come meanwhile.
			for more := true; more; {
				select {
				case _, more = <-listener.NotificationChannel():
				default:
					more = false
				}
			}
		}
		if err := s.Synchronize(ctx); err != nil && ctx.Err() == nil {
			s.warnLost(err)
		}
	}
}

// Synchronize reads and applies what has changed since the last time. When it
// returns nil, everything committed before the call is applied. Safe for
// concurrent use; calls wait for each other.
func (s *Store) Synchronize(ctx context.Context) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if s.mustBeat() {
		s.beat(ctx)
	}
	// Of heartbeats before the poll alone: what is committed between a poll and a later
	// one could have a receipt that overlooks this replica.
	covered := s.coveredUntil()
	applied := s.applied.Load()
	since := applied
	if since == 0 {
		since = math.MaxInt64 // nothing is in memory yet that could have changed
	}
	var rows []changeRow
	before := s.clock.elapsed()
	if err := s.readChanges(ctx, &rows, since); err != nil {
		return err
	}
	after := s.clock.elapsed()
	if len(rows) == 0 {
		return errors.New("read what has changed: the revision's row is missing")
	}
	n := rows[0].N
	if n < applied {
		// An old copy was restored. What this replica knows is newer, and what it
		// does not know cannot be trusted: it keeps what it has, confirms nothing.
		return fmt.Errorf("the database is at revision %d, behind this replica's %d: an old copy was restored", n, applied)
	}
	if err := s.apply(ctx, applied, rows); err != nil {
		return err
	}
	s.clock.learn(time.UnixMicro(rows[0].NowUS), before, after)
	s.applied.Store(n)
	s.contact.Store(int64(min(before, covered))) // what was read is as old as the question
	if s.lost.Swap(false) {
		s.log.Warn("Postgres answers again")
	}
	if n > applied || s.clock.elapsed()-s.replica.beaten > pollInterval/2 {
		s.beat(ctx)
	}
	if covered < before && before <= s.coveredUntil() {
		s.wakeUp() // now that the heartbeat is written, the next poll counts
	}
	return nil
}

// wakeUp makes the follower synchronize at once.
func (s *Store) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Store) readChanges(ctx context.Context, rows *[]changeRow, since int64) error {
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	return translate("read what has changed", s.changes.SelectContext(ctx, rows, changesSQL, since, maxChanges))
}

func (s *Store) apply(ctx context.Context, applied int64, rows []changeRow) error {
	ch := changes{to: rows[0].N}
	callers, formats, everything := applied == 0, applied == 0, len(rows) >= maxChanges
	for i := range rows {
		switch r := &rows[i]; {
		case r.Kind == nil:
		case *r.Kind == "digest":
			ch.digests = append(ch.digests, authz.Digest(r.Digest))
		case *r.Kind == "organization":
			ch.organizations = append(ch.organizations, r.OrganizationID)
		case *r.Kind == "callers":
			callers = true
		case *r.Kind == "formats":
			formats = true
		case *r.Kind == "everything":
			everything = true
		}
	}
	if everything {
		s.keys.forget(ch.to)
		callers, formats = true, true
	} else {
		s.keys.apply(ch)
	}
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	if formats {
		list, err := readFormats(ctx, s.changes)
		if err != nil {
			return err
		}
		s.formats.Store(list)
	}
	if callers {
		table, err := readCallers(ctx, s.changes)
		if err != nil {
			return err
		}
		s.callers.Store(&table)
	}
	return nil
}

// warnLost tells once that contact is lost: a single slow answer is not worth a line.
func (s *Store) warnLost(err error) {
	if degraded, _, _ := s.freshness(); degraded && s.lost.CompareAndSwap(false, true) {
		s.log.Warn("Postgres does not answer; known keys are served from memory",
			slog.Any("error", err), slog.Duration("stale_max", s.staleMax))
	}
}

// freshness tells how far what is in memory may be trusted.
func (s *Store) freshness() (degraded, stale bool, err error) {
	contact := s.contact.Load()
	if contact < 0 {
		return true, true, errNoContact
	}
	age := s.clock.elapsed() - time.Duration(contact)
	switch {
	case age <= degradedAfter:
		return false, false, nil
	case age > s.staleMax:
		return true, true, errNoContact
	}
	return true, age > staleAfter, nil
}
