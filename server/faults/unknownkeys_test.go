package faults

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// floodConnections are how many unknown keys are in flight while known ones are timed,
	// and fullConnections when the service has all that it can do.
	floodConnections = 16
	fullConnections  = 64
)

// unknownKeys asks for keys that nobody has stored, while known keys are used and stored
// ones are asked for that no replica has in memory: by turns first, where all that differs
// is the unknown keys, then as fast as the machine can until it was a million.
func unknownKeys(t *trial) {
	rounds, rate := either(t, 5, 1), 60
	calm, length, settle := either(t, 4*time.Second, time.Second), either(t, 6*time.Second, 2*time.Second), either(t, time.Second, 0)
	s := newSite(t)
	known := s.addKeys(50, plenty())
	// Two seconds of keys more than the turns should take.
	inTurns, afterwards := rate*(2+rounds*int((calm+length+settle)/time.Second)), rate*int(length/time.Second)
	unheard := s.addKeys(inTurns+afterwards, plenty())
	r := s.start(1)[0]
	s.warm(s.replicas, known)
	l := s.startLoad(plan{to: s.replicas, keys: known, rate: either(t, 300, 50), connections: 64})
	before := s.worn(r, known)
	stopWatching, stopCounting := s.watchMemory(r), s.watchStatements(r)
	some, many := s.prepareFlood(r, floodOrder{Connections: floodConnections}), s.prepareFlood(r, floodOrder{Connections: either(t, fullConnections, 16)})
	var asked int64
	flood := func(f *flood, until func()) (aSecond float64) {
		f.begin()
		until()
		result := f.end()
		s.note("%v", result)
		t.exact(result.Allowed == 0 && result.Broken == 0, "of unknown keys allowed: %d; undecided %d, other %d", result.Allowed, result.Undecided, result.Broken)
		asked += result.Answered
		return result.rate()
	}
	stored := s.startLoad(plan{to: s.replicas, keys: unheard[:inTurns], rate: rate, connections: 12, rounds: 1})
	slow := 0.0
	all := s.takeTurns(rounds, calm, settle, func() {
		slow = flood(some, func() { pause(length) })
	})
	found := stored.stop()
	s.judgeRatio(fmt.Sprintf("known keys, beside %.0f unknown ones a second", slow), l.soFar(), all, 2)

	from := time.Now()
	enough := either(t, 1e6, 2000.0)
	fast := flood(many, func() {
		found = append(found, s.run(plan{to: s.replicas, keys: unheard[inTurns:], rate: rate, connections: 12})...)
		within(4*patience, func() bool {
			pause(100 * time.Millisecond)
			return s.decided(s.replicas, "key_unknown") > enough
		})
	})
	memory, statements, served := stopWatching(), stopCounting(), l.stop()
	t.exact(float64(asked) >= enough, "%d unknown keys in all", asked)
	t.timed(true, "at %.0f a second, which is all that this machine can: known keys p99 %s", fast, ms(served.between(from, time.Now()).percentile(.99)))
	s.judgeServed("known keys", served)
	s.judgeMemory(before, memory, 64)
	t.exact(statements <= 200, "at most %.0f statements a second (≤ 200)", statements)
	var beside answers
	for _, turn := range append(all.disturbed, span{from, time.Now()}) {
		beside = append(beside, found.between(turn.from, turn.to)...)
	}
	t.timed(beside.allowed()*100 >= len(beside)*99, "beside them, stored keys not in memory: %d of %d at the first try (≥ 99 %%), p99 %s; %v",
		beside.allowed(), len(beside), ms(beside.percentile(.99)), beside)
	s.judgeUnknown(found)
}

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
