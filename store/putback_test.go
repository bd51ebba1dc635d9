package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// copyOf takes a copy of everything in a schema; put puts it back in place of what is
// there by then, as a restore does, but without ending connections.
func copyOf(t *testing.T, at string) (put func()) {
	t.Helper()
	db, err := sqlx.ConnectContext(t.Context(), "postgres", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1)
	do := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	var tables []string
	err = db.SelectContext(t.Context(), &tables, `SELECT table_name FROM information_schema.tables
		WHERE table_schema = current_schema() AND table_name NOT LIKE 'goose%'`)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		do(`CREATE TEMP TABLE copy_` + table + ` AS TABLE ` + table)
	}
	return func() {
		t.Helper()
		do(`BEGIN`)
		do(`SET LOCAL session_replication_role = replica`) // no foreign keys, no triggers
		for _, table := range tables {
			do(`DELETE FROM ` + table)
			do(`INSERT INTO ` + table + ` SELECT * FROM copy_` + table)
		}
		do(`COMMIT`)
	}
}

// What is taken away after the copy was made, and must stay so.
func TestSynchronize_ADatabaseThatIsPutBackUnlearnsNothing(t *testing.T) {
	// The database is behind what the replica has applied, or has gone on beyond it.
	for name, later := range map[string]int{"behind": 0, "gone on": 40} {
		t.Run(name, func(t *testing.T) {
			at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
			s := storetest.Open(t, at, peppers)
			revoked, narrowed, unseen, halved, of, untouched := add(t, s), add(t, s), add(t, s), add(t, s), add(t, s), add(t, s)
			caller, ended := newCaller(t, s), newCaller(t, s)
			synchronize(t, s)
			for _, k := range []stored{revoked, narrowed, halved, of, untouched} {
				find(t, s, k.secret)
			}
			put := copyOf(t, at)

			var late stored
			write(t, s, func(ctx context.Context, c *store.Change) error {
				return errors.Join(
					c.RevokeKey(ctx, revoked.key.Organization.ID, revoked.key.ID),
					c.DisableKey(ctx, narrowed.key.Organization.ID, narrowed.key.ID, true),
					c.DisableKey(ctx, unseen.key.Organization.ID, unseen.key.ID, true),
					c.SuspendOrganization(ctx, of.key.Organization.ID, true),
					c.RevokeCaller(ctx, caller.id),
				)
			})
			endCallerToken(t, s, ended.id, 0)
			storetest.Exec(t, at, `UPDATE key_secrets SET revoked_at = now() WHERE key_id = $1`, halved.key.ID)
			storetest.Exec(t, at, `WITH r AS (UPDATE revision SET n = n + 1 RETURNING n)
				UPDATE api_keys SET revision = r.n FROM r WHERE id = $1`, halved.key.ID)
			late = add(t, s)
			synchronize(t, s)
			if !find(t, s, narrowed.secret).Key.Disabled || find(t, s, late.secret).Key == nil {
				t.Fatal("the changes are not applied")
			}
			s.StopFollowing()

			put()
			for range later {
				write(t, s, func(context.Context, *store.Change) error { return nil })
			}
			for range 2 {
				synchronize(t, s)
				if k := find(t, s, revoked.secret).Key; k == nil || k.RevokedAt.IsZero() {
					t.Errorf("a revoked key comes back: %+v", k)
				}
				if k := find(t, s, narrowed.secret).Key; k == nil || !k.Disabled {
					t.Errorf("what was taken from a key in memory comes back: %+v", k)
				}
				if found, err := s.FindKey(t.Context(), authz.CallerID{}, unseen.secret.Hash()); authz.KindOf(err) != authz.KindUnavailable {
					t.Errorf("a key that has changed in a way that nobody knows any more is served: %+v, %v", found, err)
				}
				if f := find(t, s, of.secret); !f.Key.Organization.Suspended {
					t.Errorf("a suspended organization comes back: %+v", f.Key.Organization)
				}
				if f := find(t, s, halved.secret); f.Secret.RevokedAt.IsZero() {
					t.Errorf("a revoked secret comes back: %+v", f.Secret)
				}
				if c, err := s.FindCaller(t.Context(), caller.token.Hash()); err != nil || c.RevokedAt.IsZero() {
					t.Errorf("a revoked caller comes back: %+v, %v", c, err)
				}
				if recognized(t, s, ended) {
					t.Error("a token of a caller that had ended comes back")
				}
				if f := find(t, s, late.secret); f.Key != nil {
					t.Errorf("a key that the database does not know is served: %+v", f.Key)
				}
				if f := find(t, s, untouched.secret); f.Key == nil || f.Degraded {
					t.Errorf("what has not changed is not served: %+v", f)
				}
			}
			if h := s.Health(); h.PutBack != 1 || h.Degraded {
				t.Errorf("health is %+v", h)
			}

			// What changes from now on applies, and a change of a key or a caller is the last
			// word on everything but revocations of it, and on no other.
			fresh, another := add(t, s), newCaller(t, s) // of which all callers are read again
			for range 2 {
				synchronize(t, s)
				if c, err := s.FindCaller(t.Context(), caller.token.Hash()); err != nil || c.RevokedAt.IsZero() {
					t.Errorf("a revoked caller comes back when another is made: %+v, %v", c, err)
				}
				if recognized(t, s, ended) {
					t.Error("a token of a caller that had ended comes back when another is made")
				}
				if !recognized(t, s, another) {
					t.Error("a new caller is not recognized")
				}
				another = newCaller(t, s)
			}
			endCallerToken(t, s, ended.id, time.Hour)
			write(t, s, func(ctx context.Context, c *store.Change) error {
				return errors.Join(
					c.DisableKey(ctx, unseen.key.Organization.ID, unseen.key.ID, false),
					c.DisableKey(ctx, revoked.key.Organization.ID, revoked.key.ID, false),
					c.DisableKey(ctx, halved.key.Organization.ID, halved.key.ID, false),
					c.SuspendOrganization(ctx, of.key.Organization.ID, false),
					c.RevokeKey(ctx, untouched.key.Organization.ID, untouched.key.ID),
				)
			})
			synchronize(t, s)
			for what, ok := range map[string]bool{
				"a caller's token may end later again": recognized(t, s, ended),
				"a new key is found":                   find(t, s, fresh.secret).Key != nil,
				"a changed key is served again":        !find(t, s, unseen.secret).Key.Disabled,
				"a changed organization is again":      !find(t, s, of.secret).Key.Organization.Suspended,
				"a revocation applies":                 !find(t, s, untouched.secret).Key.RevokedAt.IsZero(),
				"a revoked key stays so":               !find(t, s, revoked.secret).Key.RevokedAt.IsZero(),
				"a revoked secret of a key stays so":   !find(t, s, halved.secret).Secret.RevokedAt.IsZero(),
				"a replica that begins now sees these": find(t, storetest.Open(t, at, peppers), fresh.secret).Key != nil,
			} {
				if !ok {
					t.Errorf("not true: %s", what)
				}
			}
		})
	}
}

