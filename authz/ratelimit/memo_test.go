package ratelimit

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store/localserver"
)

func TestCharge_AnExhaustedKeyIsDeniedWithoutRedis(t *testing.T) {
	clock := newFakeClock()
	l, k, limit := newLimiter(t, Options{URL: servers.start(t).redis.URL(), Clock: clock}), newKey(), perHour(10)
	warmUp(t, l)
	for range 10 {
		if c := charge(t, l, k, limit); !c.Allowed {
			t.Fatalf("%+v", c)
		}
	}
	before := l.Health()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 1000 {
				c, err := l.Charge(context.Background(), k, limit, 1)
				if err != nil || c.Allowed || c.Mode != authz.LimiterExact || c.RetryAfter <= 59*time.Minute || c.RetryAfter > time.Hour {
					t.Errorf("%+v, %v", c, err)
					return
				}
			}
		})
	}
	wg.Wait()
	h := l.Health()
	if h.Exact != before.Exact || h.DeniedLocally-before.DeniedLocally != 16_000 {
		t.Errorf("%d charges asked Redis, %d were denied here", h.Exact-before.Exact, h.DeniedLocally-before.DeniedLocally)
	}
	clock.advance(10 * time.Minute) // more than a memo is believed
	if c := charge(t, l, k, limit); c.Allowed || l.Health().Exact != before.Exact+1 {
		t.Errorf("an old refusal is believed: %+v", c)
	}
	clock.advance(memoFor / 2)
	c := charge(t, l, k, limit)
	clock.advance(memoFor / 4)
	if later := charge(t, l, k, limit); c.RetryAfter-later.RetryAfter != memoFor/4 || c.ResetAfter-later.ResetAfter != memoFor/4 {
		t.Errorf("times are not counted down: %+v, then %+v", c, later)
	}
	renewed := &authz.Key{ID: k.ID, Organization: k.Organization, Environment: k.Environment}
	if charge(t, l, renewed, limit); l.Health().Exact != before.Exact+2 {
		t.Error("another record shares the memory")
	}
}

func TestCharge_ASmallerCostPassesWhereALargerIsRefused(t *testing.T) {
	l, k, limit := newLimiter(t, Options{URL: servers.start(t).redis.URL()}), newKey(), perHour(10)
	warmUp(t, l)
	for n, step := range []struct {
		cost    int
		allowed bool
	}{{7, true}, {5, false}, {4, false}, {2, true}, {2, false}, {1, true}, {1, false}, {7, false}} {
		c, err := l.Charge(t.Context(), k, limit, step.cost)
		if err != nil || c.Allowed != step.allowed {
			t.Fatalf("charge %d of %d units: %+v, %v", n, step.cost, c, err)
		}
	}
	if h := l.Health(); h.DeniedLocally < 3 {
		t.Errorf("denied here: %+v", h)
	}
}

// Whatever answers a memo has got, it refuses nothing that Redis, were it asked, would
// admit; but for what another call finds out at this moment.
func TestMemo_RefusesNothingThatIsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		clock := newFakeClock()
		redis, err := newLocal(clock, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		rate := authz.Rate{Rate: rapid.IntRange(1, 50).Draw(t, "rate"), Period: time.Second, Burst: rapid.IntRange(1, 20).Draw(t, "burst")}
		m := &memo{rate: rate}
		for range 60 {
			clock.advance(time.Duration(rapid.IntRange(0, 300).Draw(t, "ms")) * time.Millisecond)
			cost, now := rapid.IntRange(1, rate.Burst).Draw(t, "cost"), clock.Now().UnixNano()
			v, refused := m.judge(now, cost)
			c := redis.charge("b", rate, cost) // a refused charge is asked for too, to compare
			if v == refuse && (c.Allowed || refused.Allowed || refused.RetryAfter <= 0) {
				t.Fatalf("cost %d is refused (%+v), Redis says %+v", cost, refused, c)
			}
			if v != refuse {
				m.learn(now, cost, c)
			}
			if v == askAlone {
				if other, _ := m.judge(now, cost); other == askAlone {
					t.Fatal("two find out")
				}
				m.release()
			}
		}
	})
}

