package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
)

// The bounds that tests know.
const (
	HeartbeatGrace    = heartbeatGrace
	MaxWriting        = maxWriting
	MaxWaitingChanges = maxWaitingChanges

	MaxChanges = maxChanges

	MaxUnmatchedShapes = maxUnmatchedShapes
	UnmatchedKept      = unmatchedKept
	MaxKeyNetworks     = maxKeyNetworks
	MaxDecisionsOfOne  = maxDecisionsOfOne
)

// WaitingChanges is how many changes wait for their turn.
func (s *Store) WaitingChanges() int { return int(s.waiting.Load()) }

// StopFollowing makes a replica fall silent: it hears of no change until Synchronize.
func (s *Store) StopFollowing() {
	s.stop()
	s.followed.Wait()
}

// LearnMissed learns all that is to be learned behind synchronizations.
func (s *Store) LearnMissed(ctx context.Context) error {
	for {
		if more, err := s.learnPage(ctx); err != nil || !more {
			return err
		}
	}
}

// PruneRetired clears away old retired digests now.
func (s *Store) PruneRetired(ctx context.Context) { s.pruneRetired(ctx) }

// ReplicaID is the id under which it counts.
func (s *Store) ReplicaID() string { return s.replica.id }

// ForgetDigest drops what is in memory of one digest.
func (s *Store) ForgetDigest(d authz.Digest) {
	s.keys.known.Invalidate(d)
	s.keys.unknown.Invalidate(d)
}

// LookUpDigest reads one digest alone.
func (s *Store) LookUpDigest(ctx context.Context, d authz.Digest) error {
	_, err := s.lookups.find(ctx, authz.CallerID{}, []authz.Digest{d})
	return err
}

// AgeHeartbeat makes the last heartbeat older.
func (s *Store) AgeHeartbeat(by time.Duration) {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.replica.beaten -= by
	s.replica.covered -= by
}

// Conclusive tells whether digests that are unknown as of these revisions are unknown.
func Conclusive(asOf ...int64) bool {
	entries := make([]*cachedKey, len(asOf))
	for i, n := range asOf {
		entries[i] = &cachedKey{asOf: n}
	}
	return conclusive(entries)
}

// MigrateDown takes every migration back but the first.
func MigrateDown(ctx context.Context, at DatabaseURL) error {
	db, err := at.pool(1, manageReadDeadline, false, nil)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	provider, err := migrationProvider(db)
	if err != nil {
		return err
	}
	_, err = provider.DownTo(ctx, 1)
	return err
}

// FlushUsage writes what was counted.
func (s *Store) FlushUsage(ctx context.Context) error { return s.flushUsage(ctx) }

// RollUp adds days up, of so many keys at a time.
func (s *Store) RollUp(ctx context.Context, now time.Time, keysAtOnce int) error {
	_, err := s.rollUp(ctx, now, keysAtOnce)
	return err
}

// RollUpDay adds one day up, with something to do before it is done.
func (s *Store) RollUpDay(ctx context.Context, day time.Time, before func()) error {
	return s.tending(ctx, func(tx *sqlx.Tx) error {
		err := rollUpDay(ctx, tx, day.Format(time.DateOnly), 10)
		before()
		return err
	})
}

// TendUsage looks after what is kept of usage.
func (s *Store) TendUsage(ctx context.Context) error { return s.tendUsage(ctx) }

// WriteUsageTwice writes what was counted as if the first answer had been lost.
func (s *Store) WriteUsageTwice(ctx context.Context) error {
	for _, batch := range batchesOf(s.usage.take(0)) {
		for range 2 {
			if err := s.writeUsage(ctx, batch); err != nil {
				return err
			}
		}
	}
	return nil
}

// FlushDecisions writes the decisions that are to be kept.
func (s *Store) FlushDecisions(ctx context.Context) error { return s.flushDecisions(ctx) }

// ExpireDecisions deletes decisions that are too old.
func (s *Store) ExpireDecisions(ctx context.Context) error { return s.expireDecisions(ctx) }

// SetDecisionBudget sets how many decisions may be written.
func (s *Store) SetDecisionBudget(n int) {
	s.decisions.budget = float64(n)
	s.decisions.earned = time.Time{}
}
