package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store/storetest"
)

// Every key comes once, newest first, under every filter and any size of page.
func TestKeys_PagesHaveEveryKeyOnce(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	w := newWhole(t, s, "acme")
	newWhole(t, s, "globex")
	var keys []manage.Key
	var now time.Time
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		now = c.Now()
		for i := range 60 {
			k := newKey(now.Add(time.Duration(i/7)*time.Millisecond), w.organization.ID) // several in one millisecond
			k.ExternalID = fmt.Sprint("e", i)
			if i%2 == 0 {
				k.Environment = authz.EnvironmentTest
			}
			if i%3 == 0 {
				k.Scopes = append(k.Scopes, "tickets:write")
			}
			switch i % 5 {
			case 1:
				k.DisabledAt = now
			case 2:
				k.DisabledAt, k.ExpiresAt = now, now // expires at this very moment
			case 3:
				k.RevokedAt, k.ExpiresAt, k.DisabledAt = now, now, now
			}
			if err := c.InsertKey(ctx, all(), &k, format(t).Generate(k.Environment)); err != nil {
				return err
			}
			keys = append(keys, k)
		}
		// Within the transaction, so that it is now for SQL too.
		for name, f := range map[string]struct {
			filter manage.KeyFilter
			in     func(*manage.Key) bool
		}{
			"none":        {manage.KeyFilter{}, func(*manage.Key) bool { return true }},
			"environment": {manage.KeyFilter{Environment: "test"}, func(k *manage.Key) bool { return k.Environment == "test" }},
			"scope":       {manage.KeyFilter{Scope: "tickets:write"}, func(k *manage.Key) bool { return len(k.Scopes) == 2 }},
			"external id": {manage.KeyFilter{ExternalID: "e7"}, func(k *manage.Key) bool { return k.ExternalID == "e7" }},
			"active":      {manage.KeyFilter{Status: "active"}, func(k *manage.Key) bool { return k.Status(now) == "active" }},
			"disabled":    {manage.KeyFilter{Status: "disabled"}, func(k *manage.Key) bool { return k.Status(now) == "disabled" }},
			"expired":     {manage.KeyFilter{Status: "expired"}, func(k *manage.Key) bool { return k.Status(now) == "expired" }},
			"revoked":     {manage.KeyFilter{Status: "revoked"}, func(k *manage.Key) bool { return k.Status(now) == "revoked" }},
			"two": {manage.KeyFilter{Status: "active", Environment: "live"}, func(k *manage.Key) bool {
				return k.Status(now) == "active" && k.Environment == "live"
			}},
		} {
			want := 0
			for i := range keys {
				if f.in(&keys[i]) {
					want++
				}
			}
			if name == "none" || name == "two" || name == "active" { // newWhole's own
				want++
			}
			if name == "scope" {
				want++
			}
			for _, size := range []int{1, 7, 100} {
				seen, last := make(map[authz.KeyID]bool), ""
				for {
					page, err := c.Keys(ctx, of(w.organization.ID), w.organization.ID, f.filter, manage.Page{After: last, Limit: size})
					if err != nil {
						return err
					}
					for i := range page {
						k := &page[i]
						if last != "" && k.ID.String() >= last || seen[k.ID] || k.OrganizationID != w.organization.ID || len(k.Secrets) != 1 ||
							k.ID != w.key.ID && !f.in(k) {
							t.Fatalf("filter %s, size %d: %+v after %s", name, size, k, last)
						}
						seen[k.ID], last = true, k.ID.String()
					}
					if len(page) < size {
						break
					}
				}
				if len(seen) != want {
					t.Errorf("filter %s, size %d: %d keys, want %d", name, size, len(seen), want)
				}
			}
		}
		n, err := c.CountKeys(ctx, all(), w.organization.ID)
		if n != 60*3/5+1 {
			t.Errorf("%d keys count", n)
		}
		return err
	})
}

