package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/supportstation/keystile/authz"
)

func TestCharge_AnOverloadOfOursIsStoodInForAndNoOutage(t *testing.T) {
	l := newLimiter(t, Options{URL: servers.start(t).redis.URL()})
	warmUp(t, l)
	for range cap(l.bulkhead) {
		l.bulkhead <- struct{}{}
	}
	before := l.Health()
	for range 2 * breakAfter {
		if c := charge(t, l, newKey(), perMinute(100)); c.Mode != authz.LimiterLocal || !c.Allowed {
			t.Fatalf("%+v", c)
		}
	}
	if h := l.Health(); h.Breaker != "closed" || h.Failed != before.Failed || h.Crowded-before.Crowded != 2*breakAfter {
		t.Errorf("%+v", h)
	}
	for range cap(l.bulkhead) {
		l.bulkhead.leave()
	}
	eventually(t, "an exact charge", func() bool { return charge(t, l, newKey(), perMinute(100)).Mode == authz.LimiterExact })
	eventually(t, "what was admitted to be settled", func() bool { return l.Health().SettledUnits >= 2*breakAfter })
}

func TestBulkhead_WhoWaitsLeavesRedisItsHalf(t *testing.T) {
	b := newBulkhead(1)
	if left, err := b.enter(budget); err != nil || left != budget {
		t.Fatal(left, err)
	}
	if _, err := b.enter(10 * time.Millisecond); !errors.Is(err, errCrowded) {
		t.Error(err)
	}
	b.leave()
	if _, err := b.enter(leastShare - 1); !errors.Is(err, errNoTime) || len(b) != 0 {
		t.Errorf("%v; %d places are taken", err, len(b))
	}
	late := fmt.Errorf("ask: %w", context.DeadlineExceeded)
	for name, c := range map[string]struct {
		err   error
		given time.Duration
		want  bool
	}{
		"Redis is late":         {late, budget, false},
		"it had little time":    {late, budget / 3, true},
		"it refuses":            {errors.New("READONLY"), budget / 3, false},
		"no connection is free": {redis.ErrPoolTimeout, budget, true},
	} {
		if got := isOurs(c.err, c.given); got != c.want {
			t.Errorf("%s: ours %t", name, got)
		}
	}
}
