package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/sdk/admin"
	"github.com/supportstation/keystile/store/storetest"
)

// awaitShadow waits until what came of a shadow is so.
func (m *managed) awaitShadow(t *testing.T, what string, is func(*admin.PolicyShadow) bool) *admin.PolicyShadow {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(50 * time.Millisecond) {
		found := must(m.client.PolicyShadow(t.Context()))
		if is(found) {
			return found
		}
		if time.Now().After(deadline) {
			raw, _ := json.Marshal(found)
			t.Fatalf("%s: not within a minute: %s", what, raw)
		}
	}
}

// startShadow starts one of which every check is asked about, and waits until so many replicas do.
func (m *managed) startShadow(t *testing.T, files admin.PolicyFiles, replicas int) *admin.PolicyShadow {
	t.Helper()
	perSecond := 10_000
	change := must(m.client.StartPolicyShadow(t.Context(), admin.PolicyShadowStart{Files: &files, PerSecond: &perSecond}))
	complete(t, change.Effective, replicas)
	if change.Shadow.State != admin.ShadowRunning {
		t.Fatalf("%+v", change.Shadow)
	}
	return m.awaitShadow(t, "every replica asks", func(f *admin.PolicyShadow) bool { return f.Replicas == replicas })
}

// checksWith asks a service so many times, and wants them allowed.
func checksWith(t *testing.T, s *service, of tenant, n int) {
	t.Helper()
	for range n {
		if a, _ := postCheck(t, testClient(), s.url, of.token, of.key.Reveal()); a.Code != "allowed" {
			t.Errorf("it is %s", a.Code)
		}
	}
}

// A candidate that is asked beside the policy in force changes no answer; what it would decide
// otherwise is found on every replica, counted exactly, and told without anything of a request's.
// A replica that starts anew goes on; when the candidate comes into force it ends.
func TestE2E_AShadowFindsWhatWouldBeDecidedOtherwise(t *testing.T) {
	m, all := replicas(t, 2)
	ctx := t.Context()
	third := must(startService(context.WithoutCancel(ctx), m.cfg, newLogger(m.cfg, m.log)))
	t.Cleanup(func() {
		if third != nil {
			_ = third.close()
		}
	})
	all = append(all, third)
	denied := addTenant(t, m.store, m.cfg.KeyFormat) // by closedFridays, as the caller is called so
	other := must(m.client.CreateCaller(ctx, admin.CallerCreate{Name: "app", Environments: []admin.Environment{"live"}}))
	allowed := tenant{denied.key, authz.NewSecret(*other.Secret)}
	for _, s := range all {
		if err := s.store.Synchronize(ctx); err != nil {
			t.Fatal(err)
		}
	}
	files := policyFiles(t, closedFridays())
	m.startShadow(t, files, 3)
	for _, s := range all {
		checksWith(t, s, denied, 7)
		checksWith(t, s, allowed, 5)
	}
	found := m.awaitShadow(t, "all were asked", func(f *admin.PolicyShadow) bool { return f.Asked == 36 })
	if found.Seen != 36 || found.Dropped+found.Undecided+found.Failed+found.Restarts != 0 || found.Totals.AllowToDeny != 21 ||
		found.Totals.DenyToAllow+found.Totals.Reasons+found.Totals.Limits+found.Totals.Unavailable != 0 || len(found.Differences) != 1 {
		t.Fatalf("%+v", found)
	}
	d := found.Differences[0]
	if d.Requests != 21 || d.Kind != admin.ShadowAllowToDeny || d.Method != "GET" || d.Path != "/api/v1/tickets" || *d.OrganizationName != "Acme" ||
		*d.KeyName != "k" || d.After.Reasons[0] != "closed" || !d.Before.Allow || d.LastSeen.Before(d.FirstSeen) {
		t.Errorf("%+v", d)
	}
	if found.CandidateSeconds.P99 == nil || found.ActiveSeconds.P99 == nil {
		t.Errorf("how long it takes is not told: %+v", found)
	}
	for _, s := range all {
		if _, page := get(t, testClient(), s.opsURL+"/metrics"); !strings.Contains(page, `keystile_policy_shadow_differences_total{kind="allow_to_deny"} 7`) ||
			!strings.Contains(page, "keystile_policy_shadow_asked_total 12") || !strings.Contains(page, "keystile_policy_shadow_running 1") {
			t.Error("the metrics do not tell it")
		}
	}

	// One that starts anew asks it as well, and what it had counted before stays.
	stopped := third
	third = nil
	if err := stopped.close(); err != nil {
		t.Fatal(err)
	}
	third = must(startService(context.WithoutCancel(ctx), m.cfg, newLogger(m.cfg, m.log)))
	m.awaitShadow(t, "the new one asks it", func(f *admin.PolicyShadow) bool { return f.Replicas == 4 })
	checksWith(t, third, denied, 3)
	found = m.awaitShadow(t, "it was asked there", func(f *admin.PolicyShadow) bool { return f.Asked == 39 })
	if found.Totals.AllowToDeny != 24 || len(found.Differences) != 1 || found.Differences[0].Requests != 24 {
		t.Errorf("%+v", found)
	}
	raw, _ := json.Marshal(found)
	for what, secret := range map[string]string{"key": denied.key.Reveal(), "token": denied.token.Reveal(), "address": "127.0.0.1"} {
		if strings.Contains(string(raw), secret) {
			t.Errorf("it tells a %s", what)
		}
	}

	change := must(m.client.ActivatePolicy(ctx, admin.PolicyActivate{Files: &files}))
	if *change.Activation.Revision != found.Candidate {
		t.Fatalf("%s is in force, not %s", *change.Activation.Revision, found.Candidate)
	}
	if found = must(m.client.PolicyShadow(ctx)); found.State != admin.ShadowEnded || *found.EndReason != admin.ShadowInForce || found.EndedAt == nil {
		t.Errorf("in force, and still asked: %+v", found)
	}
	for _, s := range []*service{all[0], all[1], third} {
		awaitPolicy(t, "no replica asks it any more", func() bool { _, running := s.shadows.counts(); return !running })
	}
	if events := auditActions(t, m); strings.Join(events[:3], " ") != "policy.activate policy.shadow.end policy.shadow.start" {
		t.Errorf("the audit log has %v", events)
	}
}

