package ratelimit

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store/localserver"
)

func TestCharge_Exactly100Of110AndExactRemaining(t *testing.T) {
	for name, url := range everyURL(t) {
		t.Run(name, func(t *testing.T) {
			l, k := newLimiter(t, Options{URL: url}), newKey()
			warmUp(t, l)
			limit := perHour(100)
			for n := 1; n <= 110; n++ {
				c := charge(t, l, k, limit)
				if c.Mode != authz.LimiterExact {
					t.Fatalf("charge %d is counted %s", n, c.Mode)
				}
				if want := max(100-n, 0); c.Allowed != (n <= 100) || limit.Remaining(c.ResetAfter) != want {
					t.Errorf("charge %d: allowed %t, %d remaining, want %d", n, c.Allowed, limit.Remaining(c.ResetAfter), want)
				}
				if c.Allowed != (c.RetryAfter == 0) {
					t.Errorf("charge %d: allowed %t, retry after %v", n, c.Allowed, c.RetryAfter)
				}
			}
		})
	}
}

// everyURL are the kinds of URL by which a Redis is reached.
func everyURL(t *testing.T) map[string]string {
	t.Helper()
	s := servers.start(t)
	return map[string]string{"tcp": s.redis.URL(), "unix": s.redis.SocketURL(), "cluster": s.cluster.URL()}
}

// warmUp charges until Redis has counted: the first connection, and a cluster's
// topology, may take longer than the budget on a busy machine.
func warmUp(t testing.TB, l *Limiter) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for charge(t, l, newKey(), perMinute(10)).Mode != authz.LimiterExact {
		if time.Now().After(deadline) {
			t.Fatal("Redis has not counted for 20 s")
		}
	}
}

func TestCharge_OnAClusterKeysOfAllNodesAreExact(t *testing.T) {
	l := newLimiter(t, Options{URL: servers.start(t).cluster.URL()})
	warmUp(t, l)
	for range 300 {
		k, limit := newKey(), perHour(2)
		for n := range 3 {
			if c := charge(t, l, k, limit); c.Mode == authz.LimiterExact && c.Allowed != (n < 2) {
				t.Fatalf("charge %d: %+v", n, c)
			}
		}
	}
	if h := l.Health(); h.Exact+h.DeniedLocally < 800 {
		t.Errorf("of 900 charges %d are exact", h.Exact+h.DeniedLocally)
	}
}

func TestCharge_RemainingFollowsTheFormulaForRandomLimits(t *testing.T) {
	l := newLimiter(t, Options{URL: servers.start(t).redis.URL()})
	warmUp(t, l)
	random := rand.New(rand.NewPCG(1, 2))
	for asked := 0; asked < 2000; {
		// So slow that nothing comes back meanwhile.
		limit := authz.Limit{Name: "key", Cost: 1, Rate: authz.Rate{
			Rate: 1 + random.IntN(60), Period: time.Hour, Burst: 1 + random.IntN(130),
		}}
		k, left := newKey(), limit.Burst
		for range 1 + random.IntN(12) {
			cost := 1 + random.IntN(limit.Burst)
			c, err := l.Charge(t.Context(), k, limit, cost)
			if err != nil {
				t.Fatal(err)
			}
			if c.Mode != authz.LimiterExact {
				break // a busy machine; what is left in Redis is not known any more
			}
			asked++
			if c.Allowed != (cost <= left) {
				t.Fatalf("%+v: cost %d of %d left: allowed %t", limit.Rate, cost, left, c.Allowed)
			}
			if c.Allowed {
				left -= cost
			}
			if got := limit.Remaining(c.ResetAfter); got != left {
				t.Fatalf("%+v after cost %d: %d remaining, want %d (full again after %v)", limit.Rate, cost, got, left, c.ResetAfter)
			}
		}
	}
}

