package store

import (
	"context"
	"database/sql"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz"
)

// daySet are days of a window, a bit each.
type daySet [(maxEvidenceDays + 63 + 31) / 64]uint64

// add adds days of a month that begins offset days after the window.
func (d *daySet) add(month int64, offset int) {
	at, shift := offset/64, offset%64
	d[at] |= uint64(month) << shift //nolint:gosec // bits
	if shift > 32 {
		d[at+1] |= uint64(month) >> (64 - shift) //nolint:gosec // bits
	}
}

func (d *daySet) union(o *daySet) {
	for i := range d {
		d[i] |= o[i]
	}
}

// tell is how many there are, and the last of them.
func (d *daySet) tell(requests int64, since time.Time) authz.Counted {
	counted := authz.Counted{Requests: requests}
	for i, word := range d {
		if word != 0 {
			counted.Days += bits.OnesCount64(word)
			counted.LastOn = since.AddDate(0, 0, i*64+63-bits.LeadingZeros64(word))
		}
	}
	return counted
}

// usedOn is requests, and on which days.
type usedOn struct {
	days     daySet
	requests int64
}

func (u *usedOn) add(use *evidenceUse, offset int) {
	u.requests += use.requests
	u.days.add(use.days, offset)
}

// evidence is what is collected of one key.
type evidence struct {
	authz.Evidence

	allowed, denied, limited, mismatched, browser usedOn
	// ended are calls with secrets that had expired, or were revoked, each apart.
	ended []endedSecret
	// unattributed are allowed requests of which it is not known which scopes they needed.
	unattributed usedOn
	scopes       []scopeEvidence
}

// endedSecret is one that was called when it had ended.
type endedSecret struct {
	id   authz.SecretID
	code authz.Code
	used usedOn
}

type scopeEvidence struct {
	authz.ScopeEvidence

	used usedOn
}

// scope is the evidence of a scope, whether granted or not.
func (e *evidence) scope(name authz.Scope) *scopeEvidence {
	for i := range e.scopes {
		if e.scopes[i].Scope == name {
			return &e.scopes[i]
		}
	}
	e.scopes = append(e.scopes, scopeEvidence{ScopeEvidence: authz.ScopeEvidence{Scope: name}})
	return &e.scopes[len(e.scopes)-1]
}

// evidence collects all rows of a key.
func (c *evidenceReader) evidence(ctx context.Context, k *evidenceKey) (*authz.Evidence, error) {
	e := &c.e
	*e = evidence{scopes: e.scopes[:0], ended: e.ended[:0], Evidence: authz.Evidence{Scopes: e.Scopes[:0]}}
	clear(c.networks)
	clear(c.scopeNetworks)
	e.Organization, e.OrganizationName, e.Key, e.KeyName = k.organization, k.organizationName, k.id, k.name
	e.Environment, e.Version, e.Window = authz.Environment(k.environment), k.version, c.window
	e.CreatedAt, e.RevokedAt, e.ScopesSince, e.UsableSince = k.created.UTC(), utc(k.revoked), utc(k.scopesSince), utc(k.usable)
	for _, s := range k.scopes {
		e.scope(authz.Scope(s)).Granted = true
	}
	if err := c.readSecrets(ctx, k); err != nil {
		return nil, err
	}
	e.State = stateOf(k, e)
	for i := range c.months {
		m := &c.months[i]
		if err := m.uses.of(ctx, k.id, func(u *evidenceUse) { e.count(u, m.offset) }); err != nil {
			return nil, err
		}
		if err := m.networks.of(ctx, k.id, func(n *evidenceNetwork) { c.addNetwork(n, m.offset) }); err != nil {
			return nil, err
		}
	}
	if err := c.scopes.of(ctx, k.id, func(s *evidenceScope) { e.used(s, c.window) }); err != nil {
		return nil, err
	}
	c.finish()
	return &e.Evidence, nil
}

// readSecrets takes what the key's secrets tell: how old the newest is, and when any was used.
func (c *evidenceReader) readSecrets(ctx context.Context, k *evidenceKey) error {
	e, n := &c.e, 0
	var newest time.Time
	var newestExpires sql.NullTime
	newestRevoked := false
	err := c.secrets.of(ctx, k.id, func(s *evidenceSecret) {
		n++
		// One that was revoked speaks for the key only while no other is left.
		if n == 1 || newestRevoked && !s.revoked || newestRevoked == s.revoked && s.created.After(newest) {
			newest, newestExpires, newestRevoked, e.Hint = s.created, s.expires, s.revoked, s.hint
		}
		if first := utc(s.first); !first.IsZero() && (e.FirstUsedAt.IsZero() || first.Before(e.FirstUsedAt)) {
			e.FirstUsedAt = first
		}
		if last := utc(s.lastUsed); last.After(e.LastUsedAt) {
			e.LastUsedAt = last
		}
	})
	if n > 1 {
		e.RotatedAt = newest.UTC()
	}
	e.ExpiresAt = authz.Earlier(utc(k.expires), utc(newestExpires))
	return err
}

