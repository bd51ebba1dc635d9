package authz

import (
	"context"
	"time"
)

// Role is what an admin may do. The zero Role may nothing.
type Role string

// The roles of admins. PlatformAdmin is global, the others belong to an organization.
const (
	RolePlatformAdmin Role = "platform_admin"
	RoleOwner         Role = "owner"
	RoleDeveloper     Role = "developer"
	RoleAuditor       Role = "auditor"
)

// Valid tells whether the role is one of the four.
func (r Role) Valid() bool {
	return r == RolePlatformAdmin || r == RoleOwner || r == RoleDeveloper || r == RoleAuditor
}

// Admin is a person or machine that manages, as its token names it.
type Admin struct {
	ID   AdminID
	Name string
	Role Role
	// Organization is zero for a platform admin and set for every other role.
	Organization OrganizationID
	ExpiresAt    time.Time
	RevokedAt    time.Time
	// TokenID, TokenExpiresAt and TokenRevokedAt are those of the token that was presented.
	TokenID        SecretID
	TokenExpiresAt time.Time
	TokenRevokedAt time.Time
}

// Live tells whether the admin and its token may still be used at now. An admin
// without an expiry, or of a role that does not fit its organization, may not.
func (a *Admin) Live(now time.Time) bool {
	return a != nil && a.Role.Valid() && (a.Role == RolePlatformAdmin) == a.Organization.IsZero() &&
		a.RevokedAt.IsZero() && a.TokenRevokedAt.IsZero() &&
		now.Before(a.ExpiresAt) && now.Before(a.TokenExpiresAt)
}

// AdminReader finds admins. It is implemented by the store.
type AdminReader interface {
	// FindAdmin returns the admin that has the token with this hash, in whatever
	// state it is, or nil when the store has answered and there is none. Nothing is
	// remembered: an admin that has been removed is refused at once.
	//
	// An error of KindUnavailable means that it could not be found out.
	// Called by Admins alone, concurrently.
	FindAdmin(ctx context.Context, hash SecretHash) (*Admin, error)
}

// Admins recognizes admins by their tokens. It is safe for concurrent use.
type Admins struct {
	reader AdminReader
	clock  Clock
}

// NewAdmins returns an Admins on a reader and a clock.
func NewAdmins(reader AdminReader, clock Clock) *Admins { return &Admins{reader, clock} }

// Authenticate returns the admin that a token belongs to. Its errors are of
// KindUnauthenticated (admin_unauthorized: no token, not an admin's, unknown,
// expired or revoked, all with one message) and KindUnavailable. A malformed token
// costs no I/O: neither an API key nor a caller's token ever reaches the store.
func (a *Admins) Authenticate(ctx context.Context, token string) (*Admin, error) {
	refused := &Error{
		Kind: KindUnauthenticated, Code: "admin_unauthorized",
		Message: "send an admin's token as Authorization: Bearer ksa_…; it must be known, unexpired and not revoked",
	}
	if !AdminTokens().Accepts(token) {
		return nil, refused
	}
	admin, err := a.reader.FindAdmin(ctx, NewSecret(token).Hash())
	if err != nil {
		return nil, Unavailable("the admin's token could not be verified; try again", err)
	}
	if !admin.Live(a.clock.Now()) {
		return nil, refused
	}
	return admin, nil
}

// AdminQuestion asks policy whether an actor may do a management action. The
// documents are JSON objects, or nil.
type AdminQuestion struct {
	Actor *Admin
	// Action is resource.verb, for example keys.create.
	Action string
	// Organization is whose resource it is; nil for what belongs to no organization.
	Organization map[string]any
	// Current is the resource as it is; nil when it is not there yet.
	Current map[string]any
	// Wanted is the resource as it would be; nil when nothing changes.
	Wanted map[string]any
}

// AdminVerdict is policy's answer. The zero AdminVerdict denies.
type AdminVerdict struct {
	Allow   bool
	Reasons []Reason
}

// Catalogue is what the policy's data lists. The zero Catalogue has nothing in it.
type Catalogue struct {
	// Scopes are sorted by name.
	Scopes []CatalogueScope
	// Plans are sorted by name.
	Plans []Plan
	// Revision is the policy's.
	Revision string
}

// CatalogueScope is one scope that keys can have.
type CatalogueScope struct {
	Scope       Scope
	Description string
}

// Plan bounds what an organization may have.
type Plan struct {
	Name string
	Rate Rate
	// MaxKeys bounds an organization's keys that are neither revoked nor expired; 0 is no bound.
	MaxKeys int
}

// Plan returns a plan by its name.
func (c Catalogue) Plan(name string) (Plan, bool) {
	for _, p := range c.Plans {
		if p.Name == name {
			return p, true
		}
	}
	return Plan{}, false
}

// Has tells whether the catalogue lists a scope.
func (c Catalogue) Has(scope Scope) bool {
	for _, s := range c.Scopes {
		if s.Scope == scope {
			return true
		}
	}
	return false
}
