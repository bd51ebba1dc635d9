package store_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store/storetest"
)

// The last use is written behind the checks, is exact to ten seconds, never goes back,
// and is lost by no store that is closed.
func TestUses_LastUseIsKeptAndNeverGoesBack(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	s := storetest.Open(t, at, peppers)
	w := newWhole(t, s, "acme")
	key, secret := &authz.Key{ID: w.key.ID}, w.key.Secrets[0].ID
	first := time.Date(2026, 11, 24, 12, 0, 3, 0, time.UTC)
	record := &authz.KeySecret{ID: secret}
	for _, second := range []int{0, 1, 5, 6, 30, 31} {
		s.Used(key, record, first.Add(time.Duration(second)*time.Second))
	}
	// Another record of the same secret, as after a change, with an earlier use.
	s.Used(key, &authz.KeySecret{ID: secret}, first)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := storetest.Open(t, at, peppers)
	again.Used(key, &authz.KeySecret{ID: secret}, first.Add(-time.Hour))
	if err := again.FlushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	manageRead(t, again, func(ctx context.Context, r manage.Reader) error {
		k, err := r.Key(ctx, all(), authz.OrganizationID{}, key.ID)
		if err == nil && (!k.LastUsedAt.Equal(first.Add(30*time.Second)) || !k.Secrets[0].LastUsedAt.Equal(k.LastUsedAt)) {
			t.Errorf("last used %v, %v; want the first of the last ten seconds", k.LastUsedAt, k.Secrets[0].LastUsedAt)
		}
		return err
	})
}

func TestUses_KeysAreListedByWhetherTheyWereUsed(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	var second manage.Key
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		second = newKey(c.Now().Add(time.Second), w.organization.ID)
		return c.InsertKey(ctx, all(), &second, format(t).Generate(second.Environment))
	})
	s.Used(&authz.Key{ID: w.key.ID}, &authz.KeySecret{ID: w.key.Secrets[0].ID}, time.Now())
	if err := s.FlushUses(t.Context()); err != nil {
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

func BenchmarkUsed(b *testing.B) {
	at := storetest.Migrated(b)
	s := storetest.Open(b, at, storetest.Peppers(b, "p1"))
	key, secret := &authz.Key{ID: authz.NewKeyID(time.Now())}, &authz.KeySecret{ID: authz.NewSecretID(time.Now())}
	b.ReportAllocs()
	for b.Loop() {
		s.Used(key, secret, s.Clock().Now())
	}
}
