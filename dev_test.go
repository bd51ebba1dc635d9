package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store/storetest"
)

// programLimit bounds how long a started program may take for anything.
const programLimit = 60 * time.Second

// program is keystile running in a process of its own.
type program struct {
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr *lockedBuffer
	done   chan struct{}
}

// lockedBuffer is written by a process and read by a test.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// startProgram runs this test binary as keystile. It is killed after the test.
func startProgram(t *testing.T, prepare func(*exec.Cmd), args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(os.Args[0], args...), stderr: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	p.cmd.Stderr = p.stderr
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.stdout = writer, bufio.NewReader(reader)
	if prepare != nil {
		prepare(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		select {
		case <-p.done:
		default:
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			p.wait(t)
		}
		_ = reader.Close()
		if t.Failed() {
			t.Logf("keystile %s said:\n%s", strings.Join(args, " "), p.stderr)
		}
	})
	return p
}

// wait returns the exit code, −1 for the end by a signal.
func (p *program) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(programLimit):
		_ = p.cmd.Process.Kill()
		t.Fatalf("keystile did not end within %v; it said:\n%s", programLimit, p.stderr)
	}
	return p.cmd.ProcessState.ExitCode()
}

// line returns the next line of output.
func (p *program) line(t *testing.T) string {
	t.Helper()
	timeout := time.AfterFunc(programLimit, func() { _ = p.cmd.Process.Kill() })
	defer timeout.Stop()
	text, err := p.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("keystile ended without a line: %v; it said:\n%s", err, p.stderr)
	}
	return text
}

