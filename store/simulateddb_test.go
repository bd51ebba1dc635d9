package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/supportstation/keystile/authz"
)

var errSimulated = authz.Unavailable("simulated", errors.New("no answer"))

// simulatedDB is a database with one row lock for changes and snapshots for reads.
type simulatedDB struct {
	peppers authz.Peppers
	// lock is the revision's row lock: a channel, because simulated time stands still for mutexes.
	lock chan struct{}

	mu sync.Mutex
	simulatedState
	versions  []simulatedVersion
	saved     *simulatedState
	beats     map[string]heartbeatAt
	away      [simulatedReplicas]time.Time
	listeners []chan struct{}
	// received is the newest revision of which a receipt has named no silent replica.
	received int64
}

// simulatedState is what is stored.
type simulatedState struct {
	n             int64
	marks         map[int64]mark
	keys          []simulatedKey
	organizations []simulatedOrganization
}

type simulatedKey struct {
	id           authz.KeyID
	organization int
	secrets      []simulatedSecret
	scopes       []authz.Scope
	disabled     bool
	revoked      time.Time
	expires      time.Time
	revision     int64
}

type simulatedSecret struct {
	hash             authz.SecretHash
	digest           authz.Digest
	id               authz.SecretID
	revoked, expires time.Time
}

type simulatedOrganization struct {
	id        authz.OrganizationID
	suspended bool
	revision  int64
}

// simulatedVersion is the state from a moment on.
type simulatedVersion struct {
	at time.Time
	simulatedState
}

type heartbeatAt struct {
	heartbeat

	at time.Time
}

func newSimulatedDB() *simulatedDB {
	db := &simulatedDB{lock: make(chan struct{}, 1), beats: map[string]heartbeatAt{}}
	db.n, db.marks = 1, map[int64]mark{1: "mark 1"}
	for range simulatedKeys / 3 {
		db.organizations = append(db.organizations, simulatedOrganization{id: authz.NewOrganizationID(time.Now()), revision: 1})
	}
	for range simulatedReplicas {
		db.listeners = append(db.listeners, make(chan struct{}, 64))
	}
	db.commit()
	return db
}

// copy copies a state, so that what is read is not what is written.
func (s *simulatedState) copy() simulatedState {
	c := simulatedState{s.n, map[int64]mark{}, slices.Clone(s.keys), slices.Clone(s.organizations)}
	for n, m := range s.marks {
		c.marks[n] = m
	}
	for i := range c.keys {
		c.keys[i].secrets = slices.Clone(c.keys[i].secrets)
	}
	return c
}

// commit makes what was written visible. Called with mu, or before anyone else is there.
func (db *simulatedDB) commit() {
	db.versions = append(db.versions, simulatedVersion{time.Now(), db.copy()})
	for _, l := range db.listeners {
		select {
		case l <- struct{}{}:
		default:
		}
	}
}

func (db *simulatedDB) listen(replica int) <-chan struct{} { return db.listeners[replica] }

// transaction holds the row lock for a while, and writes at its end.
func (db *simulatedDB) transaction(wait time.Duration, above int64, write func(n int64)) int64 {
	db.lock <- struct{}{}
	defer func() { <-db.lock }()
	sleep(wait + 1)
	db.mu.Lock()
	defer db.mu.Unlock()
	db.n = max(db.n, above) + 1
	db.marks[db.n] = mark(fmt.Sprint("mark ", db.n, " of ", time.Now().UnixNano()))
	write(db.n)
	db.commit()
	return db.n
}

func (db *simulatedDB) newSecret(random *rand.Rand) simulatedSecret {
	s := simulatedSecret{id: authz.NewSecretID(time.Now())}
	for i := range s.hash {
		s.hash[i] = byte(random.Uint32())
	}
	s.digest, _, _ = db.peppers.Digest(s.hash)
	return s
}

