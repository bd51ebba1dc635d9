package faults

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// poundRate is how often the one key is asked for, a second.
	poundRate = 10_000
	// poundOps is what Redis may have to do for it, a second, once its burst is spent.
	poundOps = 50
	// poundBatch is how many checks are sent at once on each connection.
	poundBatch = 5
	// poundConnections are those to each replica.
	poundConnections = 4
)

// pounding asks for one key at a rate, at each replica by a process that is not ours.
type pounding []*flood

func (s *site) preparePounding(replicas []*replica, k *key, rate int) pounding {
	s.Helper()
	every := time.Second * time.Duration(len(replicas)*poundConnections*poundBatch) / time.Duration(rate)
	var p pounding
	for _, r := range replicas {
		p = append(p, s.prepareFlood(r, floodOrder{Connections: poundConnections, Together: poundBatch, Arrive: every, Every: every}, k))
	}
	return p
}

func (p pounding) begin() {
	for _, f := range p {
		f.begin()
	}
}

func (p pounding) end() (all floodResult) {
	for _, f := range p {
		all.add(f.end())
	}
	return all
}

// limiterCalls is how often Redis was asked to charge until now. Each is one command
// there, whatever the script does.
func (s *site) limiterCalls() (calls int) {
	s.Helper()
	said, err := s.redis.Do(s.Context(), "INFO", "commandstats")
	if err != nil {
		s.Fatal(err)
	}
	for line := range strings.Lines(said) {
		name, figures, _ := strings.Cut(line, ":calls=")
		if name != "cmdstat_eval" && name != "cmdstat_evalsha" {
			continue
		}
		n, _, _ := strings.Cut(figures, ",")
		count, err := strconv.Atoi(n)
		if err != nil {
			s.Fatal(err)
		}
		calls += count
	}
	return calls
}

// oneKeyTooMuch has one key asked for a hundred times a second for each time a minute
// that it may, beside everyone else.
func oneKeyTooMuch(t *trial) {
	s := newSite(t)
	others, one := s.addKeys(50, plenty()), s.addKeys(1, nil)
	replicas := s.start(3)
	s.warm(replicas, others)
	s.remember(replicas, one)
	rate := either(t, poundRate, 500)

	// Alone first: all that Redis does is for it. The burst is spent within the first part.
	began := time.Now()
	pound := s.preparePounding(replicas, one[0], rate)
	pound.begin()
	s.eventually("the burst is spent", func() bool { return s.decided(replicas, "rate_limited") >= 100 })
	calls, from, asked := s.limiterCalls(), time.Now(), s.decided(replicas, "rate_limited")
	pause(either(t, 5*time.Second, 2*time.Second))
	lasted := time.Since(from).Seconds()
	ops, reached := float64(s.limiterCalls()-calls)/lasted, (s.decided(replicas, "rate_limited")-asked)/lasted
	all := pound.end()
	t.exact(ops <= poundOps, "once the burst is spent Redis is asked %.1f times a second for it (≤ %d)", ops, poundOps)
	t.timed(reached >= .95*float64(rate), "%.0f a second reached of %d", reached, rate)

	l := s.startLoad(plan{to: replicas, keys: others, rate: either(t, 300, 40), connections: 24})
	pause(500 * time.Millisecond)
	var beside []float64
	turns := s.takeTurns(either(t, 5, 1), either(t, 3*time.Second, 500*time.Millisecond), either(t, 300*time.Millisecond, 0), func() {
		pound.begin()
		pause(either(t, 3*time.Second, time.Second))
		part := pound.end()
		t.Log(part)
		all.add(part)
		beside = append(beside, part.rate())
	})
	served := l.stop()
	elapsed := time.Since(began)
	s.judgeRatio("others", served, turns, 2)
	t.timed(median(beside) >= .95*float64(rate), "beside them %.0f a second reached of %d (median)", median(beside), rate)
	s.judgeServed("others", served)
	bound := float64(standard().Burst) + elapsed.Seconds()/standard().EmissionInterval()
	stoodIn := 0.0
	for _, r := range replicas {
		stoodIn += r.metric(t, "keystile_limiter_stood_in_total")
	}
	// On a busy machine Redis answers too late now and then: that is an outage, with its own bound.
	t.exact(float64(all.Allowed) <= bound || !t.full && stoodIn > 0 && float64(all.Allowed) <= busyShare*bound,
		"admitted %d of it in %.1f s, burst + rate·T is %.1f; Redis was stood in for %.0f checks of all", all.Allowed, elapsed.Seconds(), bound, stoodIn)
	t.exact(all.Broken+all.Denied == 0, "broken answers: %d", all.Broken+all.Denied)
	t.timed(all.Undecided == 0, "undecided: %d", all.Undecided)
}

// decided is how many checks replicas have decided so.
func (s *site) decided(replicas []*replica, code string) (n float64) {
	s.Helper()
	for _, r := range replicas {
		n += r.metric(s.trial, fmt.Sprintf("keystile_decisions_total{code=%q}", code))
	}
	return n
}
