package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/jmoiron/sqlx"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/keystiletest"
)

const token = "ksc_for_tests_only"

// patience bounds the wait for what should come at once.
const patience = 20 * time.Second

const testSchema = `CREATE TABLE IF NOT EXISTS things (organization text NOT NULL, environment text NOT NULL)`

const testSamples = `INSERT INTO things (organization, environment) SELECT $1, $2 FROM generate_series(1, 3)`

func testApp() App {
	return App{
		Name: "things", DefaultListen: "127.0.0.1:0", Schema: testSchema,
		New: func(db *sqlx.DB, checker keystile.Checker, log *slog.Logger) (http.Handler, error) {
			engine, err := NewEngine(checker, NewSamples(db, "things", testSamples), log)
			if err != nil {
				return nil, err
			}
			Read(engine, "/api/v1/things", func(c *gin.Context) { c.JSON(http.StatusOK, TenantFrom(c)) })
			Read(engine, "/api/v1/panic", func(*gin.Context) { panic("on purpose") })
			Read(engine, "/api/v1/broken", func(c *gin.Context) { Broken(c, errors.New("disk on fire")) })
			return engine, nil
		},
	}
}

func startKeystile(t *testing.T) (*keystiletest.Service, string) {
	t.Helper()
	service := keystiletest.New(token)
	server := httptest.NewServer(service)
	t.Cleanup(server.Close)
	return service, server.URL
}

// startApp runs app and returns its URL and its log, which is complete once
// stop has returned.
func startApp(t *testing.T, app App, config Config) (url string, log *bytes.Buffer, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	log = &bytes.Buffer{}
	ended := make(chan error, 1)
	go func() {
		err := Run(ctx, app, config, out, log)
		_ = out.CloseWithError(errors.Join(io.EOF, err))
		ended <- err
	}()
	var line struct {
		URL string `json:"url"`
	}
	if err := json.NewDecoder(in).Decode(&line); err != nil {
		cancel()
		t.Fatalf("no ready line: %v", err)
	}
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			return errors.New("it does not stop")
		}
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return line.URL, log, stop
}

func call(t *testing.T, url, key string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := (&http.Client{Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestRun_ServesFromReadyLineToEndOfContext(t *testing.T) {
	service, keystileURL := startKeystile(t)
	secret := keystiletest.Secret(keystile.Test)
	service.Grant(secret, "org_acme", keystile.Test, "things:read", "panic:read", "broken:read")
	url, log, stop := startApp(t, testApp(), Config{Listen: "127.0.0.1:0", DatabaseURL: database(t), KeystileURL: keystileURL, Token: token, JSON: true, Verbose: true})
	for path, want := range map[string]int{
		"/api/v1/things?secret=hunter2": 200, "/api/v1/panic": 500, "/api/v1/broken": 503, "/api/v1/things/": 404,
	} {
		if status, body := call(t, url+path, secret); status != want || strings.Contains(body, "purpose") || strings.Contains(body, "fire") {
			t.Errorf("%s: %d %s; want %d without the cause", path, status, body, want)
		}
	}
	if status, _ := call(t, url+"/api/v1/things", ""); status != http.StatusUnauthorized {
		t.Errorf("without a key: %d; want 401", status)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")); err == nil {
		_ = conn.Close()
		t.Error("it still listens")
	}
	for _, want := range []string{`"organization":"org_acme"`, "disk on fire", "on purpose"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, log)
		}
	}
	for _, secret := range []string{secret, token, "hunter2"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds a secret:\n%s", log)
		}
	}
}

func TestRun_PortInUseIsSaidClearly(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	config := Config{Listen: taken.Addr().String(), DatabaseURL: database(t), KeystileURL: "http://127.0.0.1:1", Token: token}
	err = Run(t.Context(), testApp(), config, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), taken.Addr().String()) || !strings.Contains(err.Error(), "LISTEN") {
		t.Errorf("err = %v; want one that names the address and LISTEN", err)
	}
}

func TestOpen_ErrorsHoldNoPassword(t *testing.T) {
	for _, url := range []string{
		"postgres://u:hunter2@127.0.0.1:1/d", "postgres://u:hunter2@127.0.0.1:port/d", "mysql://u:hunter2@h/d", "host=h password=hunter2",
		"postgres://u:hunter2@127.0.0.1:1/d?sslmode=nonsense", "postgres://u:hunter2@h\x7f/d",
	} {
		db, err := Open(t.Context(), url, testSchema)
		if err == nil {
			_ = db.Close()
			t.Errorf("%s is opened", url)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error holds the password: %v", err)
		}
	}
}

func TestOpen_SeveralAtOnceMakeTheTablesOnce(t *testing.T) {
	at := database(t)
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			db, err := Open(t.Context(), at, testSchema)
			if err != nil {
				t.Errorf("Open: %v", err)
				return
			}
			_ = db.Close()
		})
	}
	group.Wait()
}

func TestSamples_AreMadeOnceATenantUnderConcurrentFirstCalls(t *testing.T) {
	at := database(t)
	tenants := []Tenant{{"org_acme", "live"}, {"org_acme", "test"}, {"org_globex", "live"}}
	var group sync.WaitGroup
	var dbs []*sqlx.DB
	// Two processes, each with a memory of its own.
	for range 2 {
		db, err := Open(t.Context(), at, testSchema)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		dbs = append(dbs, db)
		samples := NewSamples(db, "things", testSamples)
		for range 8 {
			for _, tenant := range tenants {
				group.Go(func() {
					if err := samples.Ensure(t.Context(), tenant); err != nil {
						t.Errorf("Ensure: %v", err)
						return
					}
					var n int
					if err := db.Get(&n, `SELECT count(*) FROM things WHERE organization = $1 AND environment = $2`, tenant.Organization, tenant.Environment); err != nil || n != 3 {
						t.Errorf("%v has %d rows, %v; want 3 as soon as Ensure returns", tenant, n, err)
					}
				})
			}
		}
	}
	group.Wait()
	if _, err := dbs[0].Exec(`DELETE FROM things`); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := NewSamples(dbs[0], "things", testSamples).Ensure(t.Context(), tenants[0]); err != nil {
		t.Fatal(err)
	}
	if err := dbs[0].Get(&n, `SELECT count(*) FROM things`); err != nil || n != 0 {
		t.Errorf("deleted samples came back: %d, %v", n, err)
	}
}

func TestNewEngine_WithoutADecisionNobodyIsServed(t *testing.T) {
	db, err := Open(t.Context(), database(t), testSchema)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	handler, err := testApp().New(db, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/things", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d; want 503", w.Code)
	}
}
