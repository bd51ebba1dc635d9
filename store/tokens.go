package store

import (
	"context"
	"database/sql"
	"database/sql/driver"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// tokenFamily is whose tokens a statement is about: the tables differ in names alone.
type tokenFamily struct {
	doing string
	// tokens and owners are tables, owner the column that leads from one to the other.
	tokens, owners, owner string
	// within is what of an owner o belongs to a tenant, of $1 and $2.
	within string
}

//nolint:gochecknoglobals // constants, were there constant structs
var (
	ofCallers = tokenFamily{"a caller's token", "caller_tokens", "callers", "caller_id", `($1::boolean AND $2::uuid IS NULL)`}
	ofAdmins  = tokenFamily{"an admin's token", "admin_tokens", "admins", "admin_id", `($1::boolean OR o.organization_id = $2::uuid)`}
)

// tokens reads the tokens of these owners, who have been found within the tenant, by
// owner, in one statement.
func (r *reads) tokens(ctx context.Context, f tokenFamily, owners []any) (map[any][]manage.Token, error) {
	if len(owners) == 0 {
		return nil, nil //nolint:nilnil // nobody has none
	}
	var rows []struct {
		ID        authz.SecretID `db:"id"`
		Owner     string         `db:"owner"`
		Hint      string         `db:"hint"`
		CreatedAt sql.NullTime   `db:"created_at"`
		ExpiresAt sql.NullTime   `db:"expires_at"`
	}
	err := r.tx.SelectContext(ctx, &rows, `
		SELECT id, `+f.owner+`::text AS owner, hint, created_at, expires_at FROM `+f.tokens+`
		WHERE `+f.owner+` = ANY ($1::uuid[]) AND revoked_at IS NULL ORDER BY created_at DESC, id DESC`, pq.Array(owners))
	if err != nil {
		return nil, translate("read "+f.doing, err)
	}
	tokens := make(map[any][]manage.Token, len(owners))
	for _, row := range rows {
		tokens[row.Owner] = append(tokens[row.Owner], manage.Token{
			ID: row.ID, Hint: row.Hint, CreatedAt: utc(row.CreatedAt), ExpiresAt: utc(row.ExpiresAt),
		})
	}
	return tokens, nil
}

// insertToken adds a token to an owner, under the first pepper.
func (c *Change) insertToken(
	ctx context.Context, t manage.Tenant, f tokenFamily, owner driver.Valuer, token *manage.Token, secret authz.Secret,
) error {
	digest, pepperID, err := c.digest(ctx, secret.Hash())
	if err != nil {
		return err
	}
	err = c.exec(ctx, "add "+f.doing, `
		INSERT INTO `+f.tokens+` (digest, id, `+f.owner+`, pepper_id, hint, created_at, expires_at, revoked_at)
		SELECT $4::bytea, $5::uuid, o.id, $6::text, $7::text, $8::timestamptz, $9::timestamptz, $10::timestamptz
		FROM `+f.owners+` o WHERE `+f.within+` AND o.id = $3::uuid`,
		t.Everyone(), t.Organization(), owner, digest[:], token.ID, pepperID, token.Hint, c.timeOr(token.CreatedAt),
		optionalTime(token.ExpiresAt), optionalTime(token.RevokedAt))
	if err != nil {
		return err
	}
	return c.touchOwner(ctx, t, f, owner)
}

// endToken writes when a token ends. Revoked is for ever.
func (c *Change) endToken(
	ctx context.Context, t manage.Tenant, f tokenFamily, owner driver.Valuer, token *manage.Token,
) error {
	err := c.exec(ctx, "end "+f.doing, `
		UPDATE `+f.tokens+` t SET expires_at = $5, revoked_at = COALESCE(t.revoked_at, $6) FROM `+f.owners+` o
		WHERE `+f.within+` AND o.id = $3::uuid AND t.`+f.owner+` = o.id AND t.id = $4::uuid`,
		t.Everyone(), t.Organization(), owner, token.ID, optionalTime(token.ExpiresAt), optionalTime(token.RevokedAt))
	if err != nil {
		return err
	}
	return c.touchOwner(ctx, t, f, owner)
}

// touchOwner takes an owner's row to this revision, so that replicas read its tokens anew.
func (c *Change) touchOwner(ctx context.Context, t manage.Tenant, f tokenFamily, owner driver.Valuer) error {
	return c.exec(ctx, "touch the owner of "+f.doing, `
		UPDATE `+f.owners+` o SET revision = $4 WHERE `+f.within+` AND o.id = $3::uuid`,
		t.Everyone(), t.Organization(), owner, c.revision)
}
