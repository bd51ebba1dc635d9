package faults

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	fullForm = flag.Bool("faults.full", false, "measure each row and judge its figures; without it, codes and counts alone")
	only     = flag.String("faults.rows", "", "the numbers of the rows to run, such as 5,7; empty is all")
	markdown = flag.String("faults.markdown", "", "write the table to this file as well, as markdown")
	overlay  = flag.String("faults.overlay", os.Getenv("KEYSTILE_OVERLAY"), "build the replicas with this -overlay file of go build: a row must break when its mechanism is off")
)

func TestMain(m *testing.M) {
	if os.Getenv(floodVariable) != "" {
		if err := runFlood(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	if *fullForm {
		// Who measures does not collect garbage meanwhile: attempt does, between rows.
		debug.SetGCPercent(-1)
		debug.SetMemoryLimit(2 << 30)
	}
	code := m.Run()
	if *fullForm {
		if err := measured.print(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	built.remove()
	os.Exit(code)
}

// row is one promise, and how it is tried.
type row struct {
	number         int
	fault, promise string
	try            func(*trial)
}

// TestFaults tries the rows: in the quick form at the same time, in the full form one
// after the other, so that they do not spoil each other's figures.
func TestFaults(t *testing.T) {
	wanted := wantedRows(t)
	if _, err := built.path(); err != nil { // before any row's time counts
		t.Fatal(err)
	}
	for _, r := range wanted {
		t.Run(fmt.Sprintf("row_%02d_%s", r.number, strings.ReplaceAll(r.fault, " ", "_")), func(t *testing.T) {
			if !*fullForm {
				t.Parallel()
			}
			attempt(t, r)
		})
	}
}

func TestRows_AreNumberedOnceAndInOrder(t *testing.T) {
	all := rows()
	for i := range all {
		if i > 0 && all[i].number <= all[i-1].number {
			t.Errorf("row %d comes after row %d", all[i].number, all[i-1].number)
		}
		if all[i].fault == "" || all[i].promise == "" || all[i].try == nil {
			t.Errorf("row %d is not whole", all[i].number)
		}
	}
}

func wantedRows(t *testing.T) []row {
	t.Helper()
	all := rows()
	if *only == "" {
		return all
	}
	var wanted []row
	for text := range strings.SplitSeq(*only, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		i := slices.IndexFunc(all, func(r row) bool { return r.number == n })
		if err != nil || i < 0 {
			t.Fatalf("there is no row %q", text)
		}
		wanted = append(wanted, all[i])
	}
	return wanted
}

// trial is one try of a row: a test that keeps its figures. Its methods beyond those of
// testing.T are safe for concurrent use.
type trial struct {
	*testing.T

	// full tells that figures are judged, and that there is time to measure them.
	full bool

	mu      sync.Mutex
	figures []figure
	// unmeasured tells that something failed that is no figure.
	unmeasured bool
}

// figure is something that was measured.
type figure struct {
	text string
	kept bool
	// timed tells that a busy machine could spoil it.
	timed bool
}

// Errorf, Error, Fatalf and Fatal are the test's own, of what is no figure: the row could not
// be measured as a whole.

func (t *trial) Errorf(format string, args ...any) {
	t.Helper()
	t.fails()
	t.T.Errorf(format, args...)
}

func (t *trial) Error(args ...any) {
	t.Helper()
	t.fails()
	t.T.Error(args...)
}

func (t *trial) Fatalf(format string, args ...any) {
	t.Helper()
	t.fails()
	t.T.Fatalf(format, args...)
}

func (t *trial) Fatal(args ...any) {
	t.Helper()
	t.fails()
	t.T.Fatal(args...)
}

func (t *trial) fails() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unmeasured = true
}

// attempt tries a row and keeps what it measured.
func attempt(t *testing.T, r row) {
	t.Helper()
	tr := &trial{T: t, full: *fullForm}
	if tr.full {
		runtime.GC()
	}
	started := time.Now()
	if tr.full {
		fmt.Fprintf(os.Stderr, "row %2d  %s …\n", r.number, r.fault)
	}
	// Registered first, so that it runs last: servers have ended and logs are read.
	t.Cleanup(func() {
		if tr.full {
			if tr.unmeasured || t.Failed() && !slices.ContainsFunc(tr.figures, func(f figure) bool { return !f.kept }) {
				tr.figures = append(tr.figures, figure{text: "could not be measured"})
			}
			outcome := outcome{r, tr.figures}
			measured.add(outcome)
			fmt.Fprintf(os.Stderr, "row %2d  %s, %.0f s: %s\n", r.number, outcome.verdict(), time.Since(started).Seconds(), outcome.text())
		}
	})
	r.try(tr)
}

// exact states a figure that is what it is on any machine: a code, a count. It is
// judged in both forms.
func (t *trial) exact(kept bool, format string, args ...any) {
	t.Helper()
	t.state(figure{kept: kept}, true, format, args...)
}

// timed states a figure that a busy machine could spoil. It is judged in the full form.
func (t *trial) timed(kept bool, format string, args ...any) {
	t.Helper()
	t.state(figure{kept: kept, timed: true}, t.full, format, args...)
}

// missing states a promise that cannot be measured because nothing of it is built. It
// breaks the full form.
func (t *trial) missing(format string, args ...any) {
	t.Helper()
	t.state(figure{}, t.full, format, args...)
}

func (t *trial) state(f figure, judged bool, format string, args ...any) {
	t.Helper()
	f.text = fmt.Sprintf(format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(t.figures, f) { // what holds of each replica is told once
		t.figures = append(t.figures, f)
	}
	switch {
	case f.kept:
		t.Log(f.text)
	case judged:
		t.T.Errorf("BROKEN: %s", f.text)
	default:
		t.Logf("not judged here: %s", f.text)
	}
}

// either returns the first in the full form, the second in the quick one.
func either[T any](t *trial, full, quick T) T {
	if t.full {
		return full
	}
	return quick
}

// eventually waits for something that has to come true on any machine.
func (t *trial) eventually(what string, ready func() bool) {
	t.Helper()
	if !within(patience, ready) {
		t.Fatalf("%s: not within %v", what, patience)
	}
}

const (
	// patience is for what is not about time: a busy machine must not fail it.
	patience = 60 * time.Second
	// glance is how often something is looked at that cannot be waited for.
	glance = 5 * time.Millisecond
)

// within looks until ready says so, and tells whether it did in time.
func within(limit time.Duration, ready func() bool) bool {
	deadline := time.Now().Add(limit)
	for !ready() {
		if time.Now().After(deadline) {
			return false
		}
		pause(glance)
	}
	return true
}

// pause lets a fault last, or load go on: what is measured here is time.
func pause(d time.Duration) { <-time.After(d) }
