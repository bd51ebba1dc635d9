package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store/storetest"
)

// BenchmarkAudit_Keys judges a hundred thousand and a million keys by what is recorded of
// them, and writes the same rows to a file with COPY: that is how fast Postgres hands them out.
func BenchmarkAudit_Keys(b *testing.B) {
	for _, keys := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprintf("%d", keys), func(b *testing.B) {
			at := storetest.Migrated(b)
			s := storetest.Open(b, at, storetest.Peppers(b, "p1"))
			db := sqlx.MustConnect("postgres", at)
			defer func() { _ = db.Close() }()
			rows := insertAudited(b, db, keys)
			until := time.Now()
			f := manage.EvidenceFilter{Since: until.AddDate(0, 0, -92), Until: until}
			for b.Loop() {
				copying := copyRows(b, db)
				var peak atomic.Uint64
				stop := watchHeap(&peak)
				started := time.Now()
				summary := runAudit(b, s, f, func(*authz.KeyFindings) error { return nil })
				auditing := time.Since(started)
				stop()
				if summary.Keys != int64(keys) || summary.Findings == 0 {
					b.Fatalf("%+v", summary)
				}
				b.ReportMetric(float64(rows), "rows")
				b.ReportMetric(copying.Seconds(), "copy-s")
				b.ReportMetric(auditing.Seconds(), "audit-s")
				b.ReportMetric(auditing.Seconds()/copying.Seconds(), "audit/copy")
				b.ReportMetric(float64(peak.Load())/(1<<20), "peak-MiB")
				b.ReportMetric(float64(summary.Classes), "classes")
				b.ReportMetric(float64(summary.Findings), "findings")
			}
		})
	}
}

// watchHeap notes the largest heap until it is stopped.
func watchHeap(peak *atomic.Uint64) (stop func()) {
	runtime.GC()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		var m runtime.MemStats
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapInuse+m.StackInuse))
			}
		}
	}()
	return func() { close(end); <-ended }
}

