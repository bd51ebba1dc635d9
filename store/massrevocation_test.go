package store_test

import (
	"context"
	"testing"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// massOfKeys stores so many keys beside one that is there, with secrets that nobody has.
func massOfKeys(t testing.TB, at string, like stored, keys int) {
	t.Helper()
	storetest.Exec(t, at, `INSERT INTO api_keys (id, organization_id, name, environment, scopes, created_by, revision)
		SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, organization_id, 'k', 'live', scopes, 'test', 1
		FROM api_keys, generate_series(1, $2::bigint) i WHERE id = $1`, like.key.ID, keys)
	storetest.Exec(t, at, `INSERT INTO key_secrets (digest, id, key_id, pepper_id, hint)
		SELECT sha256(i::text::bytea), ('00000000-0000-7000-9000-' || lpad(to_hex(i), 12, '0'))::uuid,
			('00000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 'p1', 'h' FROM generate_series(1, $1::bigint) i`, keys)
}

// More is revoked at once than a replica reads of what has changed: it learns all of it, page by
// page, also of keys that it has never read, and of an organization that was suspended with them.
func TestSynchronize_AMassRevocationStaysInADatabaseThatIsPutBack(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	s := storetest.Open(t, at, peppers)
	first, changed, of := add(t, s), add(t, s), add(t, s)
	massOfKeys(t, at, first, store.MaxChanges)
	last := add(t, s)
	synchronize(t, s)
	s.StopFollowing()
	put := copyOf(t, at)
	write(t, s, func(ctx context.Context, c *store.Change) error {
		return c.DisableKey(ctx, changed.key.Organization.ID, changed.key.ID, true)
	})
	write(t, s, func(ctx context.Context, c *store.Change) error {
		return c.SuspendOrganization(ctx, of.key.Organization.ID, true)
	})
	storetest.Exec(t, at, `WITH r AS (UPDATE revision SET n = n + 1 RETURNING n)
		UPDATE api_keys SET revoked_at = now(), revision = r.n FROM r WHERE id <> $1 AND id <> $2`, changed.key.ID, of.key.ID)
	synchronize(t, s)
	if err := s.LearnMissed(t.Context()); err != nil {
		t.Fatal(err)
	}
	put()
	synchronize(t, s)
	for what, k := range map[string]stored{"first": first, "last": last} {
		if f := find(t, s, k.secret); f.Key == nil || f.Key.RevokedAt.IsZero() {
			t.Errorf("the %s of the keys that were revoked comes back: %+v", what, f.Key)
		}
	}
	if f, err := s.FindKey(t.Context(), authz.CallerID{}, changed.secret.Hash()); authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("a key that was disabled beside them comes back: %+v, %v", f.Key, err)
	}
	if f := find(t, s, of.secret); !f.Key.Organization.Suspended {
		t.Error("an organization that was suspended beside them comes back")
	}
}
