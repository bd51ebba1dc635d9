package authz_test

import (
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// An external id that is another organization's id gives nothing of that one's: a check may name
// the owner of a resource by either.
func TestOverreach_AnExternalIDIsNobodyElsesID(t *testing.T) {
	now := time.Now()
	other := authz.NewOrganizationID(now).String()
	c := &authz.Check{Caller: &authz.Caller{Environments: []authz.Environment{authz.EnvironmentLive}}}
	v := &authz.Verdict{Allow: true, Required: []authz.Scope{"tickets:read"}}
	for external, denied := range map[string]bool{other: true, "crm-7": false, "org_01EHZNVPK3SFK441A1RGBFSHRT": false, "org_7": false} {
		k := &authz.Key{
			Environment: authz.EnvironmentLive, Scopes: v.Required,
			Organization: &authz.Organization{ID: authz.NewOrganizationID(now), ExternalID: external},
		}
		c.Resource.Organization = external
		if err := v.Overreach(k, c); (err != nil) != denied {
			t.Errorf("external id %s: %v", external, err)
		}
		c.Resource.Organization = k.Organization.ID.String()
		if err := v.Overreach(k, c); err != nil {
			t.Errorf("its own id: %v", err)
		}
	}
}
