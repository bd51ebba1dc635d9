package ratelimit

import (
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// memoFor is how long a refusal of Redis is believed without asking again: a
	// flush, a failover or a stepped clock is noticed after it.
	memoFor = time.Second
	// maxMemos bounds the limits that one record remembers; policies name a few.
	maxMemos = 16
	// leastRetry is what is told when a unit may be there and another call finds out.
	leastRetry = time.Millisecond
	// grain is what redis_rate's times, which pass through float64 and text, may lack.
	grain = 10 * time.Microsecond
)

// memos hang on authz.Key.Refusals. They are never changed, only replaced.
type memos struct{ all []*memo }

// memo is what one limit of one record knows of its refusal: a lower bound of the
// time at which Redis' bucket is full again, from which follows what surely is not
// there. Only refused limits have one. Safe for concurrent use: its parts may come
// from two answers at once, each of which is true.
type memo struct {
	name string
	rate authz.Rate

	// tat is when the bucket is full again, at the earliest; told when Redis was
	// asked, 0 when nothing is known. In nanoseconds of the limiter's clock.
	tat, told atomic.Int64
	// cost is the least that was not there.
	cost atomic.Int64
	// probe is until when somebody finds out for all.
	probe atomic.Int64
}

// verdict is what a memo says to a charge.
type verdict int

const (
	refuse   verdict = iota // surely not there, or being found out
	ask                     // nothing is known of such a charge
	askAlone                // find out for all, then release
)

// findMemo returns what k's record remembers of a limit, or nil.
func findMemo(k *authz.Key, l authz.Limit) *memo {
	list, _ := k.Refusals.Load().(*memos)
	if list == nil {
		return nil
	}
	for _, m := range list.all {
		if m.name == l.Name && m.rate == l.Rate {
			return m
		}
	}
	return nil
}

// addMemo returns the memo of a limit, new or not.
func addMemo(k *authz.Key, l authz.Limit) *memo {
	for {
		if m := findMemo(k, l); m != nil {
			return m
		}
		var all []*memo
		old := k.Refusals.Load()
		if list, ok := old.(*memos); ok {
			all = list.all[max(len(list.all)-maxMemos+1, 0):]
		}
		m := &memo{name: l.Name, rate: l.Rate}
		if k.Refusals.CompareAndSwap(old, &memos{append(append(make([]*memo, 0, len(all)+1), all...), m)}) {
			return m
		}
	}
}

// judge tells what to do with a charge; the Charge belongs to refuse.
func (m *memo) judge(now int64, cost int) (verdict, authz.Charge) {
	told := m.told.Load()
	if told == 0 {
		return ask, authz.Charge{}
	}
	tat := m.tat.Load()
	wait := tat + spanOf(m.rate, cost) - spanOf(m.rate, m.rate.Burst) - now
	known := wait > int64(grain) && now >= told && now-told < int64(memoFor)
	if !known {
		if int64(cost) < m.cost.Load() {
			return ask, authz.Charge{}
		}
		if until := m.probe.Load(); now >= until && m.probe.CompareAndSwap(until, now+int64(budget)) {
			return askAlone, authz.Charge{}
		}
	}
	return refuse, authz.Charge{
		ResetAfter: time.Duration(max(tat-now, 0)), RetryAfter: max(time.Duration(wait), leastRetry), Mode: authz.LimiterExact,
	}
}

// learn takes an answer to a charge for which Redis was asked at the given time.
func (m *memo) learn(asked int64, cost int, c authz.Charge) {
	known, least, left := m.told.Load() != 0, m.cost.Load(), leftOf(m.rate, c)
	switch exhausted := isExhausted(m.rate, cost, c); {
	case exhausted && (!known || int64(cost) < least):
		m.cost.Store(int64(cost))
	case !exhausted && (!known || left >= spanOf(m.rate, int(least))-int64(grain)):
		m.forget()
		return
	}
	m.tat.Store(asked + int64(c.ResetAfter))
	m.told.Store(asked)
}

// forget lets the next charge ask.
func (m *memo) forget() { m.told.Store(0) }

// release ends the right to find out for all.
func (m *memo) release() { m.probe.Store(0) }

// isExhausted tells that the same charge again would be refused.
func isExhausted(r authz.Rate, cost int, c authz.Charge) bool {
	return !c.Allowed || leftOf(r, c) < spanOf(r, cost)-int64(grain)
}

// leftOf is what an answer leaves in the bucket, as the time in which it came.
func leftOf(r authz.Rate, c authz.Charge) int64 { return spanOf(r, r.Burst) - int64(c.ResetAfter) }

// spanOf is the time in which units come back, in nanoseconds.
func spanOf(r authz.Rate, units int) int64 {
	return int64(r.EmissionInterval() * float64(time.Second) * float64(units))
}
