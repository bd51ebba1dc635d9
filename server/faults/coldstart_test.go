package faults

import (
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
)

// logStatements has the row's Postgres write down, from now on, each statement with its
// parameters, and each connection.
func (s *site) logStatements() {
	s.Helper()
	s.db(func(db *sqlx.DB) {
		// What is set for a database counts more than the command line that started the server.
		for _, statement := range []string{
			"ALTER DATABASE postgres SET log_statement = 'all'", "ALTER SYSTEM SET log_connections = on", "SELECT pg_reload_conf()",
		} {
			if _, err := db.ExecContext(s.Context(), statement); err != nil {
				s.Fatal(err)
			}
		}
		s.eventually("Postgres logs connections", func() bool {
			return queryText(s.trial, s.postgres.URL("postgres"), "SHOW log_connections") == "on"
		})
	})
}

func (s *site) postgresLog() string {
	s.Helper()
	raw, err := os.ReadFile(filepath.Join(s.dir, "postgres", "server.log"))
	if err != nil {
		s.Fatal(err)
	}
	return string(raw)
}

// readLookups tells which digests each statement that looks keys up has asked for, in
// hexadecimal.
func (s *site) readLookups() [][]string {
	s.Helper()
	var all [][]string
	for entry := range strings.SplitSeq(s.postgresLog(), " LOG:  ") {
		statement, parameters, _ := strings.Cut(entry, " DETAIL:  parameters: ")
		if strings.HasPrefix(statement, "execute ") && strings.Contains(statement, "s.digest = ANY ($1)") {
			all = append(all, hexadecimal.FindAllString(parameters, -1))
		}
	}
	return all
}

var hexadecimal = regexp.MustCompile(`[0-9a-f]{64}`) //nolint:gochecknoglobals // a constant

// opened counts the connections that replicas have opened.
func (s *site) opened() int {
	s.Helper()
	return strings.Count(s.postgresLog(), "application_name=keystile")
}

// coldStart asks a replica for everything as soon as it is ready. Each key is asked for
// by several clients at the same time.
func coldStart(t *trial) {
	const together = 4
	s := newSite(t)
	keys := s.addKeys(either(t, 1000, 200), plenty())
	s.logStatements()
	order := make([]*key, 0, together*len(keys))
	for _, k := range keys {
		for range together {
			order = append(order, k)
		}
	}
	for i := range either(t, 3, 1) {
		before := len(s.readLookups())
		r := s.start(1)[0]
		answered := s.run(plan{to: []*replica{r}, keys: order, rate: either(t, 2000, 300), rounds: either(t, 2, 1)})
		statements := s.readLookups()[before:]
		counted := r.metric(t, "keystile_store_lookup_statements_total")
		undecided := answered.where(func(a *answer) bool { return a.err != nil || a.status >= 500 || a.code == "unavailable" })
		t.exact(len(answered.where(func(a *answer) bool { return a.err != nil || a.status >= 500 })) == 0, "cold start %d: %v", i+1, answered)
		t.timed(len(undecided) == 0 && len(answered.except("allowed")) == 0, "undecided: %d of %d", len(undecided), len(answered))
		read := map[string]int{}
		for _, digests := range statements {
			for _, d := range digests {
				read[d]++
			}
		}
		twice := 0
		for _, n := range read {
			twice += n - 1
		}
		// What was given up, for it took too long, is read again.
		t.exact(s.allOf(keys, read) && twice <= len(undecided), "%d keys looked up, %d of them again, in %d statements (≤ 1 a key); it counted %.0f",
			len(read), twice, len(statements), counted)
		t.exact(len(statements) <= len(keys) && counted == float64(len(statements)), "statements: %d", len(statements))
		if err := r.terminate(); err != nil {
			t.Error(err)
		}
	}
}

// allOf tells whether just these keys were read.
func (s *site) allOf(keys []*key, read map[string]int) bool {
	s.Helper()
	for _, k := range keys {
		digests := s.peppers.AppendDigests(nil, k.secret.Hash())
		if len(digests) != 1 || read[hex.EncodeToString(digests[0][:])] == 0 {
			return false
		}
	}
	return len(read) == len(keys)
}

// droppingClients has many clients ask for keys that are not in memory and leave after
// a millisecond.
func droppingClients(t *trial) {
	waves, size := either(t, 5, 2), either(t, 1000, 200)
	s := newSite(t)
	known := s.addKeys(20, plenty())
	unheard := s.unheard(waves * size)
	s.logStatements()
	r := s.start(1)[0]
	s.warm(s.replicas, known)
	l := s.startLoad(plan{to: s.replicas, keys: known, rate: either(t, 300, 50), connections: 16})
	pause(time.Second)
	goroutines := r.metric(t, "go_goroutines")
	most, asked, sockets := 0, r.metric(t, "keystile_decisions_total{code=\"key_unknown\"}"), 0
	for i := range waves {
		before := s.opened()
		s.drop(r, unheard[i*size:][:size])
		sockets = max(sockets, r.socketsTo(t, s.postgres.Port()))
		pause(either(t, 1500*time.Millisecond, 500*time.Millisecond)) // what was asked is worked off
		most = max(most, s.opened()-before)
	}
	t.exact(most <= 2*checkPool, "%d clients drop, %d times: at most %d store connections opened (≤ 2 × %d), %d open", size, waves, most, checkPool, sockets)
	t.exact(r.metric(t, "keystile_decisions_total{code=\"key_unknown\"}") > asked, "unknown keys of clients that had left: %.0f decided",
		r.metric(t, "keystile_decisions_total{code=\"key_unknown\"}")-asked)
	t.exact(within(patience, func() bool { return r.metric(t, "go_goroutines") <= goroutines+20 }), "goroutines as before")
	served := l.stop()
	t.exact(len(served.where(func(a *answer) bool { return a.err != nil || a.status != 200 })) == 0, "clients that stay: %v", served)
	t.timed(len(served.except("allowed")) == 0, "of whom other than allowed: %d", len(served.except("allowed")))
	s.found(r, unheard[:20])
}

// checkPool is how many connections the store holds for checks.
const checkPool = 8

// drop has a client for each key, all at once, of which every other one leaves with a
// reset.
func (s *site) drop(r *replica, keys []*key) {
	var clients sync.WaitGroup
	for i, k := range keys {
		clients.Go(func() {
			c, err := net.DialTimeout("tcp", r.address(), giveUp)
			if err != nil {
				s.Errorf("connect: %v", err)
				return
			}
			if _, err := c.Write(k.request); err != nil {
				s.Errorf("ask: %v", err)
			}
			pause(time.Millisecond)
			if tcp, ok := c.(*net.TCPConn); ok && i%2 == 0 {
				_ = tcp.SetLinger(0)
			}
			_ = c.Close()
		})
	}
	clients.Wait()
}
