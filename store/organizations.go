package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

const organizationsSQL = `
SELECT id, external_id, name, plan, metadata, suspended_at, deleted_at, created_at, version
FROM organizations WHERE ($1::boolean OR id = $2::uuid)`

type organizationRow struct {
	ID          authz.OrganizationID `db:"id"`
	ExternalID  sql.NullString       `db:"external_id"`
	Name        string               `db:"name"`
	Plan        string               `db:"plan"`
	Metadata    []byte               `db:"metadata"`
	SuspendedAt sql.NullTime         `db:"suspended_at"`
	DeletedAt   sql.NullTime         `db:"deleted_at"`
	CreatedAt   sql.NullTime         `db:"created_at"`
	Version     int                  `db:"version"`
}

func (r organizationRow) thing() (manage.Organization, error) {
	m, err := metadata(r.Metadata)
	return manage.Organization{
		ID: r.ID, ExternalID: r.ExternalID.String, Name: r.Name, Plan: r.Plan, Metadata: m, CreatedAt: utc(r.CreatedAt),
		SuspendedAt: utc(r.SuspendedAt), DeletedAt: utc(r.DeletedAt), Version: r.Version,
	}, err
}

// Organization implements manage.Reader.
func (r *reads) Organization(ctx context.Context, t manage.Tenant, id authz.OrganizationID) (*manage.Organization, error) {
	return one[manage.Organization, organizationRow](ctx, r, "read an organization",
		organizationsSQL+` AND id = $3::uuid`, t.Everyone(), t.Organization(), id)
}

// Organizations implements manage.Reader.
func (r *reads) Organizations(
	ctx context.Context, t manage.Tenant, f manage.OrganizationFilter, p manage.Page,
) ([]manage.Organization, error) {
	var after authz.OrganizationID
	if err := cursor(p.After, &after); err != nil {
		return nil, err
	}
	// The CASE is manage.Organization.Status.
	return list[manage.Organization, organizationRow](ctx, r, "list organizations", organizationsSQL+`
		AND ($3::uuid IS NULL OR id < $3::uuid) AND ($4::text = '' OR external_id = $4::text)
		AND CASE WHEN $5::text = '' THEN deleted_at IS NULL ELSE $5::text =
			CASE WHEN deleted_at IS NOT NULL THEN 'deleted' WHEN suspended_at IS NOT NULL THEN 'suspended' ELSE 'active' END END
		ORDER BY id DESC LIMIT $6`,
		t.Everyone(), t.Organization(), after, f.ExternalID, f.Status, p.Limit)
}

// InsertOrganization implements manage.Writer. A new organization is within Everyone alone.
func (c *Change) InsertOrganization(ctx context.Context, t manage.Tenant, o *manage.Organization) error {
	return c.exec(ctx, "add an organization", `
		INSERT INTO organizations (id, external_id, name, plan, metadata, suspended_at, created_at, revision)
		SELECT $2::uuid, $3::text, $4::text, $5::text, $6::json, $7::timestamptz, $8::timestamptz, $9::bigint WHERE $1::boolean`,
		t.Everyone(), o.ID, optionalText(o.ExternalID), o.Name, o.Plan, o.Metadata.JSON(),
		optionalTime(o.SuspendedAt), c.timeOr(o.CreatedAt), c.revision)
}

// UpdateOrganization implements manage.Writer. Deleted is for ever.
func (c *Change) UpdateOrganization(ctx context.Context, t manage.Tenant, o *manage.Organization) error {
	return c.raise(ctx, "change an organization", &o.Version, `
		UPDATE organizations SET external_id = $4, name = $5, plan = $6, metadata = $7, suspended_at = $8,
			usable_since = CASE WHEN suspended_at IS NOT NULL AND $8::timestamptz IS NULL THEN $11 ELSE usable_since END,
			deleted_at = COALESCE(deleted_at, $9), version = version + 1, revision = $10
		WHERE ($1::boolean OR id = $2::uuid) AND id = $3::uuid RETURNING version`,
		t.Everyone(), t.Organization(), o.ID, optionalText(o.ExternalID), o.Name, o.Plan, o.Metadata.JSON(),
		optionalTime(o.SuspendedAt), optionalTime(o.DeletedAt), c.revision, c.now)
}

// AddOrganization stores a new organization. Its id must be new.
func (c *Change) AddOrganization(ctx context.Context, o *authz.Organization) error {
	m := &manage.Organization{ID: o.ID, ExternalID: o.ExternalID, Name: o.Name, Plan: o.Plan, Metadata: o.Metadata}
	if o.Suspended {
		m.SuspendedAt = c.now
	}
	return c.InsertOrganization(ctx, everyone(), m)
}

// SuspendOrganization denies all keys of an organization, or takes that back.
func (c *Change) SuspendOrganization(ctx context.Context, id authz.OrganizationID, suspended bool) error {
	o, err := c.Organization(ctx, everyone(), id)
	if err != nil {
		return err
	}
	switch {
	case !suspended:
		o.SuspendedAt = time.Time{}
	case o.SuspendedAt.IsZero():
		o.SuspendedAt = c.now
	}
	return c.UpdateOrganization(ctx, everyone(), o)
}

// OrganizationIDByExternalID finds an organization by the adopter's own id; the
// zero id when there is none.
func (s *Store) OrganizationIDByExternalID(ctx context.Context, externalID string) (authz.OrganizationID, error) {
	var ids []authz.OrganizationID
	err := s.manage.SelectContext(ctx, &ids, `SELECT id FROM organizations WHERE external_id = $1`, externalID)
	if err != nil || len(ids) == 0 {
		return authz.OrganizationID{}, translate("find an organization", err)
	}
	return ids[0], nil
}
