package faults

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// poundRate is how often the one key is asked for, a second.
	poundRate = 10_000
	// poundOps is what Redis may have to do for it, a second, once its burst is spent.
	poundOps = 50
	// poundBatch is how many checks are sent at once on each connection.
	poundBatch = 10
	// poundConnections are few: the load must leave the machine to the replicas.
	poundConnections = 12
)

// pounding is a load that asks for one key at a rate, from few connections; of answers
// only the header is read.
type pounding struct {
	site    *site
	started time.Time
	quit    chan struct{}
	stopped sync.Once
	workers sync.WaitGroup

	allowed, limited, undecided, broken atomic.Int64
}

func (s *site) startPounding(replicas []*replica, k *key, rate int) *pounding {
	p := &pounding{site: s, started: time.Now(), quit: make(chan struct{})}
	gap := time.Second * poundBatch * poundConnections / time.Duration(rate)
	for i := range poundConnections {
		due := p.started.Add(gap * time.Duration(i) / poundConnections)
		p.workers.Go(func() { p.work(replicas[i%len(replicas)], bytes.Repeat(k.request, poundBatch), due, gap) })
	}
	s.Cleanup(func() { p.stop() })
	return p
}

// stop ends it, and returns how long it lasted.
func (p *pounding) stop() time.Duration {
	p.stopped.Do(func() {
		close(p.quit)
		p.workers.Wait()
	})
	return time.Since(p.started)
}

func (p *pounding) work(r *replica, batch []byte, due time.Time, gap time.Duration) {
	c, err := dial(r)
	if err != nil {
		p.broken.Add(1)
		return
	}
	defer func() { _ = c.Close() }()
	for timer := time.NewTimer(0); ; due = due.Add(gap) {
		timer.Reset(max(time.Until(due), 0)) // late batches are caught up with
		select {
		case <-p.quit:
			return
		case <-timer.C:
		}
		if err := p.exchange(c, batch); err != nil {
			p.broken.Add(1)
			return
		}
	}
}

func (p *pounding) exchange(c *connection, batch []byte) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(batch); err != nil {
		return err
	}
	for range poundBatch {
		status, decision, err := readHeader(c.reader)
		if err != nil {
			return err
		}
		switch {
		case decision == "allow":
			p.allowed.Add(1)
		case status == 200 && decision == "limited":
			p.limited.Add(1)
		case status == 200 && decision == "error":
			p.undecided.Add(1)
		default:
			p.broken.Add(1)
		}
	}
	return nil
}

// asked is how many were answered.
func (p *pounding) asked() int64 { return p.allowed.Load() + p.limited.Load() + p.undecided.Load() }

func (p *pounding) String() string {
	return fmt.Sprintf("%d allowed, %d limited, %d undecided, %d broken", p.allowed.Load(), p.limited.Load(), p.undecided.Load(), p.broken.Load())
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
	spent := s.startPounding(replicas, one[0], rate)
	s.eventually("the burst is spent", func() bool { return spent.limited.Load() >= 100 && spent.allowed.Load() >= 100 })
	calls, from := s.limiterCalls(), time.Now()
	pause(either(t, 5*time.Second, 2*time.Second))
	ops := float64(s.limiterCalls()-calls) / time.Since(from).Seconds()
	took := spent.stop()
	all := []*pounding{spent}
	t.exact(ops <= poundOps, "once the burst is spent Redis is asked %.1f times a second for it (≤ %d)", ops, poundOps)
	t.timed(float64(spent.asked())/took.Seconds() >= .95*float64(rate), "%.0f a second reached of %d", float64(spent.asked())/took.Seconds(), rate)

	l := s.startLoad(plan{to: replicas, keys: others, rate: either(t, 300, 40), connections: 24})
	pause(500 * time.Millisecond)
	var lasted time.Duration
	var asked int64
	turns := s.takeTurns(either(t, 5, 1), either(t, 1500*time.Millisecond, 500*time.Millisecond), either(t, 300*time.Millisecond, 0), func() {
		p := s.startPounding(replicas, one[0], rate)
		pause(either(t, 1500*time.Millisecond, 500*time.Millisecond))
		lasted += p.stop()
		asked += p.asked()
		all = append(all, p)
	})
	served := l.stop()
	elapsed := time.Since(began)
	s.judgeRatio("others", served, turns, 2)
	t.timed(float64(asked)/lasted.Seconds() >= .95*float64(rate), "beside them %.0f a second reached of %d", float64(asked)/lasted.Seconds(), rate)
	t.timed(len(served.except("allowed")) == 0, "others: %v", served)

	var allowed, undecided, broken int64
	for _, p := range all {
		allowed, undecided, broken = allowed+p.allowed.Load(), undecided+p.undecided.Load(), broken+p.broken.Load()
		t.Log(p)
	}
	bound := float64(standard().Burst) + elapsed.Seconds()/standard().EmissionInterval()
	stoodIn := 0.0
	for _, r := range replicas {
		stoodIn += r.metric(t, "keystile_limiter_stood_in_total")
	}
	// On a busy machine Redis answers too late now and then: that is an outage, with its own bound.
	t.exact(float64(allowed) <= bound || !t.full && stoodIn > 0 && float64(allowed) <= busyShare*bound,
		"admitted %d of it in %.1f s, burst + rate·T is %.1f; Redis was stood in for %.0f checks of all", allowed, elapsed.Seconds(), bound, stoodIn)
	t.exact(broken == 0, "broken answers: %d", broken)
	t.timed(undecided == 0, "undecided: %d", undecided)
}
