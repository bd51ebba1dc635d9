package ratelimit

import (
	"sync"
	"sync/atomic"
)

// maxTouched bounds the buckets of which Redis is told after an outage.
const maxTouched = 50_000

// touched lists the buckets that the stand-in was asked for, in that order, each
// once. Beyond maxTouched the oldest is dropped: Redis is never told of it. Safe for
// concurrent use; the zero value is empty.
type touched struct {
	mu      sync.Mutex
	queue   []*bucket
	dropped atomic.Int64
}

func (t *touched) add(b *bucket) {
	if b.listed.Load() || !b.listed.CompareAndSwap(false, true) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == maxTouched {
		t.queue[0].listed.Store(false)
		t.queue = t.queue[1:]
		t.dropped.Add(1)
	}
	t.queue = append(t.queue, b)
}

// pop takes the oldest, or returns nil. What is admitted of it from then on lists it again.
func (t *touched) pop() *bucket {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		return nil
	}
	b := t.queue[0]
	t.queue[0] = nil
	t.queue = t.queue[1:]
	b.listed.Store(false)
	return b
}

func (t *touched) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.queue)
}

// all returns them as of now, oldest first.
func (t *touched) all() []*bucket {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]*bucket(nil), t.queue...)
}
