package store

import (
	"sync/atomic"
	"time"
)

// Clock tells Postgres' time, as an offset on this machine's monotonic clock that
// every successful synchronization learns anew. Before the first it tells the
// machine's own time. A step of the machine's wall clock does not move it. It is
// safe for concurrent use.
type Clock struct {
	start time.Time
	// offset is Postgres' Unix time in nanoseconds when the monotonic clock stood at start.
	offset atomic.Int64
	// took is how long the answer took that was last believed; 0 before the first.
	took time.Duration
}

// NewClock returns a clock on the machine's time.
func NewClock() *Clock {
	c := &Clock{start: time.Now()}
	c.offset.Store(c.start.UnixNano())
	return c
}

// Now implements authz.Clock.
func (c *Clock) Now() time.Time { return time.Unix(0, c.offset.Load()+int64(c.elapsed())).UTC() }

// elapsed is the monotonic time since the clock was made.
func (c *Clock) elapsed() time.Duration { return time.Since(c.start) }

// learn sets the clock by what Postgres said between two readings of elapsed. An
// answer that took long tells little: beyond maxClockDoubt it is believed only when
// nothing better is known. Not for concurrent use.
func (c *Clock) learn(postgres time.Time, before, after time.Duration) {
	const maxClockDoubt = 100 * time.Millisecond
	took := after - before
	if took > maxClockDoubt && c.took != 0 && took > c.took {
		return
	}
	c.took = max(took, 1)
	c.offset.Store(postgres.UnixNano() - int64(before+(after-before)/2))
}
