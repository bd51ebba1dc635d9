package store_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

func format(t testing.TB) authz.KeyFormat {
	t.Helper()
	f, err := authz.NewKeyFormat(authz.DefaultKeyPrefix)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// stored is a key of an organization with one secret.
type stored struct {
	key    *authz.Key
	secret authz.Secret
}

func add(t testing.TB, s *store.Store, change ...func(*authz.Key, *authz.KeySecret)) stored {
	t.Helper()
	now := time.Now()
	k := &authz.Key{
		ID: authz.NewKeyID(now), Name: "ci", Environment: authz.EnvironmentLive,
		Scopes:       []authz.Scope{"tickets:write", "tickets:read"},
		Organization: &authz.Organization{ID: authz.NewOrganizationID(now), Name: "Acme", Plan: "standard", Metadata: `{"a":[1]}`},
	}
	secret := format(t).Generate(authz.EnvironmentLive)
	ks := &authz.KeySecret{ID: authz.NewSecretID(now), Hint: format(t).Hint(secret)}
	for _, f := range change {
		f(k, ks)
	}
	write(t, s, func(ctx context.Context, c *store.Change) error {
		return errors.Join(c.AddOrganization(ctx, k.Organization), c.AddKey(ctx, k, "test"), c.AddKeySecret(ctx, k.ID, ks, secret))
	})
	return stored{k, secret}
}

func write(t testing.TB, s *store.Store, do func(context.Context, *store.Change) error) int64 {
	t.Helper()
	n, err := s.Change(t.Context(), do)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func find(t testing.TB, s *store.Store, secret authz.Secret) authz.FoundKey {
	t.Helper()
	found, err := s.FindKey(t.Context(), authz.CallerID{}, secret.Hash())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestStore_AKeyComesBackAsItWasStored(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	expiry := time.Now().Add(time.Hour).Truncate(time.Microsecond).UTC()
	want := add(t, s, func(k *authz.Key, ks *authz.KeySecret) {
		k.ExpiresAt, k.ExternalID, k.Restricted, k.Metadata = expiry, "ext", true, `{"team":"x"}`
		k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")}
		k.RateLimit = &authz.Rate{Rate: 50, Period: time.Minute, Burst: 25}
		ks.ExpiresAt = expiry
	})
	got := find(t, s, want.secret)
	k := got.Key
	if k == nil || k.ID != want.key.ID || k.Name != "ci" || k.ExternalID != "ext" || !k.Restricted || k.Disabled ||
		!k.ExpiresAt.Equal(expiry) || !k.RevokedAt.IsZero() || k.Metadata != `{"team":"x"}` || k.Environment != "live" {
		t.Fatalf("%+v", k)
	}
	if len(k.Scopes) != 2 || k.Scopes[0] != "tickets:read" || len(k.AllowedCIDRs) != 2 ||
		k.AllowedCIDRs[1] != want.key.AllowedCIDRs[1] || *k.RateLimit != *want.key.RateLimit {
		t.Errorf("%v %v %v", k.Scopes, k.AllowedCIDRs, k.RateLimit)
	}
	if o := k.Organization; o.ID != want.key.Organization.ID || o.Name != "Acme" || o.Plan != "standard" || o.Suspended || o.Metadata != `{"a":[1]}` {
		t.Errorf("%+v", o)
	}
	if got.Secret.PepperID != "p1" || !got.Secret.ExpiresAt.Equal(expiry) || got.Secret.Hint == "" || got.Degraded || got.Stale {
		t.Errorf("%+v", got.Secret)
	}
	if again := find(t, s, want.secret); again.Key != k {
		t.Error("a second look-up has another record: nothing was remembered")
	}
}

func TestStore_AnUnknownSecretIsUnknown(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	for range 2 {
		if got := find(t, s, format(t).Generate(authz.EnvironmentLive)); got.Key != nil || got.Secret != nil {
			t.Errorf("%+v", got)
		}
	}
}

// Everything that takes a right away or gives one is seen by another replica that
// had the old answer in memory, as soon as it synchronizes.
func TestStore_AnotherReplicaSeesEveryChange(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	k := add(t, here)
	caller := &authz.Caller{ID: authz.NewCallerID(time.Now()), Name: "tickets", Permissions: []authz.Permission{"check"}}
	token := authz.CallerTokens().Generate()

	step := func(do func(context.Context, *store.Change) error) {
		t.Helper()
		write(t, here, do)
		if err := there.Synchronize(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	see := func(what string, ok func(authz.FoundKey) bool) {
		t.Helper()
		if got := find(t, there, k.secret); !ok(got) {
			t.Errorf("%s is not seen: %+v", what, got.Key)
		}
	}
	if err := there.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	see("a new key", func(f authz.FoundKey) bool { return f.Key != nil })
	org, id := k.key.Organization.ID, k.key.ID
	step(func(ctx context.Context, c *store.Change) error { return c.DisableKey(ctx, org, id, true) })
	see("disabling", func(f authz.FoundKey) bool { return f.Key.Disabled })
	step(func(ctx context.Context, c *store.Change) error { return c.DisableKey(ctx, org, id, false) })
	see("enabling", func(f authz.FoundKey) bool { return !f.Key.Disabled })
	step(func(ctx context.Context, c *store.Change) error { return c.SuspendOrganization(ctx, org, true) })
	see("suspension", func(f authz.FoundKey) bool { return f.Key.Organization.Suspended })
	step(func(ctx context.Context, c *store.Change) error { return c.SuspendOrganization(ctx, org, false) })
	see("resumption", func(f authz.FoundKey) bool { return !f.Key.Organization.Suspended })
	step(func(ctx context.Context, c *store.Change) error { return c.RevokeKey(ctx, org, id) })
	see("revocation", func(f authz.FoundKey) bool { return !f.Key.RevokedAt.IsZero() })

	known := func() *authz.Caller {
		t.Helper()
		c, err := there.FindCaller(t.Context(), token.Hash())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if known() != nil {
		t.Error("a caller is known before it is made")
	}
	step(func(ctx context.Context, c *store.Change) error { return c.AddCaller(ctx, caller, token) })
	if c := known(); c == nil || c.Name != "tickets" || !c.May("check") {
		t.Errorf("a new caller: %+v", c)
	}
	step(func(ctx context.Context, c *store.Change) error { return c.RevokeCaller(ctx, caller.ID) })
	if c := known(); c == nil || c.RevokedAt.IsZero() {
		t.Errorf("a revoked caller: %+v", c)
	}
}

// A key that was asked for before it was made is usable as soon as it is.
func TestStore_UnknownIsForgottenWhenTheKeyIsMade(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	k := add(t, here)
	second := format(t).Generate(authz.EnvironmentLive)
	if find(t, there, second).Key != nil {
		t.Fatal("known before it was made")
	}
	write(t, here, func(ctx context.Context, c *store.Change) error {
		return c.AddKeySecret(ctx, k.key.ID, &authz.KeySecret{ID: authz.NewSecretID(time.Now()), Hint: "h"}, second)
	})
	if err := there.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := find(t, there, second); got.Key == nil || got.Key.ID != k.key.ID {
		t.Error("still unknown")
	}
}

// NOTIFY and polling, without a call of Synchronize: the change arrives by itself.
func TestStore_ChangesArriveByThemselves(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	k := add(t, here)
	if find(t, there, k.secret).Key == nil {
		t.Fatal("unknown")
	}
	n := write(t, here, func(ctx context.Context, c *store.Change) error {
		return c.RevokeKey(ctx, k.key.Organization.ID, k.key.ID)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for there.Health().Revision < n {
		select {
		case <-ctx.Done():
			t.Fatal("the change never arrived")
		case <-time.After(time.Millisecond):
		}
	}
	if find(t, there, k.secret).Key.RevokedAt.IsZero() {
		t.Error("a revision is applied, its revocation is not")
	}
}

// A change that nobody is told of is found by polling.
func TestStore_AChangeWithoutANotificationArrives(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	k := add(t, s)
	find(t, s, k.secret)
	eventually(t, "all notifications so far are heard", func() bool {
		return s.Health().Revision == int64(storetest.Count(t, at, `SELECT n FROM revision`))
	})
	storetest.Exec(t, at, `WITH r AS (UPDATE revision SET n = n + 1 RETURNING n)
		UPDATE api_keys SET revoked_at = now(), revision = r.n FROM r WHERE id = $1`, k.key.ID)
	eventually(t, "the key is revoked", func() bool { return !find(t, s, k.secret).Key.RevokedAt.IsZero() })
}

// Two changes that are open at once: the second waits for the first, so that the
// order of numbers is the order in which they become visible.
func TestStore_RevisionOrderIsCommitOrder(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	k := add(t, s)
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	inside, release := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	var first, second int64
	group.Go(func() {
		first, _ = s.Change(t.Context(), func(ctx context.Context, c *store.Change) error {
			close(inside)
			<-release
			return c.DisableKey(ctx, k.key.Organization.ID, k.key.ID, true)
		})
	})
	<-inside
	group.Go(func() {
		second, _ = s.Change(t.Context(), func(ctx context.Context, c *store.Change) error {
			return c.DisableKey(ctx, k.key.Organization.ID, k.key.ID, false)
		})
	})
	before := s.Health().Revision
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Health().Revision; got != before {
		t.Errorf("revision %d is applied though nothing after %d is committed", got, before)
	}
	close(release)
	group.Wait()
	if first == 0 || second != first+1 {
		t.Fatalf("revisions %d and %d", first, second)
	}
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if find(t, s, k.secret).Key.Disabled {
		t.Error("the first change won over the second")
	}
}

func TestStore_AFailedChangeChangesNothing(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	k := add(t, s)
	sentinel := errors.New("no")
	_, err := s.Change(t.Context(), func(ctx context.Context, c *store.Change) error {
		return errors.Join(c.RevokeKey(ctx, k.key.Organization.ID, k.key.ID), sentinel)
	})
	if !errors.Is(err, sentinel) {
		t.Fatal(err)
	}
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !find(t, s, k.secret).Key.RevokedAt.IsZero() {
		t.Error("revoked all the same")
	}
	_, err = s.Change(t.Context(), func(ctx context.Context, c *store.Change) error {
		return c.RevokeKey(ctx, authz.NewOrganizationID(time.Now()), k.key.ID)
	})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("another organization's key: %v", err)
	}
}

// A key that was stored under an older pepper is still found.
func TestStore_KeysUnderEveryPepperAreFound(t *testing.T) {
	at := storetest.Migrated(t)
	old, fresh := authz.NewPepper("p1"), authz.NewPepper("p2")
	parse := func(s string) authz.Peppers {
		p, err := authz.ParsePeppers(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	before := add(t, storetest.Open(t, at, parse(old)))
	s := storetest.Open(t, at, parse(fresh+","+old))
	after := add(t, s)
	if find(t, s, before.secret).Key == nil || find(t, s, after.secret).Key == nil {
		t.Error("a key under one of two peppers is unknown")
	}
	var wrong *store.PepperError
	_, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: parse(fresh)})
	if !errors.As(err, &wrong) || len(wrong.Missing) != 1 || wrong.Missing[0] != "p1" {
		t.Errorf("a pepper in use is missing: %v", err)
	}
	_, err = store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: parse(fresh + "," + authz.NewPepper("p1"))})
	if !errors.As(err, &wrong) || len(wrong.Different) != 1 {
		t.Errorf("a pepper with other bytes: %v", err)
	}
	if _, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at)}); !errors.Is(err, authz.ErrNoPepper) {
		t.Errorf("no pepper: %v", err)
	}
}

// Many who ask for the same unknown keys at once cost few statements.
func TestStore_MissesAreCoalesced(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	k := add(t, s)
	var group sync.WaitGroup
	for range 500 {
		group.Go(func() {
			if got, err := s.FindKey(t.Context(), authz.CallerID{}, k.secret.Hash()); err != nil || got.Key == nil {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	group.Wait()
	if n := s.Health().Lookups; n > 3 {
		t.Errorf("%d statements for one key", n)
	}
}

func TestStore_CloseLeavesNothingRunning(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	before := goleak.IgnoreCurrent()
	s, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: peppers, LookupBudget: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	find(t, s, format(t).Generate(authz.EnvironmentLive))
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, before)
}

// Notifications that nobody takes any more do not hold a store open.
func TestStore_CloseEndsAmongManyNotifications(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	for range 3 {
		s, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: peppers})
		if err != nil {
			t.Fatal(err)
		}
		flooding, stop := context.WithCancel(t.Context())
		var flood sync.WaitGroup
		flood.Go(func() {
			for flooding.Err() == nil {
				storetest.Exec(t, at, `SELECT pg_notify('keystile_changes', n::text) FROM generate_series(1, 20000) n`)
			}
		})
		<-time.After(600 * time.Millisecond) // a ping is answered behind all of them
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("still open")
		}
		stop()
		flood.Wait()
	}
}

func TestStore_ADatabaseThatDoesNotFitIsRefused(t *testing.T) {
	empty := storetest.Schema(t)
	var schema *store.SchemaError
	_, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, empty), Peppers: storetest.Peppers(t, "p1")})
	if !errors.As(err, &schema) || schema.Have != 0 {
		t.Errorf("not migrated: %v", err)
	}
	at := storetest.Migrated(t)
	storetest.Exec(t, at, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`)
	_, err = store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: storetest.Peppers(t, "p1")})
	if !errors.As(err, &schema) || schema.Have != 99999 {
		t.Errorf("a newer schema: %v", err)
	}
	at = storetest.Migrated(t)
	if err := store.MarkDeployment(t.Context(), storetest.Parse(t, at), store.DeploymentDev); err != nil {
		t.Fatal(err)
	}
	var deployment *store.DeploymentError
	_, err = store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: storetest.Peppers(t, "p1")})
	if !errors.As(err, &deployment) {
		t.Errorf("demonstration data: %v", err)
	}
}

// Only an empty database becomes a demonstration: one in use must not be marked by mistake.
func TestMarkDeployment_OnlyAnEmptyDatabaseIsMarked(t *testing.T) {
	at := storetest.Migrated(t)
	add(t, storetest.Open(t, at, storetest.Peppers(t, "p1")))
	var deployment *store.DeploymentError
	if err := store.MarkDeployment(t.Context(), storetest.Parse(t, at), store.DeploymentDev); !errors.As(err, &deployment) {
		t.Errorf("%v", err)
	}
}

func TestMigrate_ManyAtOnceMigrateOnce(t *testing.T) {
	at := storetest.Parse(t, storetest.Schema(t))
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if _, to, err := store.Migrate(t.Context(), at); err != nil || to < 1 {
				t.Errorf("version %d, %v", to, err)
			}
		})
	}
	group.Wait()
	if from, to, err := store.Migrate(t.Context(), at); err != nil || from != to {
		t.Errorf("from %d to %d, %v", from, to, err)
	}
}

// Every migration can be taken back and done again, with data that only it permits.
func TestMigrate_ThereIsAWayBack(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		w.caller.RevokedAt = c.Now()
		again := manage.Caller{ID: authz.NewCallerID(c.Now()), Name: w.caller.Name, Tokens: []manage.Token{{ID: authz.NewSecretID(c.Now())}}}
		e := event(c, w.organization.ID, 1)
		e.Before, e.Address = []byte(`{"b":1,"a":2}`), netip.MustParseAddr("fe80::1%eth0")
		return errors.Join(c.UpdateCaller(ctx, all(), &w.caller), c.InsertCaller(ctx, all(), &again, authz.CallerTokens().Generate()),
			c.AppendAudit(ctx, []manage.AuditEvent{e}))
	})
	s.StopFollowing()
	if err := store.MigrateDown(t.Context(), storetest.Parse(t, at)); err != nil {
		t.Fatal(err)
	}
	if from, to, err := store.Migrate(t.Context(), storetest.Parse(t, at)); err != nil || from != 1 || to < 2 {
		t.Errorf("from %d to %d, %v", from, to, err)
	}
}

func TestParseDatabaseURL_NeverRepeatsThePassword(t *testing.T) {
	for _, s := range []string{"postgres://u:hunter2@h/db?sslmode=nonsense", "mysql://u:hunter2@h/db", "postgres://u:hunter2@h:x/db", "hunter2"} {
		if _, err := store.ParseDatabaseURL(s); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
	at, err := store.ParseDatabaseURL("postgres://u:hunter2@h/db")
	if err != nil || strings.Contains(at.String(), "hunter2") || !strings.Contains(at.String(), "sslmode=verify-full") {
		t.Errorf("%v, %v", at, err)
	}
	if at, _ := store.ParseDatabaseURL("postgres://u@127.0.0.1/db"); !strings.Contains(at.String(), "sslmode=disable") {
		t.Errorf("loopback: %v", at)
	}
}
