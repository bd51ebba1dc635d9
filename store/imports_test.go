package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

func parsePeppers(t testing.TB, peppers ...string) authz.Peppers {
	t.Helper()
	p, err := authz.ParsePeppers(strings.Join(peppers, ","))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A hash that is there already, whoever's and under whichever pepper, is not stored
// twice: one secret must not open two keys.
func TestImportKeys_DuplicatesAreLeftOut(t *testing.T) {
	at := storetest.Migrated(t)
	old, fresh := authz.NewPepper("p1"), authz.NewPepper("p2")
	before := storetest.Open(t, at, parsePeppers(t, old))
	underOld := newWhole(t, before, "globex")
	s := storetest.Open(t, at, parsePeppers(t, fresh, old))
	w := newWhole(t, s, "acme")
	secrets := make([]authz.Secret, 6)
	for i := range secrets {
		secrets[i] = authz.NewSecret(fmt.Sprint("legacy_", i))
	}
	secrets[1], secrets[3], secrets[4] = w.keySecret, underOld.keySecret, secrets[0]
	var keys []manage.ImportedKey
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		for _, secret := range secrets {
			keys = append(keys, manage.ImportedKey{Key: newKey(c.Now(), w.organization.ID), Hash: secret.Hash()})
		}
		duplicates, err := c.ImportKeys(ctx, all(), keys)
		if !slices.Equal(duplicates, []int{1, 3, 4}) {
			t.Errorf("duplicates %v", duplicates)
		}
		return err
	})
	for i, owner := range []authz.KeyID{keys[0].Key.ID, w.key.ID, keys[2].Key.ID, underOld.key.ID, keys[0].Key.ID, keys[5].Key.ID} {
		if got := find(t, s, secrets[i]); got.Key == nil || got.Key.ID != owner {
			t.Errorf("secret %d opens %+v", i, got.Key)
		}
	}
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error { // a second run
		for i := range keys {
			keys[i].Key.ID = authz.NewKeyID(c.Now())
		}
		duplicates, err := c.ImportKeys(ctx, all(), keys)
		if len(duplicates) != len(keys) {
			t.Errorf("duplicates %v of a second run", duplicates)
		}
		return err
	})
}

// A token of a caller or an admin is no key: one secret must not be both.
func TestImportKeys_TokensOfCallersAndAdminsAreDuplicates(t *testing.T) {
	at := storetest.Migrated(t)
	old, fresh := authz.NewPepper("p1"), authz.NewPepper("p2")
	underOld := newWhole(t, storetest.Open(t, at, parsePeppers(t, old)), "globex")
	s := storetest.Open(t, at, parsePeppers(t, fresh, old))
	w := newWhole(t, s, "acme")
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		var keys []manage.ImportedKey
		for _, secret := range []authz.Secret{
			w.callerToken, authz.NewSecret("legacy"), w.adminToken, underOld.callerToken, underOld.adminToken,
		} {
			keys = append(keys, manage.ImportedKey{Key: newKey(c.Now(), w.organization.ID), Hash: secret.Hash()})
		}
		duplicates, err := c.ImportKeys(ctx, all(), keys)
		if !slices.Equal(duplicates, []int{0, 2, 3, 4}) {
			t.Errorf("duplicates %v", duplicates)
		}
		return err
	})
}

