package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// alteredProgram is the program with an injected clock and a small buffer of usage, by an
// overlay of go build: nothing else differs, and no file of the tree is touched.
//
// Its wall clock is off by the seconds in FAULTS_CLOCK, wherever its own code reads the
// time; the monotonic clock, as on a machine whose time was set wrongly, is not.
type alteredProgram struct {
	once sync.Once
	file string
	err  error
}

var altered alteredProgram

// fewUses is how many counts of usage, and with them uses of keys, wait there to be written, in place of 100,000.
const fewUses = 300

const injectedClock = `package %s

import (
	"os"
	"strconv"
	"time"
	"unsafe"
)

var faultsSeconds = func() int64 { n, _ := strconv.ParseInt(os.Getenv("FAULTS_CLOCK"), 10, 64); return n }()

// faultsNow moves the seconds of the wall clock, which stand above 30 bits of nanoseconds.
func faultsNow() time.Time {
	t := time.Now()
	*(*uint64)(unsafe.Pointer(&t)) += uint64(faultsSeconds) << 30
	return t
}
`

var (
	readsClock  = regexp.MustCompile(`\btime\.Now\b`)
	packageLine = regexp.MustCompile(`(?m)^package (\w+)$`)
)

// path builds it if need be.
func (p *alteredProgram) path() (string, error) {
	p.once.Do(func() {
		if _, p.err = built.path(); p.err != nil {
			return
		}
		dir := filepath.Join(built.dir, "altered")
		if p.err = os.Mkdir(dir, 0o700); p.err != nil {
			return
		}
		p.file = filepath.Join(dir, "keystile")
		var replaced string
		if replaced, p.err = alter(dir); p.err == nil {
			p.err = buildTo(p.file, replaced)
		}
	})
	return p.file, p.err
}

func buildTo(file, overlay string) error {
	args := []string{"build", "-buildvcs=false", "-overlay", overlay, "-o", file}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Dir = filepath.Join("..", "..")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build keystile: %w\n%s", err, said)
	}
	return nil
}

// alter writes the changed files and the overlay that puts them in place, on top of the
// overlay that this run has.
func alter(dir string) (overlayFile string, err error) {
	var all struct{ Replace map[string]string }
	if *overlay != "" {
		raw, err := os.ReadFile(*overlay)
		if err := errors.Join(err, json.Unmarshal(raw, &all)); err != nil {
			return "", err
		}
	}
	if all.Replace == nil {
		all.Replace = map[string]string{}
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return "", err
	}
	for _, part := range []string{"authz", "server", "store"} {
		if err := alterPart(filepath.Join(root, part), dir, all.Replace); err != nil {
			return "", err
		}
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	overlayFile = filepath.Join(dir, "overlay.json")
	return overlayFile, os.WriteFile(overlayFile, raw, 0o600)
}

func alterPart(part, dir string, replace map[string]string) error {
	return filepath.WalkDir(part, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		raw, err := os.ReadFile(firstOf(replace[path], path))
		if err != nil {
			return err
		}
		text := string(raw)
		text = strings.Replace(text, "maxUsageCounts = 100_000\n", fmt.Sprintf("maxUsageCounts = %d\n", fewUses), 1)
		if readsClock.MatchString(text) {
			name := packageLine.FindStringSubmatch(text)[1]
			text = readsClock.ReplaceAllString(text, "faultsNow") + "\nvar _ time.Time\n"
			clock := filepath.Join(filepath.Dir(path), "zz_faults_clock.go")
			if replace[clock], err = writeTo(dir, clock, fmt.Sprintf(injectedClock, name)); err != nil {
				return err
			}
		}
		if text != string(raw) {
			replace[path], err = writeTo(dir, path, text)
		}
		return err
	})
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// writeTo writes what stands in the place of a file.
func writeTo(dir, place, text string) (string, error) {
	file := filepath.Join(dir, strings.ReplaceAll(strings.Trim(place, "/"), "/", "_"))
	return file, os.WriteFile(file, []byte(text), 0o600)
}
