package store

import (
	"context"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
)

// PepperError says which peppers rows need that are missing or hold other bytes.
type PepperError struct{ Missing, Different []string }

// Error implements error.
func (e *PepperError) Error() string {
	var parts []string
	if len(e.Missing) > 0 {
		parts = append(parts, "missing: "+strings.Join(e.Missing, ", "))
	}
	if len(e.Different) > 0 {
		parts = append(parts, "with other bytes than the stored secrets were made with: "+strings.Join(e.Different, ", "))
	}
	return "KEYSTILE_PEPPERS does not fit the database; " + strings.Join(parts, "; ") +
		". Keys under them would all be unknown: give every pepper that is in use"
}

// What is in use under the pepper p: whatever could still be allowed.
const (
	keySecretsInUse = `
FROM key_secrets s JOIN api_keys k ON k.id = s.key_id
WHERE s.pepper_id = p.id AND s.revoked_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > now())
	AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())`
	callerTokensInUse = `
FROM caller_tokens t JOIN callers c ON c.id = t.caller_id
WHERE t.pepper_id = p.id AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now()) AND c.revoked_at IS NULL`
	adminTokensInUse = `
FROM admin_tokens t JOIN admins a ON a.id = t.admin_id
WHERE t.pepper_id = p.id AND t.revoked_at IS NULL AND t.expires_at > now() AND a.revoked_at IS NULL AND a.expires_at > now()`
)

// checkPeppers refuses peppers under which secrets in use could not be found.
func (s *Store) checkPeppers(ctx context.Context) error {
	var rows []struct {
		ID          string `db:"id"`
		Fingerprint string `db:"fingerprint"`
	}
	err := s.manage.SelectContext(ctx, &rows, `
		SELECT p.id, p.fingerprint FROM peppers p
		WHERE EXISTS (SELECT`+keySecretsInUse+`) OR EXISTS (SELECT`+callerTokensInUse+`) OR EXISTS (SELECT`+adminTokensInUse+`)
		ORDER BY p.id`)
	if err != nil {
		return translate("read the peppers in use", err)
	}
	var wrong PepperError
	for _, r := range rows {
		fingerprint, ok := s.peppers.Fingerprint(r.ID)
		switch {
		case !ok:
			wrong.Missing = append(wrong.Missing, r.ID)
		case fingerprint != r.Fingerprint:
			wrong.Different = append(wrong.Different, r.ID)
		}
	}
	if len(wrong.Missing)+len(wrong.Different) > 0 {
		return &wrong
	}
	return nil
}

// PepperUse tells what stands under one pepper.
type PepperUse struct {
	ID string `db:"id"`
	// Configured tells that it is among the peppers given; First that new secrets are made under it.
	Configured, First bool
	// Matches tells that the configured bytes are those that rows were made with, or
	// that there are no such rows.
	Matches bool
	// KeySecrets, CallerTokens and AdminTokens count what could still be allowed. A
	// pepper with none of them can be taken away.
	KeySecrets   int `db:"key_secrets"`
	CallerTokens int `db:"caller_tokens"`
	AdminTokens  int `db:"admin_tokens"`
	// AuditRows counts the audit log's rows that name this id as their key's.
	// Where its keys are made of the peppers, they cannot be verified without it.
	AuditRows int
}

// PepperStatus tells of every pepper that is configured or has ever been used: the
// configured first, in their order, then the others by id.
func PepperStatus(ctx context.Context, at DatabaseURL, peppers authz.Peppers) ([]PepperUse, error) {
	db, err := at.pool(1, manageReadDeadline, false, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	if err := checkSchema(ctx, db); err != nil {
		return nil, err
	}
	stored, err := pepperUses(ctx, db, peppers)
	if err != nil {
		return nil, err
	}
	rows, err := auditRows(ctx, db)
	if err != nil {
		return nil, err
	}
	for i := range stored {
		stored[i].AuditRows = rows[stored[i].ID]
	}
	var out []PepperUse
	for i, id := range peppers.IDs() {
		use := PepperUse{ID: id, Matches: true, AuditRows: rows[id]}
		if at := slices.IndexFunc(stored, func(u PepperUse) bool { return u.ID == id }); at >= 0 {
			use = stored[at]
			stored = slices.Delete(stored, at, at+1)
		}
		use.Configured, use.First = true, i == 0
		out = append(out, use)
	}
	return append(out, stored...), nil
}

func pepperUses(ctx context.Context, db *sqlx.DB, peppers authz.Peppers) ([]PepperUse, error) {
	var rows []struct {
		PepperUse

		Fingerprint string `db:"fingerprint"`
	}
	err := db.SelectContext(ctx, &rows, `
		SELECT p.id, p.fingerprint, (SELECT count(*)`+keySecretsInUse+`) AS key_secrets,
			(SELECT count(*)`+callerTokensInUse+`) AS caller_tokens, (SELECT count(*)`+adminTokensInUse+`) AS admin_tokens
		FROM peppers p ORDER BY p.id`)
	if err != nil {
		return nil, translate("read the peppers", err)
	}
	uses := make([]PepperUse, len(rows))
	for i, r := range rows {
		uses[i] = r.PepperUse
		fingerprint, ok := peppers.Fingerprint(r.ID)
		uses[i].Matches = ok && fingerprint == r.Fingerprint
	}
	return uses, nil
}

// auditRows counts the audit log's rows by the id of their key, which need not be that
// of a pepper under which there ever was a secret.
func auditRows(ctx context.Context, db *sqlx.DB) (map[string]int, error) {
	var rows []struct {
		ID string `db:"key_id"`
		N  int    `db:"n"`
	}
	if err := db.SelectContext(ctx, &rows, `SELECT key_id, count(*) AS n FROM audit_log GROUP BY key_id`); err != nil {
		return nil, translate("count the audit log's rows", err)
	}
	counts := make(map[string]int, len(rows))
	for _, r := range rows {
		counts[r.ID] = r.N
	}
	return counts, nil
}
