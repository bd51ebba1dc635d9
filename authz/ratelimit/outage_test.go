package ratelimit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store/localserver"
)

// outage is a way to take Redis away from three replicas, and back.
type outage struct {
	begin func(t *testing.T, r *localserver.Redis)
	end   func(t *testing.T, r *localserver.Redis)
}

func outages() map[string]outage {
	signal := func(s syscall.Signal) func(*testing.T, *localserver.Redis) {
		return func(t *testing.T, r *localserver.Redis) {
			t.Helper()
			if err := syscall.Kill(r.PID(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	do := func(commands ...string) func(*testing.T, *localserver.Redis) {
		return func(t *testing.T, r *localserver.Redis) {
			t.Helper()
			if _, err := r.Do(context.Background(), commands...); err != nil {
				t.Fatal(err)
			}
		}
	}
	return map[string]outage{
		"killed, data lost": {
			begin: func(t *testing.T, r *localserver.Redis) {
				t.Helper()
				signal(syscall.SIGKILL)(t, r)
				<-r.Done()
			},
			end: func(t *testing.T, r *localserver.Redis) {
				t.Helper()
				ownRedis(t, localserver.RedisOptions{Port: r.Port()})
			},
		},
		"paused":   {signal(syscall.SIGSTOP), signal(syscall.SIGCONT)},
		"READONLY": {do("REPLICAOF", "127.0.0.1", "1"), do("REPLICAOF", "NO", "ONE")},
		"OOM":      {do("CONFIG", "SET", "maxmemory", "1"), do("CONFIG", "SET", "maxmemory", "0")},
	}
}

// Three replicas, one clock, and a stream of charges before, in and after an outage.
func TestCharge_ThreeReplicasTogetherStayInTheBoundInAnOutageAndAfter(t *testing.T) {
	t.Parallel()
	for name, o := range outages() {
		for _, exhausted := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, exhausted %t", name, exhausted), func(t *testing.T) {
				t.Parallel()
				testBound(t, o, exhausted)
			})
		}
	}
}

func testBound(t *testing.T, o outage, exhausted bool) {
	t.Helper()
	r := ownRedis(t, localserver.RedisOptions{})
	var ls [3]*Limiter
	for i := range ls {
		ls[i] = newLimiter(t, Options{URL: r.URL(), Clock: wallClock{}, Replicas: func() int { return len(ls) }})
		warmUp(t, ls[i])
	}
	k, limit := newKey(), authz.Limit{Name: "key", Cost: 1, Rate: authz.Rate{Rate: 600, Period: time.Minute, Burst: 400}}
	var admitted, local atomic.Int64
	start := time.Now()
	if exhausted {
		for charge(t, ls[0], k, limit).Allowed {
			admitted.Add(1)
		}
	}
	o.begin(t, r)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, l := range ls {
		wg.Go(func() {
			tick := time.NewTicker(500 * time.Microsecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				c, err := l.Charge(context.Background(), k, limit, 1)
				if err != nil {
					t.Error(err)
				}
				if c.Allowed {
					admitted.Add(1)
					if c.Mode == authz.LimiterLocal {
						local.Add(1)
					}
				}
			}
		})
	}
	for _, l := range ls {
		eventually(t, "the stand-in", func() bool { return l.Health().Degraded })
	}
	<-time.After(2 * time.Second)
	o.end(t, r)
	back := time.Now()
	for _, l := range ls {
		eventually(t, "exact charges", func() bool { return l.Health().Mode == authz.LimiterExact })
	}
	exactAfter := time.Since(back)
	<-time.After(1500 * time.Millisecond)
	close(stop)
	wg.Wait()
	bound := 1.25 * (float64(limit.Burst) + 10*time.Since(start).Seconds())
	t.Logf("%d admitted, %d of them by the stand-ins, the bound is %.0f; exact %v after the return", admitted.Load(), local.Load(), bound, exactAfter)
	if got := float64(admitted.Load()); got > bound {
		t.Errorf("%.0f admitted, the bound is %.0f", got, bound)
	}
	if local.Load() < int64(limit.Burst)/8 && !exhausted {
		t.Errorf("the stand-ins admit only %d", local.Load())
	}
	if exactAfter > 10*time.Second {
		t.Errorf("exact %v after the return", exactAfter)
	}
	for _, l := range ls {
		if h := l.Health(); h.StoodIn == 0 || h.Replicas != 3 || h.Unsettled != 0 {
			t.Errorf("%+v", h)
		}
	}
}

// A PING would find it back too early.
func TestKeeper_AReplicaWithoutTrafficFindsRedisBack(t *testing.T) {
	r := ownRedis(t, localserver.RedisOptions{})
	l := newLimiter(t, Options{URL: r.URL()})
	warmUp(t, l)
	o := outages()["READONLY"]
	o.begin(t, r)
	eventually(t, "the stand-in", func() bool { charge(t, l, newKey(), perHour(8)); return l.Health().Breaker == "open" })
	failed := l.Health().Failed
	for range 3 { // the keeper's own probes find a Redis that reads and does not write
		if l.isBack(t.Context()) {
			t.Fatal("a Redis that does not write is taken for one that is back")
		}
		if l.Ping(t.Context()) != nil {
			t.Fatal("it does not read either")
		}
	}
	if h := l.Health(); h.Failed != failed || h.Breaker != "open" {
		t.Errorf("%+v", h)
	}
	o.end(t, r)
	eventually(t, "exact, without a call", func() bool { return l.Health().Mode == authz.LimiterExact })
	eventually(t, "the keeper's end", func() bool { return !l.keeper.running.Load() })
}

func TestKeeper_EndsWithClose(t *testing.T) {
	for _, mode := range []authz.LimiterMode{authz.LimiterLocal, authz.LimiterClosed, authz.LimiterOpen} {
		l, err := New(Options{URL: "redis://127.0.0.1:1", OnOutage: mode, Clock: newFakeClock()})
		if err != nil {
			t.Fatal(err)
		}
		for range breakAfter {
			charge(t, l, newKey(), perHour(8))
		}
		if !l.keeper.running.Load() || l.Health().Breaker != "open" {
			t.Errorf("%s: nobody looks after Redis: %+v", mode, l.Health())
		}
		ended := make(chan error)
		go func() { ended <- l.Close() }()
		select {
		case err = <-ended:
		case <-time.After(20 * time.Second):
			t.Fatal("Close hangs")
		}
		if err != nil {
			t.Error(err)
		}
	}
	l, err := New(Options{URL: "redis://127.0.0.1:1", Clock: newFakeClock()})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for range breakAfter {
		charge(t, l, newKey(), perHour(8))
	}
	if l.keeper.running.Load() {
		t.Error("a late call starts what nobody stops")
	}
}

// A few charges that were stood in for while Redis was not away are told as well.
func TestKeeper_SettlesAlsoWhatWasStoodInForWithoutAnOutage(t *testing.T) {
	r := ownRedis(t, localserver.RedisOptions{})
	l, k, limit := newLimiter(t, Options{URL: r.URL()}), newKey(), perHour(40)
	warmUp(t, l)
	for range 5 {
		l.standIn(bucketName(k, limit), limit.Rate, 1)
	}
	eventually(t, "five units to be settled", func() bool { return l.Health().SettledUnits == 5 })
	if c := charge(t, l, k, limit); c.Mode != authz.LimiterExact || limit.Remaining(c.ResetAfter) != 34 {
		t.Errorf("%+v", c)
	}
	eventually(t, "the keeper's end", func() bool { return !l.keeper.running.Load() })
}

// Of a cluster a part may be away while the breaker stays closed: health tells it.
func TestHealth_WhatWasStoodInForIsToldForAWhile(t *testing.T) {
	l := newLimiter(t, Options{URL: "redis://127.0.0.1:1"})
	if h := l.Health(); h.Degraded {
		t.Errorf("before any charge: %+v", h)
	}
	charge(t, l, newKey(), perHour(8)) // one failure does not open the breaker
	if h := l.Health(); !h.Degraded {
		t.Errorf("after a charge that was stood in for: %+v", h)
	}
	l.made = l.made.Add(-degradedFor)
	l.breaker.close()
	if h := l.Health(); h.Degraded {
		t.Errorf("long after it: %+v", h)
	}
}
