package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/supportstation/keystile/authz/manage"
)

const (
	// rememberedFor is how long an answer counts.
	rememberedFor = 24 * time.Hour
	// maxForgotten bounds the answers that one change clears away.
	maxForgotten = 100
)

// Remembered implements manage.Writer.
func (c *Change) Remembered(ctx context.Context, s manage.IdempotencyScope) (*manage.Remembered, error) {
	var fingerprint []byte
	var r manage.Remembered
	err := c.tx.QueryRowxContext(ctx, `
		SELECT fingerprint, answer, revision FROM idempotency
		WHERE actor = $1 AND operation = $2 AND key_hash = $3 AND created_at > $4`,
		s.Actor, s.Operation, s.KeyHash[:], c.now.Add(-rememberedFor)).Scan(&fingerprint, &r.Answer, &r.Revision)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // nothing is remembered, and that is an answer
	}
	if err != nil {
		return nil, translate("look for an earlier answer", err)
	}
	r.Fingerprint = [32]byte(fingerprint)
	return &r, nil
}

// Remember implements manage.Writer, and forgets some answers that do not count any more.
func (c *Change) Remember(ctx context.Context, s manage.IdempotencyScope, r manage.Remembered) error {
	end := c.now.Add(-rememberedFor)
	_, err := c.execMany(ctx, "forget old answers", `
		DELETE FROM idempotency WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM idempotency WHERE created_at <= $1 ORDER BY created_at LIMIT $2))`, end, maxForgotten)
	if err != nil {
		return err
	}
	return c.exec(ctx, "remember an answer", `
		INSERT INTO idempotency AS i (actor, operation, key_hash, fingerprint, answer, revision, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (actor, operation, key_hash) DO UPDATE SET fingerprint = excluded.fingerprint, answer = excluded.answer,
			revision = excluded.revision, created_at = excluded.created_at WHERE i.created_at <= $8`,
		s.Actor, s.Operation, s.KeyHash[:], r.Fingerprint[:], string(r.Answer), r.Revision, c.now, end)
}
