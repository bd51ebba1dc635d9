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

var hexadecimal = regexp.MustCompile(`[0-9a-f]{64}`)

// opened counts the connections that were opened, whether or not they were of use then.
func (s *site) opened() int {
	s.Helper()
	return strings.Count(s.postgresLog(), "connection received: ")
}

// coldStart asks a replica for everything as soon as it is ready. Each key is asked for
// by several clients at the same time. It is Postgres that tells what it was asked.
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
		answered := s.run(plan{to: []*replica{r}, keys: order, rate: either(t, 2000, 200), rounds: either(t, 2, 1), connections: coldClients})
		statements := r.metric(t, "keystile_store_lookup_statements_total")
		failed := answered.where(func(a *answer) bool { return a.err != nil || a.status >= 500 })
		t.exact(len(failed) == 0, "cold start %d: %v", i+1, answered)
		undecided := answered.except("allowed")
		t.timed(len(undecided) == 0, "of which other than allowed: %v", undecided)
		for _, k := range keys {
			s.eventually("a key is found", func() bool {
				a := s.ask(r, k)
				undecided = append(undecided, answers{a}.except("allowed")...)
				return a.allow
			})
		}
		s.judgeReads(keys, s.readLookups()[before:], statements, len(undecided))
		if err := r.terminate(); err != nil {
			t.Error(err)
		}
	}
}

// coldClients are enough that none has to wait for another's first answer.
const coldClients = 200

// judgeReads states that each key was read once. What was given up is read again, as
// often as something was undecided.
func (s *site) judgeReads(keys []*key, lookups [][]string, statements float64, undecided int) {
	s.Helper()
	read, again := map[string]int{}, 0
	for _, digests := range lookups {
		for _, d := range digests {
			if read[d]++; read[d] > 1 {
				again++
			}
		}
	}
	missing := 0
	for _, k := range keys {
		digests := s.peppers.AppendDigests(nil, k.secret.Hash())
		if read[hex.EncodeToString(digests[0][:])] == 0 {
			missing++
		}
	}
	s.exact(len(read) == len(keys) && missing == 0 && again <= undecided && int(statements) <= len(keys)+undecided,
		"%d of %d keys read, %d of them more than once, by %d statements (≤ 1 a key)", len(keys)-missing, len(keys), again, int(statements))
}

// droppingClients has many clients ask for keys that are not in memory and leave after
// a millisecond.
func droppingClients(t *trial) {
	waves, size := either(t, 5, 2), either(t, 1000, 400)
	s := newSite(t)
	known := s.addKeys(20, plenty())
	unheard := s.unheard(waves * size)
	s.logStatements()
	r := s.start(1)[0]
	s.warm(s.replicas, known)
	l := s.startLoad(plan{to: s.replicas, keys: known, rate: either(t, 300, 50), connections: 64})
	pause(time.Second)
	goroutines := r.metric(t, "go_goroutines")
	most, asked, sockets := 0, s.decided(s.replicas, "key_unknown"), 0
	for i := range waves {
		before := s.opened()
		s.drop(r, unheard[i*size:][:size])
		sockets = max(sockets, r.socketsTo(t, s.postgres.Port()))
		pause(either(t, 1500*time.Millisecond, 500*time.Millisecond)) // what was asked is worked off
		most = max(most, s.opened()-before)
	}
	t.exact(most <= 2*checkPool, "%d clients drop, %d times: at most %d store connections opened (≤ 2 × %d), %d open", size, waves, most, checkPool, sockets)
	t.exact(s.decided(s.replicas, "key_unknown") > asked, "unknown keys of clients that had left: %.0f decided",
		s.decided(s.replicas, "key_unknown")-asked)
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
