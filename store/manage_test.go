package store_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// all is a platform admin's tenant, of an organization's.
func all() manage.Tenant { return manage.TenantOf(&authz.Admin{Role: authz.RolePlatformAdmin}) }

func of(id authz.OrganizationID) manage.Tenant {
	return manage.TenantOf(&authz.Admin{Role: authz.RoleOwner, Organization: id})
}

// manageWrite writes and keeps what fn does.
func manageWrite(t testing.TB, s *store.Store, fn func(context.Context, manage.Writer) error) int64 {
	t.Helper()
	n, err := s.Write(t.Context(), true, fn)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func manageRead(t testing.TB, s *store.Store, fn func(context.Context, manage.Reader) error) {
	t.Helper()
	if err := s.Read(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// whole is one of everything that belongs to an organization, and a caller.
type whole struct {
	organization manage.Organization
	key          manage.Key
	caller       manage.Caller
	admin        manage.Admin

	keySecret, callerToken, adminToken authz.Secret
}

func newKey(now time.Time, organization authz.OrganizationID) manage.Key {
	return manage.Key{
		ID: authz.NewKeyID(now), OrganizationID: organization, Name: "ci", Environment: authz.EnvironmentLive,
		Scopes: []authz.Scope{"tickets:read"}, CreatedAt: now, CreatedBy: "test", Version: 1,
		Secrets: []manage.KeySecret{{ID: authz.NewSecretID(now), Hint: "sk_live_abcd…efgh", CreatedAt: now}},
	}
}

func newWhole(t testing.TB, s *store.Store, name string) *whole {
	t.Helper()
	w := &whole{
		keySecret: format(t).Generate(authz.EnvironmentLive), callerToken: authz.CallerTokens().Generate(),
		adminToken: authz.AdminTokens().Generate(),
	}
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		now := c.Now()
		w.organization = manage.Organization{
			ID: authz.NewOrganizationID(now), ExternalID: name, Name: name, Plan: "standard", Metadata: `{"a":[1]}`, CreatedAt: now, Version: 1,
		}
		w.key = newKey(now, w.organization.ID)
		w.key.ExternalID, w.key.Restricted, w.key.Metadata = name, true, `{"team":"x"}`
		w.key.ExpiresAt, w.key.Lifetime = now.Add(time.Hour), time.Hour
		w.key.Scopes = []authz.Scope{"tickets:read", "tickets:write"}
		w.key.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")}
		w.key.RateLimit = &authz.Rate{Rate: 50, Period: time.Minute, Burst: 25}
		w.caller = manage.Caller{
			ID: authz.NewCallerID(now), Name: name, Environments: []authz.Environment{"live"}, Permissions: []authz.Permission{"check"},
			CreatedAt: now, CreatedBy: "test", Tokens: []manage.Token{{ID: authz.NewSecretID(now), Hint: "h", CreatedAt: now}},
		}
		w.admin = manage.Admin{
			ID: authz.NewAdminID(now), Name: name, Role: authz.RoleOwner, OrganizationID: w.organization.ID, CreatedAt: now,
			CreatedBy: "test", ExpiresAt: now.Add(time.Hour), Lifetime: time.Hour,
			Tokens: []manage.Token{{ID: authz.NewSecretID(now), Hint: "h", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}},
		}
		return errors.Join(
			c.InsertOrganization(ctx, all(), &w.organization), c.InsertKey(ctx, all(), &w.key, w.keySecret),
			c.InsertCaller(ctx, all(), &w.caller, w.callerToken), c.InsertAdmin(ctx, all(), &w.admin, w.adminToken),
		)
	})
	return w
}

func TestStore_WhatIsManagedComesBackAsItWasWritten(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	same := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	check := func() {
		t.Helper()
		manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
			mine := of(w.organization.ID)
			o, err1 := r.Organization(ctx, mine, w.organization.ID)
			k, err2 := r.Key(ctx, mine, authz.OrganizationID{}, w.key.ID)
			c, err3 := r.Caller(ctx, all(), w.caller.ID)
			a, err4 := r.Admin(ctx, mine, w.admin.ID)
			if err := errors.Join(err1, err2, err3, err4); err != nil {
				return err
			}
			same("organization", *o, w.organization)
			same("key", *k, w.key)
			same("caller", *c, w.caller)
			same("admin", *a, w.admin)
			return nil
		})
	}
	check()
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		now := c.Now()
		w.organization.Name, w.organization.SuspendedAt, w.organization.ExternalID = "Acme 2", now, ""
		w.key.Name, w.key.DisabledAt, w.key.RateLimit, w.key.AllowedCIDRs = "other", now, nil, nil
		w.key.ExpiresAt, w.key.Lifetime, w.key.Metadata, w.key.Restricted = time.Time{}, 0, "", false
		second := manage.KeySecret{ID: authz.NewSecretID(now), Hint: "second", CreatedAt: now, ExpiresAt: now.Add(time.Minute)}
		w.key.Secrets[0].ExpiresAt = now.Add(time.Second)
		err := errors.Join(
			c.UpdateOrganization(ctx, all(), &w.organization), c.UpdateKey(ctx, all(), &w.key),
			c.EndSecret(ctx, all(), &w.key, &w.key.Secrets[0]),
			c.InsertSecret(ctx, all(), &w.key, &second, format(t).Generate(authz.EnvironmentLive)),
		)
		w.key.Secrets = append([]manage.KeySecret{second}, w.key.Secrets...)
		token := manage.Token{ID: authz.NewSecretID(now), Hint: "second", CreatedAt: now, ExpiresAt: now.Add(time.Minute)}
		w.caller.Tokens[0].RevokedAt, w.admin.Tokens[0].RevokedAt = now, now
		err = errors.Join(err,
			c.EndCallerToken(ctx, all(), &w.caller, &w.caller.Tokens[0]), c.EndAdminToken(ctx, all(), &w.admin, &w.admin.Tokens[0]))
		w.caller.Tokens, w.admin.Tokens = []manage.Token{token}, []manage.Token{token}
		w.admin.ExpiresAt, w.admin.Lifetime = now.Add(2*time.Hour), 2*time.Hour
		adminToken := token
		adminToken.ID = authz.NewSecretID(now)
		w.admin.Tokens = []manage.Token{adminToken}
		return errors.Join(err,
			c.InsertCallerToken(ctx, all(), &w.caller, &token, authz.CallerTokens().Generate()),
			c.InsertAdminToken(ctx, all(), &w.admin, &adminToken, authz.AdminTokens().Generate()), c.UpdateAdmin(ctx, all(), &w.admin))
	})
	if w.organization.Version != 2 || w.key.Version != 4 {
		t.Errorf("versions %d and %d", w.organization.Version, w.key.Version)
	}
	check()
}

