package faults

import (
	"context"
	"sync"
	"time"
)

// unknownKeys asks for keys that nobody has stored, as fast as the machine can, while
// known keys are used and stored ones are asked for that no replica has in memory.
func unknownKeys(t *trial) {
	rounds, rate := either(t, 3, 1), 60
	length := either(t, 8*time.Second, 2*time.Second)
	s := newSite(t)
	known, unheard := s.addKeys(50, plenty()), s.addKeys(rounds*rate*int(length/time.Second), plenty())
	r := s.start(1)[0]
	s.warm(s.replicas, known)
	l := s.startLoad(plan{to: s.replicas, keys: known, rate: either(t, 300, 50), connections: 64})
	before := s.worn(r, known)
	stopWatching, stopCounting := s.watchMemory(r), s.watchStatements(r)
	var asked, undecided, other int64
	var found answers
	lasted := time.Duration(0)
	all := s.takeTurns(rounds, either(t, 2*time.Second, time.Second), either(t, time.Second, 0), func() {
		f := s.startFlood(r, floodOrder{Connections: either(t, floodConnections, 16)})
		part := unheard[len(found):][:len(unheard)/rounds]
		found = append(found, s.run(plan{to: s.replicas, keys: part, rate: rate, connections: 12})...)
		result := f.end()
		lasted += time.Since(f.started)
		s.note("%v", result)
		if result.Allowed > 0 {
			t.exact(false, "WRONG ALLOW of %d unknown keys", result.Allowed)
		}
		asked, undecided, other = asked+result.Answered, undecided+result.Undecided, other+result.Broken
	})
	memory, statements := stopWatching(), stopCounting()
	t.exact(other == 0 && asked > 0, "%d unknown keys in %.0f s, %.0f a second, from what this machine had left; none allowed, %d undecided, %d other",
		asked, lasted.Seconds(), float64(asked)/lasted.Seconds(), undecided, other)
	served := l.stop()
	s.judgeRatio("known keys", served, all, 2)
	t.timed(len(served.except("allowed")) == 0, "known keys: %v", served)
	s.judgeMemory(before, memory, 64)
	t.exact(statements <= 200, "at most %.0f statements a second (≤ 200)", statements)
	t.timed(found.allowed()*100 >= len(found)*99, "stored keys not in memory: %d of %d at the first try (≥ 99 %%), p99 %s; %v",
		found.allowed(), len(found), ms(found.percentile(.99)), found)
	s.judgeUnknown(found)
}

// floodConnections are how many unknown keys are in flight.
const floodConnections = 64

// watchStatements finds out how many statements in one second look keys up, at most,
// until stop.
func (s *site) watchStatements(r *replica) (stop func() float64) {
	type sample struct {
		asked, answered time.Time
		n               float64
	}
	ctx, cancel := context.WithCancel(s.Context())
	var all []sample
	var sampling sync.WaitGroup
	sampling.Go(func() {
		for ctx.Err() == nil {
			x := sample{asked: time.Now()}
			n, err := r.sample(ctx, "keystile_store_lookup_statements_total")
			if x.n, x.answered = n, time.Now(); err == nil {
				all = append(all, x)
			}
			pause(100 * time.Millisecond)
		}
	})
	return func() (most float64) {
		cancel()
		sampling.Wait()
		for i := range all {
			for j := i + 1; j < len(all); j++ {
				// What was counted came within this time, at least: a slow answer accuses nobody.
				took := all[j].answered.Sub(all[i].asked)
				if all[j].asked.Sub(all[i].answered) >= time.Second {
					most = max(most, (all[j].n-all[i].n-1)/took.Seconds())
					break
				}
			}
		}
		return most
	}
}
