package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapFloor is what the heap may grow to before garbage is collected, however
	// little of it lives: a service with a small live heap would otherwise spend a
	// tenth of its time collecting the garbage of its checks.
	heapFloor = 96 << 20
	// maxGCPercent bounds the growth when next to nothing lives.
	maxGCPercent = 1500
	// defaultGCPercent is Go's own: from there on the heap may double.
	defaultGCPercent = 100
	tuneInterval     = time.Second
)

// tuneGC keeps the collector from running below heapFloor until ctx ends. Above it
// Go's default holds, so memory is bounded by the larger of heapFloor and twice what
// lives. An operator's GOGC or GOMEMLIMIT is left alone.
func tuneGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	tick := time.NewTicker(tuneInterval)
	defer tick.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	percent := defaultGCPercent
	for {
		metrics.Read(live)
		if want := gcPercent(live[0].Value.Uint64()); want != percent {
			percent = want
			debug.SetGCPercent(percent)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// gcPercent returns the GOGC at which a heap of which so much lives is collected when
// it reaches heapFloor, or Go's own when that is less. It moves in steps of 50, so
// that it does not move all the time.
func gcPercent(live uint64) int {
	if live == 0 {
		return maxGCPercent
	}
	percent := int(min(heapFloor*100/live, maxGCPercent+100)) - 100
	return max(percent/50*50, defaultGCPercent)
}
