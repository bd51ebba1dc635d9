package store_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store/storetest"
)

// used is a database with two organizations, and a year's usage of the first one's keys.
type used struct {
	db           *sqlx.DB
	since, until time.Time
}

func (u *used) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := u.db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

func on(day string) time.Time {
	at, err := time.Parse(time.DateOnly, day)
	if err != nil {
		panic(err)
	}
	return at
}

func shapeOf(n int) string { return fmt.Sprintf("00000000-0000-0000-0000-0000000000a%d", n) }

const nobodysID = "00000000-0000-0000-0000-000000000000"

func (u *used) day(t *testing.T, w *whole, day, shape, code string, n int) {
	t.Helper()
	u.exec(t, `INSERT INTO usage_days VALUES ($1, $2, $3, $4, $4, $5, $6, $7)`, day, w.organization.ID, w.key.ID, nobodysID, shape, code, n)
}

func (u *used) network(t *testing.T, w *whole, day, scopes, network string, allowed bool) {
	t.Helper()
	u.exec(t, `INSERT INTO usage_networks VALUES ($1, $2, $3, $4, $5, $6, 1)`, day, w.organization.ID, w.key.ID, scopes, network, allowed)
}

// Everything that is recorded of a key in the window is in its evidence, and nothing else.
func TestEvidence_TellsExactlyWhatIsRecorded(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing() // it forgets what is as old as this
	acme, globex := newWhole(t, s, "acme"), newWhole(t, s, "globex")
	u := &used{db: sqlx.MustConnect("postgres", at), since: on("2026-01-30"), until: on("2026-04-02").Add(15 * time.Hour)}
	defer func() { _ = u.db.Close() }()
	u.exec(t, `UPDATE api_keys SET created_at = '2025-12-01Z', expires_at = '2026-06-01Z'`)
	u.exec(t, `UPDATE key_secrets SET created_at = '2025-12-01Z'`)
	u.exec(t, `INSERT INTO key_secrets (digest, id, key_id, pepper_id, hint, created_at, expires_at)
		VALUES (decode(repeat('ab', 32), 'hex'), gen_random_uuid(), $1, 'p1', 'newest', '2026-03-01Z', '2026-05-01Z')`, acme.key.ID)
	u.exec(t, `INSERT INTO secret_uses (secret_id, key_id, used_at, first_used_at) SELECT id, key_id, '2026-03-31 10:00Z', '2025-12-02 10:00Z' FROM key_secrets WHERE hint <> 'newest'`)
	u.exec(t, `INSERT INTO usage_days_done SELECT d, now() FROM generate_series('2025-11-01'::date, '2026-03-31'::date, '1 day') d`)
	for i, scopes := range []string{"{tickets:read}", "{tickets:read,tickets:write}", "{customers:read}", "{}"} {
		u.exec(t, `INSERT INTO usage_shapes SELECT $1, '', 'GET', '', '', false, $2, '', '', '', false, '', 'given', 0, $3, false, $4, '2026-04-01'`,
			shapeOf(i), i == 3, i == 2, scopes)
	}
	u.day(t, acme, "2026-01-29", shapeOf(0), "allowed", 1000) // before the window
	u.day(t, acme, "2026-01-30", shapeOf(0), "allowed", 1)
	u.day(t, acme, "2026-01-31", shapeOf(0), "allowed", 2)
	u.day(t, acme, "2026-02-28", shapeOf(1), "allowed", 4)
	u.day(t, acme, "2026-03-31", shapeOf(1), "allowed", 8)
	u.day(t, acme, "2026-03-31", shapeOf(2), "allowed", 16)
	u.day(t, acme, "2026-03-30", shapeOf(0), "rate_limited", 32)
	u.day(t, acme, "2026-03-29", nobodysID, "key_expired", 64)
	u.day(t, acme, "2026-03-28", nobodysID, "key_revoked", 128)
	u.day(t, acme, "2026-03-27", shapeOf(0), "environment_mismatch", 256)
	u.day(t, acme, "2026-03-26", shapeOf(0), "unavailable", 512)
	u.day(t, globex, "2026-03-26", shapeOf(0), "allowed", 7)
	// Of a day that is not added up yet.
	u.exec(t, `INSERT INTO usage_hours VALUES ('2026-04-02 13:00Z', $1, $2, $3, $3, $4, 'allowed', 1024)`, acme.organization.ID, acme.key.ID, nobodysID, shapeOf(0))
	u.network(t, acme, "2026-01-20", "tickets:read", "10.9.9.0/24", true) // before the window
	u.network(t, acme, "2026-02-01", "tickets:read", "10.1.1.0/24", true)
	u.network(t, acme, "2026-03-05", "tickets:write", "10.1.1.0/24", true)
	u.network(t, acme, "2026-03-05", "tickets:read tickets:write", "10.1.2.0/24", true)
	u.network(t, acme, "2026-03-06", "customers:read", "10.1.2.0/24", true)
	u.network(t, acme, "2026-03-06", "tickets:read", "::/0", true)
	u.network(t, acme, "2026-03-06", "tickets:read", "::/128", true)
	u.network(t, acme, "2026-03-06", "tickets:read", "10.1.3.0/24", false)
	u.exec(t, `INSERT INTO scope_uses (key_id, scope, first_used_at, used_at) VALUES
		($1, 'tickets:read', '2025-12-02Z', '2026-04-02 13:00Z'), ($1, 'tickets:write', '2026-02-28Z', '2026-03-31 08:00Z')`, acme.key.ID)

	f := manage.EvidenceFilter{Since: u.since.Add(5 * time.Hour), Until: u.until}
	var got authz.Evidence
	n, counted := 0, int64(0)
	read := func(tenant manage.Tenant, f manage.EvidenceFilter) {
		n, got = 0, authz.Evidence{}
		manageRead(t, s, func(ctx context.Context, r manage.Reader) (err error) {
			if counted, err = r.EvidenceKeys(ctx, tenant, f); err != nil {
				return err
			}
			return r.Evidence(ctx, tenant, f, func(e *authz.Evidence) error {
				n++
				got = *e
				got.Scopes = append([]authz.ScopeEvidence(nil), e.Scopes...)
				return nil
			})
		})
		if int64(n) != counted {
			t.Errorf("%d keys of %d", n, counted)
		}
	}
	read(of(acme.organization.ID), f)
	want := authz.Evidence{
		Organization: acme.organization.ID, OrganizationName: "acme", Key: acme.key.ID, KeyName: acme.key.Name, Hint: "newest", Environment: acme.key.Environment,
		State: authz.KeyActive, Version: acme.key.Version, CreatedAt: on("2025-12-01"), ExpiresAt: on("2026-05-01"), RotatedAt: on("2026-03-01"),
		FirstUsedAt: on("2025-12-02").Add(10 * time.Hour), LastUsedAt: on("2026-03-31").Add(10 * time.Hour),
		Window:   authz.Window{Since: u.since, Until: u.until, RecordedSince: on("2025-11-01")},
		DaysUsed: 5, Allowed: authz.Counted{Requests: 1055, Days: 5, LastOn: on("2026-04-02")},
		Denied:  authz.Counted{Requests: 480, Days: 4, LastOn: on("2026-03-30")},
		Limited: authz.Counted{Requests: 32, Days: 1, LastOn: on("2026-03-30")}, Expired: authz.Counted{Requests: 64, Days: 1, LastOn: on("2026-03-29")},
		Revoked: authz.Counted{Requests: 128, Days: 1, LastOn: on("2026-03-28")}, Mismatched: authz.Counted{Requests: 256, Days: 1, LastOn: on("2026-03-27")},
		Browser: authz.Counted{Requests: 16, Days: 1, LastOn: on("2026-03-31")}, Networks: 3, NetworksCapped: true, NetworksSince: on("2026-02-01"),
		Scopes: []authz.ScopeEvidence{
			{Scope: "customers:read", Requests: 16, DaysUsed: 1, Networks: 1, NetworkSince: on("2026-03-05")},
			{
				Scope: "tickets:read", Granted: true, Requests: 1039, DaysUsed: 5, FirstUsedAt: on("2025-12-02"), LastUsedAt: on("2026-04-02").Add(13 * time.Hour),
				Networks: 4, NetworkSince: on("2026-02-01"), // two, and at least two of which only ::/0 was kept
			},
			{
				Scope: "tickets:write", Granted: true, Requests: 12, DaysUsed: 2, FirstUsedAt: on("2026-02-28"), LastUsedAt: on("2026-03-31").Add(8 * time.Hour),
				Networks: 2, NetworkSince: on("2026-02-01"),
			},
		},
	}
	if n != 1 || !reflect.DeepEqual(got, want) {
		t.Errorf("%d keys, the last\n%+v\nwanted\n%+v", n, got, want)
	}

	// Within the tenant, and what is asked for.
	for name, tt := range map[string]struct {
		tenant manage.Tenant
		filter manage.EvidenceFilter
		want   int
	}{
		"everyone":                      {all(), f, 2},
		"one organization of all":       {all(), manage.EvidenceFilter{Organization: acme.organization.ID, Since: f.Since, Until: f.Until}, 1},
		"a foreign organization":        {of(acme.organization.ID), manage.EvidenceFilter{Organization: globex.organization.ID, Since: f.Since, Until: f.Until}, 0},
		"a foreign key":                 {of(acme.organization.ID), manage.EvidenceFilter{Key: globex.key.ID, Since: f.Since, Until: f.Until}, 0},
		"nobody":                        {manage.Tenant{}, f, 0},
		"before there was a key at all": {all(), manage.EvidenceFilter{Since: on("2025-10-01"), Until: on("2025-11-15")}, 0},
	} {
		if read(tt.tenant, tt.filter); n != tt.want {
			t.Errorf("%s: %d keys, not %d", name, n, tt.want)
		}
	}
	if read(all(), manage.EvidenceFilter{Key: acme.key.ID, Since: f.Since, Until: f.Until}); !reflect.DeepEqual(got, want) {
		t.Errorf("alone it is told\n%+v", got)
	}

	// What became of requests without a shape is not known: then scopes that were used in the
	// window count as used on all such days, and others as unused.
	u.day(t, acme, "2026-03-02", shapeOf(3), "allowed", 1)
	u.day(t, acme, "2026-03-03", shapeOf(3), "allowed", 1)
	u.exec(t, `UPDATE api_keys SET scopes = '{customers:write,tickets:read,tickets:write}'`)
	read(of(acme.organization.ID), f)
	told := map[authz.Scope]int{}
	for _, scope := range got.Scopes {
		told[scope.Scope] = scope.DaysUsed
	}
	if !reflect.DeepEqual(told, map[authz.Scope]int{"customers:read": 1, "customers:write": 0, "tickets:read": 7, "tickets:write": 4}) {
		t.Errorf("days used are %v", told)
	}
}

