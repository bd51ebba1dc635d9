package store

import (
	"context"
	"time"

	"github.com/supportstation/keystile/authz"
)

// Admin is a person or machine that manages.
type Admin struct {
	ID authz.AdminID
	// Organization is zero for a platform admin and set for every other role.
	Organization authz.OrganizationID
	Name         string
	Role         authz.Role
	// ExpiresAt is mandatory.
	ExpiresAt time.Time
}

// AddAdmin stores a new admin with one token that ends when the admin does.
func (c *Change) AddAdmin(ctx context.Context, a *Admin, token authz.Secret) error {
	digest, pepperID, err := c.digest(ctx, token)
	if err != nil {
		return err
	}
	err = c.exec(ctx, "add an admin", `
		INSERT INTO admins (id, organization_id, name, role, expires_at, revision) VALUES ($1, $2, $3, $4, $5, $6)`,
		a.ID, a.Organization, a.Name, string(a.Role), a.ExpiresAt, c.revision)
	if err != nil {
		return err
	}
	return c.exec(ctx, "add an admin's token", `
		INSERT INTO admin_tokens (digest, id, admin_id, pepper_id, hint, expires_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		digest[:], authz.NewSecretID(c.now), a.ID, pepperID, authz.AdminTokens().Hint(token), a.ExpiresAt)
}
