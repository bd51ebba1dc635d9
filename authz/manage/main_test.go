package manage_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// rig is a service on a real Postgres, with a platform admin and one organization.
type rig struct {
	*manage.Service

	at       string
	peppers  authz.Peppers
	keys     authz.Peppers
	store    *store.Store
	engine   manage.Policy
	format   authz.KeyFormat
	platform *authz.Admin
	// token is the platform admin's.
	token string
	org   authz.OrganizationID
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigWith(t, shippedPolicy(t))
}

func newRigWith(t *testing.T, p manage.Policy) *rig {
	t.Helper()
	r := &rig{at: storetest.Migrated(t), peppers: storetest.Peppers(t, "p1"), engine: p}
	r.store = storetest.Open(t, r.at, r.peppers)
	r.keys = manage.AuditKeys(authz.Peppers{}, r.peppers)
	var err error
	if r.format, err = authz.NewKeyFormat(authz.DefaultKeyPrefix); err != nil {
		t.Fatal(err)
	}
	r.Service, err = manage.New(manage.Options{Store: r.store, Policy: p, Format: r.format, AuditKeys: r.keys})
	if err != nil {
		t.Fatal(err)
	}
	first, err := manage.Bootstrap(t.Context(), r.store, r.keys, "Ada", 90)
	if err != nil {
		t.Fatal(err)
	}
	r.platform, r.token = r.actor(t, first.Secret), first.Secret.Reveal()
	r.org = r.organization(t, "Acme")
	return r
}

// actor recognizes an admin as the service does.
func (r *rig) actor(t *testing.T, token authz.Secret) *authz.Admin {
	t.Helper()
	admin, err := authz.NewAdmins(r.store, r.store.Clock()).Authenticate(t.Context(), token.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	return admin
}

func (r *rig) as(a *authz.Admin) manage.Request { return manage.Request{Actor: a, RequestID: "req-1"} }

func (r *rig) organization(t *testing.T, name string) authz.OrganizationID {
	t.Helper()
	made, err := r.CreateOrganization(t.Context(), r.as(r.platform), manage.OrganizationInput{Name: name, Plan: "standard"})
	if err != nil {
		t.Fatal(err)
	}
	return made.Organization.ID
}

func (r *rig) admin(t *testing.T, role authz.Role, org authz.OrganizationID) *authz.Admin {
	t.Helper()
	made, err := r.CreateAdmin(t.Context(), r.as(r.platform), manage.AdminInput{
		Name: string(role), Role: role, Organization: org, ExpiresInDays: 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.actor(t, made.Secret)
}

func keyInput() manage.KeyInput {
	return manage.KeyInput{Name: "ci", Environment: authz.EnvironmentLive, Scopes: []authz.Scope{"tickets:read"}}
}

func (r *rig) key(t *testing.T, in manage.KeyInput) *manage.KeyChange {
	t.Helper()
	made, err := r.CreateKey(t.Context(), r.as(r.platform), r.org, in)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// code returns the code of an error, "" for none.
func code(err error) string {
	var known *authz.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &known):
		return known.Code
	}
	return "unexpected: " + err.Error()
}

// everything allows whatever policy is asked: what is refused then is refused by Go and SQL.
type everything struct{ manage.Policy }

func (everything) DecideAdmin(context.Context, authz.AdminQuestion) (authz.AdminVerdict, error) {
	return authz.AdminVerdict{Allow: true}, nil
}

// shifted is a clock that is ahead.
type shifted struct {
	authz.Clock

	by time.Duration
}

func (c shifted) Now() time.Time { return c.Clock.Now().Add(c.by) }
