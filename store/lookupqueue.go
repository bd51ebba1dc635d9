package store

import (
	"github.com/supportstation/keystile/authz"
)

// lookupQueue holds the digests that wait, by who asked first, and gives every caller
// the same share of each statement: the flood of one keeps no other waiting. Not safe
// for concurrent use.
type lookupQueue struct {
	waiting map[authz.Digest]*waiter
	lines   map[authz.CallerID]*line
	// turns are the callers in whose lines someone may stand, the next one first.
	turns []authz.CallerID
}

// line is what waits of one caller, the first first.
type line struct {
	digests []authz.Digest
	// left is about how many of them nobody waits for any more.
	left int
}

func newLookupQueue() lookupQueue {
	return lookupQueue{waiting: make(map[authz.Digest]*waiter), lines: make(map[authz.CallerID]*line)}
}

func (q *lookupQueue) len() int { return len(q.waiting) }

// add returns the waiter of a digest, which it puts at the end of the caller's line
// unless it stands in some line already.
func (q *lookupQueue) add(caller authz.CallerID, d authz.Digest) (*waiter, error) {
	if w := q.waiting[d]; w != nil {
		return w, nil
	}
	l := q.lines[caller]
	if l == nil {
		l = &line{}
		q.lines[caller] = l
		q.turns = append(q.turns, caller)
	}
	if len(l.digests) >= maxCallerWaiting && l.left >= maxCallerWaiting/8 {
		q.tidy(l)
	}
	switch {
	case len(l.digests) >= maxCallerWaiting:
		return nil, authz.CallerThrottled("look-ups of one caller fill its share")
	case len(q.waiting) >= maxLookupWaiting:
		return nil, authz.Unavailable("look up a key", errLookupFull)
	}
	w := &waiter{ready: make(chan struct{}), line: l}
	q.waiting[d] = w
	l.digests = append(l.digests, d)
	return w, nil
}

// tidy takes out of a line what nobody waits for any more.
func (q *lookupQueue) tidy(l *line) {
	kept := l.digests[:0]
	for _, d := range l.digests {
		if q.waiting[d].askers > 0 {
			kept = append(kept, d)
		} else {
			delete(q.waiting, d)
		}
	}
	l.digests, l.left = kept, 0
}

// take takes up to n digests out, one of each caller in turn, and returns them in that order.
func (q *lookupQueue) take(n int) (order []authz.Digest, taken map[authz.Digest]*waiter) {
	taken = make(map[authz.Digest]*waiter, min(n, len(q.waiting)))
	for len(order) < n && len(q.turns) > 0 {
		caller := q.turns[0]
		q.turns = q.turns[1:]
		l := q.lines[caller]
		if d, w := q.first(l); w != nil {
			order, taken[d] = append(order, d), w
		}
		if len(l.digests) == 0 {
			delete(q.lines, caller)
			continue
		}
		q.turns = append(q.turns, caller)
	}
	return order, taken
}

// first takes the first of a line for whom someone still waits; nil when there is none.
func (q *lookupQueue) first(l *line) (authz.Digest, *waiter) {
	for len(l.digests) > 0 {
		d := l.digests[0]
		l.digests = l.digests[1:]
		w := q.waiting[d]
		delete(q.waiting, d)
		if w.askers > 0 {
			return d, w
		}
		l.left--
	}
	return authz.Digest{}, nil
}
