package store

import (
	"database/sql"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

// What is surely remembered of changes, the newest of them; twice as much at most, which is some
// 150 MB at worst. What is forgotten beyond it is counted and told.
const (
	maxLearnedRevoked       = 500_000 // keys, and as many secrets
	maxLearnedChanged       = 250_000 // keys, and as many of those that were read as narrowed
	maxLearnedOrganizations = 50_000
)

var errPutBack = errors.New("the database was put back to a state before this key's last change: change the key again, or revoke it")

// learned is what a replica remembers of the changes that it has applied, so that a
// database that is put back (an old copy restored, a failover to a standby that lagged)
// does not make it un-learn them: an older row never replaces a newer one, and revoked
// is for ever. While no database is put back it changes no answer. Guarded by
// keyCache.mu.
type learned struct {
	// changed has the revision of each key's last change, narrowed that of each key which was
	// read as narrowed, revoked and secrets when it was revoked, in Unix seconds: by id, for a
	// digest changes with the pepper.
	changed, narrowed notes[authz.KeyID, int64]
	revoked           notes[authz.KeyID, int64]
	secrets           notes[authz.SecretID, int64]
	organizations     notes[authz.OrganizationID, changedOrganization]
	// newest is the highest revision of a key that is known of: a look-up may have read what is
	// not applied yet.
	newest int64
	// kept are records that were in memory when the database was put back, by their secret;
	// keptBytes is about what they take.
	kept      map[authz.SecretID]*cachedKey
	keptBytes uint64
}

func newLearned() *learned {
	return &learned{
		changed: newNotes[authz.KeyID, int64](maxLearnedChanged), narrowed: newNotes[authz.KeyID, int64](maxLearnedChanged),
		revoked: newNotes[authz.KeyID, int64](maxLearnedRevoked), secrets: newNotes[authz.SecretID, int64](maxLearnedRevoked),
		organizations: newNotes[authz.OrganizationID, changedOrganization](maxLearnedOrganizations),
	}
}

func (l *learned) learn(keys []changedKey, organizations []changedOrganization) {
	for i := range keys {
		k := &keys[i]
		if _, known := l.revoked.get(k.id); k.keyRevoked.Valid && !known {
			l.revoked.set(k.id, k.keyRevoked.Int64)
		}
		if _, known := l.secrets.get(k.secret); k.secretRevoked.Valid && !known {
			l.secrets.set(k.secret, k.secretRevoked.Int64)
		}
		if !k.keyRevoked.Valid { // else nothing more is to be known of it
			l.note(&l.changed, k.id, k.revision)
		}
	}
	for _, o := range organizations {
		was, known := l.organizations.get(o.id)
		if (o.suspended || known) && o.revision >= was.revision {
			l.organizations.set(o.id, o)
		}
	}
}

// note notes that a key is known as of a revision.
func (l *learned) note(n *notes[authz.KeyID, int64], id authz.KeyID, revision int64) {
	l.newest = max(l.newest, revision)
	if was, known := n.get(id); !known || was < revision {
		n.set(id, revision)
	}
}

// knownOf is the newest revision of a key that is known of: no older row is served.
func (l *learned) knownOf(id authz.KeyID) int64 {
	changed, _ := l.changed.get(id)
	narrowed, _ := l.narrowed.get(id)
	return max(changed, narrowed)
}

// forgotten counts what found no room any more.
func (l *learned) forgotten() int64 {
	return l.changed.forgotten + l.narrowed.forgotten + l.revoked.forgotten + l.secrets.forgotten + l.organizations.forgotten
}

// see learns of a revocation, a suspension or a narrowed key that was read: its record may
// leave the memory before the database is put back. That its scopes were once more no row tells.
func (l *learned) see(e *cachedKey) {
	if e.key == nil {
		return
	}
	if o := e.key.Organization; o.Suspended {
		l.learn(nil, []changedOrganization{{o.ID, o.Revision, true}})
	}
	k := e.key
	if k.Disabled || k.Restricted || !k.ExpiresAt.IsZero() || !e.secret.ExpiresAt.IsZero() || len(k.AllowedCIDRs) > 0 {
		l.note(&l.narrowed, k.ID, k.Revision)
	}
	if k.RevokedAt.IsZero() && e.secret.RevokedAt.IsZero() {
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
	if was := l.kept[e.secret.ID]; was != nil && was.key.Revision > e.key.Revision {
		return
	}
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
	keyRevoked, revoked := l.revoked.get(e.key.ID)
	key, secret := e.key, e.secret
	secretRevoked, ended := l.secrets.get(e.secret.ID)
	known := l.knownOf(key.ID)
	if kept := l.kept[e.secret.ID]; kept != nil && kept.key.Revision > key.Revision && kept.key.Revision >= known {
		key, secret = narrower(kept.key, e.key), narrowerSecret(kept.secret, e.secret)
	} else {
		l.drop(e.secret.ID)
		gone := revoked || ended || !key.RevokedAt.IsZero() || !secret.RevokedAt.IsZero()
		if known > key.Revision && !gone {
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
	if o, _ := l.organizations.get(key.Organization.ID); o.suspended && o.revision > key.Organization.Revision {
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
