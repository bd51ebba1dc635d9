package authz

import (
	"net/netip"
	"slices"
	"strings"
)

// Shape is what policy saw of a request, without what tells one request from the next: no
// id, no address, no word that a client made up. Requests of one shape are counted together,
// and a shape can be asked again, of the same policy or of another one: see Check. It is
// comparable. The zero Shape is of a check that policy was not asked about.
type Shape struct {
	// Policy is the revision of the policy that was asked.
	Policy string
	// Method is "_" for one that no route has and HTTP does not know.
	Method string
	// Path has "_" for each segment that may tell one request from the next. It is "" where
	// Route tells it, and without a method and path.
	Path string
	// Route is the template that the path matched, "" for none.
	Route string
	// Ambiguous tells that the path could be read in more than one way, and is not kept.
	Ambiguous bool
	// Collapsed tells that there were too many shapes to keep this one: nothing else of it
	// is left, and it cannot be asked again.
	Collapsed bool
	// Action is "_" for one that is no scope of the policy's.
	Action      string
	Environment Environment
	// ResourceType is "_" for one that is no plain word.
	ResourceType string
	// ResourceID tells that the resource had an id.
	ResourceID           bool
	ResourceOrganization ResourceOwner
	Address              AddressKind
	// Relative is a hash of what of the key's record the two before are relative to: its fence,
	// its organization's external id. 0 is nothing.
	Relative uint64
	Browser  bool
	Stale    bool
}

// ResourceOwner is whose a resource was, as the question said.
type ResourceOwner string

// The owners; "" is a resource whose organization was not told.
const (
	// OwnerByID and OwnerByExternalID are the key's own organization, by its two names.
	OwnerByID         ResourceOwner = "own"
	OwnerByExternalID ResourceOwner = "own_external"
	OwnerOther        ResourceOwner = "other"
)

// AddressKind is what is kept of the end client's address.
type AddressKind string

// The kinds; "" is an address that was not told.
const (
	// AddressGiven is of a key without a fence.
	AddressGiven AddressKind = "given"
	// AddressInside and AddressOutside are of a key with one.
	AddressInside  AddressKind = "inside"
	AddressOutside AddressKind = "outside"
)

const (
	// Blank stands in a shape for whatever may tell one request from the next.
	Blank = "_"
	// nobody's organization: external ids are ASCII.
	nobody = "\u2205"
	// maxWord bounds a word that is kept of a client's, maxShapeSegments and maxShapePath
	// a path that matched nothing.
	maxWord          = 20
	maxShapeSegments = 16
	maxShapePath     = 200
)

// ShapeOf is the shape of a check of a key, of which policy said v. It allocates nothing for
// what matched a route of the catalogue.
func ShapeOf(k *Key, c *Check, v *Verdict) Shape {
	s := Shape{
		Policy: v.Revision, Method: c.Method, Ambiguous: c.Ambiguous, Environment: c.Environment,
		ResourceType: c.Resource.Type, ResourceID: c.Resource.ID != "", ResourceOrganization: ownerOf(k, c.Resource.Organization),
		Address: addressKind(k, c.ClientIP), Browser: c.Browser, Stale: c.Stale,
	}
	s.Relative = s.relativeTo(k)
	if !RecordsMethod(c.Method) {
		s.Method = Blank
	}
	switch {
	case v.Cataloged:
		s.Route = v.Route
	case c.Path != "" && !c.Ambiguous:
		if s.Path = wordsOf(c.Segments); s.Path == "" {
			return CollapsedShape()
		}
	}
	if s.Action = c.Action; c.Action != "" && (!Scope(c.Action).Valid() || !slices.Contains(v.Required, Scope(c.Action))) {
		s.Action = Blank
	}
	if s.ResourceType != "" && !plainWord(s.ResourceType) {
		s.ResourceType = Blank
	}
	return s
}

// CollapsedShape is the shape of all those for which there was no room.
func CollapsedShape() Shape { return Shape{Collapsed: true} }

// Unmatched tells that the path may be what a client made up: there is no end of such shapes.
func (s Shape) Unmatched() bool { return s.Path != "" }

// Template is the path with "_" for what may tell one request from the next, "" without one.
func (s Shape) Template() string {
	if s.Route == "" || !strings.Contains(s.Route, "{") {
		return s.Route + s.Path
	}
	var b strings.Builder
	for part := range strings.SplitSeq(s.Route[1:], "/") {
		b.WriteByte('/')
		if strings.HasPrefix(part, "{") {
			part = Blank
		}
		b.WriteString(part)
	}
	return b.String()
}