// The number of a revision may have meant something else before the database was put
// back: a replica that has not noticed yet acknowledges nothing.
func TestEffective_AReplicaOfAnotherPastAcknowledgesNothing(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	k := add(t, here)
	synchronize(t, here)
	synchronize(t, there)
	put := copyOf(t, at)
	for range 10 {
		write(t, here, func(context.Context, *store.Change) error { return nil })
	}
	here.StopFollowing()
	there.StopFollowing()
	synchronize(t, here)
	synchronize(t, there)
	beats := copyTable(t, at, "replicas") // of replicas that are some revisions ahead
	put()
	beats()
	n := write(t, here, func(ctx context.Context, c *store.Change) error {
		return c.RevokeKey(ctx, k.key.Organization.ID, k.key.ID)
	})
	e, err := here.Effective(t.Context(), n)
	if err != nil || e.Acknowledged != 0 || len(e.Silent) != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	synchronize(t, here)
	synchronize(t, there)
	if e, err = here.Effective(t.Context(), n); err != nil || e.Acknowledged != 2 {
		t.Errorf("when they have noticed: %+v, %v", e, err)
	}
}

func copyTable(t *testing.T, at, table string) (put func()) {
	t.Helper()
	storetest.Exec(t, at, `CREATE TABLE copy_of_`+table+` AS TABLE `+table)
	return func() {
		storetest.Exec(t, at, `DELETE FROM `+table)
		storetest.Exec(t, at, `INSERT INTO `+table+` SELECT * FROM copy_of_`+table)
	}
}

type storedCaller struct {
	id    authz.CallerID
	token authz.Secret
}

func newCaller(t *testing.T, s *store.Store) storedCaller {
	t.Helper()
	out := storedCaller{authz.NewCallerID(time.Now()), authz.CallerTokens().Generate()}
	write(t, s, func(ctx context.Context, c *store.Change) error {
		return c.AddCaller(ctx, &authz.Caller{
			ID: out.id, Name: "tickets " + out.id.String(), Environments: []authz.Environment{authz.EnvironmentLive},
			Permissions: []authz.Permission{authz.PermissionCheck},
		}, out.token)
	})
	return out
}

