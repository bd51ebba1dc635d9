package ratelimit

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxLocalBuckets bounds the buckets of the stand-in. Beyond them the least used
	// is forgotten, and then starts like one that was never seen. Nothing is
	// forgotten for its age: a bucket of a daily limit would be full again after it.
	maxLocalBuckets = 100_000
	// maxReplicas bounds what a limit is divided by, so that times stay in 64 bits.
	maxReplicas = 100
	// aloneGap is how long nobody may have looked for other replicas: one that is there is
	// counted for no less (liveFor in store).
	aloneGap = 2 * time.Second
	// startShare of a burst is what all stand-ins together start with.
	startShare = 4
)

// local is the same GCRA as redis_rate's, in this process, for this replica's share.
// All times are nanoseconds of the Unix epoch. Safe for concurrent use.
type local struct {
	clock    authz.Clock
	replicas func() int
	// whole: there is no Redis; the limit is not divided, and buckets start full.
	whole   bool
	buckets *otter.Cache[string, *bucket]
	touched touched
	// epoch changes with each switch between Redis and the stand-in, at which no
	// bucket may start with more than its share of startShare.
	epoch atomic.Int64
	// alone is since when this replica has been the only one and has forgotten nothing.
	alone atomic.Int64
	// looked is when it was last looked whether it is the only one.
	looked atomic.Int64
}

func newLocal(clock authz.Clock, replicas func() int, whole bool) (*local, error) {
	l := &local{clock: clock, replicas: replicas, whole: whole}
	l.alone.Store(clock.Now().UnixNano())
	var err error
	l.buckets, err = otter.New(&otter.Options[string, *bucket]{
		MaximumSize: maxLocalBuckets,
		OnAtomicDeletion: func(e otter.DeletionEvent[string, *bucket]) {
			if e.WasEvicted() {
				l.alone.Store(l.clock.Now().UnixNano())
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make the local limiter: %w", err)
	}
	return l, nil
}

func (l *local) now() int64 { return l.clock.Now().UnixNano() }

// bucket is one bucket as this replica knows it.
type bucket struct {
	name string
	rate authz.Rate
	// known is when Redis' bucket is full again, as it last said; 0 when it never did.
	known atomic.Int64
	// listed tells that it is among those of which Redis is to be told.
	listed atomic.Bool

	mu sync.Mutex
	// tat is the theoretical arrival time of the share: it fills in the time in which
	// the whole bucket does, and a unit of it takes as many times longer as there
	// are replicas.
	tat int64
	// begun, from, epoch and replicas are what tat was last begun or corrected with.
	begun       bool
	from, epoch int64
	replicas    int
	// debt is what Redis is to be told of, as the time in which the whole bucket
	// earns it; from since on it shrinks by this replica's share of that.
	debt, since int64
}

// share is the number of replicas that divide a limit.
func (l *local) share(now int64) int {
	if l.whole || l.replicas == nil {
		return 1
	}
	n := min(max(l.replicas(), 1), maxReplicas)
	looked := l.looked.Load()
	// An idle replica does not know who was there meanwhile, and what they took.
	if n > 1 || now-looked > int64(aloneGap) {
		l.alone.Store(now)
	}
	if now-looked > int64(aloneGap/8) || now < looked { // all charges would share the write
		l.looked.Store(now)
	}
	return n
}

// note keeps when a bucket in Redis is full again, as it has just said.
func (l *local) note(now int64, name string, r authz.Rate, full int64) {
	l.share(now)
	l.bucket(name, r).known.Store(full)
}

// charge takes cost units, and owes them to Redis.
func (l *local) charge(name string, r authz.Rate, cost int) authz.Charge {
	return l.take(name, r, cost, true)
}

// take takes cost units, as redis_rate's allow_n.lua does. Unless they are owed, Redis is
// not told of them.
func (l *local) take(name string, r authz.Rate, cost int, owed bool) authz.Charge {
	now := l.now()
	n, b := l.share(now), l.bucket(name, r)
	c := b.charge(l, now, n, cost, owed)
	if !l.whole {
		l.touched.add(b)
	}
	return c
}

func (b *bucket) charge(l *local, now int64, n, cost int, owed bool) authz.Charge {
	full := spanOf(b.rate, b.rate.Burst)
	interval := b.rate.EmissionInterval() * float64(time.Second)
	increment := int64(min(interval*float64(cost)*float64(n), float64(maxReplicas*366*24*time.Hour)))
	// A share below the cost would never admit it, however long it waits.
	capacity := max(full, increment)

	b.mu.Lock()
	defer b.mu.Unlock()
	b.begin(l, now, n, full)
	from := max(b.tat, now)
	if from-now > full*int64(n)+int64(clockSlack) {
		from = now // the clock has stepped back: see steppedBack
	}
	next := from + increment
	if wait := next - capacity - now; wait > 0 {
		return authz.Charge{ResetAfter: time.Duration(from - now), RetryAfter: time.Duration(wait), Mode: authz.LimiterLocal}
	}
	b.tat = next
	if owed {
		b.owe(now, n, full, int64(interval*float64(cost)))
	}
	return authz.Charge{Allowed: true, ResetAfter: time.Duration(next - now), Mode: authz.LimiterLocal}
}

// begin sets what a bucket starts with at a switch, or after Redis has said how full
// it is: no more than that, and no more than a quarter, because the other replicas
// may have taken it. So together they start with a quarter of a burst at most.
func (b *bucket) begin(l *local, now int64, n int, full int64) {
	if b.begun && n != b.replicas {
		// As many units as before; they are another part of the share now.
		if left := full - max(b.tat-now, 0); left > 0 {
			b.tat = now + full - min(left/int64(b.replicas)*int64(n), full)
		}
	}
	b.replicas = n
	known, epoch := b.known.Load(), l.epoch.Load()
	if l.whole || b.begun && known == b.from && epoch == b.epoch {
		return
	}
	b.begun, b.from, b.epoch = true, known, epoch
	start := max(full-max(known-now, 0), 0)
	if n > 1 || now-l.alone.Load() < full {
		start = min(start, full/startShare)
	}
	b.tat = max(b.tat, now+full-start)
}

// owe adds to the debt. It does not shrink before a whole window has passed since
// the first of it: Redis' bucket, of which this replica does not know what others
// have taken, may have been empty, and what came back there meanwhile is this.
func (b *bucket) owe(now int64, n int, full, span int64) {
	b.shrink(now, n)
	if b.debt == 0 {
		b.since = now + full
	}
	b.debt += span
}

func (b *bucket) shrink(now int64, n int) {
	if now > b.since {
		b.debt = max(b.debt-(now-b.since)/int64(n), 0)
		b.since = now
	}
}

// takeDebt returns the debt in units, rounded up, and forgets it.
func (b *bucket) takeDebt(now int64, n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shrink(now, n)
	units := unitsUp(b.rate, b.debt)
	b.debt = 0
	return units
}

// oweAgain gives back units that could not be told.
func (b *bucket) oweAgain(now int64, n, units int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.owe(now, n, spanOf(b.rate, b.rate.Burst), spanOf(b.rate, units))
}

// unitsUp is how many units come back in a span, rounded up but for a microsecond.
func unitsUp(r authz.Rate, span int64) int {
	interval := r.EmissionInterval() * float64(time.Second)
	return int(math.Ceil(float64(max(span-int64(time.Microsecond), 0)) / interval))
}

func (l *local) bucket(name string, r authz.Rate) *bucket {
	if b, ok := l.buckets.GetIfPresent(name); ok {
		return b
	}
	b, _ := l.buckets.SetIfAbsent(name, &bucket{name: name, rate: r})
	return b
}