func startDev(t *testing.T, dir string, args ...string) (*program, devInfo) {
	t.Helper()
	args = append([]string{"dev", "--data", dir, "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "-o", "json"}, args...)
	p := startProgram(t, nil, args...)
	var info devInfo
	if err := json.Unmarshal([]byte(p.line(t)), &info); err != nil {
		t.Fatal(err)
	}
	return p, info
}

// devDir is a directory that Postgres' user can reach.
func devDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keystile-dev-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// mayTicket asks whether a key may list tickets, as the tickets app would.
func mayTicket(t *testing.T, info devInfo, key string) bool {
	t.Helper()
	body := fmt.Sprintf(`{"key":%q,"method":"GET","path":"/api/v1/tickets"}`, key)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, info.URL+"/v1/check", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+info.Callers["tickets"])
	response, err := testClient().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var a answer
	if err := json.NewDecoder(response.Body).Decode(&a); err != nil {
		t.Fatal(err)
	}
	return a.Allow
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// gone waits until a process has ended.
func gone(t *testing.T, what string, pid int) {
	t.Helper()
	deadline := time.Now().Add(programLimit)
	for alive(pid) {
		if time.Now().After(deadline) {
			t.Fatalf("%s (%d) still lives", what, pid)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestE2E_DevServesKeepsItsDataAndStopsAllItStarted(t *testing.T) {
	dir := devDir(t)
	p, first := startDev(t, dir)
	raw, err := os.ReadFile(filepath.Join(dir, "dev.json"))
	if err != nil {
		t.Fatal(err)
	}
	var written devInfo
	if err := json.Unmarshal(raw, &written); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, written); diff != "" {
		t.Errorf("dev.json is not what was printed: %s", diff)
	}
	for _, name := range []string{"dev.json", "secrets.json"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	for name, want := range map[string]bool{"acme_live": true, "acme_read": true, "acme_test": true, "globex_live": true} {
		if got := mayTicket(t, first, first.Keys[name]); got != want {
			t.Errorf("%s may list tickets: %v", name, got)
		}
	}
	if first.RedisURL == nil || first.SetupURL != nil || first.PIDs.Keystile != p.cmd.Process.Pid {
		t.Errorf("%+v", first)
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "dev.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dev.json after the end: %v", err)
	}
	if alive(first.PIDs.Postgres) || alive(*first.PIDs.Redis) {
		t.Error("a server lives on")
	}

	_, second := startDev(t, dir)
	if diff := cmp.Diff(first.Keys, second.Keys); diff != "" {
		t.Errorf("keys of a second start: %s", diff)
	}
	if diff := cmp.Diff(first.Organizations, second.Organizations); diff != "" {
		t.Errorf("organizations of a second start: %s", diff)
	}
	if !mayTicket(t, second, first.Keys["acme_live"]) {
		t.Error("a key of the first start is denied")
	}
}

// What of the demonstration somebody deletes must not keep it from starting.
func TestE2E_DevStartsWithDeletedOrganizationsAndTellsThem(t *testing.T) {
	dir := devDir(t)
	stop := func(p *program) {
		t.Helper()
		if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if code := p.wait(t); code != 0 {
			t.Fatalf("exit code %d: %s", code, p.stderr)
		}
	}
	remove := func(info devInfo, organization string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, info.URL+"/v1/organizations/"+info.Organizations[organization], nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+info.AdminToken)
		response, err := testClient().Do(r)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("delete %s: %v, %v", organization, response, err)
		}
		_ = response.Body.Close()
	}
	p, first := startDev(t, dir)
	remove(first, "acme")
	stop(p)

	p, second := startDev(t, dir)
	raw, err := os.ReadFile(filepath.Join(dir, "dev.json"))
	if err != nil || !strings.Contains(string(raw), `"acme":null`) || !strings.Contains(string(raw), `"acme_live":null`) {
		t.Errorf("dev.json has no null for what was deleted: %v\n%s", err, raw)
	}
	if second.Organizations["globex"] != first.Organizations["globex"] || !mayTicket(t, second, second.Keys["globex_live"]) || mayTicket(t, second, first.Keys["acme_live"]) {
		t.Errorf("after acme was deleted: %v", second.Organizations)
	}
	remove(second, "globex")
	stop(p)

	p = startProgram(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0")
	banner := ""
	for !strings.Contains(banner, "Ctrl-C") {
		banner += p.line(t)
	}
	if !strings.Contains(banner, "acme and globex were deleted") || strings.Contains(banner, first.Keys["acme_live"]) || strings.Contains(banner, "curl") {
		t.Errorf("the banner with nothing left:\n%s", banner)
	}
	stop(p)
}

func TestE2E_DevRecoversFromItsOwnKill(t *testing.T) {
	dir := devDir(t)
	p, first := startDev(t, dir)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
	_, second := startDev(t, dir)
	if !mayTicket(t, second, first.Keys["acme_live"]) {
		t.Error("a key of the first start is denied")
	}
	gone(t, "the first Postgres", first.PIDs.Postgres)
	gone(t, "the first Redis", *first.PIDs.Redis)
}

func TestE2E_DevRefusesWhatItCannotServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	dir := devDir(t)
	_, info := startDev(t, dir)
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"a port in use", []string{"--data", devDir(t), "--listen", l.Addr().String(), "--ops-listen", "127.0.0.1:0"}, 7, l.Addr().String()},
		{"an address that is not loopback", []string{"--data", dir, "--listen", "0.0.0.0:8080"}, 2, "loopback"},
		{"a directory in use", []string{"--data", dir}, 7, strconv.Itoa(info.PIDs.Keystile)},
		{"an output that is none", []string{"-o", "xml"}, 2, "text, json"},
		{"a directory that cannot be made", []string{"--data", "/proc/nowhere"}, 2, "--data"},
	} {
		p := startProgram(t, nil, append([]string{"dev"}, c.args...)...)
		if code := p.wait(t); code != c.code || !strings.Contains(p.stderr.String(), c.says) {
			t.Errorf("%s: exit code %d, %s", c.name, code, p.stderr)
		}
	}
}

