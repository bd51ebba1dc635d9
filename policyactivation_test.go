package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/authz/policy/origin"
	"github.com/supportstation/keystile/policies"
	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/admin"
)

// policyFiles is the built-in policy with files changed: an empty text leaves one out.
func policyFiles(t *testing.T, changes map[string]string) admin.PolicyFiles {
	t.Helper()
	files := admin.PolicyFiles{}
	err := fs.WalkDir(policies.FS, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasPrefix(filepath.Base(name), ".") {
			return err
		}
		raw, err := fs.ReadFile(policies.FS, name)
		files[name] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range changes {
		if files[name] = text; text == "" {
			delete(files, name)
		}
	}
	return files
}

// closedFridays is a rule of its own, which denies whatever addTenant's callers ask, with its
// test. The shipped tests know no such caller.
func closedFridays() map[string]string {
	return map[string]string{
		"keystile/rules/closed/closed.rego": `# METADATA
# title: Closed
# description: closed. For tests.
package keystile.rules.closed

deny contains {"code": "closed", "message": "Closed."} if startswith(input.caller.name, "caller_")
`,
		"keystile/rules/closed/closed_test.rego": `package keystile.rules.closed_test

import data.keystile.rules.closed

test_closed if count(closed.deny) == 1 with input as {"caller": {"name": "caller_1"}}

test_open if count(closed.deny) == 0 with input as {"caller": {"name": "tickets"}}
`,
	}
}

// replicas are whole services on one database, of which the first is managed.
func replicas(t *testing.T, n int) (*managed, []*service) {
	t.Helper()
	first := startManaged(t, nil)
	all := []*service{first.service}
	for range n - 1 {
		s, err := startService(context.WithoutCancel(t.Context()), first.cfg, newLogger(first.cfg, first.log))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.close() })
		all = append(all, s)
	}
	return first, all
}

// complete wants a receipt that accounts for every replica.
func complete(t *testing.T, e *admin.Effective, replicas int) {
	t.Helper()
	if e == nil || e.Replicas != replicas || e.Acknowledged+len(e.Silent) != replicas {
		t.Fatalf("the receipt is %+v", e)
	}
}

// inForce holds a receipt to its word: replicas that have all acknowledged decide by the
// revision, and those that took longer than it waits do so soon.
func inForce(t *testing.T, all []*service, e *admin.Effective, revision string) {
	t.Helper()
	complete(t, e, len(all))
	for i, s := range all {
		decides := func() bool { return s.policy.engine.Revision() == revision }
		if len(e.Silent) == 0 && !decides() {
			t.Errorf("after the receipt replica %d decides by %s", i, s.policy.engine.Revision())
		}
		awaitPolicy(t, "it decides on every replica", decides)
	}
}