func TestCharge_WhatRedisRateMisunderstandsIsRefusedBeforeTheCall(t *testing.T) {
	l := newLimiter(t, Options{URL: servers.start(t).redis.URL()})
	for name, bad := range map[string]func(*authz.Limit, *int){
		"zero rate":       func(l *authz.Limit, _ *int) { l.Rate.Rate = 0 },
		"negative rate":   func(l *authz.Limit, _ *int) { l.Rate.Rate = -1 },
		"too fast":        func(l *authz.Limit, _ *int) { l.Rate.Rate, l.Period = 10_001, time.Second },
		"zero cost":       func(_ *authz.Limit, c *int) { *c = 0 },
		"refund":          func(_ *authz.Limit, c *int) { *c = -1 },
		"cost over burst": func(l *authz.Limit, c *int) { *c = l.Burst + 1 },
	} {
		limit, cost := perMinute(100), 1
		bad(&limit, &cost)
		if c, err := l.Charge(t.Context(), newKey(), limit, cost); err == nil || c.Allowed {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	if c, err := l.Charge(t.Context(), nil, perMinute(1), 1); err == nil || c.Allowed {
		t.Errorf("no key: %+v, %v", c, err)
	}
}

func TestCharge_BucketsAreKeptApart(t *testing.T) {
	l := newLimiter(t, Options{URL: servers.start(t).redis.URL()})
	warmUp(t, l)
	k, limit := newKey(), perHour(3)
	first := charge(t, l, k, limit)
	test := &authz.Key{ID: k.ID, Organization: k.Organization, Environment: authz.EnvironmentTest}
	for name, other := range map[string]authz.Charge{
		"another key":          charge(t, l, newKey(), limit),
		"the test environment": charge(t, l, test, limit),
		"another limit's name": charge(t, l, k, authz.Limit{Name: "organization", Cost: 1, Rate: limit.Rate}),
	} {
		if other.ResetAfter > first.ResetAfter {
			t.Errorf("%s shares a bucket: %+v", name, other)
		}
	}
	if again := charge(t, l, k, limit); limit.Remaining(again.ResetAfter) != 1 {
		t.Errorf("the same bucket is another: %+v", again)
	}
}

func TestCharge_AStreamGetsTheBoundAndNoMore(t *testing.T) {
	for name, o := range map[string]Options{"exact": {URL: servers.start(t).redis.URL()}, "local": {}} {
		t.Run(name, func(t *testing.T) {
			o.Clock = wallClock{}
			l, k := newLimiter(t, o), newKey()
			limit := authz.Limit{Name: "key", Cost: 1, Rate: authz.Rate{Rate: 200, Period: time.Second, Burst: 20}}
			if name == "exact" {
				warmUp(t, l)
			}
			var exact, stood atomic.Int64
			start := time.Now()
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for time.Since(start) < 500*time.Millisecond {
						c, err := l.Charge(context.Background(), k, limit, 1)
						switch {
						case err != nil:
							t.Error(err)
						case !c.Allowed:
						case string(c.Mode) == name:
							exact.Add(1)
						default:
							stood.Add(1)
						}
					}
				})
			}
			wg.Wait()
			bound := 20 + int64(math.Ceil(200*time.Since(start).Seconds()))
			if got := exact.Load(); got > bound || got < 20 {
				t.Errorf("%d admitted, the bound is %d", got, bound)
			}
			if stood.Load() > bound {
				t.Errorf("%d more by the stand-in", stood.Load())
			}
		})
	}
}

type wallClock struct{}

func (wallClock) Now() time.Time { return time.Now() }

func TestCharge_AClientThatGoesAwayIsNoOutage(t *testing.T) {
	l, k, limit := newLimiter(t, Options{URL: servers.start(t).redis.URL()}), newKey(), perHour(100)
	warmUp(t, l)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 * breakAfter {
		if c, err := l.Charge(gone, k, limit, 1); err != nil || !c.Allowed {
			t.Fatalf("%+v, %v", c, err)
		}
	}
	if h := l.Health(); h.Degraded {
		t.Errorf("clients that went away are taken for an outage: %+v", h)
	}
}