func (db *simulatedDB) addKey(i int, random *rand.Rand) {
	k := simulatedKey{
		id: authz.NewKeyID(time.Now()), organization: i % len(db.organizations), scopes: []authz.Scope{"tickets:read"},
		revision: db.n, secrets: []simulatedSecret{db.newSecret(random)},
	}
	if i == len(db.keys) {
		db.keys = append(db.keys, k)
	} else {
		db.keys[i] = k
	}
	db.versions[len(db.versions)-1].simulatedState = db.copy()
}

// change does one management change of some key or organization.
func (db *simulatedDB) change(random *rand.Rand) (what string, n int64) {
	i, kind := random.IntN(simulatedKeys), random.IntN(9)
	wait, life := time.Duration(random.Int64N(int64(60*time.Millisecond))), time.Duration(random.Int64N(int64(4*time.Second)))
	fresh := db.newSecret(random)
	n = db.transaction(wait, 0, func(n int64) {
		now := time.Now()
		k := &db.keys[i]
		o := &db.organizations[k.organization]
		k.secrets = slices.Clone(k.secrets)
		switch {
		case !k.revoked.IsZero() || !k.expires.IsZero(): // in its place another is made
			what = "create"
			*k = simulatedKey{
				id: authz.NewKeyID(now), organization: k.organization, scopes: []authz.Scope{"tickets:read"},
				secrets: []simulatedSecret{fresh},
			}
		case kind == 0:
			what = "revoke"
			k.revoked = now
		case kind == 1:
			what = "rotate with grace"
			k.secrets[len(k.secrets)-1].expires = now.Add(life)
			k.secrets = append(k.secrets, fresh)
		case kind == 2:
			what = "rotate a compromised key"
			k.secrets[len(k.secrets)-1].revoked = now
			k.secrets = append(k.secrets, fresh)
		case kind == 3:
			what = "narrow"
			k.scopes = nil
		case kind == 4:
			what = "widen"
			k.scopes = []authz.Scope{"tickets:read"}
		case kind == 5:
			what = "disable or enable"
			k.disabled = !k.disabled
		case kind == 6:
			what = "let expire"
			k.expires = now.Add(life)
		default:
			what = "suspend or resume"
			o.suspended, o.revision = !o.suspended, n
			return
		}
		k.revision = n
	})
	return fmt.Sprint(what, " ", i), n
}

func (db *simulatedDB) secretOf(key int, older bool) authz.SecretHash {
	db.mu.Lock()
	defer db.mu.Unlock()
	secrets := db.keys[key].secrets
	at := len(secrets) - 1
	if older && at > 0 {
		at--
	}
	return secrets[at].hash
}

func (db *simulatedDB) save() {
	db.lock <- struct{}{}
	defer func() { <-db.lock }()
	db.mu.Lock()
	defer db.mu.Unlock()
	state := db.copy()
	db.saved = &state
}

func (db *simulatedDB) restore() {
	db.lock <- struct{}{}
	defer func() { <-db.lock }()
	db.mu.Lock()
	defer db.mu.Unlock()
	db.simulatedState = db.saved.copy()
}

// acknowledged tells that every replica that counts has applied revision n.
func (db *simulatedDB) acknowledged(n int64) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, h := range db.beats {
		counts := h.at.Add(h.staleMax + heartbeatGrace).After(time.Now())
		if counts && (h.applied < n || db.marks[h.applied] != h.mark) {
			return false
		}
	}
	return true
}

func (db *simulatedDB) effective(n int64) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.received = max(db.received, n)
}

func (db *simulatedDB) receipt() int64 {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.received
}

// clockDoubt is how wrong a replica's idea of the database's time may be.
const clockDoubt = 500 * time.Millisecond

