package store

import (
	"database/sql"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

// maxLearned bounds what is remembered of changes, some 150 MB at worst. Beyond it what
// took no rights away is forgotten first.
const maxLearned = 1_000_000

var errPutBack = errors.New("the database was put back to a state before this key's last change: change the key again, or revoke it")

// learned is what a replica remembers of the changes that it has applied, so that a
// database that is put back (an old copy restored, a failover to a standby that lagged)
// does not make it un-learn them: an older row never replaces a newer one, and revoked
// is for ever. While no database is put back it changes no answer. Guarded by
// keyCache.mu.
type learned struct {
	// changed has the revision of each key's last change, revoked and secrets when it was
	// revoked, in Unix seconds: by id, for a digest changes with the pepper.
	changed       map[authz.KeyID]int64
	revoked       map[authz.KeyID]int64
	secrets       map[authz.SecretID]int64
	organizations map[authz.OrganizationID]changedOrganization
	// kept are records that were in memory when the database was put back, by their secret;
	// keptBytes is about what they take.
	kept      map[authz.SecretID]*cachedKey
	keptBytes uint64
	// full tells that a revocation has found no place.
	full bool
}

func newLearned() *learned {
	return &learned{
		changed: make(map[authz.KeyID]int64), revoked: make(map[authz.KeyID]int64), secrets: make(map[authz.SecretID]int64),
		organizations: make(map[authz.OrganizationID]changedOrganization),
	}
}

func (l *learned) learn(keys []changedKey, organizations []changedOrganization) {
	for i := range keys {
		k := &keys[i]
		if _, known := l.revoked[k.id]; k.keyRevoked.Valid && !known && l.room() {
			l.revoked[k.id] = k.keyRevoked.Int64
		}
		if _, known := l.secrets[k.secret]; k.secretRevoked.Valid && !known && l.room() {
			l.secrets[k.secret] = k.secretRevoked.Int64
		}
		if was := l.changed[k.id]; was != 0 || len(l.changed)+len(l.revoked)+len(l.secrets) < maxLearned {
			l.changed[k.id] = max(was, k.revision)
		}
	}
	for _, o := range organizations {
		if o.revision >= l.organizations[o.id].revision {
			l.organizations[o.id] = o
		}
	}
}

// room makes place for a revocation, or tells that there is none.
func (l *learned) room() bool {
	if len(l.changed)+len(l.revoked)+len(l.secrets) < maxLearned {
		return true
	}
	for id := range l.changed {
		delete(l.changed, id)
		return true
	}
	l.full = true
	return false
}

// see learns of a revocation or suspension that was read.
func (l *learned) see(e *cachedKey) {
	if e.key == nil {
		return
	}
	if o := e.key.Organization; o.Suspended {
		l.learn(nil, []changedOrganization{{o.ID, o.Revision, true}})
	}
	if e.key.RevokedAt.IsZero() && e.secret.RevokedAt.IsZero() {
		return
	}
	l.learn([]changedKey{{
		id: e.key.ID, secret: e.secret.ID, revision: e.key.Revision,
		keyRevoked: unixOf(e.key.RevokedAt), secretRevoked: unixOf(e.secret.RevokedAt),
	}}, nil)
}

func unixOf(t time.Time) sql.NullInt64 { return sql.NullInt64{Int64: t.Unix(), Valid: !t.IsZero()} }

// keep remembers a record that is in memory when the database is put back, within so many
// bytes for all. Of what finds no place it is known that an older row is not to be served.
func (l *learned) keep(e *cachedKey, most uint64) {
	l.drop(e.secret.ID)
	if n := uint64(e.bytes()); l.keptBytes+n <= most {
		if l.kept == nil {
			l.kept = make(map[authz.SecretID]*cachedKey)
		}
		l.kept[e.secret.ID] = e
		l.keptBytes += n
		return
	}
	l.learn([]changedKey{{id: e.key.ID, secret: e.secret.ID, revision: e.key.Revision}}, nil)
}

func (l *learned) drop(id authz.SecretID) {
	if e := l.kept[id]; e != nil {
		l.keptBytes -= uint64(e.bytes())
		delete(l.kept, id)
	}
}

// judge turns what was read into what may be served, in the light of what is known.
func (l *learned) judge(e *cachedKey) *cachedKey {
	if e.key == nil {
		return e
	}
	keyRevoked, revoked := l.revoked[e.key.ID]
	key, secret := e.key, e.secret
	secretRevoked, ended := l.secrets[e.secret.ID]
	if kept := l.kept[e.secret.ID]; kept != nil && kept.key.Revision > key.Revision {
		key, secret = narrower(kept.key, e.key), narrowerSecret(kept.secret, e.secret)
	} else {
		l.drop(e.secret.ID)
		gone := revoked || ended || !key.RevokedAt.IsZero() || !secret.RevokedAt.IsZero()
		if l.changed[key.ID] > key.Revision && !gone {
			return &cachedKey{organization: e.organization, bad: errPutBack, asOf: e.asOf}
		}
	}
	if revoked && key.RevokedAt.IsZero() {
		key = key.Copy()
		key.RevokedAt = time.Unix(keyRevoked, 0).UTC()
	}
	if ended && secret.RevokedAt.IsZero() {
		secret = copySecret(secret)
		secret.RevokedAt = time.Unix(secretRevoked, 0).UTC()
	}
	if o := l.organizations[key.Organization.ID]; o.suspended && o.revision > key.Organization.Revision {
		key = key.Copy()
		key.Organization = suspended(key.Organization)
	}
	if key == e.key && secret == e.secret {
		return e
	}
	return &cachedKey{key: key, secret: secret, organization: e.organization, asOf: e.asOf}
}

// narrower is the record that was kept, without anything that the database's takes away:
// their revisions are of two pasts, and do not say which of them is later.
func narrower(kept, stored *authz.Key) *authz.Key {
	k := kept.Copy()
	if k.RevokedAt.IsZero() {
		k.RevokedAt = stored.RevokedAt
	}
	k.ExpiresAt = authz.Earlier(k.ExpiresAt, stored.ExpiresAt)
	k.Disabled, k.Restricted = k.Disabled || stored.Disabled, k.Restricted || stored.Restricted
	k.Scopes = inBoth(k.Scopes, stored.Scopes)
	k.AllowedCIDRs = within(k.AllowedCIDRs, stored.AllowedCIDRs)
	either := k.Organization.Suspended || stored.Organization.Suspended
	if stored.Organization.Revision > k.Organization.Revision {
		k.Organization = stored.Organization
	}
	if either {
		k.Organization = suspended(k.Organization)
	}
	return k
}

func narrowerSecret(kept, stored *authz.KeySecret) *authz.KeySecret {
	s := copySecret(kept)
	s.PepperID = stored.PepperID // under which it was found
	if s.RevokedAt.IsZero() {
		s.RevokedAt = stored.RevokedAt
	}
	s.ExpiresAt = authz.Earlier(s.ExpiresAt, stored.ExpiresAt)
	return s
}

// within is what two fences have in common, of which an empty one is none.
func within(a, b []netip.Prefix) []netip.Prefix {
	if len(a) == 0 || len(b) == 0 {
		return append(slices.Clone(a), b...)
	}
	var both []netip.Prefix
	for _, p := range a {
		for _, q := range b {
			switch { // of two that overlap, one is within the other
			case !p.Overlaps(q):
			case p.Bits() < q.Bits():
				both = append(both, q)
			default:
				both = append(both, p)
			}
		}
	}
	if len(both) == 0 {
		return []netip.Prefix{{}} // holds no address
	}
	return both
}

// inBoth is what two lists have in common, in a list of its own.
func inBoth[T comparable](a, b []T) []T {
	return slices.DeleteFunc(slices.Clone(a), func(v T) bool { return !slices.Contains(b, v) })
}

func suspended(o *authz.Organization) *authz.Organization {
	same := o.Copy()
	same.Suspended = true
	return same
}

// copySecret copies a record without what its user remembers there.
func copySecret(s *authz.KeySecret) *authz.KeySecret {
	return &authz.KeySecret{
		ID: s.ID, Hint: s.Hint, PepperID: s.PepperID, CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt, RevokedAt: s.RevokedAt,
	}
}
