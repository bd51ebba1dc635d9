package faults

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
)

// usageExact kills two of three replicas, and Postgres between, under a load of random
// questions. Each replica has keys of its own, so that what it counted can be told apart.
func usageExact(t *trial) {
	s := newSite(t)
	random := rand.New(rand.NewPCG(1, 2))
	var asked [][]*key
	for range 3 {
		asked = append(asked, s.questions(random, s.addKeys(20, plenty()), 400))
	}
	replicas := s.start(3)
	loads := make([]*load, len(replicas))
	for i := range replicas {
		loads[i] = s.startLoad(plan{to: replicas[i : i+1], keys: asked[i], rate: either(t, 500, 60), connections: 16})
	}
	died := make([]time.Time, len(replicas))
	kill := func(i int) {
		s.note("replica %d is killed", i)
		died[i] = replicas[i].kill()
		loads[i].leave(replicas[i])
	}
	pause(either(t, 5*time.Second, 2*time.Second))
	kill(0)
	pause(time.Second)
	s.note("Postgres is killed")
	s.killPostgres()
	pause(either(t, 30*time.Second, 3*time.Second))
	s.startPostgres()
	s.note("Postgres is back")
	pause(either(t, 5*time.Second, 3*time.Second))
	kill(1)
	pause(time.Second)
	var told []answers
	for _, l := range loads {
		told = append(told, l.stop())
	}
	last := replicas[2]
	of := func(name string) int { return int(last.metric(t, "keystile_usage_"+name+"_total")) }
	within(20*time.Second, func() bool { return of("counted") == of("stored") })
	t.exact(of("counted") == of("stored") && of("dropped") == 0, "the replica that lived: %d counted, %d stored, %d dropped", of("counted"), of("stored"), of("dropped"))
	stored := s.storedAllowed()
	for i := range replicas {
		s.judgeCounts(fmt.Sprintf("replica %d", i), told[i], stored, died[i])
	}
	s.judgeSums()
}

// questions are random ones with these keys: route and address differ.
func (s *site) questions(random *rand.Rand, keys []*key, n int) []*key {
	all := make([]*key, n)
	for i := range all {
		of := keys[random.IntN(len(keys))]
		one := &key{secret: of.secret, id: of.id, stored: of.stored}
		path := []string{path, fmt.Sprintf("/api/v1/tickets/%d", random.IntN(1000)), "/api/v1/customers"}[random.IntN(3)]
		one.request = s.questionFrom(one, path, fmt.Sprintf("10.%d.%d.%d", random.IntN(2), random.IntN(40), random.IntN(256)))
		all[i] = one
	}
	return all
}

// judgeCounts states that what a replica counted is stored, and nothing twice: but for what
// one that died had counted in its last second.
func (s *site) judgeCounts(name string, all answers, stored map[authz.KeyID]int, died time.Time) {
	s.Helper()
	answered, open, recent := map[authz.KeyID]int{}, map[authz.KeyID]int{}, 0
	for _, a := range all {
		switch {
		case a.allow:
			answered[a.key.id]++
			if !died.IsZero() && died.Sub(a.done) <= time.Second {
				recent++
			}
		case a.err != nil:
			open[a.key.id]++ // it may have been decided
		}
	}
	sent, lost, kept, twice, unanswered := 0, 0, 0, 0, 0
	for id, n := range answered {
		sent, kept, unanswered = sent+n, kept+stored[id], unanswered+open[id]
		lost += max(0, n-stored[id])
		twice += max(0, stored[id]-n-open[id])
	}
	s.exact(sent > 0 && twice == 0, "%s: %d allowed, %d stored, %d counted twice", name, sent, kept, twice)
	if died.IsZero() {
		s.exact(lost == 0 && kept <= sent+unanswered, "%s: %d lost, though it lived", name, lost)
		return
	}
	s.exact(lost < sent, "%s: %d lost of %d, it was killed", name, lost, sent)
	s.timed(lost <= recent, "%s: %d lost of the %d of its last second", name, lost, recent)
}

// storedAllowed is how many allowed requests of each key were counted.
func (s *site) storedAllowed() map[authz.KeyID]int {
	s.Helper()
	var rows []struct {
		Key      authz.KeyID `db:"key_id"`
		Requests int         `db:"requests"`
	}
	s.db(func(db *sqlx.DB) {
		if err := db.SelectContext(s.Context(), &rows, `SELECT key_id, sum(requests)::bigint AS requests FROM usage_hours WHERE code = 'allowed' GROUP BY key_id`); err != nil {
			s.Fatal(err)
		}
	})
	stored := make(map[authz.KeyID]int, len(rows))
	for _, r := range rows {
		stored[r.Key] = r.Requests
	}
	return stored
}

// judgeSums states that hours, networks and days tell the same, days when they are added up
// by a replica that finds it to be three days later.
func (s *site) judgeSums() {
	s.Helper()
	var sums struct{ Hours, Networks, Days, Told, Uses, Used int }
	read := func() {
		s.db(func(db *sqlx.DB) {
			if err := db.GetContext(s.Context(), &sums, `SELECT (SELECT sum(requests) FROM usage_hours) AS hours, (SELECT sum(requests) FROM usage_networks) AS networks,
				(SELECT COALESCE(sum(requests), 0) FROM usage_days) AS days, (SELECT sum(requests) FROM usage_by_day('-infinity', 'infinity')) AS told,
				(SELECT count(*) FROM secret_uses) AS uses, (SELECT count(DISTINCT secret_id) FROM usage_hours WHERE secret_id <> '00000000-0000-0000-0000-000000000000') AS used`); err != nil {
				s.Fatal(err)
			}
		})
	}
	read()
	s.exact(sums.Networks == sums.Hours && sums.Told == sums.Hours, "networks add up to %d, hours to %d", sums.Networks, sums.Hours)
	s.exact(sums.Uses == sums.Used && sums.Used > 0, "%d secrets have a last use, of %d that were used", sums.Uses, sums.Used)
	s.db(func(db *sqlx.DB) {
		if _, err := db.ExecContext(s.Context(), `WITH n AS (UPDATE usage_networks SET day = day - 3) UPDATE usage_hours SET hour = hour - interval '3 days'`); err != nil {
			s.Fatal(err)
		}
	})
	s.start(1)
	within(patience, func() bool { read(); return sums.Days > 0 })
	s.exact(sums.Days == sums.Hours && sums.Told == sums.Hours && sums.Networks == sums.Hours, "days, once they are over, to %d", sums.Days)
}
