package main

import (
	"context"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/store/storetest"
)

// BenchmarkReplay_Million asks two policies about a million recorded rows: of 2,000 keys in
// 50 organizations, each with 21 kinds of request in 24 hours (what is recorded of some weeks of an
// ordinary month), and the other extreme, 50,000 keys with 20 kinds of request once, so that
// every row is another key and shape.
func BenchmarkReplay_Million(b *testing.B) {
	for _, bm := range []struct {
		name               string
		keys, kinds, hours int
	}{{"of 2,000 keys", 2000, 21, 24}, {"of 50,000 keys", 50_000, 20, 1}} {
		b.Run(bm.name, func(b *testing.B) {
			at := storetest.Migrated(b)
			s := storetest.Open(b, at, storetest.Peppers(b, "p1"))
			db := sqlx.MustConnect("postgres", at)
			defer func() { _ = db.Close() }()
			builtIn, err := builtInPolicy(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			insertTraffic(b, db, builtIn.Revision(), bm.keys, bm.kinds, bm.hours)
			files := builtIn.Files()
			files["keystile/rules/strict/strict.rego"] = "# METADATA\n# title: Strict\npackage keystile.rules.strict\n\n" +
				"deny contains {\"code\": \"strict\", \"message\": \"Strict.\"} if {\n\tinput.request.method == \"DELETE\"\n\t\"tickets:write\" in input.key.scopes\n}\n"
			candidate, err := policy.SourceOf(files)
			if err != nil {
				b.Fatal(err)
			}
			gate, err := newGate()
			if err != nil {
				b.Fatal(err)
			}
			everyone := manage.TenantOf(&authz.Admin{Role: authz.RolePlatformAdmin})
			for b.Loop() {
				var requests int64
				diff, err := gate.Replay(b.Context(), policy.Replay{
					Active: builtIn, Candidate: candidate, BuiltIn: builtIn,
					Traffic: func(ctx context.Context, each func(authz.Recorded) error) error {
						return s.Read(ctx, func(ctx context.Context, r manage.Reader) (err error) {
							f := manage.RecordedFilter{Since: time.Now().AddDate(0, 0, -7), Until: time.Now()}
							if requests, err = r.RecordedRequests(ctx, everyone, f); err != nil {
								return err
							}
							return r.Recorded(ctx, everyone, f, each)
						})
					},
				})
				if err != nil {
					b.Fatal(err)
				}
				if diff.Requests != requests || diff.Totals[authz.AllowToDeny] == 0 || !diff.Exact() {
					b.Fatalf("%d of %d requests, %v, %v", diff.Requests, requests, diff.Totals, diff.Reasons)
				}
				b.ReportMetric(float64(bm.keys*bm.kinds*bm.hours), "rows")
				b.ReportMetric(float64(diff.Questions), "questions")
			}
		})
	}
}

// insertTraffic records that many kinds of request of each key in each hour.
func insertTraffic(b *testing.B, db *sqlx.DB, revision string, keys, kinds, hours int) {
	b.Helper()
	for _, step := range []struct {
		sql  string
		args []any
	}{
		{`INSERT INTO callers (id, name, environments, permissions, revision) SELECT gen_random_uuid(), 'tickets', '{live,test}', '{check}', 1`, nil},
		{`INSERT INTO organizations (id, name, plan, revision) SELECT gen_random_uuid(), 'Org ' || n, 'standard', 1 FROM generate_series(1, 50) n`, nil},
		{`INSERT INTO api_keys (id, organization_id, name, environment, scopes, created_by, revision)
			SELECT gen_random_uuid(), (ARRAY(SELECT id FROM organizations))[1 + n % 50], 'key ' || n, 'live',
				(ARRAY['{customers:read,tickets:read}', '{customers:write,tickets:write}', '{tickets:read,tickets:write}', '{customers:read,customers:write}'])[1 + n % 4]::text[],
				'bench', 1 FROM generate_series(1, $1::int) n`, []any{keys}},
		{`INSERT INTO usage_shapes SELECT gen_random_uuid(), $2::text, (ARRAY['GET','POST','PATCH','DELETE'])[1 + n % 4], '',
				(ARRAY['/api/v1/tickets','/api/v1/tickets/{id}','/api/v1/customers','/api/v1/customers/{id}','/api/v1/tickets/{id}/messages'])[1 + n % 5],
				false, false, '', (ARRAY['','live'])[1 + n % 2], (ARRAY['','ticket'])[1 + n / 2 % 2], n % 3 = 0, '', 'given', 0, n % 7 = 0, false, '{}', now()::date
			FROM generate_series(1, $1::int) n`, []any{kinds, revision}},
		{`INSERT INTO usage_hours SELECT date_trunc('hour', now()) - h * interval '1 hour', k.organization_id, k.id, '00000000-0000-0000-0000-000000000000', c.id, s.id, 'allowed', 7
			FROM api_keys k, usage_shapes s, callers c, generate_series(1, $1::int) h`, []any{hours}},
		{`ANALYZE`, nil},
	} {
		if _, err := db.ExecContext(b.Context(), step.sql, step.args...); err != nil {
			b.Fatal(err)
		}
	}
}
