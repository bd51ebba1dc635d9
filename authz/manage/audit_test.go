package manage_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store/storetest"
)

// audited makes a rig whose organization has a chain of some rows, and the
// checkpoints that tell them.
func audited(t *testing.T) (r *rig, checkpoints []string) {
	t.Helper()
	r = newRig(t)
	for i := range 5 {
		in := keyInput()
		in.Name = fmt.Sprintf("key %d", i)
		r.key(t, in)
	}
	lines, problems, err := r.Checkpoints(t.Context())
	if err != nil || len(lines) != 1 || len(problems) != 0 {
		t.Fatalf("%q, %v, %v", lines, problems, err)
	}
	return r, lines
}

func (r *rig) verify(t *testing.T, lines ...string) *manage.Verification {
	t.Helper()
	v, err := r.VerifyAuditLog(t.Context(), r.as(r.platform), authz.OrganizationID{}, lines)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAuditLog_UntouchedIsValid(t *testing.T) {
	r, lines := audited(t)
	v := r.verify(t, lines...)
	// Acme's creation and five keys; the bootstrap.
	if len(v.Problems) > 0 || v.Rows != 7 || v.Chains != 2 || v.Checkpoints != len(lines) {
		t.Errorf("%+v", v)
	}
	if more, _, err := r.Checkpoints(t.Context()); err != nil || len(more) != 1 || !strings.Contains(more[0], `"heads":[]`) {
		t.Errorf("nothing has changed, and that is told too: %q, %v", more, err)
	}
	r.key(t, keyInput())
	more, _, err := r.Checkpoints(t.Context())
	if err != nil || len(more) != 1 || strings.Contains(more[0], `"platform"`) {
		t.Errorf("the one chain that has grown: %q, %v", more, err)
	}
	if v := r.verify(t, append(lines, more...)...); len(v.Problems) > 0 {
		t.Errorf("%+v", v)
	}
}

// Whoever can write rows cannot make their MACs: what was done to the table is found.
func TestAuditLog_WhatWasDoneToTheTableIsFound(t *testing.T) {
	const ofAcme = ` AND organization_id IS NOT NULL`
	for name, tt := range map[string]struct {
		statements []string
		code       string
		sequence   int64
		// only tells that nothing but a checkpoint can know it.
		only bool
	}{
		"an edited row": {
			[]string{`UPDATE audit_log SET actor_id = 'admin_someone' WHERE sequence = 3` + ofAcme}, "edited", 3, false,
		},
		"an edited document": {
			[]string{`UPDATE audit_log SET after = replace(after::text, 'tickets:read', 'tickets:more')::json WHERE sequence = 3` + ofAcme}, "edited", 3, false,
		},
		"an edited row with recomputed hashes": {
			[]string{
				`UPDATE audit_log SET action = 'keys.update', mac = sha256(convert_to(id::text || action, 'UTF8')) WHERE sequence = 3` + ofAcme,
				`UPDATE audit_log SET previous_mac = (SELECT mac FROM audit_log WHERE sequence = 3` + ofAcme + `) WHERE sequence = 4` + ofAcme,
			}, "edited", 3, false,
		},
		"an edited time": {
			[]string{`UPDATE audit_log SET at = at - interval '1 microsecond' WHERE sequence = 2` + ofAcme}, "edited", 2, false,
		},
		"a removed row": {[]string{`DELETE FROM audit_log WHERE sequence = 3` + ofAcme}, "missing", 3, false},
		"a removed row, closed up": {
			[]string{
				`DELETE FROM audit_log WHERE sequence = 3` + ofAcme,
				`UPDATE audit_log SET sequence = sequence - 1, previous_mac = CASE WHEN sequence = 4
					THEN (SELECT mac FROM audit_log WHERE sequence = 2` + ofAcme + `) ELSE previous_mac END WHERE sequence > 3` + ofAcme,
			}, "edited", 3, false,
		},
		"the first row removed": {[]string{`DELETE FROM audit_log WHERE sequence = 1` + ofAcme}, "missing", 1, false},
		"a row moved to another chain": {
			[]string{`UPDATE audit_log SET organization_id = NULL, sequence = 2 WHERE sequence = 6` + ofAcme}, "edited", 2, false,
		},
		"a row that hides by its revision": {
			[]string{`UPDATE audit_log SET revision = 0, actor_id = 'admin_nobody' WHERE true` + ofAcme}, "edited", 1, false,
		},
		"a row before the first": {
			[]string{
				`ALTER TABLE audit_log DROP CONSTRAINT audit_log_sequence_check`,
				`INSERT INTO audit_log SELECT gen_random_uuid(), organization_id, 0, at, actor_type, actor_id, action, target, before,
					after, address, request_id, NULL, mac, revision, key_id FROM audit_log WHERE sequence = 3` + ofAcme,
			}, "edited", 0, false,
		},
		"a truncated tail":   {[]string{`DELETE FROM audit_log WHERE sequence >= 5` + ofAcme}, "truncated", 6, true},
		"a chain that went":  {[]string{`DELETE FROM audit_log WHERE true` + ofAcme}, "truncated", 6, true},
		"the platform's too": {[]string{`DELETE FROM audit_log`}, "truncated", 6, true},
	} {
		t.Run(name, func(t *testing.T) {
			r, lines := audited(t)
			for _, statement := range tt.statements {
				storetest.Exec(t, r.at, statement)
			}
			found := func(v *manage.Verification) bool {
				for _, p := range v.Problems {
					if p.Code == tt.code && p.Sequence == tt.sequence && p.Message != "" {
						return true
					}
				}
				return false
			}
			if v := r.verify(t, lines...); !found(v) {
				t.Errorf("not found: %+v", v.Problems)
			}
			if v := r.verify(t); found(v) == tt.only {
				t.Errorf("without checkpoints: %+v", v.Problems)
			}
		})
	}
}

// A tail that was cut off, and grew again, is not the one of the checkpoint.
func TestAuditLog_ReplacedTailIsFound(t *testing.T) {
	r, lines := audited(t)
	storetest.Exec(t, r.at, `DELETE FROM audit_log WHERE sequence >= 5 AND organization_id IS NOT NULL`)
	for range 3 {
		r.key(t, keyInput())
	}
	v := r.verify(t, lines...)
	if len(v.Problems) != 1 || v.Problems[0].Code != "truncated" || v.Problems[0].Sequence != 6 {
		t.Errorf("%+v", v.Problems)
	}
}

func TestAuditLog_ForgedCheckpointIsNotBelieved(t *testing.T) {
	r, lines := audited(t)
	unsigned, _, _ := strings.Cut(lines[0], `,"signature"`)
	for name, line := range map[string]string{
		"another sequence": strings.Replace(lines[0], `"sequence":6`, `"sequence":5`, 1),
		"no signature":     unsigned + "}",
		"no checkpoint":    `{"keystile_checkpoint":1}`,
		"no JSON":          "nonsense",
		"an unknown key":   strings.Replace(lines[0], `"key_id":"p1"`, `"key_id":"p2"`, 1),
	} {
		v := r.verify(t, line)
		if len(v.Problems) != 1 || v.Problems[0].Code != "bad_checkpoint" || v.Checkpoints != 0 {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// The audit row is of the change's own transaction: without it there is no change.
func TestAuditLog_WhatCannotBeRecordedDoesNotHappen(t *testing.T) {
	r := newRig(t)
	made := r.key(t, keyInput())
	storetest.Exec(t, r.at, `ALTER TABLE audit_log ADD CONSTRAINT no_more CHECK (sequence < 3)`)
	if _, err := r.RevokeKey(t.Context(), r.as(r.platform), r.org, made.Key.ID); err == nil {
		t.Fatal("revoked without a trace")
	}
	if k, at, err := r.GetKey(t.Context(), r.as(r.platform), r.org, made.Key.ID); err != nil || k.Status(at) != manage.StatusActive {
		t.Errorf("%+v, %v", k, err)
	}
}

func TestAuditLog_RowsTellWhoDidWhatFromWhereAndWhatItWas(t *testing.T) {
	r := newRig(t)
	made := r.key(t, keyInput())
	name := "renamed"
	if _, err := r.UpdateKey(t.Context(), r.as(r.platform), r.org, made.Key.ID, manage.KeyUpdate{Name: &name}); err != nil {
		t.Fatal(err)
	}
	list, err := r.ListAuditLog(t.Context(), r.as(r.platform), r.org, manage.AuditFilter{Limit: 1})
	if err != nil || len(list.Items) != 1 || list.Next == "" {
		t.Fatalf("%+v, %v", list, err)
	}
	e := list.Items[0]
	if e.ActorID != r.platform.ID.String() || e.Action != "keys.update" || e.Target != made.Key.ID.String() || e.RequestID != "req-1" ||
		!strings.Contains(string(e.Before), `"name":"ci"`) || !strings.Contains(string(e.After), `"name":"renamed"`) {
		t.Errorf("%+v\n%s\n%s", e, e.Before, e.After)
	}
	for _, text := range []string{string(e.Before), string(e.After)} {
		if strings.Contains(text, made.Secret.Reveal()) {
			t.Error("a secret is in the audit log")
		}
	}
	before := list
	list, err = r.ListAuditLog(t.Context(), r.as(r.platform), r.org, manage.AuditFilter{Limit: 10, After: before.Items[0].Sequence})
	if err != nil || len(list.Items) != 2 || list.Next != "" || list.Items[1].Sequence != 1 {
		t.Errorf("the rest: %+v, %v", list, err)
	}
}

// Nothing that can be written into rows keeps a chain out of the checkpoints, and what
// was cut between two of them is told at once.
func TestCheckpoints_AreNotSilencedByWhatStandsInRows(t *testing.T) {
	r, _ := audited(t)
	storetest.Exec(t, r.at, `UPDATE audit_log SET revision = 9000000000000000000 WHERE sequence = 6 AND organization_id IS NOT NULL`)
	if _, _, err := r.Checkpoints(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.key(t, keyInput())
	lines, problems, err := r.Checkpoints(t.Context())
	if err != nil || len(problems) != 0 || len(lines) != 1 || !strings.Contains(lines[0], `"sequence":7`) {
		t.Errorf("%q, %v, %v", lines, problems, err)
	}
	storetest.Exec(t, r.at, `DELETE FROM audit_log WHERE sequence > 5 AND organization_id IS NOT NULL`)
	if _, problems, err = r.Checkpoints(t.Context()); err != nil || len(problems) != 1 || problems[0].Sequence != 7 {
		t.Errorf("%v, %v", problems, err)
	}
}
