package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

var _ authz.AdminReader = (*Store)(nil)

// adminsSQL reads admins. A platform admin has no organization, so that only
// Everyone sees one.
const adminsSQL = `
SELECT id, name, role, organization_id, created_at, created_by, expires_at, lifetime_seconds, revoked_at
FROM admins WHERE ($1::boolean OR organization_id = $2::uuid)`

type adminRow struct {
	ID              authz.AdminID        `db:"id"`
	Name            string               `db:"name"`
	Role            string               `db:"role"`
	OrganizationID  authz.OrganizationID `db:"organization_id"`
	CreatedAt       sql.NullTime         `db:"created_at"`
	CreatedBy       string               `db:"created_by"`
	ExpiresAt       sql.NullTime         `db:"expires_at"`
	LifetimeSeconds sql.NullInt64        `db:"lifetime_seconds"`
	RevokedAt       sql.NullTime         `db:"revoked_at"`
}

func (r adminRow) thing() (manage.Admin, error) { //nolint:unparam // list asks for it
	return manage.Admin{
		ID: r.ID, Name: r.Name, Role: authz.Role(r.Role), OrganizationID: r.OrganizationID, CreatedAt: utc(r.CreatedAt),
		CreatedBy: r.CreatedBy, ExpiresAt: utc(r.ExpiresAt), Lifetime: time.Duration(r.LifetimeSeconds.Int64) * time.Second,
		RevokedAt: utc(r.RevokedAt),
	}, nil
}

// Admin implements manage.Reader.
func (r *reads) Admin(ctx context.Context, t manage.Tenant, id authz.AdminID) (*manage.Admin, error) {
	admin, err := one[manage.Admin, adminRow](ctx, r, "read an admin",
		adminsSQL+` AND id = $3::uuid`, t.Everyone(), t.Organization(), id)
	if err != nil {
		return nil, err
	}
	tokens, err := r.tokens(ctx, ofAdmins, []any{uuid(id)})
	admin.Tokens = tokens[uuid(id)]
	return admin, err
}

// Admins implements manage.Reader.
func (r *reads) Admins(ctx context.Context, t manage.Tenant, f manage.AdminFilter, p manage.Page) ([]manage.Admin, error) {
	var after authz.AdminID
	if err := cursor(p.After, &after); err != nil {
		return nil, err
	}
	// The CASE is manage.Admin.Status.
	admins, err := list[manage.Admin, adminRow](ctx, r, "list admins", adminsSQL+`
		AND ($3::uuid IS NULL OR id < $3::uuid) AND ($4::uuid IS NULL OR organization_id = $4::uuid)
		AND ($5::text = '' OR $5::text =
			CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= $6 THEN 'expired' ELSE 'active' END)
		ORDER BY id DESC LIMIT $7`, t.Everyone(), t.Organization(), after, f.Organization, f.Status, r.now, p.Limit)
	if err != nil {
		return nil, err
	}
	ids := make([]any, len(admins))
	for i := range admins {
		ids[i] = uuid(admins[i].ID)
	}
	tokens, err := r.tokens(ctx, ofAdmins, ids)
	for i := range admins {
		admins[i].Tokens = tokens[ids[i]]
	}
	return admins, err
}

// InsertAdmin implements manage.Writer.
func (c *Change) InsertAdmin(ctx context.Context, t manage.Tenant, a *manage.Admin, token authz.Secret) error {
	if len(a.Tokens) != 1 {
		return errOneSecret
	}
	err := c.exec(ctx, "add an admin", `
		INSERT INTO admins (id, organization_id, name, role, created_at, created_by, expires_at, lifetime_seconds, revoked_at, revision)
		SELECT $3::uuid, $4::uuid, $5::text, $6::text, $7::timestamptz, $8::text, $9::timestamptz, $10::bigint, $11::timestamptz, $12::bigint
		WHERE ($1::boolean OR $4::uuid = $2::uuid)`,
		t.Everyone(), t.Organization(), a.ID, a.OrganizationID, a.Name, string(a.Role), c.timeOr(a.CreatedAt), a.CreatedBy,
		a.ExpiresAt, lifetimeColumn(a.Lifetime), optionalTime(a.RevokedAt), c.revision)
	if err != nil {
		return err
	}
	return c.insertToken(ctx, t, ofAdmins, a.ID, &a.Tokens[0], token)
}