// An admin that is removed is refused at once: nothing is remembered of it.
func TestFindAdmin_KnowsTheStateOfAdminAndToken(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	find := func(secret authz.Secret) *authz.Admin {
		t.Helper()
		a, err := s.FindAdmin(t.Context(), secret.Hash())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := find(w.adminToken)
	if a == nil || a.ID != w.admin.ID || a.Organization != w.organization.ID || a.TokenID != w.admin.Tokens[0].ID || !a.Live(s.Clock().Now()) {
		t.Fatalf("%+v", a)
	}
	if find(authz.AdminTokens().Generate()) != nil {
		t.Error("an unknown token is somebody's")
	}
	live := func() (live bool) {
		t.Helper()
		manageWrite(t, s, func(ctx context.Context, c manage.Writer) (err error) {
			live, err = c.StillLive(ctx, a)
			return err
		})
		return live
	}
	if !live() {
		t.Error("a live admin is not live")
	}
	w.admin.Tokens[0].RevokedAt = time.Now()
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		return c.EndAdminToken(ctx, all(), &w.admin, &w.admin.Tokens[0])
	})
	if live() || find(w.adminToken).Live(s.Clock().Now()) {
		t.Error("a revoked token is live")
	}
}

// Revoked is for ever: no later write takes it back.
func TestStore_RevokedIsForEver(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		key, secret, caller, admin := w.key, w.key.Secrets[0], w.caller, w.admin
		token := caller.Tokens[0]
		key.RevokedAt, secret.RevokedAt, caller.RevokedAt, admin.RevokedAt, token.RevokedAt = c.Now(), c.Now(), c.Now(), c.Now(), c.Now()
		return errors.Join(c.UpdateKey(ctx, all(), &key), c.EndSecret(ctx, all(), &key, &secret),
			c.EndCallerToken(ctx, all(), &caller, &token), c.UpdateCaller(ctx, all(), &caller), c.UpdateAdmin(ctx, all(), &admin))
	})
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		return errors.Join(c.UpdateKey(ctx, all(), &w.key), c.EndSecret(ctx, all(), &w.key, &w.key.Secrets[0]),
			c.EndCallerToken(ctx, all(), &w.caller, &w.caller.Tokens[0]), c.UpdateCaller(ctx, all(), &w.caller), c.UpdateAdmin(ctx, all(), &w.admin))
	})
	found := find(t, s, w.keySecret)
	if found.Key.RevokedAt.IsZero() || found.Secret.RevokedAt.IsZero() {
		t.Error("a key or its secret is not revoked any more")
	}
	manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
		c, err1 := r.Caller(ctx, all(), w.caller.ID)
		a, err2 := r.Admin(ctx, all(), w.admin.ID)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if c.RevokedAt.IsZero() || len(c.Tokens) > 0 || a.RevokedAt.IsZero() {
			t.Error("a caller or an admin is not revoked any more")
		}
		return nil
	})
}

