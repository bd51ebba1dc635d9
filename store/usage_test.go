package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// counter counts decisions of one organization's keys.
type counter struct {
	s      *store.Store
	caller *authz.Caller
	keys   []*authz.Key
	secret *authz.KeySecret
	// from is the clients' address.
	from netip.Addr
}

func newCounter(s *store.Store, keys int) *counter {
	now := time.Now()
	c := &counter{s: s, caller: &authz.Caller{ID: authz.NewCallerID(now)}, secret: &authz.KeySecret{ID: authz.NewSecretID(now)}}
	organization := &authz.Organization{ID: authz.NewOrganizationID(now)}
	for range keys {
		c.keys = append(c.keys, &authz.Key{ID: authz.NewKeyID(now), Organization: organization, Environment: authz.EnvironmentLive})
	}
	return c
}

// count decides as a policy would that knows the route.
func (c *counter) count(t testing.TB, key int, route, path string, at time.Time) {
	t.Helper()
	checker, err := authz.NewChecker(authz.CheckerOptions{
		Keys: foundKey{c.keys[key], c.secret}, Policy: routes(route), Limiter: unlimited{}, Clock: fixed(at), Decisions: []authz.DecisionRecorder{c.s},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := checker.Check(t.Context(), c.question("GET", path)); err != nil {
		t.Fatal(err)
	}
}

func (c *counter) question(method, path string) *authz.Check {
	q := &authz.Check{Caller: c.caller, Presented: authz.PresentHash(authz.SecretHash{1}), ClientIP: c.from, Cost: 1}
	q.SetRequest(method, path)
	return q
}

type foundKey struct {
	key    *authz.Key
	secret *authz.KeySecret
}

func (f foundKey) FindKey(context.Context, authz.CallerID, authz.SecretHash) (authz.FoundKey, error) {
	return authz.FoundKey{Key: f.key, Secret: f.secret}, nil
}

// routes is a policy that allows its route, and knows no other.
type routes string

func (r routes) Evaluate(context.Context, *authz.Key, *authz.Check) (authz.Verdict, error) {
	if r == "" {
		return authz.Verdict{Reasons: []authz.Reason{{Code: authz.CodeUnknownRoute, Message: "No."}}, Limits: []authz.Limit{{Name: authz.Unlimited}}}, nil
	}
	return authz.Verdict{Allow: true, Route: string(r), Cataloged: true, Required: []authz.Scope{"tickets:read"}, Limits: []authz.Limit{{Name: authz.Unlimited}}}, nil
}

func (routes) Revision() string { return "r" }

type unlimited struct{}

func (unlimited) Charge(context.Context, *authz.Key, authz.Limit, int) (authz.Charge, error) {
	return authz.Charge{Allowed: true, Mode: authz.LimiterExact}, nil
}

type fixed time.Time

func (f fixed) Now() time.Time { return time.Time(f) }

func storedUsage(t testing.TB, at string) (requests, rows int64) {
	t.Helper()
	db, err := sqlx.Connect("postgres", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	err = db.QueryRowContext(t.Context(), `SELECT COALESCE(sum(requests), 0)::bigint, count(*) FROM usage_hours`).Scan(&requests, &rows)
	if err != nil {
		t.Fatal(err)
	}
	return requests, rows
}

// What several replicas count at once is in Postgres to the last one, by hour, key and route,
// with no raw path; a store that is closed loses nothing.
func TestUsage_CountsAreExactAndHoldNoPath(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	const perWriter, writers, keys = 500, 4, 20
	start := dayOf(1).Add(-time.Hour - time.Minute)
	var shared []*authz.Key
	for range 2 {
		s := storetest.Open(t, at, peppers)
		c := newCounter(s, keys)
		shared = append(shared, c.keys...)
		var group sync.WaitGroup
		for w := range writers {
			group.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(w)))
				for i := range perWriter {
					c.count(t, random.IntN(keys), "/api/v1/tickets/{id}", fmt.Sprintf("/api/v1/tickets/customer-%d", i), start.Add(time.Duration(i)*time.Second))
				}
			})
		}
		group.Wait()
		if h := s.Health(); h.CountedUsage != perWriter*writers || h.DroppedUsage != 0 {
			t.Errorf("%+v", h)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	requests, rows := storedUsage(t, at)
	if want := int64(2 * perWriter * writers); requests != want || rows != int64(2*2*keys) {
		t.Errorf("%d requests in %d rows, want %d in %d: two hours of %d keys", requests, rows, want, 2*2*keys, len(shared))
	}
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	var texts []string
	if err := db.SelectContext(t.Context(), &texts, `SELECT method || ' ' || path || route || ' ' || array_to_string(scopes, ' ') FROM usage_shapes`); err != nil {
		t.Fatal(err)
	}
	if len(texts) != 1 || texts[0] != "GET /api/v1/tickets/{id} tickets:read" {
		t.Errorf("shapes: %q", texts)
	}
}

// What clients make up is bounded, and keeps no id.
func TestUsage_MadeUpPathsAreBoundedAndHoldNoID(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	s.StopFollowing() // it tends by itself, too
	c, noon := newCounter(s, 1), time.Now().UTC().Truncate(24*time.Hour).Add(-12*time.Hour)
	const paths = store.MaxUnmatchedShapes + 300
	for i := range paths {
		c.count(t, 0, "", fmt.Sprintf("/%s/4711/Secret-%d", letters(i), i), noon)
	}
	c.count(t, 0, "", "/often/1", noon)
	c.count(t, 0, "", "/often/2", noon)
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	requests, rows := storedUsage(t, at)
	if requests != paths+2 || rows > store.MaxUnmatchedShapes+1 {
		t.Errorf("%d requests in %d rows", requests, rows)
	}
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	var ids int
	if err := db.GetContext(t.Context(), &ids, `SELECT count(*) FROM usage_shapes WHERE path ~ '[0-9A-Z]'`); err != nil || ids > 0 {
		t.Errorf("%d shapes have an id, %v", ids, err)
	}
	// Once the day is over, the most frequent ones are left, and the rest is counted together.
	if err := s.TendUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if requests, rows = storedUsage(t, at); requests != paths+2 || rows != store.UnmatchedKept+1 {
		t.Errorf("after the day: %d requests in %d rows", requests, rows)
	}
}

// letters is a word for each number.
func letters(n int) string {
	word := []byte("aaa")
	for i := range word {
		word[i] += byte(n % 26)
		n /= 26
	}
	return string(word)
}

// Months have their own tables, and old ones go with all that is in them.
func TestUsage_OldUsageIsForgotten(t *testing.T) {
	at := storetest.Migrated(t)
	s, err := store.Open(t.Context(), store.Options{URL: storetest.Parse(t, at), Peppers: storetest.Peppers(t, "p1"), UsageRetention: 30 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	s.StopFollowing() // it tends by itself, too
	c, now := newCounter(s, 1), time.Now()
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	old := now.AddDate(0, -3, 0)
	month := time.Date(old.Year(), old.Month(), 1, 0, 0, 0, 0, time.UTC)
	db.MustExec(fmt.Sprintf(`CREATE TABLE %s PARTITION OF usage_hours FOR VALUES FROM ('%s') TO ('%s')`,
		month.Format("usage_hours_2006_01"), month.Format(time.RFC3339), month.AddDate(0, 1, 0).Format(time.RFC3339)))
	for _, age := range []time.Duration{0, 24 * time.Hour, 31 * 24 * time.Hour, now.Sub(old)} {
		c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", now.Add(-age))
	}
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if requests, _ := storedUsage(t, at); requests != 4 {
		t.Fatalf("%d requests", requests)
	}
	if err := s.TendUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if requests, _ := storedUsage(t, at); requests != 2 {
		t.Errorf("%d requests are kept, want those of the last 30 days", requests)
	}
	var tables []string
	if err := db.SelectContext(t.Context(), &tables, `SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'usage_hours'::regclass ORDER BY 1`); err != nil {
		t.Fatal(err)
	}
	for _, name := range tables {
		if name == month.Format("usage_hours_2006_01") {
			t.Errorf("the month is still there: %v", tables)
		}
	}
	if len(tables) < 2 {
		t.Errorf("no partition for what comes: %v", tables)
	}
}

// While Postgres does not answer nothing is lost, and once it does nothing is twice there.
func TestUsage_NothingIsLostWhilePostgresIsAway(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	s := storetest.Open(t, at, peppers)
	c, now := newCounter(s, 5), time.Now()
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	db.MustExec(`ALTER TABLE usage_batches RENAME TO usage_batches_away`)
	for i := range 100 {
		c.count(t, i%5, "/api/v1/tickets/{id}", "/api/v1/tickets/1", now)
	}
	if err := s.FlushUsage(t.Context()); err == nil {
		t.Fatal("it was written")
	}
	for i := range 100 {
		c.count(t, i%5, "/api/v1/tickets/{id}", "/api/v1/tickets/1", now)
	}
	db.MustExec(`ALTER TABLE usage_batches_away RENAME TO usage_batches`)
	// A store that is closed writes what waits, and what has come since.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if requests, rows := storedUsage(t, at); requests != 200 || rows != 5 {
		t.Errorf("%d requests in %d rows", requests, rows)
	}
	if h := s.Health(); h.StoredUsage != 200 || h.CountedUsage != 200 || h.DroppedUsage != 0 {
		t.Errorf("%+v", h)
	}
}

func TestUsage_WhatAnEndInAnOutageLosesIsCounted(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	c, now := newCounter(s, 5), time.Now()
	db := sqlx.MustConnect("postgres", at)
	defer func() { _ = db.Close() }()
	db.MustExec(`ALTER TABLE usage_batches RENAME TO usage_batches_away`)
	for i := range 40 {
		c.count(t, i%5, "/api/v1/tickets/{id}", "/api/v1/tickets/1", now)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if h := s.Health(); h.CountedUsage != 40 || h.StoredUsage != 0 || h.DroppedUsage != 40 {
		t.Errorf("%+v", h)
	}
}

// An hour that is over gives its room to the next.
func TestUsage_AnHourThatIsOverTakesNoRoom(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	const keys = 60_000
	c, hour := newCounter(s, keys), time.Now().Truncate(time.Hour)
	q := c.question("GET", "/api/v1/tickets/1")
	for _, now := range []time.Time{hour.Add(-time.Second), hour} {
		for _, k := range c.keys {
			s.Decided(q, &authz.Decision{ID: authz.NewDecisionID(now), Key: k, Secret: c.secret, Code: authz.CodeAllowed})
		}
		if err := s.FlushUsage(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if h := s.Health(); h.DroppedUsage != 0 || h.StoredUsage != 2*keys {
		t.Errorf("%+v", h)
	}
}

// What Postgres will never take does not keep the rest waiting, and is told as dropped.
func TestUsage_WhatIsRefusedForGoodHoldsUpNothing(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	c, now := newCounter(s, 1), time.Now()
	storetest.Exec(t, at, `ALTER TABLE usage_hours ADD CONSTRAINT bad CHECK (code <> 'unknown_route')`)
	c.count(t, 0, "", "/nowhere", now)
	for i := range 100 { // together with it, and not lost for it
		c.count(t, 0, fmt.Sprintf("/api/v1/tickets/{id}/%d", i), "/api/v1/tickets/1", now)
	}
	_ = s.FlushUsage(t.Context())
	c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", now)
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h := s.Health(); h.DroppedUsage != 1 || h.StoredUsage != 101 || h.CountedUsage != 102 {
		t.Errorf("%+v", h)
	}
}

// An answer that is lost after the commit does not count twice.
func TestUsage_ABatchThatIsWrittenTwiceCountsOnce(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	c := newCounter(s, 3)
	c.from = netip.MustParseAddr("203.0.113.9")
	for i := range 30 {
		c.count(t, i%3, "/api/v1/tickets/{id}", "/api/v1/tickets/1", time.Now())
	}
	if err := s.WriteUsageTwice(t.Context()); err != nil {
		t.Fatal(err)
	}
	if requests, _ := storedUsage(t, at); requests != 30 {
		t.Errorf("%d requests of 30", requests)
	}
	if n := storetest.Count(t, at, `SELECT sum(requests) FROM usage_networks WHERE network = '203.0.113.0/24'`); n != 30 {
		t.Errorf("%d requests of 30 from their network", n)
	}
}

// What was recorded is handed out with keys as they are, within the tenant and the time.
func TestUsage_WhatWasRecordedIsHandedOut(t *testing.T) {
	at := storetest.Migrated(t)
	s := storetest.Open(t, at, storetest.Peppers(t, "p1"))
	acme, globex := newWhole(t, s, "acme"), newWhole(t, s, "globex")
	var callers []*authz.Caller
	manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
		found, err := r.Callers(ctx, all(), "", manage.Page{Limit: 10})
		for _, f := range found {
			callers = append(callers, &authz.Caller{ID: f.ID})
		}
		return err
	})
	noon := dayOf(1).Add(30 * time.Minute)
	count := func(w *whole, n int) {
		c := &counter{s: s, caller: callers[0], secret: &authz.KeySecret{ID: w.key.Secrets[0].ID}}
		c.keys = []*authz.Key{{ID: w.key.ID, Organization: &authz.Organization{ID: w.organization.ID}}}
		for range n {
			c.count(t, 0, "/api/v1/tickets/{id}", "/api/v1/tickets/1", noon)
		}
	}
	count(acme, 3)
	count(globex, 2)
	if err := s.FlushUsage(t.Context()); err != nil {
		t.Fatal(err)
	}
	handed := func(tenant manage.Tenant, f manage.RecordedFilter) map[authz.KeyID]int64 {
		got := map[authz.KeyID]int64{}
		manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
			n, err := r.RecordedRequests(ctx, tenant, f)
			if err != nil {
				return err
			}
			err = r.Recorded(ctx, tenant, f, func(row authz.Recorded) error {
				if row.Shape != (authz.Shape{Policy: "r", Method: "GET", Route: "/api/v1/tickets/{id}"}) {
					t.Errorf("%+v", row.Shape)
				}
				if row.Key != nil {
					got[row.Key.ID] += row.Requests
				} else {
					got[authz.KeyID{}] += row.Requests
				}
				n -= row.Requests
				return nil
			})
			if n != 0 {
				t.Errorf("%d requests were not handed out", n)
			}
			return err
		})
		return got
	}
	day := manage.RecordedFilter{Since: noon.Truncate(time.Hour), Until: noon.Add(time.Hour)}
	for name, tt := range map[string]struct {
		tenant manage.Tenant
		filter manage.RecordedFilter
		want   map[authz.KeyID]int64
	}{
		"all":              {all(), day, map[authz.KeyID]int64{acme.key.ID: 3, globex.key.ID: 2}},
		"one":              {all(), manage.RecordedFilter{Organization: globex.organization.ID, Since: day.Since, Until: day.Until}, map[authz.KeyID]int64{globex.key.ID: 2}},
		"a tenant of none": {manage.Tenant{}, day, map[authz.KeyID]int64{}},
		"an hour before":   {all(), manage.RecordedFilter{Since: day.Since.Add(-time.Hour), Until: day.Since}, map[authz.KeyID]int64{}},
	} {
		if got := handed(tt.tenant, tt.filter); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	manageWrite(t, s, func(ctx context.Context, w manage.Writer) error {
		_, err := w.RevokeKeys(ctx, all(), acme.organization.ID)
		return err
	})
	if got := handed(all(), day); got[authz.KeyID{}] != 3 || got[globex.key.ID] != 2 {
		t.Errorf("a revoked key is asked about: %v", got)
	}
}

// Counting is on the path of every check: what it adds is the difference to "uncounted".
// Clients stay where they are, or come from another network each time.
func BenchmarkUsage_Count(b *testing.B) {
	s := storetest.Open(b, storetest.Migrated(b), storetest.Peppers(b, "p1"))
	const keys = 1000
	c, now := newCounter(s, keys), time.Now()
	for _, bench := range []struct {
		name      string
		recorders []authz.DecisionRecorder
		networks  int
	}{{"uncounted", nil, 1}, {"counted", []authz.DecisionRecorder{s}, 1}, {"moving", []authz.DecisionRecorder{s}, 50}, {"roaming", []authz.DecisionRecorder{s}, 1 << 16}} {
		b.Run(bench.name, func(b *testing.B) {
			checkers := make([]*authz.Checker, keys)
			for i := range checkers {
				checkers[i], _ = authz.NewChecker(authz.CheckerOptions{
					Keys: foundKey{c.keys[i], c.secret}, Policy: routes("/api/v1/tickets/{id}"), Limiter: unlimited{}, Clock: fixed(now), Decisions: bench.recorders,
				})
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				q := c.question("GET", "/api/v1/tickets/42")
				for i := 0; pb.Next(); i++ {
					n := i / keys % bench.networks
					q.ClientIP = netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 7})
					_, _ = checkers[i%keys].Check(b.Context(), q)
				}
			})
		})
	}
}
