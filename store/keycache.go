package store

import (
	"fmt"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/supportstation/keystile/authz"
)

const (
	// DefaultKeyCacheBytes bounds the memory of the records that are kept.
	DefaultKeyCacheBytes = 512 << 20
	// maxCachedUnknown bounds the digests kept as unknown, some 15 MB.
	maxCachedUnknown = 65_536
	// cachedKeyTTL only gives memory back: freshness is by revision. Each record's own
	// is up to a fifth shorter, so that what was read together is not read again together.
	cachedKeyTTL = 10 * time.Minute
	// cachedUnknownTTL bounds how long an unknown digest is believed to be unknown.
	cachedUnknownTTL = 5 * time.Second
	// maxRecentChanges bounds the changes that late look-ups are compared with.
	maxRecentChanges = 8192
)

// cachedKey is what one digest leads to. It is never changed.
type cachedKey struct {
	// key is nil for an unknown digest, and then secret is too.
	key    *authz.Key
	secret *authz.KeySecret
	// organization is set for a bad row as well, so that a change of it is noticed.
	organization *organizationState
	// bad says why the stored row cannot be served.
	bad error
	// asOf is the revision of the snapshot that it was read from.
	asOf int64
}

// outdated tells that the organization has changed since.
func (e *cachedKey) outdated() bool {
	return e.organization != nil && e.asOf < e.organization.floor.Load()
}

// keyCache keeps records by digest. Reads take no lock. It never goes back: a
// look-up whose snapshot is older than a change that has been applied is refused,
// so that a slow read cannot put a revoked key's old record back. Safe for
// concurrent use.
type keyCache struct {
	known         *otter.Cache[authz.Digest, *cachedKey]
	unknown       *otter.Cache[authz.Digest, *cachedKey]
	organizations *organizationCache
	weights       weights

	// mu orders insertions against changes; reads do not take it.
	mu sync.Mutex
	// floor is the revision up to which recent changes have been forgotten: an
	// older snapshot cannot be judged, and is refused.
	floor               int64
	recentDigests       map[authz.Digest]int64
	recentOrganizations map[authz.OrganizationID]int64
	learned             *learned
	// bytes bounds known with its organizations, and what learned keeps.
	bytes uint64
}

func newKeyCache(bytes uint64) (*keyCache, error) {
	c := &keyCache{
		organizations:       newOrganizationCache(),
		weights:             weights{holders: make(map[*authz.Organization]int)},
		recentDigests:       make(map[authz.Digest]int64),
		recentOrganizations: make(map[authz.OrganizationID]int64),
		learned:             newLearned(),
		bytes:               bytes,
	}
	var err error
	c.known, err = otter.New(&otter.Options[authz.Digest, *cachedKey]{
		MaximumWeight: bytes,
		Weigher:       func(_ authz.Digest, e *cachedKey) uint32 { return e.bytes() },
		// However it goes, and in the moment when it does.
		OnAtomicDeletion: func(e otter.DeletionEvent[authz.Digest, *cachedKey]) { c.weights.remove(e.Value) },
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[authz.Digest, *cachedKey]) time.Duration {
			return cachedKeyTTL - cachedKeyTTL/5*time.Duration(e.Key[0])/256
		}),
	})
	if err != nil {
		return nil, fmt.Errorf("make the key cache: %w", err)
	}
	c.unknown, err = otter.New(&otter.Options[authz.Digest, *cachedKey]{
		MaximumSize:      maxCachedUnknown,
		ExpiryCalculator: otter.ExpiryWriting[authz.Digest, *cachedKey](cachedUnknownTTL),
	})
	if err != nil {
		return nil, fmt.Errorf("make the cache of unknown keys: %w", err)
	}
	return c, nil
}

// get returns what is known of a digest, or nil.
func (c *keyCache) get(d authz.Digest) *cachedKey {
	if e, ok := c.known.GetIfPresent(d); ok && !e.outdated() {
		return e
	}
	if e, ok := c.unknown.GetIfPresent(d); ok {
		return e
	}
	return nil
}

// put keeps what was read and returns what may be served of it. Nothing may when it was
// read before a change that has been applied since: read it again.
func (c *keyCache) put(d authz.Digest, e *cachedKey) (served *cachedKey, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.asOf < c.floor || e.asOf < c.recentDigests[d] || e.outdated() ||
		e.organization != nil && e.asOf < c.recentOrganizations[e.organization.id] {
		return nil, false
	}
	if e.key != nil && e.asOf < c.learned.knownOf(e.key.ID) {
		return nil, false // another look-up, or who learns behind, has read something newer
	}
	e = c.learned.judge(e)
	c.learned.see(e)
	switch {
	case e.bad != nil: // asked again each time, so that its repair is noticed at once
	case e.key == nil:
		c.unknown.Set(d, e)
	default:
		c.unknown.Invalidate(d)
		c.weights.add(e)
		c.known.Set(d, e)
		c.fit()
	}
	return e, true
}

// apply forgets whatever the changes touch, and learns what they say.
func (c *keyCache) apply(set *changeSet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learned.learn(set.keys, set.organizations)
	changed := len(set.keys) + len(set.retired) + len(set.organizations)
	if len(c.recentDigests)+len(c.recentOrganizations)+changed > maxRecentChanges {
		clear(c.recentDigests)
		clear(c.recentOrganizations)
		c.floor = set.n
	}
	for i := range set.keys {
		c.drop(set.keys[i].digest, set.n)
	}
	for _, d := range set.retired {
		c.drop(d, set.n)
	}
	for _, o := range set.organizations {
		if c.floor < set.n {
			c.recentOrganizations[o.id] = set.n
		}
		c.organizations.changed(o.id, set.n)
	}
}

func (c *keyCache) drop(d authz.Digest, n int64) {
	if c.floor < n {
		c.recentDigests[d] = n
	}
	c.known.Invalidate(d)
	c.unknown.Invalidate(d)
}

// forget drops everything that was read before revision n.
func (c *keyCache) forget(n int64, organizations []changedOrganization) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learned.learn(nil, organizations)
	c.forgetAll(n)
}

// learn learns what changes say that were applied before.
func (c *keyCache) learn(keys []changedKey, organizations []changedOrganization) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learned.learn(keys, organizations)
}

func (c *keyCache) forgetAll(n int64) {
	clear(c.recentDigests)
	clear(c.recentOrganizations)
	c.floor = max(c.floor, n)
	c.known.InvalidateAll()
	c.unknown.InvalidateAll()
}

// putBack forgets everything because the database was put back, and remembers what
// must not be un-learned. It returns how many revocations those are.
func (c *keyCache) putBack(n int64) (revocations int, complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Those of an organization that has changed as well: of the key itself they tell the truth.
	for _, e := range c.known.All() {
		c.learned.keep(e, c.bytes/2)
	}
	c.forgetAll(n)
	c.known.SetMaximum(c.bytes - c.learned.keptBytes) // both together stay within it
	c.organizations.reset()
	return c.learned.revoked.len() + c.learned.secrets.len(), c.learned.forgotten() == 0
}

// knows tells the newest revision of a key that is known of, and how much of what was learned
// has found no room any more.
func (c *keyCache) knows() (newest, forgotten int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.learned.newest, c.learned.forgotten()
}

// close stops what the caches run in the background.
func (c *keyCache) close() {
	c.known.StopAllGoroutines()
	c.unknown.StopAllGoroutines()
}
