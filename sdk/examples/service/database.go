package service

import (
	"context"
	_ "embed" // for the schema
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // the driver that Open names

	keystile "github.com/supportstation/keystile/sdk"
)

const (
	// maxConnections bounds the pool, which is endless by default.
	maxConnections = 10
	// statementTimeout bounds what the database does for one request.
	statementTimeout = 3 * time.Second
	// startTimeout bounds connecting and making the schema.
	startTimeout = 15 * time.Second
	// schemaLock is the advisory lock under which tables are made, so that both
	// applications may start at once: CREATE … IF NOT EXISTS alone can collide.
	schemaLock = 0x6b65797374696c65 // "keystile"
	// maxSeen bounds the tenants whose samples are known to be there.
	maxSeen = 10_000
)

//go:embed schema.sql
var sharedSchema string

// Open connects to Postgres and makes the tables of schema, which must be
// written so that it can run again. No error holds the URL, which has a password.
func Open(ctx context.Context, databaseURL, schema string) (*sqlx.DB, error) {
	dsn, err := connectString(databaseURL)
	if err != nil {
		return nil, err
	}
	db, err := sqlx.Open("postgres", dsn)
	if err != nil {
		return nil, errors.New("EXAMPLES_DATABASE_URL is not accepted by the driver; check its parameters")
	}
	db.SetMaxOpenConns(maxConnections)
	db.SetMaxIdleConns(maxConnections)
	db.SetConnMaxIdleTime(5 * time.Minute)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := makeTables(ctx, db, sharedSchema+schema); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("make the tables: %w", err)
	}
	return db, nil
}

func connectString(databaseURL string) (string, error) {
	u, err := url.Parse(databaseURL)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return "", errors.New("EXAMPLES_DATABASE_URL must look like postgres://user:password@host/database")
	}
	parameters := u.Query()
	if !parameters.Has("connect_timeout") {
		parameters.Set("connect_timeout", "5")
	}
	// Times go out in UTC.
	parameters.Set("timezone", "UTC")
	u.RawQuery = parameters.Encode()
	return u.String(), nil
}

func makeTables(ctx context.Context, db *sqlx.DB, schema string) error {
	return inTransaction(ctx, db, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(schemaLock)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, schema)
		return err
	})
}

func inTransaction(ctx context.Context, db *sqlx.DB, work func(*sqlx.Tx) error) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	if err := work(tx); err != nil {
		// A rollback that fails has nothing to add: the connection is gone.
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
}

// Tenant is whose rows a request may see. Both halves belong into the WHERE of
// every statement.
type Tenant struct {
	Organization string
	Environment  string
}

// TenantOf returns the tenant of an allowed decision.
func TenantOf(d *keystile.Decision) Tenant {
	return Tenant{Organization: d.Organization.ID, Environment: string(d.Key.Environment)}
}

// Samples gives each tenant its sample rows at its first call. It is safe for
// concurrent use, also by several processes.
type Samples struct {
	db     *sqlx.DB
	app    string
	insert string

	mu   sync.Mutex
	seen map[Tenant]struct{}
}

// NewSamples returns the samples of app. insert is one statement that makes the
// rows of the organization $1 and the environment $2.
func NewSamples(db *sqlx.DB, app, insert string) *Samples {
	return &Samples{db: db, app: app, insert: insert, seen: map[Tenant]struct{}{}}
}

// Ensure makes the rows unless the tenant ever had them. When it returns nil,
// they have been there: a second caller waits for the first.
func (s *Samples) Ensure(ctx context.Context, t Tenant) error {
	if s.has(t) {
		return nil
	}
	err := inTransaction(ctx, s.db, func(tx *sqlx.Tx) error {
		// The row's key makes concurrent first calls wait for each other.
		marked, err := tx.ExecContext(ctx,
			`INSERT INTO samples (app, organization, environment) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			s.app, t.Organization, t.Environment)
		if err != nil {
			return err
		}
		if n, err := marked.RowsAffected(); err != nil || n == 0 {
			return err
		}
		_, err = tx.ExecContext(ctx, s.insert, t.Organization, t.Environment)
		return err
	})
	if err != nil {
		return fmt.Errorf("make sample rows: %w", err)
	}
	s.remember(t)
	return nil
}

func (s *Samples) has(t Tenant) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.seen[t]
	return ok
}

func (s *Samples) remember(t Tenant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) >= maxSeen {
		clear(s.seen)
	}
	s.seen[t] = struct{}{}
}
