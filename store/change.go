package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
)

// notifyChannel wakes every replica; what has changed is read by revision.
const notifyChannel = "keystile_changes"

// Change is one management transaction. It holds the revision's row lock, so
// that revisions become visible in their own order. Not safe for concurrent use.
type Change struct {
	tx       *sqlx.Tx
	revision int64
	now      time.Time
	peppers  authz.Peppers
}

// Change runs do in one transaction under the next revision and, when do returns
// nil, commits it and wakes every replica. It returns the revision under which the
// changes are visible. Every row that do writes carries it.
func (s *Store) Change(ctx context.Context, do func(context.Context, *Change) error) (revision int64, err error) {
	tx, err := s.manage.BeginTxx(ctx, nil)
	if err != nil {
		return 0, translate("begin a change", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing

	c := &Change{tx: tx, peppers: s.peppers}
	// First of all, and its row lock is held to the commit: whoever gets the next
	// number commits after us.
	err = tx.QueryRowxContext(ctx, `UPDATE revision SET n = n + 1 RETURNING n, now()`).Scan(&c.revision, &c.now)
	if err != nil {
		return 0, translate("take the next revision", err)
	}
	if err := do(ctx, c); err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, `SELECT pg_notify($1, $2)`, notifyChannel, fmt.Sprint(c.revision)); err != nil {
		return 0, translate("announce a change", err)
	}
	if err := tx.Commit(); err != nil {
		return 0, translate("commit a change", err)
	}
	return c.revision, nil
}

// Now returns the transaction's time by Postgres' clock.
func (c *Change) Now() time.Time { return c.now }

// exec runs a statement that must touch exactly one row.
func (c *Change) exec(ctx context.Context, doing, query string, args ...any) error {
	result, err := c.tx.ExecContext(ctx, query, args...)
	if err != nil {
		return translate(doing, err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return translate(doing, err)
	}
	if n != 1 {
		return fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	return nil
}

// digest returns a secret's digest under the first pepper, whose fingerprint is
// kept beside the rows that use it.
func (c *Change) digest(ctx context.Context, secret authz.Secret) (digest authz.Digest, pepperID string, err error) {
	digest, pepperID, err = c.peppers.Digest(secret.Hash())
	if err != nil {
		return authz.Digest{}, "", fmt.Errorf("make a digest: %w", err)
	}
	fingerprint, _ := c.peppers.Fingerprint(pepperID)
	_, err = c.tx.ExecContext(ctx, `INSERT INTO peppers (id, fingerprint) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`,
		pepperID, fingerprint)
	if err != nil {
		return authz.Digest{}, "", translate("register a pepper", err)
	}
	return digest, pepperID, nil
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
