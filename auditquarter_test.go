package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"go.yaml.in/yaml/v3"

	"github.com/supportstation/keystile/authz"
)

// quarterParameters are testdata/audit/quarter.yaml.
type quarterParameters struct {
	Since         time.Time      `yaml:"since"`
	Until         time.Time      `yaml:"until"`
	Organizations int            `yaml:"organizations"`
	Keys          int            `yaml:"keys"`
	Planted       int            `yaml:"planted_of_each_kind"`
	Percent       map[string]int `yaml:"percent"`
	Rhythm        map[string]int `yaml:"rhythm"`
}

// quarter makes up keys and their traffic, and plants problems in some of them. What a planted
// key is, and what an ordinary one is, follows from what people do, not from what the policy looks at:
// thresholds stand there alone.
type quarter struct {
	quarterParameters

	random        *rand.Rand
	organizations []authz.OrganizationID
	keys          []*quarterKey
	// planted are the kinds that are planted in keys.
	planted map[authz.KeyID]authz.FindingCode
}

// quarterKey is one key with its history, days being counted from the window's first.
type quarterKey struct {
	id           authz.KeyID
	organization authz.OrganizationID
	name         string
	environment  authz.Environment
	scopes       []authz.Scope
	created      time.Time
	expires      time.Time
	revoked      time.Time
	disabled     bool
	secrets      []quarterSecret
	networks     []quarterNetwork
	uses         map[quarterUse]int64
	from         map[quarterFrom]int64
	scopeUses    map[authz.Scope][2]time.Time
}

type quarterSecret struct {
	id                       authz.SecretID
	created, expires, lastOn time.Time
}

// quarterNetwork is where a key is used from, from one day to another.
type quarterNetwork struct {
	network  netip.Prefix
	from, to int
}

type quarterUse struct {
	day   int
	shape string
	code  authz.Code
	// older is how many secrets before the newest one was used.
	older int
}

type quarterFrom struct {
	day     int
	scope   authz.Scope
	network netip.Prefix
}

func quarterScopes() []authz.Scope {
	return []authz.Scope{"customers:read", "customers:write", "tickets:read", "tickets:write"}
}

// The shapes of the traffic. Those of scopes are named by their scope, with a prefix from browsers.
const (
	quarterNoShape   = "none"
	quarterCollapsed = "collapsed"
	quarterBrowser   = "browser "
	quarterLive      = "live "
)

func quarterShapes() map[string]string {
	shapes := map[string]string{quarterNoShape: "00000000-0000-0000-0000-000000000000", quarterCollapsed: "00000000-0000-0000-0000-0000000000ff"}
	for i, s := range quarterScopes() {
		shapes[string(s)] = fmt.Sprintf("00000000-0000-0000-0000-00000000010%d", i)
		shapes[quarterBrowser+string(s)] = fmt.Sprintf("00000000-0000-0000-0000-00000000020%d", i)
		shapes[quarterLive+string(s)] = fmt.Sprintf("00000000-0000-0000-0000-00000000030%d", i)
	}
	return shapes
}

func readQuarter(t testing.TB) quarterParameters {
	t.Helper()
	raw, err := os.ReadFile("testdata/audit/quarter.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var p quarterParameters
	if err := yaml.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func newQuarter(p quarterParameters, seed uint64) *quarter {
	q := &quarter{quarterParameters: p, random: rand.New(rand.NewPCG(seed, 7)), planted: map[authz.KeyID]authz.FindingCode{}}
	for range p.Organizations {
		q.organizations = append(q.organizations, authz.NewOrganizationID(p.Since.AddDate(-1, 0, 0)))
	}
	for i := range p.Keys {
		q.keys = append(q.keys, q.ordinary(i))
	}
	q.plant()
	return q
}

func (q *quarter) days() int { return int(q.Until.Sub(q.Since) / (24 * time.Hour)) }

// chance is true so often, in percent.
func (q *quarter) chance(of string) bool { return q.random.IntN(100) < q.Percent[of] }

// between is a whole number, both ends included.
func (q *quarter) between(least, most int) int {
	if most <= least {
		return least
	}
	return least + q.random.IntN(most-least+1)
}

// at is some time of a day.
func (q *quarter) at(day int) time.Time {
	return q.Since.AddDate(0, 0, day).Add(time.Duration(q.random.IntN(24*3600-1)) * time.Second)
}

func (q *quarter) dayOf(t time.Time) int {
	return int(math.Floor(t.Sub(q.Since).Hours() / 24))
}

// volume is how many requests of a day: few with some, many with few.
func (q *quarter) volume() int64 { return int64(math.Exp(q.random.NormFloat64()*1.3+3)) + 1 }

func (q *quarter) network() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(q.random.IntN(256)), byte(q.random.IntN(256)), 0}), 24)
}

