// Command mutants shows that tests can fail: it switches one mechanism off at a time, in
// a build overlay that touches no file of the tree, and runs the tests that claim to
// guard it. A mutant that survives is an error.
//
//	go run ./.ci/mutants [WORD...]    those whose title has one of these words; all by default
//	go run ./.ci/mutants -check       none: tells those whose lines are there no more
//
// mutants.txt has one mutant after another:
//
//	== title
//	file: path of the file
//	- a line of it, exactly once there (several - lines must follow each other)
//	+ what stands in its place
//	test: arguments of go test
//
// Where either of two mechanisms is enough, a mutant has a second file with its lines, and
// switches both off.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

type mutant struct {
	title, test string
	edits       []edit
}

// edit is what a mutant does to one file.
type edit struct{ file, old, new string }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(words []string) error {
	all, err := read(filepath.Join(".ci", "mutants", "mutants.txt"))
	if err != nil {
		return err
	}
	// Before the first of them runs: all may take hours.
	var stale []error
	for _, m := range all {
		if _, err := m.mutated(); err != nil {
			stale = append(stale, fmt.Errorf("%s: %w", m.title, err))
		}
	}
	if err := errors.Join(stale...); err != nil || slices.Equal(words, []string{"-check"}) {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ran, survived := 0, 0
	for _, m := range all {
		if !m.named(words) {
			continue
		}
		ran++
		started := time.Now()
		killer, err := m.kill(dir)
		if err != nil {
			return fmt.Errorf("%s: %w", m.title, err)
		}
		verdict := "killed by " + killer
		if killer == "" {
			survived++
			verdict = "SURVIVED " + m.test
		}
		fmt.Printf("%-78s %s (%d s)\n", m.title, verdict, int(time.Since(started).Seconds()))
	}
	fmt.Printf("%d mutants, %d survived\n", ran, survived)
	if survived > 0 || ran == 0 {
		return fmt.Errorf("%d of %d mutants survived: a test that cannot fail guards nothing", survived, ran)
	}
	return nil
}

func (m mutant) named(words []string) bool {
	for _, w := range words {
		if strings.Contains(strings.ToLower(m.title), strings.ToLower(w)) {
			return true
		}
	}
	return len(words) == 0
}

func read(path string) ([]mutant, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	var all []mutant
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if title, ok := strings.CutPrefix(line, "== "); ok {
			all = append(all, mutant{title: title})
			continue
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("%s:%d: a mutant begins with == and its title", path, n)
		}
		m := &all[len(all)-1]
		if file, ok := strings.CutPrefix(line, "file: "); ok {
			m.edits = append(m.edits, edit{file: file})
			continue
		}
		if len(m.edits) == 0 {
			return nil, fmt.Errorf("%s:%d: a mutant's file comes before its lines", path, n)
		}
		e := &m.edits[len(m.edits)-1]
		switch {
		case strings.HasPrefix(line, "test: "):
			m.test = line[len("test: "):]
		case line[0] == '-':
			e.old += strings.TrimPrefix(line[1:], " ") + "\n"
		case line[0] == '+':
			e.new += strings.TrimPrefix(line[1:], " ") + "\n"
		default:
			return nil, fmt.Errorf("%s:%d: not a line of a mutant", path, n)
		}
	}
	return all, lines.Err()
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// mutated are the files as the mutant has them.
func (m mutant) mutated() (map[string]string, error) {
	files := map[string]string{}
	for _, e := range m.edits {
		text, err := os.ReadFile(e.file)
		if err != nil {
			return nil, err
		}
		if n := strings.Count(string(text), e.old); n != 1 || e.old == "" || files[e.file] != "" {
			return nil, fmt.Errorf("its lines are %d times in %s, not once, or it has that file twice", n, e.file)
		}
		files[e.file] = strings.Replace(string(text), e.old, e.new, 1)
	}
	if len(files) == 0 || m.test == "" {
		return nil, errors.New("it has no file or no test")
	}
	return files, nil
}

// kill returns the test that fails with the mutant, or "".
func (m mutant) kill(dir string) (string, error) {
	files, err := m.mutated()
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for name, text := range files {
		mutated := filepath.Join(dir, fmt.Sprintf("mutated-%d.go", len(replace)))
		if err := os.WriteFile(mutated, []byte(text), 0o600); err != nil {
			return "", err
		}
		absolute, err := filepath.Abs(name)
		if err != nil {
			return "", err
		}
		replace[absolute] = mutated
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, raw, 0o600); err != nil {
		return "", err
	}
	args := append([]string{"test", "-count=1", "-timeout=5m", "-vet=off", "-overlay", overlay}, strings.Fields(m.test)...)
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "KEYSTILE_OVERLAY="+overlay, "KEYSTILE_SIMULATION_SEEDS=60")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return "", nil
	}
	if found := failed.FindSubmatch(out); found != nil {
		return string(found[1]), nil
	}
	if strings.Contains(string(out), "panic: test timed out") {
		return "the time limit", nil
	}
	return "", fmt.Errorf("go test did not end as tests do:\n%s", out)
}
