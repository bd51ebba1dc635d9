package authz

import (
	"net/netip"
	"strings"
)

// Shape is what policy saw of a request, without what tells one request from the next: no
// id, no address, no word that a client made up. Requests of one shape are counted together,
// and a shape can be asked again, of the same policy or of another one: see Check. It is
// comparable. The zero Shape is of a check that policy was not asked about.
type Shape struct {
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
	// Action is "_" for one that has not the form of a scope.
	Action      string
	Environment Environment
	// ResourceType is "_" for one that is no plain word.
	ResourceType string
	// ResourceID tells that the resource had an id.
	ResourceID           bool
	ResourceOrganization ResourceOwner
	Address              AddressKind
	Browser              bool
	Stale                bool
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
	// blank stands for whatever may tell one request from the next.
	blank = "_"
	// maxWord bounds a word that is kept of a client's, maxShapeSegments and maxShapePath
	// a path that matched nothing.
	maxWord          = 32
	maxShapeSegments = 16
	maxShapePath     = 200
)

// ShapeOf is the shape of a check of a key whose path matched route, or "". It allocates
// nothing for what matched a route.
func ShapeOf(k *Key, c *Check, route string) Shape {
	s := Shape{
		Method: c.Method, Route: route, Ambiguous: c.Ambiguous, Action: c.Action, Environment: c.Environment,
		ResourceType: c.Resource.Type, ResourceID: c.Resource.ID != "", ResourceOrganization: ownerOf(k, c.Resource.Organization),
		Address: addressKind(k, c.ClientIP), Browser: c.Browser, Stale: c.Stale,
	}
	if route == "" {
		if !knownMethod(c.Method) {
			s.Method = blank
		}
		if c.Path != "" && !c.Ambiguous {
			if s.Path = wordsOf(c.Segments); s.Path == "" {
				return CollapsedShape()
			}
		}
	}
	if s.Action != "" && !Scope(s.Action).Valid() {
		s.Action = blank
	}
	if s.ResourceType != "" && !plainWord(s.ResourceType) {
		s.ResourceType = blank
	}
	return s
}

// CollapsedShape is the shape of all those for which there was no room.
func CollapsedShape() Shape { return Shape{Collapsed: true} }

// Unmatched tells that the path, or the action, may be what a client made up: there is no
// end of such shapes.
func (s Shape) Unmatched() bool { return s.Route == "" && (s.Path != "" || s.Action != "") }

// Template is the path with "_" for what may tell one request from the next, "" without one.
func (s Shape) Template() string {
	if s.Route == "" || !strings.Contains(s.Route, "{") {
		return s.Route + s.Path
	}
	var b strings.Builder
	for part := range strings.SplitSeq(s.Route[1:], "/") {
		b.WriteByte('/')
		if strings.HasPrefix(part, "{") {
			part = blank
		}
		b.WriteString(part)
	}
	return b.String()
}

// Check is a question of this shape about a key as it is now: what is not kept is stood in
// for. A collapsed shape and the zero Shape have none, which is nil.
func (s Shape) Check(k *Key, caller *Caller) *Check {
	if s.Collapsed || s == (Shape{}) {
		return nil
	}
	c := &Check{
		Caller: caller, Action: s.Action, Environment: s.Environment, Browser: s.Browser, Stale: s.Stale, Cost: MinCost,
		Resource: Resource{Type: s.ResourceType}, ClientIP: s.address(k),
	}
	if s.ResourceID {
		c.Resource.ID = blank
	}
	if o := k.Organization; o != nil {
		switch s.ResourceOrganization {
		case OwnerByID:
			c.Resource.Organization = o.ID.String()
		case OwnerByExternalID:
			c.Resource.Organization = o.ExternalID
		case OwnerOther:
			c.Resource.Organization = blank
		}
	}
	switch path := s.Template(); {
	case s.Ambiguous:
		c.Method, c.Path, c.Ambiguous = s.Method, "/"+blank+"/", true
	case path != "":
		c.SetRequest(s.Method, path)
	}
	return c
}

// address stands in for one of its kind.
func (s Shape) address(k *Key) netip.Addr {
	// Two that are nobody's (RFC 5737, RFC 3849): a fence may be around one of them.
	somewhere := []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.MustParseAddr("2001:db8::1")}
	switch s.Address {
	case AddressGiven:
		return somewhere[0]
	case AddressInside:
		for _, prefix := range k.AllowedCIDRs {
			return prefix.Addr()
		}
		return somewhere[0] // the fence is gone
	case AddressOutside:
		for _, a := range somewhere {
			if !inside(k, a) {
				return a
			}
		}
	}
	return netip.Addr{}
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
	switch organization {
	case string(o.ID.AppendTo(text[:0])):
		return OwnerByID
	case o.ExternalID:
		return OwnerByExternalID
	}
	return OwnerOther
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

func knownMethod(m string) bool {
	switch m {
	case "", "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
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
			segment = blank
		}
		b.WriteString(segment)
	}
	if b.Len() > maxShapePath {
		return ""
	}
	return b.String()
}

// plainWord tells whether a word names a kind of thing rather than one of them: a version
// such as v1, or small letters, joined by dots, hyphens and underscores. Ids, names and
// secrets have digits or capitals, or are longer.
func plainWord(s string) bool {
	if len(s) >= 2 && len(s) <= 3 && s[0] == 'v' && strings.Trim(s[1:], "0123456789") == "" {
		return true
	}
	return s != "" && len(s) <= maxWord && s[0] >= 'a' && s[0] <= 'z' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_-.") == ""
}
