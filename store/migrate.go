package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrationLock is the Postgres advisory lock that lets one process migrate at a time.
const migrationLock = 0x6b65797374696c65 // "keystile"

func openDB(c driver.Connector) *sql.DB { return sql.OpenDB(c) }

// Migrate brings the database to this version's schema and returns the versions
// from which and to which it went. Processes that start together wait for each
// other on an advisory lock.
func Migrate(ctx context.Context, at DatabaseURL) (from, to int64, err error) {
	db, err := at.pool(2, manageReadDeadline, false, nil)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = db.Close() }()
	if err := db.PingContext(ctx); err != nil {
		return 0, 0, translate("connect to Postgres", err)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(migrationLock), lock.WithLockTimeout(1, 300))
	if err != nil {
		return 0, 0, fmt.Errorf("migrate: %w", err)
	}
	provider, err := migrationProvider(db, goose.WithSessionLocker(locker))
	if err != nil {
		return 0, 0, err
	}
	from, err = provider.GetDBVersion(ctx)
	if err != nil {
		return 0, 0, translate("read the schema's version", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return from, from, translate("migrate the database", err)
	}
	to, err = provider.GetDBVersion(ctx)
	if err != nil {
		return from, from, translate("read the schema's version", err)
	}
	return from, to, nil
}

func migrationProvider(db *sqlx.DB, opts ...goose.ProviderOption) (*goose.Provider, error) {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db.DB, sub, opts...)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	return provider, nil
}

// checkSchema refuses a database that is older or newer than this version.
func checkSchema(ctx context.Context, db *sqlx.DB) error {
	provider, err := migrationProvider(db)
	if err != nil {
		return err
	}
	sources := provider.ListSources()
	want := sources[len(sources)-1].Version
	var have int64
	err = db.GetContext(ctx, &have, `SELECT COALESCE(max(version_id), 0) FROM goose_db_version WHERE is_applied`)
	if isUndefinedTable(err) {
		have, err = 0, nil
	}
	if err != nil {
		return translate("read the schema's version", err)
	}
	switch {
	case have < want:
		return &SchemaError{Have: have, Want: want, Hint: "run `keystile migrate`"}
	case have > want:
		return &SchemaError{Have: have, Want: want, Hint: "this database belongs to a newer version; upgrade this one"}
	}
	return nil
}

// SchemaError says that the database's schema is not this version's.
type SchemaError struct {
	Have, Want int64
	Hint       string
}

// Error implements error.
func (e *SchemaError) Error() string {
	return fmt.Sprintf("database schema is at version %d, this keystile needs %d: %s", e.Have, e.Want, e.Hint)
}
