package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/supportstation/keystile/policies"
)

const (
	// missWithin is how long a check waits for a key that is not in memory.
	missWithin = 100 * time.Millisecond
	// stalePath is denied by showsStale just when policy is told that records are stale.
	stalePath = "/api/v1/tickets/stale"
	// storePools is how many connections the store may hold: 8 for checks, 1 for changes
	// and 1 to listen for them, 6 for management, 4 for its receipts.
	storePools = 20
	// goroutinesMore is how many more goroutines an outage may take.
	goroutinesMore = 200
)

// showsStale copies the shipped policies and adds a rule that shows input.stale.
func (s *site) showsStale() (dir string) {
	s.Helper()
	dir = filepath.Join(s.dir, "policies")
	if err := os.CopyFS(dir, policies.FS); err != nil {
		s.Fatal(err)
	}
	rule := `package keystile.rules.shows_stale

deny contains {"code": "seen_stale", "message": "The records are stale."} if {
	input.stale
	input.request.path == "` + stalePath + `"
}
`
	folder := filepath.Join(dir, "keystile", "rules", "shows_stale")
	if err := os.Mkdir(folder, 0o700); err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "shows_stale.rego"), []byte(rule), 0o600); err != nil {
		s.Fatal(err)
	}
	return dir
}

// unheard returns keys that no replica has been asked for: stored and not, in turn.
func (s *site) unheard(n int) []*key {
	s.Helper()
	stored, foreign := s.addKeys(n/2, plenty()), s.makeKeys(n/2)
	var keys []*key
	for i := range stored {
		keys = append(keys, stored[i], foreign[i])
	}
	return keys
}

// judgeMisses states how keys that are not in memory were answered while Postgres was away.
func (s *site) judgeMisses(misses answers) {
	s.Helper()
	undecided := misses.where(func(a *answer) bool { return a.code == "unavailable" })
	s.exact(len(undecided) > 0 && len(undecided) == len(misses), "keys not in memory: %v", misses)
	s.judgeUndecided(misses)
}

// judgeUndecided states how long those waited of whom nothing could be decided, by the
// service's time alone and where the machine did not stand still.
func (s *site) judgeUndecided(misses answers) {
	s.Helper()
	var times []time.Duration
	for _, a := range s.fair(misses) {
		if a.code == "unavailable" {
			times = append(times, a.done.Sub(a.sent))
		}
	}
	s.timed(percentile(times, answerShare) <= missWithin, "undecided after p50 %s, p99 %s, max %s (≤ 100 ms)",
		ms(percentile(times, .5)), ms(percentile(times, .99)), ms(percentile(times, 1)))
}

// judgeUnknown states that no key which is stored was ever answered as unknown.
func (s *site) judgeUnknown(misses answers) {
	s.Helper()
	wrong := misses.where(func(a *answer) bool { return a.key.stored && a.code == "key_unknown" })
	s.exact(len(wrong) == 0, "stored keys answered as unknown: %d", len(wrong))
}

// found waits until every key that is stored is allowed, and tells how long it took.
func (s *site) found(r *replica, keys []*key) time.Duration {
	s.Helper()
	began := time.Now()
	for _, k := range keys {
		if k.stored {
			s.eventually("a stored key is found after the outage", func() bool {
				a := s.ask(r, k)
				if a.code == "key_unknown" {
					s.exact(false, "a stored key is unknown after the outage")
				}
				return a.allow
			})
		}
	}
	return time.Since(began)
}

// postgresDown kills Postgres, waits until nothing may be served, and starts it again.
func postgresDown(t *trial) {
	staleMax := either(t, 13*time.Second, 4*time.Second)
	s := newSite(t)
	known, unheard := s.addKeys(50, plenty()), s.unheard(either(t, 800, 100))
	r := s.start(1, map[string]string{"KEYSTILE_STALE_MAX": staleMax.String(), "KEYSTILE_POLICY_DIR": s.showsStale()})[0]
	s.warm(s.replicas, known)
	l := s.startLoad(plan{to: s.replicas, keys: known, rate: either(t, 300, 50)})
	pause(time.Second)

	died := s.killPostgres()
	end := died.Add(staleMax)
	m := s.startLoad(plan{to: s.replicas, keys: unheard, rate: either(t, 60, 20), connections: 12})
	s.outage(r, "store", known[0])
	var stale time.Duration
	for stale == 0 && time.Now().Before(end) {
		if a := s.askPath(r, known[0], stalePath); slices.Contains(a.reasons, "seen_stale") {
			stale = a.sent.Sub(died)
		}
		pause(glance)
	}
	pause(time.Until(end) + either(t, 1500*time.Millisecond, 500*time.Millisecond))
	code, word := r.readiness(t)
	t.exact(code == 503, "past stale_max /readyz is %d %s", code, word)
	misses, served := m.stop(), l.stop()

	during := served.between(died, end)
	allowed := during.where(func(a *answer) bool { return a.allow })
	t.exact(len(allowed) > 0 && allowed[len(allowed)-1].sent.Sub(died) >= staleMax-time.Second, "known keys served for %.1f s of stale_max %v",
		allowed.lastSent().Sub(died).Seconds(), staleMax)
	s.judgeServed("the last second apart", during.between(died, end.Add(-time.Second)))
	after := served.where(func(a *answer) bool { return a.sent.After(end) })
	t.exact(len(after) > 0 && len(after.except("unavailable", "HTTP 503 unavailable")) == 0, "and then: %v", after)
	s.judgeMisses(misses)
	if t.full {
		t.timed(stale >= 9*time.Second && stale <= 11*time.Second, "policy saw stale after %.1f s", stale.Seconds())
	}
	s.judgeUnknown(misses)

	s.startPostgres()
	back := time.Now()
	s.eventually("known keys are served again", func() bool { return s.ask(r, known[0]).allow })
	t.timed(true, "served again %s after Postgres came back", ms(time.Since(back)))
	s.found(r, unheard[:min(40, len(unheard))])
	s.eventually("an unknown key is unknown again", func() bool { return s.ask(r, unheard[1]).code == "key_unknown" })
}