// ordinary is a key that has nothing wrong with it: it ends some day, is rotated in time, and uses
// what it has.
func (q *quarter) ordinary(i int) *quarterKey {
	k := &quarterKey{
		name: fmt.Sprintf("key %d", i), environment: authz.EnvironmentLive, organization: q.organizations[q.random.IntN(len(q.organizations))],
		uses: map[quarterUse]int64{}, from: map[quarterFrom]int64{}, scopeUses: map[authz.Scope][2]time.Time{},
	}
	if q.chance("test_environment") {
		k.environment = authz.EnvironmentTest
	}
	begin, young := q.between(-400, -1), false
	switch {
	case q.chance("younger_than_a_month"):
		begin, young = q.days()-q.between(1, 29), true
	case q.chance("made_in_the_quarter"):
		begin = q.between(0, q.days()-31)
	}
	k.created = q.at(begin)
	k.id = authz.NewKeyID(k.created)
	all := quarterScopes()
	q.random.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
	k.scopes = all[:q.between(1, len(all))]
	slices.Sort(k.scopes)
	end := q.days()
	switch {
	case q.chance("ended_before") && begin < -30:
		end = q.between(begin+1, -3)
	case q.chance("ended_in_the_quarter") && begin < end-12:
		end = q.between(max(begin+3, 0), end-4)
	}
	q.secretsOf(k, begin, end)
	q.networksOf(k, begin, end)
	switch {
	case young && q.random.IntN(3) > 0: // not in use yet, or not all of it
		k.scopes = k.scopes[:q.between(1, len(k.scopes))]
		if q.random.IntN(2) == 0 {
			q.useScope(k, k.scopes[0], max(begin, 0), end)
		}
	default:
		for _, s := range k.scopes {
			q.useScope(k, s, max(begin, 0), end)
		}
	}
	q.habits(k, max(begin, 0), end)
	if end < q.days() {
		q.end(k, end)
	} else if q.chance("disabled") {
		k.disabled, k.expires = true, time.Time{}
	}
	return k
}

// secretsOf rotates in time: the newest secret is at most some weeks old at the end.
func (q *quarter) secretsOf(k *quarterKey, begin, end int) {
	// late are calls with old secrets, counted from the first: which is how old is known at the end.
	late := map[quarterUse]int64{}
	first := quarterSecret{id: authz.NewSecretID(k.created), created: k.created, expires: q.Until.AddDate(0, 0, q.between(1, 200))}
	k.secrets = []quarterSecret{first}
	// Every 60 to 89 days: some are about to be rotated when the window ends.
	for next := begin + q.between(60, 88); next < end; next += q.between(60, 88) {
		made := q.at(next)
		old := &k.secrets[len(k.secrets)-1]
		old.expires = made.Add(time.Duration(q.between(0, 7*24)) * time.Hour)
		k.secrets = append(k.secrets, quarterSecret{id: authz.NewSecretID(made), created: made, expires: q.Until.AddDate(0, 0, q.between(1, 200))})
		// Some client has the old one for a day or two more.
		if day := q.dayOf(old.expires) + 1; day >= 0 && q.chance("old_secret") && day+1 < end {
			for d := range q.between(1, 2) {
				late[quarterUse{day + d, quarterNoShape, authz.CodeKeyExpired, len(k.secrets) - 2}] += q.volume()
			}
		}
	}
	for u, n := range late {
		u.older = len(k.secrets) - 1 - u.older
		k.uses[u] = n
	}
	if q.random.IntN(2) == 0 {
		k.expires = q.Until.AddDate(0, 0, q.between(1, 400))
		if q.random.IntN(2) == 0 { // the key's end is enough
			k.secrets[len(k.secrets)-1].expires = time.Time{}
		}
	}
}

