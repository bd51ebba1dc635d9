// Package store keeps organizations, keys and callers in Postgres, and the records
// that checks need in memory. Freshness is by revision, and revision order is
// commit order: see change.go and sync.go.
package store

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
)

// DefaultStaleMax is how long known keys are served while Postgres is unreachable.
const DefaultStaleMax = 5 * time.Minute

// DefaultLookupBudget is how long a check waits for a key that is not in memory.
const DefaultLookupBudget = 100 * time.Millisecond

// Options are what Open needs.
type Options struct {
	URL     DatabaseURL
	Peppers authz.Peppers
	// StaleMax bounds how long known keys are served while Postgres is unreachable;
	// 0 means DefaultStaleMax.
	StaleMax time.Duration
	// LookupBudget bounds how long a check waits for a key that is not in memory, and
	// each read of a look-up; 0 means DefaultLookupBudget.
	LookupBudget time.Duration
	// Deployment must equal what the database is marked as; "" is an ordinary one.
	Deployment string
	// Logger gets what an operator should know; nil discards it. No secret is logged.
	Logger *slog.Logger
}

// Store is Postgres and what is remembered of it. Safe for concurrent use.
type Store struct {
	url      DatabaseURL
	peppers  authz.Peppers
	staleMax time.Duration
	log      *slog.Logger
	clock    *Clock

	// check, changes and manage are the three kinds of connection; LISTEN is of the second.
	check   *sqlx.DB
	changes *sqlx.DB
	manage  *sqlx.DB

	keys    *keyCache
	lookups *lookups
	callers atomic.Pointer[callerTable]
	formats atomic.Pointer[[]authz.ForeignFormat]
	rehash  *rehashQueue
	uses    *uses
	replica replica

	// applied is the revision up to which every change is applied.
	applied atomic.Int64
	// contact is when Postgres last confirmed that, as far as heartbeats cover it, on the
	// clock's elapsed time; negative is never.
	contact atomic.Int64
	lost    atomic.Bool
	syncing sync.Mutex
	// wake makes the follower synchronize at once.
	wake chan struct{}
	// writing holds a place for each change that has a connection, recognizing for each
	// look-up of an admin.
	writing, recognizing chan struct{}
	// waiting counts the changes that wait for a place.
	waiting atomic.Int64

	stop     context.CancelFunc
	followed sync.WaitGroup
	closing  sync.Once
}

var (
	_ authz.KeyReader    = (*Store)(nil)
	_ authz.CallerReader = (*Store)(nil)
	_ authz.Clock        = (*Clock)(nil)
)

// Open connects, refuses a database that this configuration does not fit
// (*SchemaError, *DeploymentError, *PepperError), reads the callers and starts to
// follow changes. Close it.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		url: o.URL, peppers: o.Peppers, staleMax: o.StaleMax, log: o.Logger, clock: NewClock(),
		rehash: newRehashQueue(), uses: newUses(), replica: newReplica(), wake: make(chan struct{}, 1), writing: make(chan struct{}, maxWriting), recognizing: make(chan struct{}, maxRecognizing),
	}
	if len(o.Peppers.IDs()) == 0 {
		return nil, authz.ErrNoPepper
	}
	if s.staleMax == 0 {
		s.staleMax = DefaultStaleMax
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.contact.Store(-1)
	if o.LookupBudget == 0 {
		o.LookupBudget = DefaultLookupBudget
	}
	if err := s.open(ctx, o.Deployment, o.LookupBudget); err != nil {
		if s.replica.beaten != never {
			s.unregister() // what never served must not be waited for
		}
		if s.keys != nil {
			s.keys.close()
		}
		return nil, errors.Join(err, s.closePools())
	}
	followCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.followed.Go(func() { s.follow(followCtx) })
	s.followed.Go(func() { s.rehashSecrets(followCtx) })
	s.followed.Go(func() { s.recordUses(followCtx) })
	return s, nil
}

func (s *Store) open(ctx context.Context, deploymentWanted string, budget time.Duration) (err error) {
	if s.check, err = s.url.pool(checkPoolSize, budget, true); err != nil {
		return err
	}
	if s.changes, err = s.url.pool(changesPoolSize, listenReadDeadline, true); err != nil {
		return err
	}
	if s.manage, err = s.url.pool(managePoolSize, manageReadDeadline, false); err != nil {
		return err
	}
	if s.keys, err = newKeyCache(); err != nil {
		return err
	}
	s.lookups = newLookups(s.check, s.keys, budget)
	if err := s.manage.PingContext(ctx); err != nil {
		return translate("connect to Postgres", err)
	}
	if err := checkSchema(ctx, s.manage); err != nil {
		return err
	}
	kind, err := deployment(ctx, s.manage)
	if err != nil {
		return err
	}
	if kind != deploymentWanted {
		return &DeploymentError{Database: kind, Configured: deploymentWanted}
	}
	if err := s.checkPeppers(ctx); err != nil {
		return err
	}
	return s.Synchronize(ctx)
}

