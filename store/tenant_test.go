package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store/storetest"
)

// dump is the text of every row that management may touch.
func dump(t *testing.T, at string) string {
	t.Helper()
	db, err := sqlx.ConnectContext(t.Context(), "postgres", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var out strings.Builder
	for _, table := range []string{
		"organizations", "api_keys", "key_secrets", "callers", "caller_tokens", "admins", "admin_tokens", "foreign_formats", "audit_log", "policy_shadows",
	} {
		var rows []string
		if err := db.SelectContext(t.Context(), &rows, `SELECT row_to_json(x)::text FROM `+table+` x ORDER BY 1`); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&out, table, strings.Join(rows, "\n"))
	}
	return out.String()
}

// No call opens another organization, whatever policy or a forgotten check says:
// everything that a foreign tenant asks for is not there, and nothing changes.
func TestStore_EveryStatementHasTheTenant(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	w, foreign := newWhole(t, s, "acme"), newWhole(t, s, "globex")
	platform := manage.Admin{
		ID: authz.NewAdminID(time.Now()), Name: "root", Role: authz.RolePlatformAdmin, ExpiresAt: time.Now().Add(time.Hour),
		Tokens: []manage.Token{{ID: authz.NewSecretID(time.Now()), Hint: "h", ExpiresAt: time.Now().Add(time.Hour)}},
	}
	shadow := someShadow(time.Hour)
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		return errors.Join(c.StartPolicyShadow(ctx, all(), &shadow, []byte("archive")), c.InsertAdmin(ctx, all(), &platform, authz.AdminTokens().Generate()),
			c.AppendAudit(ctx, []manage.AuditEvent{event(c, w.organization.ID, 1), event(c, authz.OrganizationID{}, 1)}))
	})
	decision := authz.NewDecisionID(time.Now())
	storetest.Exec(t, at, `INSERT INTO decisions (id, at, organization_id, environment, method, route, action, code, status, reasons, required,
		missing, policy_revision, degraded, browser) VALUES ($1, now(), $2, '', '', '', '', 'x', 403, '{}', '{}', '{}', '', '{}', false)`,
		decision, w.organization.ID)
	counts, differences := shadowCounts(1), []authz.PolicyShadowDifference{shadowDifference(w.organization.ID, w.key.ID, "/a", 1)}
	if err := s.WritePolicyShadow(t.Context(), shadow.Change, counts, differences); err != nil {
		t.Fatal(err)
	}
	counterOf(s, w).count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", time.Now())
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := dump(t, at)
	page := manage.Page{Limit: 10}
	org := w.organization.ID
	secret := func() authz.Secret { return format(t).Generate(authz.EnvironmentLive) }
	for name, tenant := range map[string]manage.Tenant{"foreign": of(foreign.organization.ID), "zero": {}} {
		// Each tells ErrNotFound.
		for call, do := range map[string]func(context.Context, manage.Writer) error{
			"Organization": func(ctx context.Context, c manage.Writer) error {
				_, err := c.Organization(ctx, tenant, org)
				return err
			},
			"Key": func(ctx context.Context, c manage.Writer) error {
				_, err := c.Key(ctx, tenant, org, w.key.ID)
				return err
			},
			"Key of any": func(ctx context.Context, c manage.Writer) error {
				_, err := c.Key(ctx, tenant, authz.OrganizationID{}, w.key.ID)
				return err
			},
			"Decision": func(ctx context.Context, c manage.Writer) error {
				_, err := c.Decision(ctx, tenant, decision)
				return err
			},
			"PolicyShadow": func(ctx context.Context, c manage.Writer) error {
				_, err := c.PolicyShadow(ctx, tenant)
				return err
			},
			"StartPolicyShadow": func(ctx context.Context, c manage.Writer) error {
				other := shadow
				return c.StartPolicyShadow(ctx, tenant, &other, []byte("archive"))
			},
			"EndPolicyShadow": func(ctx context.Context, c manage.Writer) error {
				ended := shadow
				ended.EndedAt, ended.Reason = c.Now(), authz.ShadowStopped
				return c.EndPolicyShadow(ctx, tenant, ended)
			},
			"Caller": func(ctx context.Context, c manage.Writer) error {
				_, err := c.Caller(ctx, tenant, w.caller.ID)
				return err
			},
			"Admin": func(ctx context.Context, c manage.Writer) error {
				_, err := c.Admin(ctx, tenant, w.admin.ID)
				return err
			},
			"platform Admin": func(ctx context.Context, c manage.Writer) error {
				_, err := c.Admin(ctx, tenant, platform.ID)
				return err
			},
			"InsertOrganization": func(ctx context.Context, c manage.Writer) error {
				o := manage.Organization{ID: authz.NewOrganizationID(c.Now()), Name: "x", Plan: "standard"}
				return c.InsertOrganization(ctx, tenant, &o)
			},
			"UpdateOrganization": func(ctx context.Context, c manage.Writer) error {
				o := w.organization
				o.Name = "taken over"
				return c.UpdateOrganization(ctx, tenant, &o)
			},
			"InsertKey": func(ctx context.Context, c manage.Writer) error {
				k := newKey(c.Now(), org)
				return c.InsertKey(ctx, tenant, &k, secret())
			},
			"UpdateKey": func(ctx context.Context, c manage.Writer) error {
				k := w.key
				k.Name = "taken over"
				return c.UpdateKey(ctx, tenant, &k)
			},
			"InsertSecret": func(ctx context.Context, c manage.Writer) error {
				k := w.key
				return c.InsertSecret(ctx, tenant, &k, &manage.KeySecret{ID: authz.NewSecretID(c.Now()), Hint: "h"}, secret())
			},
			"EndSecret": func(ctx context.Context, c manage.Writer) error {
				k := w.key
				return c.EndSecret(ctx, tenant, &k, &manage.KeySecret{ID: k.Secrets[0].ID, RevokedAt: c.Now()})
			},
			"RevokeKeys": func(ctx context.Context, c manage.Writer) error { _, err := c.RevokeKeys(ctx, tenant, org); return err },
			"RevokeAdmins": func(ctx context.Context, c manage.Writer) error {
				_, err := c.RevokeAdmins(ctx, tenant, org)
				return err
			},
			"ImportKeys": func(ctx context.Context, c manage.Writer) error {
				_, err := c.ImportKeys(ctx, tenant, []manage.ImportedKey{{Key: newKey(c.Now(), org), Hash: secret().Hash()}})
				return err
			},
			"DeclareFormat": func(ctx context.Context, c manage.Writer) error {
				_, err := c.DeclareFormat(ctx, tenant, authz.ForeignFormat{Prefix: "x_", Length: 40, Alphabet: "0123456789abcdef"})
				return err
			},
			"InsertCaller": func(ctx context.Context, c manage.Writer) error {
				caller := manage.Caller{ID: authz.NewCallerID(c.Now()), Name: "x", Tokens: []manage.Token{{ID: authz.NewSecretID(c.Now())}}}
				return c.InsertCaller(ctx, tenant, &caller, authz.CallerTokens().Generate())
			},
			"UpdateCaller": func(ctx context.Context, c manage.Writer) error {
				return c.UpdateCaller(ctx, tenant, &manage.Caller{ID: w.caller.ID, RevokedAt: c.Now()})
			},
			"InsertCallerToken": func(ctx context.Context, c manage.Writer) error {
				return c.InsertCallerToken(ctx, tenant, &w.caller, &manage.Token{ID: authz.NewSecretID(c.Now())}, authz.CallerTokens().Generate())
			},
			"EndCallerToken": func(ctx context.Context, c manage.Writer) error {
				return c.EndCallerToken(ctx, tenant, &w.caller, &manage.Token{ID: w.caller.Tokens[0].ID, RevokedAt: c.Now()})
			},
			"InsertAdmin": func(ctx context.Context, c manage.Writer) error {
				a := w.admin
				a.ID, a.Tokens = authz.NewAdminID(c.Now()), []manage.Token{{ID: authz.NewSecretID(c.Now()), ExpiresAt: a.ExpiresAt}}
				return c.InsertAdmin(ctx, tenant, &a, authz.AdminTokens().Generate())
			},
			"InsertAdmin of the platform": func(ctx context.Context, c manage.Writer) error {
				a := platform
				a.ID, a.Tokens = authz.NewAdminID(c.Now()), []manage.Token{{ID: authz.NewSecretID(c.Now()), ExpiresAt: a.ExpiresAt}}
				return c.InsertAdmin(ctx, tenant, &a, authz.AdminTokens().Generate())
			},
			"UpdateAdmin": func(ctx context.Context, c manage.Writer) error {
				a := w.admin
				a.RevokedAt = c.Now()
				return c.UpdateAdmin(ctx, tenant, &a)
			},
			"InsertAdminToken": func(ctx context.Context, c manage.Writer) error {
				token := manage.Token{ID: authz.NewSecretID(c.Now()), ExpiresAt: w.admin.ExpiresAt}
				return c.InsertAdminToken(ctx, tenant, &w.admin, &token, authz.AdminTokens().Generate())
			},
			"EndAdminToken": func(ctx context.Context, c manage.Writer) error {
				return c.EndAdminToken(ctx, tenant, &w.admin, &manage.Token{ID: w.admin.Tokens[0].ID, ExpiresAt: w.admin.ExpiresAt, RevokedAt: c.Now()})
			},
		} {
			manageWrite(t, s, func(ctx context.Context, c manage.Writer) error { // kept, whatever it was
				if err := do(ctx, c); !errors.Is(err, manage.ErrNotFound) {
					t.Errorf("%s tenant, %s: %v", name, call, err)
				}
				return nil
			})
		}
		// Each tells nothing.
		manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
			organizations, err1 := r.Organizations(ctx, tenant, manage.OrganizationFilter{ExternalID: "acme"}, page)
			keys, err2 := r.Keys(ctx, tenant, org, manage.KeyFilter{}, page)
			count, err3 := r.CountKeys(ctx, tenant, org)
			callers, err4 := r.Callers(ctx, tenant, "", page)
			admins, err5 := r.Admins(ctx, tenant, manage.AdminFilter{}, page)
			events, err6 := r.AuditEvents(ctx, tenant, org, manage.AuditFilter{Limit: 10})
			platforms, err7 := r.AuditEvents(ctx, tenant, authz.OrganizationID{}, manage.AuditFilter{Limit: 10})
			chains, err8 := r.AuditChains(ctx, tenant)
			report := authz.PolicyShadowReport{Shadow: shadow}
			err9 := r.PolicyShadowReport(ctx, tenant, &report, 10)
			for _, a := range admins {
				if a.OrganizationID != foreign.organization.ID {
					t.Errorf("%s tenant sees an admin", name)
				}
			}
			if report.Replicas+len(report.Differences) > 0 {
				t.Errorf("%s tenant sees what came of a shadow: %+v", name, report)
			}
			if len(organizations)+len(keys)+count+len(callers)+len(events)+len(platforms)+len(chains) > 0 {
				t.Errorf("%s tenant sees %d %d %d %d %d %d %d", name,
					len(organizations), len(keys), count, len(callers), len(events), len(platforms), len(chains))
			}
			return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9)
		})
		for _, f := range []manage.UsageFilter{{Step: manage.UsageHourly}, {Step: manage.UsageDaily}, {Step: manage.UsageDaily, Key: w.key.ID}} {
			f.Organization, f.Since, f.Until, f.Top = org, time.Now().Add(-48*time.Hour), time.Now().Add(48*time.Hour), 10
			manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
				seen, err := r.Usage(ctx, all(), f)
				if err != nil || seen.Requests != 1 || len(seen.Networks.Items) != 1 || f.Key.IsZero() != (len(seen.Keys.Items) == 1) || f.Key.IsZero() == (len(seen.Secrets) == 1) {
					t.Fatalf("everyone: %+v, %v", seen, err)
				}
				u, err := r.Usage(ctx, tenant, f)
				if diff := cmp.Diff(&manage.Usage{UsageFilter: f}, u, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty(), cmpopts.EquateComparable(authz.KeyID{}, authz.OrganizationID{})); diff != "" {
					t.Errorf("%s tenant sees usage: %s", name, diff)
				}
				return err
			})
		}
		if after := dump(t, at); after != before {
			t.Errorf("%s tenant changed something:\n%s", name, after)
			before = after
		}
	}
}