func TestCharge_ABucketWithSomethingElseIsReset(t *testing.T) {
	r := servers.start(t).redis
	l, limit := newLimiter(t, Options{URL: r.URL()}), perHour(5)
	warmUp(t, l)
	for name, command := range map[string][]string{
		"another type": {"RPUSH", "", "x"},
		"no number":    {"SET", "", "x"},
		// An hour beyond what a full bucket explains: Redis' clock has gone back.
		"a clock step": {"SET", "", fmt.Sprint(time.Now().Unix() - 1483228800 + 6*3600)},
	} {
		k := newKey()
		command[1] = "rate:" + bucketName(k, limit)
		if _, err := r.Do(t.Context(), command...); err != nil {
			t.Fatal(err)
		}
		c := charge(t, l, k, limit)
		if !c.Allowed || c.Mode != authz.LimiterExact || limit.Remaining(c.ResetAfter) != 4 {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if h := l.Health(); h.Resets != 3 || h.ClockSteps != 1 {
		t.Errorf("counted %+v", h)
	}
}

func TestCharge_AFullBucketIsNotTakenForAClockStep(t *testing.T) {
	l, k, limit := newLimiter(t, Options{URL: servers.start(t).redis.URL()}), newKey(), perHour(3)
	warmUp(t, l)
	for n := range 20 {
		if c := charge(t, l, k, limit); c.Allowed != (n < 3) {
			t.Fatalf("charge %d: %+v", n, c)
		}
	}
	if h := l.Health(); h.ClockSteps != 0 || h.Resets != 0 {
		t.Errorf("counted %+v", h)
	}
}

func TestCharge_SurvivesFlushes(t *testing.T) {
	r := ownRedis(t, localserver.RedisOptions{})
	l, k, limit := newLimiter(t, Options{URL: r.URL()}), newKey(), perHour(1000)
	warmUp(t, l)
	for n := range 100 {
		if _, err := r.Do(t.Context(), "SCRIPT", "FLUSH"); err != nil {
			t.Fatal(err)
		}
		c := charge(t, l, k, limit)
		if c.Mode != authz.LimiterExact || limit.Remaining(c.ResetAfter) != 999-n {
			t.Fatalf("charge %d after SCRIPT FLUSH: %+v", n, c)
		}
	}
	if _, err := r.Do(t.Context(), "FLUSHALL"); err != nil {
		t.Fatal(err)
	}
	if c := charge(t, l, k, limit); c.Mode != authz.LimiterExact || limit.Remaining(c.ResetAfter) != 999 {
		t.Errorf("after FLUSHALL: %+v", c)
	}
}

func TestCharge_APausedRedisIsStoodInForAndFoundAgain(t *testing.T) {
	r := ownRedis(t, localserver.RedisOptions{})
	var log logged
	l := newLimiter(t, Options{URL: r.URL(), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	warmUp(t, l)
	if err := syscall.Kill(r.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	k, limit := newKey(), perHour(8) // of which a quarter is there at the start of an outage
	for n := range 3 * breakAfter {
		if c := charge(t, l, k, limit); c.Mode != authz.LimiterLocal || c.Allowed != (n < 2) {
			t.Fatalf("charge %d of a paused Redis: %+v", n, c)
		}
	}
	if h := l.Health(); !h.Degraded || h.Mode != authz.LimiterLocal || h.Failed < breakAfter || h.Failed > h.StoodIn {
		t.Errorf("health is %+v", h)
	}
	if h := l.Health(); h.Failed >= h.StoodIn {
		t.Errorf("Redis is asked at every charge: %+v", h)
	}
	if l.Ping(t.Context()) == nil {
		t.Error("a paused Redis answers a ping")
	}
	if err := syscall.Kill(r.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "exact charges", func() bool { return charge(t, l, newKey(), limit).Mode == authz.LimiterExact })
	eventually(t, "health", func() bool { charge(t, l, newKey(), limit); return !l.Health().Degraded })
	if text := log.String(); !strings.Contains(text, "Redis does not answer") || !strings.Contains(text, "answers again") || strings.Contains(text, "tests@") {
		t.Errorf("logged %s", text)
	}
}

func TestCharge_AKilledRedisIsStoodInForAndExactAgainWhenItReturns(t *testing.T) {
	r := ownRedis(t, localserver.RedisOptions{})
	l := newLimiter(t, Options{URL: r.URL()})
	warmUp(t, l)
	if err := syscall.Kill(r.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-r.Done()
	for range 200 { // enough for go-redis to give up dialing
		if c := charge(t, l, newKey(), perMinute(4)); c.Mode != authz.LimiterLocal || !c.Allowed {
			t.Fatalf("charge of a killed Redis: %+v", c)
		}
	}
	ownRedis(t, localserver.RedisOptions{Port: r.Port()})
	eventually(t, "exact charges", func() bool { return charge(t, l, newKey(), perMinute(1)).Mode == authz.LimiterExact })
	k, limit := newKey(), perHour(1)
	if c := charge(t, l, k, limit); c.Mode != authz.LimiterExact || !c.Allowed {
		t.Errorf("after its return: %+v", c)
	}
	if c := charge(t, l, k, limit); c.Mode != authz.LimiterExact || c.Allowed {
		t.Errorf("after its return: %+v", c)
	}
}

func TestCharge_ARedisThatDoesNotWriteIsStoodInFor(t *testing.T) {
	for name, commands := range map[string][2][]string{
		"READONLY":     {{"REPLICAOF", "127.0.0.1", "1"}, {"REPLICAOF", "NO", "ONE"}},
		"OOM":          {{"CONFIG", "SET", "maxmemory", "1"}, {"CONFIG", "SET", "maxmemory", "0"}},
		"NOREPLICAS":   {{"CONFIG", "SET", "min-replicas-to-write", "1"}, {"CONFIG", "SET", "min-replicas-to-write", "0"}},
		"NOPERM (ACL)": {{"ACL", "SETUSER", "default", "-@scripting"}, {"ACL", "SETUSER", "default", "+@scripting"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := ownRedis(t, localserver.RedisOptions{})
			l, k, limit := newLimiter(t, Options{URL: r.URL()}), newKey(), perHour(4)
			warmUp(t, l)
			if _, err := r.Do(t.Context(), commands[0]...); err != nil {
				t.Fatal(err)
			}
			if c := charge(t, l, k, limit); !c.Allowed || c.Mode != authz.LimiterLocal {
				t.Errorf("%+v", c)
			}
			if c := charge(t, l, k, limit); c.Allowed {
				t.Errorf("a second time: %+v", c)
			}
			if _, err := r.Do(t.Context(), commands[1]...); err != nil {
				t.Fatal(err)
			}
			eventually(t, "exact charges", func() bool { return charge(t, l, newKey(), limit).Mode == authz.LimiterExact })
		})
	}
}

func TestCharge_TheDeclaredModeStandsIn(t *testing.T) {
	nobody := "redis://127.0.0.1:1"
	for mode, allowed := range map[authz.LimiterMode]bool{authz.LimiterClosed: false, authz.LimiterOpen: true, authz.LimiterLocal: true} {
		l := newLimiter(t, Options{URL: nobody, OnOutage: mode})
		if c := charge(t, l, newKey(), perMinute(4)); c.Mode != mode || c.Allowed != allowed {
			t.Errorf("mode %s: %+v", mode, c)
		}
	}
	if _, err := New(Options{Clock: newFakeClock(), OnOutage: authz.LimiterExact}); err == nil {
		t.Error("exact is taken for a stand-in")
	}
	l := newLimiter(t, Options{})
	if c := charge(t, l, newKey(), perMinute(1)); c.Mode != authz.LimiterLocal || !l.Health().Degraded || l.Ping(t.Context()) != nil {
		t.Errorf("without a Redis: %+v, %+v", c, l.Health())
	}
}

func TestNew_ABadURLIsRefusedWithoutRepeatingIt(t *testing.T) {
	for _, url := range []string{
		"http://:hunter2@h", "redis://h:6379/hunter2", "redis://:hunter2@h?addr=%zz", "redis://h?hunter2=1",
		"redis://h?addr=h:1&hunter2=1", "rediss://:hunter2@h:port", "\x00hunter2", "hunter2",
	} {
		_, err := New(Options{URL: url, Clock: newFakeClock()})
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", url, err)
		}
	}
	for _, url := range []string{"redis://h", "rediss://:p@h:6379/1", "unix:///run/redis.sock?db=1", "rediss://:p@h:1?addr=h:2&addr=h:3"} {
		l, err := New(Options{URL: url, Clock: newFakeClock()})
		if err != nil {
			t.Errorf("%q: %v", url, err)
			continue
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
