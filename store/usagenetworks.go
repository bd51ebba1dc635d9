package store

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/supportstation/keystile/authz"
)

// UsageNetwork is what is kept of end clients' addresses where usage is counted.
type UsageNetwork string

// What may be kept; "" is UsageNetworkTruncated.
const (
	// UsageNetworkTruncated keeps /24 of IPv4 and /48 of IPv6.
	UsageNetworkTruncated UsageNetwork = "truncated"
	// UsageNetworkFull keeps whole addresses.
	UsageNetworkFull UsageNetwork = "full"
	// UsageNetworkOff keeps nothing.
	UsageNetworkOff UsageNetwork = "off"
)

const (
	// maxKeyNetworks bounds the networks of a key on a day that are counted apart; the rest
	// is counted together, as otherNetworks.
	maxKeyNetworks = 200
	// maxNetworks bounds those of all keys on a day: some 40 B each.
	maxNetworks = 1_000_000
	// maxPendingNetworks bounds those that wait to be written, beside the one that each
	// count has: some 100 B each.
	maxPendingNetworks = 200_000
)

// Networks that are none.
//
//nolint:gochecknoglobals // constants, were structs constant
var (
	// otherNetworks stands for those that are not counted apart.
	otherNetworks = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	// noNetwork stands for addresses that were not told.
	noNetwork = netip.PrefixFrom(netip.IPv6Unspecified(), 128)
)

// of is what is kept of an address; the zero Prefix is nothing.
func (n UsageNetwork) of(a netip.Addr) netip.Prefix {
	switch {
	case n == UsageNetworkOff:
		return netip.Prefix{}
	case !a.IsValid():
		return noNetwork
	case n == UsageNetworkFull:
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen())
	}
	return authz.TruncateAddr(a)
}

// networkCounts are the networks of one count since it was last written. A client that stays
// where it is costs a comparison.
type networkCounts struct {
	// last is the last one, n how often in a row.
	last netip.Prefix
	n    int64
	// more are those before it, others how many there was no room for.
	more   map[netip.Prefix]int64
	others int64
}

// networkCount is how often a network was seen.
type networkCount struct {
	network netip.Prefix
	n       int64
}

func (c *networkCounts) add(known *knownNetworks, k *usageKey, network netip.Prefix) {
	switch {
	case network == c.last:
		c.n++
	case c.makeLast(known, k, network):
		c.n = 1
	default:
		c.others++
	}
}

// makeLast makes another network the last one, if there is room to keep both.
func (c *networkCounts) makeLast(known *knownNetworks, k *usageKey, network netip.Prefix) bool {
	if _, there := c.more[network]; !there && !known.holds(k.key, k.hour/24, network) {
		return false
	}
	if c.n > 0 {
		if _, there := c.more[c.last]; !there && !known.reserve() {
			return false
		}
		if c.more == nil {
			c.more = make(map[netip.Prefix]int64)
		}
		c.more[c.last] += c.n
	}
	c.last = network
	return true
}

// take returns what was counted, and counts on from nothing.
func (c *networkCounts) take(known *knownNetworks) []networkCount {
	var all []networkCount
	if c.n > 0 && c.last.IsValid() {
		all = append(all, networkCount{c.last, c.n + c.more[c.last]})
	}
	for network, n := range c.more {
		if network != c.last || c.n == 0 {
			all = append(all, networkCount{network, n})
		}
	}
	if c.others > 0 {
		all = append(all, networkCount{otherNetworks, c.others})
	}
	known.release(len(c.more))
	c.n, c.more, c.others = 0, nil, 0
	return all
}

// knownNetworks remembers which networks of a day are counted apart, as hashes. Safe for
// concurrent use.
type knownNetworks struct {
	seed maphash.Seed
	// pending is how many wait to be written.
	pending atomic.Int64

	mu  sync.Mutex
	day int64
	all map[uint64]struct{}
	// of is how many a key has.
	of map[authz.KeyID]uint16
}

// holds tells whether a key's network is one of those, and makes it one while there is room.
func (u *knownNetworks) holds(key authz.KeyID, day int64, network netip.Prefix) bool {
	if !network.IsValid() || network == noNetwork {
		return true
	}
	hash := maphash.Comparable(u.seed, struct {
		key     authz.KeyID
		network netip.Prefix
	}{key, network})
	u.mu.Lock()
	defer u.mu.Unlock()
	if day < u.day { // late ones of a day that is over
		return false
	}
	if u.all == nil || day > u.day {
		u.day, u.all, u.of = day, make(map[uint64]struct{}), make(map[authz.KeyID]uint16)
	}
	if _, ok := u.all[hash]; ok {
		return true
	}
	if len(u.all) >= maxNetworks || u.of[key] >= maxKeyNetworks {
		return false
	}
	u.all[hash] = struct{}{}
	u.of[key]++
	return true
}

// reserve tells whether one more may wait.
func (u *knownNetworks) reserve() bool {
	if u.pending.Add(1) <= maxPendingNetworks {
		return true
	}
	u.pending.Add(-1)
	return false
}

func (u *knownNetworks) release(n int) { u.pending.Add(int64(-n)) }
