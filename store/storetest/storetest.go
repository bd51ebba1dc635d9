// Package storetest gives each test a schema of its own on a real Postgres, which
// the package's tests share and which is stopped with them.
//
//	func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }
package storetest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // the driver of Exec

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/localserver"
)

// TB is what is needed of a *testing.T; this package must not import testing.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(f func())
	Context() context.Context
}

// shared is the one Postgres of a test binary.
type shared struct {
	once   sync.Once
	server *localserver.Postgres
	dir    string
	err    error
	serial atomic.Int64

	migrated   sync.Once
	migrateErr error
}

const template = "keystile_template"

var postgres shared //nolint:gochecknoglobals // a test binary has one Postgres, and TestMain no way to hand it on

// Main runs a package's tests and then stops the Postgres that they used, if any did.
func Main(m interface{ Run() int }) int {
	code := m.Run()
	if err := postgres.stop(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "stop the tests' Postgres:", err)
		return max(code, 1)
	}
	return code
}

func (s *shared) start() (*localserver.Postgres, error) {
	s.once.Do(func() {
		if s.dir, s.err = os.MkdirTemp("", "keystile-test-"); s.err != nil {
			return
		}
		// Postgres does not run as root: its user must be able to pass through.
		if s.err = os.Chmod(s.dir, 0o711); s.err != nil { //nolint:gosec // see above
			return
		}
		s.server, s.err = localserver.StartPostgres(context.Background(), localserver.PostgresOptions{
			Dir: s.dir + "/postgres", Password: "tests", FsyncOff: true,
		})
	})
	return s.server, s.err
}

func (s *shared) stop() error {
	var err error
	if s.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		err = s.server.Stop(ctx)
	}
	if s.dir != "" {
		if e := os.RemoveAll(s.dir); err == nil {
			err = e
		}
	}
	return err //nolint:wrapcheck // Main says what was being done
}

// Server returns the tests' Postgres, for tests that stop, starve or restart one:
// those must start their own instead when they would disturb others.
func Server(t TB) *localserver.Postgres {
	t.Helper()
	server, err := postgres.start()
	if err != nil {
		t.Fatalf("start a Postgres for tests: %v", err)
	}
	return server
}

// Schema returns the URL of a new, empty schema that is dropped after the test.
func Schema(t TB) string {
	t.Helper()
	server := Server(t)
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), postgres.serial.Add(1))
	base := server.URL("postgres")
	Exec(t, base, "CREATE SCHEMA "+name)
	execAfter(t, base, "DROP SCHEMA "+name+" CASCADE")
	u, err := url.Parse(base)
	if err != nil {
		t.Fatalf("the Postgres for tests has a bad URL: %v", err)
	}
	q := u.Query()
	q.Set("search_path", name)
	u.RawQuery = q.Encode()
	return u.String()
}

// Migrated returns the URL of a new database with all tables, a copy of one that was migrated
// once; it is dropped after the test.
func Migrated(t TB) string {
	t.Helper()
	server := Server(t)
	if err := postgres.migrate(t.Context()); err != nil {
		t.Fatalf("migrate a database for tests: %v", err)
	}
	base, name := server.URL("postgres"), fmt.Sprintf("test_%d_%d", os.Getpid(), postgres.serial.Add(1))
	Exec(t, base, "CREATE DATABASE "+name+" TEMPLATE "+template)
	execAfter(t, base, "DROP DATABASE "+name+" WITH (FORCE)")
	return server.URL(name)
}

// execAfter executes a statement after the test.
func execAfter(t TB, at, statement string) {
	t.Cleanup(func() {
		db, err := sqlx.Connect("postgres", at)
		if err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
		defer func() { _ = db.Close() }()
		if _, err := db.ExecContext(context.Background(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	})
}

// migrate makes the template, once.
func (s *shared) migrate(ctx context.Context) error {
	s.migrated.Do(func() { s.migrateErr = s.makeTemplate(ctx) })
	return s.migrateErr
}

func (s *shared) makeTemplate(ctx context.Context) error {
	db, err := sqlx.Connect("postgres", s.server.URL("postgres"))
	if err != nil {
		return err //nolint:wrapcheck // Migrated says what was being done
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+template); err != nil {
		return err //nolint:wrapcheck // as above
	}
	at, err := store.ParseDatabaseURL(s.server.URL(template))
	if err != nil {
		return err //nolint:wrapcheck // as above
	}
	if _, _, err := store.Migrate(ctx, at); err != nil {
		return err //nolint:wrapcheck // as above
	}
	// A template must have no session, and one that was closed takes a moment to go.
	if _, err := db.ExecContext(ctx, "ALTER DATABASE "+template+" ALLOW_CONNECTIONS false"); err != nil {
		return err //nolint:wrapcheck // as above
	}
	_, err = db.ExecContext(ctx, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '"+template+"'")
	return err //nolint:wrapcheck // as above
}

// Parse parses a URL of Schema or Migrated.
func Parse(t TB, at string) store.DatabaseURL {
	t.Helper()
	parsed, err := store.ParseDatabaseURL(at)
	if err != nil {
		t.Fatalf("a test's database URL: %v", err)
	}
	return parsed
}

// lookupBudget is generous: a busy machine must not fail a test that is not about time.
const lookupBudget = 10 * time.Second

// Open opens a store on a migrated schema; it is closed after the test.
func Open(t TB, at string, peppers authz.Peppers) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{URL: Parse(t, at), Peppers: peppers, LookupBudget: lookupBudget})
	if err != nil {
		t.Fatalf("open a store: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Fatalf("close a store: %v", err)
		}
	})
	return s
}

// Peppers returns peppers with these ids, made for the test.
func Peppers(t TB, ids ...string) authz.Peppers {
	t.Helper()
	text := ""
	for i, id := range ids {
		if i > 0 {
			text += ","
		}
		text += authz.NewPepper(id)
	}
	p, err := authz.ParsePeppers(text)
	if err != nil {
		t.Fatalf("make peppers: %v", err)
	}
	return p
}

// Exec runs one statement on its own connection, as someone else would.
func Exec(t TB, at, statement string, args ...any) {
	t.Helper()
	db, err := sqlx.ConnectContext(t.Context(), "postgres", at)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("execute: %v", err)
	}
}

// Count runs a query that yields one number.
func Count(t TB, at, query string, args ...any) (n int) {
	t.Helper()
	db, err := sqlx.ConnectContext(t.Context(), "postgres", at)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer func() { _ = db.Close() }()
	if err := db.GetContext(t.Context(), &n, query, args...); err != nil {
		t.Fatalf("count: %v", err)
	}
	return n
}
