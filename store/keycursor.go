package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/supportstation/keystile/authz"
)

// rowsAtOnce bounds the rows of one cursor in memory.
const rowsAtOnce = 10_000

// keyed is a row of a key.
type keyed interface{ keyID() authz.KeyID }

// keyCursor reads rows that are sorted by their key, a part at a time.
type keyCursor[R keyed] struct {
	r    *reads
	name string
	// scan reads one row; loaded, which may be nil, completes those of a part.
	scan   func(*sql.Rows, *R) error
	loaded func(context.Context, []R) error
	rows   []R
	at     int
	ended  bool
}

// open begins to read a query.
func (c *keyCursor[R]) open(ctx context.Context, query string, args ...any) error {
	_, err := c.r.tx.ExecContext(ctx, `DECLARE `+c.name+` NO SCROLL CURSOR FOR `+query, args...)
	return translate("read evidence", err)
}

// of hands out the rows of a key. Keys are asked for in their order; rows of keys that nobody
// asked for are passed over.
func (c *keyCursor[R]) of(ctx context.Context, key authz.KeyID, each func(*R)) error {
	for {
		row, err := c.peek(ctx)
		if err != nil || row == nil {
			return err
		}
		switch (*row).keyID().Compare(key) {
		case 1:
			return nil
		case 0:
			each(row)
		}
		c.at++
	}
}

// peek is the next row, nil after the last.
func (c *keyCursor[R]) peek(ctx context.Context) (*R, error) {
	if c.at == len(c.rows) && !c.ended {
		if err := c.fetch(ctx); err != nil {
			return nil, translate("read evidence", err)
		}
	}
	if c.at == len(c.rows) {
		return nil, nil //nolint:nilnil // there is none, and nothing is wrong
	}
	return &c.rows[c.at], nil
}

func (c *keyCursor[R]) fetch(ctx context.Context) error {
	found, err := c.r.tx.QueryContext(ctx, fmt.Sprintf(`FETCH %d FROM %s`, rowsAtOnce, c.name))
	if err != nil {
		return err //nolint:wrapcheck // peek does
	}
	defer func() { _ = found.Close() }()
	c.rows, c.at = c.rows[:0], 0
	for found.Next() {
		var row R
		if err := c.scan(found, &row); err != nil {
			return err
		}
		c.rows = append(c.rows, row)
	}
	if err := found.Err(); err != nil {
		return err //nolint:wrapcheck // peek does
	}
	c.ended = len(c.rows) < rowsAtOnce
	if c.loaded != nil {
		return c.loaded(ctx, c.rows)
	}
	return nil
}
