package manage

import (
	"net/netip"
	"time"

	"github.com/supportstation/keystile/authz"
)

// Organization is an organization as management sees it.
type Organization struct {
	ID authz.OrganizationID
	// ExternalID is empty when there is none.
	ExternalID string
	Name       string
	Plan       string
	Metadata   authz.Metadata
	CreatedAt  time.Time
	// SuspendedAt and DeletedAt are zero while it is neither.
	SuspendedAt time.Time
	DeletedAt   time.Time
	// Version grows with each change; from 1.
	Version int
}

// Status is active, suspended or deleted.
func (o *Organization) Status() string {
	switch {
	case !o.DeletedAt.IsZero():
		return StatusDeleted
	case !o.SuspendedAt.IsZero():
		return StatusSuspended
	}
	return StatusActive
}

// The words for states. A key is active, disabled, expired or revoked; an
// organization active, suspended or deleted; an admin active, expired or revoked; a
// caller active or revoked.
const (
	StatusActive    = "active"
	StatusDisabled  = "disabled"
	StatusExpired   = "expired"
	StatusRevoked   = "revoked"
	StatusSuspended = "suspended"
	StatusDeleted   = "deleted"
)

// Key is a key as management sees it; authz.Key is the record that checks share.
type Key struct {
	ID             authz.KeyID
	OrganizationID authz.OrganizationID
	// ExternalID is empty when there is none.
	ExternalID  string
	Name        string
	Environment authz.Environment
	// Scopes are sorted, without duplicates.
	Scopes    []authz.Scope
	CreatedAt time.Time
	// CreatedBy is the admin's id, or what made it otherwise.
	CreatedBy string
	// ExpiresAt is zero for a key that does not expire.
	ExpiresAt time.Time
	// Lifetime is the original one, which a rotation gives afresh; 0 is for ever.
	Lifetime     time.Duration
	RevokedAt    time.Time
	DisabledAt   time.Time
	Restricted   bool
	AllowedCIDRs []netip.Prefix
	// RateLimit is its own limit; nil means the plan's.
	RateLimit *authz.Rate
	Metadata  authz.Metadata
	// Version grows with each change; from 1.
	Version int
	// Secrets are all that are not revoked, newest first, ended ones included.
	Secrets []KeySecret
	// LastUsedAt is that of any of its secrets, revoked ones included; zero while
	// nothing is known of a use.
	LastUsedAt time.Time
}

// KeySecret is one of a key's secrets, as far as it is known.
type KeySecret struct {
	ID        authz.SecretID
	Hint      string
	CreatedAt time.Time
	// ExpiresAt is zero when only the key's own expiry ends it.
	ExpiresAt time.Time
	RevokedAt time.Time
	// LastUsedAt is zero while nothing is known of a use.
	LastUsedAt time.Time
}

// live tells whether the secret itself still works at now.
func (s *KeySecret) live(now time.Time) bool {
	return s.RevokedAt.IsZero() && (s.ExpiresAt.IsZero() || now.Before(s.ExpiresAt))
}

// Status tells the first of revoked, expired, disabled, active that is so at now,
// in the order in which a check tells them.
func (k *Key) Status(now time.Time) string {
	switch {
	case !k.RevokedAt.IsZero():
		return StatusRevoked
	case !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt):
		return StatusExpired
	case !k.DisabledAt.IsZero():
		return StatusDisabled
	}
	return StatusActive
}

// LiveSecrets returns the secrets that work at now, newest first.
func (k *Key) LiveSecrets(now time.Time) []KeySecret {
	live := make([]KeySecret, 0, len(k.Secrets))
	for _, s := range k.Secrets {
		if s.live(now) {
			live = append(live, s)
		}
	}
	return live
}

// Token is a token of a caller or an admin, as far as it is known.
type Token struct {
	ID        authz.SecretID
	Hint      string
	CreatedAt time.Time
	// ExpiresAt is zero for a caller's token that does not expire.
	ExpiresAt time.Time
	RevokedAt time.Time
}

func (t *Token) live(now time.Time) bool {
	return t.RevokedAt.IsZero() && (t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt))
}

// liveTokens returns the tokens that work at now.
func liveTokens(tokens []Token, now time.Time) []Token {
	live := make([]Token, 0, len(tokens))
	for _, t := range tokens {
		if t.live(now) {
			live = append(live, t)
		}
	}
	return live
}

// Caller is a caller as management sees it.
type Caller struct {
	ID           authz.CallerID
	Name         string
	Environments []authz.Environment
	Permissions  []authz.Permission
	CreatedAt    time.Time
	CreatedBy    string
	RevokedAt    time.Time
	// Tokens are all that are not revoked, newest first, ended ones included.
	Tokens []Token
}

// Status is active or revoked.
func (c *Caller) Status() string {
	if !c.RevokedAt.IsZero() {
		return StatusRevoked
	}
	return StatusActive
}

// LiveTokens returns the tokens that work at now, newest first.
func (c *Caller) LiveTokens(now time.Time) []Token { return liveTokens(c.Tokens, now) }

// Admin is an admin as management sees it.
type Admin struct {
	ID   authz.AdminID
	Name string
	Role authz.Role
	// OrganizationID is zero for a platform admin.
	OrganizationID authz.OrganizationID
	CreatedAt      time.Time
	CreatedBy      string
	ExpiresAt      time.Time
	// Lifetime is what was granted, which organization roles cannot exceed when they
	// renew themselves.
	Lifetime  time.Duration
	RevokedAt time.Time
	// Tokens are all that are not revoked, newest first, ended ones included.
	Tokens []Token
}

// Status is active, expired or revoked at now.
func (a *Admin) Status(now time.Time) string {
	switch {
	case !a.RevokedAt.IsZero():
		return StatusRevoked
	case !now.Before(a.ExpiresAt):
		return StatusExpired
	}
	return StatusActive
}

// LiveTokens returns the tokens that work at now, newest first.
func (a *Admin) LiveTokens(now time.Time) []Token { return liveTokens(a.Tokens, now) }

// Replica is one running service.
type Replica struct {
	ID              string
	Name            string
	StartedAt       time.Time
	HeartbeatAt     time.Time
	AppliedRevision int64
	// Live tells that its heartbeat is fresh.
	Live bool
	// ServesUntil is until when it may serve what it knows if it hears nothing more.
	ServesUntil time.Time
	// PolicyRevision is that of the policy that decides there; "" before the first.
	PolicyRevision string
}

// Effective is the receipt of a change that takes rights away: how far it has got
// when all live replicas had applied it, or a second had passed.
type Effective struct {
	Replicas     int
	Acknowledged int
	Within       time.Duration
	Silent       []SilentReplica
}

// SilentReplica has not said that it has applied a change.
type SilentReplica struct {
	Replica string
	// ServesUntil is until when it may serve what it knew; zero when that is not known.
	ServesUntil time.Time
}
