package store

import (
	"sync"
	"time"
)

// ending is when the last read and write of many connections is over, at the latest. A server
// that is stuck does not keep who ends waiting for one deadline of a socket after the other.
// The zero value has no end. Safe for concurrent use, also as nil.
type ending struct {
	mu    sync.Mutex
	at    time.Time // zero: not known yet
	conns map[*deadlineConn]struct{}
}

// set has everything end then, also what has begun; the first one counts.
func (e *ending) set(at time.Time) {
	e.mu.Lock()
	if !e.at.IsZero() {
		e.mu.Unlock()
		return
	}
	e.at = at
	conns := make([]*deadlineConn, 0, len(e.conns))
	for c := range e.conns {
		conns = append(conns, c)
	}
	e.mu.Unlock()
	for _, c := range conns {
		_ = c.prepare(c.SetDeadline) // one that is closed has ended
	}
}

// bound is the earlier one of a deadline and the end.
func (e *ending) bound(deadline time.Time) time.Time {
	if e == nil {
		return deadline
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.at.IsZero() && e.at.Before(deadline) {
		return e.at
	}
	return deadline
}

func (e *ending) add(c *deadlineConn) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns == nil {
		e.conns = make(map[*deadlineConn]struct{})
	}
	e.conns[c] = struct{}{}
}

func (e *ending) remove(c *deadlineConn) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
}
