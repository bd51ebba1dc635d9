// Package store keeps organizations, keys and callers in Postgres, and the records
// that checks need in memory. Freshness is by revision, and revision order is
// commit order: see change.go and sync.go.
package store

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
)

// DefaultStaleMax is how long known keys are served while Postgres is unreachable.
const DefaultStaleMax = 5 * time.Minute

// DefaultLookupBudget is how long a check waits for a key that is not in memory: that it
// cannot be found out is said within 100 ms.
const DefaultLookupBudget = 90 * time.Millisecond

// Options are what Open needs.
type Options struct {
	URL     DatabaseURL
	Peppers authz.Peppers
	// StaleMax bounds how long known keys are served while Postgres is unreachable;
	// 0 means DefaultStaleMax.
	StaleMax time.Duration
	// LookupBudget bounds how long a check waits for a key that is not in memory; 0
	// means DefaultLookupBudget.
	LookupBudget time.Duration
	// KeyCacheBytes bounds the memory of the records that are kept; 0 means DefaultKeyCacheBytes.
	KeyCacheBytes uint64
	// Deployment must equal what the database is marked as; "" is an ordinary one.
	Deployment string
	// UsageRetention is for how long usage is kept by the hour, UsageDaysRetention by the day
	// and by network; 0 means DefaultUsageRetention, DefaultUsageDaysRetention. The second is
	// never the shorter one.
	UsageRetention, UsageDaysRetention time.Duration
	// UsageNetwork is what usage keeps of end clients' addresses.
	UsageNetwork UsageNetwork
	// Decisions tells which decisions are kept.
	Decisions DecisionsKept
	// SpillDir is the folder in which usage is kept that could not be written when the store was
	// closed; what is there is written by the next one that is opened. "" keeps none.
	SpillDir string
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
	source   source
	// deployment is what the database must be marked as.
	deployment string

	// check, changes, manage and brief are the four kinds of connection; LISTEN is of the second.
	check   *sqlx.DB
	changes *sqlx.DB
	manage  *sqlx.DB
	brief   *sqlx.DB
	// end bounds all of them when the store is closed.
	end ending

	keys    *keyCache
	missed  *missed
	admins  *learnedAdmins
	lookups *lookups
	callers atomic.Pointer[callerTable]
	formats atomic.Pointer[[]authz.ForeignFormat]
	// policy is which one is in force, policyChanged tells of another.
	policy        atomic.Pointer[Policy]
	policyChanged chan struct{}
	// policyDue tells that it is to be read, guarded by syncing; policyUnread that it could not be.
	policyDue    bool
	policyUnread atomic.Bool
	// shadow is which one is asked beside it, shadowChanged tells of another.
	shadow        atomic.Pointer[PolicyShadow]
	shadowChanged chan struct{}
	// shadowDue tells that it is to be read, shadowUnread that it was told that it cannot be; both
	// are guarded by syncing.
	shadowDue, shadowUnread bool
	rehash                  *rehashQueue
	usage                   *usage
	// usageBatches are on their way, guarded by usageWriting.
	usageBatches []*usageBatch
	usageWriting sync.Mutex
	// spillDir is Options.SpillDir, spillRead tells that what was there is written; it is guarded
	// by usageWriting.
	spillDir  string
	spillRead bool
	// countedRevision is a revision: what was counted before it was applied is written.
	countedRevision atomic.Int64
	// usageRetention is for how long usage is kept, by the hour and by the day.
	usageRetention, usageDaysRetention time.Duration
	usageNetwork                       UsageNetwork
	decisions                          *decisions
	replica                            replica
	peers                              peers

	// applied is the revision up to which every change is applied, appliedMark its mark,
	// guarded by syncing.
	applied     atomic.Int64
	appliedMark mark
	// forgottenTold tells that it was told that something learned is forgotten, guarded by syncing.
	forgottenTold bool
	// live is how many replicas had a fresh heartbeat at the last synchronization.
	live atomic.Int64
	// putBack counts the times that the database was put back to an earlier state.
	putBack atomic.Int64
	// admitted tells that this configuration fits the database; until then nothing of it
	// is believed and nothing is written. refused has the reason when it does not fit.
	admitted  atomic.Bool
	admission atomic.Pointer[error] // why not, the last time
	refused   chan error
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
//
// A Postgres that does not answer is waited for: the store is open, everything that it
// is asked is KindUnavailable, and it recovers by itself. A database that then turns out
// not to fit is told by Refused.
func Open(ctx context.Context, o Options) (*Store, error) {
	s, err := newStore(o)
	if err != nil {
		return nil, err
	}
	if err := s.connect(o); err != nil {
		return nil, errors.Join(err, s.abandon())
	}
	switch err := s.Synchronize(ctx); {
	case isAway(err) && ctx.Err() == nil:
		s.lost.Store(true)
		s.log.Warn("Postgres does not answer; nothing can be decided until it does", slog.Any("error", err))
	case err != nil:
		return nil, errors.Join(err, s.abandon())
	}
	s.start(ctx, s.listen, s.keepUsage, s.recordDecisions)
	s.warm(ctx)
	return s, nil
}

// warmConnections are those that a store begins with: one for a look-up, one for the next.
const warmConnections = 2

// warm looks nothing up, on connections that the first checks then find open, with the
// statement known at both ends: whoever starts in the place of another gets all of its
// checks at once.
func (s *Store) warm(ctx context.Context) {
	if !s.admitted.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var opening sync.WaitGroup
	for range warmConnections {
		opening.Go(func() { _, _ = s.source.lookup(ctx, nil, s.keys.organizations) }) // a look-up tries again
	}
	opening.Wait()
}

// newStore makes a store that has no source yet.
func newStore(o Options) (*Store, error) {
	if len(o.Peppers.IDs()) == 0 {
		return nil, authz.ErrNoPepper
	}
	s := &Store{
		url: o.URL, peppers: o.Peppers, staleMax: o.StaleMax, log: o.Logger, clock: NewClock(), deployment: o.Deployment,
		admins: newLearnedAdmins(), missed: newMissed(), rehash: newRehashQueue(), usage: newUsage(), decisions: newDecisions(o.Decisions), replica: newReplica(),
		wake: make(chan struct{}, 1), policyChanged: make(chan struct{}, 1), shadowChanged: make(chan struct{}, 1),
		writing: make(chan struct{}, maxWriting), recognizing: make(chan struct{}, maxRecognizing), refused: make(chan error, 1),
	}
	s.spillDir = o.SpillDir
	s.usageRetention = cmp.Or(o.UsageRetention, DefaultUsageRetention)
	s.usageDaysRetention = max(cmp.Or(o.UsageDaysRetention, DefaultUsageDaysRetention), s.usageRetention)
	s.usageNetwork = o.UsageNetwork
	if s.staleMax == 0 {
		s.staleMax = DefaultStaleMax
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.contact.Store(-1)
	s.live.Store(1)
	if o.KeyCacheBytes == 0 {
		o.KeyCacheBytes = DefaultKeyCacheBytes
	}
	var err error
	s.keys, err = newKeyCache(o.KeyCacheBytes)
	return s, err
}

// connect makes the pools; it connects to nothing yet.
func (s *Store) connect(o Options) (err error) {
	if o.LookupBudget == 0 {
		o.LookupBudget = DefaultLookupBudget
	}
	if s.check, err = s.url.pool(checkPoolSize, lookupReadDeadline, true, &s.end); err != nil {
		return err
	}
	if s.changes, err = s.url.pool(changesPoolSize, listenReadDeadline, true, &s.end); err != nil {
		return err
	}
	if s.manage, err = s.url.pool(managePoolSize, manageReadDeadline, false, &s.end); err != nil {
		return err
	}
	if s.brief, err = s.url.pool(briefPoolSize, briefReadDeadline, false, &s.end); err != nil {
		return err
	}
	s.follows(postgres{s.check, s.changes, s.manage}, o.LookupBudget)
	return nil
}

// follows sets where the store reads from.
func (s *Store) follows(from source, budget time.Duration) {
	s.source = from
	s.lookups = newLookups(from, s.keys, budget)
}

// start follows changes, and does what else is to be done, until the store is closed.
func (s *Store) start(ctx context.Context, tasks ...func(context.Context)) {
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, task := range append(tasks, s.follow, s.learnMissed, s.rehashSecrets, s.recordUsage) {
		s.followed.Go(func() { task(ctx) })
	}
}

// abandon takes back what Open has begun.
func (s *Store) abandon() error {
	if s.replica.beaten != never {
		s.unregister() // what never served must not be waited for
	}
	s.keys.close()
	return s.closePools()
}

// closeWithin bounds the end of a store whose Postgres does not answer: the last usage has its
// limit, and what else a service ends before it some seconds more.
const closeWithin = lastUsageLimit + 5*time.Second

// EndSoon has nothing wait for Postgres for more than ten seconds from now: what ends before the
// store is closed does not wait, one after the other, for a server that is stuck.
func (s *Store) EndSoon() { s.end.set(time.Now().Add(closeWithin)) }

// Close stops following changes, answers whoever still waits, and disconnects, within some
// ten seconds of EndSoon, which it does itself at the latest.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		s.EndSoon()
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
	for _, db := range []*sqlx.DB{s.check, s.changes, s.manage, s.brief} {
		if db == nil {
			continue
		}
		// Of a server that is stuck nobody takes leave.
		if err := db.Close(); !errors.Is(err, os.ErrDeadlineExceeded) {
			errs = append(errs, translate("disconnect from Postgres", err))
		}
	}
	return errors.Join(errs...)
}

// Clock returns Postgres' clock.
func (s *Store) Clock() *Clock { return s.clock }

// ReplicaName is what this process is called among the replicas, for people.
func (s *Store) ReplicaName() string { return s.replica.name }

// FindKey implements authz.KeyReader: from memory when the digest is known there
// and confirmed recently enough, else by one coalesced statement.
func (s *Store) FindKey(ctx context.Context, caller authz.CallerID, hash authz.SecretHash) (authz.FoundKey, error) {
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
	entries, err := s.lookups.find(ctx, caller, digests)
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
	// Degraded tells that Postgres has not answered lately, or that a policy that was activated
	// cannot be read.
	Degraded bool
	// ContactAge is the time since Postgres last confirmed what is in memory; as long as
	// it never has, since the store was opened.
	ContactAge time.Duration
	// Revision is the revision up to which every change is applied.
	Revision int64
	// CachedKeys is the number of records in memory, CachedKeyBytes about what they take.
	CachedKeys     int
	CachedKeyBytes uint64
	// Lookups counts the statements that looked keys up.
	Lookups int64
	// LiveReplicas is how many replicas there were when Postgres was last asked, 1 at least.
	LiveReplicas int
	// PutBack counts the times that the database was put back to an earlier state.
	PutBack int64
	// Forgotten counts what was learned of changes and found no room any more: it would be
	// un-learned if the database were put back.
	Forgotten int64
	// CountedUsage, StoredUsage and DroppedUsage are in decisions: what was counted and is
	// neither stored nor dropped waits to be written.
	CountedUsage, StoredUsage, DroppedUsage int64
	// KeptDecisions and DroppedDecisions count the decisions that were to be kept.
	KeptDecisions, DroppedDecisions int64
}

// Health returns the store's health as of now; it asks nobody.
func (s *Store) Health() Health {
	degraded, _, lost := s.freshness()
	h := Health{
		Known: lost == nil, Degraded: degraded || s.policyUnread.Load(), Revision: s.applied.Load(), Lookups: s.lookups.statements.Load(),
		LiveReplicas: s.LiveReplicas(), PutBack: s.putBack.Load(), Forgotten: s.forgotten(),
		// In this order: what is told is never more than what was counted.
		StoredUsage: s.usage.stored.Load(), DroppedUsage: s.usage.dropped.Load(),
		KeptDecisions: s.decisions.written.Load(), DroppedDecisions: s.decisions.dropped.Load(),
	}
	h.CountedUsage = s.usage.counted()
	h.CachedKeys, h.CachedKeyBytes = s.keys.size()
	h.ContactAge = s.clock.elapsed() - time.Duration(max(s.contact.Load(), 0))
	return h
}

// LiveReplicas is how many replicas share what is counted: as Postgres said when it last
// answered, 1 at least. Safe for concurrent use.
func (s *Store) LiveReplicas() int { return int(max(s.live.Load(), 1)) }
