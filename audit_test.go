package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/audit"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// quarterSeeds are the quarters of the table in authz/audit/README.md; the test of every day
// makes up the first two. KEYSTILE_AUDIT_SEEDS=5 makes up all, and KEYSTILE_AUDIT_REPORT=FILE
// writes the first one's page.
const (
	quarterSeeds      = 5
	quarterSeedsDaily = 2
)

// quarterResult is what an audit of a quarter came to.
type quarterResult struct {
	found          int
	missed, alarms []string
	summary        authz.AuditSummary
}

// What is planted among two thousand keys of a quarter is found, and hardly anything else.
func TestAudit_AQuarterIsFoundOutWithoutFalseAlarms(t *testing.T) {
	p := readQuarter(t)
	seeds := quarterSeedsDaily
	if os.Getenv("KEYSTILE_AUDIT_SEEDS") != "" {
		seeds = quarterSeeds
	}
	for seed := range seeds {
		r := auditQuarter(t, newQuarter(p, uint64(seed+1)))
		planted := 12 * p.Planted
		t.Logf("| %d | %d of %d | %d | %d | %d | %d |", seed+1, r.found, planted, len(r.alarms), r.summary.Keys, r.summary.Undecided, r.summary.Classes)
		if r.found < planted-1 || len(r.alarms) > 1 {
			t.Errorf("seed %d: %d of %d are found; missed %v; false alarms %v", seed+1, r.found, planted, r.missed, r.alarms)
		}
	}
}

func auditQuarter(t *testing.T, q *quarter) quarterResult {
	t.Helper()
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	q.insert(t, db)
	var r quarterResult
	seen := map[authz.KeyID][]authz.FindingCode{}
	page, err := audit.NewRenderer(audit.HTML, reportFile(t))
	if err != nil {
		t.Fatal(err)
	}
	r.summary = runAudit(t, s, manage.EvidenceFilter{Since: q.Since, Until: q.Until}, func(k *authz.KeyFindings) error {
		id := k.Evidence.Key
		for _, f := range k.Findings {
			seen[id] = append(seen[id], f.Code)
			if q.planted[id] != f.Code {
				r.alarms = append(r.alarms, fmt.Sprintf("%s of %s (planted: %q): %s %s", f.Code, k.Evidence.KeyName, q.planted[id], f.Message, k.Coverage))
			}
		}
		return page.Key(k)
	})
	if err := page.End(&r.summary); err != nil {
		t.Fatal(err)
	}
	for id, code := range q.planted {
		if slices.Contains(seen[id], code) {
			r.found++
		} else {
			r.missed = append(r.missed, string(code)+" of "+id.String())
		}
	}
	return r
}

// reportFile is where the first page goes, if anywhere.
func reportFile(t *testing.T) *os.File {
	t.Helper()
	name := os.Getenv("KEYSTILE_AUDIT_REPORT")
	if name == "" {
		name = os.DevNull
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// runAudit judges by the built-in policy.
func runAudit(t testing.TB, s *store.Store, f manage.EvidenceFilter, each func(*authz.KeyFindings) error) authz.AuditSummary {
	t.Helper()
	source, err := builtInPolicy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := source.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	everyone := manage.TenantOf(&authz.Admin{Role: authz.RolePlatformAdmin})
	summary, err := audit.New(policy.NewEngine(snapshot)).Audit(t.Context(), func(ctx context.Context, each func(*authz.Evidence) error) error {
		return s.Read(ctx, func(ctx context.Context, r manage.Reader) error { return r.Evidence(ctx, everyone, f, each) })
	}, each)
	if err != nil {
		t.Fatal(err)
	}
	return summary
}

// A generator that knew the thresholds would prove nothing: it names no figure of the policy's.
func TestAudit_TheQuarterNamesEveryKind(t *testing.T) {
	q := newQuarter(readQuarter(t), 1)
	kinds := map[authz.FindingCode]int{}
	for _, code := range q.planted {
		kinds[code]++
	}
	if len(kinds) != 12 || len(q.keys) != q.Keys {
		t.Errorf("%d keys, planted %v", len(q.keys), kinds)
	}
	for code, n := range kinds {
		if n != q.Planted || strings.Contains(string(code), " ") {
			t.Errorf("%s is planted %d times", code, n)
		}
	}
}
