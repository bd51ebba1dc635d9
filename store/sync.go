package store

import (
	"context"
	"fmt"
	"log/slog"
	"time"
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
	// shadowDeadline is how long is waited for what nothing is decided by.
	shadowDeadline = 2 * time.Second
)

// follow keeps the memory true until ctx ends: whatever wakes it, it reads what
// changed since the last time, by revision. A notification only makes it sooner.
func (s *Store) follow(ctx context.Context) {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		case <-s.wake:
		}
		// One reading is enough for all that have come meanwhile.
		select {
		case <-s.wake:
		default:
		}
		select {
		case <-poll.C:
		default:
		}
		err := s.Synchronize(ctx)
		if err != nil && ctx.Err() == nil {
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
	if err := s.admitOnce(ctx); err != nil {
		return err
	}
	if s.mustBeat() {
		s.beat(ctx)
	}
	// Of heartbeats before the poll alone: what is committed between a poll and a later
	// one could have a receipt that overlooks this replica.
	covered := s.coveredUntil()
	applied := s.applied.Load()
	before := s.clock.elapsed()
	set, err := s.source.changes(ctx, applied)
	if err != nil {
		return err
	}
	s.clock.learn(set.now, before, s.clock.elapsed())
	if applied != 0 && set.markThen != s.appliedMark {
		if set, err = s.takePutBack(ctx, applied, set); err != nil {
			return err
		}
	} else if err := s.apply(ctx, applied, set); err != nil {
		return err
	}
	s.applied.Store(set.n)
	s.appliedMark = set.mark
	s.tellForgotten()
	s.peers.see(set.counting, s.clock.elapsed())
	s.countLive(set.live)
	s.contact.Store(int64(min(before, covered))) // what was read is as old as the question
	if s.lost.Swap(false) {
		s.log.Warn("Postgres answers again")
	}
	if set.n > applied || s.replica.policy != s.replica.told || s.countedRevision.Load() > s.replica.countedTold || s.clock.elapsed()-s.replica.beaten > pollInterval/2 {
		s.beat(ctx)
	}
	if covered < before && before <= s.coveredUntil() {
		s.wakeUp() // now that the heartbeat is written, the next poll counts
	}
	return nil
}

// takePutBack takes a database that was put back to an earlier state (an old copy
// restored, a failover to a standby that lagged) for what it is: what this replica has
// learned stays in force, and what has changed in the database applies. Its revision is
// first raised above ours, so that no number means two things from then on.
func (s *Store) takePutBack(ctx context.Context, applied int64, was *changeSet) (*changeSet, error) {
	newest, _ := s.keys.knows()
	if err := s.source.raise(ctx, max(applied, newest)); err != nil {
		return nil, fmt.Errorf("the database was put back to an earlier state, and its revision cannot be raised: %w", err)
	}
	set, err := s.source.changes(ctx, 0)
	if err != nil {
		return nil, err
	}
	if err := s.learnAdmins(ctx, 0); err != nil {
		return nil, err
	}
	behind := s.missed.drop() // what it has not learned by now is not there any more
	revocations, complete := s.keys.putBack(set.n)
	s.putBack.Add(1)
	s.doubtReplicas()
	s.log.Error("the database was put back to an earlier state; what this replica has seen revoked stays revoked. "+
		"Run keystile doctor with the exported audit log to find what the database lacks",
		slog.Int64("revision", was.n), slog.Int64("applied", applied), slog.Int("revocations", revocations),
		slog.Bool("all_remembered", complete && !behind))
	return set, s.readTables(ctx, tables{true, true, true, true})
}

// forgotten counts what was learned and found no room any more.
func (s *Store) forgotten() int64 {
	_, ofKeys := s.keys.knows()
	return ofKeys + s.admins.forgotten()
}

