package faults

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// drainLimit bounds a replica's orderly end: its own bounds, and room for a busy machine.
	drainLimit = 40 * time.Second
	// shownLog is how much of a replica's log is shown when its row fails.
	shownLog = 4 << 10
)

// program is the real binary, built once for a run.
type program struct {
	once sync.Once
	dir  string
	err  error
}

var built program

// path builds it if need be: with the race detector when this test is, and with the
// overlay that was asked for.
func (p *program) path() (string, error) {
	p.once.Do(func() {
		if p.dir, p.err = os.MkdirTemp("", "keystile-faults-bin-"); p.err != nil {
			return
		}
		args := []string{"build", "-buildvcs=false", "-o", filepath.Join(p.dir, "keystile")}
		if raceEnabled {
			args = append(args, "-race")
		}
		if *overlay != "" {
			args = append(args, "-overlay", *overlay)
		}
		cmd := exec.Command("go", append(args, ".")...)
		cmd.Dir = filepath.Join("..", "..")
		if said, err := cmd.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("build keystile: %w\n%s", err, said)
		}
	})
	return filepath.Join(p.dir, "keystile"), p.err
}

func (p *program) remove() {
	if p.dir != "" {
		_ = os.RemoveAll(p.dir)
	}
}

// replica is a running `keystile serve`.
type replica struct {
	url, adminURL, opsURL string
	pid                   int
	log                   string
	process               *os.Process
	ended                 chan struct{} // closed when it has ended
	status                error         // how; set before ended is closed
}

// startReplica returns when the replica is ready. It ends with the site: see drain.
func (s *site) startReplica(env map[string]string) *replica {
	s.Helper()
	build := s.program
	if build == nil {
		build = built.path
	}
	program, err := build()
	if err != nil {
		s.Fatal(err)
	}
	r := &replica{log: fmt.Sprintf("%s/replica-%d.log", s.dir, len(s.replicas)), ended: make(chan struct{})}
	file, err := os.Create(r.log)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = file.Close() }() // the process has it
	cmd := exec.Command(program, "serve", "-o", "json")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stderr, cmd.SysProcAttr = file, dieWithParent()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	ready, started := make(chan string, 1), make(chan error)
	go func() {
		// The kernel takes the end of the thread that started a process for its parent's.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		r.process = cmd.Process
		started <- err
		if err != nil {
			return
		}
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		ready <- line
		r.status = cmd.Wait()
		close(r.ended)
	}()
	if err := <-started; err != nil {
		s.Fatal(err)
	}
	s.replicas = append(s.replicas, r)
	select {
	case line := <-ready:
		if err := r.read(line); err != nil {
			s.Fatalf("a replica said %q: %v", line, err)
		}
	case <-time.After(patience):
		s.Fatalf("a replica is not ready within %v", patience)
	}
	return r
}

// read takes over what a replica prints when it is ready.
func (r *replica) read(line string) error {
	var said struct {
		URL      string `json:"url"`
		AdminURL string `json:"admin_url"`
		OpsURL   string `json:"ops_url"`
		PID      int    `json:"pid"`
	}
	if err := json.Unmarshal([]byte(line), &said); err != nil {
		return err
	}
	if said.PID != r.process.Pid {
		return fmt.Errorf("it is process %d", r.process.Pid)
	}
	r.url, r.adminURL, r.opsURL, r.pid = said.URL, said.AdminURL, said.OpsURL, said.PID
	return nil
}

// address is where it answers checks.
func (r *replica) address() string { return strings.TrimPrefix(r.url, "http://") }

func (r *replica) hasEnded() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// terminate asks for an orderly end and waits for it.
func (r *replica) terminate() error {
	_ = r.process.Signal(syscall.SIGTERM)
	_ = r.process.Signal(syscall.SIGCONT) // a stopped one would not hear the first
	select {
	case <-r.ended:
		if r.status != nil {
			return fmt.Errorf("a replica ended with %w", r.status)
		}
		return nil
	case <-time.After(drainLimit):
		r.kill()
		return fmt.Errorf("a replica did not drain within %v", drainLimit)
	}
}

// kill ends it at once and returns when it was dead.
func (r *replica) kill() time.Time {
	_ = r.process.Kill()
	<-r.ended
	return time.Now()
}

// drain is the end of a row: every replica that still runs must end in order, whatever was
// done to it. Logs are shown when something was wrong.
func (s *site) drain() {
	s.Helper()
	s.note("replicas are asked to end")
	var ending sync.WaitGroup
	for _, r := range s.replicas {
		if !r.hasEnded() {
			ending.Go(func() {
				if err := r.terminate(); err != nil {
					s.Error(err)
				}
			})
		}
	}
	ending.Wait()
	for _, r := range s.replicas {
		if !s.Failed() {
			return
		}
		raw, err := os.ReadFile(r.log)
		if err != nil {
			s.Error(err)
		}
		s.Logf("the end of the log of process %d:\n%s", r.pid, raw[max(0, len(raw)-shownLog):])
	}
}

// opsClient has no proxy and its own end.
func opsClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
}

// fetch reads one page of a replica's.
func fetch(ctx context.Context, url string) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := opsClient().Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(response.Body)
	return response.StatusCode, string(raw), err
}

// metric reads one sample, named as /metrics names it, labels included.
func (r *replica) metric(t *trial, name string) float64 {
	t.Helper()
	_, page, err := fetch(t.Context(), r.opsURL+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(page) {
		if sample, value, _ := strings.Cut(strings.TrimSpace(line), " "); sample == name {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// readiness reads /readyz as an orchestrator does.
func (r *replica) readiness(t *trial) (code int, word string) {
	t.Helper()
	code, body, err := fetch(t.Context(), r.url+"/readyz")
	var said struct {
		Status string `json:"status"`
	}
	if err := errors.Join(err, json.Unmarshal([]byte(body), &said)); err != nil {
		t.Fatalf("readiness: %v", err)
	}
	return code, said.Status
}

// socketsTo counts the connections that the replica holds to a port of loopback,
// whatever state they are in.
func (r *replica) socketsTo(t *trial, port int) int {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	inodes := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 9 && strings.HasSuffix(f[2], fmt.Sprintf(":%04X", port)) {
			inodes["socket:["+f[9]+"]"] = true
		}
	}
	descriptors := fmt.Sprintf("/proc/%d/fd", r.pid)
	entries, err := os.ReadDir(descriptors)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(descriptors, e.Name())); err == nil && inodes[target] {
			n++
		}
	}
	return n
}
