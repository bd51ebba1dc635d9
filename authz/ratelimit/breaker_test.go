package ratelimit

import "testing"

func TestBreaker_OpensAfterFailuresInARowAndNoCallIsTheProbe(t *testing.T) {
	b := new(breaker)
	for n := range breakAfter {
		if !b.allow() {
			t.Fatalf("closed to call %d", n)
		}
		if opened := b.failure(); opened != (n == breakAfter-1) {
			t.Errorf("failure %d: opened %t", n, opened)
		}
	}
	if !b.isOpen() || b.allow() || b.failure() {
		t.Error("it is not open, or opens twice")
	}
	b.success() // a late answer to an earlier call
	if !b.isOpen() {
		t.Error("a client's call closed it")
	}
	b.settle()
	if b.allow() || b.isOpen() || b.failure() || b.String() != "settling" {
		t.Errorf("%s lets calls through", b)
	}
	b.close()
	if !b.allow() {
		t.Error("it stays open")
	}
	b.failure()
	b.success()
	for range breakAfter - 1 {
		if b.failure() {
			t.Error("failures are counted that were not in a row")
		}
	}
}