func (q *quarter) networksOf(k *quarterKey, begin, end int) {
	begin = max(begin, 0)
	n := q.between(1, 3)
	if q.chance("many_networks") {
		n = q.between(5, 16)
	}
	for range n {
		k.networks = append(k.networks, quarterNetwork{q.network(), begin, end})
	}
	switch {
	case q.chance("moved") && end-begin > 20:
		day := q.between(begin+5, end-5)
		for i := range k.networks {
			k.networks[i].to = day
		}
		k.networks = append(k.networks, quarterNetwork{q.network(), day - 1, end})
	case q.chance("second_network") && end-begin > 40:
		k.networks = append(k.networks, quarterNetwork{q.network(), end - q.between(3, 25), end})
	}
}

// useScope uses a scope in its rhythm, as long as there is the key.
func (q *quarter) useScope(k *quarterKey, s authz.Scope, begin, end int) {
	if end <= begin {
		return
	}
	collapsed := q.chance("collapsed")
	for _, day := range q.rhythm(begin, end) {
		q.use(k, s, day, q.volume(), collapsed)
	}
}

// use is allowed requests of a day.
func (q *quarter) use(k *quarterKey, s authz.Scope, day int, n int64, collapsed bool) {
	var open []netip.Prefix
	for _, network := range k.networks {
		if day >= network.from && day < network.to {
			open = append(open, network.network)
		}
	}
	if len(open) == 0 {
		open = []netip.Prefix{k.networks[len(k.networks)-1].network}
	}
	q.useFrom(k, s, day, n, open[q.random.IntN(len(open))], collapsed)
}

func (q *quarter) useFrom(k *quarterKey, s authz.Scope, day int, n int64, network netip.Prefix, collapsed bool) {
	shape := string(s)
	if collapsed {
		shape = quarterCollapsed
	}
	k.uses[quarterUse{day, shape, authz.CodeAllowed, 0}] += n
	k.from[quarterFrom{day, s, network}] += n
	at := q.at(day)
	if at.Before(k.created) {
		at = k.created.Add(time.Minute)
	}
	seen, known := k.scopeUses[s]
	if !known {
		// As far back as it was noted: before the window, where there was the key.
		seen = [2]time.Time{at, at}
		if k.created.Before(q.Since) {
			seen[0] = k.created.Add(time.Hour)
		}
	}
	if at.After(seen[1]) {
		seen[1] = at
	}
	if at.Before(seen[0]) {
		seen[0] = at
	}
	k.scopeUses[s] = seen
	if last := &k.secrets[len(k.secrets)-1]; at.After(last.lastOn) {
		last.lastOn = at
	}
}

// rhythm is on which days of a span something is used.
func (q *quarter) rhythm(begin, end int) (days []int) {
	pick, rhythm := q.random.IntN(100), ""
	for _, name := range []string{"weekdays", "daily", "weekly", "monthly", "season"} {
		rhythm = name
		if pick -= q.Rhythm[name]; pick < 0 {
			break
		}
	}
	dayOfMonth, weekday := q.between(1, 28), time.Weekday(q.between(1, 5))
	from, to := begin, end
	if rhythm == "season" && end-begin > 28 {
		weeks := q.between(2, 4)
		from = q.between(begin, end-7*weeks)
		to = from + 7*weeks
	}
	for day := from; day < to; day++ {
		at := q.Since.AddDate(0, 0, day)
		works := at.Weekday() != time.Saturday && at.Weekday() != time.Sunday
		switch {
		case rhythm == "monthly" && at.Day() != dayOfMonth,
			rhythm == "weekly" && at.Weekday() != weekday,
			(rhythm == "weekdays" || rhythm == "season") && !works,
			rhythm != "monthly" && rhythm != "weekly" && q.random.IntN(12) == 0: // holidays, outages
			continue
		}
		days = append(days, day)
	}
	if len(days) == 0 { // a short span without the day
		days = []int{q.between(begin, end-1)}
	}
	return days
}

