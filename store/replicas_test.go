package store_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

func revoke(t *testing.T, s *store.Store, w *whole) int64 {
	t.Helper()
	return manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		_, err := c.RevokeKeys(ctx, all(), w.organization.ID)
		return err
	})
}

// effective waits for a receipt that is as wanted: on a busy machine a second may pass
// before a replica gets its turn.
func effective(t *testing.T, s *store.Store, n int64, want func(manage.Effective) bool) manage.Effective {
	t.Helper()
	var e manage.Effective
	for range 10 {
		var err error
		if e, err = s.Effective(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if want(e) {
			return e
		}
	}
	t.Fatalf("receipt %+v", e)
	return e
}

// A receipt says that a change is applied just when every replica has applied it.
func TestEffective_AllReplicasAcknowledge(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	w := newWhole(t, here, "acme")
	find(t, there, w.keySecret)
	n := revoke(t, here, w)
	e := effective(t, here, n, func(e manage.Effective) bool { return len(e.Silent) == 0 })
	if e.Replicas != 2 || e.Acknowledged != 2 || e.Within <= 0 {
		t.Errorf("%+v", e)
	}
	if there.Health().Revision < n || find(t, there, w.keySecret).Key.RevokedAt.IsZero() {
		t.Error("acknowledged and not applied")
	}
	replicas, revision, err := here.Replicas(t.Context())
	if err != nil || len(replicas) != 2 || revision != n {
		t.Fatalf("%+v, revision %d, %v", replicas, revision, err)
	}
	for _, r := range replicas {
		if !r.Live || r.ID == "" || r.Name == "" || r.AppliedRevision != n || r.StartedAt.After(r.HeartbeatAt) ||
			r.ServesUntil.Sub(r.HeartbeatAt) < store.DefaultStaleMax {
			t.Errorf("%+v", r)
		}
	}
}

// A replica that hears nothing is named, with the time until which it may still serve
// what it knew.
func TestEffective_ASilentReplicaIsNamed(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	w := newWhole(t, here, "acme")
	// What it has yet to apply would take what it finds out of its memory again.
	if err := there.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	find(t, there, w.keySecret)
	there.StopFollowing()
	n := revoke(t, here, w)
	e := effective(t, here, n, func(e manage.Effective) bool { return e.Acknowledged == 1 })
	if e.Replicas != 2 || len(e.Silent) != 1 || e.Silent[0].Replica != there.ReplicaID() || e.Within < time.Second {
		t.Fatalf("%+v", e)
	}
	replicas, _, err := here.Replicas(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range replicas {
		if r.ID == there.ReplicaID() && (!r.ServesUntil.Equal(r.HeartbeatAt.Add(store.DefaultStaleMax+store.HeartbeatGrace)) ||
			!e.Silent[0].ServesUntil.Equal(r.ServesUntil)) {
			t.Errorf("serves until %v by the receipt, %v by the list, of a heartbeat at %v", e.Silent[0].ServesUntil, r.ServesUntil, r.HeartbeatAt)
		}
	}
	// Each receipt says the same: it does not drift.
	if again, err := here.Effective(t.Context(), n); err != nil || !again.Silent[0].ServesUntil.Equal(e.Silent[0].ServesUntil) {
		t.Errorf("%+v, then %+v, %v", e, again, err)
	}
	if !find(t, there, w.keySecret).Key.RevokedAt.IsZero() {
		t.Error("a silent replica has heard of it: the test tests nothing")
	}
	// Who comes back is heard of before it serves on.
	if err := there.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	effective(t, here, n, func(e manage.Effective) bool { return e.Acknowledged == 2 && len(e.Silent) == 0 })
}

// A replica that ended well is not waited for; one that did not is, for as long as it
// might serve, and no longer.
func TestReplicas_CountWhileTheyMayServe(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here := storetest.Open(t, at, peppers)
	there, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: peppers})
	if err != nil {
		t.Fatal(err)
	}
	counted := func() int {
		t.Helper()
		replicas, _, err := here.Replicas(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(replicas)
	}
	if n := counted(); n != 2 {
		t.Errorf("%d replicas, want 2", n)
	}
	if err := there.Close(); err != nil {
		t.Fatal(err)
	}
	if n := counted(); n != 1 {
		t.Errorf("%d replicas after one ended, want 1", n)
	}
	const dead = `INSERT INTO replicas (id, started_at, heartbeat_at, applied_revision, stale_max_ms)
		VALUES (gen_random_uuid(), now(), now() - $1::interval, 1, 300000)`
	storetest.Exec(t, at, dead, "4 minutes 59 seconds")
	storetest.Exec(t, at, dead, "5 minutes 3 seconds")
	storetest.Exec(t, at, dead, "6 minutes 3 seconds")
	if n := counted(); n != 2 {
		t.Errorf("%d replicas, want this one and the one that may serve", n)
	}
	// A new one clears away what is long dead.
	storetest.Open(t, at, peppers)
	if n := storetest.Count(t, at, `SELECT count(*) FROM replicas`); n != 4 {
		t.Errorf("%d rows, want 4", n)
	}
}

// Who comes back after long says so before it gets the right to serve on: no receipt
// may overlook it.
func TestSynchronize_AnOldHeartbeatIsWrittenBeforeThePoll(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing()
	storetest.Exec(t, at, `ALTER TABLE callers RENAME TO away`)
	storetest.Exec(t, at, `DELETE FROM replicas`)
	counted := func() int {
		t.Helper()
		if err := s.Synchronize(t.Context()); err == nil {
			t.Fatal("the poll succeeds: the test tests nothing")
		}
		return storetest.Count(t, at, `SELECT count(*) FROM replicas`)
	}
	if n := counted(); n != 0 {
		t.Errorf("%d heartbeats though the last is fresh", n)
	}
	s.AgeHeartbeat(store.DefaultStaleMax/2 + time.Second)
	if n := counted(); n != 1 {
		t.Errorf("%d heartbeats, want 1", n)
	}
}

// A replica whose heartbeat cannot be written goes on all the same.
func TestSynchronize_AFailingHeartbeatStopsNothing(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	storetest.Exec(t, at, `ALTER TABLE replicas ADD CHECK (applied_revision < 0) NOT VALID`)
	w := newWhole(t, s, "acme")
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if find(t, s, w.keySecret).Key == nil || s.Health().Degraded {
		t.Error("not served")
	}
}

// failHeartbeats makes every heartbeat fail with this SQLSTATE, while all else works.
func failHeartbeats(t *testing.T, at, state string) {
	t.Helper()
	storetest.Exec(t, at, `CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
		$$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '`+state+`'; END$$`)
	storetest.Exec(t, at, `CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON replicas FOR EACH ROW EXECUTE FUNCTION fail()`)
}

// Receipts overlook a replica some time after its last heartbeat, so that it must not
// serve from then on, though it reads what has changed. It may when nobody can write.
func TestSynchronize_WithoutAHeartbeatAPollGivesNoRightToServe(t *testing.T) {
	for state, covered := range map[string]bool{
		"25006": true, "53100": true, // read-only, disk full: nobody can write
		"42501": false, "55P03": false, "53300": false, "53200": false, // others may
	} {
		at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
		here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
		w := newWhole(t, here, "acme")
		find(t, there, w.keySecret)
		there.StopFollowing()
		failHeartbeats(t, at, state)
		// Still counted, so still served.
		if err := there.Synchronize(t.Context()); err != nil {
			t.Fatal(err)
		}
		find(t, there, w.keySecret)
		there.AgeHeartbeat(store.DefaultStaleMax + store.HeartbeatGrace + time.Second)
		n := revoke(t, here, w)
		for range 3 {
			if err := there.Synchronize(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		_, err := there.FindKey(t.Context(), authz.CallerID{}, w.keySecret.Hash())
		h := there.Health()
		if h.Revision != n || h.Known != covered || (err == nil) != covered {
			t.Errorf("%s: %+v, want revision %d and known %t; %v", state, h, n, covered, err)
		}
		storetest.Exec(t, at, `DROP TRIGGER fail ON replicas`)
		// A heartbeat covers the polls after it, not the one before: between them could have
		// been a receipt.
		for _, known := range []bool{covered, true} {
			if err := there.Synchronize(t.Context()); err != nil {
				t.Fatal(err)
			}
			if there.Health().Known != known {
				t.Errorf("%s: known %t, want %t", state, !known, known)
			}
		}
		if find(t, there, w.keySecret).Key.RevokedAt.IsZero() {
			t.Errorf("%s: a revoked key is served", state)
		}
	}
}

// An operator hears of it once, also when the heartbeat is not refused but hangs.
func TestSynchronize_AHeartbeatThatHangsIsToldOnce(t *testing.T) {
	at := storetest.Migrated(t)
	var told bytes.Buffer
	s, err := store.Open(t.Context(), store.Options{
		URL: storetest.Parse(t, at), Peppers: storetest.Peppers(t, "p1"), Logger: slog.New(slog.NewTextHandler(&told, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	s.StopFollowing()
	lock, err := sqlx.ConnectContext(t.Context(), "postgres", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	tx, err := lock.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE replicas IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.AgeHeartbeat(time.Minute)
		if err := s.Synchronize(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(told.String(), "heartbeat;"); n != 1 {
		t.Errorf("told %d times: %s", n, told.String())
	}
}

// Two changes that were open at once, with every notification lost: a replica that
// reads in between and after them ends right.
func TestSynchronize_InterleavedChangesWithoutNotifications(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	there.StopFollowing()
	first, second := newWhole(t, here, "acme"), newWhole(t, here, "globex")
	synchronize := func() {
		t.Helper()
		if err := there.Synchronize(t.Context()); err != nil {
			t.Fatal(err)
		}
		find(t, there, first.keySecret)
		find(t, there, second.keySecret)
	}
	synchronize()
	inside, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 2)
	go func() {
		_, err := here.Write(context.WithoutCancel(t.Context()), true, func(ctx context.Context, c manage.Writer) error {
			close(inside)
			<-release
			_, err := c.RevokeKeys(ctx, all(), first.organization.ID)
			return err
		})
		done <- err
	}()
	<-inside
	go func() {
		_, err := here.Write(context.WithoutCancel(t.Context()), true, func(ctx context.Context, c manage.Writer) error {
			_, err := c.RevokeKeys(ctx, all(), second.organization.ID)
			return err
		})
		done <- err
	}()
	synchronize()
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	synchronize()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	synchronize()
	for i, w := range []*whole{first, second} {
		if find(t, there, w.keySecret).Key.RevokedAt.IsZero() {
			t.Errorf("key %d is served though it is revoked", i)
		}
	}
}

// How long a receipt of two replicas takes, from the commit.
func BenchmarkEffective_TwoReplicas(b *testing.B) {
	at, peppers := storetest.Migrated(b), storetest.Peppers(b, "p1")
	here := storetest.Open(b, at, peppers)
	storetest.Open(b, at, peppers)
	var within []time.Duration
	for b.Loop() {
		n := manageWrite(b, here, func(context.Context, manage.Writer) error { return nil })
		e, err := here.Effective(b.Context(), n)
		if err != nil || len(e.Silent) > 0 {
			b.Fatalf("%+v, %v", e, err)
		}
		within = append(within, e.Within)
	}
	slices.Sort(within)
	b.ReportMetric(within[len(within)/2].Seconds()*1000, "ms/receipt-p50")
	b.ReportMetric(within[len(within)*99/100].Seconds()*1000, "ms/receipt-p99")
}
