package ratelimit

import (
	"sync"
	"sync/atomic"
	"testing"
)

// An open breaker lets one call a period through, however many there are.
func TestBreaker_OpensAfterFailuresAndSendsOneProbe(t *testing.T) {
	b := newBreaker()
	for n := range breakAfter {
		if !b.allow() {
			t.Fatalf("closed to call %d", n)
		}
		if opened := b.failure(); opened != (n == breakAfter-1) {
			t.Errorf("failure %d: opened %t", n, opened)
		}
	}
	if !b.isOpen() || b.allow() {
		t.Error("it is not open")
	}
	b.probeAt.Store(1) // the time for a probe has come
	var through atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if b.allow() {
				through.Add(1)
			}
		})
	}
	wg.Wait()
	if through.Load() != 1 {
		t.Errorf("%d probes", through.Load())
	}
	if b.failure() || !b.isOpen() {
		t.Error("a failed probe is not told from the first failures")
	}
	if !b.success() || b.isOpen() || b.success() {
		t.Error("an answer closes it, once")
	}
	b.failure()
	b.success()
	for range breakAfter - 1 {
		if b.failure() {
			t.Error("failures are counted that were not in a row")
		}
	}
}
