package store

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

// When secrets were last used stands in a table of its own: a key's row must not
// change, and wake every replica, because the key was used.
const (
	// useEvery is how exact the last use is: a secret is noted once in that time.
	useEvery = 10 * time.Second
	// maxPendingUses bounds what waits while Postgres does not answer, and
	// maxUsesAtOnce one statement.
	maxPendingUses = 100_000
	maxUsesAtOnce  = 5_000
)

var _ authz.UseRecorder = (*Store)(nil)

// use is the last use of a secret.
type use struct {
	key authz.KeyID
	at  time.Time
}

// uses holds what is to be written. Safe for concurrent use.
type uses struct {
	mu      sync.Mutex
	pending map[authz.SecretID]use
	dropped atomic.Int64
}

func newUses() *uses { return &uses{pending: make(map[authz.SecretID]use)} }

// Used implements authz.UseRecorder: an atomic load, but for the first use in ten
// seconds.
func (s *Store) Used(k *authz.Key, secret *authz.KeySecret, at time.Time) {
	slot := at.Unix() / int64(useEvery/time.Second)
	if secret.Seen.Load() == slot || secret.Seen.Swap(slot) == slot {
		return
	}
	s.uses.add(secret.ID, use{k.ID, at})
}

func (u *uses) add(id authz.SecretID, what use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	earlier, known := u.pending[id]
	switch {
	case known && !earlier.at.Before(what.at):
	case !known && len(u.pending) >= maxPendingUses:
		u.dropped.Add(1)
	default:
		u.pending[id] = what
	}
}

// take returns some of what is pending, and holds it no more.
func (u *uses) take() map[authz.SecretID]use {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.pending) <= maxUsesAtOnce {
		all := u.pending
		u.pending = make(map[authz.SecretID]use)
		return all
	}
	some := make(map[authz.SecretID]use, maxUsesAtOnce)
	for id, what := range u.pending {
		if len(some) == maxUsesAtOnce {
			break
		}
		some[id] = what
		delete(u.pending, id)
	}
	return some
}

// recordUses writes until ctx ends, and what is left then.
func (s *Store) recordUses(ctx context.Context) {
	record(ctx, flushEvery, s.flushUses, func(err error) {
		s.log.Warn("the last uses of keys cannot be written; they wait", slog.Any("error", err))
	}, func(ctx context.Context) {
		flushLast(ctx, lastFlushLimit, s.flushUses, func(err error) {
			s.log.Warn("the last uses of some keys could not be written", slog.Any("error", err))
		})
	})
}

// flushUses writes what is pending. What cannot be written comes back.
func (s *Store) flushUses(ctx context.Context) error {
	for batch := s.uses.take(); len(batch) > 0; batch = s.uses.take() {
		if err := s.writeUses(ctx, batch); err != nil {
			for id, what := range batch {
				s.uses.add(id, what)
			}
			return err
		}
	}
	return nil
}

func (s *Store) writeUses(ctx context.Context, batch map[authz.SecretID]use) error {
	type record struct {
		Secret any       `json:"secret"`
		Key    any       `json:"key"`
		At     time.Time `json:"at"`
	}
	records := make([]record, 0, len(batch))
	for id, what := range batch {
		records = append(records, record{uuid(id), uuid(what.key), what.at})
	}
	text, err := json.Marshal(records)
	if err != nil {
		return translate("write the last uses", err)
	}
	// In the order of their ids, so that replicas do not wait for each other in a circle.
	_, err = s.manage.ExecContext(ctx, `
		INSERT INTO secret_uses (secret_id, key_id, used_at)
		SELECT secret, key, at FROM json_to_recordset($1::json) AS r(secret uuid, key uuid, at timestamptz) ORDER BY secret
		ON CONFLICT (secret_id) DO UPDATE SET used_at = GREATEST(secret_uses.used_at, excluded.used_at)`, string(text))
	return translate("write the last uses", err)
}
