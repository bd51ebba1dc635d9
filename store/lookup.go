package store

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxLookupDigests bounds one statement.
	maxLookupDigests = 256
	// maxLookupWaiting bounds the digests that wait for the next statements, and
	// maxCallerWaiting those of one caller: in the time that a check has, no more of them
	// could be answered anyway.
	maxLookupWaiting = 65_536
	maxCallerWaiting = 4096
	// lookupSpacing is the least time between the starts of two statements: 200 a second.
	lookupSpacing = 5 * time.Millisecond
	// lookupPatience is the part of a check's wait, as a divisor, after which the next
	// statement no longer waits for the one before it: whoever asks just after a statement
	// has left still has most of the wait for their own.
	lookupPatience = 3
	// tellingParts is in how many parts those are answered whose keys are unknown, minTelling
	// how many of them are a part at least.
	tellingParts = 4
	minTelling   = 2
	// lookupAttempts bounds how often a look-up is repeated because a change overtook it.
	lookupAttempts = 5
)

var (
	errLookupTimeout = errors.New("the look-up took too long")
	errOvertaken     = errors.New("changes kept overtaking the look-up")
	errLookupFull    = errors.New("too many look-ups are waiting")
	errStoreClosed   = errors.New("the store is closed")
	errNoContact     = errors.New("no contact with Postgres for longer than the stale limit")
)

// lookups coalesces misses: one statement is in flight, the next carries everyone
// who waits, of every caller the same share. A statement that is late holds up no other:
// the next one leaves beside it, on a connection of its own. Safe for concurrent use.
type lookups struct {
	source source
	cache  *keyCache
	// budget bounds how long a check waits for its look-up.
	budget time.Duration
	// places holds one for each statement in flight: each has a connection.
	places chan struct{}

	// statements counts those sent.
	statements atomic.Int64

	// mu is taken before the cache's own, never while that one is held.
	mu      sync.Mutex
	waiting lookupQueue
	flying  map[authz.Digest]*waiter
	running bool
	closed  bool
	stop    chan struct{}
	done    sync.WaitGroup
}

// waiter is what all who ask for one digest wait for. entry and err are set before ready
// is closed.
type waiter struct {
	ready chan struct{}
	entry *cachedKey
	err   error
	// askers counts those who still wait, guarded by lookups.mu; line is where it stood,
	// nil for one who need not wait.
	askers int
	line   *line
}

func newLookups(from source, cache *keyCache, budget time.Duration) *lookups {
	return &lookups{
		source: from, cache: cache, budget: budget, places: make(chan struct{}, checkPoolSize),
		waiting: newLookupQueue(), flying: make(map[authz.Digest]*waiter), stop: make(chan struct{}),
	}
}

