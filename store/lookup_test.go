package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// scriptedSource answers look-ups as a test says; it has no other part of a source.
type scriptedSource struct {
	source

	look func([]authz.Digest) (map[authz.Digest]*cachedKey, error)
	mu   sync.Mutex
	read map[authz.Digest]int
}

func (s *scriptedSource) lookup(
	_ context.Context, digests []authz.Digest, _ *organizationCache,
) (map[authz.Digest]*cachedKey, error) {
	s.mu.Lock()
	for _, d := range digests {
		s.read[d]++
	}
	s.mu.Unlock()
	return s.look(digests)
}

// foundAll has a key for every digest.
func foundAll(digests []authz.Digest) map[authz.Digest]*cachedKey {
	found := map[authz.Digest]*cachedKey{}
	for _, d := range digests {
		found[d] = &cachedKey{
			key: &authz.Key{ID: authz.NewKeyID(time.Now()), Organization: &authz.Organization{}}, secret: &authz.KeySecret{}, asOf: 1,
		}
	}
	return found
}

func newScriptedLookups(t *testing.T, look func([]authz.Digest) (map[authz.Digest]*cachedKey, error)) (*lookups, *scriptedSource) {
	t.Helper()
	s := &scriptedSource{look: look, read: map[authz.Digest]int{}}
	return newLookups(s, newTestCache(t, 1<<20), DefaultLookupBudget), s
}

// A statement that is late holds up nobody who asks for something else, and what it
// finds out is not lost.
func TestLookups_ALateStatementHoldsUpNoOther(t *testing.T) {
	late := digestOf(1)
	l, s := newScriptedLookups(t, func(digests []authz.Digest) (map[authz.Digest]*cachedKey, error) {
		if digests[0] == late {
			<-time.After(800 * time.Millisecond)
		}
		return foundAll(digests), nil
	})
	ask := func(n int) ([]*cachedKey, error) {
		return l.find(t.Context(), authz.CallerID{}, []authz.Digest{digestOf(n)})
	}
	if _, err := ask(1); !errors.Is(err, errLookupTimeout) {
		t.Fatalf("of a statement that is late: %v", err)
	}
	for n := 2; n < 50; n++ {
		if got, err := ask(n); err != nil || got[0].key == nil {
			t.Fatalf("behind a statement that is late: %v, %v", got, err)
		}
	}
	l.close()
	if e := l.cache.get(late); e == nil || e.key == nil || s.read[late] != 1 {
		t.Errorf("what the late one has found is lost: %v, read %d times", e, s.read[late])
	}
}

// Whoever asks while a statement is late is answered in time, though nobody would be
// who waited for the end of that one first.
func TestLookups_WhoeverAsksBehindALateStatementHasTimeForTheirOwn(t *testing.T) {
	late := digestOf(1)
	left := make(chan struct{})
	l, _ := newScriptedLookups(t, func(digests []authz.Digest) (map[authz.Digest]*cachedKey, error) {
		if digests[0] == late {
			close(left)
			<-time.After(2 * testLookupBudget)
		} else {
			<-time.After(testLookupBudget / 4)
		}
		return foundAll(digests), nil
	})
	l.budget = testLookupBudget
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := l.find(t.Context(), authz.CallerID{}, []authz.Digest{late}); !errors.Is(err, errLookupTimeout) {
			t.Errorf("of a statement that is late: %v", err)
		}
	})
	<-left
	if got, err := l.find(t.Context(), authz.CallerID{}, []authz.Digest{digestOf(2)}); err != nil || got[0].key == nil {
		t.Errorf("behind a statement that is late: %v, %v", got, err)
	}
	group.Wait()
	l.close()
}

// testLookupBudget leaves a busy machine its time.
const testLookupBudget = 3 * time.Second

// A Postgres that answers nothing has a bounded number of statements in flight, and
// whoever asks is told in time.
func TestLookups_StatementsInFlightAreBounded(t *testing.T) {
	release, flying, most := make(chan struct{}), 0, 0
	var mu sync.Mutex
	l, _ := newScriptedLookups(t, func([]authz.Digest) (map[authz.Digest]*cachedKey, error) {
		mu.Lock()
		flying++
		most = max(most, flying)
		mu.Unlock()
		<-release
		return nil, authz.Unavailable("look up a key", errLookupTimeout)
	})
	var group sync.WaitGroup
	for n := range 200 {
		<-time.After(10 * time.Millisecond)
		group.Go(func() {
			if _, err := l.find(t.Context(), authz.CallerID{}, []authz.Digest{digestOf(n)}); authz.KindOf(err) != authz.KindUnavailable {
				t.Errorf("not told: %v", err)
			}
		})
	}
	group.Wait()
	if most > checkPoolSize {
		t.Errorf("%d statements at a time, the pool has %d connections", most, checkPoolSize)
	}
	close(release)
	l.close()
}