// codes are the right answers about a secret by any state from revision n on that was
// there before ended, each with the last moment at which it was right.
func (db *simulatedDB) codes(
	secret authz.SecretHash, n int64, began, ended time.Time,
) (codes []authz.Code, newest map[authz.Code]time.Time) {
	db.mu.Lock()
	defer db.mu.Unlock()
	newest = make(map[authz.Code]time.Time)
	for i := range db.versions {
		v := &db.versions[i]
		until := ended
		if i+1 < len(db.versions) {
			if db.versions[i+1].n <= n {
				continue
			}
			if at := db.versions[i+1].at; at.Before(ended) {
				until = at
			}
		}
		if v.at.After(ended) {
			break
		}
		for _, at := range []time.Time{began.Add(-clockDoubt), began, ended.Add(clockDoubt)} {
			code := v.code(secret, at)
			codes = append(codes, code)
			newest[code] = until
		}
	}
	return codes, newest
}

// code is the answer by one state.
func (s *simulatedState) code(secret authz.SecretHash, now time.Time) authz.Code {
	past := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	for i := range s.keys {
		k := &s.keys[i]
		for _, x := range k.secrets {
			switch {
			case x.hash != secret:
				continue
			case !k.revoked.IsZero() || !x.revoked.IsZero():
				return authz.CodeKeyRevoked
			case past(k.expires) || past(x.expires):
				return authz.CodeKeyExpired
			case k.disabled:
				return authz.CodeKeyDisabled
			case s.organizations[k.organization].suspended:
				return authz.CodeOrganizationSuspended
			case len(k.scopes) == 0:
				return authz.CodeInsufficientScope
			}
			return authz.CodeAllowed
		}
	}
	return authz.CodeKeyUnknown
}

// simulatedSource is one replica's way to the database.
type simulatedSource struct {
	db    *simulatedDB
	index int
	// random is the follower's, looking the look-ups', missing that of who learns behind: each runs on its own.
	random, looking, missing *rand.Rand
}

var _ source = (*simulatedSource)(nil)

// travel takes the time of one way, in which the answer may be lost.
func (s *simulatedSource) travel(ctx context.Context, random *rand.Rand) error {
	most := 20 * time.Millisecond
	switch random.IntN(20) {
	case 0:
		most = 2 * time.Second
	case 1, 2, 3, 4, 5:
		most = 80 * time.Millisecond
	case 6, 7, 8, 9, 10:
		most = 2 * time.Millisecond
	}
	wait := time.NewTimer(1 + time.Duration(random.Int64N(int64(most))))
	defer wait.Stop()
	lost := random.IntN(100) == 0
	select {
	case <-wait.C:
	case <-ctx.Done():
		sleep(1) // after whoever waits with the same deadline: one instant has no order
		return errSimulated
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if lost || time.Now().Before(s.db.away[s.index]) {
		return errSimulated
	}
	return nil
}

// read takes a snapshot, which is some time under way.
func (s *simulatedSource) read(ctx context.Context, random *rand.Rand) (*simulatedState, time.Time, error) {
	if err := s.travel(ctx, random); err != nil {
		return nil, time.Time{}, err
	}
	s.db.mu.Lock()
	state, at := s.db.copy(), time.Now()
	s.db.mu.Unlock()
	return &state, at, s.travel(ctx, random)
}

func (s *simulatedSource) changes(ctx context.Context, since int64) (*changeSet, error) {
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	everything := s.random.IntN(30) == 0
	state, now, err := s.read(ctx, s.random)
	if err != nil {
		return nil, err
	}
	set := &changeSet{n: state.n, mark: state.marks[state.n], markThen: state.marks[since], now: now, everything: everything}
	for i := range state.organizations {
		if o := state.organizations[i]; o.revision > since {
			set.organizations = append(set.organizations, changedOrganization{o.id, o.revision, o.suspended})
		}
	}
	if !everything {
		set.keys = changedSince(state, since)
	}
	return set, nil
}

func changedSince(state *simulatedState, since int64) (changed []changedKey) {
	for i := range state.keys {
		k := &state.keys[i]
		for _, x := range k.secrets {
			if k.revision > since {
				changed = append(changed, changedKey{x.digest, k.id, x.id, k.revision, unixOf(k.revoked), unixOf(x.revoked)})
			}
		}
	}
	return changed
}

// missed looks at two keys at a time, in an order of their own.
func (s *simulatedSource) missed(ctx context.Context, since int64, after authz.KeyID) (*missedKeys, error) {
	ctx, cancel := context.WithTimeout(ctx, manageReadDeadline)
	defer cancel()
	state, _, err := s.read(ctx, s.missing)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(state.keys, func(a, b simulatedKey) int { return strings.Compare(a.id.String(), b.id.String()) })
	state.keys = slices.DeleteFunc(state.keys, func(k simulatedKey) bool { return !after.IsZero() && k.id.String() <= after.String() })
	state.keys = state.keys[:min(2, len(state.keys))]
	page := &missedKeys{keys: changedSince(state, since)}
	if len(state.keys) > 0 {
		page.last = state.keys[len(state.keys)-1].id
	}
	return page, nil
}

func (*simulatedSource) callers(context.Context) (callerTable, error) { return callerTable{}, nil }

func (*simulatedSource) admins(context.Context, int64) ([]readAdmin, error) { return nil, nil }

func (*simulatedSource) formats(context.Context) (*[]authz.ForeignFormat, error) {
	return &[]authz.ForeignFormat{}, nil
}

func (s *simulatedSource) lookup(
	ctx context.Context, digests []authz.Digest, organizations *organizationCache,
) (map[authz.Digest]*cachedKey, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupReadDeadline)
	defer cancel()
	// Statements start one after the other; once in flight, each has chances of its own.
	s.db.mu.Lock()
	random := rand.New(rand.NewPCG(s.looking.Uint64(), 0))
	s.db.mu.Unlock()
	state, _, err := s.read(ctx, random)
	if err != nil {
		return nil, err
	}
	found := make(map[authz.Digest]*cachedKey, len(digests))
	for _, d := range digests {
		found[d] = state.find(d, organizations)
	}
	return found, nil
}