// find reads the digests of one secret, together with whoever else asks. When it is
// unknown, all of them were so at one revision: a secret that just moved from one
// digest to another is not missed in between.
func (l *lookups) find(ctx context.Context, caller authz.CallerID, digests []authz.Digest) ([]*cachedKey, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, authz.Remaining(ctx, l.budget), errLookupTimeout)
	defer cancel()
	entries := make([]*cachedKey, len(digests))
	for range lookupAttempts {
		waiters, err := l.join(caller, digests)
		if err != nil {
			return nil, err
		}
		for i, w := range waiters {
			select {
			case <-w.ready:
			case <-ctx.Done():
				l.leave(waiters[i:])
				return nil, authz.Unavailable("look up a key", context.Cause(ctx))
			}
			if w.err != nil {
				l.leave(waiters[i+1:])
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
func (l *lookups) join(caller authz.CallerID, digests []authz.Digest) ([]*waiter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, authz.Unavailable("look up a key", errStoreClosed)
	}
	waiters := make([]*waiter, 0, len(digests))
	for _, d := range digests {
		w := l.flying[d]
		if w == nil {
			w = l.answered(d)
		}
		if w == nil {
			var err error
			if w, err = l.waiting.add(caller, d); err != nil {
				l.leaveLocked(waiters)
				return nil, err
			}
		}
		w.askers++
		waiters = append(waiters, w)
	}
	if !l.running && l.waiting.len() > 0 {
		l.running = true
		l.done.Add(1)
		go l.run()
	}
	return waiters, nil
}

// answered is what was found out since the asker has looked into memory: nothing is read
// twice.
func (l *lookups) answered(d authz.Digest) *waiter {
	e := l.cache.get(d)
	if e == nil || e.key == nil {
		return nil
	}
	w := &waiter{ready: make(chan struct{}), entry: e}
	close(w.ready)
	return w
}

// leave is for who waits no longer: what nobody waits for is not read.
func (l *lookups) leave(waiters []*waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaveLocked(waiters)
}

func (l *lookups) leaveLocked(waiters []*waiter) {
	for _, w := range waiters {
		if w.askers--; w.askers == 0 && w.line != nil {
			w.line.left++
		}
	}
}

// run works until nobody waits.
func (l *lookups) run() {
	defer l.done.Done()
	for {
		l.places <- struct{}{}
		started := time.Now()
		batch := l.take()
		if batch == nil {
			<-l.places
			return
		}
		served := make(chan struct{})
		l.done.Go(func() {
			unknown := l.serve(batch)
			<-l.places
			close(served)
			l.tell(unknown)
		})
		l.await(served)
		pause := time.NewTimer(lookupSpacing - time.Since(started))
		select {
		case <-pause.C:
		case <-l.stop:
			pause.Stop()
		}
	}
}

// await waits for a statement until it is late.
func (l *lookups) await(served <-chan struct{}) {
	late := time.NewTimer(l.budget / lookupPatience)
	defer late.Stop()
	select {
	case <-served:
	case <-late.C:
	}
}

// take moves those whose turn it is into flight, the first first, or ends the run.
func (l *lookups) take() []authz.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch, waiters := l.waiting.take(maxLookupDigests)
	if len(batch) == 0 {
		l.running = false
		return nil
	}
	maps.Copy(l.flying, waiters)
	return batch
}

// serve answers everyone in flight but those whose digests are unknown, whom it returns.
func (l *lookups) serve(batch []authz.Digest) (unknown []*waiter) {
	var err error
	for range lookupAttempts {
		var found map[authz.Digest]*cachedKey
		if found, err = l.read(batch); err != nil {
			break
		}
		var overtaken []authz.Digest
		for _, d := range batch {
			w, ok := l.keep(d, found[d])
			switch {
			case !ok:
				overtaken = append(overtaken, d)
			case w.entry.key == nil && w.entry.bad == nil:
				unknown = append(unknown, w)
			default:
				close(w.ready)
			}
		}
		if batch = overtaken; len(batch) == 0 {
			return unknown
		}
		err = authz.Unavailable("look up a key", errOvertaken)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range batch {
		close(l.land(d, nil, err).ready)
	}
	return unknown
}

// keep puts what was read into memory and takes the digest out of flight, as one step: whoever
// asks in between, after a change was applied, would be given the record of before it.
func (l *lookups) keep(d authz.Digest, e *cachedKey) (*waiter, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	served, ok := l.cache.put(d, e)
	if !ok {
		return nil, false
	}
	return l.land(d, served, nil), true
}

// tell answers those whose digests are unknown, a few at a time until the next statement is
// due: the runtime hears of new requests only when nothing else is to do, and a flood's
// answers, all at once, would keep known keys waiting that long.
func (l *lookups) tell(unknown []*waiter) {
	some := max((len(unknown)+tellingParts-1)/tellingParts, minTelling)
	pause := time.NewTicker(lookupSpacing / (tellingParts + 1))
	defer pause.Stop()
	for i, w := range unknown {
		if i > 0 && i%some == 0 {
			<-pause.C
		}
		close(w.ready)
	}
}

func (l *lookups) read(batch []authz.Digest) (map[authz.Digest]*cachedKey, error) {
	l.statements.Add(1)
	return l.source.lookup(context.Background(), batch, l.cache.organizations)
}

// land takes a digest out of flight: who asks from now on looks into memory first. What its
// waiter is told is set, and told once its ready is closed. l.mu is held.
func (l *lookups) land(d authz.Digest, e *cachedKey, err error) *waiter {
	w := l.flying[d]
	delete(l.flying, d)
	w.entry, w.err = e, err
	return w
}

// close stops taking look-ups and waits until the last one is answered.
func (l *lookups) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	close(l.stop)
	l.done.Wait()
}
