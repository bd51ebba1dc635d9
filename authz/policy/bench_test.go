package policy

import (
	"context"
	"testing"

	"github.com/supportstation/keystile/authz"
)

func benchmark(b *testing.B, k *authz.Key, c *authz.Check) {
	b.Helper()
	e := NewEngine(mustLoad(b, shipped()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Evaluate(context.Background(), k, c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEvaluate_AllowedCheck(b *testing.B) {
	b.Run("literal", func(b *testing.B) { benchmark(b, exampleKey(), exampleCheck("GET", "/api/v1/tickets")) })
	b.Run("variable", func(b *testing.B) { benchmark(b, exampleKey(), exampleCheck("GET", "/api/v1/tickets/42")) })
	b.Run("action", func(b *testing.B) {
		c := exampleCheck("", "")
		c.Action = "tickets:read"
		benchmark(b, exampleKey(), c)
	})
}

func BenchmarkEvaluate_DeniedCheck(b *testing.B) {
	k := exampleKey()
	k.Scopes = nil
	benchmark(b, k, exampleCheck("GET", "/api/v1/tickets"))
}

// BenchmarkInput is the part of an evaluation that is not OPA's.
func BenchmarkInput(b *testing.B) {
	n, k, c := newNames(), exampleKey(), exampleCheck("GET", "/api/v1/tickets")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := n.input(k, c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		mustLoad(b, shipped())
	}
}