// auditActions are those of the platform's chain, newest first.
func auditActions(t *testing.T, m *managed) []string {
	t.Helper()
	var actions []string
	for _, e := range must(m.client.ListAuditLog(t.Context(), "", admin.ListAuditLogParams{})).Items {
		actions = append(actions, e.Action)
	}
	return actions
}

// A candidate that loops for ever, or eats memory, changes no decision, and it is told what it did.
func TestE2E_AShadowThatTakesTooMuchEndsAndSaysWhy(t *testing.T) {
	m, all := replicas(t, 2)
	ctx := t.Context()
	of := addTenant(t, m.store, m.cfg.KeyFormat)
	for name, condition := range map[string]string{
		"loop":   "count([1 | some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); a * b == 0]) == 1",
		"memory": `count(net.cidr_expand("::/0")) == 0`,
	} {
		m.startShadow(t, policyFiles(t, map[string]string{
			"keystile/rules/closed/closed.rego": "package keystile.rules.closed\n\ndeny contains {\"code\": \"closed\", \"message\": \"Closed.\"} if " + condition + "\n",
		}), 2)
		var found *admin.PolicyShadow
		for deadline := time.Now().Add(time.Minute); ; {
			for _, s := range all {
				if a, _ := postCheck(t, testClient(), s.url, of.token, of.key.Reveal()); a.Code != "allowed" && a.Code != "rate_limited" {
					t.Errorf("%s: it is %s", name, a.Code)
				}
			}
			if found = must(m.client.PolicyShadow(ctx)); found.State == admin.ShadowEnded {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("%s: it has not ended: %+v", name, found)
			}
		}
		if *found.EndReason != admin.ShadowFailed || !strings.HasPrefix(*found.EndMessage, "keystile/rules/closed/closed.rego:3: ") || !strings.HasPrefix(*found.EndedBy, "replica ") {
			t.Errorf("%s: %s by %s: %s", name, *found.EndReason, *found.EndedBy, *found.EndMessage)
		}
		t.Log(*found.EndMessage)
		for _, s := range all {
			awaitPolicy(t, "no replica asks it any more", func() bool { _, running := s.shadows.counts(); return !running })
		}
	}
	if e := must(m.client.ListAuditLog(ctx, "", admin.ListAuditLogParams{})).Items[0]; e.Action != "policy.shadow.end" || e.Actor.Type != "replica" {
		t.Errorf("%+v", e)
	}
}

