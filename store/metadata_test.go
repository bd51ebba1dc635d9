package store_test

import (
	"context"
	"errors"
	"testing"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// Metadata is its owner's text: numbers, order and repetitions come back as they were
// sent, and a small body stays small.
func TestMetadata_ComesBackAsItWasSent(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	same := func(want authz.Metadata, secret authz.Secret, id authz.KeyID) {
		t.Helper()
		k := find(t, s, secret).Key
		if k.Metadata != want || k.Organization.Metadata != want {
			t.Errorf("a check sees %s and %s", k.Metadata, k.Organization.Metadata)
		}
		manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
			o, err1 := r.Organization(ctx, all(), k.Organization.ID)
			k, err2 := r.Key(ctx, all(), authz.OrganizationID{}, id)
			if o.Metadata != want || k.Metadata != want {
				t.Errorf("management sees %s and %s", o.Metadata, k.Metadata)
			}
			return errors.Join(err1, err2)
		})
	}
	const first, second = `{"z":1e2,"b":1E+5,"a":{"y":1.10,"x":"<&>\u003c\u0000\u2028 é"},"z":12345678901234567890}`, `{"b":1e-16000,"a":-0.0}`
	k := add(t, s, func(k *authz.Key, _ *authz.KeySecret) { k.Metadata, k.Organization.Metadata = first, first })
	same(first, k.secret, k.key.ID)
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		w.key.Metadata, w.organization.Metadata = second, second
		return errors.Join(c.UpdateKey(ctx, all(), &w.key), c.UpdateOrganization(ctx, all(), &w.organization))
	})
	same(second, w.keySecret, w.key.ID)
}

func TestMetadata_IsAnObject(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	for _, text := range []authz.Metadata{`[]`, `null`, `1`, `"{}"`} {
		for name, do := range map[string]func(context.Context, manage.Writer) error{
			"organizations_metadata_check": func(ctx context.Context, c manage.Writer) error {
				o := w.organization
				o.Metadata = text
				return c.UpdateOrganization(ctx, all(), &o)
			},
			"api_keys_metadata_check": func(ctx context.Context, c manage.Writer) error {
				k := w.key
				k.Metadata = text
				return c.UpdateKey(ctx, all(), &k)
			},
		} {
			var broken *store.ConstraintError
			if _, err := s.Write(t.Context(), true, do); !errors.As(err, &broken) || broken.Constraint != name {
				t.Errorf("%s: %v", text, err)
			}
		}
	}
	// What someone wrote by hand is read too, and is compact.
	storetest.Exec(t, at, `UPDATE api_keys SET metadata = ' { "a" : 1 } '`)
	storetest.Exec(t, at, `UPDATE organizations SET metadata = ' { } '`)
	if k := find(t, s, w.keySecret).Key; k.Metadata != `{"a":1}` || k.Organization.Metadata != "" {
		t.Errorf("%q %q", k.Metadata, k.Organization.Metadata)
	}
}

// A row of any size must not fill memory: it denies its own key. Management can still
// see and mend it.
func TestMetadata_ARowThatIsTooLargeIsBad(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	storetest.Exec(t, at, `UPDATE api_keys SET metadata = json_build_object('x', repeat('x', 65536))`)
	if _, err := s.FindKey(t.Context(), authz.CallerID{}, w.keySecret.Hash()); authz.KindOf(err) != authz.KindUnavailable {
		t.Errorf("served: %v", err)
	}
	manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
		keys, err := r.Keys(ctx, all(), w.organization.ID, manage.KeyFilter{}, manage.Page{Limit: 1})
		if len(keys) != 1 {
			t.Errorf("%d keys are listed", len(keys))
		}
		return err
	})
}
