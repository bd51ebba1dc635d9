package faults

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/sdk/admin"
)

// diskSize is that of the disk which Postgres' data is moved to: the data of a fresh
// database, and its write-ahead log.
const diskSize = 256 << 20

// smallDisk moves Postgres' data to a disk of its own. fill fills that to the last byte,
// as often as it is called; clear empties it again.
func (s *site) smallDisk() (fill, clearUp func()) {
	s.Helper()
	at, aside := filepath.Join(s.dir, "postgres"), filepath.Join(s.dir, "postgres-aside")
	if err := s.postgres.Stop(s.Context()); err != nil {
		s.Fatal(err)
	}
	err := errors.Join(os.Rename(at, aside), os.Mkdir(at, 0o711))
	if err == nil {
		err = syscall.Mount("keystile-faults", at, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0711", diskSize))
	}
	if err != nil {
		s.Fatalf("a small disk needs root, and mount: %v", err)
	}
	// After replicas have ended, and whatever becomes of the row.
	s.Cleanup(func() {
		_ = s.postgres.Stop(s.Context())
		s.judgePostgresLog() // which goes with the disk
		// The last of Postgres' processes may end a little after the first.
		if !within(5*time.Second, func() bool { return syscall.Unmount(at, 0) == nil }) {
			s.Errorf("%s is still in use; it is unmounted when it is not: %v", at, syscall.Unmount(at, syscall.MNT_DETACH))
		}
	})
	if err := os.CopyFS(filepath.Join(at, "data"), os.DirFS(filepath.Join(aside, "data"))); err != nil {
		s.Fatal(err)
	}
	s.giveLike(filepath.Join(at, "data"), filepath.Join(aside, "data"))
	if err := os.Chmod(filepath.Join(at, "data"), 0o700); err != nil {
		s.Fatal(err)
	}
	s.startPostgres()
	ballast := filepath.Join(at, "ballast")
	fill = func() {
		file, err := os.OpenFile(ballast, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			s.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		for page := make([]byte, 4096); err == nil; {
			_, err = file.Write(page)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			s.Fatal(err)
		}
	}
	return fill, func() {
		if err := os.Remove(ballast); err != nil {
			s.Fatal(err)
		}
	}
}

// diskFull fills the disk of Postgres under load.
func diskFull(t *trial) {
	staleMax := either(t, 4*time.Second, 3*time.Second)
	s := newSite(t)
	s.program = altered.path
	known, unheard := s.addKeys(20, plenty()), s.unheard(60)
	used := s.addKeys(either(t, 3*fewUses, 2*fewUses), plenty())
	if err := s.seeding.Close(); err != nil {
		t.Fatal(err)
	}
	fill, clearUp := s.smallDisk()
	replicas := s.start(3, map[string]string{"KEYSTILE_STALE_MAX": staleMax.String()})
	s.warm(replicas[:2], known)
	l := s.startLoad(plan{to: replicas[:2], keys: known, rate: either(t, 300, 40)})
	pause(either(t, time.Second, 100*time.Millisecond))

	s.note("the disk is full")
	full := time.Now()
	filling := s.keepFull(fill)
	created, refused := s.changesUntilRefused(replicas[0])
	// Its last uses are this replica's alone: each key is asked for once, there and nowhere else.
	noted := s.useOnce(replicas[2:], used)
	misses := s.run(plan{to: replicas[:2], keys: unheard, rate: 50})
	revoked := known[0]
	_, err := s.management(replicas[1]).RevokeKey(t.Context(), revoked.id.String())
	var failed *admin.Error
	t.exact(errors.As(err, &failed) && failed.Status == 503, "a revocation: %v", err)
	t.timed(misses.allowed() == len(unheard)/2, "keys not in memory: %v", misses)
	s.judgeUnknown(misses)
	pause(time.Until(full.Add(staleMax + either(t, 6*time.Second, time.Second))))
	code, word := replicas[0].readiness(t)
	filling()
	s.note("the disk has room again")
	clearUp()

	during := l.soFar().where(func(a *answer) bool { return a.sent.After(full) })
	served := during.where(func(a *answer) bool { return a.allow })
	t.exact(len(served) > 0 && len(during.except("allowed", "unavailable", "HTTP 503 unavailable", "no answer")) == 0,
		"known keys: %v; the last allowed %.1f s after the disk was full, stale_max is %v; /readyz then %d %s", during,
		served.lastSent().Sub(full).Seconds(), staleMax, code, word)
	t.exact(len(served) > 0 && served.lastSent().Sub(full) >= staleMax-time.Second, "which is as long as with Postgres away, and longer while nobody can write")
	t.exact(refused == "503 unavailable", "after %d changes that still found room, a change is answered %s", created, refused)
	s.judgeUses(replicas[2], used, noted) // before that replica is asked for anything else
	s.judgeRecovery(replicas, revoked, known[1:], created)
	l.stop()
	s.judgeUsage(replicas, replicas[2])
}

// keepFull takes whatever room Postgres makes, until stop.
func (s *site) keepFull(fill func()) (stop func()) {
	fill()
	quit := make(chan struct{})
	var filling sync.WaitGroup
	filling.Go(func() {
		tick := time.NewTicker(4 * glance)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				fill()
			}
		}
	})
	return sync.OnceFunc(func() {
		close(quit)
		filling.Wait()
	})
}

