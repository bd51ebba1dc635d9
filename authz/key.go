package authz

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Environment is live or test. The zero value is neither, and matches nothing.
type Environment string

// The environments.
const (
	EnvironmentLive Environment = "live"
	EnvironmentTest Environment = "test"
)

// Valid tells whether the environment is live or test.
func (e Environment) Valid() bool { return e == EnvironmentLive || e == EnvironmentTest }

// Scope is `resource:verb`, for example tickets:read. No scope implies another.
type Scope string

// Valid tells whether the scope has the form resource:verb, each part a
// lower-case letter followed by up to 63 of a-z 0-9 _ - .
func (s Scope) Valid() bool {
	resource, verb, ok := strings.Cut(string(s), ":")
	return ok && validScopePart(resource) && validScopePart(verb)
}

func validScopePart(s string) bool {
	if s == "" || len(s) > 64 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-.") == ""
}

// Metadata is a JSON object as compact text; the empty Metadata is {}.
type Metadata string

// JSON returns the object's text, never empty.
func (m Metadata) JSON() string {
	if m == "" {
		return "{}"
	}
	return string(m)
}

// Organization is a tenant; it owns keys. A read Organization is immutable and shared by
// its keys; only its memo is ever set. It must not be copied but by Copy.
type Organization struct {
	ID OrganizationID
	// ExternalID is the adopter's own id; empty when there is none.
	ExternalID string
	Name       string
	// Plan names an entry of the policy's catalogue of plans.
	Plan     string
	Metadata Metadata
	// Suspended denies all its keys.
	Suspended bool
	// Revision is the store's revision that last changed the row.
	Revision int64

	// Memo is as Key.Memo.
	Memo atomic.Value
}

// Copy is the same record for who changes it: without the memo.
func (o *Organization) Copy() *Organization {
	return &Organization{
		ID: o.ID, ExternalID: o.ExternalID, Name: o.Name, Plan: o.Plan, Metadata: o.Metadata, Suspended: o.Suspended, Revision: o.Revision,
	}
}

// Key is what a customer's integration presents: an identity that never changes,
// with one secret, two while rotating. A read Key is immutable and shared by all
// who ask; only its two memos are ever set. It must not be
// copied but by Copy.
type Key struct {
	ID           KeyID
	Organization *Organization
	// ExternalID is the adopter's own id; empty when there is none.
	ExternalID  string
	Name        string
	Environment Environment
	// Scopes are sorted, without duplicates.
	Scopes []Scope
	// CreatedAt is when the key was made.
	CreatedAt time.Time
	// RevokedAt is zero while the key is not revoked. Revoked is for ever.
	RevokedAt time.Time
	// ExpiresAt is zero for a key that does not expire.
	ExpiresAt time.Time
	// Disabled denies until it is taken back.
	Disabled bool
	// Restricted marks a key that policy may treat with suspicion, for example after a leak report.
	Restricted bool
	// AllowedCIDRs fences the key by the client's address; empty means no fence.
	AllowedCIDRs []netip.Prefix
	// RateLimit is the key's own limit in place of its plan's; nil means the plan's.
	RateLimit *Rate
	Metadata  Metadata
	// Revision is the store's revision that last changed the row.
	Revision int64

	// Memo keeps what authz/policy alone puts beside this record, always of one concrete
	// type; what depends on more than the record is tagged with its snapshot.
	Memo atomic.Value
	// Refusals keeps what authz/ratelimit alone remembers of this record's limits,
	// always of one concrete type.
	Refusals atomic.Value
}

// Copy is the same record for who changes it: without memos, and with scopes of its own.
func (k *Key) Copy() *Key {
	return &Key{
		ID: k.ID, Organization: k.Organization, ExternalID: k.ExternalID, Name: k.Name, Environment: k.Environment,
		Scopes: slices.Clone(k.Scopes), CreatedAt: k.CreatedAt, RevokedAt: k.RevokedAt, ExpiresAt: k.ExpiresAt, Disabled: k.Disabled,
		Restricted: k.Restricted, AllowedCIDRs: k.AllowedCIDRs, RateLimit: k.RateLimit, Metadata: k.Metadata, Revision: k.Revision,
	}
}

// KeySecret is one of a key's secrets, as far as it is known: never the secret itself.
// Like its Key it is shared by all who ask, and must not be copied.
type KeySecret struct {
	ID SecretID
	// Hint is what may be shown, for example sk_live_4fGh…9aBc.
	Hint string
	// PepperID names the pepper under which the digest was made.
	PepperID  string
	CreatedAt time.Time
	// ExpiresAt ends this secret, for example after a rotation's grace; zero means never.
	ExpiresAt time.Time
	RevokedAt time.Time
}

// Caller is a backend service that asks for checks. A read Caller is never changed
// and shared by all its checks; only its memo is ever set. It must not be copied.
type Caller struct {
	ID   CallerID
	Name string
	// Environments are those whose keys the caller may have checked; empty means none.
	Environments []Environment
	Permissions  []Permission
	// Disabled refuses the caller's tokens.
	Disabled  bool
	RevokedAt time.Time
	// TokenID, TokenExpiresAt and TokenRevokedAt are those of the token that was presented.
	TokenID        SecretID
	TokenExpiresAt time.Time
	TokenRevokedAt time.Time
	Revision       int64

	// Memo is as Key.Memo.
	Memo atomic.Value
}

// Permission is what a caller may ask for.
type Permission string

// The permissions of callers.
const (
	PermissionCheck      Permission = "check"
	PermissionExplain    Permission = "explain"
	PermissionIntrospect Permission = "introspect"
	PermissionSearch     Permission = "search"
)

// May tells whether the caller has the permission.
func (c *Caller) May(p Permission) bool {
	for _, has := range c.Permissions {
		if has == p {
			return true
		}
	}
	return false
}

// Earlier is the earlier of two ends, of which zero is never.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
