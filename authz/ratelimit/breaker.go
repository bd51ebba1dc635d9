package ratelimit

import "sync/atomic"

// breakAfter failures in a row Redis is left alone.
const breakAfter = 3

// phase is where a limiter stands towards its Redis.
type phase = int32

const (
	// closed: Redis is asked.
	closed phase = iota
	// open: Redis is away; the keeper alone asks it.
	open
	// settling: Redis is back, and is told what was admitted without it.
	settling
)

// breaker keeps calls from waiting for a Redis that does not answer. While it is
// closed a call costs two atomic reads: a library's breaker takes a lock that all
// checks would share. No client's call is ever the probe: see keeper.go. Safe for
// concurrent use; reopen, settle and close are for the keeper alone.
type breaker struct {
	failures atomic.Int32
	phase    atomic.Int32
}

// allow tells whether to ask Redis.
func (b *breaker) allow() bool { return b.phase.Load() == closed }

// success notes an answer to a call.
func (b *breaker) success() {
	if b.failures.Load() != 0 {
		b.failures.Store(0)
	}
}

// failure notes that no answer came and tells whether it opened the breaker.
func (b *breaker) failure() bool {
	return b.failures.Add(1) >= breakAfter && b.phase.CompareAndSwap(closed, open)
}

// isOpen tells that Redis is away; not that it is back and settled with.
func (b *breaker) isOpen() bool { return b.phase.Load() == open }

// reopen is for a Redis that went away while settling.
func (b *breaker) reopen() { b.phase.Store(open) }

// settle is the time between away and exact.
func (b *breaker) settle() { b.phase.Store(settling) }

// close lets calls through again.
func (b *breaker) close() {
	b.failures.Store(0)
	b.phase.Store(closed)
}

// String is the phase, for operators.
func (b *breaker) String() string {
	switch b.phase.Load() {
	case closed:
		return "closed"
	case settling:
		return "settling"
	default:
		return "open"
	}
}
