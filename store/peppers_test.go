package store_test

import (
	"context"
	"slices"
	"testing"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// The audit log's rows count for the pepper that they name, be a secret under it or not.
func TestPepperStatus_CountsTheAuditLogsRows(t *testing.T) {
	at := storetest.Migrated(t)
	first, second := authz.NewPepper("k1"), authz.NewPepper("k2")
	s := storetest.Open(t, at, parsePeppers(t, first))
	w := newWhole(t, s, "acme")
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		events := []manage.AuditEvent{
			event(c, w.organization.ID, 1), event(c, w.organization.ID, 2), event(c, authz.OrganizationID{}, 1),
		}
		events[1].KeyID = "k2"
		return c.AppendAudit(ctx, events)
	})
	uses, err := store.PepperStatus(t.Context(), storetest.Parse(t, at), parsePeppers(t, first, second))
	if want := []store.PepperUse{
		{ID: "k1", Configured: true, First: true, Matches: true, KeySecrets: 1, CallerTokens: 1, AdminTokens: 1, AuditRows: 2},
		{ID: "k2", Configured: true, Matches: true, AuditRows: 1},
	}; err != nil || !slices.Equal(uses, want) {
		t.Errorf("%+v, %v", uses, err)
	}
}
