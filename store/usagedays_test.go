package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/store/storetest"
)

// Each request is told once, by days where they are added up and by hours where not, and
// months that are added up are not looked into.
func TestUsageByDay_EachRequestIsToldOnce(t *testing.T) {
	at := storetest.Migrated(t)
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	zero := "'00000000-0000-0000-0000-000000000000'"
	hour := func(day, n int) {
		db.MustExec(fmt.Sprintf(`INSERT INTO usage_hours SELECT ('2026-03-%02d 13:00Z')::timestamptz, %[2]s, %[2]s, %[2]s, %[2]s, %[2]s, 'allowed', $1`, day, zero), n)
	}
	rolled := func(day, n int) {
		db.MustExec(fmt.Sprintf(`INSERT INTO usage_days SELECT '2026-03-%02d', %[2]s, %[2]s, %[2]s, %[2]s, %[2]s, 'allowed', $1`, day, zero), n)
	}
	told := func() string {
		var days []string
		if err := db.SelectContext(t.Context(), &days, `SELECT to_char(day, 'DD') || ':' || sum(requests) FROM usage_by_day('2026-03-02', '2026-03-31') GROUP BY day ORDER BY day`); err != nil {
			t.Fatal(err)
		}
		return strings.Join(days, " ")
	}
	for day := 1; day <= 5; day++ {
		hour(day, day)
	}
	if got := told(); got != "02:2 03:3 04:4 05:5" {
		t.Errorf("before any day is done: %s", got)
	}
	rolled(2, 20)
	rolled(3, 30)
	db.MustExec(`INSERT INTO usage_days_done VALUES ('2026-03-01', now()), ('2026-03-02', now()), ('2026-03-03', NULL), ('2026-03-04', now())`)
	if got := told(); got != "02:20 03:3 05:5" {
		t.Errorf("with a day that has changed since: %s", got)
	}
	db.MustExec(`UPDATE usage_days_done SET rolled_at = now()`)
	if got := told(); got != "02:20 03:30 05:5" {
		t.Errorf("%s", got)
	}
}
