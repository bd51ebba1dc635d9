package cli

import (
	"bytes"
	"testing"
)

// What nothing is known of is not drawn as nothing, and little not as nothing either.
func TestArt_UnknownNothingAndLittleDiffer(t *testing.T) {
	values := []int64{-1, 0, 1, 500, 875, 1000}
	for want, a := range map[string]art{" ·▁▄▇█": blocks, " .:+%@": asciiArt} {
		if got := a.spark(values); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := blocks.spark([]int64{0, 0}); got != "··" {
		t.Errorf("%q", got)
	}
	if got := blocks.bars(1, 1_000_000); got != "█" || blocks.bars(0, 5) != "" || blocks.bars(5, 0) != "" {
		t.Errorf("%q", got)
	}
}

// Blocks are for a terminal alone.
func TestArt_IsASCIIInAPipe(t *testing.T) {
	c := Config{LookupEnv: func(string) (string, bool) { return "C.UTF-8", true }}
	if got := c.artOf(c.newPage(&bytes.Buffer{})); got.bar != asciiArt.bar {
		t.Errorf("%q", got.bar)
	}
}

func TestNumbers_AreNeverRoundedToAllOrNothing(t *testing.T) {
	for share, want := range map[float64]string{0: "0 %", 0.0001: "<0.1 %", 0.029: "2.9 %", 0.03: "3 %", 0.5: "50 %", 0.9999: "99.9 %", 1: "100 %"} {
		if got := percent(share); got != want {
			t.Errorf("%v: %s, want %s", share, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}