// UpdateAdmin implements manage.Writer. Revoked is for ever.
func (c *Change) UpdateAdmin(ctx context.Context, t manage.Tenant, a *manage.Admin) error {
	return c.exec(ctx, "change an admin", `
		UPDATE admins SET expires_at = $4, lifetime_seconds = $5, revoked_at = COALESCE(revoked_at, $6), revision = $7
		WHERE ($1::boolean OR organization_id = $2::uuid) AND id = $3::uuid`,
		t.Everyone(), t.Organization(), a.ID, a.ExpiresAt, lifetimeColumn(a.Lifetime), optionalTime(a.RevokedAt), c.revision)
}

// InsertAdminToken implements manage.Writer.
func (c *Change) InsertAdminToken(
	ctx context.Context, t manage.Tenant, a *manage.Admin, token *manage.Token, secret authz.Secret,
) error {
	return c.insertToken(ctx, t, ofAdmins, a.ID, token, secret)
}

// EndAdminToken implements manage.Writer.
func (c *Change) EndAdminToken(ctx context.Context, t manage.Tenant, a *manage.Admin, token *manage.Token) error {
	return c.endToken(ctx, t, ofAdmins, a.ID, token)
}

// RevokeAdmins implements manage.Writer; those who were revoked before are not counted.
func (c *Change) RevokeAdmins(ctx context.Context, t manage.Tenant, organization authz.OrganizationID) (int, error) {
	return c.revokeAll(ctx, t, organization, "revoke an organization's admins", `
		UPDATE admins SET revoked_at = $4, revision = $5 FROM within
		WHERE organization_id = within.id AND revoked_at IS NULL RETURNING 1`)
}

// liveAdmins are the admins a with a token t that both work as of $1.
const liveAdmins = `
FROM admins a JOIN admin_tokens t ON t.admin_id = a.id
WHERE a.revoked_at IS NULL AND a.expires_at > $1 AND t.revoked_at IS NULL AND t.expires_at > $1
	AND isfinite(a.expires_at) AND isfinite(t.expires_at)`

// stillLive reads those of the live admins that this replica takes for live as well: in a
// database that was put back, who was removed is there again.
func (c *Change) stillLive(ctx context.Context, doing, where string, args ...any) (live map[authz.AdminID]bool, err error) {
	var rows []struct {
		ID             authz.AdminID        `db:"id"`
		Role           authz.Role           `db:"role"`
		OrganizationID authz.OrganizationID `db:"organization_id"`
		Revision       int64                `db:"revision"`
		ExpiresAt      time.Time            `db:"expires_at"`
		TokenID        authz.SecretID       `db:"token_id"`
		TokenExpiresAt time.Time            `db:"token_expires_at"`
	}
	err = c.tx.SelectContext(ctx, &rows, `
		SELECT a.id, a.role, a.organization_id, a.revision, a.expires_at, t.id AS token_id, t.expires_at AS token_expires_at `+liveAdmins+where,
		append([]any{c.now}, args...)...)
	live = make(map[authz.AdminID]bool)
	for _, r := range rows {
		a := c.admins.judge(readAdmin{authz.Admin{
			ID: r.ID, Role: r.Role, Organization: r.OrganizationID, ExpiresAt: r.ExpiresAt, TokenID: r.TokenID, TokenExpiresAt: r.TokenExpiresAt,
		}, r.Revision})
		if a.Live(c.now) {
			live[a.ID] = true
		}
	}
	return live, translate(doing, err)
}

// StillLive implements manage.Writer.
func (c *Change) StillLive(ctx context.Context, a *authz.Admin) (bool, error) {
	if a == nil {
		return false, nil
	}
	live, err := c.stillLive(ctx, "confirm an admin", ` AND a.id = $2::uuid AND t.id = $3::uuid
		AND a.role = $4 AND a.organization_id IS NOT DISTINCT FROM $5::uuid`, a.ID, a.TokenID, string(a.Role), a.Organization)
	return err == nil && live[a.ID], err
}

