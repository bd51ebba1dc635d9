package ratelimit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/supportstation/keystile/authz"
)

// The stand-in decides as redis_rate does, on one clock. Times are multiples of
// 1/64 s, which both sides compute without rounding, so that even a charge at the
// very moment when its unit comes back must agree.
func TestLocal_DecidesAsRedisRateDoes(t *testing.T) {
	const tick = time.Second / 64
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	theirs := redis_rate.NewLimiter(client)
	serial := 0
	rapid.Check(t, func(t *rapid.T) {
		serial++
		bucket := fmt.Sprint("b", serial)
		clock := newFakeClock()
		ours, err := newLocal(clock, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		rate := authz.Rate{
			Rate:   1 << rapid.IntRange(0, 6).Draw(t, "log rate"),
			Period: time.Duration(rapid.IntRange(1, 90).Draw(t, "period")) * time.Second,
			Burst:  rapid.IntRange(1, 40).Draw(t, "burst"),
		}
		limit := redis_rate.Limit{Rate: rate.Rate, Period: rate.Period, Burst: rate.Burst}
		for range rapid.IntRange(1, 30).Draw(t, "charges") {
			clock.advance(time.Duration(rapid.IntRange(0, 200).Draw(t, "ticks")) * tick)
			server.SetTime(clock.Now())
			cost := rapid.IntRange(1, rate.Burst).Draw(t, "cost")
			result, err := theirs.AllowN(context.Background(), bucket, limit, cost)
			if err != nil {
				t.Fatal(err)
			}
			want, got := chargeOf(result), ours.charge(bucket, rate, cost)
			if got.Allowed != want.Allowed || !near(got.ResetAfter, want.ResetAfter) || !near(got.RetryAfter, want.RetryAfter) {
				t.Fatalf("cost %d: %+v, redis_rate says %+v", cost, got, want)
			}
		}
	})
}

// near allows for the digits that Lua's tostring drops (14 are kept).
func near(a, b time.Duration) bool { return (a - b).Abs() <= time.Microsecond }

func TestLocal_AStepBackOfTheClockDeniesNobodyForLong(t *testing.T) {
	clock := newFakeClock()
	l, err := newLocal(clock, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	rate := authz.Rate{Rate: 1, Period: time.Second, Burst: 3}
	for range 3 {
		l.charge("b", rate, 1)
	}
	clock.advance(-time.Hour)
	if c := l.charge("b", rate, 1); !c.Allowed || c.ResetAfter != time.Second {
		t.Errorf("after the clock went back: %+v", c)
	}
}

func TestLocal_ConcurrentChargesTakeEachUnitOnce(t *testing.T) {
	l, err := newLocal(newFakeClock(), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	rate := authz.Rate{Rate: 1, Period: time.Hour, Burst: 5000}
	var allowed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20_000 {
				if l.charge("b", rate, 1).Allowed {
					allowed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if allowed.Load() != 5000 {
		t.Errorf("%d of 5000 units were taken", allowed.Load())
	}
}

func TestLocal_ItsMemoryIsBounded(t *testing.T) {
	l, err := newLocal(newFakeClock(), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	rate := authz.Rate{Rate: 1, Period: time.Hour, Burst: 1}
	for i := range 2 * maxLocalBuckets {
		l.charge(fmt.Sprint(i), rate, 1)
	}
	l.buckets.CleanUp()
	if got := l.buckets.EstimatedSize(); got > maxLocalBuckets {
		t.Errorf("%d buckets are kept", got)
	}
}