// tellForgotten tells once that not everything that was learned is remembered.
func (s *Store) tellForgotten() {
	if n := s.forgotten(); n > 0 && !s.forgottenTold {
		s.forgottenTold = true
		s.log.Warn("more has changed than there is room to remember, and the oldest is forgotten: should the database be put back to an "+
			"earlier state, this replica would not know it any more; run keystile doctor with the exported audit log then",
			slog.Int64("forgotten", n))
	}
}

// doubtReplicas notes that the table lacks replicas that serve, for as long as they may.
func (s *Store) doubtReplicas() {
	now := s.clock.elapsed()
	s.replica.unsure = now + 2*liveFor
	s.peers.doubt(now + s.staleMax + heartbeatGrace)
}

// countLive notes how many replicas there are. While heartbeats fail, or have only just
// come back, fewer are seen than there are, and each would take too large a share.
func (s *Store) countLive(seen int64) {
	r, now := &s.replica, s.clock.elapsed()
	if r.failing || now-r.beaten > liveFor {
		r.unsure = now + 2*liveFor
	}
	if now < r.unsure {
		seen = max(seen, s.live.Load())
	}
	s.live.Store(seen)
}

// wakeUp makes the follower synchronize at once.
func (s *Store) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// apply applies what has changed after revision applied.
func (s *Store) apply(ctx context.Context, applied int64, set *changeSet) error {
	if !set.everything {
		s.keys.apply(set)
		first := applied == 0
		if first || set.admins {
			if err := s.learnAdmins(ctx, applied); err != nil {
				return err
			}
		}
		return s.readTables(ctx, tables{first || set.callers, first || set.formats, first || set.policy, first || set.shadow})
	}
	// First of all nothing older is served. What it was, which may be very much, is learned behind that.
	s.keys.forget(set.n, set.organizations)
	s.missed.note(applied)
	if err := s.learnAdmins(ctx, applied); err != nil {
		return err
	}
	return s.readTables(ctx, tables{true, true, true, true})
}

// tables are those that every replica holds whole.
type tables struct{ callers, formats, policy, shadow bool }

// readTables reads those of them that have changed.
func (s *Store) readTables(ctx context.Context, changed tables) error {
	s.policyDue, s.shadowDue = s.policyDue || changed.policy, s.shadowDue || changed.shadow
	if s.policyDue {
		if err := s.readPolicy(ctx); err != nil {
			return err
		}
	}
	if changed.formats {
		list, err := s.source.formats(ctx)
		if err != nil {
			return err
		}
		s.formats.Store(list)
	}
	if changed.callers {
		table, err := s.source.callers(ctx)
		if err != nil {
			return err
		}
		table.mergeOlder(s.callers.Load())
		s.callers.Store(&table)
	}
	if s.shadowDue {
		s.readShadow(ctx)
	}
	return nil
}

// readPolicy returns an error of a Postgres that is away alone: a policy that cannot be read must
// not keep everything else from being applied. It waits for the next poll, for nothing else tells
// of it again; until then the replica is degraded.
func (s *Store) readPolicy(ctx context.Context) error {
	p, err := s.source.policy(ctx)
	switch {
	case isAway(err):
		return err
	case err != nil:
		if !s.policyUnread.Swap(true) {
			s.log.Error("the policy that was activated cannot be read yet; what is in force stays", slog.Any("error", err))
		}
	default:
		s.policyDue = false
		s.learnPolicy(p)
		s.policyUnread.Store(false)
	}
	return nil
}

// readShadow comes last, and what it cannot read waits for the next poll: nothing is decided by
// it, and it must not keep anything else from being applied.
func (s *Store) readShadow(ctx context.Context) {
	reading, cancel := context.WithTimeout(ctx, shadowDeadline)
	defer cancel()
	shadow, err := s.source.shadow(reading)
	if err != nil {
		if ctx.Err() == nil && !s.shadowUnread {
			s.shadowUnread = true
			s.log.Error("which policy is to be asked beside the one in force cannot be read yet; what is known of it stays", slog.Any("error", err))
		}
		return
	}
	s.shadowDue, s.shadowUnread = false, false
	s.learnShadow(shadow)
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