func TestLists_ABadCursorIsInvalid(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	manageRead(t, s, func(ctx context.Context, r manage.Reader) error {
		for _, after := range []string{"nonsense", authz.NewSecretID(time.Now()).String(), "key_00000000000000000000000000'"} {
			p := manage.Page{After: after, Limit: 1}
			_, err1 := r.Organizations(ctx, all(), manage.OrganizationFilter{}, p)
			_, err2 := r.Keys(ctx, all(), authz.NewOrganizationID(time.Now()), manage.KeyFilter{}, p)
			_, err3 := r.Callers(ctx, all(), "", p)
			_, err4 := r.Admins(ctx, all(), manage.AdminFilter{}, p)
			for i, err := range []error{err1, err2, err3, err4} {
				var invalid *authz.Error
				if !errors.As(err, &invalid) || invalid.Kind != authz.KindInvalid || invalid.Code != "out_of_range" || invalid.Pointer != "/cursor" {
					t.Errorf("list %d after %q: %v", i, after, err)
				}
			}
		}
		return nil
	})
}

// What SQL calls a state is what Go calls it, to the microsecond.
func TestLists_StatusesAreThoseOfTheDomain(t *testing.T) {
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	manageWrite(t, s, func(ctx context.Context, c manage.Writer) error {
		now := c.Now()
		page := manage.Page{Limit: 100}
		var none time.Time
		for i, o := range []manage.Organization{{}, {SuspendedAt: now}, {SuspendedAt: now, DeletedAt: now}, {DeletedAt: now}} {
			o.ID, o.Name, o.Plan = authz.NewOrganizationID(now), fmt.Sprint("o", i), "standard"
			if err := errors.Join(c.InsertOrganization(ctx, all(), &o), c.UpdateOrganization(ctx, all(), &o)); err != nil {
				return err
			}
		}
		for i, a := range []manage.Admin{
			{ExpiresAt: now.Add(time.Microsecond)}, {ExpiresAt: now}, {ExpiresAt: now, RevokedAt: now}, {ExpiresAt: now.Add(1), RevokedAt: now},
		} {
			a.ID, a.Name, a.Role = authz.NewAdminID(now), fmt.Sprint("a", i), authz.RolePlatformAdmin
			a.Tokens = []manage.Token{{ID: authz.NewSecretID(now), ExpiresAt: a.ExpiresAt}}
			if err := c.InsertAdmin(ctx, all(), &a, authz.AdminTokens().Generate()); err != nil {
				return err
			}
		}
		for i, revoked := range []time.Time{none, now} {
			caller := manage.Caller{
				ID: authz.NewCallerID(now), Name: fmt.Sprint("c", i), RevokedAt: revoked, Tokens: []manage.Token{{ID: authz.NewSecretID(now)}},
			}
			if err := c.InsertCaller(ctx, all(), &caller, authz.CallerTokens().Generate()); err != nil {
				return err
			}
		}
		total := 0
		for _, status := range []string{"active", "suspended", "deleted", "expired", "revoked", "disabled", "nonsense"} {
			organizations, err1 := c.Organizations(ctx, all(), manage.OrganizationFilter{Status: status}, page)
			admins, err2 := c.Admins(ctx, all(), manage.AdminFilter{Status: status}, page)
			callers, err3 := c.Callers(ctx, all(), status, page)
			if err := errors.Join(err1, err2, err3); err != nil {
				return err
			}
			for i := range organizations {
				if got := organizations[i].Status(); got != status {
					t.Errorf("organization %s is listed as %s", got, status)
				}
			}
			for i := range admins {
				if got := admins[i].Status(now); got != status {
					t.Errorf("admin %s is listed as %s", got, status)
				}
			}
			for i := range callers {
				if got := callers[i].Status(); got != status {
					t.Errorf("caller %s is listed as %s", got, status)
				}
			}
			total += len(organizations) + len(admins) + len(callers)
		}
		if total != 10 {
			t.Errorf("%d things are listed under a status, want 10", total)
		}
		if o, err := c.Organizations(ctx, all(), manage.OrganizationFilter{}, page); err != nil || len(o) != 2 {
			t.Errorf("%d organizations without a filter, %v: deleted ones are left out", len(o), err)
		}
		if n, err := c.OtherPlatformAdmins(ctx, authz.NewAdminID(now)); err != nil || n != 1 {
			t.Errorf("%d platform admins are live, %v", n, err)
		}
		return nil
	})
}
