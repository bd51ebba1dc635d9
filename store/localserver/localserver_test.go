package localserver

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"
)

const (
	// asHolder makes the test binary start servers in this directory and wait to be killed.
	asHolder     = "KEYSTILE_TEST_HOLD_SERVERS"
	testPassword = `te"st\'s p%/@:w`
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(asHolder); dir != "" {
		if err := hold(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// held are the servers of another process.
type held struct{ Postgres, Redis int }

func hold(dir string) error {
	ctx := context.Background()
	p, err := StartPostgres(ctx, PostgresOptions{Dir: dir + "/postgres", Password: password(), FsyncOff: true})
	if err != nil {
		return err
	}
	r, err := StartRedis(ctx, RedisOptions{Dir: dir + "/redis", Password: password()})
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(held{p.PID(), r.PID()}); err != nil {
		return err
	}
	never := make(chan os.Signal, 1)
	signal.Notify(never, syscall.SIGTERM)
	<-never
	return errors.Join(r.Stop(ctx), p.Stop(ctx))
}

// password has every kind of character that some place might misread, but a space.
func password() string { return strings.ReplaceAll(testPassword, " ", "") }

// tempDir is a directory that other users can pass through: t.TempDir is closed.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ks-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func startPostgres(t *testing.T, o PostgresOptions) *Postgres {
	t.Helper()
	o.Password, o.FsyncOff = password(), true
	p, err := StartPostgres(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, p) })
	return p
}

func startTestRedis(t *testing.T, o RedisOptions) *Redis {
	t.Helper()
	o.Password = password()
	r, err := StartRedis(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, r) })
	return r
}

func stop(t *testing.T, s interface{ Stop(context.Context) error }) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func query(t *testing.T, at, statement string) (string, error) {
	t.Helper()
	connector, err := pq.NewConnector(at)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer func() { _ = db.Close() }()
	var answer string
	err = db.QueryRowContext(t.Context(), statement).Scan(&answer)
	return answer, err
}

func mustQuery(t *testing.T, at, statement string) string {
	t.Helper()
	answer, err := query(t, at, statement)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return answer
}

func await(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("waited 20 s for %s", what)
	}
}

func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		gone, err := awaitGone(ctx, pid)
		if err != nil {
			t.Fatalf("process %d still runs: %v", pid, err)
		}
		if gone {
			return
		}
	}
}

// holdElsewhere starts servers in another process and returns it and them.
func holdElsewhere(t *testing.T, dir string) (*exec.Cmd, held) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), asHolder+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	var servers held
	if err := json.NewDecoder(out).Decode(&servers); err != nil {
		t.Fatalf("the other process did not start its servers: %v", err)
	}
	return cmd, servers
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
}

func TestPostgres_TakesThePasswordOnBothWaysAndNoOther(t *testing.T) {
	p := startPostgres(t, PostgresOptions{Dir: filepath.Join(tempDir(t), "postgres")})
	for name, at := range map[string]string{"TCP": p.URL("postgres"), "socket": p.SocketURL("postgres")} {
		if got := mustQuery(t, at, "SELECT current_user"); got != Superuser {
			t.Errorf("over %s we are %s", name, got)
		}
		wrong := strings.Replace(at, p.login.String(), Superuser+":wrong", 1)
		if _, err := query(t, wrong, "SELECT current_user"); err == nil {
			t.Errorf("over %s it takes another password", name)
		}
	}
	if text := fmt.Sprintf("%v %+v %#v %s", p, p, p, p); strings.Contains(text, password()) {
		t.Error("it prints its password")
	}
}