// Close stops following changes, answers whoever still waits, and disconnects.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		s.stop()
		s.followed.Wait()
		s.unregister()
		s.lookups.close()
		s.keys.close()
		err = s.closePools()
	})
	return err
}

func (s *Store) closePools() error {
	var errs []error
	for _, db := range []*sqlx.DB{s.check, s.changes, s.manage} {
		if db != nil {
			errs = append(errs, translate("disconnect from Postgres", db.Close()))
		}
	}
	return errors.Join(errs...)
}

// Clock returns Postgres' clock.
func (s *Store) Clock() *Clock { return s.clock }

// FindKey implements authz.KeyReader: from memory when the digest is known there
// and confirmed recently enough, else by one coalesced statement.
func (s *Store) FindKey(ctx context.Context, _ authz.CallerID, hash authz.SecretHash) (authz.FoundKey, error) {
	var buffer [2]authz.Digest
	digests := s.peppers.AppendDigests(buffer[:0], hash)
	degraded, stale, lost := s.freshness()
	if lost != nil {
		return authz.FoundKey{}, authz.Unavailable("look up a key", lost)
	}
	applied := s.applied.Load() // before memory is read, which is at least as new
	unknown := !degraded        // "unknown" is not believed of a store that does not answer
	for i, d := range digests {
		e := s.keys.get(d)
		if e != nil && e.key != nil {
			return s.found(digests, i, e, degraded, stale), nil
		}
		// A secret may have moved from one digest to another between two revisions.
		unknown = unknown && e != nil && (e.asOf <= applied || len(digests) == 1)
	}
	if unknown {
		return authz.FoundKey{}, nil
	}
	entries, err := s.lookups.find(ctx, digests)
	if err != nil {
		return authz.FoundKey{}, err
	}
	for i, e := range entries {
		if e.bad != nil {
			return authz.FoundKey{}, authz.Unavailable("look up a key", e.bad)
		}
		if e.key != nil {
			return s.found(digests, i, e, degraded, stale), nil
		}
	}
	return authz.FoundKey{}, nil
}

// found answers with what digest i led to, and sees to it that the next time it is
// the first pepper's.
func (s *Store) found(digests []authz.Digest, i int, e *cachedKey, degraded, stale bool) authz.FoundKey {
	if i > 0 {
		s.rehash.add(digests[i], move{keySecretMoves, digests[0]})
	}
	return authz.FoundKey{Key: e.key, Secret: e.secret, Degraded: degraded, Stale: stale}
}

// FindCaller implements authz.CallerReader, from memory alone.
func (s *Store) FindCaller(_ context.Context, hash authz.SecretHash) (*authz.Caller, error) {
	if _, _, lost := s.freshness(); lost != nil {
		return nil, authz.Unavailable("look up a caller", lost)
	}
	table := s.callers.Load()
	if table == nil {
		return nil, authz.Unavailable("look up a caller", errNoContact)
	}
	var buffer [2]authz.Digest
	digests := s.peppers.AppendDigests(buffer[:0], hash)
	for i, d := range digests {
		if caller := (*table)[d]; caller != nil {
			if i > 0 {
				s.rehash.add(d, move{callerTokenMoves, digests[0]})
			}
			return caller, nil
		}
	}
	return nil, nil //nolint:nilnil // an unknown caller is an answer
}

// Health tells how the store is.
type Health struct {
	// Known is false when known keys cannot be decided either: never connected, or
	// away for longer than the stale limit.
	Known bool
	// Degraded tells that Postgres has not answered lately.
	Degraded bool
	// ContactAge is the time since Postgres last confirmed what is in memory.
	ContactAge time.Duration
	// Revision is the revision up to which every change is applied.
	Revision int64
	// CachedKeys is the number of digests in memory.
	CachedKeys int
	// Lookups counts the statements that looked keys up.
	Lookups int64
}

// Health returns the store's health as of now; it asks nobody.
func (s *Store) Health() Health {
	degraded, _, lost := s.freshness()
	h := Health{
		Known: lost == nil, Degraded: degraded, Revision: s.applied.Load(), CachedKeys: s.keys.known.EstimatedSize(),
		Lookups: s.lookups.statements.Load(),
	}
	if contact := s.contact.Load(); contact >= 0 {
		h.ContactAge = s.clock.elapsed() - time.Duration(contact)
	}
	return h
}
