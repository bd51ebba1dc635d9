package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// until waits for a condition that others bring about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// held is a change that holds the revision's lock until it is released.
func held(t *testing.T, s *store.Store) (release func()) {
	t.Helper()
	inside, end, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := s.Change(context.WithoutCancel(t.Context()), func(context.Context, *store.Change) error {
			close(inside)
			<-end
			return nil
		})
		done <- err
	}()
	<-inside
	return sync.OnceFunc(func() {
		close(end)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A client that left while its change waited has been told that it failed: the change
// must not be done later. Its connection serves on.
func TestChange_OfAClientThatLeftIsNotDone(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	release := held(t, s)
	defer release()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	done := make(chan error, 1)
	go func() {
		_, err := s.Change(ctx, func(context.Context, *store.Change) error {
			t.Error("done, though its client left")
			return nil
		})
		done <- err
	}()
	const waiting = `FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%UPDATE revision%'`
	until(t, "the second change waits for the first", func() bool { return storetest.Count(t, at, `SELECT count(*) `+waiting) == 1 })
	connection := storetest.Count(t, at, `SELECT max(pid) `+waiting)
	leave()
	release()
	if err := <-done; authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("told %v", err)
	}
	n := write(t, s, func(context.Context, *store.Change) error { return nil })
	if n != 3 {
		t.Errorf("revision %d, want 3: the number of what was not done is given again", n)
	}
	if storetest.Count(t, at, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, connection) != 1 {
		t.Error("the client took its connection along")
	}
}

// Once it runs, a change is run to its end: nothing is left half known.
func TestChange_RunsToItsEndWhenItsClientLeaves(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	k := add(t, s)
	ctx, leave := context.WithCancel(t.Context())
	n, err := s.Change(ctx, func(ctx context.Context, c *store.Change) error {
		leave()
		return errors.Join(ctx.Err(), c.RevokeKey(ctx, k.key.Organization.ID, k.key.ID))
	})
	if err != nil || n == 0 {
		t.Errorf("revision %d, %v", n, err)
	}
}

// However many changes come, only so many wait for their turn.
func TestChange_WhoWaitsIsBounded(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	release := held(t, s)
	defer release()
	nothing := func(context.Context, *store.Change) error { return nil }
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var group sync.WaitGroup
	defer group.Wait()
	defer release()
	defer leave()
	for range store.MaxWriting - 1 + store.MaxWaitingChanges {
		group.Go(func() {
			if _, err := s.Change(ctx, nothing); authz.KindOf(err) != authz.KindUnavailable {
				t.Errorf("a change of who left: %v", err)
			}
		})
	}
	until(t, "all wait", func() bool { return s.WaitingChanges() == store.MaxWaitingChanges })
	if _, err := s.Change(t.Context(), nothing); authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("one too many: %v", err)
	}
	leave()
	release()
	group.Wait()
	if n := s.WaitingChanges(); n != 0 {
		t.Errorf("%d still wait", n)
	}
	write(t, s, nothing)
}