// habits are what ordinary keys do beside their work.
func (q *quarter) habits(k *quarterKey, begin, end int) {
	if end-begin < 3 {
		return
	}
	somewhere := func() int { return q.between(begin, end-1) }
	if k.environment == authz.EnvironmentTest {
		if q.chance("mistakes") {
			for range q.between(1, 2) {
				k.uses[quarterUse{somewhere(), quarterLive + string(k.scopes[0]), authz.CodeEnvironmentMismatch, 0}] += q.volume()
			}
		}
		if q.chance("in_browsers") {
			for range q.between(1, 20) {
				k.uses[quarterUse{somewhere(), quarterBrowser + string(k.scopes[0]), authz.CodeAllowed, 0}] += q.volume()
			}
		}
	}
	if q.chance("refused") {
		for _, s := range quarterScopes() {
			if !slices.Contains(k.scopes, s) {
				k.uses[quarterUse{somewhere(), string(s), authz.CodeInsufficientScope, 0}] += q.volume()
			}
		}
	}
	bursts := q.chance("bursts")
	if bursts {
		for range q.between(1, 7) {
			k.uses[quarterUse{somewhere(), string(k.scopes[0]), authz.CodeRateLimited, 0}] += q.volume() * 3
		}
	}
	if !bursts && q.chance("grazes") { // both would be a habit
		allowed := map[int]int64{}
		for u, n := range k.uses {
			if u.code == authz.CodeAllowed {
				allowed[u.day] += n
			}
		}
		for day, n := range allowed {
			if n > 50 {
				k.uses[quarterUse{day, string(k.scopes[0]), authz.CodeRateLimited, 0}] += n / 50
			}
		}
	}
}

// end revokes a key, or lets it expire; its clients notice in a day or two.
func (q *quarter) end(k *quarterKey, day int) {
	code := authz.CodeKeyExpired
	if q.random.IntN(2) == 0 {
		code, k.revoked = authz.CodeKeyRevoked, q.at(day)
	} else {
		k.expires = q.at(day)
	}
	for u := range k.uses {
		if u.day > day {
			delete(k.uses, u)
		}
	}
	if day >= 0 && q.random.IntN(4) > 0 {
		for d := range q.between(1, 2) {
			k.uses[quarterUse{day + d, quarterNoShape, code, 0}] += q.volume()
		}
	}
}

func clearCalls(k *quarterKey, code authz.Code) {
	for u := range k.uses {
		if u.code == code {
			delete(k.uses, u)
		}
	}
}

// plant gives some keys that have been there for long a problem each, two of each kind.
func (q *quarter) plant() {
	codes := []authz.FindingCode{
		authz.FindingUnusedScope, authz.FindingRarelyUsedScope, authz.FindingUnusedKey, authz.FindingWriteNeverUsed, authz.FindingNeverRotated,
		authz.FindingNoExpiry, authz.FindingExpiredButCalled, authz.FindingRevokedButCalled, authz.FindingTestKeyInLiveApp,
		authz.FindingLiveKeyInBrowser, authz.FindingSharedKey, authz.FindingOverLimitHabit,
	}
	for _, code := range codes {
		for n := range q.Planted {
			for {
				i := q.random.IntN(len(q.keys))
				if q.planted[q.keys[i].id] != "" {
					continue
				}
				k := q.established(i, code)
				q.plantIn(k, code, n)
				q.keys[i] = k
				q.planted[k.id] = code
				break
			}
		}
	}
}

