package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// admitted tells whether an admin's token is accepted.
func admitted(t *testing.T, s *store.Store, token authz.Secret) bool {
	t.Helper()
	a, err := s.FindAdmin(t.Context(), token.Hash())
	if err != nil {
		t.Fatal(err)
	}
	return a.Live(s.Clock().Now())
}

// removeAdmin and endAdminToken take an admin, and an admin's first token, away.
func removeAdmin(w *whole) func(context.Context, manage.Writer) error {
	return func(ctx context.Context, c manage.Writer) error {
		w.admin.RevokedAt = c.Now()
		return c.UpdateAdmin(ctx, all(), &w.admin)
	}
}

func endAdminToken(w *whole, within time.Duration) func(context.Context, manage.Writer) error {
	return func(ctx context.Context, c manage.Writer) error {
		token := w.admin.Tokens[0]
		token.ExpiresAt = c.Now().Add(within)
		return c.EndAdminToken(ctx, all(), &w.admin, &token)
	}
}

// Also of admins whom a replica has never read: it hears of them as of every change.
func TestFindAdmin_WhoWasRemovedStaysSoInADatabaseThatIsPutBack(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	s := storetest.Open(t, at, peppers)
	gone, rotated, revoked, stays := newWhole(t, s, "gone"), newWhole(t, s, "rotated"), newWhole(t, s, "revoked"), newWhole(t, s, "stays")
	put := copyOf(t, at)
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		token := revoked.admin.Tokens[0]
		token.RevokedAt = c.Now()
		return errors.Join(removeAdmin(gone)(ctx, c), endAdminToken(rotated, 0)(ctx, c), c.EndAdminToken(ctx, all(), &revoked.admin, &token))
	})
	late := storetest.Open(t, at, peppers) // which learns at its start
	synchronize(t, s)
	s.StopFollowing()
	late.StopFollowing()
	put()
	for noticed := range 2 {
		for name, replica := range map[string]*store.Store{"ran": s, "started later": late} {
			for what, w := range map[string]*whole{"an admin who was removed": gone, "a token that was rotated": rotated, "a token that was revoked": revoked} {
				if admitted(t, replica, w.adminToken) {
					t.Errorf("the replica that %s admits %s (noticed %d)", name, what, noticed)
				}
			}
			if !admitted(t, replica, stays.adminToken) {
				t.Errorf("the replica that %s refuses an admin who stays (noticed %d)", name, noticed)
			}
			synchronize(t, replica)
		}
	}
	if s.Health().PutBack != 1 || late.Health().PutBack != 1 {
		t.Error("the restore was not noticed")
	}

	// A token's new end is the last word, a removal stays.
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		gone.admin.RevokedAt = time.Time{}
		return errors.Join(endAdminToken(rotated, time.Hour)(ctx, c), c.UpdateAdmin(ctx, all(), &gone.admin))
	})
	synchronize(t, s)
	if !admitted(t, s, rotated.adminToken) || admitted(t, s, gone.adminToken) {
		t.Error("what changes after the restore does not apply, or lets a removed admin in")
	}
}

// A change under way does not believe the copy either, and the last platform admin is not removed
// because one who was removed is there again.
func TestStillLive_WhoWasRemovedIsNotLiveInADatabaseThatIsPutBack(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	s := storetest.Open(t, at, peppers)
	w := newWhole(t, s, "acme")
	platform := &manage.Admin{
		ID: authz.NewAdminID(time.Now()), Name: "ops", Role: authz.RolePlatformAdmin, CreatedBy: "test", ExpiresAt: time.Now().Add(time.Hour), Lifetime: time.Hour,
		Tokens: []manage.Token{{ID: authz.NewSecretID(time.Now()), Hint: "h", ExpiresAt: time.Now().Add(time.Hour)}},
	}
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		return c.InsertAdmin(ctx, all(), platform, authz.AdminTokens().Generate())
	})
	actor, err := s.FindAdmin(t.Context(), w.adminToken.Hash())
	if err != nil {
		t.Fatal(err)
	}
	state := func() (live bool, others int) {
		manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
			var err, also error
			live, err = c.StillLive(ctx, actor)
			others, also = c.OtherPlatformAdmins(ctx, authz.NewAdminID(time.Now()))
			return errors.Join(err, also)
		})
		return live, others
	}
	if live, others := state(); !live || others != 1 {
		t.Fatalf("before: %t, %d", live, others)
	}
	put := copyOf(t, at)
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		platform.RevokedAt = c.Now()
		return errors.Join(removeAdmin(w)(ctx, c), c.UpdateAdmin(ctx, all(), platform))
	})
	synchronize(t, s)
	s.StopFollowing()
	put()
	if live, others := state(); live || others != 0 {
		t.Errorf("live %t, other platform admins %d", live, others)
	}
}
