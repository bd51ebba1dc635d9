package manage_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// meanwhileStore has something happen when a change is made and no replica knows of it yet.
type meanwhileStore struct {
	*store.Store

	meanwhile func()
}

func (s *meanwhileStore) Effective(ctx context.Context, revision int64) (manage.Effective, error) {
	if happen := s.meanwhile; happen != nil {
		s.meanwhile = nil
		happen()
	}
	return s.Store.Effective(ctx, revision)
}

// What a key is used for until every replica knows that it was narrowed is traffic as well.
func TestApplyFindings_WhatIsUsedMeanwhileIsGivenBack(t *testing.T) {
	r := newNarrowRig(t, 1)
	made := r.used(t)
	late := &meanwhileStore{Store: r.store}
	var err error
	r.Service, err = manage.New(manage.Options{
		Store: late, Policy: r.engine, Policies: r.keeper, Auditor: r.auditor, Format: r.format, AuditKeys: r.keys,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.auditor.remove = []authz.Scope{"tickets:write"}
	request := r.as(r.platform)
	request.IdempotencyKey, request.Operation = "once", "apply"
	apply := func() error {
		_, err := r.ApplyFindings(t.Context(), request, r.org, made.Key.ID, manage.NarrowingInput{})
		return err
	}
	late.meanwhile = func() { r.check(t, r.store, true, r.get(t, 0, made.Secret, "POST", "/api/v1/tickets")) }
	err = apply()
	var refused *authz.Error
	if code(err) != "traffic_needs_scopes" || !asError(err, &refused) || !strings.Contains(refused.Message, "has its scopes again") ||
		len(refused.Reasons) != 1 || !strings.Contains(refused.Reasons[0].Message, "tickets:write") {
		t.Fatalf("%v, %+v", err, refused)
	}
	k, _, err := r.GetKey(t.Context(), r.as(r.platform), r.org, made.Key.ID)
	if err != nil || !slices.Equal(k.Scopes, allScopes()) {
		t.Errorf("%+v, %v", k, err)
	}
	log, err := r.ListAuditLog(t.Context(), r.as(r.platform), r.org, manage.AuditFilter{Action: "keys.rightsize_undo", Limit: 10})
	if err != nil || len(log.Items) != 1 || !strings.Contains(string(log.Items[0].After), `"because":"traffic_needs_scopes"`) {
		t.Errorf("%+v, %v", log, err)
	}
	// The same request again is a new one: it is not told that the key was narrowed.
	if err := apply(); code(err) != "traffic_needs_scopes" {
		t.Errorf("again: %v", err)
	}
	// What needs nothing of it, or comes when all replicas know, keeps nothing.
	r.auditor.remove = []authz.Scope{"customers:write"}
	late.meanwhile = func() { r.check(t, r.store, true, r.get(t, 0, made.Secret, "GET", "/api/v1/customers")) }
	if err := apply(); err != nil {
		t.Errorf("what needs nothing of it: %v", err)
	}
}

// Who gives a key a scope back by hand, and takes it again, has decided that it shall not have it.
func TestUndoFindings_WhatWasTakenByHandSinceIsNotGivenBack(t *testing.T) {
	r := newNarrowRig(t, 1)
	made := r.used(t)
	r.auditor.remove = []authz.Scope{"tickets:write"}
	if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); err != nil {
		t.Fatal(err)
	}
	for _, scopes := range [][]authz.Scope{allScopes(), allScopes()[:3]} {
		if _, err := r.UpdateKey(t.Context(), r.as(r.platform), r.org, made.Key.ID, manage.KeyUpdate{Scopes: scopes}); err != nil {
			t.Fatal(err)
		}
	}
	undo := func() string {
		_, err := r.UndoFindings(t.Context(), r.as(r.platform), r.org, made.Key.ID)
		return code(err)
	}
	if got := undo(); got != "scopes_changed" {
		t.Error(got)
	}
	// Nor by way of another narrowing, which is undone.
	r.auditor.remove = []authz.Scope{"customers:write"}
	if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); err != nil {
		t.Fatal(err)
	}
	if first, second := undo(), undo(); first != "" || second != "nothing_to_undo" {
		t.Errorf("%q, then %q", first, second)
	}
}

// When it cannot be found out what a key was used for meanwhile, it has what it had.
func TestApplyFindings_WhatIsNotKnownOfMeanwhileIsGivenBack(t *testing.T) {
	r := newNarrowRig(t, 1)
	made := r.used(t)
	late := &meanwhileStore{Store: r.store}
	late.meanwhile = func() {
		storetest.Exec(t, r.at, `INSERT INTO replicas (id, name, started_at, heartbeat_at, applied_revision, stale_max_ms, pepper_ids)
			VALUES (gen_random_uuid(), 'silent', now(), now(), 0, 300000, '{}')`)
	}
	var err error
	r.Service, err = manage.New(manage.Options{
		Store: late, Policy: r.engine, Policies: r.keeper, Auditor: r.auditor, Format: r.format, AuditKeys: r.keys,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.auditor.remove = []authz.Scope{"tickets:write"}
	if _, err := r.apply(t, made.Key.ID, manage.NarrowingInput{}); code(err) != "usage_not_written" {
		t.Fatalf("%v", err)
	}
	if k, _, err := r.GetKey(t.Context(), r.as(r.platform), r.org, made.Key.ID); err != nil || !slices.Equal(k.Scopes, allScopes()) {
		t.Errorf("%+v, %v", k, err)
	}
}
