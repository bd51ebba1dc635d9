package authz_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// Two requests that differ in ids and addresses alone have one shape, and no text of theirs is in it.
func TestShape_KeepsNothingThatTellsOneRequestFromTheNext(t *testing.T) {
	k := &authz.Key{ID: authz.NewKeyID(time.Now()), Organization: &authz.Organization{ID: authz.NewOrganizationID(time.Now()), ExternalID: "acme-1"}}
	ask := func(method, path, action, address string, r authz.Resource, route string) authz.Shape {
		c := &authz.Check{Action: action, Resource: r, ClientIP: authz.NormalizeAddr(address)}
		if path != "" {
			c.SetRequest(method, path)
		}
		return authz.ShapeOf(k, c, &authz.Verdict{Route: route, Cataloged: route != "", Required: []authz.Scope{"tickets:read"}})
	}
	for name, tt := range map[string]struct {
		first, second, want authz.Shape
		template            string
	}{
		"a route": {
			ask("GET", "/api/v1/tickets/42", "", "203.0.113.7", authz.Resource{Type: "ticket", ID: "42"}, "/api/v1/tickets/{id}"),
			ask("GET", "/api/v1/tickets/43", "", "198.51.100.1", authz.Resource{Type: "ticket", ID: "43"}, "/api/v1/tickets/{id}"),
			authz.Shape{Method: "GET", Route: "/api/v1/tickets/{id}", ResourceType: "ticket", ResourceID: true, Address: authz.AddressGiven},
			"/api/v1/tickets/_",
		},
		"no route": {
			ask("PROPFIND", "/api/v1/users/alice@example.com/7", "", "", authz.Resource{Organization: "other"}, ""),
			ask("REPORT", "/api/v1/users/Bob/4f9a0c", "", "", authz.Resource{Organization: "another"}, ""),
			authz.Shape{Method: "_", Path: "/api/v1/users/_/_", ResourceOrganization: authz.OwnerOther, Relative: 6699337357114001483},
			"/api/v1/users/_/_",
		},
		"no action": {
			ask("", "", "Ticket 42", "", authz.Resource{Type: "Ticket 42", Organization: k.Organization.ID.String()}, ""),
			ask("", "", "Ticket 43", "", authz.Resource{Type: "Ticket 43", Organization: k.Organization.ID.String()}, ""),
			authz.Shape{Action: "_", ResourceType: "_", ResourceOrganization: authz.OwnerByID},
			"",
		},
		"ambiguous": {
			ask("GET", "/a/../42", "", "", authz.Resource{Organization: "acme-1"}, ""), ask("GET", "//43", "", "", authz.Resource{Organization: "acme-1"}, ""),
			authz.Shape{Method: "GET", Ambiguous: true, ResourceOrganization: authz.OwnerByExternalID, Relative: 6699337357114001483},
			"",
		},
		"words that may be names": {
			ask("GET", "/users/john.smith/reset/abcdefghijklmnopqrstuvwxyz", "customer-4711:read", "", authz.Resource{Type: "john.smith"}, ""),
			ask("GET", "/users/mary.smith/reset/zyxwvutsrqponmlkjihgfedcba", "customer-4712:read", "", authz.Resource{Type: "mary.smith"}, ""),
			authz.Shape{Method: "GET", Path: "/users/_/reset/_", Action: "_", ResourceType: "_"},
			"/users/_/reset/_",
		},
		"a route that is no template": {
			ask("GET", "/api/v1/tickets/42", "tickets:read", "", authz.Resource{}, ""), ask("GET", "/api/v1/tickets/43", "tickets:read", "", authz.Resource{}, ""),
			authz.Shape{Method: "GET", Path: "/api/v1/tickets/_", Action: "tickets:read"},
			"/api/v1/tickets/_",
		},
		"too long": {
			ask("GET", "/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a", "", "", authz.Resource{}, ""), ask("POST", "/b/b/b/b/b/b/b/b/b/b/b/b/b/b/b/b/b/b", "", "", authz.Resource{}, ""),
			authz.CollapsedShape(), "",
		},
	} {
		if tt.first != tt.want || tt.second != tt.want || tt.want.Template() != tt.template {
			t.Errorf("%s: %+v and %+v, %s", name, tt.first, tt.second, tt.want.Template())
		}
	}
}

// A question of a shape has the shape that it is of.
func TestShape_ItsQuestionHasTheSameShape(t *testing.T) {
	k := &authz.Key{
		ID: authz.NewKeyID(time.Now()), Organization: &authz.Organization{ID: authz.NewOrganizationID(time.Now()), ExternalID: "acme-1"},
		AllowedCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.7/32")},
	}
	for _, address := range []string{"", "192.0.2.9", "203.0.113.1"} {
		for _, owner := range []string{"", k.Organization.ID.String(), "acme-1", "x"} {
			for _, path := range []string{"", "/", "/nowhere/42", "/a//b", "/api/v1/tickets/42"} {
				c := &authz.Check{
					Action: "tickets:read", ClientIP: authz.NormalizeAddr(address), Resource: authz.Resource{Organization: owner, ID: "7"},
					Environment: authz.EnvironmentTest, Browser: true, Stale: true,
				}
				if path != "" {
					c.SetRequest("GET", path)
				}
				v := &authz.Verdict{Revision: "sha256:x", Required: []authz.Scope{"tickets:read"}}
				if path == "/api/v1/tickets/42" {
					v.Route, v.Cataloged = "/api/v1/tickets/{id}", true
				}
				shape := authz.ShapeOf(k, c, v)
				question, faithful := shape.Check(k, nil)
				if again := authz.ShapeOf(k, question, v); again != shape || !faithful {
					t.Errorf("%q %q %q: %+v, then %+v, faithful %v", address, owner, path, shape, again, faithful)
				}
			}
		}
	}
	// What was another's name may be this organization's by now.
	others := authz.ShapeOf(k, &authz.Check{Resource: authz.Resource{Organization: "acme-2"}}, &authz.Verdict{})
	renamed := &authz.Key{ID: k.ID, Organization: &authz.Organization{ID: k.Organization.ID, ExternalID: "acme-2"}, AllowedCIDRs: k.AllowedCIDRs}
	if _, faithful := others.Check(renamed, nil); faithful {
		t.Error("a resource of another is one of another still, though the organization has a name of its own now")
	}
	for _, shape := range []authz.Shape{authz.CollapsedShape(), {}} {
		if c, _ := shape.Check(k, nil); c != nil {
			t.Error("what was not kept is asked about")
		}
	}
}
