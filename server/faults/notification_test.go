package faults

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"
)

// listenersSQL finds the backends that replicas listen on: they have done nothing but
// LISTEN and, after that, empty queries, which are the driver's pings.
const listenersSQL = `SELECT pid FROM pg_stat_activity
	WHERE application_name = 'keystile' AND backend_type = 'client backend' AND (query = '' OR query ILIKE 'listen %')`

// listeners waits until as many are there as there are replicas, none of them in stopped.
func (s *site) listeners(db *sqlx.DB, stopped []int) []int {
	s.Helper()
	var pids []int
	s.eventually("every replica listens", func() bool {
		pids = nil
		if err := db.SelectContext(s.Context(), &pids, listenersSQL); err != nil {
			s.Fatal(err)
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return slices.Contains(stopped, pid) })
		return len(pids) >= len(s.replicas)
	})
	return pids
}

// postgresChild makes sure that a process is one of this row's Postgres before it gets a signal.
func (s *site) postgresChild(pid int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	// pid (name, which may hold anything) state parent …
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	return len(fields) > 1 && fields[1] == strconv.Itoa(s.postgres.PID())
}

// stopProcesses stops processes of this row's Postgres until resume, or its end.
func (s *site) stopProcesses(pids []int) (resume func()) {
	s.Helper()
	resume = sync.OnceFunc(func() {
		for _, pid := range pids {
			if pid == s.postgres.PID() || s.postgresChild(pid) {
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		}
	})
	s.Cleanup(resume) // a stopped one would not end
	for _, pid := range pids {
		if pid != s.postgres.PID() && !s.postgresChild(pid) {
			s.Fatalf("process %d is not of this row's Postgres", pid)
		}
		s.signal(pid, syscall.SIGSTOP)
	}
	return resume
}

// dropListeners terminates every connection that listens, once.
func dropListeners(ctx context.Context, db *sqlx.DB) error {
	_, err := db.ExecContext(ctx, `SELECT pg_terminate_backend(pid) FROM (`+listenersSQL+`) l`)
	return err
}

// loseNotifications drops every connection that listens, again and again, until undo.
func (s *site) loseNotifications(db *sqlx.DB) (undo func()) {
	s.Helper()
	ctx, cancel := context.WithCancel(s.Context())
	var dropping sync.WaitGroup
	dropping.Go(func() {
		for ctx.Err() == nil {
			if err := dropListeners(ctx, db); err != nil && ctx.Err() == nil {
				s.Errorf("drop what listens: %v", err)
				return
			}
			pause(glance)
		}
	})
	return sync.OnceFunc(func() {
		cancel()
		dropping.Wait()
	})
}

// listenDropped drops the connections that listen: every other time just before the
// request alone, so that they come back while it runs, else until the key is denied, so
// that no notification arrives at all.
func listenDropped(t *trial) {
	s := newSite(t)
	replicas := s.start(either(t, 3, 2))
	s.db(func(db *sqlx.DB) {
		all := s.revocations(either(t, 30, 2), replicas, func(i int) (undo func()) {
			s.listeners(db, nil)
			if i%2 == 1 {
				return s.loseNotifications(db)
			}
			if err := dropListeners(t.Context(), db); err != nil {
				t.Fatal(err)
			}
			return func() {}
		})
		var once, lost []time.Duration
		for i, d := range delays(all) {
			if i%2 == 1 {
				lost = append(lost, d)
			} else {
				once = append(once, d)
			}
		}
		t.timed(percentile(once, 1) <= time.Second, "dropped once: revoked → denied everywhere: p50 %s, max %s of %d",
			ms(percentile(once, .5)), ms(percentile(once, 1)), len(once))
		t.timed(percentile(lost, 1) <= time.Second, "kept away: p50 %s, max %s of %d",
			ms(percentile(lost, .5)), ms(percentile(lost, 1)), len(lost))
		s.judgeOrder(all)
	})
}

// listenWedged stops the backends that replicas listen on: the connections are up, and
// say nothing.
func listenWedged(t *trial) {
	s := newSite(t)
	replicas := s.start(either(t, 3, 2))
	s.db(func(db *sqlx.DB) {
		all := s.revocations(either(t, 12, 2), replicas, func(int) (undo func()) {
			return s.stopProcesses(s.listeners(db, nil))
		})
		times := delays(all)
		t.timed(percentile(times, 1) <= 2*time.Second, "revoked → denied everywhere: p50 %s, max %s of %d",
			ms(percentile(times, .5)), ms(percentile(times, 1)), len(times))
		s.judgeOrder(all)
	})
}

// interleavedChanges has two changes open at once. The first has taken its number and
// waits, for a lock that we hold on its key, while the second would commit and be read by
// every replica: if numbers did not come in the order of commits, they would never look
// for the first one's smaller number again.
func interleavedChanges(t *trial) {
	s := newSite(t)
	replicas := s.start(either(t, 3, 2))
	var all []*revocation
	var times []time.Duration
	s.db(func(db *sqlx.DB) {
		for i := range either(t, 6, 1) {
			first, second := s.watchKey(replicas[0], replicas), s.watchKey(replicas[1], replicas)
			s.listeners(db, nil)
			undo := s.loseNotifications(db)
			released := s.interleave(db, func() { first.revoke(replicas[i%len(replicas)]) },
				func() { second.revoke(replicas[(i+1)%len(replicas)]) },
				first.made.key)
			for _, w := range []*watch{first, second} {
				r := w.finish()
				all, times = append(all, r), append(times, r.took(released))
			}
			undo()
		}
	})
	t.timed(percentile(times, 1) <= time.Second, "both seen everywhere: max %s after the first could commit, of %d",
		ms(percentile(times, 1)), len(times))
	s.judgeOrder(all)
}

// interleave runs two changes, of which the first cannot commit before the second has had
// its chance, and every replica the time to read what it did. It returns when the first could.
func (s *site) interleave(db *sqlx.DB, first, second func(), k *key) (released time.Time) {
	s.Helper()
	tx, err := db.BeginTxx(s.Context(), nil)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(s.Context(), `SELECT FROM api_keys WHERE id = $1 FOR UPDATE`, k.id); err != nil {
		s.Fatal(err)
	}
	waiting := func(n int) bool {
		var found int
		err := db.GetContext(s.Context(), &found, `SELECT count(*) FROM pg_stat_activity
			WHERE application_name = 'keystile' AND wait_event_type = 'Lock'`)
		if err != nil {
			s.Fatal(err)
		}
		return found >= n
	}
	var changes sync.WaitGroup
	changes.Go(first)
	s.eventually("the first change waits for its key", func() bool { return waiting(1) })
	ended := make(chan struct{})
	changes.Go(func() {
		second()
		close(ended)
	})
	s.eventually("the second change waits, or commits", func() bool {
		select {
		case <-ended:
			return true
		default:
			return waiting(2)
		}
	})
	pause(1200 * time.Millisecond) // each replica polls twice
	released = time.Now()
	if err := tx.Rollback(); err != nil {
		s.Fatal(err)
	}
	changes.Wait()
	return released
}
