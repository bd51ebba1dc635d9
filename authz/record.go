package authz

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// At returns the time of the decision, by the service's Clock.
func (d *Decision) At() time.Time { return d.at }

// AskedPolicy tells whether policy was asked. It is not about a key that is not known, or
// that Go alone denies.
func (d *Decision) AskedPolicy() bool { return d.Key != nil && d.Code.AskedPolicy() }

// AskedPolicy tells whether policy was asked, of a decision about a key that is known.
func (c Code) AskedPolicy() bool {
	switch c {
	case "", CodeKeyMissing, CodeKeyMalformed, CodeKeyUnknown, CodeKeyRevoked, CodeKeyExpired, CodeKeyDisabled, CodeOrganizationSuspended:
		return false
	}
	return true
}

// DecisionRecord is a decision with its question, kept after both are gone. Nothing of it
// changes any more. It holds nothing that was presented: neither the secret nor its hash.
type DecisionRecord struct {
	// Check has a zero Presented; its Caller is the caller's shared record.
	Check Check
	// Decision has no Headers, Problem and Cause; its Key and Secret are shared records.
	Decision Decision
}

// RecordDecision copies what can be kept. A question's texts are parts of its body, which
// holds the secret that was presented and must not stay in memory.
func RecordDecision(q *Check, d *Decision) *DecisionRecord {
	r := &DecisionRecord{Check: q.Copy(), Decision: *d}
	k := &r.Decision
	k.Headers, k.Problem, k.Cause = nil, nil, nil
	k.Route = strings.Clone(k.Route)
	k.Required, k.Missing = cloned(k.Required), cloned(k.Missing)
	k.Reasons, k.Warnings = slices.Clone(k.Reasons), slices.Clone(k.Warnings)
	for i, reason := range k.Reasons {
		k.Reasons[i].Code, k.Reasons[i].Message = Code(strings.Clone(string(reason.Code))), strings.Clone(reason.Message)
	}
	if k.RateLimit != nil {
		limit := *k.RateLimit
		limit.Name = strings.Clone(limit.Name)
		k.RateLimit = &limit
	}
	return r
}

// cloned copies a list with its texts.
func cloned[T ~string](in []T) []T {
	if len(in) == 0 {
		return nil
	}
	out := make([]T, len(in))
	for i, s := range in {
		out[i] = T(strings.Clone(string(s)))
	}
	return out
}

// Size is about what the record takes in memory beside the shared records, in bytes.
func (r *DecisionRecord) Size() int {
	c, d := &r.Check, &r.Decision
	size := 1 << 10 // the structs, and lists of the usual length
	size += len(c.Method) + len(c.Path) + len(c.Action) + len(c.Resource.Type) + len(c.Resource.ID) + len(c.Resource.Organization)
	for _, s := range c.Segments {
		size += len(s) + 16
	}
	for _, reason := range d.Reasons {
		size += len(reason.Message) + 64
	}
	return size + len(d.Route) + 64*(len(d.Required)+len(d.Missing))
}

// Networks of client addresses that are kept in place of the addresses.
const (
	truncatedBits4 = 24
	truncatedBits6 = 48
)

// TruncateAddr returns the network of an address, so large that it names nobody: /24 of
// IPv4, /48 of IPv6. The zero Prefix is that of an unknown address.
func TruncateAddr(a netip.Addr) netip.Prefix {
	bits := truncatedBits6
	if a = a.Unmap(); a.Is4() {
		bits = truncatedBits4
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
