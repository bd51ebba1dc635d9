package faults

import "time"

// replicaKilled kills one of three replicas. Those who balance load notice it by its
// broken connections.
func replicaKilled(t *trial) {
	s := newSite(t)
	keys, used := s.addKeys(50, plenty()), s.addKeys(either(t, 900, 500), plenty())
	replicas := s.start(either(t, 3, 2))
	s.warm(replicas, keys)
	dead, others := replicas[0], replicas[1:]
	l := s.startLoad(plan{to: replicas, keys: keys, rate: either(t, 1500, 150)})
	uses := s.startLoad(plan{to: replicas[:1], keys: used, rate: 200, rounds: 1}) // each once, and there alone
	pause(either(t, 4*time.Second, 2*time.Second))
	died := dead.kill()
	l.leave(dead)
	asked := uses.stop()
	pause(either(t, 4*time.Second, time.Second))
	all := l.stop()
	after := all.to(others...).where(func(a *answer) bool { return a.done.After(died) })
	t.exact(len(after) > 0 && len(all.to(others...).where(func(a *answer) bool { return a.err != nil || a.status != 200 })) == 0,
		"other replicas: 0 errors of %d; %v", len(all.to(others...)), all.to(others...))
	s.judgeServed("decisions there", all.to(others...))
	t.timed(true, "the dead one: %v", all.to(dead))

	// It may come back from being cut off, as far as anyone can know: until it may no
	// longer serve, receipts say so.
	w := s.watchKey(others[0], others)
	w.revoke(others[0])
	r := w.finish()
	t.exact(r.receipt.Replicas == len(replicas) && len(r.receipt.Silent) >= 1, "a receipt names the dead one: %d of %d replicas silent",
		len(r.receipt.Silent), r.receipt.Replicas)
	s.judgeLostUsage(asked, died)
}

// judgeLostUsage states which usage was lost with a replica: each key was used once, there.
func (s *site) judgeLostUsage(asked answers, died time.Time) {
	s.Helper()
	stored := s.storedRequests()
	noted, lost, twice, oldest := 0, 0, 0, time.Duration(0)
	for _, a := range asked.where(func(a *answer) bool { return a.allow }) {
		noted++
		switch n := stored[uuidText(a.key)]; {
		case n > 1:
			twice++
		case n == 0:
			lost, oldest = lost+1, max(oldest, died.Sub(a.done))
		}
	}
	s.exact(noted > 0 && lost < noted && twice == 0, "of %d requests there %d were lost, %d are counted twice", noted, lost, twice)
	s.timed(oldest <= time.Second, "the oldest of those by %s before its end (≤ 1 s)", ms(oldest))
}

// rollingRestart replaces every replica, again and again: the new one is ready before the
// old one is asked to end. Clients heed Connection: close, and repeat nothing.
func rollingRestart(t *trial) {
	const wanted = 50_000
	s := newSite(t)
	keys := s.addKeys(50, plenty())
	serving := s.start(either(t, 3, 2))
	s.warm(serving, keys)
	l := s.startLoad(plan{to: serving, keys: keys, rate: either(t, 2000, 100)})
	restarts := 0
	for restarts < either(t, 3, 2) || t.full && l.next.Load() < wanted+defaultConnections {
		fresh := s.start(1)[0]
		l.join(fresh)
		if err := serving[0].terminate(); err != nil {
			t.Error(err)
		}
		serving = append(serving[1:], fresh)
		restarts++
	}
	all := l.stop()
	broken := all.where(func(a *answer) bool { return a.err != nil || a.status != 200 })
	t.exact(len(broken) == 0, "%d of %d requests failed in %d restarts", len(broken), len(all), restarts)
	for _, a := range broken[:min(3, len(broken))] {
		t.Logf("failed: %v, %v", a.outcome(), a.err)
	}
	s.judgeServed("decisions", all)
	t.timed(len(all) >= wanted, "%d requests at %d a second", len(all), l.rate)
}