// A good edit is in force on every replica with its receipt; a bad one on none, and what is
// wrong is told. No answer is of another policy than it says.
func TestE2E_APolicyIsActivatedOnEveryReplicaOrRefused(t *testing.T) {
	m, all := replicas(t, 3)
	ctx, client := t.Context(), testClient()
	probe := addTenant(t, m.store, m.cfg.KeyFormat)
	before := must(m.client.Policy(ctx))
	if before.Origin != "built-in" || before.Source != "database" || before.Activation != nil || before.Revision == nil {
		t.Fatalf("before the first activation: %+v", before)
	}

	// Under load: whatever policy an answer names decides as that one does.
	load := newPolicyLoad(t, all, m.cfg.KeyFormat)

	bad := policyFiles(t, map[string]string{"keystile/rules/closed/closed.rego": "package keystile.rules.closed\n\ndeny contains x if {\n"})
	_, err := m.client.ActivatePolicy(ctx, admin.PolicyActivate{Files: &bad})
	var refusal *admin.Error
	if !errors.As(err, &refusal) || refusal.Code != "policy_refused" || !strings.Contains(refusal.Reasons[0].Message, "keystile/rules/closed/closed.rego:") {
		t.Fatalf("a bad policy: %v", err)
	}
	good := policyFiles(t, closedFridays())
	dry := must(m.client.ActivatePolicy(ctx, admin.PolicyActivate{Files: &good}, admin.WithDryRun()))
	if now := must(m.client.Policy(ctx)); *now.Revision != *before.Revision || dry.Effective != nil || !dry.Report.Passed {
		t.Fatalf("a dry run put something in force: %+v", now)
	}
	note := "closed on Fridays"
	change := must(m.client.ActivatePolicy(ctx, admin.PolicyActivate{Files: &good, Note: &note}))
	inForce(t, all, change.Effective, *change.Activation.Revision)
	for _, s := range all {
		a, _ := postCheck(t, client, s.url, probe.token, probe.key.Reveal())
		if a.PolicyRevision != *change.Activation.Revision || a.Code != "policy_denied" {
			t.Errorf("after the receipt a replica says %s by %s", a.Code, a.PolicyRevision)
		}
	}
	now := must(m.client.Policy(ctx))
	if *now.Revision != *change.Activation.Revision || now.Origin != "database" || now.Activation.Note != note {
		t.Errorf("%+v", now)
	}

	// Back again, by the built-in one's own name and then by itself: nothing is left.
	back := must(m.client.RollBackPolicy(ctx, admin.PolicyRollback{}))
	if !back.Activation.BuiltIn {
		t.Errorf("%+v", back)
	}
	inForce(t, all, back.Effective, *before.Revision)
	if a, _ := postCheck(t, client, all[2].url, probe.token, probe.key.Reveal()); a.Code != "allowed" || a.PolicyRevision != *before.Revision {
		t.Errorf("after going back: %s by %s", a.Code, a.PolicyRevision)
	}
	if _, err = m.client.RollBackPolicy(ctx, admin.PolicyRollback{}); !errors.As(err, &refusal) || refusal.Code != "nothing_to_roll_back" {
		t.Errorf("once more: %v", err)
	}
	load.end(map[string]string{*before.Revision: "allowed", *change.Activation.Revision: "closed"})
	analysis := must(m.client.AnalyzePolicy(ctx))
	if now := must(m.client.Policy(ctx)); analysis.Revision != *now.Revision || len(analysis.Entrypoints) != 3 || !analysis.Entrypoints[0].Deterministic ||
		!slices.Contains(analysis.Entrypoints[0].Reads, "input.key.scopes") {
		t.Errorf("%+v", analysis)
	}
	history := must(m.client.ListPolicyHistory(ctx, admin.ListPolicyHistoryParams{}))
	if len(history.Items) != 2 || !history.Items[0].RolledBack || history.Items[1].Note != note {
		t.Errorf("%+v", history.Items)
	}
	log := must(m.client.ListAuditLog(ctx, "", admin.ListAuditLogParams{}))
	if log.Items[0].Action != "policy.rollback" || log.Items[1].Action != "policy.activate" {
		t.Errorf("the audit log has %s, %s", log.Items[0].Action, log.Items[1].Action)
	}
	if e := must(m.client.ListPolicyHistory(ctx, admin.ListPolicyHistoryParams{Cursor: history.NextCursor})); len(e.Items) != 2 {
		t.Errorf("%+v", e)
	}
}

