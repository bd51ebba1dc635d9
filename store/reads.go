package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// ErrNotFound says that a change found no row to change, or a reader no row.
var ErrNotFound = manage.ErrNotFound

// reads are the reads of one transaction; it is a manage.Reader. Every statement has
// the tenant in its WHERE, as $1 (everyone) and $2 (the organization, NULL for none).
type reads struct {
	tx  *sqlx.Tx
	now time.Time
}

var (
	_ manage.Reader = (*reads)(nil)
	_ manage.Store  = (*Store)(nil)
)

// Read implements manage.Store.
func (s *Store) Read(ctx context.Context, fn func(context.Context, manage.Reader) error) error {
	if err := s.notAdmitted("begin to read"); err != nil {
		return err
	}
	tx, err := s.manage.BeginTxx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return translate("begin to read", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing to keep
	r := &reads{tx: tx}
	if err := tx.GetContext(ctx, &r.now, `SELECT now()`); err != nil {
		return translate("begin to read", err)
	}
	r.now = r.now.UTC()
	return fn(ctx, r)
}

// Now implements manage.Reader. Statements get it as an argument, so that what SQL
// and Go call expired is one.
func (r *reads) Now() time.Time { return r.now }

// list reads rows into what they stand for.
func list[T any, R interface{ thing() (T, error) }](
	ctx context.Context, r *reads, doing, query string, args ...any,
) ([]T, error) {
	var rows []R
	if err := r.tx.SelectContext(ctx, &rows, query, args...); err != nil {
		return nil, translate(doing, err)
	}
	out := make([]T, 0, len(rows))
	for _, row := range rows {
		thing, err := row.thing()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		out = append(out, thing)
	}
	return out, nil
}

// one is list for a query that finds a single row or none.
func one[T any, R interface{ thing() (T, error) }](
	ctx context.Context, r *reads, doing, query string, args ...any,
) (*T, error) {
	things, err := list[T, R](ctx, r, doing, query, args...)
	if err != nil {
		return nil, err
	}
	if len(things) == 0 {
		return nil, fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	return &things[0], nil
}

// cursor reads the id behind which a page begins; the zero id, NULL, is the first page.
func cursor[K authz.IDKind](after string, id *authz.ID[K]) (err error) {
	if after == "" {
		return nil
	}
	if *id, err = authz.ParseID[K](after); err != nil {
		return &authz.Error{
			Kind: authz.KindInvalid, Code: "out_of_range", Pointer: "/cursor",
			Message: "must be the next_cursor of a page of this list",
		}
	}
	return nil
}

// utc is the zero time for NULL.
func utc(t sql.NullTime) time.Time {
	if !t.Valid {
		return time.Time{}
	}
	return t.Time.UTC()
}

// optionalTime is NULL for the zero time.
func optionalTime(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}

// optionalText is NULL for the empty string.
func optionalText(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// timeOr is t, or the transaction's time for the zero time.
func (r *reads) timeOr(t time.Time) time.Time {
	if t.IsZero() {
		return r.now
	}
	return t
}

// uuid is an id as a JSON value that Postgres reads as a uuid: its text form is a TypeID.
func uuid(id driver.Valuer) any {
	v, _ := id.Value() // an id always has one
	return v
}

// texts are strings of any kind as a text[].
func texts[T ~string](in []T) pq.StringArray {
	out := make(pq.StringArray, len(in))
	for i, s := range in {
		out[i] = string(s)
	}
	return out
}

// strung is the other way.
func strung[T ~string](in pq.StringArray) []T {
	if len(in) == 0 {
		return nil
	}
	out := make([]T, len(in))
	for i, s := range in {
		out[i] = T(s)
	}
	return out
}
