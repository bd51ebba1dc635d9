package store_test

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// What holds bad rows off the tables is not there: someone has taken it away.
func withoutConstraints(t *testing.T, at string) {
	t.Helper()
	storetest.Exec(t, at, `DO $$ DECLARE c record; BEGIN
		FOR c IN SELECT conrelid::regclass AS of, conname AS name FROM pg_constraint
			WHERE connamespace = current_schema()::regnamespace AND contype = 'c' AND coninhcount = 0 LOOP
			EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.of, c.name);
		END LOOP;
		FOR c IN SELECT attrelid::regclass AS of, attname AS name FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid
			WHERE t.relnamespace = current_schema()::regnamespace AND t.relkind = 'r' AND NOT t.relispartition AND a.attnum > 0 AND a.attnotnull
			AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisprimary AND a.attnum = ANY (i.indkey)) LOOP
			EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', c.of, c.name);
		END LOOP;
	END $$`)
}

// addCaller stores a caller and returns its token.
func addCaller(t *testing.T, s *store.Store, caller *authz.Caller) authz.Secret {
	t.Helper()
	token := authz.CallerTokens().Generate()
	write(t, s, func(ctx context.Context, c *store.Change) error { return c.AddCaller(ctx, caller, token) })
	return token
}

// A row that cannot be read denies its own key and nobody else's.
func TestStore_ABadRowDeniesItsOwnKeyAlone(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	withoutConstraints(t, at)
	s := storetest.Open(t, at, peppers)
	bad, good := add(t, s), add(t, s)
	for _, row := range [][3]string{
		{"scopes", "'{NOT A SCOPE}'", "'{a:b}'"},
		{"scopes", "'{NULL}'", "'{a:b}'"},
		{"scopes", "'{{a:b},{c:d}}'", "'{a:b}'"},
		{"scopes", "NULL", "'{a:b}'"},
		{"allowed_cidrs", "'{NULL}'", "'{}'"},
		{"allowed_cidrs", "'{{10.0.0.0/8},{10.0.0.0/8}}'", "'{}'"},
		{"allowed_cidrs", "NULL", "'{}'"},
		{"restricted", "NULL", "false"},
		{"environment", "NULL", "'live'"},
		{"metadata", "NULL", "'{}'"},
		{"rate_limit_burst", "5", "NULL"},
		{"expires_at", "'-infinity'", "NULL"},
		{"created_at", "'infinity'", "now()"},
		{"revoked_at", "'infinity'", "NULL"},
	} {
		column := row[0] + " = " + row[1]
		storetest.Exec(t, at, `UPDATE api_keys SET `+column+`, revision = (SELECT n FROM revision) WHERE id = $1`, bad.key.ID)
		fresh := storetest.Open(t, at, peppers) // the service starts
		var group sync.WaitGroup
		for range 20 { // both in one statement, some time
			group.Go(func() {
				if _, err := fresh.FindKey(t.Context(), authz.CallerID{}, bad.secret.Hash()); authz.KindOf(err) != authz.KindUnavailable {
					t.Errorf("%s: a bad row: %v", column, err)
				}
			})
			group.Go(func() {
				if got, err := fresh.FindKey(t.Context(), authz.CallerID{}, good.secret.Hash()); err != nil || got.Key == nil {
					t.Errorf("%s: a good row beside it is unknown: %v", column, err)
				}
			})
		}
		group.Wait()
		storetest.Exec(t, at, `UPDATE api_keys SET `+row[0]+` = `+row[2]+` WHERE id = $1`, bad.key.ID)
		if got := find(t, fresh, bad.secret); got.Key == nil {
			t.Errorf("%s: a repaired row is still not served", column)
		}
	}
}

// A digest that is none, of a key or a token, is nobody's: replicas go on.
func TestStore_ADigestThatIsNoneStopsNobody(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	withoutConstraints(t, at)
	s := storetest.Open(t, at, peppers)
	bad, good := add(t, s), add(t, s)
	addCaller(t, s, &authz.Caller{ID: authz.NewCallerID(time.Now()), Name: "tickets"})
	storetest.Exec(t, at, `UPDATE key_secrets SET digest = '\x01' WHERE key_id = $1`, bad.key.ID)
	for _, sql := range []string{
		`INSERT INTO retired_digests (digest, revision) VALUES ('\x02', 0)`,
		`UPDATE caller_tokens SET digest = '\x03'`,
		`UPDATE callers SET revision = (SELECT n + 1 FROM revision)`,
		`UPDATE api_keys SET revision = (SELECT n + 1 FROM revision)`,
		`UPDATE retired_digests SET revision = (SELECT n + 1 FROM revision)`,
		`UPDATE revision SET n = n + 1`,
	} {
		storetest.Exec(t, at, sql)
	}
	for name, replica := range map[string]*store.Store{"one that runs": s, "one that starts": storetest.Open(t, at, peppers)} {
		if err := replica.Synchronize(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if find(t, replica, good.secret).Key == nil {
			t.Errorf("%s: another's key is unknown", name)
		}
		if find(t, replica, bad.secret).Key != nil {
			t.Errorf("%s: a key is found by a digest that is none", name)
		}
	}
}

// A caller whose row cannot be read is refused, and nobody else.
func TestStore_ABadRowOfACallerRefusesItAlone(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	withoutConstraints(t, at)
	s := storetest.Open(t, at, peppers)
	id := authz.NewCallerID(time.Now())
	bad := addCaller(t, s, &authz.Caller{ID: id, Name: "bad", Permissions: []authz.Permission{"decisions:explain"}})
	good := addCaller(t, s, &authz.Caller{ID: authz.NewCallerID(time.Now()), Name: "good"})
	values := map[string]string{
		"permissions": `'{NULL}'`, "environments": `'{NULL}'`, "name": `NULL`, "created_at": `NULL`, "revision": `NULL`, "revoked_at": `'infinity'`,
	}
	for _, column := range slices.Sorted(maps.Keys(values)) {
		storetest.Exec(t, at, `UPDATE callers SET `+column+` = `+values[column]+` WHERE id = $1`, id)
		fresh := storetest.Open(t, at, peppers)
		if caller, err := fresh.FindCaller(t.Context(), good.Hash()); err != nil || caller == nil || caller.Disabled {
			t.Errorf("%s: another caller: %+v, %v", column, caller, err)
		}
		caller, err := fresh.FindCaller(t.Context(), bad.Hash())
		if err != nil || column != "name" && column != "revision" && caller != nil && !caller.Disabled && caller.RevokedAt.IsZero() {
			t.Errorf("%s: a bad row is served: %+v, %v", column, caller, err)
		}
	}
}
