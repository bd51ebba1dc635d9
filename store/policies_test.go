package store_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

func someRevision(digit string) string { return "sha256:" + strings.Repeat(digit, 64) }

func activate(t *testing.T, s *store.Store, a authz.PolicyActivation, archive []byte) authz.PolicyActivation {
	t.Helper()
	_, err := s.Change(t.Context(), func(ctx context.Context, c *store.Change) error {
		return c.ActivatePolicy(ctx, everyoneHere(), &a, archive)
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func everyoneHere() manage.Tenant {
	return manage.TenantOf(&authz.Admin{Role: authz.RolePlatformAdmin})
}

// awaitPolicy waits until a store has a policy in force.
func awaitPolicy(t *testing.T, s *store.Store, revision string) *store.Policy {
	t.Helper()
	for deadline := time.After(30 * time.Second); ; {
		if p := s.Policy(); p != nil && p.Activation != nil && p.Activation.Revision == revision {
			return p
		}
		select {
		case <-s.PolicyChanged():
		case <-deadline:
			t.Fatalf("the store has %+v, not %s", s.Policy(), revision)
		}
	}
}

func TestPolicies_AnActivationReachesEveryReplica(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	one, two := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	if p := two.Policy(); p == nil || p.Activation != nil || p.Archive != nil {
		t.Fatalf("before the first activation: %+v", p)
	}
	made := activate(t, one, authz.PolicyActivation{
		Revision: someRevision("1"), By: "admin_x", Note: "first", SecurityFix: true, Accepted: []string{"data.a_test.test_x"},
	}, []byte("archive"))
	if made.Change == 0 || made.At.IsZero() {
		t.Fatalf("%+v", made)
	}
	for _, s := range []*store.Store{one, two} {
		p := awaitPolicy(t, s, made.Revision)
		if string(p.Archive) != "archive" || p.Activation.Note != "first" || !p.Activation.SecurityFix || p.Activation.Accepted[0] != "data.a_test.test_x" {
			t.Errorf("%+v", p.Activation)
		}
	}
	// Back to the built-in one, and to one that is kept already.
	activate(t, two, authz.PolicyActivation{By: "admin_x", RolledBack: true}, nil)
	if p := awaitPolicy(t, one, ""); p.Archive != nil || !p.Activation.RolledBack {
		t.Errorf("%+v", p)
	}
	activate(t, two, authz.PolicyActivation{Revision: made.Revision, By: "admin_x"}, nil)
	if p := awaitPolicy(t, one, made.Revision); string(p.Archive) != "archive" {
		t.Errorf("%+v", p)
	}
	// And to a replica that starts.
	if p := storetest.Open(t, at, peppers).Policy(); p == nil || p.Activation.Revision != made.Revision {
		t.Errorf("%+v", p)
	}
	err := one.Read(t.Context(), func(ctx context.Context, r manage.Reader) error {
		all, err := r.Activations(ctx, everyoneHere(), 0, 10)
		if len(all) != 3 || all[0].Change < all[1].Change || all[2].Note != "first" {
			t.Errorf("the history is %+v", all)
		}
		older, _ := r.Activations(ctx, everyoneHere(), all[1].Change, 10)
		if len(older) != 1 {
			t.Errorf("before the second: %+v", older)
		}
		if _, err := r.PolicyArchive(ctx, everyoneHere(), someRevision("2")); !errors.Is(err, manage.ErrNotFound) {
			t.Errorf("an unknown policy: %v", err)
		}
		// Policies are nobody's but the platform's.
		own := manage.TenantOf(&authz.Admin{Role: authz.RoleOwner, Organization: authz.NewOrganizationID(time.Now())})
		if some, err := r.Activations(ctx, own, 0, 10); err != nil || len(some) != 0 {
			t.Errorf("an owner sees %v, %v", some, err)
		}
		if _, err := r.PolicyArchive(ctx, own, made.Revision); !errors.Is(err, manage.ErrNotFound) {
			t.Errorf("an owner reads a policy: %v", err)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Whatever keeps a policy from being read for a while, nothing tells of it a second time.
func TestSync_APolicyThatCouldNotBeReadIsReadAgain(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	var told bytes.Buffer
	here := storetest.Open(t, at, peppers)
	there, err := store.Open(t.Context(), store.Options{
		URL: storetest.Parse(t, at), Peppers: peppers, Logger: slog.New(slog.NewTextHandler(&told, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = there.Close() }()
	first := activate(t, here, authz.PolicyActivation{Revision: someRevision("1"), By: "admin_x"}, []byte("archive"))
	awaitPolicy(t, there, first.Revision)
	there.StopFollowing()
	second := activate(t, here, authz.PolicyActivation{Revision: someRevision("2"), By: "admin_x", SecurityFix: true}, []byte("fix"))
	awaitPolicy(t, here, second.Revision)
	storetest.Exec(t, at, `ALTER TABLE policies RENAME TO away`)
	for range 3 {
		synchronize(t, there)
		if h := there.Health(); there.Policy().Activation.Revision != first.Revision || h.Revision < second.Change || !h.Degraded {
			t.Fatalf("while it cannot be read: %+v, %+v", there.Policy().Activation, h)
		}
	}
	if n := strings.Count(told.String(), "the policy that was activated cannot be read"); n != 1 {
		t.Errorf("an operator is told %d times", n)
	}
	storetest.Exec(t, at, `ALTER TABLE away RENAME TO policies`)
	synchronize(t, there)
	if p := there.Policy(); p.Activation.Revision != second.Revision || string(p.Archive) != "fix" {
		t.Errorf("%+v", p.Activation)
	}
	if h := there.Health(); h.Degraded {
		t.Errorf("%+v", h)
	}
}

func TestPolicies_AReceiptCountsWhoDecidesByIt(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	one, two := storetest.Open(t, at, peppers), storetest.Open(t, at, peppers)
	revision := someRevision("1")
	one.DecidesBy(revision)
	e, err := one.PolicyEffective(t.Context(), revision)
	if err != nil || e.Replicas != 2 || e.Acknowledged != 1 || len(e.Silent) != 1 {
		t.Fatalf("%+v, %v", e, err)
	}
	two.DecidesBy(revision)
	if e, err = one.PolicyEffective(t.Context(), revision); err != nil || e.Acknowledged != 2 || len(e.Silent) != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	replicas, _, err := one.Replicas(t.Context())
	if err != nil || len(replicas) != 2 || replicas[0].PolicyRevision != revision {
		t.Errorf("%+v, %v", replicas, err)
	}
}
