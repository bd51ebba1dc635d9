package faults

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/sdk/admin"
)

// auditFaults are ways in which no row can be written to the audit log, and how they end.
func auditFaults() []struct{ name, cause, undo string } {
	refuse := func(when, code string) string {
		return `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '` + code + `'; END $$;
			CREATE ` + when + ` ON audit_log ` + strings.Repeat(`DEFERRABLE INITIALLY DEFERRED `, strings.Count(when, "CONSTRAINT")) +
			`FOR EACH ROW EXECUTE FUNCTION refuse()`
	}
	const undo = `DROP FUNCTION refuse CASCADE`
	return []struct{ name, cause, undo string }{
		{"not permitted", refuse("TRIGGER refuse BEFORE INSERT", "42501"), undo},
		{"disk full", refuse("TRIGGER refuse BEFORE INSERT", "53100"), undo},
		{"refused at the commit", refuse("CONSTRAINT TRIGGER refuse AFTER INSERT", "P0001"), undo},
		{"no such table", `ALTER TABLE audit_log RENAME TO audit_log_away`, `ALTER TABLE audit_log_away RENAME TO audit_log`},
	}
}

// managed is everything that management changes, as one text.
const managed = `SELECT md5(string_agg(t, E'\n' ORDER BY t)) FROM (
	SELECT 'k' || x::text FROM api_keys x UNION ALL SELECT 's' || x::text FROM key_secrets x UNION ALL
	SELECT 'c' || x::text FROM callers x UNION ALL SELECT 't' || x::text FROM caller_tokens x UNION ALL
	SELECT 'o' || x::text FROM organizations x UNION ALL SELECT 'a' || x::text FROM admins x UNION ALL
	SELECT 'd' || x::text FROM admin_tokens x UNION ALL SELECT 'i' || x::text FROM idempotency x UNION ALL
	SELECT 'r' || x::text FROM revision x UNION ALL SELECT 'm' || x::text FROM revision_marks x) AS all_of_it (t)`

// auditLogBroken has every kind of change meet an audit log that takes no row.
func auditLogBroken(t *trial) {
	s := newSite(t)
	keys := s.addKeys(20, plenty())
	replicas := s.start(3)
	s.warm(replicas, keys)
	organization := s.newOrganization(replicas[0], "Globex")
	other := s.createKey(replicas[0], organization, nil)
	s.warm(replicas, []*key{other})
	l := s.startLoad(plan{to: replicas, keys: append(keys, other), rate: either(t, 600, 60)})
	s.db(func(db *sqlx.DB) {
		for _, fault := range auditFaults() {
			s.auditFault(db, replicas, fault.name, fault.cause, fault.undo, keys[0], organization)
		}
	})
	change, err := s.management(replicas[1]).RevokeKey(t.Context(), keys[0].id.String())
	t.exact(err == nil, "when the audit log takes rows again, a revocation: error %v", err)
	if err == nil {
		keys[0].deniedSince(change.Effective)
	}
	denied := func() bool { return s.once(replicas, keys[0]).allowed() == 0 }
	t.exact(within(patience, denied), "and it is denied on 3 replicas")
	served := l.stop().where(func(a *answer) bool { return a.key != keys[0] })
	s.judgeServed("checks meanwhile", served)
}

// auditFault tries every kind of change under one fault: all must fail, and nothing of
// them be there.
func (s *site) auditFault(db *sqlx.DB, replicas []*replica, name, cause, undo string, k *key, organization string) {
	s.Helper()
	before := queryText(s.trial, s.postgres.URL("postgres"), managed)
	if _, err := db.ExecContext(s.Context(), cause); err != nil {
		s.Fatal(err)
	}
	outcomes := map[string]int{}
	done := []string{}
	for i, change := range s.changes(k, organization) {
		err := change.do(s.management(replicas[i%len(replicas)]))
		var refused *admin.Error
		switch {
		case err == nil:
			done = append(done, change.name)
		case errors.As(err, &refused):
			outcomes[fmt.Sprintf("%d %s", refused.Status, refused.Code)]++
		default:
			outcomes[err.Error()]++
		}
	}
	if _, err := db.ExecContext(s.Context(), undo); err != nil {
		s.Fatal(err)
	}
	failures := true
	for outcome := range outcomes {
		failures = failures && strings.HasPrefix(outcome, "5")
	}
	s.exact(len(done) == 0 && failures, "%s: %d of %d changes done %v; the others: %v", name, len(done), len(s.changes(k, organization)), done, outcomes)
	same := queryText(s.trial, s.postgres.URL("postgres"), managed) == before
	some := s.once(replicas, k)
	s.exact(same && len(some.except("allowed")) == 0, "what is stored is unchanged: %t; the key that they were about, on 3 replicas: %v", same, some)
}

// managementChange is one kind of change, as an admin asks for it.
type managementChange struct {
	name string
	do   func(*admin.Client) error
}

// changes are one of each kind, on one key and an organization that has others.
func (s *site) changes(k *key, organization string) []managementChange {
	ctx, id, yes := s.Context(), k.id.String(), true
	return []managementChange{
		{"create a key", func(c *admin.Client) error {
			_, err := c.CreateKey(ctx, organization, admin.KeyCreate{Name: "x", Environment: admin.Live, Scopes: []string{"tickets:read"}})
			return err
		}},
		{"revoke a key", func(c *admin.Client) error { _, err := c.RevokeKey(ctx, id); return err }},
		{"disable a key", func(c *admin.Client) error {
			_, err := c.UpdateKey(ctx, id, admin.KeyUpdate{Disabled: &yes})
			return err
		}},
		{"rotate a key", func(c *admin.Client) error { _, err := c.RotateKey(ctx, id, admin.KeyRotate{}); return err }},
		{"suspend an organization", func(c *admin.Client) error {
			_, err := c.UpdateOrganization(ctx, organization, admin.OrganizationUpdate{Suspended: &yes})
			return err
		}},
		{"create an organization", func(c *admin.Client) error {
			_, err := c.CreateOrganization(ctx, admin.OrganizationCreate{Name: "x", Plan: "standard"})
			return err
		}},
		{"create a caller", func(c *admin.Client) error {
			_, err := c.CreateCaller(ctx, admin.CallerCreate{Name: "x", Environments: []admin.Environment{admin.Live}})
			return err
		}},
	}
}
