package store_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/store"
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

// dayOf is noon, so many days ago.
func dayOf(ago int) time.Time {
	return time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -ago).Add(12 * time.Hour)
}

// sums are the requests of each table, and of what tells days.
func sums(t *testing.T, db *sqlx.DB) (hours, days, told, networks int) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT (SELECT COALESCE(sum(requests), 0) FROM usage_hours), (SELECT COALESCE(sum(requests), 0) FROM usage_days),
		(SELECT COALESCE(sum(requests), 0) FROM usage_by_day('-infinity', 'infinity')), (SELECT COALESCE(sum(requests), 0) FROM usage_networks)`).
		Scan(&hours, &days, &told, &networks)
	if err != nil {
		t.Fatal(err)
	}
	return hours, days, told, networks
}

// Days are added up from hours in as many parts as there are keys for, as often as one likes,
// and what comes late is in them: nothing is ever missing from what is told, or twice there.
func TestUsageDays_AreAddedUpOnceWhateverComesLate(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing() // it tends by itself, too
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	var counters []*counter
	for i := range 5 { // some of stored keys, others of keys that are not there
		c := newCounter(s, 2)
		c.from = netip.AddrFrom4([4]byte{203, 0, byte(i), 7})
		if i < 3 {
			own := counterOf(s, newWhole(t, s, fmt.Sprintf("tenant-%d", i)))
			c.keys, c.secret = append(c.keys, own.keys...), own.secret
		}
		counters = append(counters, c)
	}
	counted := 0
	count := func(ago int) {
		for _, c := range counters {
			for i := range c.keys {
				for hour := range 3 {
					c.count(t, i, "/api/v1/tickets/{id}", "/api/v1/tickets/1", dayOf(ago).Add(time.Duration(hour)*time.Hour))
					counted++
				}
			}
		}
		if err := s.FlushUsage(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	judge := func(when string, wantDays int) {
		t.Helper()
		if hours, days, told, networks := sums(t, db); hours != counted || days != wantDays || told != counted || networks != counted {
			t.Errorf("%s: %d in hours, %d in days (want %d), %d told, %d of networks; counted %d", when, hours, days, wantDays, told, networks, counted)
		}
	}
	rollUp := func(keys int) {
		t.Helper()
		if err := s.RollUp(t.Context(), time.Now(), keys); err != nil {
			t.Fatal(err)
		}
	}
	for _, ago := range []int{4, 2, 0} {
		count(ago)
	}
	today := counted / 3
	judge("before", 0)
	for _, keys := range []int{1, 2, 10_000} {
		rollUp(keys)
		judge(fmt.Sprintf("%d keys at once", keys), counted-today)
	}
	before := counted - today
	count(2)
	judge("what is late is told at once", before)
	count(3)
	rollUp(1)
	judge("and added up", counted-today)
	if err := s.TendUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	judge("tended", counted-today)
	// Hours are forgotten sooner than days.
	db.MustExec(`DELETE FROM usage_hours WHERE hour < $1`, dayOf(0).Add(-12*time.Hour))
	if err := s.TendUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, days, told, _ := sums(t, db); days != counted-today || told != counted {
		t.Errorf("without the hours: %d in days, %d told, of %d", days, told, counted)
	}
}

// What is written while a day is added up is not missed: it waits, and marks the day.
func TestUsageDays_WhatIsWrittenMeanwhileIsNotMissed(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing() // it tends by itself, too
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	c := newCounter(s, 1)
	write := func() error {
		c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", dayOf(2))
		return s.FlushUsage(t.Context())
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	err := s.RollUpDay(t.Context(), dayOf(2), func() {
		go func() { written <- write() }()
		for waiting := 0; waiting == 0 && t.Context().Err() == nil; {
			if err := db.GetContext(t.Context(), &waiting, `SELECT count(*) FROM pg_stat_activity
				WHERE wait_event_type = 'Lock' AND query LIKE '%usage_days_done%' AND pid <> pg_backend_pid()`); err != nil {
				t.Error(err)
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if hours, days, told, _ := sums(t, db); hours != 2 || days != 1 || told != 2 {
		t.Errorf("%d in hours, %d in days, %d told; want 2, 1, 2", hours, days, told)
	}
	if err := s.RollUp(t.Context(), time.Now(), 10); err != nil {
		t.Fatal(err)
	}
	if _, days, told, _ := sums(t, db); days != 2 || told != 2 {
		t.Errorf("%d in days, %d told; want 2", days, told)
	}
}

// A service that has counted nothing yet claims no days.
func TestUsageDays_NothingIsClaimedOfDaysBeforeTheFirst(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing() // it tends by itself, too
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	done := func() string {
		var days []string
		if err := db.SelectContext(t.Context(), &days, `SELECT day::text FROM usage_days_done WHERE rolled_at IS NOT NULL ORDER BY day`); err != nil {
			t.Fatal(err)
		}
		return strings.Join(days, " ")
	}
	if err := s.RollUp(t.Context(), time.Now(), 10); err != nil || done() != "" {
		t.Errorf("%q, %v", done(), err)
	}
	c := newCounter(s, 1)
	c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", dayOf(4))
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A day is over a while after its end.
	if err := s.RollUp(t.Context(), dayOf(1).Add(-12*time.Hour), 10); err != nil {
		t.Fatal(err)
	}
	if got, want := done(), dayOf(4).Format(time.DateOnly)+" "+dayOf(3).Format(time.DateOnly); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Days and networks have a partition a month, and are forgotten by the setting of their own.
func TestUsageDays_OldOnesAreForgotten(t *testing.T) {
	at := storetest.Migrated(t)
	s, err := store.Open(t.Context(), store.Options{
		URL: storetest.Parse(t, at), Peppers: storetest.Peppers(t, "p1"), UsageRetention: 24 * time.Hour, UsageDaysRetention: 60 * 24 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	s.StopFollowing() // it tends by itself, too
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	old := dayOf(150)
	month := time.Date(old.Year(), old.Month(), 1, 0, 0, 0, 0, time.UTC)
	zero := "'00000000-0000-0000-0000-000000000000'"
	for _, table := range []string{"usage_days", "usage_networks"} {
		db.MustExec(fmt.Sprintf(`CREATE TABLE %s PARTITION OF %s FOR VALUES FROM ('%s') TO ('%s')`,
			month.Format(table+"_2006_01"), table, month.Format(time.DateOnly), month.AddDate(0, 1, 0).Format(time.DateOnly)))
	}
	for _, day := range []time.Time{old, dayOf(100), dayOf(40)} {
		db.MustExec(`INSERT INTO usage_days SELECT $1::date, `+zero+`, `+zero+`, `+zero+`, `+zero+`, `+zero+`, 'allowed', 1`, day)
		db.MustExec(`INSERT INTO usage_networks SELECT $1::date, `+zero+`, `+zero+`, '', '::/0', true, 1`, day)
		db.MustExec(`INSERT INTO usage_days_done VALUES ($1::date, now())`, day)
	}
	db.MustExec(`INSERT INTO usage_days_done VALUES ($1::date, now())`, dayOf(62)) // without usage
	if err := s.TendUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	var since string
	if err := db.GetContext(t.Context(), &since, `SELECT min(day)::text FROM usage_days_done`); err != nil || since < dayOf(61).Format(time.DateOnly) {
		t.Errorf("days are counted since %s: %v", since, err)
	}
	if _, days, told, networks := sums(t, db); days != 1 || told != 1 || networks != 1 {
		t.Errorf("%d days, %d told, %d networks are kept, want those of the last 60 days", days, told, networks)
	}
	var tables []string
	if err := db.SelectContext(t.Context(), &tables, `SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent IN ('usage_days'::regclass, 'usage_networks'::regclass)`); err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	for _, table := range []string{"usage_days", "usage_networks"} {
		all := strings.Join(tables, " ")
		if strings.Contains(all, month.Format(table+"_2006_01")) || !strings.Contains(all, now.Format(table+"_2006_01")) {
			t.Errorf("%s: %v", table, tables)
		}
	}
}

// Networks are what the setting says, and no more apart than there is room for.
func TestUsageNetworks_AreTruncatedFullOrOffAndBounded(t *testing.T) {
	networks := func(kind store.UsageNetwork, from func(i int) netip.Addr, n int) map[string]int {
		t.Helper()
		at := storetest.Migrated(t)
		s, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: storetest.Peppers(t, "p1"), UsageNetwork: kind})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		c := newCounter(s, 1)
		for i := range n {
			c.from = from(i)
			c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", time.Now())
		}
		if err := s.FlushUsage(t.Context()); err != nil {
			t.Fatal(err)
		}
		var rows []struct {
			Network  string
			Requests int
		}
		db := sqlx.MustConnect("postgres", at)
		defer func() { _ = db.Close() }()
		if err := db.SelectContext(t.Context(), &rows, `SELECT network::text AS network, requests FROM usage_networks WHERE scopes = 'tickets:read' AND allowed`); err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, r := range rows {
			got[r.Network] += r.Requests
		}
		return got
	}
	some := func(i int) netip.Addr {
		return []netip.Addr{
			netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("203.0.113.8"), netip.MustParseAddr("2001:db8:7:8::9"), {},
		}[i%4]
	}
	for kind, want := range map[store.UsageNetwork]map[string]int{
		"":                          {"203.0.113.0/24": 2, "2001:db8:7::/48": 1, "::/128": 1},
		store.UsageNetworkTruncated: {"203.0.113.0/24": 2, "2001:db8:7::/48": 1, "::/128": 1},
		store.UsageNetworkFull:      {"203.0.113.7/32": 1, "203.0.113.8/32": 1, "2001:db8:7:8::9/128": 1, "::/128": 1},
		store.UsageNetworkOff:       {},
	} {
		if got := networks(kind, some, 4); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q: %v, want %v", kind, got, want)
		}
	}
	many := networks("", func(i int) netip.Addr {
		i %= store.MaxKeyNetworks + 50
		return netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
	}, 2*(store.MaxKeyNetworks+50))
	if len(many) != store.MaxKeyNetworks+1 || many["::/0"] != 100 || many["10.0.7.0/24"] != 2 {
		t.Errorf("%d networks, %d requests of others", len(many), many["::/0"])
	}
}

// Once its day is over, a key has as many networks as one replica would have counted apart.
func TestUsageNetworks_OfSeveralReplicasAreBoundedToo(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing() // it tends by itself, too
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	db.MustExec(`INSERT INTO usage_networks SELECT $1::date, gen_random_uuid(), '00000000-0000-0000-0000-000000000001', s, ('10.' || n / 256 || '.' || n % 256 || '.0/24')::cidr, true, n + 1
		FROM generate_series(0, $2) n, unnest(ARRAY['a:b', 'c:d']) s`, dayOf(2), store.MaxKeyNetworks+99)
	c := newCounter(s, 1)
	c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", dayOf(2))
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.RollUp(t.Context(), time.Now(), 10); err != nil {
		t.Fatal(err)
	}
	var n, others, smallest int
	err := db.QueryRowContext(t.Context(), `SELECT count(DISTINCT network), sum(requests) FILTER (WHERE network = '::/0'), min(requests)
		FROM usage_networks WHERE key_id = '00000000-0000-0000-0000-000000000001'`).Scan(&n, &others, &smallest)
	if err != nil || n != store.MaxKeyNetworks+1 || others != 2*100*101/2 || smallest != 101 {
		t.Errorf("%d networks, %d requests of others, %d of the rarest, %v", n, others, smallest, err)
	}
}

// After a stop that was longer than hours are kept, the last day before it is added up before
// its hours go: it was counted, and is told as counted.
func TestUsageDays_AreAddedUpBeforeTheirHoursAreForgotten(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing()
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	c := counterOf(s, newWhole(t, s, "acme"))
	for ago, n := range map[int]int{120: 2, 119: 3} {
		for range n {
			c.count(t, 0, "/r", "/r", dayOf(ago))
		}
	}
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.TendUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hours, days, told, _ := sums(t, db); hours != 0 || days != 5 || told != 5 {
		t.Errorf("%d by the hour, %d by the day, %d told", hours, days, told)
	}
}
