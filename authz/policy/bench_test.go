package policy

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

func exampleKey() *authz.Key {
	now := time.Unix(1_795_000_000, 0)
	return &authz.Key{
		ID:          authz.NewKeyID(now),
		Environment: authz.EnvironmentLive,
		Scopes:      []authz.Scope{"customers:read", "customers:write", "tickets:read", "tickets:write"},
		Organization: &authz.Organization{
			ID: authz.NewOrganizationID(now), ExternalID: "acme-1", Name: "Acme", Plan: "standard",
			Metadata: `{"tier":"gold"}`,
		},
		Metadata: `{"team":"billing"}`,
	}
}

func exampleCheck(method, path string) *authz.Check {
	c := &authz.Check{
		Caller: &authz.Caller{
			ID: authz.NewCallerID(time.Unix(1_795_000_000, 0)), Name: "tickets",
			Environments: []authz.Environment{authz.EnvironmentLive, authz.EnvironmentTest},
		},
		ClientIP: netip.MustParseAddr("203.0.113.7"),
		Cost:     1,
	}
	if method != "" {
		c.SetRequest(method, path)
	}
	return c
}

func benchEval(b *testing.B, c *authz.Check, k *authz.Key) {
	s, err := Load(context.Background(), os.DirFS("../../policies"))
	if err != nil {
		b.Fatal(err)
	}
	e := NewEngine(s)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Evaluate(context.Background(), k, c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEvaluate_AllowedCheck(b *testing.B) {
	b.Run("literal", func(b *testing.B) { benchEval(b, exampleCheck("GET", "/api/v1/tickets"), exampleKey()) })
	b.Run("variable", func(b *testing.B) { benchEval(b, exampleCheck("GET", "/api/v1/tickets/42"), exampleKey()) })
	b.Run("action", func(b *testing.B) {
		c := exampleCheck("", "")
		c.Action = "tickets:read"
		benchEval(b, c, exampleKey())
	})
}

func BenchmarkEvaluate_DeniedCheck(b *testing.B) {
	k := exampleKey()
	k.Scopes = nil
	benchEval(b, exampleCheck("GET", "/api/v1/tickets"), k)
}