func TestEvidence_StatesAreAsOfTheEndOfTheWindow(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing() // it forgets what is as old as this
	w := newWhole(t, s, "acme")
	u := &used{db: sqlx.MustConnect("postgres", at)}
	defer func() { _ = u.db.Close() }()
	u.exec(t, `UPDATE api_keys SET created_at = '2025-12-01Z', expires_at = NULL`)
	u.exec(t, `UPDATE key_secrets SET created_at = '2025-12-01Z'`)
	for _, tt := range []struct {
		change string
		want   authz.KeyState
	}{
		{`UPDATE organizations SET suspended_at = now()`, authz.KeySuspended},
		{`UPDATE api_keys SET disabled_at = now()`, authz.KeyDisabled},
		{`UPDATE key_secrets SET expires_at = '2026-01-15Z'`, authz.KeyExpired},
		{`UPDATE api_keys SET revoked_at = '2026-01-20Z'`, authz.KeyRevoked},
		{`UPDATE api_keys SET revoked_at = '2026-02-20Z'`, authz.KeyExpired},
	} {
		u.exec(t, tt.change)
		manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
			return r.Evidence(ctx, of(w.organization.ID), manage.EvidenceFilter{Since: on("2026-01-01"), Until: on("2026-02-01")}, func(e *authz.Evidence) error {
				if e.State != tt.want || !e.Window.RecordedSince.IsZero() || e.CoveredDays() != 0 {
					t.Errorf("after %s it is %s, covers %d days", tt.change, e.State, e.CoveredDays())
				}
				return nil
			})
		})
	}
}

