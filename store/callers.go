package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
)

// maxCallers bounds the tokens of callers, which every replica holds whole.
const maxCallers = 10_000

// AddCaller stores a new caller with one token.
func (c *Change) AddCaller(ctx context.Context, caller *authz.Caller, token authz.Secret) error {
	digest, pepperID, err := c.digest(ctx, token)
	if err != nil {
		return err
	}
	environments := make(pq.StringArray, len(caller.Environments))
	for i, e := range caller.Environments {
		environments[i] = string(e)
	}
	permissions := make(pq.StringArray, len(caller.Permissions))
	for i, p := range caller.Permissions {
		permissions[i] = string(p)
	}
	err = c.exec(ctx, "add a caller", `
		INSERT INTO callers (id, name, environments, permissions, disabled_at, revoked_at, revision)
		VALUES ($1, $2, $3, $4, CASE WHEN $5 THEN now() END, $6, $7)`,
		caller.ID, caller.Name, environments, permissions, caller.Disabled, optionalTime(caller.RevokedAt), c.revision)
	if err != nil {
		return err
	}
	return c.exec(ctx, "add a caller's token", `
		INSERT INTO caller_tokens (digest, id, caller_id, pepper_id, hint, expires_at, revoked_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		digest[:], authz.NewSecretID(c.now), caller.ID, pepperID, authz.CallerTokens().Hint(token),
		optionalTime(caller.TokenExpiresAt), optionalTime(caller.TokenRevokedAt))
}

// RevokeCaller refuses all tokens of a caller, for ever.
func (c *Change) RevokeCaller(ctx context.Context, id authz.CallerID) error {
	return c.exec(ctx, "revoke a caller", `
		UPDATE callers SET revoked_at = COALESCE(revoked_at, now()), revision = $2 WHERE id = $1`, id, c.revision)
}

// callerTable is every caller's token by digest, as of one revision. It is never changed.
type callerTable map[authz.Digest]*authz.Caller

// readCallers reads them all: callers are backend services, and few. So an unknown
// token costs no statement, and none can be made to.
func readCallers(ctx context.Context, db *sqlx.DB) (callerTable, error) {
	var rows []struct {
		Digest         []byte         `db:"digest"`
		TokenExpiresAt sql.NullTime   `db:"token_expires_at"`
		TokenRevokedAt sql.NullTime   `db:"token_revoked_at"`
		ID             authz.CallerID `db:"id"`
		Name           string         `db:"name"`
		Environments   pq.StringArray `db:"environments"`
		Permissions    pq.StringArray `db:"permissions"`
		Disabled       bool           `db:"disabled"`
		RevokedAt      sql.NullTime   `db:"revoked_at"`
		Revision       int64          `db:"revision"`
	}
	err := db.SelectContext(ctx, &rows, `
		SELECT t.digest, t.expires_at AS token_expires_at, t.revoked_at AS token_revoked_at,
			c.id, c.name, c.environments, c.permissions, c.disabled_at IS NOT NULL AS disabled, c.revoked_at, c.revision
		FROM caller_tokens t JOIN callers c ON c.id = t.caller_id
		ORDER BY t.created_at DESC LIMIT $1`, maxCallers+1)
	if err != nil {
		return nil, translate("read the callers", err)
	}
	if len(rows) > maxCallers {
		return nil, fmt.Errorf("read the callers: more than %d tokens; remove unused callers", maxCallers)
	}
	table := make(callerTable, len(rows))
	for i := range rows {
		r := &rows[i]
		caller := &authz.Caller{
			ID: r.ID, Name: r.Name, Disabled: r.Disabled, RevokedAt: r.RevokedAt.Time,
			TokenExpiresAt: r.TokenExpiresAt.Time, TokenRevokedAt: r.TokenRevokedAt.Time, Revision: r.Revision,
		}
		for _, e := range r.Environments {
			if env := authz.Environment(e); env.Valid() {
				caller.Environments = append(caller.Environments, env)
			}
		}
		for _, p := range r.Permissions {
			caller.Permissions = append(caller.Permissions, authz.Permission(p))
		}
		table[authz.Digest(r.Digest)] = caller
	}
	return table, nil
}
