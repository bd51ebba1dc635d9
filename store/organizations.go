package store

import (
	"context"

	"github.com/supportstation/keystile/authz"
)

// AddOrganization stores a new organization. Its id must be new.
func (c *Change) AddOrganization(ctx context.Context, o *authz.Organization) error {
	return c.exec(ctx, "add an organization", `
		INSERT INTO organizations (id, external_id, name, plan, metadata, suspended_at, created_at, revision)
		VALUES ($1, $2, $3, $4, $5, CASE WHEN $6 THEN now() END, now(), $7)`,
		o.ID, optionalText(o.ExternalID), o.Name, o.Plan, o.Metadata.JSON(), o.Suspended, c.revision)
}

// SuspendOrganization denies all keys of an organization, or takes that back.
func (c *Change) SuspendOrganization(ctx context.Context, id authz.OrganizationID, suspended bool) error {
	return c.exec(ctx, "suspend an organization", `
		UPDATE organizations SET revision = $3,
			suspended_at = CASE WHEN $2 THEN COALESCE(suspended_at, now()) END
		WHERE id = $1`, id, suspended, c.revision)
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