// While it cannot be written that a shadow is asked, it is tried again by the tick alone.
func TestE2E_AShadowThatCannotBeWrittenWaits(t *testing.T) {
	m := startManaged(t, nil)
	at := m.env["KEYSTILE_DATABASE_URL"]
	storetest.Exec(t, at, `ALTER TABLE policy_shadow_replicas RENAME COLUMN seen TO away`)
	files := policyFiles(t, closedFridays())
	must(m.client.StartPolicyShadow(t.Context(), admin.PolicyShadowStart{Files: &files}))
	failures := func() int { return strings.Count(m.log.String(), "could not be written; it waits") }
	awaitPolicy(t, "the first writing fails", func() bool { return failures() > 0 })
	<-time.After(shadowWriteEvery / 2)
	if n := failures(); n > 2 {
		t.Errorf("it was tried %d times", n)
	}
	storetest.Exec(t, at, `ALTER TABLE policy_shadow_replicas RENAME COLUMN away TO seen`)
	m.awaitShadow(t, "it is written", func(f *admin.PolicyShadow) bool { return f.Replicas == 1 })
}

// One can be stopped, replaced by another, and is over when its time is; what cannot be asked is
// not begun.
func TestE2E_AShadowEndsWhenItIsToAndNothingElseBegins(t *testing.T) {
	m := startManaged(t, nil)
	ctx := t.Context()
	var refusal *admin.Error
	refused := func(what, code string, status int, err error) {
		t.Helper()
		if !errors.As(err, &refusal) || refusal.Code != code || refusal.Status != status {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("none was started", "not_found", http.StatusNotFound, second(m.client.PolicyShadow(ctx)))
	now := policyFiles(t, nil)
	refused("the one in force", "policy_in_force", http.StatusConflict, second(m.client.StartPolicyShadow(ctx, admin.PolicyShadowStart{Files: &now})))
	bad := policyFiles(t, map[string]string{"keystile/rules/closed/closed.rego": "package keystile.rules.closed\n\ndeny contains x if {\n"})
	refused("one that does not load", "policy_refused", http.StatusUnprocessableEntity, second(m.client.StartPolicyShadow(ctx, admin.PolicyShadowStart{Files: &bad})))
	if !strings.HasPrefix(refusal.Reasons[0].Message, "keystile/rules/closed/closed.rego:") {
		t.Errorf("no place is told: %v", refusal.Reasons)
	}
	files := policyFiles(t, closedFridays())
	dry := must(m.client.StartPolicyShadow(ctx, admin.PolicyShadowStart{Files: &files}, admin.WithDryRun()))
	if dry.Effective != nil || !dry.DryRun || second(m.client.PolicyShadow(ctx)) == nil {
		t.Errorf("a dry run started it: %+v", dry)
	}

	first := m.startShadow(t, files, 1)
	if first.PerSecond != 10_000 || first.Share != 1 || first.EndsAt.Sub(first.StartedAt) != 15*time.Minute {
		t.Errorf("%+v", first)
	}
	other := policyFiles(t, seats())
	if now := m.startShadow(t, other, 1); now.Candidate == first.Candidate {
		t.Error("the second did not take the place of the first")
	}
	stopped := must(m.client.StopPolicyShadow(ctx)).Shadow
	if stopped.State != admin.ShadowEnded || *stopped.EndReason != admin.ShadowStopped || *stopped.EndedBy != stopped.StartedBy {
		t.Errorf("%+v", stopped)
	}
	refused("once more", "not_found", http.StatusNotFound, second(m.client.StopPolicyShadow(ctx)))
	awaitPolicy(t, "it is not asked any more", func() bool { _, running := m.shadows.counts(); return !running })
	brief := 1
	must(m.client.StartPolicyShadow(ctx, admin.PolicyShadowStart{Files: &files, DurationSeconds: &brief}))
	over := m.awaitShadow(t, "its time is over", func(f *admin.PolicyShadow) bool { return f.State == admin.ShadowEnded })
	if *over.EndReason != admin.ShadowOver || over.EndedBy != nil || !over.EndedAt.Equal(over.EndsAt) {
		t.Errorf("%+v", over)
	}
	awaitPolicy(t, "it is not asked any more", func() bool { _, running := m.shadows.counts(); return !running })
	if events := auditActions(t, m); strings.Join(events[:4], " ") != "policy.shadow.start policy.shadow.stop policy.shadow.start policy.shadow.start" {
		t.Errorf("the audit log has %v", events)
	}
}