// Every change by a Writer is seen by another replica that had the old answer.
func TestStore_AnotherReplicaSeesWhatAWriterChanges(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	w := newWhole(t, here, "acme")
	step := func(do func(context.Context, manage.Writer) error) authz.FoundKey {
		t.Helper()
		find(t, there, w.keySecret)
		manageWrite(t, here, do)
		if err := there.Synchronize(t.Context()); err != nil {
			t.Fatal(err)
		}
		return find(t, there, w.keySecret)
	}
	if f := step(func(ctx context.Context, c manage.Writer) error {
		w.organization.Plan = "other"
		return c.UpdateOrganization(ctx, all(), &w.organization)
	}); f.Key.Organization.Plan != "other" {
		t.Error("an organization's plan")
	}
	if f := step(func(ctx context.Context, c manage.Writer) error {
		w.key.Scopes = []authz.Scope{"a:b"}
		return c.UpdateKey(ctx, all(), &w.key)
	}); len(f.Key.Scopes) != 1 {
		t.Error("a key's scopes")
	}
	if f := step(func(ctx context.Context, c manage.Writer) error {
		w.key.Secrets[0].RevokedAt = c.Now()
		return c.EndSecret(ctx, all(), &w.key, &w.key.Secrets[0])
	}); f.Secret.RevokedAt.IsZero() {
		t.Error("a secret's revocation")
	}
	if f := step(func(ctx context.Context, c manage.Writer) error {
		n, err := c.RevokeKeys(ctx, all(), w.organization.ID)
		if n != 1 {
			t.Errorf("%d keys revoked", n)
		}
		return err
	}); f.Key.RevokedAt.IsZero() {
		t.Error("the revocation of all keys")
	}
	step(func(ctx context.Context, c manage.Writer) error {
		w.caller.Tokens[0].RevokedAt = c.Now()
		return c.EndCallerToken(ctx, all(), &w.caller, &w.caller.Tokens[0])
	})
	if c, err := there.FindCaller(t.Context(), w.callerToken.Hash()); err != nil || c.TokenRevokedAt.IsZero() {
		t.Errorf("a caller's token: %+v, %v", c, err)
	}
}

// listen returns what waits for the next announcement of a change.
func listen(t *testing.T, at string) (next func() string) {
	t.Helper()
	l := pq.NewListener(at, time.Second, time.Second, nil)
	t.Cleanup(func() { _ = l.Close() })
	if err := l.Listen("keystile_changes"); err != nil {
		t.Fatal(err)
	}
	return func() string {
		t.Helper()
		select {
		case n := <-l.Notify:
			return n.Extra
		case <-time.After(10 * time.Second):
			t.Fatal("nothing is announced")
			return ""
		}
	}
}