// A declared form is let through on every replica, and only so many can be.
func TestDeclareFormat_ReachesEveryReplica(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	f, err := authz.NewForeignFormat("legacy_", 32, "hex")
	if err != nil {
		t.Fatal(err)
	}
	text := "legacy_" + strings.Repeat("0f", 16)
	declare := func(f authz.ForeignFormat) (declared bool, err error) {
		_, failed := here.Write(t.Context(), true, func(ctx context.Context, c manage.Writer) error {
			declared, err = c.DeclareFormat(ctx, all(), f)
			return err
		})
		return declared, failed
	}
	if there.AcceptsForeign(text) {
		t.Error("accepted before it was declared")
	}
	if declared, err := declare(f); err != nil || !declared {
		t.Fatalf("declared anew: %t, %v", declared, err)
	}
	if declared, err := declare(f); err != nil || declared {
		t.Fatalf("declared anew a second time: %t, %v", declared, err)
	}
	if err := there.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !there.AcceptsForeign(text) || there.AcceptsForeign(text+"0") {
		t.Error("not accepted, or too much is")
	}
	if later := storetest.Open(t, at, peppers); !later.AcceptsForeign(text) {
		t.Error("a replica that starts later does not accept it")
	}
	if n := testing.AllocsPerRun(100, func() { there.AcceptsForeign(text) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	for i := 1; i < authz.MaxForeignFormats; i++ {
		f.Length = 32 + i
		if _, err := declare(f); err != nil {
			t.Fatal(err)
		}
	}
	f.Length = 100
	var full *authz.Error
	if _, err := declare(f); !errors.As(err, &full) || full.Kind != authz.KindConflict || full.Code != "too_many_formats" {
		t.Errorf("%v", err)
	}
	f.Length = 32
	if _, err := declare(f); err != nil {
		t.Errorf("one that is declared already: %v", err)
	}
}

// manyKeys puts n keys into an organization as quickly as Postgres can.
func manyKeys(t testing.TB, at string, organization authz.OrganizationID, n int) {
	t.Helper()
	storetest.Exec(t, at, `
		INSERT INTO api_keys (id, organization_id, name, environment, scopes, created_by, revision)
		SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, $1, 'key ' || i, 'live', '{tickets:read}', 'test', 1
		FROM generate_series(1, $2) i`, organization, n)
	storetest.Exec(t, at, `
		INSERT INTO key_secrets (digest, id, key_id, pepper_id, hint)
		SELECT sha256(id::text::bytea), id, id, (SELECT id FROM peppers LIMIT 1), 'hint' FROM api_keys WHERE organization_id = $1
		ON CONFLICT DO NOTHING`, organization)
	storetest.Exec(t, at, `ANALYZE`)
}

// An organization may have more keys than one synchronization reads.
func TestRevokeKeys_OfAVeryLargeOrganizationReachesEveryReplica(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	w := newWhole(t, here, "acme")
	const many = 20_000
	manyKeys(t, at, w.organization.ID, many)
	last := format(t).Generate(authz.EnvironmentLive) // of a key that lies behind all that is read
	manageWrite(t, here, func(ctx context.Context, c manage.Writer) error {
		k := newKey(c.Now(), w.organization.ID)
		return c.InsertKey(ctx, all(), &k, last)
	})
	if err := there.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if find(t, there, w.keySecret).Key == nil || find(t, there, last).Key == nil {
		t.Fatal("unknown")
	}
	manageWrite(t, here, func(ctx context.Context, c manage.Writer) error {
		n, err := c.RevokeKeys(ctx, all(), w.organization.ID)
		if n != many+2 {
			t.Errorf("%d keys revoked", n)
		}
		return err
	})
	if err := there.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if find(t, there, w.keySecret).Key.RevokedAt.IsZero() || find(t, there, last).Key.RevokedAt.IsZero() {
		t.Error("a revoked key is served")
	}
}

// The last page of very many keys costs what the first does.
func BenchmarkKeys_Page1AgainstPage500(b *testing.B) {
	at := storetest.Migrated(b)
	s := storetest.Open(b, at, storetest.Peppers(b, "p1"))
	w := newWhole(b, s, "acme")
	const size = 200
	manyKeys(b, at, w.organization.ID, 500*size)
	page := func(after string) (last string) {
		manageRead(b, s, func(ctx context.Context, r manage.Reader) error {
			keys, err := r.Keys(ctx, of(w.organization.ID), w.organization.ID, manage.KeyFilter{}, manage.Page{After: after, Limit: size})
			if len(keys) != size {
				b.Fatalf("%d keys", len(keys))
			}
			last = keys[len(keys)-1].ID.String()
			return err
		})
		return last
	}
	cursor499 := ""
	for range 499 {
		cursor499 = page(cursor499)
	}
	var took [2]time.Duration
	for b.Loop() {
		for i, after := range []string{"", cursor499} {
			started := time.Now()
			page(after)
			took[i] += time.Since(started)
		}
	}
	b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "page500/page1")
	b.ReportMetric(took[0].Seconds()*1000/float64(b.N), "ms/page1")
}

func BenchmarkImportKeys_TenThousand(b *testing.B) {
	s := storetest.Open(b, storetest.Migrated(b), storetest.Peppers(b, "p1"))
	w := newWhole(b, s, "acme")
	const total, batch = 10_000, 500
	for b.Loop() {
		for range total / batch {
			_, err := s.Change(b.Context(), func(ctx context.Context, c *store.Change) error {
				keys, events := make([]manage.ImportedKey, batch), make([]manage.AuditEvent, batch)
				head, err := c.AuditHead(ctx, w.organization.ID)
				for i := range keys {
					keys[i] = manage.ImportedKey{Key: newKey(c.Now(), w.organization.ID), Hash: format(b).Generate(authz.EnvironmentLive).Hash()}
					events[i] = event(c, w.organization.ID, head.Sequence+int64(i)+1)
					events[i].After = []byte(`{"name":"ci","scopes":["tickets:read"]}`)
				}
				_, imported := c.ImportKeys(ctx, all(), keys)
				return errors.Join(err, imported, c.AppendAudit(ctx, events))
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/10000keys")
}
