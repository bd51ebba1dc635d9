package localserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lib/pq"
)

const (
	duplicateObject   = "42710"
	duplicateDatabase = "42P04"
	invalidPassword   = "28P01"
)

// checkLogin makes sure that the password given is the data's.
func (p *Postgres) checkLogin(ctx context.Context) error {
	err := p.administer(ctx, func(c *sql.Conn) error { return c.PingContext(ctx) })
	var server *pq.Error
	if errors.As(err, &server) && server.Code == invalidPassword {
		return fmt.Errorf("the data in %s was made with another password; give that, or remove the directory to begin anew (its data is lost)", p.home.dir)
	}
	return err
}

// CreateDatabase makes a database, owned by a role that may log in with this
// password and sees no other database; both are made when they are not there, and
// the password is set anew. An empty owner means the superuser, and its password is
// not touched. What the database holds is never touched.
func (p *Postgres) CreateDatabase(ctx context.Context, name, owner, password string) error {
	if name == "" || owner == Superuser {
		return errors.New("create a database: it needs a name, and an owner other than the superuser, or none")
	}
	if err := checkPassword(password); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	var statements []string
	owned := pq.QuoteIdentifier(Superuser)
	if owner != "" {
		owned = pq.QuoteIdentifier(owner)
		statements = append(statements,
			"CREATE ROLE "+owned,
			"ALTER ROLE "+owned+" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD "+pq.QuoteLiteral(password))
	}
	database := pq.QuoteIdentifier(name)
	statements = append(statements,
		"CREATE DATABASE "+database,
		"ALTER DATABASE "+database+" OWNER TO "+owned,
		// Everyone may connect to a new database, and make temporary tables in it.
		"REVOKE ALL ON DATABASE "+database+" FROM PUBLIC")
	return p.administer(ctx, func(c *sql.Conn) error {
		for _, s := range statements {
			_, err := c.ExecContext(ctx, s)
			var server *pq.Error
			if errors.As(err, &server) && (server.Code == duplicateObject || server.Code == duplicateDatabase) {
				continue
			}
			if err != nil {
				return fmt.Errorf("create database %s: %w", name, err)
			}
		}
		return nil
	})
}

// administer runs something on a connection of its own as the superuser.
func (p *Postgres) administer(ctx context.Context, do func(*sql.Conn) error) (err error) {
	connector, err := pq.NewConnector(p.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect to %v: it does not take its own URL", p) // the cause might repeat it
	}
	db := sql.OpenDB(connector)
	defer func() { err = errors.Join(err, db.Close()) }()
	c, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("connect to %v: %w", p, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return do(c)
}
