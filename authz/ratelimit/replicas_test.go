package ratelimit

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"pgregory.net/rapid"

	"github.com/supportstation/keystile/authz"
)

// fatal is what a test of one example and of many have in common.
type fatal interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// replicas are N limiters on a Redis and a clock that the test moves, with the keeper's
// steps taken by the test.
type replicas struct {
	clock *fakeClock
	redis *miniredis.Miniredis
	ls    []*Limiter
	due   []time.Time // when each keeper's next step is
	begun int         // outages that the test began
}

func newReplicas(t fatal, redis *miniredis.Miniredis, n int) *replicas {
	w := &replicas{clock: newFakeClock(), redis: redis, due: make([]time.Time, n)}
	redis.SetTime(w.clock.Now())
	for range n {
		l, err := New(Options{URL: "redis://" + redis.Addr(), Clock: w.clock, Replicas: func() int { return n }})
		if err != nil {
			t.Fatal(err)
		}
		l.keeper.running.Store(true) // no goroutine: step is called here
		w.ls = append(w.ls, l)
	}
	return w
}

func (w *replicas) close() {
	for _, l := range w.ls {
		_ = l.Close()
	}
}

// advance moves the time, taking the keepers' steps when they are due.
func (w *replicas) advance(d time.Duration) {
	for end := w.clock.Now().Add(d); w.clock.Now().Before(end); {
		step := min(50*time.Millisecond, end.Sub(w.clock.Now()))
		w.clock.advance(step)
		w.redis.SetTime(w.clock.Now())
		for i, l := range w.ls {
			if now := w.clock.Now(); !now.Before(w.due[i]) {
				w.due[i] = now.Add(w.step(l))
			}
		}
	}
}

// step takes one step and returns when the next is, on the test's clock.
func (w *replicas) step(l *Limiter) time.Duration {
	l.step(context.Background())
	switch {
	case l.breaker.String() != "settling":
		return probeEvery
	case l.keeper.settles == 0:
		return settleAt
	default:
		return holdUntil - settleAt
	}
}