// copyRows writes all that an audit reads to files, and takes them away again.
func copyRows(b *testing.B, db *sqlx.DB) time.Duration {
	b.Helper()
	dir, err := os.MkdirTemp("", "keystile-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o777); err != nil {
		b.Fatal(err)
	}
	started := time.Now()
	for _, table := range []string{"api_keys", "key_secrets", "secret_uses", "scope_uses", "usage_days", "usage_networks"} {
		if _, err := db.ExecContext(b.Context(), fmt.Sprintf(`COPY (SELECT * FROM %s) TO '%s'`, table, filepath.Join(dir, table))); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(started)
}

// insertAudited makes keys of all kinds, each used in its own way, and tells how many rows that is.
func insertAudited(b *testing.B, db *sqlx.DB, keys int) (rows int64) {
	b.Helper()
	for _, step := range []struct {
		sql  string
		args []any
	}{
		{`INSERT INTO peppers (id, fingerprint) VALUES ('bench', 'bench') ON CONFLICT DO NOTHING`, nil},
		{`INSERT INTO organizations (id, name, plan, revision) SELECT gen_random_uuid(), 'Organization ' || n, 'standard', 1 FROM generate_series(1, 5000) n`, nil},
		{`CREATE TEMP TABLE orgs AS SELECT id, row_number() OVER () AS n FROM organizations`, nil},
		{`INSERT INTO usage_days_done (day, rolled_at) SELECT d::date, now() FROM generate_series(now() - interval '120 days', now() - interval '1 day', interval '1 day') d`, nil},
		// An id is of the time at which it was made: they come in their order.
		{`CREATE TEMP TABLE made AS SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 400 * 86400000::bigint + n * 30), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 5, 15))::uuid AS id,
			n, ('x' || substr(md5(n::text || 'h'), 1, 7))::bit(28)::int AS h FROM generate_series(1, $1::int) n`, []any{keys}},
		{`INSERT INTO api_keys (id, organization_id, name, environment, scopes, created_at, created_by, expires_at, revoked_at, revision)
			SELECT m.id, o.id, 'key ' || m.n, (ARRAY['live','live','live','test'])[1 + h % 4],
				(ARRAY['{tickets:read}','{tickets:read,tickets:write}','{customers:read,tickets:read}','{customers:read,customers:write,tickets:read,tickets:write}','{customers:read}'])[1 + h / 4 % 5]::text[],
				now() - (h / 20 % 400) * interval '1 day', 'bench', CASE WHEN h / 7 % 10 < 7 THEN now() + interval '90 days' END,
				CASE WHEN h / 11 % 50 = 0 THEN now() - interval '40 days' END, 1
			FROM made m JOIN orgs o ON o.n = 1 + m.n % 5000`, nil},
		{`INSERT INTO key_secrets (digest, id, key_id, pepper_id, hint, created_at)
			SELECT decode(lpad(to_hex(n), 64, '0'), 'hex'), gen_random_uuid(), id, 'bench', 'sk_live_made…up', now() - (h / 20 % 200) * interval '1 day' FROM made`, nil},
		{`INSERT INTO secret_uses (secret_id, key_id, used_at, first_used_at) SELECT s.id, s.key_id, now() - interval '2 days', now() - interval '100 days' FROM key_secrets s`, nil},
		{`INSERT INTO usage_shapes SELECT ('00000000-0000-0000-0000-00000000010' || i)::uuid, '', 'GET', '', '', false, false, '', '', '', false, '', 'given', 0, i > 3, false,
			ARRAY[(ARRAY['tickets:read','tickets:write','customers:read','customers:write'])[1 + i % 4]], now()::date FROM generate_series(0, 7) i`, nil},
		// Each of up to four things that a key does, on some days.
		{`INSERT INTO usage_days SELECT now()::date - 1 - (d * 18 + h % 7), k.organization_id, k.id, '00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000001',
				('00000000-0000-0000-0000-00000000010' || CASE WHEN h / 13 % 400 = 0 THEN 4 ELSE 0 END + s)::uuid, CASE WHEN h / 17 % 40 = 0 AND s = 0 THEN 'rate_limited' ELSE 'allowed' END, 1 + h % 100
			FROM made m JOIN api_keys k ON k.id = m.id, generate_series(0, 4) d, generate_series(0, 3) s
			WHERE h / 3 % 20 > 0 AND (s = 0 OR (h / (s * 5 + 2)) % 4 = 0) AND d <= h / 9 % 5`, nil},
		{`INSERT INTO usage_networks SELECT now()::date - 1 - (d * 18 + h % 7), k.organization_id, k.id, (ARRAY['tickets:read','tickets:write','customers:read','customers:write'])[1 + s],
				('10.' || h % 250 || '.' || (h / 250 + s * (h / 6 % 2)) % 250 || '.0/24')::cidr, true, 1 + h % 100
			FROM made m JOIN api_keys k ON k.id = m.id, generate_series(0, 4) d, generate_series(0, 3) s
			WHERE h / 3 % 20 > 0 AND (s = 0 OR (h / (s * 5 + 2)) % 4 = 0) AND d <= h / 9 % 5`, nil},
		{`INSERT INTO scope_uses SELECT key_id, scopes, min(day), max(day) + interval '12 hours' FROM usage_networks GROUP BY key_id, scopes`, nil},
		{`VACUUM ANALYZE`, nil},
	} {
		if _, err := db.ExecContext(b.Context(), step.sql, step.args...); err != nil {
			b.Fatalf("%s: %v", step.sql, err)
		}
	}
	for _, table := range []string{"api_keys", "key_secrets", "secret_uses", "scope_uses", "usage_days", "usage_networks"} {
		var n int64
		if err := db.GetContext(b.Context(), &n, `SELECT count(*) FROM `+table); err != nil {
			b.Fatal(err)
		}
		rows += n
	}
	return rows
}