func TestE2E_PoliciesAreThePlatformsAlone(t *testing.T) {
	m := startManaged(t, nil)
	ctx := t.Context()
	org := must(m.client.CreateOrganization(ctx, admin.OrganizationCreate{Name: "Acme", Plan: "standard"})).Organization.ID
	owner := must(m.client.CreateAdmin(ctx, admin.AdminCreate{Name: "Ada", Role: "owner", OrganizationID: &org, ExpiresInDays: 30}))
	client, files := m.clientFor(t, *owner.Secret), policyFiles(t, nil)
	for name, err := range map[string]error{
		"show":     second(client.Policy(ctx)),
		"history":  second(client.ListPolicyHistory(ctx, admin.ListPolicyHistoryParams{})),
		"test":     second(client.TestPolicy(ctx, admin.PolicyTestRequest{Files: &files})),
		"activate": second(client.ActivatePolicy(ctx, admin.PolicyActivate{Files: &files})),
		"rollback": second(client.RollBackPolicy(ctx, admin.PolicyRollback{})),
	} {
		var refusal *admin.Error
		if !errors.As(err, &refusal) || refusal.Status != http.StatusForbidden {
			t.Errorf("%s as an owner: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// What a directory has is in force when it proves itself; else the last good one stays.
func TestE2E_AnEditOfThePolicyDirectoryIsInForceOrRefused(t *testing.T) {
	dir := t.TempDir()
	put := func(files map[string]string) {
		t.Helper()
		for name, text := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(policyFiles(t, nil))
	m := startManaged(t, func(env map[string]string) { env["KEYSTILE_POLICY_DIR"] = dir })
	ctx, client := t.Context(), testClient()
	made := addTenant(t, m.store, m.cfg.KeyFormat)
	first := must(m.client.Policy(ctx))
	if first.Origin != "directory" || first.Source != "directory" {
		t.Fatalf("%+v", first)
	}
	await := func(what string, is func(*admin.Policy) bool) *admin.Policy {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
			if p := must(m.client.Policy(ctx)); is(p) {
				return p
			} else if time.Now().After(deadline) {
				t.Fatalf("%s: not within a minute: %+v", what, p)
			}
		}
	}
	put(map[string]string{"keystile/rules/closed/closed.rego": "package keystile.rules.closed\n\ndeny contains x if {\n"})
	refused := await("a bad edit is refused", func(p *admin.Policy) bool { return p.Refused != nil })
	if *refused.Revision != *first.Revision || *refused.Refused.Problems[0].File != "keystile/rules/closed/closed.rego" {
		t.Errorf("%+v", refused.Refused)
	}
	if _, page := get(t, client, m.opsURL+"/metrics"); !strings.Contains(page, "keystile_policy_refused 1") ||
		!strings.Contains(page, `file="keystile/rules/closed/closed.rego"`) {
		t.Error("no metric tells of the refusal, and where it is")
	}
	if _, page := get(t, client, m.opsURL+"/readyz"); !strings.Contains(page, "keystile/rules/closed/closed.rego") {
		t.Error("the ops listener does not tell what is wrong")
	}
	if a, _ := postCheck(t, client, m.url, made.token, made.key.Reveal()); a.Code != "allowed" {
		t.Errorf("meanwhile: %s", a.Code)
	}
	put(closedFridays())
	taken := await("a good edit is in force", func(p *admin.Policy) bool { return *p.Revision != *first.Revision })
	if a, _ := postCheck(t, client, m.url, made.token, made.key.Reveal()); a.Code != "policy_denied" || a.PolicyRevision != *taken.Revision || taken.Refused != nil {
		t.Errorf("%s by %s, refused %+v", a.Code, a.PolicyRevision, taken.Refused)
	}
	// The rule goes, and its test with it: that must be said.
	if err := os.RemoveAll(filepath.Join(dir, "keystile/rules/closed")); err != nil {
		t.Fatal(err)
	}
	gone := await("a rule that goes with its test is refused", func(p *admin.Policy) bool { return p.Refused != nil })
	if *gone.Revision != *taken.Revision || *gone.Refused.Problems[0].Test != "data.keystile.rules.closed_test.test_closed" {
		t.Errorf("%+v", gone.Refused)
	}
	// Nor does it go when a service is started anew.
	anew := must(startService(context.WithoutCancel(t.Context()), m.cfg, newLogger(m.cfg, m.log)))
	if state := anew.policy.keeper.State(); state.Revision != *taken.Revision || state.Refused == nil {
		t.Errorf("started anew, what was refused is in force: %+v", state)
	}
	if err := anew.close(); err != nil {
		t.Error(err)
	}
	put(map[string]string{".accept-removed-tests": "data.keystile.rules.closed_test.*\n"})
	await("when it is said, it goes", func(p *admin.Policy) bool { return *p.Revision == *first.Revision && p.Refused == nil })

	files := policyFiles(t, nil)
	var refusal *admin.Error
	if _, err := m.client.ActivatePolicy(ctx, admin.PolicyActivate{Files: &files}); !errors.As(err, &refusal) || refusal.Code != "policy_origin" {
		t.Errorf("activated beside a directory: %v", err)
	}
}

// What was kept is the measure also where it cannot be in force any more: a newer program may
// refuse it, and what is there now does not get in force for that.
func TestE2E_ADirectoryIsMeasuredByWhatWasKeptThoughThatCannotBeInForce(t *testing.T) {
	dir := t.TempDir()
	for name, text := range policyFiles(t, nil) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := testEnvironment(t)
	env["KEYSTILE_POLICY_DIR"] = dir
	was := policyFiles(t, closedFridays())
	was["keystile/rules/team/deep/deep.rego"] = "package keystile.rules.team.deep\n\ndeny contains {} if false\n" // refused by this program
	source := must(policy.SourceOf(was))
	kept := origin.NewDirectory(dir).Keep(env["KEYSTILE_STATE_DIR"])
	if err := kept.Store(source); err != nil {
		t.Fatal(err)
	}
	cfg := must(configFromEnvironment(env))
	s, err := startService(context.WithoutCancel(t.Context()), cfg, slog.New(slog.DiscardHandler))
	if err == nil {
		_ = s.close()
	}
	if err == nil || exitCode(err) != exitInvalid || !strings.Contains(err.Error(), "closed_test") || !strings.Contains(err.Error(), kept.Path()) {
		t.Errorf("a directory without a rule that was kept: %v", err)
	}
	if left := must(origin.NewDirectory(dir).Keep(env["KEYSTILE_STATE_DIR"]).Load()); left == nil || left.Revision() != source.Revision() {
		t.Error("what was kept was replaced")
	}
}

// A good edit of a directory that all replicas watch is in force on each, and no answer is of
// another policy than it says. How long that takes is printed, not judged: it is a test.
func TestE2E_AnEditOfAWatchedDirectoryIsInForceOnEveryReplica(t *testing.T) {
	dir := t.TempDir()
	write := func(files map[string]string) {
		t.Helper()
		for name, text := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			// As editors do: nobody sees half of it.
			if err := os.WriteFile(path+"~", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+"~", path); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(policyFiles(t, closedFridays()))
	m := startManaged(t, func(env map[string]string) { env["KEYSTILE_POLICY_DIR"] = dir })
	all := []*service{m.service}
	for range 2 {
		s := must(startService(context.WithoutCancel(t.Context()), m.cfg, newLogger(m.cfg, m.log)))
		t.Cleanup(func() { _ = s.close() })
		all = append(all, s)
	}
	says := map[string]string{all[0].policy.engine.Revision(): "closed"}
	load := newPolicyLoad(t, all, m.cfg.KeyFormat)
	const edits = 3
	for n := range edits {
		code := fmt.Sprintf("edited_%d", n)
		changed := closedFridays()
		for name, text := range changed {
			changed[name] = strings.Replace(text, `"code": "closed"`, `"code": "`+code+`"`, 1)
		}
		before := all[0].policy.engine.Revision()
		started := time.Now()
		write(map[string]string{"keystile/rules/closed/closed.rego": changed["keystile/rules/closed/closed.rego"]})
		var took []string
		for _, s := range all {
			awaitPolicy(t, "the edit is in force", func() bool { return s.policy.engine.Revision() != before })
			took = append(took, time.Since(started).Round(time.Millisecond).String())
		}
		now := all[0].policy.engine.Revision()
		for _, s := range all {
			if r := s.policy.engine.Revision(); r != now {
				t.Errorf("replicas decide by %s and %s", now, r)
			}
		}
		says[now] = code
		t.Logf("edit %d is in force on all of %d replicas within %v", n, len(all), took)
		awaitPolicy(t, "answers are by it", func() bool {
			load.mu.Lock()
			defer load.mu.Unlock()
			return load.answers[policyAnswer{now, code}] > 0
		})
	}
	load.end(says)
}

// A service that comes up without Postgres does not decide by the built-in policy, which may
// not be what was activated: it waits.
func TestPolicySource_NothingIsInForceBeforeTheDatabaseSaysWhat(t *testing.T) {
	cfg, err := configFromEnvironment(testEnvironment(t))
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPolicySource(t.Context(), cfg, newLogger(cfg, &lockedBuffer{}))
	if err != nil {
		t.Fatal(err)
	}
	if s := p.keeper.State(); s.Revision != "" || p.engine.Revision() != "" || p.keeper.Origin() != authz.OriginDatabase {
		t.Errorf("%+v", s)
	}
}

func TestE2E_AnExplanationNamesTheRuleAndTheSmallestChange(t *testing.T) {
	m := startManaged(t, nil)
	ctx := t.Context()
	made := addTenant(t, m.store, m.cfg.KeyFormat) // has tickets:read
	permissions := []admin.Permission{"check", "explain"}
	token := must(m.client.CreateCaller(ctx, admin.CallerCreate{Name: "support", Environments: []admin.Environment{"live"}, Permissions: &permissions})).Secret
	if err := m.store.Synchronize(ctx); err != nil {
		t.Fatal(err)
	}
	client := must(keystile.New(m.url, *token))
	defer client.CloseIdleConnections()
	question := keystile.Question{Key: made.key.Reveal(), Method: "POST", Path: "/api/v1/tickets"}
	e := must(client.Explain(ctx, question))
	if e.WouldAllow || e.Code != "insufficient_scope" || len(e.Remedies) != 1 || e.Remedies[0].Changes[0].Scope != "tickets:write" || !e.Remedies[0].Tried {
		t.Errorf("%+v", e)
	}
	if !slices.ContainsFunc(e.Rules, func(r keystile.ExplainedRule) bool {
		return r.Title == "Insufficient scope" && r.Fired && r.File == "keystile/check/scopes.rego" && r.Line > 0
	}) {
		t.Errorf("the rule that denies is not named: %+v", e.Rules)
	}
	question.Method = "GET"
	if e = must(client.Explain(ctx, question)); !e.WouldAllow || len(e.Remedies) != 0 || len(e.Limits) != 1 {
		t.Errorf("%+v", e)
	}
	// Nothing was charged.
	d := must(client.Check(ctx, question))
	if !d.Allowed() || d.RateLimit.Remaining != 99 {
		t.Errorf("after two explanations: %+v", d.RateLimit)
	}
}
