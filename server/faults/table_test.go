package faults

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/supportstation/keystile/store/localserver"
)

// outcome is what a row measured.
type outcome struct {
	row     row
	figures []figure
}

// verdict is "BROKEN (figure)" when all that is the same on any machine is as promised, and a time
// or another figure that a busy machine could spoil is not.
func (o outcome) verdict() string {
	verdict := "kept"
	for _, f := range o.figures {
		switch {
		case f.kept:
		case !f.timed:
			return "BROKEN"
		default:
			verdict = "BROKEN (figure)"
		}
	}
	return verdict
}

// text is all figures in one line, those that break the promise marked.
func (o outcome) text() string {
	parts := make([]string, len(o.figures))
	for i, f := range o.figures {
		if parts[i] = f.text; !f.kept {
			parts[i] = "✗ " + f.text
		}
	}
	return strings.Join(parts, " · ")
}

// table is what all rows measured, and on what. Safe for concurrent use.
type table struct {
	mu              sync.Mutex
	outcomes        []outcome
	postgres, redis string
}

var measured table

func (t *table) add(o outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.outcomes = append(t.outcomes, o)
}

// servers keeps the versions of the first servers that it is told.
func (t *table) servers(trial *trial, p *localserver.Postgres, r *localserver.Redis) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.postgres != "" {
		return
	}
	t.postgres = strings.Fields(queryText(trial, p.URL("postgres"), "SHOW server_version"))[0]
	info, err := r.Do(trial.Context(), "INFO", "server")
	if err != nil {
		trial.Fatal(err)
	}
	_, version, _ := strings.Cut(info, "redis_version:")
	t.redis, _, _ = strings.Cut(version, "\r")
}

// print writes the table to standard output, and to the file that was asked for.
func (t *table) print() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.SortFunc(t.outcomes, func(a, b outcome) int { return a.row.number - b.row.number })
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "\n#\tfault\tverdict\tpromise, and what was measured\n")
	for _, o := range t.outcomes {
		_, _ = fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", o.row.number, o.row.fault, o.verdict(), o.row.promise)
		for _, f := range o.figures {
			mark := " "
			if !f.kept {
				mark = "✗"
			}
			_, _ = fmt.Fprintf(w, "\t\t\t  %s %s\n", mark, f.text)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	fmt.Printf("\n%s\n", t.machine())
	if *markdown == "" {
		return nil
	}
	if err := os.WriteFile(*markdown, []byte(t.markdown()), 0o600); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

func (t *table) markdown() string {
	var b strings.Builder
	b.WriteString("| # | fault | promise | measured | verdict |\n|---|---|---|---|---|\n")
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	for _, o := range t.outcomes {
		_, _ = fmt.Fprintf(&b, "| %d | %s | %s | %s | %s |\n", o.row.number, cell.Replace(o.row.fault),
			cell.Replace(o.row.promise), cell.Replace(o.text()), o.verdict())
	}
	_, _ = fmt.Fprintf(&b, "\n%s\n", t.machine())
	return b.String()
}

// machine says when and on what it was measured.
func (t *table) machine() string {
	release := "?"
	if raw, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		release = strings.TrimSpace(string(raw))
	}
	raced := ""
	if raceEnabled {
		raced = ", with the race detector"
	}
	if *overlay != "" {
		raced += ", with the overlay " + *overlay
	}
	return fmt.Sprintf("Measured on %s: %d cores, %.0f GiB of memory, %s %s, %s, PostgreSQL %s, Redis %s%s; load, replicas and servers on the one machine.",
		time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), memoryGiB(), runtime.GOOS, release, runtime.Version(), t.postgres, t.redis, raced)
}

func memoryGiB() float64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	var kib float64
	_, _ = fmt.Sscanf(string(raw), "MemTotal: %f kB", &kib)
	return kib / (1 << 20)
}
