package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/localserver"
	"github.com/supportstation/keystile/store/storetest"
)

func TestDoctor_TellsWhatIsWrongAndWhatToDo(t *testing.T) {
	env := testEnvironment(t)
	secret := strings.TrimPrefix(env["KEYSTILE_PEPPERS"], "test:")
	examined := func(t *testing.T, want int, says ...string) {
		t.Helper()
		code, out, talk := runProgram(t, env, "doctor")
		if code != want || strings.Contains(out+talk, secret) {
			t.Errorf("exit status %d, want %d: %s%s", code, want, out, talk)
		}
		for _, text := range says {
			if !strings.Contains(out, text) {
				t.Errorf("it does not say %q:\n%s", text, out)
			}
		}
	}
	examined(t, 0, "make the first with keystile admins bootstrap", "postgres  ok", "redis     ok", "policies  ok", "peppers   ok")
	if code, _, talk := runProgram(t, env, "admins", "bootstrap", "--expires-in-days", "7"); code != 0 {
		t.Fatal(talk)
	}
	examined(t, 0, "warning", "rotate it in time")
	storetest.Exec(t, env["KEYSTILE_DATABASE_URL"], `UPDATE admin_tokens SET revoked_at = now()`)
	examined(t, exitInvalid, "nobody can manage it any more")
	for name, broken := range map[string]struct {
		variable, value string
		code            int
		says            string
	}{
		"another pepper": {"KEYSTILE_PEPPERS", authz.NewPepper("other"), exitInvalid, "KEYSTILE_PEPPERS does not fit"},
		"no Redis":       {"KEYSTILE_REDIS_URL", "redis://:tests@127.0.0.1:1", exitDependency, "stood in for (local)"},
		"no Postgres":    {"KEYSTILE_DATABASE_URL", "postgres://x:tests@127.0.0.1:1/x", exitDependency, "check KEYSTILE_DATABASE_URL (postgres://x:xxxxx@"},
		"bad policies":   {"KEYSTILE_POLICY_DIR", t.TempDir(), exitInvalid, "policies"},
		"no schema":      {"KEYSTILE_DATABASE_URL", storetest.Schema(t), exitInvalid, "run `keystile migrate`"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "another pepper" {
				addSecretInUse(t, env)
			}
			was, set := env[broken.variable]
			env[broken.variable] = broken.value
			defer func() {
				if env[broken.variable] = was; !set {
					delete(env, broken.variable)
				}
			}()
			examined(t, broken.code, broken.says)
		})
	}
}

func addSecretInUse(t *testing.T, env map[string]string) {
	t.Helper()
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	addTenant(t, storetest.Open(t, env["KEYSTILE_DATABASE_URL"], cfg.Peppers), cfg.KeyFormat)
}

