package faults

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// span is a time in which something was measured.
type span struct{ from, to time.Time }

// turns are calm spans and disturbed ones, by turns: the machine's own moods are in both.
type turns struct{ calm, disturbed []span }

// takeTurns has a calm span before each disturbance; settle has what a disturbance leaves
// behind end before the next calm.
func (s *site) takeTurns(n int, calm, settle time.Duration, disturb func()) turns {
	var t turns
	for range n {
		from := time.Now()
		pause(calm)
		between := time.Now()
		s.note("the disturbance begins")
		disturb()
		s.note("it ends")
		t.calm, t.disturbed = append(t.calm, span{from, between}), append(t.disturbed, span{between, time.Now()})
		pause(settle)
	}
	return t
}

// judgeRatio states how much longer clients waited while they were disturbed, at p99 of all
// turns together and where the machine did not stand still. What each turn had by itself is
// told and not judged: a p99 of two seconds differs by chance alone more than what is judged.
func (s *site) judgeRatio(who string, all answers, t turns, most float64) {
	s.Helper()
	var calmly, disturbed answers
	var turns []float64
	for i := range t.calm {
		before, during := s.fair(all.between(t.calm[i].from, t.calm[i].to)), s.fair(all.between(t.disturbed[i].from, t.disturbed[i].to))
		calmly, disturbed = append(calmly, before...), append(disturbed, during...)
		turns = append(turns, float64(during.percentile(.99))/float64(before.percentile(.99)))
	}
	a, b := calmly.percentile(.99), disturbed.percentile(.99)
	ratio := float64(b) / float64(a)
	s.timed(ratio <= most, "%s: p99 %s, then %s, ratio %.2f (≤ %.2g; %d turns by themselves %.2f), %d answers meanwhile",
		who, ms(a), ms(b), ratio, most, len(turns), turns, len(disturbed))
}

// memory is how much of the machine's memory a replica holds, in bytes: its
// process_resident_memory_bytes, without the cost of asking for it.
func (r *replica) memory() (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", r.pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(raw)
	if len(fields) < 2 {
		return 0, fmt.Errorf("statm says %q", raw)
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// watchMemory finds out the most that a replica holds until stop.
func (s *site) watchMemory(r *replica) (stop func() int64) {
	quit, done := make(chan struct{}), make(chan int64)
	go func() {
		tick := time.NewTicker(4 * glance)
		defer tick.Stop()
		for most := int64(0); ; {
			now, err := r.memory()
			if err != nil {
				s.Errorf("memory of a replica: %v", err)
			}
			most = max(most, now)
			select {
			case <-quit:
				done <- most
				return
			case <-tick.C:
			}
		}
	}()
	most := sync.OnceValue(func() int64 {
		close(quit)
		return <-done
	})
	s.Cleanup(func() { most() })
	return most
}

// worn returns the memory of a replica that has been in use: until its garbage has been
// collected some times, more of it is no more than the start.
func (s *site) worn(r *replica, keys []*key) int64 {
	s.Helper()
	if s.full {
		collected := r.metric(s.trial, "go_gc_duration_seconds_count")
		f := s.prepareFlood(r, floodOrder{Connections: 8}, keys...)
		f.begin()
		s.eventually("a replica in use collects its garbage", func() bool {
			pause(100 * time.Millisecond)
			return r.metric(s.trial, "go_gc_duration_seconds_count") >= collected+4
		})
		f.end()
	}
	now, err := r.memory()
	if err != nil {
		s.Fatal(err)
	}
	return now
}

// judgeMemory states how much more memory a replica held than before.
func (s *site) judgeMemory(before, most, allowed int64) {
	s.Helper()
	const mb = 1e6
	s.timed(most-before <= allowed*mb, "memory %.0f MB, at most %.0f MB: %+.0f MB (≤ +%d MB)",
		float64(before)/mb, float64(most)/mb, float64(most-before)/mb, allowed)
}

// sample reads a metric as metric does, and may be used beside the row.
func (r *replica) sample(ctx context.Context, name string) (float64, error) {
	_, page, err := fetch(ctx, r.opsURL+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(page) {
		if found, value, _ := strings.Cut(strings.TrimSpace(line), " "); found == name {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("there is no metric %s", name)
}
