package store

import (
	"fmt"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxCachedKeys bounds the digests kept with their records.
	maxCachedKeys = 200_000
	// maxCachedUnknown bounds the digests kept as unknown.
	maxCachedUnknown = 65_536
	// cachedKeyTTL only gives memory back: freshness is by revision.
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
	organization authz.OrganizationID
	// bad says why the stored row cannot be served.
	bad error
	// asOf is the revision of the snapshot that it was read from.
	asOf int64
}

// keyCache keeps records by digest. Reads take no lock. It never goes back: a
// look-up whose snapshot is older than a change that has been applied is refused,
// so that a slow read cannot put a revoked key's old record back. Safe for
// concurrent use.
type keyCache struct {
	known   *otter.Cache[authz.Digest, *cachedKey]
	unknown *otter.Cache[authz.Digest, *cachedKey]

	// mu orders insertions against changes; reads do not take it.
	mu sync.Mutex
	// floor is the revision up to which recent changes have been forgotten: an
	// older snapshot cannot be judged, and is refused.
	floor               int64
	recentDigests       map[authz.Digest]int64
	recentOrganizations map[authz.OrganizationID]int64
}

func newKeyCache() (*keyCache, error) {
	known, err := otter.New(&otter.Options[authz.Digest, *cachedKey]{
		MaximumSize:      maxCachedKeys,
		ExpiryCalculator: otter.ExpiryWriting[authz.Digest, *cachedKey](cachedKeyTTL),
	})
	if err != nil {
		return nil, fmt.Errorf("make the key cache: %w", err)
	}
	unknown, err := otter.New(&otter.Options[authz.Digest, *cachedKey]{
		MaximumSize:      maxCachedUnknown,
		ExpiryCalculator: otter.ExpiryWriting[authz.Digest, *cachedKey](cachedUnknownTTL),
	})
	if err != nil {
		return nil, fmt.Errorf("make the cache of unknown keys: %w", err)
	}
	return &keyCache{
		known: known, unknown: unknown,
		recentDigests:       make(map[authz.Digest]int64),
		recentOrganizations: make(map[authz.OrganizationID]int64),
	}, nil
}

// get returns what is known of a digest, or nil.
func (c *keyCache) get(d authz.Digest) *cachedKey {
	if e, ok := c.known.GetIfPresent(d); ok {
		return e
	}
	if e, ok := c.unknown.GetIfPresent(d); ok {
		return e
	}
	return nil
}

// put keeps what was read and tells whether it may be served. It may not when it
// was read before a change that has been applied since: read it again.
func (c *keyCache) put(d authz.Digest, e *cachedKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.asOf < c.floor || e.asOf < c.recentDigests[d] || e.asOf < c.recentOrganizations[e.organization] {
		return false
	}
	switch {
	case e.bad != nil: // asked again each time, so that its repair is noticed at once
	case e.key == nil:
		c.unknown.Set(d, e)
	default:
		c.unknown.Invalidate(d)
		c.known.Set(d, e)
	}
	return true
}

// changes are what revisions (from, to] have changed.
type changes struct {
	to            int64
	digests       []authz.Digest
	organizations []authz.OrganizationID
}

// apply forgets whatever the changes touch.
func (c *keyCache) apply(ch changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.recentDigests)+len(c.recentOrganizations)+len(ch.digests)+len(ch.organizations) > maxRecentChanges {
		clear(c.recentDigests)
		clear(c.recentOrganizations)
		c.floor = ch.to
	}
	for _, d := range ch.digests {
		if c.floor < ch.to {
			c.recentDigests[d] = ch.to
		}
		c.known.Invalidate(d)
		c.unknown.Invalidate(d)
	}
	if len(ch.organizations) == 0 {
		return
	}
	changed := make(map[authz.OrganizationID]bool, len(ch.organizations))
	for _, id := range ch.organizations {
		changed[id] = true
		if c.floor < ch.to {
			c.recentOrganizations[id] = ch.to
		}
	}
	for d, e := range c.known.All() {
		if changed[e.organization] {
			c.known.Invalidate(d)
		}
	}
}

// forget drops everything that was read before revision n.
func (c *keyCache) forget(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.recentDigests)
	clear(c.recentOrganizations)
	c.floor = max(c.floor, n)
	c.known.InvalidateAll()
	c.unknown.InvalidateAll()
}

// close stops what the caches run in the background.
func (c *keyCache) close() {
	c.known.StopAllGoroutines()
	c.unknown.StopAllGoroutines()
}