// Check is a question of this shape about a key as it is now: what is not kept is stood in
// for. It is faithful when that is for nothing that has changed since. A collapsed shape and
// the zero Shape have no question, which is nil.
func (s Shape) Check(k *Key, caller *Caller) (c *Check, faithful bool) {
	if s.Collapsed || s == (Shape{}) {
		return nil, false
	}
	c = &Check{
		Caller: caller, Action: s.Action, Environment: s.Environment, Browser: s.Browser, Stale: s.Stale, Cost: MinCost,
		Resource: Resource{Type: s.ResourceType},
	}
	faithful = s.Relative == s.relativeTo(k)
	if s.Address != "" {
		var ok bool
		if c.ClientIP, ok = s.address(k); !ok {
			faithful = false
		}
	}
	if s.ResourceID {
		c.Resource.ID = Blank
	}
	if o := k.Organization; o != nil {
		switch s.ResourceOrganization {
		case OwnerByID:
			c.Resource.Organization = o.ID.String()
		case OwnerByExternalID:
			c.Resource.Organization = o.ExternalID
		case OwnerOther:
			c.Resource.Organization = nobody
		}
	}
	switch path := s.Template(); {
	case s.Ambiguous:
		c.Method, c.Path, c.Ambiguous = s.Method, "/"+Blank+"/", true
	case path != "":
		c.SetRequest(s.Method, path)
	}
	return c, faithful
}

// address stands in for one of its kind, if there is any now.
func (s Shape) address(k *Key) (netip.Addr, bool) {
	if s.Address == AddressInside {
		for _, prefix := range k.AllowedCIDRs {
			return prefix.Addr(), true
		}
	}
	for _, a := range somewhere {
		if addressKind(k, a) == s.Address {
			return a, true
		}
	}
	return somewhere[0], false
}

// somewhere are addresses that are nobody's (RFC 5737, RFC 3849): a fence may be around some.
//
//nolint:gochecknoglobals // constants, were arrays constant
var somewhere = [...]netip.Addr{
	netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.AddrFrom4([4]byte{198, 51, 100, 1}), netip.AddrFrom4([4]byte{203, 0, 113, 1}),
	netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1}),
}

// relativeTo is Relative of a key as it is now: FNV-1a, which must come out the same elsewhere.
func (s Shape) relativeTo(k *Key) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(0)
	mix := func(b byte) {
		if h == 0 {
			h = offset
		}
		h = (h ^ uint64(b)) * prime
	}
	if s.Address != "" {
		for _, prefix := range k.AllowedCIDRs {
			for _, b := range prefix.Addr().As16() {
				mix(b)
			}
			mix(byte(prefix.Bits())) //nolint:gosec // at most 128
			if prefix.Addr().Is4() {
				mix(4)
			}
		}
	}
	// Another's is another's only as long as this organization does not take it for its own name.
	if (s.ResourceOrganization == OwnerByExternalID || s.ResourceOrganization == OwnerOther) && k.Organization != nil {
		mix(0)
		for i := range len(k.Organization.ExternalID) {
			mix(k.Organization.ExternalID[i])
		}
	}
	return h
}

func ownerOf(k *Key, organization string) ResourceOwner {
	if organization == "" {
		return ""
	}
	o := k.Organization
	if o == nil {
		return OwnerOther
	}
	var text [len("org_") + idSuffixLen]byte
	switch {
	case organization == string(o.ID.AppendTo(text[:0])):
		return OwnerByID
	case organization == o.ExternalID && !IsOrganizationID(organization):
		return OwnerByExternalID
	}
	return OwnerOther
}

// IsOrganizationID tells whether a text is an organization's id. As an external id it names
// nobody: it may be another's.
func IsOrganizationID(s string) bool {
	_, err := ParseID[organizationKind](s)
	return err == nil
}

func addressKind(k *Key, a netip.Addr) AddressKind {
	switch {
	case !a.IsValid():
		return ""
	case len(k.AllowedCIDRs) == 0:
		return AddressGiven
	case inside(k, a):
		return AddressInside
	}
	return AddressOutside
}

func inside(k *Key, a netip.Addr) bool {
	for _, prefix := range k.AllowedCIDRs {
		if prefix.Contains(a) {
			return true
		}
	}
	return false
}

// RecordsMethod tells whether a shape keeps a method as it is.
func RecordsMethod(m string) bool {
	switch m {
	case "", "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT":
		return true
	}
	return false
}

// wordsOf is a path of plain words, with "_" for every other segment; "" when it is too long.
func wordsOf(segments []string) string {
	if len(segments) == 0 {
		return "/"
	}
	if len(segments) > maxShapeSegments {
		return ""
	}
	var b strings.Builder
	for _, segment := range segments {
		b.WriteByte('/')
		if !plainWord(segment) {
			segment = Blank
		}
		b.WriteString(segment)
	}
	if b.Len() > maxShapePath {
		return ""
	}
	return b.String()
}

// plainWord tells whether a word looks as if it named a kind of thing rather than one of them:
// a version such as v1, or few small letters, with hyphens and underscores. Ids and secrets
// have digits or capitals, or are longer; a name that is a word passes for one.
func plainWord(s string) bool {
	if len(s) >= 2 && len(s) <= 3 && s[0] == 'v' && strings.Trim(s[1:], "0123456789") == "" {
		return true
	}
	return s != "" && len(s) <= maxWord && s[0] >= 'a' && s[0] <= 'z' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_-") == ""
}