// Whoever waits while a statement is in flight is read for together, 256 by one statement.
func TestLookups_WhoeverWaitsIsReadForTogether(t *testing.T) {
	const waiting = 1000
	var statements atomic.Int64
	started, release := make(chan struct{}, waiting+1), make(chan struct{})
	l, _ := newScriptedLookups(t, func(digests []authz.Digest) (map[authz.Digest]*cachedKey, error) {
		statements.Add(1)
		started <- struct{}{}
		<-release
		return foundAll(digests), nil
	})
	l.budget = 10 * testLookupBudget
	var group sync.WaitGroup
	find := func(digests ...authz.Digest) {
		group.Go(func() {
			got, err := l.find(t.Context(), authz.CallerID{}, digests)
			if err != nil || slices.ContainsFunc(got, func(e *cachedKey) bool { return e.key == nil }) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	find(digestOf(0))
	<-started
	digests := make([]authz.Digest, waiting)
	for i := range digests {
		digests[i] = digestOf(i + 1)
	}
	find(digests...)
	inLine := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.waiting.len()
	}
	for inLine() < waiting {
		<-time.After(time.Millisecond)
	}
	close(release)
	group.Wait()
	l.close()
	if got := statements.Load(); got != 1+4 {
		t.Errorf("%d statements for a thousand keys and the one before them, not 5", got)
	}
}

// Who has looked into memory just before the answer came does not have it read again.
func TestLookups_WhatWasJustAnsweredIsNotReadAgain(t *testing.T) {
	l, s := newScriptedLookups(t, func(digests []authz.Digest) (map[authz.Digest]*cachedKey, error) { return foundAll(digests), nil })
	d := digestOf(1)
	for range 2 { // the second has missed it in memory, and comes when nothing is in flight
		if got, err := l.find(t.Context(), authz.CallerID{}, []authz.Digest{d}); err != nil || got[0].key == nil {
			t.Fatal(got, err)
		}
	}
	l.close()
	if s.read[d] != 1 {
		t.Errorf("read %d times", s.read[d])
	}
}

// A change is applied just when what was read before it is kept: whoever asks after that joins
// nobody who is given the old record.
func TestLookups_WhoAsksAfterAChangeIsNotGivenTheRecordOfBeforeIt(t *testing.T) {
	read, revoked := make(chan struct{}, lookupAttempts), false
	l, _ := newScriptedLookups(t, func(digests []authz.Digest) (map[authz.Digest]*cachedKey, error) {
		found := foundAll(digests)
		if revoked {
			for _, e := range found {
				e.asOf, e.key.RevokedAt = 2, time.Now()
			}
		}
		revoked = true // by whoever reads again
		read <- struct{}{}
		return found, nil
	})
	l.running = true // this test is who runs
	d := digestOf(1)
	if _, err := l.join(authz.CallerID{}, []authz.Digest{d}); err != nil {
		t.Fatal(err)
	}
	batch := l.take()
	l.mu.Lock() // so that what was read cannot be taken out of flight
	go l.serve(batch)
	<-read
	for range 50 {
		if l.cache.get(d) != nil {
			break
		}
		<-time.After(time.Millisecond)
	}
	l.cache.apply(&changeSet{n: 2, keys: []changedKey{{digest: d, revision: 2}}})
	late := l.flying[d] // what join has whoever asks now wait for
	l.mu.Unlock()
	if <-late.ready; late.err != nil {
		t.Fatal(late.err)
	}
	if late.entry.key.RevokedAt.IsZero() {
		t.Errorf("after revision 2 was applied: the record as of %d, not revoked", late.entry.asOf)
	}
}

// While others are told that their keys are unknown, one at a time, keys that were found are
// answered, and what has been created meanwhile is found.
func TestLookups_UnknownKeysKeepNobodyWaiting(t *testing.T) {
	created := false
	l, _ := newScriptedLookups(t, func(digests []authz.Digest) (map[authz.Digest]*cachedKey, error) {
		found := foundAll(digests)
		for d := range found {
			if !created && d != digestOf(0) {
				found[d] = &cachedKey{asOf: 1}
			}
		}
		return found, nil
	})
	l.running = true // this test is who runs
	waiters := make([]*waiter, 2*tellingParts*minTelling)
	for n := range waiters {
		joined, err := l.join(authz.CallerID{}, []authz.Digest{digestOf(n)})
		if err != nil {
			t.Fatal(err)
		}
		waiters[n] = joined[0]
	}
	unknown := l.serve(l.take())
	if len(unknown) != len(waiters)-1 {
		t.Fatalf("%d of %d are unknown", len(unknown), len(waiters)-1)
	}
	if !slices.Equal(unknown, waiters[1:]) {
		t.Error("who asked first is not told first")
	}
	select {
	case <-waiters[0].ready:
	default:
		t.Error("a key that was found waits for those that were not")
	}
	created = true
	l.running = false
	l.cache.unknown.InvalidateAll() // as the notification does
	last := digestOf(len(waiters) - 1)
	if got, err := l.find(t.Context(), authz.CallerID{}, []authz.Digest{last}); err != nil || got[0].key == nil {
		t.Errorf("of a key that was created while others are told: %v, %v", got, err)
	}
	l.tell(unknown)
	for n, w := range waiters[1:] {
		if <-w.ready; w.err != nil || w.entry == nil || w.entry.key != nil {
			t.Errorf("unknown key %d was told %v, %v", n+1, w.entry, w.err)
		}
	}
	l.close()
}
