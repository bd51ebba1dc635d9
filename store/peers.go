package store

import (
	"slices"
	"sync"
	"time"
)

// maxPeers bounds what is remembered of other replicas.
const maxPeers = 1000

// peers are the replicas that this one has seen. A table that was put back, or that nobody
// could write for a time, lacks some that still serve: until they cannot any more they are
// remembered, so that receipts wait for them and name them. Safe for concurrent use.
type peers struct {
	mu   sync.Mutex
	seen map[string]struct{}
	// until is when the table tells of all again, on the clock's elapsed time.
	until time.Duration
}

// doubt remembers, until then, all that were seen last, whatever the table tells.
func (p *peers) doubt(until time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = max(p.until, until)
}

// see takes the ids of all that the table tells of.
func (p *peers) see(ids []string, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil || now >= p.until {
		p.seen = make(map[string]struct{}, len(ids))
	}
	for _, id := range ids {
		if len(p.seen) < maxPeers {
			p.seen[id] = struct{}{}
		}
	}
}

// missing are those of whom the table should tell besides these, in order, and how long
// they may still serve from now.
func (p *peers) missing(told []string, now time.Duration) (ids []string, serve time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now >= p.until {
		return nil, 0
	}
	for id := range p.seen {
		if !slices.Contains(told, id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, p.until - now
}
