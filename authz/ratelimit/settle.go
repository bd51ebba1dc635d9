package ratelimit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-redis/redis_rate/v10"
)

// keeperCalls is how many calls of the keeper may be in flight. redis_rate panics on a
// pipeline, so each worker asks one after the other.
const keeperCalls = 8

// settle charges in Redis what was admitted without it, as far as it is there, for the
// buckets listed so far. It returns false when Redis failed. What time does not allow
// is left for the next call.
func (l *Limiter) settle(ctx context.Context, within time.Duration) bool {
	var left atomic.Int64
	left.Store(int64(l.local.touched.size())) // traffic lists more meanwhile
	return l.each(ctx, within, l.settleOne, func() *bucket {
		if left.Add(-1) < 0 {
			return nil
		}
		return l.local.touched.pop()
	})
}

// restore takes from Redis' buckets what it has forgotten was taken, after a restart
// without its data or a failover. It returns false when Redis failed.
func (l *Limiter) restore(ctx context.Context, within time.Duration) bool {
	all, next := l.local.touched.all(), atomic.Int64{}
	return l.each(ctx, within, l.restoreOne, func() *bucket {
		if i := int(next.Add(1)) - 1; i < len(all) {
			return all[i]
		}
		return nil
	})
}

// each does one thing to each bucket that next returns, until nil.
func (l *Limiter) each(ctx context.Context, within time.Duration, do func(context.Context, *bucket) error, next func() *bucket) bool {
	until := time.Now().Add(within)
	var failed atomic.Bool
	var workers sync.WaitGroup
	for range keeperCalls {
		workers.Go(func() {
			for !failed.Load() && time.Now().Before(until) {
				b := next()
				if b == nil {
					return
				}
				if err := do(ctx, b); err != nil {
					failed.Store(true)
					if ctx.Err() == nil {
						l.tell(err, b.name)
					}
				}
			}
		})
	}
	workers.Wait()
	return !failed.Load()
}

// settleOne tells Redis of one bucket. Two replicas' charges add up, in any order.
func (l *Limiter) settleOne(ctx context.Context, b *bucket) error {
	now := l.local.now()
	n := l.local.share(now)
	units := b.takeDebt(now, n)
	if units == 0 {
		return nil
	}
	result, err := l.takeAtMost(ctx, b, units)
	switch {
	case isBadBucket(err): // the next charge resets it
		return nil
	case err != nil:
		b.oweAgain(now, n, units)
		l.local.touched.add(b)
		return err
	}
	b.known.Store(now + int64(result.ResetAfter))
	l.settled.Add(int64(result.Allowed))
	return nil
}

// restoreOne takes what is missing of one bucket. All replicas do so before any of
// them settles, lest one takes what another has settled for what is still known.
func (l *Limiter) restoreOne(ctx context.Context, b *bucket) error {
	known := b.known.Load()
	if known-l.local.now() < spanOf(b.rate, 1) {
		return nil
	}
	result, err := l.takeAtMost(ctx, b, 0) // takes nothing, and tells
	if err == nil {
		// The time after the answer: what came back while asking is not missing.
		missing := known - l.local.now() - int64(result.ResetAfter)
		units := int(float64(missing) / float64(spanOf(b.rate, 1)))
		if units < 1 {
			return nil
		}
		if result, err = l.takeAtMost(ctx, b, units); err == nil {
			l.restored.Add(int64(result.Allowed))
		}
	}
	if isBadBucket(err) {
		return nil
	}
	return err
}

// takeWithin is longer than a client would wait: nobody waits for the keeper, and what it
// tells Redis again because an answer was late is charged twice.
const takeWithin = 5 * budget

func (l *Limiter) takeAtMost(ctx context.Context, b *bucket, units int) (*redis_rate.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, takeWithin)
	defer cancel()
	result, err := l.rate.AllowAtMost(ctx, b.name, rateOf(b.rate), units)
	if err != nil {
		return nil, fmt.Errorf("tell Redis: %w", err)
	}
	return result, nil
}
