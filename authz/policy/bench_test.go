package policy

import (
	"context"
	"net/netip"
	"testing"

	"github.com/supportstation/keystile/authz"
)

// benchmark asks from another address each time, so that no verdict is remembered.
func benchmark(b *testing.B, k *authz.Key, c *authz.Check) {
	b.Helper()
	e := NewEngine(mustLoad(b, shipped()))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.ClientIP = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
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

func BenchmarkEvaluate_TheSameAgain(b *testing.B) {
	e, k, c := NewEngine(mustLoad(b, shipped())), exampleKey(), exampleCheck("GET", "/api/v1/tickets")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Evaluate(context.Background(), k, c); err != nil {
			b.Fatal(err)
		}
	}
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

// BenchmarkEvaluate_Beside is what a check whose answer is from memory, the quickest, pays for a
// shadow: none, one that does not pick it, one that takes it, and one whose queue is full.
func BenchmarkEvaluate_Beside(b *testing.B) {
	for _, c := range []struct {
		name   string
		beside *beside
	}{
		{"off", nil}, {"not picked", newBeside("", 0, 1)}, {"picked", newBeside("", 1, 1<<40)}, {"full", newBeside("", 1, 1<<40)},
	} {
		b.Run(c.name, func(b *testing.B) {
			e, k, check := NewEngine(mustLoad(b, shipped())), exampleKey(), exampleCheck("GET", "/api/v1/tickets/42")
			e.beside.Store(c.beside)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Evaluate(context.Background(), k, check); err != nil {
					b.Fatal(err)
				}
				if c.name == "picked" {
					q := <-c.beside.queue
					c.beside.bytes.Add(-q.size)
				}
			}
		})
	}
}
