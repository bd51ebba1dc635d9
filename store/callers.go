package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// maxEndedTokens bounds the tokens that have ended which a replica holds beside all that work:
// an older one is unknown, which is refused as well.
const maxEndedTokens = 10_000

// callersSQL reads callers. They belong to nobody, so that only Everyone sees any.
const callersSQL = `
SELECT id, name, environments, permissions, created_at, created_by, revoked_at FROM callers WHERE $1::boolean`

type callerRow struct {
	ID           authz.CallerID `db:"id"`
	Name         string         `db:"name"`
	Environments pq.StringArray `db:"environments"`
	Permissions  pq.StringArray `db:"permissions"`
	CreatedAt    sql.NullTime   `db:"created_at"`
	CreatedBy    string         `db:"created_by"`
	RevokedAt    sql.NullTime   `db:"revoked_at"`
}

func (r callerRow) thing() (manage.Caller, error) { //nolint:unparam // list asks for it
	return manage.Caller{
		ID: r.ID, Name: r.Name, Environments: strung[authz.Environment](r.Environments),
		Permissions: strung[authz.Permission](r.Permissions), CreatedAt: utc(r.CreatedAt), CreatedBy: r.CreatedBy,
		RevokedAt: utc(r.RevokedAt),
	}, nil
}

// Caller implements manage.Reader.
func (r *reads) Caller(ctx context.Context, t manage.Tenant, id authz.CallerID) (*manage.Caller, error) {
	caller, err := one[manage.Caller, callerRow](ctx, r, "read a caller", callersSQL+` AND id = $2::uuid`, t.Everyone(), id)
	if err != nil {
		return nil, err
	}
	tokens, err := r.tokens(ctx, ofCallers, []any{uuid(id)})
	caller.Tokens = tokens[uuid(id)]
	return caller, err
}

// Callers implements manage.Reader.
func (r *reads) Callers(ctx context.Context, t manage.Tenant, status string, p manage.Page) ([]manage.Caller, error) {
	var after authz.CallerID
	if err := cursor(p.After, &after); err != nil {
		return nil, err
	}
	// The CASE is manage.Caller.Status.
	callers, err := list[manage.Caller, callerRow](ctx, r, "list callers", callersSQL+`
		AND ($2::uuid IS NULL OR id < $2::uuid)
		AND ($3::text = '' OR $3::text = CASE WHEN revoked_at IS NOT NULL THEN 'revoked' ELSE 'active' END)
		ORDER BY id DESC LIMIT $4`, t.Everyone(), after, status, p.Limit)
	if err != nil {
		return nil, err
	}
	ids := make([]any, len(callers))
	for i := range callers {
		ids[i] = uuid(callers[i].ID)
	}
	tokens, err := r.tokens(ctx, ofCallers, ids)
	for i := range callers {
		callers[i].Tokens = tokens[ids[i]]
	}
	return callers, err
}

// InsertCaller implements manage.Writer.
func (c *Change) InsertCaller(ctx context.Context, t manage.Tenant, caller *manage.Caller, token authz.Secret) error {
	return c.insertCaller(ctx, t, caller, nil, token)
}

func (c *Change) insertCaller(
	ctx context.Context, t manage.Tenant, caller *manage.Caller, disabledAt any, token authz.Secret,
) error {
	if len(caller.Tokens) != 1 {
		return errOneSecret
	}
	err := c.exec(ctx, "add a caller", `
		INSERT INTO callers (id, name, environments, permissions, created_at, created_by, disabled_at, revoked_at, revision)
		SELECT $2::uuid, $3::text, $4::text[], $5::text[], $6::timestamptz, $7::text, $8::timestamptz, $9::timestamptz, $10::bigint
		WHERE $1::boolean`,
		t.Everyone(), caller.ID, caller.Name, texts(caller.Environments), texts(caller.Permissions), c.timeOr(caller.CreatedAt),
		caller.CreatedBy, disabledAt, optionalTime(caller.RevokedAt), c.revision)
	if err != nil {
		return err
	}
	return c.insertToken(ctx, t, ofCallers, caller.ID, &caller.Tokens[0], token)
}

// UpdateCaller implements manage.Writer. Revoked is for ever.
func (c *Change) UpdateCaller(ctx context.Context, t manage.Tenant, caller *manage.Caller) error {
	return c.exec(ctx, "change a caller", `
		UPDATE callers SET revoked_at = COALESCE(revoked_at, $3), revision = $4 WHERE $1::boolean AND id = $2::uuid`,
		t.Everyone(), caller.ID, optionalTime(caller.RevokedAt), c.revision)
}

// InsertCallerToken implements manage.Writer.
func (c *Change) InsertCallerToken(
	ctx context.Context, t manage.Tenant, caller *manage.Caller, token *manage.Token, secret authz.Secret,
) error {
	return c.insertToken(ctx, t, ofCallers, caller.ID, token, secret)
}

// EndCallerToken implements manage.Writer.
func (c *Change) EndCallerToken(ctx context.Context, t manage.Tenant, caller *manage.Caller, token *manage.Token) error {
	return c.endToken(ctx, t, ofCallers, caller.ID, token)
}

// CountCallerTokens implements manage.Reader.
func (r *reads) CountCallerTokens(ctx context.Context, t manage.Tenant) (n int, err error) {
	err = r.tx.GetContext(ctx, &n, `
		SELECT count(*) FROM caller_tokens t JOIN callers c ON c.id = t.caller_id
		WHERE $1::boolean AND c.revoked_at IS NULL AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > $2)`,
		t.Everyone(), r.now)
	return n, translate("count the callers' tokens", err)
}

