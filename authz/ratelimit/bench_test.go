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

// BenchmarkCharge measures one charge against a real Redis and by the stand-in, with
// the CPU time of this process (not of Redis), and how many Redis did not answer in
// the budget.
func BenchmarkCharge(b *testing.B) {
	for name, url := range map[string]string{"exact": servers.start(b).redis.URL(), "local": ""} {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/callers=%d", name, callers), func(b *testing.B) {
				l := newLimiter(b, Options{URL: url, Clock: wallClock{}})
				limit := perMinute(100)
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
							if c, err := l.Charge(context.Background(), k, limit, 1); err != nil || url != "" && c.Mode != authz.LimiterExact {
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

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
