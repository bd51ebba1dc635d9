package store_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// The first and the last use are written behind the checks, say who and from where, never go
// back, and are lost by no store that is closed.
func TestUses_FirstAndLastUseAreKeptAndNeverGoBack(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	s := storetest.Open(t, at, peppers)
	w := newWhole(t, s, "acme")
	c := counterOf(s, w)
	first := time.Date(2026, 11, 24, 12, 0, 3, 0, time.UTC)
	for _, second := range []int{5, 0, 1, 30} {
		c.from = netip.AddrFrom4([4]byte{203, 0, byte(second), 7})
		c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", first.Add(time.Duration(second)*time.Second))
		if err := s.FlushUsage(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// What only a write when there is nothing else tells.
	c.from = netip.MustParseAddr("2001:db8:1:2::3")
	c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", first.Add(31*time.Second))
	// A key that is denied before policy is asked is not used.
	c.keys[0] = &authz.Key{ID: w.key.ID, Organization: c.keys[0].Organization, Disabled: true}
	c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", first.Add(2*time.Hour))
	for range 2 {
		if err := s.FlushUsage(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := storetest.Open(t, at, peppers)
	caller := c.caller
	c = counterOf(again, w)
	c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", first.Add(-time.Hour))
	if err := again.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	manageRead(t, again, func(ctx context.Context, r manage.Reader) error {
		k, err := r.Key(ctx, all(), authz.OrganizationID{}, w.key.ID)
		if err == nil && (!k.LastUsedAt.Equal(first.Add(31*time.Second)) || !k.Secrets[0].LastUsedAt.Equal(k.LastUsedAt)) {
			t.Errorf("last used %v, %v", k.LastUsedAt, k.Secrets[0].LastUsedAt)
		}
		return err
	})
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	for table, want := range map[string]string{
		"secret_uses": "2026-11-24 11:00:03 2026-11-24 12:00:34 true 2001:db8:1::/48",
		"scope_uses":  "2026-11-24 11:00:03 2026-11-24 12:00:34 true 2001:db8:1::/48",
	} {
		var got []string
		err := db.SelectContext(t.Context(), &got, `SELECT concat_ws(' ', first_used_at AT TIME ZONE 'UTC', used_at AT TIME ZONE 'UTC',
			caller_id = $1::uuid, network) FROM `+table, caller.ID)
		got = slices.DeleteFunc(got, func(row string) bool { return row == strings.Replace(want, "true", "t", 1) })
		if err != nil || len(got) > 0 {
			t.Errorf("%s: %q, %v", table, got, err)
		}
	}
}

// What is known of a secret from before first uses were kept has none later either.
func TestUses_AFirstUseIsNotMadeUp(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	c := counterOf(s, w)
	storetest.Exec(t, at, `INSERT INTO secret_uses (secret_id, key_id, used_at) SELECT id, key_id, '2026-01-01' FROM key_secrets`)
	c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", time.Now())
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	var made int
	if err := db.GetContext(t.Context(), &made, `SELECT count(*) FROM secret_uses WHERE first_used_at IS NOT NULL OR caller_id IS NULL`); err != nil || made > 0 {
		t.Errorf("%d, %v", made, err)
	}
}

// counterOf counts for a key that is stored.
func counterOf(s *store.Store, w *whole) *counter {
	c := newCounter(s, 1)
	c.secret = &authz.KeySecret{ID: w.key.Secrets[0].ID}
	c.keys = []*authz.Key{{ID: w.key.ID, Organization: &authz.Organization{ID: w.organization.ID}, Environment: authz.EnvironmentLive}}
	return c
}

func TestUses_KeysAreListedByWhetherTheyWereUsed(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	var second manage.Key
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		second = newKey(c.Now().Add(time.Second), w.organization.ID)
		return c.InsertKey(ctx, all(), &second, format(t).Generate(second.Environment))
	})
	counterOf(s, w).count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", time.Now())
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	yes, no := true, false
	for _, tt := range []struct {
		filter *bool
		want   []authz.KeyID
	}{{nil, []authz.KeyID{second.ID, w.key.ID}}, {&yes, []authz.KeyID{second.ID}}, {&no, []authz.KeyID{w.key.ID}}} {
		manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
			keys, err := r.Keys(ctx, all(), w.organization.ID, manage.KeyFilter{Unused: tt.filter}, manage.Page{Limit: 10})
			var got []authz.KeyID
			for _, k := range keys {
				got = append(got, k.ID)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
			return err
		})
	}
}