// established is an ordinary key that was there before the quarter and is there after it.
func (q *quarter) established(i int, code authz.FindingCode) *quarterKey {
	for {
		k := q.ordinary(i)
		fit := k.created.Before(q.Since.AddDate(0, 0, -30)) && k.revoked.IsZero() && !k.disabled && (k.expires.IsZero() || k.expires.After(q.Until)) && len(k.scopes) >= 2
		switch code {
		case authz.FindingTestKeyInLiveApp:
			fit = fit && k.environment == authz.EnvironmentTest
		case authz.FindingLiveKeyInBrowser:
			fit = fit && k.environment == authz.EnvironmentLive
		case authz.FindingUnusedScope:
			// A read scope, or a write scope beside one that is used.
			fit = fit && len(k.scopes) < 4 && (!slices.Contains(k.scopes, "tickets:read") || slices.Contains(k.scopes, "customers:write"))
		case authz.FindingWriteNeverUsed:
			fit = fit && !slices.ContainsFunc(k.scopes, func(s authz.Scope) bool { return strings.HasSuffix(string(s), ":write") })
		}
		if fit {
			return k
		}
	}
}

// plantIn makes the n-th problem of a kind.
func (q *quarter) plantIn(k *quarterKey, code authz.FindingCode, n int) {
	last := q.days() - 1
	workdays := func(from, to int, do func(day int)) {
		for day := from; day <= to; day++ {
			if w := q.Since.AddDate(0, 0, day).Weekday(); w != time.Saturday && w != time.Sunday {
				do(day)
			}
		}
	}
	switch code {
	case authz.FindingUnusedScope:
		for _, s := range []authz.Scope{"tickets:read", "tickets:write", "customers:read"} {
			if !slices.Contains(k.scopes, s) {
				k.scopes = append(k.scopes, s)
				if n == 0 { // it was used once, before anybody asks
					k.scopeUses[s] = [2]time.Time{k.created, q.Since.AddDate(0, 0, -1)}
				}
				break
			}
		}
	case authz.FindingWriteNeverUsed:
		k.scopes = append(k.scopes, []authz.Scope{"tickets:write", "customers:write"}[:q.between(1, 2)]...)
	case authz.FindingRarelyUsedScope:
		s := k.scopes[0]
		q.forget(k, s)
		if n == 0 {
			for _, day := range []int{q.between(0, last/2), q.between(last/2+1, last)}[:q.between(1, 2)] {
				q.use(k, s, day, q.volume(), false)
			}
			return
		}
		// Somebody new, for what nobody else does.
		network := q.network()
		q.steady(k, 0, last)
		first := last - q.between(8, 24)
		workdays(first, last, func(day int) { q.useFrom(k, s, day, q.volume(), network, false) })
		seen := k.scopeUses[s]
		seen[0] = q.at(first) // nobody did it before
		k.scopeUses[s] = seen
	case authz.FindingUnusedKey:
		for u := range k.uses {
			if u.code == authz.CodeAllowed {
				delete(k.uses, u)
			}
		}
		clear(k.from)
		clear(k.scopeUses)
		clearCalls(k, authz.CodeRateLimited)
		for i := range k.secrets {
			k.secrets[i].lastOn = time.Time{}
		}
	case authz.FindingNeverRotated:
		k.created = q.at(q.between(-400, -1))
		k.secrets = k.secrets[:1]
		k.secrets[0].created, k.secrets[0].expires, k.secrets[0].lastOn = k.created, q.Until.AddDate(0, 3, 0), q.at(last)
		clearCalls(k, authz.CodeKeyExpired)
		if n == 1 { // it was, long ago
			k.created = q.Since.AddDate(0, 0, -400)
			old := k.secrets[0]
			k.secrets[0].id, k.secrets[0].created, k.secrets[0].expires = authz.NewSecretID(k.created), k.created, old.created
			k.secrets = append(k.secrets, old)
		}
	case authz.FindingNoExpiry:
		k.expires = time.Time{}
		k.secrets[len(k.secrets)-1].expires = time.Time{}
	case authz.FindingExpiredButCalled, authz.FindingRevokedButCalled:
		day := q.between(10, last-15)
		for u := range k.uses {
			if u.day > day {
				delete(k.uses, u)
			}
		}
		gone := authz.CodeKeyExpired
		k.expires = q.at(day)
		if code == authz.FindingRevokedButCalled {
			gone, k.revoked = authz.CodeKeyRevoked, k.expires
			k.expires = time.Time{}
		}
		clearCalls(k, authz.CodeKeyExpired)
		workdays(day+1, day+q.between(6, 40), func(day int) {
			if day <= last {
				k.uses[quarterUse{day, quarterNoShape, gone, 0}] += q.volume()
			}
		})
	case authz.FindingTestKeyInLiveApp:
		from := q.between(0, last-10)
		workdays(from, from+q.between(5, 30), func(day int) {
			if day <= last {
				k.uses[quarterUse{day, quarterLive + string(k.scopes[0]), authz.CodeEnvironmentMismatch, 0}] += q.volume()
			}
		})
	case authz.FindingLiveKeyInBrowser:
		for range q.between(1, 30) {
			k.uses[quarterUse{q.between(0, last), quarterBrowser + string(k.scopes[0]), authz.CodeAllowed, 0}] += q.volume()
		}
	case authz.FindingSharedKey:
		for range q.between(25, 60) {
			q.useFrom(k, k.scopes[0], q.between(0, last), q.volume(), q.network(), false)
		}
	case authz.FindingOverLimitHabit:
		share := float64(q.between(8, 40)) / 100
		workdays(q.between(0, last-30), last, func(day int) {
			q.use(k, k.scopes[0], day, 200, false)
			k.uses[quarterUse{day, string(k.scopes[0]), authz.CodeRateLimited, 0}] += int64(200 * share)
		})
		total := int64(0)
		for u, n := range k.uses {
			if u.code == authz.CodeAllowed {
				total += n
			}
		}
		k.uses[quarterUse{last, string(k.scopes[0]), authz.CodeRateLimited, 0}] += int64(float64(total) * share)
	}
	slices.Sort(k.scopes)
}