// More keys than are in memory at once come in their order, each with its own, used or not.
// That a key was not used while it could not be is no evidence.
func TestEvidence_AKeyThatCouldNotBeUsedIsToldSo(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	usableSince := func() (since time.Time) {
		t.Helper()
		manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
			f := manage.EvidenceFilter{Since: time.Now().AddDate(0, 0, -7), Until: time.Now().Add(time.Hour)}
			return r.Evidence(ctx, all(), f, func(e *authz.Evidence) error {
				since = e.UsableSince
				return nil
			})
		})
		return since
	}
	if at := usableSince(); !at.IsZero() {
		t.Errorf("of a key that always could be used: %v", at)
	}
	last := time.Time{}
	later := func(what string, change func(context.Context, manage.Writer, *manage.Key, *manage.Organization)) {
		t.Helper()
		manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
			k, err := c.Key(ctx, all(), authz.OrganizationID{}, w.key.ID)
			if err != nil {
				return err
			}
			o, err := c.Organization(ctx, all(), k.OrganizationID)
			if err != nil {
				return err
			}
			change(ctx, c, k, o)
			return errors.Join(c.UpdateKey(ctx, all(), k), c.UpdateOrganization(ctx, all(), o))
		})
		at := usableSince()
		if strings.HasPrefix(what, "again") != at.After(last) {
			t.Errorf("%s: usable since %v, before since %v", what, at, last)
		}
		last = at
	}
	later("disabled", func(_ context.Context, c manage.Writer, k *manage.Key, _ *manage.Organization) {
		k.DisabledAt = c.Now()
	})
	later("again enabled", func(_ context.Context, _ manage.Writer, k *manage.Key, _ *manage.Organization) {
		k.DisabledAt = time.Time{}
	})
	later("expired", func(_ context.Context, c manage.Writer, k *manage.Key, _ *manage.Organization) {
		k.ExpiresAt = c.Now().Add(-time.Hour)
	})
	later("again with a life", func(_ context.Context, c manage.Writer, k *manage.Key, _ *manage.Organization) {
		k.ExpiresAt = c.Now().Add(time.Hour)
	})
	later("suspended", func(_ context.Context, c manage.Writer, _ *manage.Key, o *manage.Organization) {
		o.SuspendedAt = c.Now()
	})
	later("again served", func(_ context.Context, _ manage.Writer, _ *manage.Key, o *manage.Organization) {
		o.SuspendedAt = time.Time{}
	})
	later("without a secret", func(ctx context.Context, c manage.Writer, k *manage.Key, _ *manage.Organization) {
		for i := range k.Secrets {
			k.Secrets[i].RevokedAt = c.Now()
			if err := c.EndSecret(ctx, all(), k, &k.Secrets[i]); err != nil {
				t.Fatal(err)
			}
		}
	})
	insert := func(ctx context.Context, c manage.Writer, k *manage.Key, _ *manage.Organization) {
		fresh := manage.KeySecret{ID: authz.NewSecretID(c.Now()), CreatedAt: c.Now(), Hint: "sk_live_abcd…wxyz"}
		if err := c.InsertSecret(ctx, all(), k, &fresh, authz.NewSecret("sk_live_"+fresh.ID.String())); err != nil {
			t.Fatal(err)
		}
	}
	later("again with a secret", insert)
	later("one more secret", insert)
	later("renamed", func(_ context.Context, _ manage.Writer, k *manage.Key, _ *manage.Organization) { k.Name = "other" })
}