// changesUntilRefused makes keys until one is refused: a page that is there has room for some.
func (s *site) changesUntilRefused(r *replica) (created int, refused string) {
	s.Helper()
	const most = 500
	for ; created < most; created++ {
		_, err := s.management(r).CreateKey(s.Context(), s.organization.String(), admin.KeyCreate{
			Name: "full", Environment: admin.Live, Scopes: []string{"tickets:read"},
		})
		var e *admin.Error
		switch {
		case errors.As(err, &e):
			return created, fmt.Sprintf("%d %s", e.Status, e.Code)
		case err != nil:
			return created, err.Error()
		}
	}
	return created, "done"
}

// judgeRecovery states that what was refused is not there, and can be done now.
func (s *site) judgeRecovery(replicas []*replica, revoked *key, known []*key, created int) {
	s.Helper()
	s.eventually("all are ready, and known keys are allowed", func() bool {
		for _, r := range replicas {
			if _, word := r.readiness(s.trial); word != "ready" {
				return false
			}
		}
		return len(s.once(replicas, known[0]).except("allowed")) == 0
	})
	var stored int
	s.db(func(db *sqlx.DB) {
		if err := db.GetContext(s.Context(), &stored, `SELECT count(*) FROM api_keys WHERE name = 'full'`); err != nil {
			s.Fatal(err)
		}
	})
	s.exact(stored == created, "of the changes %d are stored, and %d were said to be done", stored, created)
	before := s.once(replicas, revoked)
	s.exact(len(before.except("allowed")) == 0, "the key whose revocation failed: %v", before)
	change, err := s.management(replicas[1]).RevokeKey(s.Context(), revoked.id.String())
	if err != nil {
		s.exact(false, "with room again, its revocation: %v", err)
		return
	}
	revoked.deniedSince(change.Effective)
	s.exact(within(patience, func() bool { return s.once(replicas, revoked).allowed() == 0 }), "with room again it is revoked on 3 replicas")
}

// useOnce asks for each key until it is allowed, and then no more; it returns those that were.
func (s *site) useOnce(replicas []*replica, keys []*key) map[*key]bool {
	s.Helper()
	noted := map[*key]bool{}
	left := slices.Clone(keys)
	within(patience, func() bool {
		for _, a := range s.run(plan{to: replicas, keys: left, rate: either(s.trial, 300, 150), connections: 16}) {
			if a.allow {
				noted[a.key] = true
			}
		}
		left = slices.DeleteFunc(left, func(k *key) bool { return noted[k] })
		return len(left) == 0
	})
	return noted
}

// judgeUses states what became of the uses that could not be written: each key was used
// once, on one replica. A use is told by the count of it, and is there when that is.
func (s *site) judgeUses(r *replica, used []*key, noted map[*key]bool) {
	s.Helper()
	settled := within(20*time.Second, func() bool {
		return r.metric(s.trial, "keystile_usage_counted_total") ==
			r.metric(s.trial, "keystile_usage_stored_total")+r.metric(s.trial, "keystile_usage_dropped_total")
	})
	uses, counts := s.storedUses(), s.storedAllowed()
	stored, apart := 0, 0
	for k := range noted {
		if uses[uuidText(k)] > 0 {
			stored++
		}
		if (uses[uuidText(k)] > 0) != (counts[k.id] > 0) {
			apart++
		}
	}
	s.exact(settled && apart == 0 && stored < len(noted) && len(noted) == len(used),
		"uses of %d keys (of %d) on one replica, with a buffer of %d in place of 100,000: %d stored; %d without their count, or a count without them",
		len(noted), len(used), fewUses, stored, apart)
}

// judgeUsage states that what replicas counted is in Postgres, or told as dropped, which
// some of the one's was that had no room for so many keys.
func (s *site) judgeUsage(replicas []*replica, full *replica) {
	s.Helper()
	of := func(r *replica, name string) int { return int(r.metric(s.trial, "keystile_usage_"+name+"_total")) }
	settled := within(20*time.Second, func() bool {
		return !slices.ContainsFunc(replicas, func(r *replica) bool { return of(r, "counted") != of(r, "stored")+of(r, "dropped") })
	})
	counted, said, stored := 0, 0, 0
	for _, r := range replicas {
		counted, said = counted+of(r, "counted"), said+of(r, "stored")
	}
	for _, n := range s.storedRequests() {
		stored += n
	}
	dropped := of(full, "dropped")
	s.exact(settled && stored == said && counted == said+dropped && dropped > 0,
		"of %d decisions that were counted %d are stored, as replicas say, and %d were dropped, with room for %d in place of 100,000", counted, stored, dropped, fewUses)
}

// storedRequests is how many requests of each key were counted, by its uuidText.
func (s *site) storedRequests() map[string]int {
	s.Helper()
	var rows []struct {
		Key      string `db:"key_id"`
		Requests int    `db:"requests"`
	}
	s.db(func(db *sqlx.DB) {
		if err := db.SelectContext(s.Context(), &rows, `SELECT key_id::text, sum(requests)::bigint AS requests FROM usage_hours GROUP BY key_id`); err != nil {
			s.Fatal(err)
		}
	})
	stored := make(map[string]int, len(rows))
	for _, r := range rows {
		stored[r.Key] = r.Requests
	}
	return stored
}

// storedUses counts the rows about the last use of each key's secrets, by its uuidText.
func (s *site) storedUses() map[string]int {
	s.Helper()
	var ids []string
	s.db(func(db *sqlx.DB) {
		if err := db.SelectContext(s.Context(), &ids, `SELECT key_id::text FROM secret_uses`); err != nil {
			s.Fatal(err)
		}
	})
	uses := map[string]int{}
	for _, id := range ids {
		uses[id]++
	}
	return uses
}

// uuidText is a key's id as Postgres writes it.
func uuidText(k *key) string {
	value, err := k.id.Value()
	text, ok := value.(string)
	if err != nil || !ok {
		return ""
	}
	return text
}
