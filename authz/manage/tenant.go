package manage

import "github.com/supportstation/keystile/authz"

// Tenant is whose rows a call may touch: one organization's, or everybody's for a
// platform admin. Every store call takes one and has it in its WHERE, so that no
// policy and no forgotten check opens another organization. The zero Tenant sees
// nothing.
type Tenant struct {
	everyone     bool
	organization authz.OrganizationID
}

// TenantOf returns what an admin may touch at most.
func TenantOf(a *authz.Admin) Tenant {
	switch {
	case a == nil || !a.Role.Valid():
		return Tenant{}
	case a.Role == authz.RolePlatformAdmin:
		return Tenant{everyone: a.Organization.IsZero()}
	}
	return Tenant{organization: a.Organization}
}

// Everyone tells whether the rows of every organization, and of none, are within.
func (t Tenant) Everyone() bool { return t.everyone }

// Organization returns the only organization whose rows are within; zero for
// Everyone and for the zero Tenant.
func (t Tenant) Organization() authz.OrganizationID { return t.organization }

// Sees tells whether an organization is within.
func (t Tenant) Sees(id authz.OrganizationID) bool {
	return !id.IsZero() && (t.everyone || id == t.organization)
}
