package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/localserver"
	"github.com/supportstation/keystile/store/storetest"
)

// tenant is an organization's key and a caller, with their secrets.
type tenant struct{ key, token authz.Secret }

func addTenant(t *testing.T, s *store.Store, format authz.KeyFormat) tenant {
	t.Helper()
	out := tenant{format.Generate(authz.EnvironmentLive), authz.CallerTokens().Generate()}
	_, err := s.Change(t.Context(), func(ctx context.Context, c *store.Change) error {
		o := &authz.Organization{ID: authz.NewOrganizationID(c.Now()), Name: "Acme", Plan: "standard"}
		k := &authz.Key{
			ID: authz.NewKeyID(c.Now()), Organization: o, Name: "k", Environment: authz.EnvironmentLive,
			Scopes: []authz.Scope{"tickets:read"},
		}
		caller := &authz.Caller{
			ID: authz.NewCallerID(c.Now()), Name: authz.NewCallerID(c.Now()).String(),
			Environments: []authz.Environment{authz.EnvironmentLive}, Permissions: []authz.Permission{authz.PermissionCheck},
		}
		for _, step := range []error{
			c.AddOrganization(ctx, o), c.AddKey(ctx, k, "test"),
			c.AddKeySecret(ctx, k.ID, &authz.KeySecret{ID: authz.NewSecretID(c.Now()), Hint: format.Hint(out.key)}, out.key),
			c.AddCaller(ctx, caller, out.token),
		} {
			if step != nil {
				return step
			}
		}
		return nil
	})
	if err == nil {
		err = s.Synchronize(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// postCheck asks and returns the answer with its headers.
func postCheck(t *testing.T, client *http.Client, url string, token authz.Secret, key string) (answer, *http.Response) {
	t.Helper()
	a, r, err := tryCheck(t.Context(), client, url, token, key)
	if err != nil {
		t.Fatal(err)
	}
	return a, r
}

func tryCheck(ctx context.Context, client *http.Client, url string, token authz.Secret, key string) (a answer, r *http.Response, err error) {
	body := fmt.Sprintf(`{"key":%q,"method":"GET","path":"/api/v1/tickets"}`, key)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/check", strings.NewReader(body))
	if err != nil {
		return a, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+token.Reveal())
	if r, err = client.Do(request); err != nil {
		return a, nil, err
	}
	defer func() { _ = r.Body.Close() }()
	return a, r, json.NewDecoder(r.Body).Decode(&a)
}

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(raw)
}

// Whatever was presented, right or wrong: it is in no row, log, metric or Redis key.
func TestE2E_NoSecretIsKeptOrLogged(t *testing.T) {
	env := testEnvironment(t)
	env["KEYSTILE_LOG_LEVEL"] = "debug"
	decisions := filepath.Join(t.TempDir(), "decisions.log")
	env["KEYSTILE_DECISION_LOG"], env["KEYSTILE_DECISIONS_KEPT_SAMPLE"] = "file:"+decisions, "1"
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	s, err := startService(context.WithoutCancel(t.Context()), cfg, newLogger(cfg, log))
	if err != nil {
		t.Fatal(err)
	}
	tenant := addTenant(t, s.store, cfg.KeyFormat)
	unknown := cfg.KeyFormat.Generate(authz.EnvironmentTest)
	badToken := authz.CallerTokens().Generate()
	malformed := tenant.key.Reveal()[:40] + "malformed"
	if a, _ := postCheck(t, testClient(), s.url, tenant.token, tenant.key.Reveal()); !a.Allow {
		t.Fatalf("not allowed: %+v", a)
	}
	postCheck(t, testClient(), s.url, tenant.token, unknown.Reveal())
	postCheck(t, testClient(), s.url, tenant.token, malformed)
	postCheck(t, testClient(), s.url, badToken, tenant.key.Reveal())
	_, metrics := get(t, testClient(), s.opsURL+"/metrics")
	_, readiness := get(t, testClient(), s.opsURL+"/readyz")
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	logged, err := os.ReadFile(decisions)
	if err != nil || bytes.Count(logged, []byte("\n")) != 3 {
		t.Fatalf("the decision log is not of three decisions: %v: %s", err, logged)
	}
	if n := storetest.Count(t, env["KEYSTILE_DATABASE_URL"], `SELECT count(*) FROM decisions`); n != 3 {
		t.Fatalf("%d decisions are kept, not three", n)
	}
	everything := strings.Join([]string{
		log.String(), metrics, readiness, string(logged), dumpPostgres(t, env["KEYSTILE_DATABASE_URL"]), dumpRedis(t),
	}, "\n")
	if !strings.Contains(everything, "keystile_decisions_total") || !strings.Contains(everything, "…") {
		t.Fatal("the dumps are empty: this test looks at nothing")
	}
	for name, secret := range map[string]string{
		"key": tenant.key.Reveal(), "caller's token": tenant.token.Reveal(), "unknown key": unknown.Reveal(),
		"refused token": badToken.Reveal(), "malformed key": malformed, "pepper": strings.TrimPrefix(env["KEYSTILE_PEPPERS"], "test:"),
		"hash of the key": fmt.Sprintf("%x", tenant.key.Hash()),
	} {
		if strings.Contains(everything, secret) || len(secret) > 20 && strings.Contains(everything, secret[9:29]) {
			t.Errorf("the %s is somewhere", name)
		}
	}
}

func dumpPostgres(t *testing.T, at string) string {
	t.Helper()
	db, err := sqlx.ConnectContext(t.Context(), "postgres", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var tables []string
	if err := db.SelectContext(t.Context(), &tables, `SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()`); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, table := range tables {
		var rows []string
		if err := db.SelectContext(t.Context(), &rows, `SELECT x::text FROM `+table+` x`); err != nil {
			t.Fatal(err)
		}
		out.WriteString(strings.Join(rows, "\n"))
	}
	return out.String()
}

func dumpRedis(t *testing.T) string {
	t.Helper()
	testRedis.url(t)
	out, err := testRedis.server.Do(t.Context(), "EVAL", "return table.concat(redis.call('KEYS', '*'), '\\n')", "0")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestE2E_TLSIsServedAndClientCertificatesAreRequired(t *testing.T) {
	dir := t.TempDir()
	certificate, key := writeCertificate(t, dir, "server")
	env := testEnvironment(t)
	env["KEYSTILE_TLS_CERT"], env["KEYSTILE_TLS_KEY"] = certificate, key
	pool := x509.NewCertPool()
	raw, err := os.ReadFile(certificate)
	if err != nil || !pool.AppendCertsFromPEM(raw) {
		t.Fatal("no certificate", err)
	}
	client := func(c *tls.Config) *http.Client {
		c.RootCAs, c.MinVersion = pool, tls.VersionTLS12
		return &http.Client{Transport: &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}, Timeout: 10 * time.Second}
	}
	start := func() *service {
		cfg, err := configFromEnvironment(env)
		if err != nil {
			t.Fatal(err)
		}
		s, err := startService(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.close() })
		return s
	}
	s := start()
	if !strings.HasPrefix(s.url, "https://") {
		t.Fatalf("served at %s", s.url)
	}
	if code, body := get(t, client(&tls.Config{}), s.url+"/healthz"); code != 200 {
		t.Errorf("%d %s", code, body)
	}
	if code, body := get(t, testClient(), "http"+strings.TrimPrefix(s.url, "https")+"/healthz"); code == 200 {
		t.Errorf("plain HTTP is answered: %s", body)
	}

	clientCertificate, clientKey := writeCertificate(t, dir, "client")
	env["KEYSTILE_TLS_CLIENT_CA"] = clientCertificate
	s = start()
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/healthz", nil)
	if r, err := client(&tls.Config{}).Do(request); err == nil {
		_ = r.Body.Close()
		t.Error("a client without a certificate is answered")
	}
	pair, err := tls.LoadX509KeyPair(clientCertificate, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, client(&tls.Config{Certificates: []tls.Certificate{pair}}), s.url+"/healthz"); code != 200 {
		t.Errorf("a client with its certificate: %d %s", code, body)
	}
}

// writeCertificate makes a self-signed certificate for loopback.
func writeCertificate(t *testing.T, dir, name string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{
		certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: encoded},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

// A client that heeds Connection: close loses no request when a replica drains.
func TestE2E_ADrainLosesNoRequest(t *testing.T) {
	cfg, err := configFromEnvironment(testEnvironment(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := startService(context.WithoutCancel(t.Context()), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	tenant := addTenant(t, s.store, cfg.KeyFormat)
	var group sync.WaitGroup
	var answered [8]int
	warm := make(chan struct{}, len(answered))
	for i := range answered {
		group.Go(func() {
			transport := &http.Transport{MaxConnsPerHost: 1}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
			for {
				_, r, err := tryCheck(t.Context(), client, s.url, tenant.token, tenant.key.Reveal())
				if err != nil {
					t.Errorf("after %d answers: %v", answered[i], err)
					return
				}
				if answered[i]++; answered[i] == 20 {
					warm <- struct{}{}
				}
				if r.Close {
					return // the next one would go to another replica
				}
			}
		})
	}
	for range answered {
		<-warm
	}
	if err := s.close(); err != nil {
		t.Errorf("the drain ended with %v", err)
	}
	group.Wait()
}

// Redis goes and comes back: known keys are decided all the time, and decisions say how.
func TestE2E_RedisMayGoAndComeBack(t *testing.T) {
	redis, err := localserver.StartRedis(t.Context(), localserver.RedisOptions{Dir: devDir(t) + "/redis", Password: "tests"})
	if err != nil {
		t.Fatal(err)
	}
	env := testEnvironment(t)
	env["KEYSTILE_REDIS_URL"] = redis.URL()
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	s, err := startService(context.WithoutCancel(t.Context()), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	tenant := addTenant(t, s.store, cfg.KeyFormat)
	ask := func() answer {
		a, _ := postCheck(t, testClient(), s.url, tenant.token, tenant.key.Reveal())
		return a
	}
	if a := ask(); !a.Allow || a.RateLimit.Mode != "exact" || len(a.Degraded) != 0 {
		t.Fatalf("%+v", a)
	}
	if err := redis.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if a := ask(); !a.Allow || a.RateLimit.Mode != "local" || !slices.Equal(a.Degraded, []string{"limiter"}) {
			t.Fatalf("without Redis: %+v", a)
		}
	}
	if code, body := get(t, testClient(), s.url+"/readyz"); code != 200 || !strings.Contains(body, "degraded") {
		t.Errorf("readiness without Redis: %d %s", code, body)
	}
	again, err := localserver.StartRedis(t.Context(), localserver.RedisOptions{Dir: devDir(t) + "/redis", Password: "tests", Port: redis.Port()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Stop(context.Background()) })
	deadline := time.Now().Add(programLimit)
	for ask().RateLimit.Mode != "exact" {
		if time.Now().After(deadline) {
			t.Fatal("limits are not exact again")
		}
		<-time.After(20 * time.Millisecond)
	}
}

// A Redis that is away at the start, or a wrong address of it, is told before any check meets it.
func TestE2E_ARedisThatIsAwayAtTheStartIsTold(t *testing.T) {
	env := testEnvironment(t)
	env["KEYSTILE_REDIS_URL"] = "redis://:hunter2@127.0.0.1:1"
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	s, err := startService(t.Context(), cfg, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if got := said.String(); !strings.Contains(got, "Redis does not answer") || !strings.Contains(got, "127.0.0.1:1") || strings.Contains(got, "hunter2") {
		t.Errorf("it says %q", got)
	}
}

// Postgres goes: known keys are served and unknown ones cannot be decided; that is
// never remembered as unknown.
func TestE2E_PostgresMayGoAndComeBack(t *testing.T) {
	options := localserver.PostgresOptions{Dir: devDir(t) + "/postgres", Password: "tests", FsyncOff: true}
	postgres, err := localserver.StartPostgres(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	env := testEnvironment(t)
	env["KEYSTILE_DATABASE_URL"] = postgres.URL("postgres")
	if _, _, err := store.Migrate(t.Context(), storetest.Parse(t, env["KEYSTILE_DATABASE_URL"])); err != nil {
		t.Fatal(err)
	}
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	s, err := startService(context.WithoutCancel(t.Context()), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	known, late := addTenant(t, s.store, cfg.KeyFormat), addTenant(t, s.store, cfg.KeyFormat)
	ask := func(key authz.Secret) answer {
		a, _ := postCheck(t, testClient(), s.url, known.token, key.Reveal())
		return a
	}
	if a := ask(known.key); !a.Allow {
		t.Fatalf("%+v", a)
	}
	if err := postgres.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := ask(known.key); !a.Allow {
		t.Errorf("a known key without Postgres: %+v", a)
	}
	if a := ask(late.key); a.Allow || a.Code != "unavailable" || !slices.Contains(a.Degraded, "store") {
		t.Errorf("an unknown key without Postgres: %+v", a)
	}
	options.Port = postgres.Port()
	again, err := localserver.StartPostgres(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Stop(context.Background()) })
	deadline := time.Now().Add(programLimit)
	for !ask(late.key).Allow {
		if time.Now().After(deadline) {
			t.Fatal("the key is not found after Postgres has come back")
		}
		<-time.After(20 * time.Millisecond)
	}
}

// An example directory of policies takes the place of the built-in ones; a broken
// one is refused at the start with file and line.
func TestE2E_APolicyDirectoryIsServedOrRefusedWithItsReason(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("policies")); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(dir, "embed.go"))
	env := testEnvironment(t)
	env["KEYSTILE_POLICY_DIR"] = dir
	start := func() (*service, error) {
		cfg, err := configFromEnvironment(env)
		if err != nil {
			t.Fatal(err)
		}
		return startService(context.WithoutCancel(t.Context()), cfg, slog.New(slog.DiscardHandler))
	}
	catalog := filepath.Join(dir, "keystile", "catalog", "data.yaml")
	raw, err := os.ReadFile(catalog)
	if err != nil {
		t.Fatal(err)
	}
	edited := bytes.Replace(raw, []byte("burst: 100"), []byte("burst: 7"), 1)
	if err := os.WriteFile(catalog, edited, 0o600); err != nil || bytes.Equal(raw, edited) {
		t.Fatal("the catalogue was not edited", err)
	}
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := configFromEnvironment(env)
	tenant := addTenant(t, s.store, cfg.KeyFormat)
	a, _ := postCheck(t, testClient(), s.url, tenant.token, tenant.key.Reveal())
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if !a.Allow || a.Headers["X-RateLimit-Limit"] != "7" {
		t.Errorf("%+v", a)
	}
	if err := os.WriteFile(filepath.Join(dir, "keystile", "check", "broken.rego"), []byte("package keystile.check\n\nallow if {\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The last good policy of the directory was kept.
	s, err = start()
	if err != nil {
		t.Fatalf("a broken policy, where a good one was in force before: %v", err)
	}
	a, _ = postCheck(t, testClient(), s.url, tenant.token, tenant.key.Reveal())
	state := s.policy.keeper.State()
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if !a.Allow || a.Headers["X-RateLimit-Limit"] != "7" || state.Refused == nil || !strings.Contains(state.Refused.Problems[0].File, "broken.rego") {
		t.Errorf("%+v by %+v", a, state)
	}
	env["KEYSTILE_STATE_DIR"] = t.TempDir()
	if s, err := start(); err == nil || exitCode(err) != exitInvalid || !strings.Contains(err.Error(), "broken.rego:") {
		t.Errorf("a broken policy: %v", err)
		if s != nil {
			_ = s.close()
		}
	}
}
