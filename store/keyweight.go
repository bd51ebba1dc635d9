package store

import (
	"sync"

	"github.com/supportstation/keystile/authz"
)

const (
	// recordOverhead is what a record takes beside its texts, its lists and its memo, cache
	// included: measured, see BenchmarkKeyCache_BytesPerKey.
	recordOverhead = 720
	// organizationOverhead is the same of an organization.
	organizationOverhead = 400
)

// bytes is about how much memory the record takes, and what policy will put beside it. Its
// organization is shared, and counted by weights.
func (e *cachedKey) bytes() uint32 {
	k, s := e.key, e.secret
	n := recordOverhead + len(k.ExternalID) + len(k.Name) + len(k.Metadata) + len(s.Hint)
	n += len(k.Scopes)*16 + len(k.AllowedCIDRs)*32 + authz.KeyMemoBytes(k)
	return uint32(n) //nolint:gosec // a record's fields are bounded
}

func organizationBytes(o *authz.Organization) int64 {
	return int64(organizationOverhead + len(o.ExternalID) + len(o.Name) + len(o.Metadata) + authz.OrganizationMemoBytes(o))
}

// weights tell what the records in memory take together, with each organization counted
// once however many keys share it. Safe for concurrent use.
type weights struct {
	mu    sync.Mutex
	bytes int64
	// holders is how many records hold an organization. It is by the record of it and not
	// by its id: keys that were read before a change of it still hold the old one.
	holders map[*authz.Organization]int
}

// add is called before a record is kept, remove after it is let go of.
func (w *weights) add(e *cachedKey) { w.count(e, 1) }

func (w *weights) remove(e *cachedKey) { w.count(e, -1) }

func (w *weights) count(e *cachedKey, by int) {
	o, own := e.key.Organization, int64(e.bytes())
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.holders[o]
	w.bytes += own * int64(by)
	if was+by == 0 {
		delete(w.holders, o)
		w.bytes -= organizationBytes(o)
		return
	}
	if w.holders[o] = was + by; was == 0 {
		w.bytes += organizationBytes(o)
	}
}

func (w *weights) total() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

// fit lets go of records, those least likely to be asked for first, until they and their
// organizations are within the bound, and a little below it: it is not done for each. The
// cache bounds the records alone by itself; what an organization takes is given back with
// its last one, which the cache cannot know. The caller holds c.mu.
func (c *keyCache) fit() {
	bound := int64(c.bytes - min(c.bytes, c.learned.keptBytes)) //nolint:gosec // of a memory's size
	if c.weights.total() <= bound {
		return
	}
	over, known := int64(0), false
	var gone []authz.Digest
	left := map[*authz.Organization]int{}
	for entry := range c.known.Coldest() {
		if !known { // the cache has given back its own by now
			over, known = c.weights.total()-bound+bound/512, true
		}
		if over <= 0 {
			break
		}
		o := entry.Value.key.Organization
		over -= int64(entry.Value.bytes())
		if left[o]++; left[o] == c.weights.holdersOf(o) {
			over -= organizationBytes(o)
		}
		gone = append(gone, entry.Key)
	}
	for _, d := range gone {
		c.known.Invalidate(d)
	}
}

func (w *weights) holdersOf(o *authz.Organization) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holders[o]
}

// size tells how many records are in memory, and about how many bytes they and their
// organizations take.
func (c *keyCache) size() (records int, bytes uint64) {
	return c.known.EstimatedSize(), uint64(max(c.weights.total(), 0))
}
