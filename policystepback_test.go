package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/sdk/admin"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// seats is a rule that passes every test of its author, and has no answer for an organization
// without seats: what its metadata says cannot be divided by.
func seats() map[string]string {
	return map[string]string{
		"keystile/rules/seats/seats.rego": `# METADATA
# title: Seats
# description: no_seats. For tests.
package keystile.rules.seats

deny contains {"code": "no_seats", "message": "All seats are taken."} if 100 / input.organization.metadata.seats > 50
`,
		"keystile/rules/seats/seats_test.rego": `package keystile.rules.seats_test

import data.keystile.rules.seats

test_no_seats if count(seats.deny) == 1 with input as {"organization": {"metadata": {"seats": 1}}}

test_seats if count(seats.deny) == 0 with input as {"organization": {"metadata": {"seats": 10}}}
`,
	}
}

// withSeats makes organizations of so many seats, each with a key, and a caller for all.
func withSeats(t *testing.T, m *managed, seats, n int) (keys []string, caller authz.Secret) {
	t.Helper()
	ctx := t.Context()
	for range n {
		org := must(m.client.CreateOrganization(ctx, admin.OrganizationCreate{
			Name: "Acme", Plan: "standard", Metadata: admin.Metadata(`{"seats":` + string(rune('0'+seats)) + `}`),
		})).Organization.ID
		made := must(m.client.CreateKey(ctx, org, admin.KeyCreate{Name: "ci", Environment: "live", Scopes: []string{"tickets:read"}}))
		keys = append(keys, *made.Secret)
	}
	made := must(m.client.CreateCaller(ctx, admin.CallerCreate{Name: "app", Environments: []admin.Environment{"live"}}))
	if err := m.store.Synchronize(ctx); err != nil {
		t.Fatal(err)
	}
	return keys, authz.NewSecret(*made.Secret)
}

// askAll asks for each key as often on each of the replicas, and returns how often each code came.
func askAll(t *testing.T, on []*service, caller authz.Secret, keys []string, times int) map[string]int {
	t.Helper()
	var mu sync.Mutex
	var asking sync.WaitGroup
	codes := map[string]int{}
	for _, s := range on {
		asking.Go(func() {
			for range times {
				for _, key := range keys {
					a, _, err := tryCheck(t.Context(), testClient(), s.url, caller, key)
					if err != nil {
						a.Code = err.Error()
					}
					mu.Lock()
					codes[a.Code]++
					mu.Unlock()
				}
			}
		})
	}
	asking.Wait()
	return codes
}

// awaitPolicy waits until what the management API says of the policy is so.
func (m *managed) awaitPolicy(t *testing.T, what string, is func(*admin.Policy) bool) *admin.Policy {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		p := must(m.client.Policy(t.Context()))
		if is(p) {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute: %+v, runtime errors %+v", what, p, p.RuntimeErrors)
		}
	}
}

// A policy that passes the gate, and then has no answer for several organizations, is taken back
// by the service itself, once, however many replicas see it; not for one organization's sake.
func TestE2E_APolicyThatFailsSeveralOrganizationsIsTakenBack(t *testing.T) {
	m, all := replicas(t, 3)
	ctx := t.Context()
	broken, caller := withSeats(t, m, 0, 4)
	for _, s := range all {
		if err := s.store.Synchronize(ctx); err != nil {
			t.Fatal(err)
		}
	}
	before := must(m.client.Policy(ctx))
	if codes := askAll(t, all, caller, broken, 1); codes["allowed"] != 3*len(broken) {
		t.Fatalf("before: %v", codes)
	}
	files := policyFiles(t, seats())
	change := must(m.client.ActivatePolicy(ctx, admin.PolicyActivate{Files: &files}))
	inForce(t, all, change.Effective, *change.Activation.Revision)

	if codes := askAll(t, all, caller, broken[:1], 20); codes["unavailable"] != 3*20 {
		t.Fatalf("one alone: %v", codes)
	}
	for _, s := range all {
		if f := s.policy.keeper.Failing(); f.Widespread || f.Organizations != 1 || f.Where != "keystile/rules/seats/seats.rego:6" {
			t.Errorf("one alone: %+v", f)
		}
	}
	alarmed := m.awaitPolicy(t, "one alone is told", func(p *admin.Policy) bool { return p.RuntimeErrors != nil })
	if *alarmed.Revision != *change.Activation.Revision || alarmed.RuntimeErrors.Organizations != 1 || alarmed.RuntimeErrors.Stays != nil {
		t.Errorf("%+v", alarmed.RuntimeErrors)
	}

	askAll(t, all, caller, broken[1:], 8)
	back := m.awaitPolicy(t, "several are helped", func(p *admin.Policy) bool { return p.Activation.RolledBack && *p.Revision == *before.Revision })
	if a := back.Activation; !strings.HasPrefix(a.ActivatedBy, "replica ") || !strings.Contains(a.Note, "keystile/rules/seats/seats.rego:6") {
		t.Errorf("%+v", a)
	}
	for _, s := range all {
		awaitRevision(t, s, *before.Revision)
	}
	if codes := askAll(t, all, caller, broken, 1); codes["allowed"] != 3*len(broken) {
		t.Errorf("afterwards: %v", codes)
	}
	if history := must(m.client.ListPolicyHistory(ctx, admin.ListPolicyHistoryParams{})); len(history.Items) != 2 {
		t.Errorf("it was stepped back more than once: %+v", history.Items)
	}
	if e := must(m.client.ListAuditLog(ctx, "", admin.ListAuditLogParams{})).Items[0]; e.Action != "policy.step_back" || e.Actor.Type != "replica" {
		t.Errorf("the audit log says %+v", e)
	}
	// Whoever was heard says so when it has its receipt.
	m.awaitPolicy(t, "the step is logged", func(*admin.Policy) bool {
		return slices.ContainsFunc(all, func(s *service) bool { return s.watch.steppedBack.Load() > 0 })
	})
	steps := 0
	for _, s := range all {
		_, page := get(t, testClient(), s.opsURL+"/metrics")
		steps += strings.Count(page, "\nkeystile_policy_stepped_back_total 1\n")
		if strings.Contains(page, "\nkeystile_policy_runtime_errors_total{kind=\"error\"} 0\n") {
			t.Errorf("%s counts no errors", s.opsURL)
		}
	}
	if steps != 1 || !strings.Contains(m.log.String(), "the policy in force fails at run time") {
		t.Errorf("%d replicas say that they stepped back, and the log has\n%s", steps, m.log.String())
	}
}

