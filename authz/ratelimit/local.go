package ratelimit

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/supportstation/keystile/authz"
)

// maxLocalBuckets bounds the buckets of the stand-in, some 30 MB. Beyond them the
// least used is forgotten, which gives its key a new burst. Nothing is forgotten for
// its age: a bucket of a daily limit would be full again after that age.
const maxLocalBuckets = 100_000

// local is the same GCRA as redis_rate's, in this process. Safe for concurrent use.
type local struct {
	clock authz.Clock
	// buckets hold the theoretical arrival time in nanoseconds of the Unix epoch.
	buckets *otter.Cache[string, *atomic.Int64]
}

func newLocal(clock authz.Clock) (*local, error) {
	buckets, err := otter.New(&otter.Options[string, *atomic.Int64]{
		MaximumSize: maxLocalBuckets,
	})
	if err != nil {
		return nil, fmt.Errorf("make the local limiter: %w", err)
	}
	return &local{clock, buckets}, nil
}

// charge takes cost units, as redis_rate's allow_n.lua does.
func (l *local) charge(bucket string, r authz.Rate, cost int) authz.Charge {
	now := l.clock.Now().UnixNano()
	interval := r.EmissionInterval() * float64(time.Second)
	increment := int64(interval * float64(cost))
	offset := int64(interval * float64(r.Burst))
	tat := l.bucket(bucket)
	for {
		stored := tat.Load()
		from := max(stored, now)
		if from-now > offset+int64(clockSlack) {
			from = now // the clock has stepped back: see steppedBack
		}
		next := from + increment
		if wait := next - offset - now; wait > 0 {
			return authz.Charge{
				ResetAfter: time.Duration(from - now), RetryAfter: time.Duration(wait), Mode: authz.LimiterLocal,
			}
		}
		if tat.CompareAndSwap(stored, next) {
			return authz.Charge{Allowed: true, ResetAfter: time.Duration(next - now), Mode: authz.LimiterLocal}
		}
	}
}

func (l *local) bucket(name string) *atomic.Int64 {
	if tat, ok := l.buckets.GetIfPresent(name); ok {
		return tat
	}
	tat, _ := l.buckets.SetIfAbsent(name, new(atomic.Int64))
	return tat
}
