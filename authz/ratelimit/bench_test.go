package ratelimit

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// BenchmarkCharge measures one charge, with the CPU time of this process (not of Redis):
// admitted by a real Redis, denied by it and from then on here, and by the stand-in. The
// last figure is how many Redis did not answer in the budget.
func BenchmarkCharge(b *testing.B) {
	url := servers.start(b).redis.URL()
	ample := authz.Limit{Name: "key", Cost: 1, Rate: authz.Rate{Rate: authz.MaxRatePerSecond, Period: time.Second, Burst: 1_000_000_000}}
	for _, c := range []struct {
		name, url string
		limit     authz.Limit
	}{{"exact", url, ample}, {"denied", url, perMinute(100)}, {"local", "", perMinute(100)}} {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/callers=%d", c.name, callers), func(b *testing.B) {
				l := newLimiter(b, Options{URL: c.url, Clock: wallClock{}})
				var failed atomic.Int64
				b.ReportAllocs()
				before := cpuTime()
				perCaller := b.N/callers + 1
				done := make(chan struct{})
				for range callers {
					go func() {
						defer func() { done <- struct{}{} }()
						k := newKey()
						for range perCaller {
							if got, err := l.Charge(context.Background(), k, c.limit, 1); err != nil || c.url != "" && got.Mode != authz.LimiterExact {
								failed.Add(1)
							}
						}
					}()
				}
				for range callers {
					<-done
				}
				b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/1000/float64(perCaller*callers), "cpu-µs/op")
				b.ReportMetric(float64(failed.Load()), "stood-in")
			})
		}
	}
}

// BenchmarkParts measures what the ordinary charge pays for being prepared: the look
// for a refusal, a place in the bulkhead, and the note for the stand-in.
func BenchmarkParts(b *testing.B) {
	k, limit := newKey(), perMinute(100)
	b.Run("memo", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if findMemo(k, limit) != nil {
				b.Fatal("there is one")
			}
		}
	})
	b.Run("bulkhead", func(b *testing.B) {
		places := newBulkhead(poolSize())
		b.ReportAllocs()
		for b.Loop() {
			if _, err := places.enter(budget); err == nil {
				places.leave()
			}
		}
	})
	for _, n := range []int{1, 3} {
		b.Run(fmt.Sprintf("note/replicas=%d", n), func(b *testing.B) {
			l, err := newLocal(wallClock{}, func() int { return n }, false)
			if err != nil {
				b.Fatal(err)
			}
			names := make([]string, 10_000)
			for i := range names {
				names[i] = bucketName(newKey(), limit)
				l.note(1, names[i], limit.Rate, 1)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				l.note(int64(i), names[i%len(names)], limit.Rate, int64(i))
			}
		})
	}
}

// BenchmarkSettle measures how many buckets a second Redis is told of.
func BenchmarkSettle(b *testing.B) {
	l, err := New(Options{URL: servers.start(b).redis.URL(), Clock: wallClock{}})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	l.keeper.running.Store(true) // nobody but this tells Redis
	limit := perMinute(100)
	for range b.N {
		l.local.charge(bucketName(newKey(), limit), limit.Rate, 1)
	}
	b.ResetTimer()
	for l.local.touched.size() > 0 {
		if !l.settle(context.Background(), time.Minute) {
			b.Fatal("Redis failed")
		}
	}
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