// away takes Redis away: each replica meets it, with charges of a key apart.
func (w *replicas) away(t fatal) {
	w.begun++
	w.redis.SetError("READONLY You can't write against a read only replica.")
	for _, l := range w.ls {
		for range breakAfter {
			if _, err := l.Charge(context.Background(), newKey(), perMinute(100), 1); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// outages are those begun until now, and each call that Redis did not answer in the
// budget because the machine was busy: an outage as good as any.
func (w *replicas) outages() int {
	missed := -w.begun * len(w.ls) * breakAfter
	for _, l := range w.ls {
		missed += int(l.failed.Load() + l.crowded.Load())
	}
	return w.begun + max(missed, 0)
}

type admission struct {
	at      time.Time
	units   int
	outages int // begun until then, of which the test began some
	begun   int
}

// The bound, for a window T that k outages touch, each met by all N replicas:
// (1 + k/4)·burst + rate·(T + k·hold) + k·N·cost.
//
// Let δ be the deficit of one ideal bucket that drains at the rate and takes every
// admitted unit: what is admitted in T is at most δ's growth + rate·T, and δ ≤ burst
// while nothing is forgiven. At the start of an outage the stand-ins have burst/4 in
// all and gain rate/N each, so δ ≤ burst + burst/4 (a share of at least one cost adds
// N·cost). Settling raises Redis' deficit by all that was admitted, undiminished for a
// window, hence to min(δ, burst); what exceeds the burst is forgiven: burst/4 at most,
// less what the stand-ins still hold. Who is exact first may take from Redis what the
// others hold, again capped at burst/4, and gain in their hold.
func TestCharge_ReplicasTogetherStayInTheBoundWhateverHappens(t *testing.T) {
	redis := miniredis.RunT(t)
	rapid.Check(t, func(t *rapid.T) {
		redis.SetError("")
		redis.FlushAll()
		n := rapid.IntRange(1, 4).Draw(t, "replicas")
		w := newReplicas(t, redis, n)
		defer w.close()
		limit := authz.Limit{Name: "key", Cost: 1, Rate: authz.Rate{
			Rate: rapid.IntRange(1, 600).Draw(t, "rate"), Period: time.Minute, Burst: rapid.IntRange(4, 120).Draw(t, "burst"),
		}}
		k, cost := newKey(), rapid.IntRange(1, min(limit.Burst, 5)).Draw(t, "cost")
		var log []admission
		away := false
		for range rapid.IntRange(4, 15).Draw(t, "events") {
			switch rapid.IntRange(0, 5).Draw(t, "event") {
			case 0: // another outage may begin when the last is settled
				if !away && w.exact() && w.begun < 3 {
					w.away(t)
					away = true
				}
			case 1:
				if away {
					redis.SetError("")
					away = false
				}
			case 2:
				w.advance(time.Duration(rapid.IntRange(1, 30).Draw(t, "s")) * time.Second)
			default: // a crowd, on some replicas more than on others
				for range rapid.IntRange(1, 60).Draw(t, "charges") {
					l := w.ls[rapid.IntRange(0, n-1).Draw(t, "at")]
					c, err := l.Charge(context.Background(), k, limit, cost)
					if err != nil {
						t.Fatal(err)
					}
					if c.Allowed {
						log = append(log, admission{w.clock.Now(), cost, w.outages(), w.begun})
					}
				}
				w.advance(time.Duration(rapid.IntRange(0, 2000).Draw(t, "ms")) * time.Millisecond)
			}
		}
		checkBound(t, log, limit, n, cost)
	})
}

func (w *replicas) exact() bool {
	for _, l := range w.ls {
		if !l.breaker.allow() {
			return false
		}
	}
	return true
}

func checkBound(t fatal, log []admission, limit authz.Limit, n, cost int) {
	for i := range log {
		units := 0
		for _, a := range log[i:] {
			units += a.units
			outages := float64(a.outages - max(log[i].begun-1, 0)) // the last before it may last
			span := a.at.Sub(log[i].at).Seconds() + outages*holdUntil.Seconds()
			bound := (1+outages/4)*float64(limit.Burst) + span/limit.EmissionInterval() + outages*float64(n*cost)
			if float64(units) > math.Ceil(bound) {
				t.Fatalf("%d units of %+v in %v with %.0f outages, the bound is %.1f", units, limit.Rate, a.at.Sub(log[i].at), outages, bound)
			}
		}
	}
}

// take charges units at one replica until it denies.
func (w *replicas) take(t fatal, i int, k *authz.Key, limit authz.Limit) (log []admission) {
	for {
		c, err := w.ls[i].Charge(context.Background(), k, limit, 1)
		if err != nil {
			t.Fatal(err)
		}
		if !c.Allowed {
			return log
		}
		log = append(log, admission{w.clock.Now(), 1, w.outages(), w.begun})
	}
}

// The worst client: it has emptied the bucket before the outage through one replica,
// takes all that each stand-in has, for a window, and then all that Redis has at the
// replica that is exact first. The others find Redis back a probe later.
func TestCharge_AWindowOfOutageUnderAttackStaysInTheBound(t *testing.T) {
	redis := miniredis.RunT(t)
	w := newReplicas(t, redis, 3)
	defer w.close()
	k, limit := newKey(), perMinute(120)
	log := w.take(t, 0, k, limit)
	w.away(t)
	for range 60 {
		for i := range w.ls {
			log = append(log, w.take(t, i, k, limit)...)
		}
		w.advance(time.Second)
	}
	redis.SetError("")
	now := w.clock.Now()
	w.due = []time.Time{now, now.Add(probeEvery), now.Add(probeEvery)}
	for range 60 {
		w.advance(50 * time.Millisecond)
		for i := range w.ls {
			log = append(log, w.take(t, i, k, limit)...)
		}
	}
	if !w.exact() && w.outages() == 1 {
		t.Error("not exact 3 s after the return")
	}
	checkBound(t, log, limit, 3, 1)
}

// Another: its bucket has filled up everywhere in a long outage, and it takes it from
// Redis and from the stand-ins at the moment when one replica is exact already.
func TestCharge_AFullBucketIsNotTakenTwiceAtTheReturn(t *testing.T) {
	redis := miniredis.RunT(t)
	w := newReplicas(t, redis, 3)
	defer w.close()
	k, limit := newKey(), perMinute(120)
	w.away(t)
	for i := range w.ls {
		w.take(t, i, k, limit)
	}
	w.advance(5 * time.Minute)
	redis.SetError("")
	now := w.clock.Now()
	w.due = []time.Time{now, now.Add(probeEvery), now.Add(probeEvery)}
	for !w.ls[0].breaker.allow() {
		w.advance(50 * time.Millisecond)
	}
	if w.exact() && w.outages() == 1 {
		t.Fatal("all are exact at once; the test tests nothing")
	}
	var log []admission
	for i := range w.ls {
		log = append(log, w.take(t, i, k, limit)...)
	}
	checkBound(t, log, limit, 3, 1)
	if got := len(log); w.outages() == 1 && (got > limit.Burst*5/4 || got < limit.Burst) {
		t.Errorf("%d of %d", got, limit.Burst)
	}
}
