package store

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/supportstation/keystile/authz"
)

const (
	// usageShards bounds how many checks count at a time without waiting for each other.
	usageShards = 64
	// maxUsageCounts bounds what is counted apart, while Postgres is away also in many
	// hours: about 600 B each.
	maxUsageCounts = 100_000
	// usageIdle is after how many times that it was written, and had counted nothing, a
	// count is forgotten.
	usageIdle = 30
	// maxUnmatchedShapes bounds the shapes of an organization in a day whose paths clients
	// made up, and maxUnmatched those of all organizations; the rest is
	// counted together.
	maxUnmatchedShapes = 1000
	maxUnmatched       = 50_000
)

// usageKey is what is counted apart.
type usageKey struct {
	// hour is in hours since 1970.
	hour         int64
	organization authz.OrganizationID
	key          authz.KeyID
	secret       authz.SecretID
	caller       authz.CallerID
	shape        authz.Shape
	// scopes are those that the request needed, with spaces between.
	scopes string
	code   authz.Code
}

// usageCount is how often since it was last written, and how many times that was not at all.
type usageCount struct {
	n, idle int64
	// networks say where from; together they are n.
	networks networkCounts
	uses     useTimes
}

// add counts one.
func (c *usageCount) add(u *usage, k *usageKey, from sighting) {
	c.n++
	c.networks.add(&u.networks, k, from.network)
	c.uses.add(from)
}

// sighting is where from and when a decision was asked for.
type sighting struct {
	// network is zero when none is kept.
	network netip.Prefix
	// at is in milliseconds since 1970.
	at int64
}

// usage counts decisions in memory until they are written. Safe for concurrent use.
type usage struct {
	seed   maphash.Seed
	shards [usageShards]usageShard
	// size is how many counts there are in all shards.
	size      atomic.Int64
	unmatched unmatched
	networks  knownNetworks

	// stored and dropped are in decisions. What was counted and is neither waits.
	stored, dropped atomic.Int64
}

type usageShard struct {
	mu     sync.Mutex
	counts map[usageKey]*usageCount
	// counted is how many decisions there were.
	counted int64
	// A line of a processor's cache holds no two locks.
	_ [64]byte
}

func newUsage() *usage {
	u := &usage{seed: maphash.MakeSeed()}
	u.networks.seed = u.seed
	for i := range u.shards {
		u.shards[i].counts = make(map[usageKey]*usageCount)
	}
	return u
}

// count counts a decision, in the hour that its id tells. For what was counted before, lately, and needs no more
// than one scope, it allocates nothing.
func (s *Store) count(q *authz.Check, d *authz.Decision) {
	k := usageKey{hour: d.ID.Time().Unix() / 3600, shape: d.Shape(q), code: d.Code}
	if q.Caller != nil {
		k.caller = q.Caller.ID
	}
	if d.Key != nil && d.Key.Organization != nil {
		k.key, k.organization = d.Key.ID, d.Key.Organization.ID
	}
	if d.Secret != nil {
		k.secret = d.Secret.ID
	}
	switch {
	case len(d.Required) == 1 && d.Required[0].Valid():
		k.scopes = string(d.Required[0])
	case len(d.Required) > 1:
		valid := slices.DeleteFunc(slices.Clone(d.Required), func(s authz.Scope) bool { return !s.Valid() })
		k.scopes = strings.Join(texts(valid), " ")
	}
	s.usage.add(&k, sighting{s.usageNetwork.of(q.ClientIP), d.ID.Time().UnixMilli()})
}

// usageSpot is what spreads counts over shards: one key's are together.
type usageSpot struct {
	key    authz.KeyID
	caller authz.CallerID
}

func (u *usage) add(k *usageKey, from sighting) {
	shard := &u.shards[maphash.Comparable(u.seed, usageSpot{k.key, k.caller})%usageShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	shard.counted++
	if c := shard.counts[*k]; c != nil {
		c.add(u, k, from)
		return
	}
	u.addNew(shard, *k, from)
}

// addNew counts what has no count yet. What there is no room for is counted with less
// detail, or else dropped, and that is told.
func (u *usage) addNew(shard *usageShard, k usageKey, from sighting) {
	if u.size.Load() >= maxUsageCounts || k.shape.Unmatched() && !u.unmatched.holds(k.organization, k.hour/24, k.shape) {
		k.shape = authz.CollapsedShape()
		if k.code != authz.CodeAllowed { // those of allowed requests are the key's own, few and in use
			k.scopes = ""
		}
		if c := shard.counts[k]; c != nil {
			c.add(u, &k, from)
			return
		}
	}
	if u.size.Load() >= maxUsageCounts+usageReserve {
		u.dropped.Add(1)
		return
	}
	u.size.Add(1)
	keep(&k.shape)
	k.scopes = strings.Clone(k.scopes)
	c := &usageCount{}
	c.add(u, &k, from)
	shard.counts[k] = c
}

// keep has a shape's texts be its own: a request's are parts of its body, which must not stay.
func keep(s *authz.Shape) {
	for _, text := range []*string{
		&s.Policy, &s.Method, &s.Path, &s.Route, &s.Action, &s.ResourceType, (*string)(&s.Environment),
	} {
		*text = strings.Clone(*text)
	}
}

// usageReserve is room for what is counted with less detail when there is no other.
const usageReserve = maxUsageCounts / 10

// counted is how many decisions there were in all.
func (u *usage) counted() int64 {
	var n int64
	for i := range u.shards {
		shard := &u.shards[i]
		shard.mu.Lock()
		n += shard.counted
		shard.mu.Unlock()
	}
	return n
}

// usageRow is a count on its way to Postgres.
type usageRow struct {
	usageKey

	// n is 0 where only a use is told.
	n        int64
	networks []networkCount
	use      keyUse
}

// take returns what was counted since the last time, and counts on from nothing; hour is the
// one that it is now.
func (u *usage) take(hour int64) []usageRow {
	var rows []usageRow
	for i := range u.shards {
		shard := &u.shards[i]
		shard.mu.Lock()
		for k, c := range shard.counts {
			over := k.hour < hour
			use, told := c.uses.take(c.n == 0 || over)
			if c.n > 0 || told {
				rows = append(rows, usageRow{k, c.n, c.networks.take(&u.networks), use})
			}
			if c.n > 0 {
				c.n, c.idle = 0, 0
			} else {
				c.idle++
			}
			if c.idle > usageIdle || over {
				delete(shard.counts, k)
				u.size.Add(-1)
			}
		}
		shard.mu.Unlock()
	}
	return rows
}

// unmatched remembers which made-up shapes of a day have a count. Safe for concurrent use.
type unmatched struct {
	mu   sync.Mutex
	day  int64
	size int
	of   map[authz.OrganizationID]map[authz.Shape]struct{}
}

// holds tells whether a shape is one of those, and makes it one while there is room.
func (u *unmatched) holds(organization authz.OrganizationID, day int64, shape authz.Shape) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if day < u.day { // late ones of a day that is over
		return false
	}
	if u.of == nil || day > u.day {
		u.day, u.size, u.of = day, 0, make(map[authz.OrganizationID]map[authz.Shape]struct{})
	}
	known := u.of[organization]
	if _, ok := known[shape]; ok {
		return true
	}
	if len(known) >= maxUnmatchedShapes || u.size >= maxUnmatched {
		return false
	}
	if known == nil {
		known = make(map[authz.Shape]struct{})
		u.of[organization] = known
	}
	keep(&shape)
	known[shape] = struct{}{}
	u.size++
	return true
}