// What the exported audit log has and a restored database lacks is listed.
func TestDoctor_ListsTheChangesThatARestoredDatabaseLacks(t *testing.T) {
	env := testEnvironment(t)
	at := env["KEYSTILE_DATABASE_URL"]
	if code, _, talk := runProgram(t, env, "admins", "bootstrap"); code != 0 {
		t.Fatal(talk)
	}
	db, err := sqlx.ConnectContext(t.Context(), "postgres", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var row struct {
		ID     authz.EventID `db:"id"`
		Action string        `db:"action"`
		Target string        `db:"target"`
	}
	if err := db.GetContext(t.Context(), &row, `SELECT id, action, target FROM audit_log`); err != nil {
		t.Fatal(err)
	}
	export := filepath.Join(t.TempDir(), "export.jsonl")
	line := fmt.Sprintf(`{"id":%q,"at":"2026-11-24T12:00:00Z","action":%q,"target":%q,"sequence":1,"revision":2}`+"\n", row.ID, row.Action, row.Target)
	if err := os.WriteFile(export, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, talk := runProgram(t, env, "doctor", "--audit-log", export); code != 0 || !strings.Contains(out, "has all 1 exported") {
		t.Errorf("%d %s%s", code, out, talk)
	}
	storetest.Exec(t, at, `DELETE FROM audit_log`)
	code, out, talk := runProgram(t, env, "doctor", "--audit-log", export, "-o", "json")
	var said examination
	if err := json.Unmarshal([]byte(out), &said); err != nil || code != exitFindings || len(said.Missing) != 1 || said.Missing[0].Target != row.Target {
		t.Errorf("%d %s%s: %v", code, out, talk, err)
	}
	// What is missing is worse than a Redis that does not answer.
	redis := env["KEYSTILE_REDIS_URL"]
	env["KEYSTILE_REDIS_URL"] = "redis://:tests@127.0.0.1:1"
	if code, out, talk := runProgram(t, env, "doctor", "--audit-log", export); code != exitFindings {
		t.Errorf("%d %s%s", code, out, talk)
	}
	env["KEYSTILE_REDIS_URL"] = redis
	for text, says := range map[string]string{
		"{}\n": "export.jsonl:1", line + `{"id":"x","action":"key.revoke"}` + "\n": "export.jsonl:2", "": "is empty",
	} {
		if err := os.WriteFile(export, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, talk := runProgram(t, env, "doctor", "--audit-log", export); code != exitUsage || !strings.Contains(talk, says) {
			t.Errorf("%q: %d %s", text, code, talk)
		}
	}
}

// A service that starts before its servers says so, decides nothing, and recovers.
func TestE2E_StartsBeforePostgresAndRedis(t *testing.T) {
	dir := devDir(t)
	options := localserver.PostgresOptions{Dir: dir + "/postgres", Password: "tests", FsyncOff: true}
	postgres, err := localserver.StartPostgres(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	redis, err := localserver.StartRedis(t.Context(), localserver.RedisOptions{Dir: dir + "/redis", Password: "tests"})
	if err != nil {
		t.Fatal(err)
	}
	env := testEnvironment(t)
	env["KEYSTILE_DATABASE_URL"], env["KEYSTILE_REDIS_URL"] = postgres.URL("postgres"), redis.URL()
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := store.Migrate(t.Context(), cfg.DatabaseURL); err != nil {
		t.Fatal(err)
	}
	seeded := storetest.Open(t, env["KEYSTILE_DATABASE_URL"], cfg.Peppers)
	tenant := addTenant(t, seeded, cfg.KeyFormat)
	if err := seeded.Close(); err != nil {
		t.Fatal(err)
	}
	for _, stop := range []func(context.Context) error{postgres.Stop, redis.Stop} {
		if err := stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	log := &lockedBuffer{}
	s, err := startService(context.WithoutCancel(t.Context()), cfg, newLogger(cfg, log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	if code, _ := get(t, testClient(), s.url+"/healthz"); code != 200 {
		t.Errorf("healthz is %d", code)
	}
	if code, body := get(t, testClient(), s.url+"/readyz"); code != 503 {
		t.Errorf("readyz is %d %s", code, body)
	}
	if a, r := postCheck(t, testClient(), s.url, tenant.token, tenant.key.Reveal()); a.Allow || r.StatusCode != 503 {
		t.Errorf("a check: %d %+v", r.StatusCode, a)
	}
	if !strings.Contains(log.String(), "Postgres does not answer") {
		t.Errorf("it does not say so: %s", log.String())
	}
	options.Port = postgres.Port()
	if postgres, err = localserver.StartPostgres(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = postgres.Stop(context.Background()) })
	if redis, err = localserver.StartRedis(t.Context(), localserver.RedisOptions{Dir: dir + "/redis", Password: "tests", Port: redis.Port()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = redis.Stop(context.Background()) })
	deadline := time.Now().Add(programLimit)
	for {
		a, _ := postCheck(t, testClient(), s.url, tenant.token, tenant.key.Reveal())
		if a.Allow && len(a.Degraded) == 0 && a.RateLimit.Mode == "exact" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not recover: %+v\n%s", a, log.String())
		}
		<-time.After(20 * time.Millisecond)
	}
}
