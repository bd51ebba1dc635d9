package store

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxLookupDigests bounds one statement.
	maxLookupDigests = 256
	// maxLookupWaiting bounds the digests that wait for the next statements.
	maxLookupWaiting = 65_536
	// lookupSpacing is the least time between the starts of two statements: 200 a second.
	lookupSpacing = 5 * time.Millisecond
	// lookupAttempts bounds how often a look-up is repeated because a change overtook it.
	lookupAttempts = 5
)

var (
	errLookupFull    = errors.New("too many look-ups are waiting")
	errLookupTimeout = errors.New("the look-up took too long")
	errOvertaken     = errors.New("changes kept overtaking the look-up")
	errStoreClosed   = errors.New("the store is closed")
	errNoContact     = errors.New("no contact with Postgres for longer than the stale limit")
)

// lookups coalesces misses: one statement is in flight, the next carries everyone
// who waits. Safe for concurrent use.
type lookups struct {
	db    *sqlx.DB
	cache *keyCache
	// budget bounds how long a check waits for its look-up.
	budget time.Duration

	// statements counts those sent.
	statements atomic.Int64

	mu      sync.Mutex
	waiting map[authz.Digest]*waiter
	order   []authz.Digest
	flying  map[authz.Digest]*waiter
	running bool
	closed  bool
	stop    chan struct{}
	done    sync.WaitGroup
}

// waiter is what all who ask for one digest wait for. entry and err are set before ready is closed.
type waiter struct {
	ready chan struct{}
	entry *cachedKey
	err   error
}

func newLookups(db *sqlx.DB, cache *keyCache, budget time.Duration) *lookups {
	return &lookups{
		db: db, cache: cache, budget: budget, waiting: make(map[authz.Digest]*waiter), stop: make(chan struct{}),
	}
}

// find reads the digests of one secret, together with whoever else asks. When it is
// unknown, all of them were so at one revision: a secret that just moved from one
// digest to another is not missed in between.
func (l *lookups) find(ctx context.Context, digests []authz.Digest) ([]*cachedKey, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.budget, errLookupTimeout)
	defer cancel()
	entries := make([]*cachedKey, len(digests))
	for range lookupAttempts {
		waiters, err := l.join(digests)
		if err != nil {
			return nil, authz.Unavailable("look up a key", err)
		}
		for i, w := range waiters {
			select {
			case <-w.ready:
			case <-ctx.Done():
				return nil, authz.Unavailable("look up a key", context.Cause(ctx))
			}
			if w.err != nil {
				return nil, w.err
			}
			entries[i] = w.entry
		}
		if conclusive(entries) {
			return entries, nil
		}
	}
	return nil, authz.Unavailable("look up a key", errOvertaken)
}

// conclusive tells whether the entries found something, or nothing at one revision.
func conclusive(entries []*cachedKey) bool {
	same := true
	for _, e := range entries {
		if e.key != nil || e.bad != nil {
			return true
		}
		same = same && e.asOf == entries[0].asOf
	}
	return same
}

// join lets one who asks wait for these digests, which go into one statement where
// none of them is in flight already.
func (l *lookups) join(digests []authz.Digest) ([]*waiter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errStoreClosed
	}
	waiters := make([]*waiter, len(digests))
	for i, d := range digests {
		var err error
		if waiters[i], err = l.joinOne(d); err != nil {
			return nil, err
		}
	}
	if !l.running && len(l.order) > 0 {
		l.running = true
		l.done.Add(1)
		go l.run()
	}
	return waiters, nil
}

func (l *lookups) joinOne(d authz.Digest) (*waiter, error) {
	if w := l.waiting[d]; w != nil {
		return w, nil
	}
	if w := l.flying[d]; w != nil {
		return w, nil
	}
	if len(l.waiting) >= maxLookupWaiting {
		return nil, errLookupFull
	}
	w := &waiter{ready: make(chan struct{})}
	l.waiting[d] = w
	l.order = append(l.order, d)
	return w, nil
}

// run works until nobody waits.
func (l *lookups) run() {
	defer l.done.Done()
	for {
		started := time.Now()
		batch := l.take()
		if batch == nil {
			return
		}
		l.serve(batch)
		pause := time.NewTimer(lookupSpacing - time.Since(started))
		select {
		case <-pause.C:
		case <-l.stop:
			pause.Stop()
		}
	}
}

// take moves the longest waiting digests into flight, or ends the run.
func (l *lookups) take() []authz.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying = nil
	if len(l.order) == 0 {
		l.running = false
		l.order = nil
		return nil
	}
	n := min(len(l.order), maxLookupDigests)
	batch := l.order[:n:n]
	l.order = l.order[n:]
	l.flying = make(map[authz.Digest]*waiter, n)
	for _, d := range batch {
		l.flying[d] = l.waiting[d]
		delete(l.waiting, d)
	}
	return batch
}

// serve answers everyone in flight.
func (l *lookups) serve(batch []authz.Digest) {
	var err error
	for range lookupAttempts {
		var found map[authz.Digest]*cachedKey
		if found, err = l.read(batch); err != nil {
			break
		}
		var overtaken []authz.Digest
		for _, d := range batch {
			if e := found[d]; l.cache.put(d, e) {
				l.answer(d, e, nil)
			} else {
				overtaken = append(overtaken, d)
			}
		}
		if batch = overtaken; len(batch) == 0 {
			return
		}
		err = authz.Unavailable("look up a key", errOvertaken)
	}
	for _, d := range batch {
		l.answer(d, nil, err)
	}
}

func (l *lookups) read(batch []authz.Digest) (map[authz.Digest]*cachedKey, error) {
	ctx, cancel := context.WithTimeout(context.Background(), l.budget)
	defer cancel()
	l.statements.Add(1)
	return lookup(ctx, l.db, batch)
}

func (l *lookups) answer(d authz.Digest, e *cachedKey, err error) {
	l.mu.Lock()
	w := l.flying[d]
	delete(l.flying, d)
	l.mu.Unlock()
	w.entry, w.err = e, err
	close(w.ready)
}

// close stops taking look-ups and waits until the last one is answered.
func (l *lookups) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	close(l.stop)
	l.done.Wait()
}
