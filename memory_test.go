package main

import "testing"

func TestGCPercent_TheHeapStaysBelowTheFloorOrTwiceWhatLives(t *testing.T) {
	for _, live := range []uint64{0, 1, 1 << 20, 12 << 20, 30 << 20, 48 << 20, 96 << 20, 1 << 30} {
		percent := gcPercent(live)
		if percent < defaultGCPercent || percent > maxGCPercent {
			t.Errorf("%d bytes live: %d", live, percent)
		}
		if peak := live + live*uint64(percent)/100; peak > max(heapFloor, 2*live) {
			t.Errorf("%d bytes live: the heap grows to %d", live, peak)
		}
	}
}
