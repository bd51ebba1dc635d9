package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/sdk/admin"
)

// managed is a whole service with its first admin.
type managed struct {
	*service

	env    map[string]string
	cfg    Config
	log    *lockedBuffer
	token  authz.Secret
	client *admin.Client
}

func startManaged(t *testing.T, change func(map[string]string)) *managed {
	t.Helper()
	m := &managed{env: testEnvironment(t), log: &lockedBuffer{}}
	m.env["KEYSTILE_LOG_LEVEL"] = "debug"
	if change != nil {
		change(m.env)
	}
	var err error
	if m.cfg, err = configFromEnvironment(m.env); err != nil {
		t.Fatal(err)
	}
	if m.service, err = startService(context.WithoutCancel(t.Context()), m.cfg, newLogger(m.cfg, m.log)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if m.service != nil {
			_ = m.close()
		}
	})
	first, err := manage.Bootstrap(t.Context(), m.store, manage.AuditKeys(m.cfg.AuditKeys, m.cfg.Peppers), "test", 90)
	if err != nil {
		t.Fatal(err)
	}
	m.token = first.Secret
	m.client = m.clientFor(t, first.Secret.Reveal())
	return m
}

func (m *managed) clientFor(t *testing.T, token string) *admin.Client {
	t.Helper()
	client, err := admin.New(m.adminURL, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// stop ends the service, so that all it writes is written.
func (m *managed) stop(t *testing.T) {
	t.Helper()
	if err := m.close(); err != nil {
		t.Fatal(err)
	}
	m.service = nil
}

// must returns the value of a call that has to succeed.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Every secret that a full run makes is in one answer, and nowhere else: in no row, key,
// log line, checkpoint, metric, error or audit row.
func TestE2E_ManagementLeavesNoSecretAnywhere(t *testing.T) {
	marks := filepath.Join(t.TempDir(), "checkpoints")
	m := startManaged(t, func(env map[string]string) { env["KEYSTILE_AUDIT_CHECKPOINTS"] = marks })
	ctx := t.Context()
	secrets := map[string]string{"first admin": m.token.Reveal()}
	var said strings.Builder // whatever is answered without a secret in it by right

	org := must(m.client.CreateOrganization(ctx, admin.OrganizationCreate{Name: "Acme", Plan: "standard"})).Organization.ID
	made := must(m.client.CreateKey(ctx, org, admin.KeyCreate{Name: "=cmd()", Environment: "live", Scopes: []string{"tickets:read"}}))
	secrets["key"] = *made.Secret
	key := made.Key.ID
	rotated := must(m.client.RotateKey(ctx, key, admin.KeyRotate{GraceSeconds: 3600}))
	secrets["rotated key"] = *rotated.Secret
	compromised := admin.KeyRotateReason("compromised")
	secrets["key after a leak"] = *must(m.client.RotateKey(ctx, key, admin.KeyRotate{Reason: &compromised})).Secret
	caller := must(m.client.CreateCaller(ctx, admin.CallerCreate{Name: "tickets", Environments: []admin.Environment{"live"}}))
	secrets["caller"] = *caller.Secret
	secrets["rotated caller"] = *must(m.client.RotateCaller(ctx, caller.Caller.ID, admin.CallerRotate{GraceSeconds: 60})).Secret
	owner := must(m.client.CreateAdmin(ctx, admin.AdminCreate{Name: "Ada", Role: "owner", OrganizationID: &org, ExpiresInDays: 30}))
	secrets["owner"] = *owner.Secret
	secrets["rotated owner"] = *must(m.clientFor(t, *owner.Secret).RotateAdmin(ctx, owner.Admin.ID, admin.AdminRotate{ExpiresInDays: 30})).Secret

	foreign := "old_" + strings.Repeat("0f", 16)
	secrets["imported"] = foreign
	row, _ := json.Marshal(map[string]any{
		"name": "imported", "environment": "live", "scopes": []string{"tickets:read"},
		"sha256": fmt.Sprintf("%x", authz.NewSecret(foreign).Hash()),
	})
	format := admin.ImportKeysParams{FormatPrefix: "old_", FormatLength: 32, FormatAlphabet: "hex"}
	if out := must(m.client.ImportKeys(ctx, org, format, row)); out.Imported != 1 {
		t.Fatalf("%+v", out)
	}
	if err := m.store.Synchronize(ctx); err != nil {
		t.Fatal(err)
	}
	token := authz.NewSecret(secrets["rotated caller"])
	if a, _ := postCheck(t, testClient(), m.url, token, foreign); !a.Allow {
		t.Errorf("the imported key is not allowed: %+v", a)
	}
	if a, _ := postCheck(t, testClient(), m.url, token, secrets["key after a leak"]); !a.Allow {
		t.Errorf("the new secret is not allowed: %+v", a)
	}
	for _, ended := range []string{"key", "rotated key"} {
		if a, _ := postCheck(t, testClient(), m.url, token, secrets[ended]); a.Allow {
			t.Errorf("%s is allowed after the rotation", ended)
		}
	}

	// Secrets where none belongs.
	for _, misuse := range []struct{ path, token, body string }{
		{"/v1/organizations", secrets["key"], ""},
		{"/v1/organizations", secrets["caller"], ""},
		{"/v1/keys/" + secrets["key"], m.token.Reveal(), ""},
		{"/v1/keys/" + key + "?" + secrets["key"] + "=1", m.token.Reveal(), ""},
		{"/v1/organizations/" + org + "/keys", m.token.Reveal(), `{"name":"` + secrets["key"] + "\x01" + `"}`},
		{"/v1/organizations/" + org + "/keys", m.token.Reveal(), `{"` + secrets["key"] + `":1}`},
		{"/v1/organizations/" + org + "/keys", m.token.Reveal(), `{"name":1,"environment":"` + secrets["key"] + `","scopes":["` + secrets["key"] + `"]}`},
	} {
		status, body := m.ask(t, misuse.path, misuse.token, misuse.body)
		if status < 400 || status >= 500 {
			t.Errorf("%s: %d %s", misuse.path, status, body)
		}
		said.WriteString(body)
	}
	for _, path := range []string{
		"/v1/keys/" + key, "/v1/organizations/" + org + "/keys", "/v1/callers", "/v1/admins",
		"/v1/audit-log", "/v1/organizations/" + org + "/audit-log", "/v1/replicas",
	} {
		status, body := m.ask(t, path, m.token.Reveal(), "")
		if status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
		said.WriteString(body)
	}
	must(m.client.RevokeKey(ctx, key))
	must(m.client.DeleteCaller(ctx, caller.Caller.ID))
	must(m.client.DeleteOrganization(ctx, org))
	_, metrics := get(t, testClient(), m.opsURL+"/metrics")
	m.stop(t)
	written, err := os.ReadFile(marks)
	if err != nil || !bytes.Contains(written, []byte("keystile_checkpoint")) {
		t.Fatalf("no checkpoints: %v", err)
	}
	everything := strings.Join([]string{
		m.log.String(), metrics, said.String(), string(written), dumpPostgres(t, m.env["KEYSTILE_DATABASE_URL"]), dumpRedis(t),
	}, "\n")
	for _, sign := range []string{"keystile_decisions_total", "keys.rotate", "audit checkpoint", made.Key.ID, "…"} {
		if !strings.Contains(everything, sign) {
			t.Fatalf("%q is nowhere: this test looks at nothing", sign)
		}
	}
	for name, secret := range secrets {
		hash := fmt.Sprintf("%x", authz.NewSecret(secret).Hash())
		if strings.Contains(everything, secret) || strings.Contains(everything, secret[9:29]) || strings.Contains(everything, hash) {
			t.Errorf("the secret or hash of the %s is somewhere", name)
		}
	}
}

// ask sends a GET, or a POST with a body.
func (m *managed) ask(t *testing.T, path, token, body string) (int, string) {
	t.Helper()
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(t.Context(), method, m.adminURL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	r, err := testClient().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	var out bytes.Buffer
	if _, err := out.ReadFrom(r.Body); err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, out.String()
}

// A receipt that names every replica is true: none of them allows the key any more.
func TestE2E_AcknowledgedRevocationIsDeniedOnEveryReplica(t *testing.T) {
	m := startManaged(t, nil)
	second, err := configFromEnvironment(m.env)
	if err != nil {
		t.Fatal(err)
	}
	other, err := startService(t.Context(), second, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.close() }()
	ctx := t.Context()
	org := must(m.client.CreateOrganization(ctx, admin.OrganizationCreate{Name: "Acme", Plan: "standard"})).Organization.ID
	token := authz.NewSecret(*must(m.client.CreateCaller(ctx, admin.CallerCreate{
		Name: "tickets", Environments: []admin.Environment{"live"},
	})).Secret)
	if err := errors.Join(m.store.Synchronize(ctx), other.store.Synchronize(ctx)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		made := must(m.client.CreateKey(ctx, org, admin.KeyCreate{Name: "k", Environment: "live", Scopes: []string{"tickets:read"}}))
		for _, url := range []string{m.url, other.url} {
			if a, _ := postCheck(t, testClient(), url, token, *made.Secret); !a.Allow {
				t.Fatalf("a new key: %+v", a)
			}
		}
		out := must(m.client.RevokeKey(ctx, made.Key.ID))
		if e := out.Effective; e == nil || e.Replicas != 2 || e.Acknowledged != 2 || len(e.Silent) != 0 {
			t.Fatalf("%+v", out.Effective)
		}
		for _, url := range []string{m.url, other.url} {
			if a, _ := postCheck(t, testClient(), url, token, *made.Secret); a.Allow || a.Code != "key_revoked" {
				t.Fatalf("after the receipt: %+v", a)
			}
		}
	}
	if replicas := must(m.client.Replicas(ctx)); len(replicas.Items) != 2 {
		t.Errorf("%+v", replicas)
	}
	if err := other.close(); err != nil {
		t.Fatal(err)
	}
	if replicas := must(m.client.Replicas(ctx)); len(replicas.Items) != 1 {
		t.Errorf("a replica that has left is still there: %+v", replicas)
	}
	other.served <- nil // for the deferred close
}

func TestE2E_ManagementHasAListenerOfItsOwn(t *testing.T) {
	m := startManaged(t, func(env map[string]string) { env["KEYSTILE_ADMIN_LISTEN"] = "127.0.0.1:0" })
	if m.adminURL == m.url {
		t.Fatal("it is the same listener")
	}
	must(m.client.Catalogue(t.Context()))
	if status, body := get(t, testClient(), m.url+"/v1/scopes"); status != http.StatusNotFound {
		t.Errorf("management on the check API: %d %s", status, body)
	}
	if status, body := get(t, testClient(), m.adminURL+"/healthz"); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, m.adminURL+"/v1/check", strings.NewReader("{}"))
	r, err := testClient().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusNotFound {
		t.Errorf("checks on the management API: %d", r.StatusCode)
	}
}

// runProgram runs the program in this process with only these variables of its own.
func runProgram(t *testing.T, env map[string]string, args ...string) (code int, out, talk string) {
	t.Helper()
	for name, value := range env {
		t.Setenv(name, value)
	}
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), args, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestBootstrap_PrintsTheFirstTokenOnceInADatabasesLife(t *testing.T) {
	env := testEnvironment(t)
	code, out, talk := runProgram(t, env, "admins", "bootstrap", "--name", "Ada")
	if code != 0 || !authz.AdminTokens().Accepts(strings.TrimSpace(out)) || strings.Contains(talk, strings.TrimSpace(out)) {
		t.Fatalf("%d %q %q", code, out, talk)
	}
	code, out, talk = runProgram(t, env, "admins", "bootstrap")
	if code != exitUnexpected || out != "" || !strings.Contains(talk, "has had its first admin already") {
		t.Errorf("again: %d %q %q", code, out, talk)
	}
	if code, _, talk := runProgram(t, env, "admins", "bootstrap", "--expires-in-days", "91"); code != exitUsage {
		t.Errorf("91 days: %d %q", code, talk)
	}
}

func TestPeppersStatus_TellsWhatCanBeRemoved(t *testing.T) {
	m := startManaged(t, nil)
	must(m.client.CreateCaller(t.Context(), admin.CallerCreate{Name: "tickets", Environments: []admin.Environment{"live"}}))
	old := m.env["KEYSTILE_PEPPERS"]
	code, out, talk := runProgram(t, m.env, "peppers", "status", "-o", "json")
	if code != 0 || !strings.Contains(out, `"state": "new_secrets"`) {
		t.Errorf("%d %s %s", code, out, talk)
	}
	m.env["KEYSTILE_PEPPERS"] = authz.NewPepper("new") + "," + old
	code, out, talk = runProgram(t, m.env, "peppers", "status")
	if code != 0 || !strings.Contains(out, "in_use") {
		t.Errorf("%d %s %s", code, out, talk)
	}
	m.env["KEYSTILE_PEPPERS"] = authz.NewPepper("new")
	code, out, talk = runProgram(t, m.env, "peppers", "status")
	if code != exitInvalid || !strings.Contains(out, "missing") || !strings.Contains(talk, "missing: test") {
		t.Errorf("%d %s %s", code, out, talk)
	}
}

// A pepper of which audit keys were made goes only when exactly those are kept.
func TestPeppersStatus_AuditKeysAreKeptWhenTheyAreTheSame(t *testing.T) {
	peppers, err := authz.ParsePeppers(authz.NewPepper("old") + "," + authz.NewPepper("new"))
	if err != nil {
		t.Fatal(err)
	}
	parse := func(text string) authz.Peppers { return must(authz.ParsePeppers(text)) }
	printed := manage.AuditKeys(authz.Peppers{}, peppers).Reveal()
	old, _, _ := strings.Cut(printed, ",")
	for name, tt := range map[string]struct {
		keys authz.Peppers
		want bool
	}{
		"none": {authz.Peppers{}, false}, "what was printed": {parse(printed), true}, "the old one": {parse(old), true},
		"another one": {parse(authz.NewPepper("other")), false}, "the same id, other bytes": {parse(authz.NewPepper("old")), false},
	} {
		if got := kept(Config{Peppers: peppers, AuditKeys: tt.keys}, "old"); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
