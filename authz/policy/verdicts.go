package policy

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxVerdicts is how many verdicts are remembered, a power of two: some 1 MB, and with
	// the longest of them 5.
	maxVerdicts = 1024
	// maxVerdictBytes bounds what is remembered with one. A path has up to 8 KiB, and each of
	// its segments takes more than its text: one key's would take 75 MB.
	maxVerdictBytes = 4 << 10
)

// verdicts remembers verdicts for those who ask the same again: a client that is told to
// wait and does not, a job that polls. A policy sees its input and its data and nothing
// else, neither a clock nor chance (see capabilities.json), so the same question about the
// same records under the same snapshot has the same verdict, and nothing has to be
// invalidated: a record that has changed is another record. Safe for concurrent use.
type verdicts struct {
	seed  maphash.Seed
	slots [maxVerdicts]atomic.Pointer[remembered]
	// last has the hash of what each slot was last asked for: only what is asked twice in
	// a row is remembered, so that everything else costs no allocation.
	last [maxVerdicts]atomic.Uint64
}

// asked is all that a verdict follows from. Records are immutable, and their pointers
// stand for them.
type asked struct {
	snapshot *Snapshot
	key      *authz.Key
	caller   *authz.Caller

	method, path, action string
	environment          authz.Environment
	resource             authz.Resource
	clientIP             netip.Addr
	browser, stale       bool
	ambiguous            bool
}

// remembered is a verdict and what it follows from; segments are a part of that.
type remembered struct {
	asked    asked
	segments []string
	verdict  authz.Verdict
}

func newVerdicts() *verdicts { return &verdicts{seed: maphash.MakeSeed()} }

func askedOf(s *Snapshot, k *authz.Key, c *authz.Check) asked {
	return asked{
		snapshot: s, key: k, caller: c.Caller, method: c.Method, path: c.Path, action: c.Action,
		environment: c.Environment, resource: c.Resource, clientIP: c.ClientIP, browser: c.Browser, stale: c.Stale,
		ambiguous: c.Ambiguous,
	}
}

// find returns the verdict of what was asked before; otherwise the hash is for keep.
func (m *verdicts) find(a *asked, segments []string) (v authz.Verdict, ok bool, hash uint64) {
	hash = m.hash(a)
	if r := m.slots[hash%maxVerdicts].Load(); r != nil && r.asked == *a && slices.Equal(r.segments, segments) {
		return r.verdict, true, hash
	}
	return v, false, hash
}

// keep remembers a verdict that was asked for twice in a row.
func (m *verdicts) keep(a *asked, segments []string, hash uint64, v authz.Verdict) {
	i := hash % maxVerdicts
	if m.last[i].Swap(hash) != hash || bytesOf(a, segments, &v) > maxVerdictBytes {
		return
	}
	// A question's texts are parts of its body, which holds the secret that was presented
	// and is not to stay in memory.
	kept := *a
	kept.method, kept.path, kept.action = strings.Clone(a.method), strings.Clone(a.path), strings.Clone(a.action)
	kept.environment = authz.Environment(strings.Clone(string(a.environment)))
	kept.resource = authz.Resource{
		Type: strings.Clone(a.resource.Type), ID: strings.Clone(a.resource.ID), Organization: strings.Clone(a.resource.Organization),
	}
	parts := make([]string, len(segments))
	for i, s := range segments {
		parts[i] = strings.Clone(s)
	}
	v.Route, v.Reasons = strings.Clone(v.Route), slices.Clone(v.Reasons)
	for i := range v.Reasons {
		v.Reasons[i].Message = strings.Clone(v.Reasons[i].Message)
	}
	// Whoever appends to a part of it gets a copy.
	v.Reasons, v.Required, v.Missing, v.Limits = slices.Clip(v.Reasons), slices.Clip(v.Required), slices.Clip(v.Missing), slices.Clip(v.Limits)
	m.slots[i].Store(&remembered{kept, parts, v})
}

// bytesOf is about what a verdict and its question take beside the slot's own fields.
func bytesOf(a *asked, segments []string, v *authz.Verdict) int {
	const segment, reason, scope, limit = 32, 96, 16, 96
	n := len(a.method) + len(a.path) + len(a.action) + len(a.environment) + len(a.resource.Type) + len(a.resource.ID) +
		len(a.resource.Organization) + segment*len(segments) + len(v.Route)
	for _, s := range segments {
		n += len(s)
	}
	for i := range v.Reasons {
		n += reason + len(v.Reasons[i].Message)
	}
	return n + scope*(len(v.Required)+len(v.Missing)) + limit*len(v.Limits)
}

// forget lets go of everything, for a new policy.
func (m *verdicts) forget() {
	for i := range m.slots {
		m.slots[i].Store(nil)
	}
}

// hash is of what differs most.
func (m *verdicts) hash(a *asked) uint64 {
	var h maphash.Hash
	h.SetSeed(m.seed)
	maphash.WriteComparable(&h, a.key.ID)
	_, _ = h.WriteString(a.path)
	_, _ = h.WriteString(a.method)
	_, _ = h.WriteString(a.action)
	_, _ = h.WriteString(a.resource.ID)
	ip := a.clientIP.As16()
	_, _ = h.Write(ip[:])
	return h.Sum64()
}