// endCallerToken has a caller's one token end so long from now.
func endCallerToken(t *testing.T, s *store.Store, id authz.CallerID, within time.Duration) {
	t.Helper()
	manageWrite(t, s, func(ctx context.Context, w manage.Writer) error {
		c, err := w.Caller(ctx, all(), id)
		if err != nil {
			return err
		}
		c.Tokens[0].ExpiresAt = w.Now().Add(within)
		return w.EndCallerToken(ctx, all(), c, &c.Tokens[0])
	})
}

// recognized tells whether a caller's token is accepted.
func recognized(t *testing.T, s *store.Store, caller storedCaller) bool {
	t.Helper()
	_, err := authz.NewCallers(s, s.Clock()).Authenticate(t.Context(), caller.token.Reveal(), authz.PermissionCheck)
	if err != nil && authz.KindOf(err) == authz.KindUnavailable {
		t.Fatal(err)
	}
	return err == nil
}

func synchronize(t *testing.T, s *store.Store) {
	t.Helper()
	if err := s.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A key is revoked after the restore and before a replica has noticed it. The revocation's
// number is below that of a harmless change which the replica knows of another past.
func TestSynchronize_WhatIsRevokedBeforeARestoreIsNoticedStaysSo(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	s := storetest.Open(t, at, peppers)
	revoked, suspended := add(t, s), add(t, s)
	caller := newCaller(t, s)
	synchronize(t, s)
	put := copyOf(t, at)
	for range 5 {
		write(t, s, func(context.Context, *store.Change) error { return nil })
	}
	write(t, s, func(ctx context.Context, c *store.Change) error {
		return errors.Join(
			c.DisableKey(ctx, revoked.key.Organization.ID, revoked.key.ID, false),
			c.DisableKey(ctx, suspended.key.Organization.ID, suspended.key.ID, false),
			c.SuspendOrganization(ctx, suspended.key.Organization.ID, false),
		)
	})
	synchronize(t, s)
	find(t, s, revoked.secret)
	find(t, s, suspended.secret)
	s.StopFollowing()
	put()
	other := storetest.Open(t, at, peppers)
	n := write(t, other, func(ctx context.Context, c *store.Change) error {
		return errors.Join(
			c.RevokeKey(ctx, revoked.key.Organization.ID, revoked.key.ID), c.RevokeCaller(ctx, caller.id),
			c.SuspendOrganization(ctx, suspended.key.Organization.ID, true),
		)
	})
	synchronize(t, s)
	synchronize(t, s)
	if f := find(t, s, revoked.secret); f.Key.RevokedAt.IsZero() {
		t.Errorf("a key that was revoked at %d is served: %+v", n, f.Key)
	}
	if f := find(t, s, suspended.secret); !f.Key.Organization.Suspended {
		t.Errorf("an organization that was suspended at %d is served: %+v", n, f.Key.Organization)
	}
	if c, err := s.FindCaller(t.Context(), caller.token.Hash()); err != nil || c.RevokedAt.IsZero() {
		t.Errorf("a caller that was revoked at %d is recognized: %+v, %v", n, c, err)
	}
}

// A copy from before a pepper was changed has other digests of the same secrets and tokens.
func TestSynchronize_WhatIsTakenAwayStaysSoInACopyUnderAnOldPepper(t *testing.T) {
	at := storetest.Migrated(t)
	old, fresh := authz.NewPepper("p1"), authz.NewPepper("p2")
	first, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: parsePeppers(t, old)})
	if err != nil {
		t.Fatal(err)
	}
	k, ended := add(t, first), newCaller(t, first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	both := parsePeppers(t, fresh, old)
	s := storetest.Open(t, at, both)
	synchronize(t, s)
	put := copyOf(t, at)
	moved(t, at, both, func() {
		find(t, s, k.secret)
		recognized(t, s, ended)
	})
	storetest.Exec(t, at, `UPDATE key_secrets SET revoked_at = now() WHERE key_id = $1`, k.key.ID)
	storetest.Exec(t, at, `WITH r AS (UPDATE revision SET n = n + 1 RETURNING n)
		UPDATE api_keys SET revision = r.n FROM r WHERE id = $1`, k.key.ID)
	endCallerToken(t, s, ended.id, 0)
	synchronize(t, s)
	s.StopFollowing()
	put()
	// Of which the key's record is newer than any that the replica knows of.
	write(t, s, func(ctx context.Context, c *store.Change) error {
		return c.DisableKey(ctx, k.key.Organization.ID, k.key.ID, false)
	})
	for range 2 {
		synchronize(t, s)
		if f := find(t, s, k.secret); f.Secret == nil || f.Secret.RevokedAt.IsZero() {
			t.Errorf("a revoked secret comes back: %+v", f.Secret)
		}
		if recognized(t, s, ended) {
			t.Error("a token of a caller that had ended comes back")
		}
	}
}