// postgresChildren are all processes that the postmaster has started.
func (s *site) postgresChildren() []int {
	s.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		s.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && s.postgresChild(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// postgresStuck stops processes of Postgres, so that connections stand and say nothing:
// its backends, which new ones can replace; the postmaster, which makes new ones; all.
func postgresStuck(t *trial) {
	s := newSite(t)
	known, unheard := s.addKeys(50, plenty()), s.unheard(either(t, 3000, 600))
	r := s.start(1)[0]
	s.warm(s.replicas, known)
	l := s.startLoad(plan{to: s.replicas, keys: known, rate: either(t, 300, 50)})
	m := s.startLoad(plan{to: s.replicas, keys: unheard, rate: either(t, 100, 25), connections: 24})
	pause(either(t, 2*time.Second, time.Second))
	calm, _ := s.mostUsed(r, time.Second)
	if len(s.postgresChildren()) == 0 {
		t.Fatal("Postgres has no process to stop: this row tests nothing")
	}
	for _, stuck := range []struct {
		name string
		pids func() []int
	}{
		{"backends", s.postgresChildren},
		{"the postmaster", func() []int { return []int{s.postgres.PID()} }},
		{"all of Postgres", func() []int { return append(s.postgresChildren(), s.postgres.PID()) }},
	} {
		s.note("%s stop", stuck.name)
		resume := s.stopProcesses(stuck.pids())
		began := time.Now() // until here one of them may still have answered
		goroutines, sockets := s.mostUsed(r, either(t, 4*time.Second, 2500*time.Millisecond))
		all := stuck.name == "all of Postgres"
		ended := time.Now()
		if all {
			s.outage(r, "store", known[0])
		}
		s.note("%s continue", stuck.name)
		resume()
		t.timed(goroutines-calm <= goroutinesMore, "%s stopped: %+d goroutines", stuck.name, goroutines-calm)
		t.exact(sockets <= storePools, "%d connections of %d", sockets, storePools)
		misses := m.soFar().between(began, ended.Add(-missWithin))
		if all {
			s.judgeMisses(misses)
		} else {
			found := len(misses) - len(misses.where(func(a *answer) bool { return a.code == "unavailable" }))
			t.exact(found > len(misses)/2, "keys not in memory: %v", misses)
			s.judgeUndecided(misses)
		}
		s.eventually("contact again", func() bool { _, word := r.readiness(t); return word == "ready" })
	}
	misses, served := m.stop(), l.stop()
	s.judgeServed("known keys", served)
	s.judgeUnknown(misses)
	s.found(r, unheard[len(unheard)-20:])
}

// mostUsed watches for some time how many goroutines a replica has, and how many
// connections to Postgres.
func (s *site) mostUsed(r *replica, watched time.Duration) (goroutines, sockets int) {
	s.Helper()
	for until := time.Now().Add(watched); time.Now().Before(until); pause(50 * time.Millisecond) {
		goroutines = max(goroutines, int(r.metric(s.trial, "go_goroutines")))
		sockets = max(sockets, r.socketsTo(s.trial, s.postgres.Port()))
	}
	return goroutines, sockets
}

// postgresSlow has Postgres answer half a second late. Windows with and without take
// turns, so that the machine's own moods are in both.
func postgresSlow(t *trial) {
	windows, length := either(t, 4, 1), either(t, 2*time.Second, time.Second)
	s := newSite(t)
	known, unheard := s.addKeys(50, plenty()), s.unheard(either(t, 1600, 200))
	p := s.proxyPostgres()
	r := s.start(1, map[string]string{"KEYSTILE_DATABASE_URL": p.url})[0]
	s.warm(s.replicas, known)
	l := s.startLoad(plan{to: s.replicas, keys: known, rate: either(t, 500, 50)})
	m := s.startLoad(plan{to: s.replicas, keys: unheard, rate: either(t, 60, 20), connections: 12})
	type window struct{ from, to time.Time }
	var calm, slow []window
	for range windows {
		s.found(r, known[:1])
		from := time.Now()
		pause(length)
		calm = append(calm, window{from, time.Now()})
		p.delay(500 * time.Millisecond)
		pause(100 * time.Millisecond)
		from = time.Now()
		pause(length)
		slow = append(slow, window{from, time.Now().Add(-missWithin)})
		p.delay(0)
		s.eventually("contact again", func() bool { _, word := r.readiness(t); return word == "ready" })
	}
	all, asked := l.stop(), m.stop()
	var ratios, calmly, slowly []float64
	var misses answers
	for i := range windows {
		a, b := all.between(calm[i].from, calm[i].to).percentile(.99), all.between(slow[i].from, slow[i].to).percentile(.99)
		calmly, slowly, ratios = append(calmly, a.Seconds()*1000), append(slowly, b.Seconds()*1000), append(ratios, float64(b)/float64(a))
		misses = append(misses, asked.between(slow[i].from, slow[i].to)...)
	}
	t.timed(median(ratios) <= unaffected, "cached p99 %.1f ms, slow %.1f ms, ratio %.2f (medians of %d; unaffected is ≤ %.2f)",
		median(calmly), median(slowly), median(ratios), windows, unaffected)
	s.judgeServed("cached", all)
	s.judgeMisses(misses)
	s.judgeUnknown(asked)
	t.exact(len(misses.where(func(a *answer) bool { return !a.store })) == 0, "of which %d do not say that the store is degraded",
		len(misses.where(func(a *answer) bool { return !a.store })))
	t.exact(r.metric(t, `keystile_degraded_decisions_total{part="store"}`) >= float64(len(misses)), "all of them counted as degraded")
	code, word := r.readiness(t)
	t.exact(code == 200, "/readyz %d %s", code, word)
}

// unaffected is by how much a p99 may differ from another of the same run.
const unaffected = 1.5

func median(values []float64) float64 { return slices.Sorted(slices.Values(values))[len(values)/2] }

// bothAway kills Postgres and Redis.
func bothAway(t *trial) {
	s := newSite(t)
	known, limited, unheard := s.addKeys(30, plenty()), s.addKeys(1, nil), s.unheard(100)
	replicas := s.start(either(t, 3, 2))
	s.warm(replicas, known)
	for _, r := range replicas {
		s.ask(r, limited[0])
	}
	spent := len(replicas)
	l := s.startLoad(plan{to: replicas, keys: known, rate: either(t, 300, 60)})
	pause(time.Second)
	s.killPostgres()
	died := s.killRedis()
	pause(200 * time.Millisecond) // the first calls find it out
	s.note("both are dead")
	began := time.Now()
	burst := s.run(plan{to: replicas, keys: limited, rate: 300, rounds: either(t, 900, 500)})
	elapsed := time.Since(began)
	misses := s.run(plan{to: replicas, keys: unheard, rate: 50})
	s.note("misses are asked")
	for i, r := range replicas {
		s.outage(r, "store", known[i])
		s.outage(r, "limiter", known[i])
	}
	pause(either(t, 3*time.Second, 0))
	served := l.stop().where(func(a *answer) bool { return a.sent.After(died.Add(200 * time.Millisecond)) })
	s.judgeServed("known keys", served)
	exactly := served.where(func(a *answer) bool { return a.allow && a.mode != "local" })
	t.exact(len(exactly) == 0, "limits in a mode other than local: %d", len(exactly))
	t.exact(len(burst.except("allowed", "rate_limited")) == 0 || !t.full, "a key with 100 a minute: %v", burst)
	refilled := int(elapsed.Seconds()*100/60) + 1
	t.timed(burst.allowed()+spent <= 125+refilled, "%d replicas together admitted %d of burst 100 (≤ 125) and %d refilled", len(replicas), burst.allowed()+spent, refilled)
	s.judgeMisses(misses)

	s.note("both come back")
	s.startPostgres()
	s.startRedis()
	for _, r := range replicas {
		s.eventually("ready and exact again", func() bool {
			_, word := r.readiness(t)
			return s.ask(r, known[0]).mode == "exact" && word == "ready" // Redis is tried by checks alone
		})
	}
	s.note("both are used again")
	s.found(replicas[0], unheard[:10])
	s.note("found")
}

// databaseAt is the row's database at another address.
func (s *site) databaseAt(address string) string {
	return strings.Replace(s.env["KEYSTILE_DATABASE_URL"], fmt.Sprintf("127.0.0.1:%d", s.postgres.Port()), address, 1)
}