// AddCaller stores a new caller with one token.
func (c *Change) AddCaller(ctx context.Context, caller *authz.Caller, token authz.Secret) error {
	var disabledAt any
	if caller.Disabled {
		disabledAt = c.now
	}
	return c.insertCaller(ctx, everyone(), &manage.Caller{
		ID: caller.ID, Name: caller.Name, Environments: caller.Environments, Permissions: caller.Permissions,
		RevokedAt: caller.RevokedAt,
		Tokens: []manage.Token{{
			ID: authz.NewSecretID(c.now), Hint: authz.CallerTokens().Hint(token),
			ExpiresAt: caller.TokenExpiresAt, RevokedAt: caller.TokenRevokedAt,
		}},
	}, disabledAt, token)
}

// RevokeCaller refuses all tokens of a caller, for ever.
func (c *Change) RevokeCaller(ctx context.Context, id authz.CallerID) error {
	return c.UpdateCaller(ctx, everyone(), &manage.Caller{ID: id, RevokedAt: c.now})
}

// callerTable is every caller's token by digest, as of one revision. It is never changed.
type callerTable map[authz.Digest]*authz.Caller

// mergeOlder keeps to what was known when the database was put back meanwhile: an older
// row replaces no newer one, and revoked is for ever.
func (t callerTable) mergeOlder(known *callerTable) {
	if known == nil {
		return
	}
	// By id: the digests of the same tokens change with the pepper.
	revoked := make(map[authz.CallerID]time.Time)
	tokens := make(map[authz.SecretID]*authz.Caller, len(*known))
	for _, was := range *known {
		tokens[was.TokenID] = was
		if !was.RevokedAt.IsZero() {
			revoked[was.ID] = was.RevokedAt
		}
	}
	for _, is := range t {
		if was := tokens[is.TokenID]; was != nil {
			if is.TokenRevokedAt.IsZero() {
				is.TokenRevokedAt = was.TokenRevokedAt
			}
			if is.Revision < was.Revision {
				// The next reading narrows the same row again: what changes from now on has a
				// higher revision.
				is.Revision = was.Revision
				is.Disabled = is.Disabled || was.Disabled
				is.TokenExpiresAt = authz.Earlier(is.TokenExpiresAt, was.TokenExpiresAt)
				is.Environments = inBoth(is.Environments, was.Environments)
				is.Permissions = inBoth(is.Permissions, was.Permissions)
			}
		}
		if is.RevokedAt.IsZero() {
			is.RevokedAt = revoked[is.ID]
		}
	}
}

// readCallers reads them all: callers are backend services, and few. So an unknown
// token costs no statement, and none can be made to. Of more tokens that work than there
// may be, which management refuses to make, the newest are unknown.
func readCallers(ctx context.Context, db *sqlx.DB) (callerTable, error) {
	var rows []struct {
		Digest         []byte         `db:"digest"`
		TokenExpiresAt sql.NullTime   `db:"token_expires_at"`
		TokenRevokedAt sql.NullTime   `db:"token_revoked_at"`
		TokenID        authz.SecretID `db:"token_id"`
		ID             authz.CallerID `db:"id"`
		Name           sql.NullString `db:"name"`
		Environments   textArray      `db:"environments"`
		Permissions    textArray      `db:"permissions"`
		Enabled        sql.NullBool   `db:"enabled"`
		RevokedAt      sql.NullTime   `db:"revoked_at"`
		Revision       sql.NullInt64  `db:"revision"`
	}
	err := db.SelectContext(ctx, &rows, `
		WITH tokens AS (
			SELECT t.*, (c.revoked_at IS NOT NULL OR t.revoked_at IS NOT NULL OR COALESCE(t.expires_at <= now(), false)) AS ended
			FROM caller_tokens t JOIN callers c ON c.id = t.caller_id
		), t AS (
			(SELECT * FROM tokens WHERE NOT ended ORDER BY created_at, id LIMIT $1)
			UNION ALL
			(SELECT * FROM tokens WHERE ended ORDER BY created_at DESC, id DESC LIMIT $2)
		)
		SELECT t.digest, t.id AS token_id, `+finite("t.expires_at", "token_expires_at")+`, `+finite("t.revoked_at", "token_revoked_at")+`,
			c.id, c.name, c.environments, c.permissions, `+finite("c.revoked_at", "revoked_at")+`, c.revision,
			-- A time that is none denies its own caller alone.
			(c.disabled_at IS NULL AND isfinite(COALESCE(t.expires_at, c.created_at))
				AND isfinite(COALESCE(t.revoked_at, c.created_at)) AND isfinite(COALESCE(c.revoked_at, c.created_at))) AS enabled
		FROM t JOIN callers c ON c.id = t.caller_id`, manage.MaxCallerTokens, maxEndedTokens)
	if err != nil {
		return nil, translate("read the callers", err)
	}
	table := make(callerTable, len(rows))
	for i := range rows {
		r := &rows[i]
		d, ok := digest(r.Digest)
		if !ok {
			continue // no token has it
		}
		caller := &authz.Caller{
			ID: r.ID, Name: r.Name.String, RevokedAt: r.RevokedAt.Time,
			TokenID: r.TokenID, TokenExpiresAt: r.TokenExpiresAt.Time, TokenRevokedAt: r.TokenRevokedAt.Time, Revision: r.Revision.Int64,
			Disabled: !r.Enabled.Bool || !r.Environments.valid || !r.Permissions.valid,
		}
		for _, e := range r.Environments.texts {
			if env := authz.Environment(e); env.Valid() {
				caller.Environments = append(caller.Environments, env)
			}
		}
		for _, p := range r.Permissions.texts {
			caller.Permissions = append(caller.Permissions, authz.Permission(p))
		}
		table[d] = caller
	}
	return table, nil
}