// A dry run finds out, keeps nothing and wakes nobody.
func TestWrite_ADryRunKeepsNothing(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, notified := s.Health().Revision, listen(t, at)
	_, err := s.Write(t.Context(), false, func(ctx context.Context, c manage.Writer) error {
		n, err := c.RevokeKeys(ctx, all(), w.organization.ID)
		if n != 1 {
			t.Errorf("%d keys would be revoked", n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := s.Health().Revision; n != before || !find(t, s, w.keySecret).Key.RevokedAt.IsZero() {
		t.Errorf("revision %d after %d", n, before)
	}
	// What is heard first is what is announced first: this, and not the dry run.
	n := manageWrite(t, s, func(context.Context, manage.Writer) error { return nil })
	if heard := notified(); heard != strconv.FormatInt(n, 10) {
		t.Errorf("heard of revision %s, want %d", heard, n)
	}
}

func TestStore_WhatIsUniqueAndTakenIsAConflict(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	conflict := func(field string, do func(context.Context, manage.Writer) error) {
		t.Helper()
		var taken *manage.ConflictError
		if _, err := s.Write(t.Context(), true, do); !errors.As(err, &taken) || taken.Field != field {
			t.Errorf("want a conflict about %s: %v", field, err)
		}
	}
	conflict("external_id", func(ctx context.Context, c manage.Writer) error {
		o := w.organization
		o.ID = authz.NewOrganizationID(c.Now())
		return c.InsertOrganization(ctx, all(), &o)
	})
	conflict("external_id", func(ctx context.Context, c manage.Writer) error {
		k := newKey(c.Now(), w.organization.ID)
		k.ExternalID = w.key.ExternalID
		return c.InsertKey(ctx, all(), &k, format(t).Generate(authz.EnvironmentLive))
	})
	again := func(ctx context.Context, c manage.Writer) error {
		caller := w.caller
		caller.ID, caller.RevokedAt = authz.NewCallerID(c.Now()), time.Time{}
		caller.Tokens = []manage.Token{{ID: authz.NewSecretID(c.Now()), Hint: "h"}}
		return c.InsertCaller(ctx, all(), &caller, authz.CallerTokens().Generate())
	}
	conflict("name", again)
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		w.caller.RevokedAt = c.Now()
		return c.UpdateCaller(ctx, all(), &w.caller)
	})
	manageWrite(t, s, again) // a revoked caller's name is free
}

// The one bootstrap: nobody gets a second, and nobody one beside an admin.
func TestBootstrap_OnceInADatabasesLife(t *testing.T) {
	claim := func(t *testing.T, s *store.Store) (ours bool) {
		t.Helper()
		manageWrite(t, s, func(ctx context.Context, c manage.Writer) (err error) {
			ours, err = c.Bootstrap(ctx)
			return err
		})
		return ours
	}
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	if !claim(t, s) || claim(t, s) {
		t.Error("not once")
	}
	t.Run("beside an admin", func(t *testing.T) {
		s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
		newWhole(t, s, "acme")
		if claim(t, s) {
			t.Error("claimed")
		}
	})
	t.Run("after AddAdmin", func(t *testing.T) {
		at := storetest.Migrated(t)
		s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
		write(t, s, func(ctx context.Context, c *store.Change) error {
			a := &store.Admin{ID: authz.NewAdminID(c.Now()), Name: "dev", Role: authz.RolePlatformAdmin, ExpiresAt: c.Now().Add(time.Hour)}
			return c.AddAdmin(ctx, a, authz.AdminTokens().Generate())
		})
		storetest.Exec(t, at, `DELETE FROM admin_tokens`)
		storetest.Exec(t, at, `DELETE FROM admins`)
		if claim(t, s) {
			t.Error("claimed when the admins were gone")
		}
	})
}

// An Idempotency-Key means one request within its scope, for 24 hours.
func TestRemembered_WithinItsScopeForADay(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	scope := manage.IdempotencyScope{Actor: authz.NewAdminID(time.Now()), Operation: "POST /v1/callers", KeyHash: [32]byte{1}}
	want := manage.Remembered{Fingerprint: [32]byte{2}, Answer: []byte(`{"b": 1,  "a":"\u003c"}`), Revision: 7}
	recall := func(scope manage.IdempotencyScope) (r *manage.Remembered) {
		t.Helper()
		manageWrite(t, s, func(ctx context.Context, c manage.Writer) (err error) {
			r, err = c.Remembered(ctx, scope)
			return err
		})
		return r
	}
	remember := func(r manage.Remembered) {
		t.Helper()
		manageWrite(t, s, func(ctx context.Context, c manage.Writer) error { return c.Remember(ctx, scope, r) })
	}
	if recall(scope) != nil {
		t.Error("remembered before it was")
	}
	remember(want)
	if got := recall(scope); got == nil || got.Fingerprint != want.Fingerprint || !bytes.Equal(got.Answer, want.Answer) || got.Revision != 7 {
		t.Errorf("%+v", got)
	}
	for i, other := range []manage.IdempotencyScope{
		{Actor: authz.NewAdminID(time.Now()), Operation: scope.Operation, KeyHash: scope.KeyHash},
		{Actor: scope.Actor, Operation: "POST /v1/admins", KeyHash: scope.KeyHash},
		{Actor: scope.Actor, Operation: scope.Operation, KeyHash: [32]byte{9}},
	} {
		if recall(other) != nil {
			t.Errorf("scope %d is the same", i)
		}
	}
	storetest.Exec(t, at, `UPDATE idempotency SET created_at = created_at - interval '24 hours'`)
	if recall(scope) != nil {
		t.Error("remembered after a day")
	}
	want.Fingerprint = [32]byte{3}
	remember(want) // the key is free again
	if got := recall(scope); got == nil || got.Fingerprint != want.Fingerprint {
		t.Errorf("%+v", got)
	}
	storetest.Exec(t, at, `INSERT INTO idempotency SELECT actor, operation, sha256(n::text::bytea), fingerprint, answer, revision,
		now() - interval '25 hours' FROM idempotency, generate_series(1, 150) n`)
	scope.KeyHash = [32]byte{10}
	remember(want)
	if n := storetest.Count(t, at, `SELECT count(*) FROM idempotency`); n != 52 {
		t.Errorf("%d answers are left: a change must clear away 100 old ones at most", n)
	}
}