func TestE2E_DevRunsACommandAndEndsWithIt(t *testing.T) {
	dir := devDir(t)
	script := `echo "$KEYSTILE_URL $KEYSTILE_TOKEN_TICKETS $KEYSTILE_TOKEN_CUSTOMERS $KEYSTILE_ADMIN_TOKEN $EXAMPLES_DATABASE_URL" | wc -w; exit 4`
	p := startProgram(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--", "sh", "-c", script)
	if code := p.wait(t); code != 4 {
		t.Errorf("exit code %d: %s", code, p.stderr)
	}
	out, err := io.ReadAll(p.stdout)
	if err != nil || !strings.Contains(string(out), "5\n") {
		t.Errorf("the command's environment is incomplete: %v\n%s", err, out)
	}
}

// A second replica: serve joins the demonstration with what dev hands out, and not without.
func TestE2E_ServeJoinsADemonstrationOnlyWithWhatDevHandsOut(t *testing.T) {
	_, info := startDev(t, devDir(t))
	with := func(skip string) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			for name, value := range info.Env {
				if name != skip {
					cmd.Env = append(cmd.Env, name+"="+value)
				}
			}
		}
	}
	p := startProgram(t, with(""), "serve", "-o", "json")
	var ready struct {
		URL      string `json:"url"`
		AdminURL string `json:"admin_url"`
		OpsURL   string `json:"ops_url"`
		PID      int    `json:"pid"`
	}
	if err := json.Unmarshal([]byte(p.line(t)), &ready); err != nil || ready.PID != p.cmd.Process.Pid || ready.OpsURL == "" || ready.AdminURL == "" {
		t.Fatalf("%+v, %v", ready, err)
	}
	second := info
	second.URL = ready.URL
	if !mayTicket(t, second, info.Keys["acme_live"]) {
		t.Error("the second replica denies a key of the first")
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM: %s", code, p.stderr)
	}
	refused := startProgram(t, with("KEYSTILE_DEPLOYMENT"), "serve")
	if code := refused.wait(t); code != 3 || !strings.Contains(refused.stderr.String(), "demonstration") {
		t.Errorf("without the variable: exit code %d, %s", code, refused.stderr)
	}
}

// Root hands Postgres to another user; everyone else runs it as themselves.
func TestE2E_DevRunsAsANormalUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // every other test here runs as one already
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.ParseUint(nobody.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(nobody.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	dir := devDir(t)
	// The test binary may lie where only root gets to.
	binary := filepath.Join(dir, "keystile")
	content, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, content, 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if err := errors.Join(os.Mkdir(data, 0o700), os.Chown(data, int(uid), int(gid))); err != nil {
		t.Fatal(err)
	}
	p := startProgram(t, func(cmd *exec.Cmd) {
		cmd.Path, cmd.Dir = binary, dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}, "dev", "--data", data, "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "-o", "json")
	var info devInfo
	if err := json.Unmarshal([]byte(p.line(t)), &info); err != nil {
		t.Fatal(err)
	}
	if !mayTicket(t, info, info.Keys["acme_live"]) {
		t.Error("denied")
	}
}

// A demonstration that is started again after months still has its admin.
func TestDev_AdminIsRenewedBeforeItEnds(t *testing.T) {
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "dev")
	s := storetest.Open(t, at, peppers)
	format, err := authz.NewKeyFormat(authz.DefaultKeyPrefix)
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := loadDevSecrets(t.TempDir(), format)
	if err != nil {
		t.Fatal(err)
	}
	left := func() time.Duration {
		admin, err := s.FindAdmin(t.Context(), authz.NewSecret(secrets.AdminToken).Hash())
		if err != nil || admin == nil {
			t.Fatal(admin, err)
		}
		return min(time.Until(admin.ExpiresAt), time.Until(admin.TokenExpiresAt))
	}
	for range 2 {
		if _, err := seedDemo(t.Context(), s, secrets, format); err != nil {
			t.Fatal(err)
		}
		if left() < demoAdminLifetime-time.Hour {
			t.Errorf("it works for %v", left())
		}
		storetest.Exec(t, at, `UPDATE admins SET expires_at = now() - interval '1 day'`)
		storetest.Exec(t, at, `UPDATE admin_tokens SET expires_at = now() - interval '1 day'`)
	}
}