func TestEvidence_ManyKeysAreEachToldTheirOwn(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing() // it forgets what is as old as this
	u := &used{db: sqlx.MustConnect("postgres", at)}
	defer func() { _ = u.db.Close() }()
	const keys = 25_000
	for _, query := range []string{
		`INSERT INTO organizations (id, name, plan, revision) VALUES ('` + shapeOf(9) + `', 'many', 'standard', 1)`,
		`INSERT INTO api_keys (id, organization_id, name, environment, scopes, created_at, created_by, revision)
			SELECT md5(n::text)::uuid, '` + shapeOf(9) + `', n::text, 'live', '{tickets:read}', '2025-12-01Z', 'test', 1 FROM generate_series(1, ` + fmt.Sprint(keys) + `) n`,
		`INSERT INTO usage_days_done VALUES ('2025-11-01', now()), ('2026-01-10', now()), ('2026-02-10', now())`,
		`INSERT INTO usage_shapes SELECT '` + shapeOf(0) + `', '', 'GET', '', '', false, false, '', '', '', false, '', 'given', 0, false, false, '{tickets:read}', '2026-04-01'`,
		// Of two of three, and of keys that are gone.
		`INSERT INTO usage_days SELECT d, '` + shapeOf(9) + `', md5(n::text)::uuid, '` + nobodysID + `', '` + nobodysID + `', '` + shapeOf(0) + `', 'allowed', n
			FROM generate_series(1, ` + fmt.Sprint(keys+500) + `) n, unnest(ARRAY['2026-01-10','2026-02-10']::date[]) d WHERE n % 3 > 0`,
	} {
		u.exec(t, query)
	}
	seen := map[string]bool{}
	manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
		last := authz.KeyID{}
		return r.Evidence(ctx, all(), manage.EvidenceFilter{Since: on("2026-01-01"), Until: on("2026-03-01")}, func(e *authz.Evidence) error {
			var n int64
			if _, err := fmt.Sscan(e.KeyName, &n); err != nil {
				t.Fatal(err)
			}
			want := authz.Counted{}
			if n%3 > 0 {
				want = authz.Counted{Requests: 2 * n, Days: 2, LastOn: on("2026-02-10")}
			}
			if e.Allowed != want || len(e.Scopes) != 1 || e.Scopes[0].DaysUsed != want.Days || seen[e.KeyName] || e.Key.Compare(last) <= 0 {
				t.Errorf("key %d: %+v", n, e)
			}
			seen[e.KeyName], last = true, e.Key
			return nil
		})
	})
	if len(seen) != keys {
		t.Errorf("%d keys of %d", len(seen), keys)
	}
}

func TestEvidence_AWindowHasBounds(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	for _, f := range []manage.EvidenceFilter{
		{Since: on("2026-01-02"), Until: on("2026-01-01")},
		{Since: on("2020-01-02"), Until: on("2026-01-01")},
	} {
		manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
			if err := r.Evidence(ctx, all(), f, nil); err == nil || !strings.Contains(err.Error(), "window") {
				t.Errorf("it says %v", err)
			}
			return nil
		})
	}
}