// steady uses all scopes but the first from one network that was always there.
func (q *quarter) steady(k *quarterKey, from, to int) {
	k.networks = k.networks[:1]
	k.networks[0].from, k.networks[0].to = from, to+1
	for _, s := range k.scopes[1:] {
		q.forget(k, s)
		for day := from; day <= to; day += q.between(1, 3) {
			q.use(k, s, day, q.volume(), false)
		}
	}
}

// forget takes back what is recorded of a scope.
func (q *quarter) forget(k *quarterKey, s authz.Scope) {
	for u := range k.uses {
		if u.code == authz.CodeAllowed && (strings.HasSuffix(u.shape, string(s)) || u.shape == quarterCollapsed) {
			delete(k.uses, u)
		}
	}
	for f := range k.from {
		if f.scope == s {
			delete(k.from, f)
		}
	}
	delete(k.scopeUses, s)
}

// insert writes the quarter into a database.
func (q *quarter) insert(t testing.TB, db *sqlx.DB) {
	t.Helper()
	tx, err := db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	run := func(query string, args ...any) {
		t.Helper()
		if _, err := tx.ExecContext(t.Context(), query, args...); err != nil {
			t.Fatal(err)
		}
	}
	fill := func(table string, columns []string, rows func(add func(...any))) {
		t.Helper()
		statement, err := tx.PrepareContext(t.Context(), fmt.Sprintf(`COPY %s (%s) FROM STDIN`, table, strings.Join(columns, ", ")))
		if err != nil {
			t.Fatal(err)
		}
		rows(func(values ...any) {
			if _, err := statement.ExecContext(t.Context(), values...); err != nil {
				t.Fatal(err)
			}
		})
		if _, err := statement.ExecContext(t.Context()); err != nil {
			t.Fatal(table, err)
		}
		if err := statement.Close(); err != nil {
			t.Fatal(err)
		}
	}
	const caller = "00000000-0000-0000-0000-0000000000ca"
	shapes := quarterShapes()
	run(`INSERT INTO peppers (id, fingerprint) VALUES ('quarter', 'quarter') ON CONFLICT DO NOTHING`)
	run(`INSERT INTO usage_days_done (day, rolled_at) SELECT d::date, now() FROM generate_series($1::date - 60, $2::date - 1, interval '1 day') d`, q.Since, q.Until)
	for name, id := range shapes {
		if name == quarterNoShape {
			continue
		}
		scopes := pq.StringArray{}
		if f := strings.Fields(name); name != quarterCollapsed {
			scopes = append(scopes, f[len(f)-1])
		}
		run(`INSERT INTO usage_shapes SELECT $1, '', 'GET', '', '', false, $2, '', '', '', false, '', 'given', 0, $3, false, $4, $5::date`,
			id, name == quarterCollapsed, strings.HasPrefix(name, quarterBrowser), scopes, q.Until)
	}
	for i, id := range q.organizations {
		run(`INSERT INTO organizations (id, name, plan, revision) VALUES ($1, $2, 'standard', 1)`, id, fmt.Sprintf("Organization %d", i+1))
	}
	null := func(at time.Time) any {
		if at.IsZero() {
			return nil
		}
		return at
	}
	fill("api_keys", []string{"id", "organization_id", "name", "environment", "scopes", "created_at", "created_by", "expires_at", "revoked_at", "disabled_at", "revision"}, func(add func(...any)) {
		for _, k := range q.keys {
			disabled := any(nil)
			if k.disabled {
				disabled = q.Until
			}
			scopes := pq.StringArray{}
			for _, s := range k.scopes {
				scopes = append(scopes, string(s))
			}
			add(k.id, k.organization, k.name, string(k.environment), scopes, k.created, "quarter", null(k.expires), null(k.revoked), disabled, 1)
		}
	})
	n := 0
	fill("key_secrets", []string{"digest", "id", "key_id", "pepper_id", "hint", "created_at", "expires_at"}, func(add func(...any)) {
		for _, k := range q.keys {
			for _, s := range k.secrets {
				n++
				add(fmt.Appendf(nil, "%032d", n), s.id, k.id, "quarter", "sk_live_made…up", s.created, null(s.expires))
			}
		}
	})
	fill("secret_uses", []string{"secret_id", "key_id", "used_at", "first_used_at"}, func(add func(...any)) {
		for _, k := range q.keys {
			for _, s := range k.secrets {
				if !s.lastOn.IsZero() {
					add(s.id, k.id, s.lastOn, s.created)
				}
			}
		}
	})
	fill("scope_uses", []string{"key_id", "scope", "first_used_at", "used_at"}, func(add func(...any)) {
		for _, k := range q.keys {
			for s, at := range k.scopeUses {
				add(k.id, string(s), at[0], at[1])
			}
		}
	})
	fill("usage_days", []string{"day", "organization_id", "key_id", "secret_id", "caller_id", "shape_id", "code", "requests"}, func(add func(...any)) {
		for _, k := range q.keys {
			for u, n := range k.uses {
				if u.day >= 0 && u.day < q.days() {
					add(q.Since.AddDate(0, 0, u.day), k.organization, k.id, k.secrets[len(k.secrets)-1-u.older].id, caller, shapes[u.shape], string(u.code), n)
				}
			}
		}
	})
	fill("usage_networks", []string{"day", "organization_id", "key_id", "scopes", "network", "allowed", "requests"}, func(add func(...any)) {
		for _, k := range q.keys {
			for f, n := range k.from {
				if f.day >= 0 && f.day < q.days() {
					add(q.Since.AddDate(0, 0, f.day), k.organization, k.id, string(f.scope), f.network.String(), true, n)
				}
			}
		}
	})
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `ANALYZE`); err != nil {
		t.Fatal(err)
	}
}
