package ratelimit

import (
	"sync/atomic"
	"time"
)

const (
	// breakAfter failures in a row Redis is not asked for a while.
	breakAfter = 3
	// probeEvery is how often one call finds out whether Redis is back.
	probeEvery = 500 * time.Millisecond
)

// breaker keeps calls from waiting for a Redis that does not answer. While it is
// closed a call costs two atomic reads: a library's breaker takes a lock that all
// checks would share. Safe for concurrent use.
type breaker struct {
	start    time.Time
	failures atomic.Int32
	// probeAt is when the next probe may go, as time since start; 0 while closed.
	probeAt atomic.Int64
}

func newBreaker() *breaker { return &breaker{start: time.Now()} }

// allow tells whether to ask Redis. While open one caller in probeEvery is let through.
func (b *breaker) allow() bool {
	at := b.probeAt.Load()
	if at == 0 {
		return true
	}
	now := int64(time.Since(b.start))
	return now >= at && b.probeAt.CompareAndSwap(at, now+int64(probeEvery))
}

// success notes an answer and tells whether it closed the breaker.
func (b *breaker) success() bool {
	if b.failures.Load() != 0 {
		b.failures.Store(0)
	}
	return b.probeAt.Load() != 0 && b.probeAt.Swap(0) != 0
}

// failure notes that no answer came and tells whether it opened the breaker.
func (b *breaker) failure() bool {
	if b.failures.Add(1) < breakAfter {
		return false
	}
	return b.probeAt.CompareAndSwap(0, int64(time.Since(b.start)+probeEvery))
}

func (b *breaker) isOpen() bool { return b.probeAt.Load() != 0 }