// activate puts a policy in force on the database, untried, and waits until it decides.
func (m *managed) activate(t *testing.T, files admin.PolicyFiles, a authz.PolicyActivation) (revision string) {
	t.Helper()
	source := must(policy.SourceOf(files))
	archive := must(source.Archive())
	a.Revision, a.By = source.Revision(), "test"
	_, err := m.store.Change(t.Context(), func(ctx context.Context, c *store.Change) error {
		return c.ActivatePolicy(ctx, manage.TenantOf(&authz.Admin{Role: authz.RolePlatformAdmin}), &a, archive)
	})
	if err != nil {
		t.Fatal(err)
	}
	awaitRevision(t, m.service, a.Revision)
	return a.Revision
}

// awaitRevision waits until a replica decides by a policy.
func awaitRevision(t *testing.T, s *service, revision string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); s.policy.engine.Revision() != revision; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it decides by %s", s.policy.engine.Revision())
		}
	}
}

// What a person has decided, or everybody has worked with for a while, stays in force however it
// fails: a service only gives the alarm.
func TestE2E_APolicyThatFailsStaysWhereAPersonMustDecide(t *testing.T) {
	for name, c := range map[string]struct {
		activation authz.PolicyActivation
		ago        string
		stays      string
	}{
		"a security fix":        {authz.PolicyActivation{SecurityFix: true}, "0", "security fix"},
		"ten minutes are over":  {authz.PolicyActivation{}, "601 seconds", "more than 10 minutes ago"},
		"it was rolled back to": {authz.PolicyActivation{RolledBack: true}, "0", "gone back to"},
	} {
		t.Run(name, func(t *testing.T) {
			m := startManaged(t, nil)
			broken, caller := withSeats(t, m, 0, 3)
			revision := m.activate(t, policyFiles(t, seats()), c.activation)
			storetest.Exec(t, m.env["KEYSTILE_DATABASE_URL"], `UPDATE policy_activations SET at = at - $1::interval`, c.ago)
			if codes := askAll(t, []*service{m.service}, caller, broken, 8); codes["unavailable"] != 8*len(broken) {
				t.Fatal(codes)
			}
			kept := m.awaitPolicy(t, name, func(p *admin.Policy) bool { return p.RuntimeErrors != nil && p.RuntimeErrors.Stays != nil })
			if !strings.Contains(*kept.RuntimeErrors.Stays, c.stays) || *kept.Revision != revision {
				t.Errorf("%s by %s", *kept.RuntimeErrors.Stays, *kept.Revision)
			}
			if history := must(m.client.ListPolicyHistory(t.Context(), admin.ListPolicyHistoryParams{})); len(history.Items) != 1 {
				t.Errorf("%+v", history.Items)
			}
			if !strings.Contains(m.log.String(), "fails several organizations and stays") {
				t.Error("nobody is told")
			}
			if code, _ := get(t, testClient(), m.opsURL+"/readyz"); code != 200 {
				t.Errorf("/readyz is %d", code)
			}
		})
	}
}