func (s *simulatedState) find(d authz.Digest, organizations *organizationCache) *cachedKey {
	for i := range s.keys {
		k := &s.keys[i]
		for _, x := range k.secrets {
			if x.digest != d {
				continue
			}
			o := s.organizations[k.organization]
			of := organizations.organization(o.id)
			record, _ := of.record(o.revision, func() (*authz.Organization, error) {
				return &authz.Organization{ID: o.id, Name: "Acme", Plan: "standard", Suspended: o.suspended, Revision: o.revision}, nil
			})
			return &cachedKey{
				key: &authz.Key{
					ID: k.id, Organization: record, Environment: authz.EnvironmentLive, Scopes: k.scopes, RevokedAt: k.revoked,
					ExpiresAt: k.expires, Disabled: k.disabled, Revision: k.revision,
				},
				secret:       &authz.KeySecret{ID: x.id, RevokedAt: x.revoked, ExpiresAt: x.expires},
				organization: of, asOf: s.n,
			}
		}
	}
	return &cachedKey{asOf: s.n}
}

func (s *simulatedSource) beat(ctx context.Context, h heartbeat, _ bool) error {
	ctx, cancel := context.WithTimeout(ctx, listenReadDeadline)
	defer cancel()
	if err := s.travel(ctx, s.random); err != nil {
		return err
	}
	s.db.mu.Lock()
	s.db.beats[h.id] = heartbeatAt{h, time.Now()}
	s.db.mu.Unlock()
	return s.travel(ctx, s.random) // written, though its answer may be lost
}

func (*simulatedSource) policy(context.Context) (*Policy, error) { return &Policy{}, nil }

func (*simulatedSource) shadow(context.Context) (*PolicyShadow, error) { return nil, nil }

func (*simulatedSource) nobodyWrites(context.Context, error) bool { return false }

func (s *simulatedSource) raise(ctx context.Context, n int64) error {
	if err := s.travel(ctx, s.random); err != nil {
		return err
	}
	s.db.transaction(time.Duration(s.random.Int64N(int64(20*time.Millisecond))), n, func(int64) {})
	return s.travel(ctx, s.random)
}
