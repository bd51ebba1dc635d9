package manage_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store/storetest"
)

// stepRig is a rig on which two policies were activated, the second just now.
func stepRig(t *testing.T, m *measured) (r *rig, first, second *manage.PolicyChange) {
	t.Helper()
	r = newRig(t)
	var err error
	r.Service, err = manage.New(manage.Options{Store: r.store, Policy: r.engine, Policies: m, Format: r.format, AuditKeys: r.keys})
	if err != nil {
		t.Fatal(err)
	}
	return r, r.activated(t, "package a\n", false), r.activated(t, "package b\n", false)
}

func (r *rig) activated(t *testing.T, text string, fix bool) *manage.PolicyChange {
	t.Helper()
	made, err := r.ActivatePolicy(t.Context(), r.as(r.platform), manage.PolicyInput{Files: map[string]string{"a.rego": text}, SecurityFix: fix})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// seen is what a replica asks with.
func seen(of *manage.PolicyChange, replica string) manage.StepBack {
	return manage.StepBack{Change: of.Activation.Change, Replica: replica, Failing: authz.PolicyFailing{
		Revision: of.Activation.Revision, Window: 30 * time.Second, NewErrors: 24, NewOrganizations: 3, Kind: authz.FailureError, Where: "a.rego:7",
	}}
}

// However many replicas ask at once: there is one step back, in the history and in the audit
// log with who did it and why.
func TestStepBackPolicy_HappensOnceHoweverManyReplicasAsk(t *testing.T) {
	r, first, second := stepRig(t, &measured{})
	const replicas = 5
	made, errs := make([]*manage.PolicyChange, replicas), make([]error, replicas)
	var all sync.WaitGroup
	for i := range replicas {
		all.Go(func() { made[i], errs[i] = r.StepBackPolicy(t.Context(), seen(second, "replica-"+string(rune('a'+i)))) })
	}
	all.Wait()
	done := 0
	for i, err := range errs {
		switch {
		case err == nil:
			done++
			if a := made[i].Activation; a.Revision != first.Activation.Revision || !a.RolledBack || !a.ByItself() || made[i].Effective == nil {
				t.Errorf("%+v", made[i])
			}
		case code(err) != "policy_changed":
			t.Errorf("replica %d: %v", i, err)
		}
	}
	history, err := r.PolicyHistory(t.Context(), r.as(r.platform), 0, manage.Page{})
	if err != nil || done != 1 || len(history.Items) != 3 {
		t.Fatalf("%d replicas were heard: %+v, %v", done, history.Items, err)
	}
	for _, word := range []string{second.Activation.Revision, "24 checks of 3 organizations within 30 s", "a.rego:7"} {
		if note := history.Items[0].Note; !strings.Contains(note, word) {
			t.Errorf("the note does not tell %s: %s", word, note)
		}
	}
	log, err := r.ListAuditLog(t.Context(), r.as(r.platform), authz.OrganizationID{}, manage.AuditFilter{Action: "policy.step_back", Limit: 10})
	if err != nil || len(log.Items) != 1 {
		t.Fatalf("%+v, %v", log.Items, err)
	}
	if e := log.Items[0]; e.ActorType != "replica" || !strings.HasPrefix(e.ActorID, "replica-") || e.Target != first.Activation.Revision ||
		!strings.Contains(string(e.After), `"organizations":3`) || !strings.Contains(string(e.Before), second.Activation.Revision) {
		t.Errorf("%+v, after %s", e, e.After)
	}
	if verified, err := r.VerifyAuditLog(t.Context(), r.as(r.platform), authz.OrganizationID{}, nil); err != nil || len(verified.Problems) != 0 {
		t.Errorf("the audit log: %+v, %v", verified, err)
	}
	// What it went back to is not taken back in turn.
	if _, err := r.StepBackPolicy(t.Context(), seen(&manage.PolicyChange{Activation: history.Items[0]}, "replica-a")); code(err) != "no_step_back" {
		t.Errorf("further back: %v", err)
	}
}

func TestStepBackPolicy_AnotherReplicaWasHeardMeanwhile(t *testing.T) {
	m := &measured{}
	r, _, second := stepRig(t, m)
	m.meanwhile = func() {
		m.meanwhile = nil
		if _, err := r.StepBackPolicy(t.Context(), seen(second, "two")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.StepBackPolicy(t.Context(), seen(second, "one")); code(err) != "policy_changed" {
		t.Errorf("the second was heard as well: %v", err)
	}
}

func TestStepBackPolicy_IsRefusedWhereAPersonMustDecide(t *testing.T) {
	m := &measured{}
	r, _, second := stepRig(t, m)
	refused := func(what, want string, in manage.StepBack) {
		t.Helper()
		if _, err := r.StepBackPolicy(t.Context(), in); code(err) != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
		if now, err := r.PolicyHistory(t.Context(), r.as(r.platform), 0, manage.Page{}); err != nil || now.Items[0].RolledBack {
			t.Fatalf("%s: it was stepped back all the same: %+v, %v", what, now.Items[0], err)
		}
	}
	m.unloadable = errors.New("a.rego:1: not any more")
	refused("the one before cannot be loaded", "policy_refused", seen(second, "one"))
	m.unloadable = nil
	m.origin = authz.OriginDirectory
	refused("from a directory", "policy_origin", seen(second, "one"))
	m.origin = ""
	storetest.Exec(t, r.at, `UPDATE policy_activations SET at = at - interval '9 minutes 59 seconds'`)
	m.meanwhile = func() {
		m.meanwhile = nil
		storetest.Exec(t, r.at, `UPDATE policy_activations SET at = at - interval '2 seconds'`)
	}
	refused("ten minutes are over when it is written", "no_step_back", seen(second, "one"))
	refused("ten minutes are over", "no_step_back", seen(second, "one"))
	fix := r.activated(t, "package c\n", true)
	refused("a security fix", "past_security_fix", seen(fix, "one"))
	refused("another one came", "policy_changed", seen(second, "one"))
}