// A copy knows nothing of the replicas that serve. The first receipt names who has not been
// heard of, and does not say that all is done because nobody is known.
func TestEffective_TheFirstReceiptAfterARestoreCountsEveryReplica(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	first, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: peppers})
	if err != nil {
		t.Fatal(err)
	}
	k := add(t, first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	put := copyOf(t, at)
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	synchronize(t, there)
	synchronize(t, here) // now it has seen the other
	write(t, here, func(context.Context, *store.Change) error { return nil })
	synchronize(t, here)
	there.StopFollowing()
	put()
	if n := storetest.Count(t, at, `SELECT count(*) FROM replicas WHERE id = $1`, there.ReplicaID()); n != 0 {
		t.Fatal("the copy knows the replica: the test tests nothing")
	}
	n := write(t, here, func(ctx context.Context, c *store.Change) error {
		return c.RevokeKey(ctx, k.key.Organization.ID, k.key.ID)
	})
	// The very first, which does not know yet that the table lacks them.
	e, err := here.Effective(t.Context(), n)
	if err != nil || e.Replicas != 2 || e.Within < time.Second {
		t.Fatalf("%+v, %v", e, err)
	}
	e = effective(t, here, n, func(e manage.Effective) bool { return e.Acknowledged == 1 })
	if e.Replicas != 2 || len(e.Silent) != 1 || e.Silent[0].Replica != there.ReplicaID() || e.Within < time.Second ||
		time.Until(e.Silent[0].ServesUntil) < store.DefaultStaleMax-time.Minute {
		t.Errorf("%+v", e)
	}
	synchronize(t, there)
	effective(t, here, n, func(e manage.Effective) bool { return e.Acknowledged == 2 && len(e.Silent) == 0 })
}

// While nobody can write, replicas serve on without a heartbeat. When somebody can, a receipt
// names those that have not written one yet.
func TestEffective_WhoServesOnWhileNobodyCanWriteIsNamed(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	here, there := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	k := add(t, here)
	synchronize(t, there)
	synchronize(t, here)
	here.StopFollowing()
	there.StopFollowing()
	synchronize(t, here)
	storetest.Exec(t, at, `CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN RAISE EXCEPTION 'the disk is full' USING ERRCODE = 'disk_full'; END $$`)
	storetest.Exec(t, at, `CREATE TRIGGER disk_full BEFORE INSERT OR UPDATE ON replicas EXECUTE FUNCTION disk_full()`)
	write(t, here, func(context.Context, *store.Change) error { return nil })
	synchronize(t, here) // whose heartbeat fails
	storetest.Exec(t, at, `DROP TRIGGER disk_full ON replicas`)
	storetest.Exec(t, at, `DELETE FROM replicas WHERE id = $1`, there.ReplicaID()) // as too old
	n := write(t, here, func(ctx context.Context, c *store.Change) error {
		return c.RevokeKey(ctx, k.key.Organization.ID, k.key.ID)
	})
	synchronize(t, here)
	e, err := here.Effective(t.Context(), n)
	if err != nil || e.Replicas != 2 || e.Acknowledged != 1 || len(e.Silent) != 1 || e.Silent[0].Replica != there.ReplicaID() {
		t.Errorf("%+v, %v", e, err)
	}
	synchronize(t, there)
	if e, err = here.Effective(t.Context(), n); err != nil || e.Acknowledged != 2 {
		t.Errorf("when it is heard of: %+v, %v", e, err)
	}
}

// What a replica has only read, and not heard of as a change, it knows by the secret: also when
// the copy has that under another pepper.
func TestSynchronize_WhatWasReadStaysNarrowInACopyUnderAnOldPepper(t *testing.T) {
	at := storetest.Migrated(t)
	old, fresh := authz.NewPepper("p1"), authz.NewPepper("p2")
	first, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: parsePeppers(t, old)})
	if err != nil {
		t.Fatal(err)
	}
	k := add(t, first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	put := copyOf(t, at)
	both := parsePeppers(t, fresh, old)
	second, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: both})
	if err != nil {
		t.Fatal(err)
	}
	moved(t, at, both, func() { find(t, second, k.secret) })
	write(t, second, func(ctx context.Context, c *store.Change) error {
		return c.DisableKey(ctx, k.key.Organization.ID, k.key.ID, true)
	})
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	s := storetest.Open(t, at, both)
	synchronize(t, s)
	if !find(t, s, k.secret).Key.Disabled {
		t.Fatal("the change is not there")
	}
	s.StopFollowing()
	put()
	for range 2 {
		synchronize(t, s)
		if f := find(t, s, k.secret); f.Key == nil || !f.Key.Disabled {
			t.Errorf("what was taken from a key comes back: %+v", f.Key)
		}
	}
}