func TestMemo_OneFindsOutForAll(t *testing.T) {
	m := &memo{rate: perHour(2).Rate}
	m.learn(1, 1, authz.Charge{ResetAfter: 2 * time.Hour})
	for name, now := range map[string]int64{"the unit is back": int64(time.Hour) + 2, "it is old": int64(memoFor) + 2} {
		m.release()
		var alone atomic.Int64
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if v, c := m.judge(now, 1); v == askAlone {
					alone.Add(1)
				} else if v != refuse || c.RetryAfter <= 0 {
					t.Errorf("%v, %+v", v, c)
				}
			})
		}
		wg.Wait()
		if alone.Load() != 1 {
			t.Errorf("%s: %d find out", name, alone.Load())
		}
		if v, _ := m.judge(now+int64(budget), 1); v != askAlone {
			t.Errorf("%s: who hangs keeps all others from finding out", name)
		}
	}
}

func TestMemo_ASmallerCostDoesNotWaitForWhoFindsOutOfALarger(t *testing.T) {
	m := &memo{rate: perHour(5).Rate}
	m.learn(1, 4, authz.Charge{ResetAfter: 2 * time.Hour}) // 3 are left
	now := int64(time.Hour) + 2
	if v, _ := m.judge(now, 4); v != askAlone {
		t.Fatalf("the larger: %v", v)
	}
	if v, _ := m.judge(now, 3); v != ask {
		t.Errorf("the smaller: %v", v)
	}
	if v, _ := m.judge(2, 3); v != ask {
		t.Errorf("the smaller, earlier: %v", v)
	}
	if v, _ := m.judge(2, 4); v != refuse {
		t.Errorf("the larger, earlier: %v", v)
	}
}

func TestCharge_AProbeThatFailsLeavesItToTheStandIn(t *testing.T) {
	clock := newFakeClock()
	l, k, limit := newLimiter(t, Options{URL: "redis://127.0.0.1:1", Clock: clock}), newKey(), perHour(8)
	addMemo(k, limit).learn(clock.Now().UnixNano(), 1, authz.Charge{ResetAfter: 8 * time.Hour})
	if c := charge(t, l, k, limit); c.Mode != authz.LimiterExact || c.Allowed {
		t.Fatalf("%+v", c)
	}
	clock.advance(memoFor)
	if c := charge(t, l, k, limit); c.Mode != authz.LimiterLocal {
		t.Fatalf("%+v", c)
	}
	if v, _ := findMemo(k, limit).judge(clock.Now().UnixNano(), 1); v != ask {
		t.Error("an answer that Redis gave before it went away is believed")
	}
}

func TestCharge_FlushedBucketsAreFoundOut(t *testing.T) {
	clock, r := newFakeClock(), ownRedis(t, localserver.RedisOptions{})
	l, k, limit := newLimiter(t, Options{URL: r.URL(), Clock: clock}), newKey(), perHour(3)
	warmUp(t, l)
	for n := range 5 {
		if c := charge(t, l, k, limit); c.Allowed != (n < 3) {
			t.Fatalf("charge %d: %+v", n, c)
		}
	}
	if _, err := r.Do(t.Context(), "FLUSHALL"); err != nil {
		t.Fatal(err)
	}
	clock.advance(memoFor)
	for n := range 5 {
		if c := charge(t, l, k, limit); c.Allowed != (n < 3) {
			t.Fatalf("charge %d after FLUSHALL: %+v", n, c)
		}
	}
}

func TestCharge_AFastLimitUnderHeavyDemandIsNotStarved(t *testing.T) {
	l, k := newLimiter(t, Options{URL: servers.start(t).redis.URL(), Clock: wallClock{}}), newKey()
	warmUp(t, l)
	limit := authz.Limit{Name: "key", Cost: 1, Rate: authz.Rate{Rate: 2000, Period: time.Second, Burst: 100}}
	var admitted atomic.Int64
	start := time.Now()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for time.Since(start) < 2*time.Second {
				<-tick.C
				if c, err := l.Charge(context.Background(), k, limit, 1); err != nil {
					t.Error(err)
				} else if c.Allowed {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	due := 100 + 2000*time.Since(start).Seconds()
	t.Logf("%d of %.0f units; %+v", admitted.Load(), due, l.Health())
	if got := float64(admitted.Load()); got < due/2 {
		t.Errorf("%.0f of %.0f units are admitted", got, due)
	}
}

func TestMemo_WhatARecordRemembersIsBounded(t *testing.T) {
	k := newKey()
	for burst := range 10 * maxMemos {
		addMemo(k, perHour(burst+1))
	}
	if got := len(k.Refusals.Load().(*memos).all); got != maxMemos {
		t.Errorf("%d limits are remembered", got)
	}
	if findMemo(k, perHour(10*maxMemos)) == nil || findMemo(k, perHour(1)) != nil {
		t.Error("not the oldest is forgotten")
	}
}
