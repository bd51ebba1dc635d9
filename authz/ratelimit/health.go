package ratelimit

import (
	"time"

	"github.com/supportstation/keystile/authz"
)

// Health tells how the limiter is. Its fields are figures for operators; counts are
// since the start.
type Health struct {
	// Mode is how the next charge would be counted.
	Mode authz.LimiterMode `json:"mode"`
	// Degraded tells that Redis is stood in for, or was within the last two seconds: of a
	// cluster a part may be away, for which Mode is still exact.
	Degraded bool `json:"degraded"`
	// Breaker is closed while Redis is asked, open while it is away, and settling
	// while it is told what was admitted without it; empty without a Redis.
	Breaker string `json:"breaker,omitempty"`
	// Replicas are those among whom the stand-in divides a limit.
	Replicas int `json:"replicas"`
	// Exact and StoodIn count charges, DeniedLocally those denied because Redis had
	// just said so, Failed those that Redis was asked for in vain, Crowded those for
	// which it was not asked, or not long enough, for want of room or time here.
	Exact         int64 `json:"exact"`
	StoodIn       int64 `json:"stood_in"`
	DeniedLocally int64 `json:"denied_locally"`
	Failed        int64 `json:"failed"`
	Crowded       int64 `json:"crowded"`
	// Resets counts buckets that were reset because nothing sensible was in them, of
	// which ClockSteps because Redis' clock had stepped back.
	Resets     int64 `json:"resets"`
	ClockSteps int64 `json:"clock_steps"`
	// LocalBuckets are those that the stand-in knows, Pending those of which Redis
	// is still to be told, Unsettled those of which it never will be because there
	// were more than it is told of.
	LocalBuckets int   `json:"local_buckets"`
	Pending      int   `json:"pending"`
	Unsettled    int64 `json:"unsettled"`
	// SettledUnits were charged afterwards for what had been admitted without Redis,
	// RestoredUnits because it had lost what it knew.
	SettledUnits  int64 `json:"settled_units"`
	RestoredUnits int64 `json:"restored_units"`
}

// Health returns the limiter's health as of now; it asks nobody.
func (l *Limiter) Health() Health {
	h := Health{
		Mode: authz.LimiterExact, Replicas: l.local.share(l.local.now()), Exact: l.exact.Load(), StoodIn: l.stoodIn.Load(),
		DeniedLocally: l.denied.Load(), Failed: l.failed.Load(), Crowded: l.crowded.Load(), Resets: l.resets.Load(),
		ClockSteps: l.steps.Load(), LocalBuckets: l.local.buckets.EstimatedSize(), Pending: l.local.touched.size(),
		Unsettled: l.local.touched.dropped.Load(), SettledUnits: l.settled.Load(), RestoredUnits: l.restored.Load(),
	}
	switch {
	case l.client == nil:
		h.Mode, h.Degraded = authz.LimiterLocal, true
		return h
	case !l.breaker.allow():
		h.Mode, h.Degraded = l.mode, true
	case l.lately():
		h.Degraded = true
	}
	h.Breaker = l.breaker.String()
	return h
}

// degradedFor is how long a charge that was stood in for is told of.
const degradedFor = 2 * time.Second

// lately tells whether a charge was stood in for lately.
func (l *Limiter) lately() bool {
	at := l.lastStoodIn.Load()
	return at != 0 && time.Since(l.made)-time.Duration(at) < degradedFor
}
