package manage_test

import (
	"cmp"
	"context"
	"testing"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/policy"
)

// measured takes every policy for a good one.
type measured struct {
	manage.Policies

	// meanwhile runs while one is tried or loaded; nil for nothing.
	meanwhile func()
	// unloadable is what Loads says.
	unloadable error
	// origin is the database when empty.
	origin authz.PolicyOrigin
}

func (m *measured) TryFiles(_ context.Context, files map[string]string, _ []byte, _ []string) (*authz.PolicyReport, []byte, error) {
	source, err := policy.SourceOf(files)
	if err != nil {
		return nil, nil, err
	}
	archive, err := source.Archive()
	if m.meanwhile != nil {
		m.meanwhile()
	}
	return &authz.PolicyReport{Revision: source.Revision(), Complete: true}, archive, err
}

func (*measured) BuiltIn() string              { return "sha256:built-in" }
func (m *measured) Origin() authz.PolicyOrigin { return cmp.Or(m.origin, authz.OriginDatabase) }

func (m *measured) Loads(context.Context, []byte) error {
	if m.meanwhile != nil {
		m.meanwhile()
	}
	return m.unloadable
}

// Two policies are tried at once, each against the one in force: only the first of them may
// replace it.
func TestActivatePolicy_AnotherCameMeanwhile(t *testing.T) {
	r := newRig(t)
	m := &measured{}
	var err error
	r.Service, err = manage.New(manage.Options{Store: r.store, Policy: r.engine, Policies: m, Format: r.format, AuditKeys: r.keys})
	if err != nil {
		t.Fatal(err)
	}
	activate := func(text string, change func(*manage.Request)) (*manage.PolicyChange, error) {
		request := r.as(r.platform)
		if change != nil {
			change(&request)
		}
		return r.ActivatePolicy(t.Context(), request, manage.PolicyInput{Files: map[string]string{"a.rego": text}})
	}
	once := func(request *manage.Request) {
		request.IdempotencyKey, request.Operation = "one", "POST /v1/policy/activate"
	}
	m.meanwhile = func() {
		m.meanwhile = nil
		if _, err := activate("package a\n", once); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := activate("package b\n", nil); code(err) != "policy_changed" {
		t.Errorf("the second replaced what it was not measured by: %v", err)
	}
	second, err := activate("package b\n", nil)
	if err != nil || second.Effective == nil {
		t.Fatalf("%+v, %v", second, err)
	}
	// The same request again has its answer, with a receipt, and changes nothing.
	again, err := activate("package a\n", once)
	if err != nil || again.Activation.Change >= second.Activation.Change || again.Effective == nil {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := r.RollBackPolicy(t.Context(), r.as(r.admin(t, authz.RoleOwner, r.org)), manage.PolicyRollback{}); code(err) != "role_forbidden" {
		t.Errorf("an owner goes back: %v", err)
	}
}

// Whoever cannot be let in by the policy in force can still be helped on the database.
func TestRecoverPolicy_PutsTheBuiltInOneInForceOnTheDatabase(t *testing.T) {
	r := newRig(t)
	made, err := manage.RecoverPolicy(t.Context(), r.store, r.keys, "sha256:built-in", "locked out")
	if err != nil || made.Change == 0 || made.Revision != "" {
		t.Fatalf("%+v, %v", made, err)
	}
	verified, err := r.VerifyAuditLog(t.Context(), r.as(r.platform), authz.OrganizationID{}, nil)
	if err != nil || len(verified.Problems) != 0 {
		t.Errorf("the audit log: %+v, %v", verified, err)
	}
}
