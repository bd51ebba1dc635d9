package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// translate turns a driver's error into one of ours at the edge: a server that is
// away or stuck is KindUnavailable, everything else is a wrapped fault. A
// Postgres message may quote a row's values; only its code and name go on.
func translate(doing string, err error) error {
	if err == nil {
		return nil
	}
	var server *pq.Error
	if errors.As(err, &server) {
		class := string(server.Code.Class())
		clean := serverErrorOf(doing, server)
		switch class {
		case "08", "53", "57", "58": // connection, resources, operator, system
			return authz.Unavailable(doing, clean)
		case "28", "3D": // credentials, database name: no retry helps, but it cannot be decided either
			return authz.Unavailable(doing, clean)
		}
		switch server.Code {
		case "55P03", "25P03": // waited too long for a lock, stood still with one: see limitChange
			return authz.Unavailable(doing, clean)
		}
		if field := takenField(server.Constraint); field != "" {
			return fmt.Errorf("%s: %w", doing, &manage.ConflictError{Field: field})
		}
		if server.Constraint != "" {
			return &ConstraintError{Constraint: server.Constraint, doing: doing}
		}
		return clean
	}
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, context.Canceled) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, net.ErrClosed) {
		return authz.Unavailable(doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// takenField is the field that a unique constraint is about.
func takenField(constraint string) string {
	switch constraint {
	case "organizations_external_id_key", "api_keys_external_id":
		return "external_id"
	case "callers_name":
		return "name"
	}
	return ""
}

// ConstraintError says that a change would break a rule of the schema.
type ConstraintError struct {
	// Constraint is the constraint's or unique index' name.
	Constraint string
	doing      string
}

// Error implements error.
func (e *ConstraintError) Error() string { return e.doing + ": would break " + e.Constraint }

func isUndefinedTable(err error) bool {
	var server *pq.Error
	return errors.As(err, &server) && server.Code == "42P01"
}

// serverError is what Postgres said, without its message, which may quote a row.
type serverError struct {
	doing string
	code  string
	name  string
}

// Error implements error.
func (e *serverError) Error() string {
	return e.doing + ": Postgres says " + e.name + " (" + e.code + ")"
}

func serverErrorOf(doing string, err *pq.Error) *serverError {
	return &serverError{doing, string(err.Code), err.Code.Name()}
}