// OtherPlatformAdmins implements manage.Writer. Who has no token that works cannot do
// anything, and is not counted.
func (c *Change) OtherPlatformAdmins(ctx context.Context, but authz.AdminID) (int, error) {
	others, err := c.stillLive(ctx, "count the platform's admins", ` AND a.role = 'platform_admin' AND a.id <> $2::uuid`, but)
	return len(others), err
}

// bootstrappedSetting is the tombstone of the one bootstrap.
const bootstrappedSetting = "bootstrapped"

// Bootstrap implements manage.Writer.
func (c *Change) Bootstrap(ctx context.Context) (bool, error) {
	n, err := c.execMany(ctx, "claim the bootstrap", `
		INSERT INTO settings (name, value) SELECT $1::text, $2::text WHERE NOT EXISTS (SELECT FROM admins)
		ON CONFLICT (name) DO NOTHING`, bootstrappedSetting, c.now.Format(time.RFC3339))
	return n == 1, err
}

// Admin is a person or machine that manages, as AddAdmin stores it.
type Admin struct {
	ID authz.AdminID
	// Organization is zero for a platform admin and set for every other role.
	Organization authz.OrganizationID
	Name         string
	Role         authz.Role
	// ExpiresAt is mandatory.
	ExpiresAt time.Time
}

// AddAdmin stores a new admin with one token that ends when the admin does. Nobody
// can bootstrap this database any more.
func (c *Change) AddAdmin(ctx context.Context, a *Admin, token authz.Secret) error {
	if _, err := c.Bootstrap(ctx); err != nil {
		return err
	}
	return c.InsertAdmin(ctx, everyone(), &manage.Admin{
		ID: a.ID, OrganizationID: a.Organization, Name: a.Name, Role: a.Role, ExpiresAt: a.ExpiresAt,
		Lifetime: a.ExpiresAt.Sub(c.now),
		Tokens:   []manage.Token{{ID: authz.NewSecretID(c.now), Hint: authz.AdminTokens().Hint(token), ExpiresAt: a.ExpiresAt}},
	}, token)
}

// maxRecognizing bounds the connections on which admins are looked up: unknown tokens,
// however many come, must leave some for those who have been recognized.
const maxRecognizing = 2

// FindAdmin implements authz.AdminReader: one statement. Nothing is remembered but what must not
// be un-learned when the database is put back.
func (s *Store) FindAdmin(ctx context.Context, hash authz.SecretHash) (*authz.Admin, error) {
	select {
	case s.recognizing <- struct{}{}:
		defer func() { <-s.recognizing }()
	case <-ctx.Done():
		return nil, translate("look up an admin", ctx.Err())
	}
	if err := s.notAdmitted("look up an admin"); err != nil {
		return nil, err
	}
	digests := s.peppers.AppendDigests(nil, hash)
	arg := make(pq.ByteaArray, len(digests))
	for i := range digests {
		arg[i] = digests[i][:]
	}
	var rows []struct {
		adminRow

		Digest         []byte         `db:"digest"`
		Revision       int64          `db:"revision"`
		TokenID        authz.SecretID `db:"token_id"`
		TokenExpiresAt sql.NullTime   `db:"token_expires_at"`
		TokenRevokedAt sql.NullTime   `db:"token_revoked_at"`
	}
	err := s.brief.SelectContext(ctx, &rows, `
		SELECT a.id, a.name, a.role, a.organization_id, a.expires_at, a.revoked_at, a.revision, t.digest, t.id AS token_id,
			t.expires_at AS token_expires_at, t.revoked_at AS token_revoked_at
		FROM admin_tokens t JOIN admins a ON a.id = t.admin_id WHERE t.digest = ANY ($1)`, arg)
	if err != nil || len(rows) == 0 {
		return nil, translate("look up an admin", err)
	}
	r := &rows[0]
	if digest := authz.Digest(r.Digest); digest != digests[0] {
		s.rehash.add(digest, move{adminTokenMoves, digests[0]})
	}
	return s.admins.judge(readAdmin{authz.Admin{
		ID: r.ID, Name: r.Name, Role: authz.Role(r.Role), Organization: r.OrganizationID, ExpiresAt: utc(r.ExpiresAt),
		RevokedAt: utc(r.RevokedAt), TokenID: r.TokenID, TokenExpiresAt: utc(r.TokenExpiresAt), TokenRevokedAt: utc(r.TokenRevokedAt),
	}, r.Revision}), nil
}
