package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store/localserver"
	"github.com/supportstation/keystile/store/storetest"
)

// asProgram makes the test binary behave as keystile itself, for tests that need
// a process of its own.
const asProgram = "KEYSTILE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "policy" && os.Args[2] == "gate" {
		execPlain() // as newGate starts it
		main()
		return
	}
	if os.Getenv(asProgram) != "" {
		_ = os.Unsetenv(asProgram)
		main()
		return
	}
	if side := os.Getenv(asBenchServer); side != "" {
		if err := benchServe(side); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := buildPlain(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := storetest.Main(m)
	if err := testRedis.stop(); err != nil {
		code = max(code, 1)
	}
	os.Exit(code)
}

// plain is the program without the race detector, which makes what starts and compiles
// policies ten times as slow; what serves in a test has it still. Without the detector it
// is this test binary.
func plain() string {
	self, err := os.Executable()
	if err != nil || !raceEnabled {
		return self
	}
	return filepath.Join(filepath.Dir(self), "keystile")
}

func buildPlain() error {
	if !raceEnabled {
		return nil
	}
	said, err := exec.CommandContext(context.Background(), "go", "build", "-buildvcs=false", "-o", plain(), ".").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build keystile: %w\n%s", err, said)
	}
	return nil
}

// execPlain becomes the plain program, where there is one.
func execPlain() {
	if raceEnabled {
		_ = syscall.Exec(plain(), append([]string{plain()}, os.Args[1:]...), os.Environ())
	}
}

// sharedRedis is the one Redis of this package's tests.
type sharedRedis struct {
	once   sync.Once
	server *localserver.Redis
	dir    string
	err    error
}

var testRedis sharedRedis

func (r *sharedRedis) url(t testing.TB) string {
	t.Helper()
	r.once.Do(func() {
		if r.dir, r.err = os.MkdirTemp("", "keystile-test-"); r.err == nil {
			r.server, r.err = localserver.StartRedis(context.Background(), localserver.RedisOptions{Dir: r.dir, Password: "tests"})
		}
	})
	if r.err != nil {
		t.Fatalf("start a Redis for tests: %v", r.err)
	}
	return r.server.URL()
}

func (r *sharedRedis) stop() error {
	if r.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := r.server.Stop(ctx)
	_ = os.RemoveAll(r.dir)
	return err
}

// testService is a whole service on a schema of its own.
type testService struct {
	service *service
	format  authz.KeyFormat
	client  *http.Client
}

// testEnvironment is the configuration of a service on a new, migrated schema.
func testEnvironment(t testing.TB) map[string]string {
	t.Helper()
	return map[string]string{
		"KEYSTILE_DATABASE_URL": storetest.Migrated(t),
		"KEYSTILE_REDIS_URL":    testRedis.url(t),
		"KEYSTILE_PEPPERS":      authz.NewPepper("test"),
		"KEYSTILE_LISTEN":       "127.0.0.1:0",
		"KEYSTILE_OPS_LISTEN":   "127.0.0.1:0",
		"KEYSTILE_STATE_DIR":    t.TempDir(),
	}
}

// testClient returns a client that follows nothing and keeps no connection.
func testClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       10 * time.Second,
	}
}

func startTestService(t testing.TB) *testService {
	t.Helper()
	cfg, err := configFromEnvironment(testEnvironment(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := startService(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	client := testClient()
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Errorf("the service ended with %v", err)
		}
	})
	return &testService{s, cfg.KeyFormat, client}
}
