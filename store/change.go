package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// notifyChannel wakes every replica; what has changed is read by revision.
const notifyChannel = "keystile_changes"

// maxWriting bounds the changes of one process that have a connection: the second
// waits for the first's row lock, later ones here, so that reads always find one free.
const maxWriting = 2

// marksKept is how many revisions keep their marks: a replica that is further behind
// takes the database for another.
const marksKept = 100_000

// maxWaitingChanges bounds those that wait here: beyond it a change is refused at once.
const maxWaitingChanges = 256

// limitChange bounds a change at the server: whoever stands still, or is cut off, while it holds
// the revision's row lock loses that with its connection, and everybody else goes on. Who waits
// for the lock, or for a statement, gives up before the socket does (manageReadDeadline), so that
// nobody waits at the server for a client that has left.
const limitChange = `SELECT set_config('idle_in_transaction_session_timeout', '5s', true),
	set_config('lock_timeout', '25s', true), set_config('statement_timeout', '29s', true)`

var errTooManyChanges = errors.New("too many changes are waiting")

// Change is one management transaction; it is a manage.Writer. It holds the
// revision's row lock, so that revisions become visible in their own order. Not safe
// for concurrent use.
type Change struct {
	reads

	revision int64
	peppers  authz.Peppers
	admins   *learnedAdmins
	// registered tells that the first pepper's fingerprint is written.
	registered bool
}

var _ manage.Writer = (*Change)(nil)

// Change is Write for what is kept.
func (s *Store) Change(ctx context.Context, do func(context.Context, *Change) error) (revision int64, err error) {
	return s.change(ctx, true, do)
}

// Write implements manage.Store. The revision of a change that is not kept is 0.
func (s *Store) Write(
	ctx context.Context, keep bool, fn func(context.Context, manage.Writer) error,
) (revision int64, err error) {
	return s.change(ctx, keep, func(ctx context.Context, c *Change) error { return fn(ctx, c) })
}

// change waits for its turn as long as asked does. From then on nothing is cut short: a
// client that leaves must not cost the connection, nor leave a change half known.
func (s *Store) change(asked context.Context, keep bool, do func(context.Context, *Change) error) (int64, error) {
	if err := s.notAdmitted("begin a change"); err != nil {
		return 0, err
	}
	if err := s.takeTurn(asked); err != nil {
		return 0, translate("begin a change", err)
	}
	defer func() { <-s.writing }()
	ctx := context.WithoutCancel(asked)
	tx, err := s.manage.BeginTxx(ctx, nil)
	if err != nil {
		return 0, translate("begin a change", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing

	c := &Change{reads: reads{tx: tx}, peppers: s.peppers, admins: s.admins}
	if _, err := tx.ExecContext(ctx, limitChange); err != nil {
		return 0, translate("begin a change", err)
	}
	// Then first of all, and its row lock is held to the commit: whoever gets the next
	// number commits after us. The time is taken under the lock, so that it does not
	// go back from one revision to the next.
	err = tx.QueryRowxContext(ctx, nextRevision, 0).Scan(&c.revision, &c.now)
	if err != nil {
		return 0, translate("take the next revision", err)
	}
	c.now = c.now.UTC()
	// Who left while it waited for the lock has been told that it failed: it must not be
	// done later.
	if err := asked.Err(); err != nil {
		return 0, translate("begin a change", err)
	}
	if err := do(ctx, c); err != nil {
		return 0, err
	}
	if !keep {
		return 0, translate("take a change back", tx.Rollback())
	}
	if c.revision%marksKept == 0 {
		if _, err := tx.ExecContext(ctx, `DELETE FROM revision_marks WHERE n < $1`, c.revision-marksKept); err != nil {
			return 0, translate("clear away old marks", err)
		}
	}
	if _, err := tx.ExecContext(ctx, `SELECT pg_notify($1, $2)`, notifyChannel, fmt.Sprint(c.revision)); err != nil {
		return 0, translate("announce a change", err)
	}
	if err := tx.Commit(); err != nil {
		return 0, translate("commit a change", err)
	}
	return c.revision, nil
}

// takeTurn waits for a place among the changes that have a connection.
func (s *Store) takeTurn(ctx context.Context) error {
	if s.waiting.Add(1) > maxWaitingChanges {
		s.waiting.Add(-1)
		return authz.Unavailable("begin a change", errTooManyChanges)
	}
	defer s.waiting.Add(-1)
	select {
	case s.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // change does
	}
}

// Revision implements manage.Writer.
func (c *Change) Revision() int64 { return c.revision }

// exec runs a statement that must touch exactly one row.
func (c *Change) exec(ctx context.Context, doing, query string, args ...any) error {
	n, err := c.execMany(ctx, doing, query, args...)
	if err == nil && n != 1 {
		return fmt.Errorf("%s: %w", doing, ErrNotFound)
	}
	return err
}

// execMany runs a statement and tells how many rows it touched.
func (c *Change) execMany(ctx context.Context, doing, query string, args ...any) (int, error) {
	result, err := c.tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, translate(doing, err)
	}
	n, err := result.RowsAffected()
	return int(n), translate(doing, err)
}

// raise runs a statement that must touch exactly one row and returns its new version.
func (c *Change) raise(ctx context.Context, doing string, version *int, query string, args ...any) error {
	err := c.tx.QueryRowxContext(ctx, query, args...).Scan(version)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return translate(doing, err)
}

// digest returns a hash's digest under the first pepper.
func (c *Change) digest(ctx context.Context, hash authz.SecretHash) (digest authz.Digest, pepperID string, err error) {
	if _, err := c.register(ctx); err != nil {
		return authz.Digest{}, "", err
	}
	digest, pepperID, err = c.peppers.Digest(hash)
	if err != nil {
		return authz.Digest{}, "", fmt.Errorf("make a digest: %w", err)
	}
	return digest, pepperID, nil
}

// register keeps the first pepper's fingerprint beside the rows that use it, and
// returns the pepper's id.
func (c *Change) register(ctx context.Context) (pepperID string, err error) {
	pepperID = c.peppers.IDs()[0] // Open refuses none
	if c.registered {
		return pepperID, nil
	}
	fingerprint, _ := c.peppers.Fingerprint(pepperID)
	_, err = c.tx.ExecContext(ctx, `INSERT INTO peppers (id, fingerprint) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`,
		pepperID, fingerprint)
	c.registered = err == nil
	return pepperID, translate("register a pepper", err)
}

// everyone is the tenant of what this package itself does.
func everyone() manage.Tenant { return manage.TenantOf(&authz.Admin{Role: authz.RolePlatformAdmin}) }

// errOneSecret is a fault of the caller's.
var errOneSecret = errors.New("a new one must come with exactly one secret")