func stateOf(k *evidenceKey, e *evidence) authz.KeyState {
	until := e.Window.Until
	switch {
	case !e.RevokedAt.IsZero() && !e.RevokedAt.After(until):
		return authz.KeyRevoked
	case !e.ExpiresAt.IsZero() && !e.ExpiresAt.After(until):
		return authz.KeyExpired
	case k.disabled:
		return authz.KeyDisabled
	case k.suspended:
		return authz.KeySuspended
	}
	return authz.KeyActive
}

// count adds requests of one shape and code.
func (e *evidence) count(u *evidenceUse, offset int) {
	if u.shape.browser {
		e.browser.add(u, offset)
	}
	switch u.code {
	case authz.CodeAllowed:
		e.allowed.add(u, offset)
		if u.shape.unknown {
			e.unattributed.add(u, offset)
		}
		for _, scope := range u.shape.scopes {
			e.scope(scope).used.add(u, offset)
		}
		return
	case authz.CodeUnavailable:
		return // that was not the key's fault
	case authz.CodeRateLimited:
		e.limited.add(u, offset)
	case authz.CodeKeyExpired, authz.CodeKeyRevoked:
		e.endedSecret(u).add(u, offset)
	case authz.CodeEnvironmentMismatch:
		e.mismatched.add(u, offset)
	}
	e.denied.add(u, offset)
}

// endedSecret is what is collected of the secret of a call that came too late.
func (e *evidence) endedSecret(u *evidenceUse) *usedOn {
	for i := range e.ended {
		if s := &e.ended[i]; s.id == u.secret && s.code == u.code {
			return &s.used
		}
	}
	e.ended = append(e.ended, endedSecret{id: u.secret, code: u.code})
	return &e.ended[len(e.ended)-1].used
}

// used takes when a scope was first and last used, which is known also where it is not known
// how often: what is not known speaks for use.
func (e *evidence) used(u *evidenceScope, w authz.Window) {
	s := e.scope(authz.Scope(u.scope))
	s.FirstUsedAt, s.LastUsedAt = u.first.UTC(), u.last.UTC()
	inside := false
	for _, at := range []time.Time{s.FirstUsedAt, s.LastUsedAt} {
		if !at.Before(w.Since) && at.Before(w.Until) {
			s.used.days.add(1, int(at.Sub(w.Since)/(24*time.Hour)))
			inside = true
		}
	}
	if inside || s.FirstUsedAt.Before(w.Since) && s.LastUsedAt.After(w.Until) {
		s.used.days.union(&e.unattributed.days)
	}
}

// addNetwork adds a network of allowed requests.
func (c *evidenceReader) addNetwork(n *evidenceNetwork, offset int) {
	if n.network == otherNetworks.String() {
		c.e.NetworksCapped = true
	}
	day := offset + n.first
	if first, known := c.networks[n.network]; !known || day < first {
		c.networks[n.network] = day
	}
	for scope := range strings.SplitSeq(n.scopes, " ") {
		if scope != "" {
			c.scopeNetworks[scopeNetwork{scope, n.network}] = true
		}
	}
}

// finish adds up.
func (c *evidenceReader) finish() {
	e, since := &c.e, c.window.Since
	e.Allowed, e.Denied, e.Limited = e.allowed.tell(since), e.denied.tell(since), e.limited.tell(since)
	for i := range e.ended {
		told, s := &e.Expired, &e.ended[i]
		if s.code == authz.CodeKeyRevoked {
			told = &e.Revoked
		}
		if counted := s.used.tell(since); counted.Days > told.Days {
			*told = counted
		}
	}
	e.Mismatched, e.Browser = e.mismatched.tell(since), e.browser.tell(since)
	e.DaysUsed = e.Allowed.Days
	e.Networks = len(c.networks)
	first := -1
	for _, day := range c.networks {
		if first < 0 || day < first {
			first = day
		}
	}
	if first >= 0 {
		e.NetworksSince = since.AddDate(0, 0, first)
	}
	for i := range e.scopes {
		s := &e.scopes[i]
		used := s.used.tell(since)
		s.Requests, s.DaysUsed = used.Requests, used.Days
		first := -1
		for at := range c.scopeNetworks {
			if at.scope != string(s.Scope) {
				continue
			}
			s.Networks++
			if at.network == otherNetworks.String() {
				s.Networks++ // it stands for several
			}
			if day := c.networks[at.network]; first < 0 || day < first {
				first = day
			}
		}
		if first >= 0 {
			s.NetworkSince = since.AddDate(0, 0, first)
		}
		e.Scopes = append(e.Scopes, s.ScopeEvidence)
	}
	slices.SortFunc(e.Scopes, func(a, b authz.ScopeEvidence) int { return strings.Compare(string(a.Scope), string(b.Scope)) })
}

func (u *usedOn) tell(since time.Time) authz.Counted { return u.days.tell(u.requests, since) }
