package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/open-policy-agent/opa/v1/plugins/logs"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
)

// The decision log as an operator turns it on: OPA reads every line, and each decision of a
// service that ends in peace is there.
func TestE2E_DecisionLogIsWrittenAndFlushed(t *testing.T) {
	env := testEnvironment(t)
	path := filepath.Join(t.TempDir(), "decisions.log")
	env["KEYSTILE_DECISION_LOG"] = "file:" + path
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	s, err := startService(context.WithoutCancel(t.Context()), cfg, newLogger(cfg, io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	tenant := addTenant(t, s.store, cfg.KeyFormat)
	if err := s.announce(io.Discard, "json"); err != nil {
		t.Fatal(err)
	}
	ids := make(map[string]bool)
	for _, key := range []string{tenant.key.Reveal(), "", cfg.KeyFormat.Generate(authz.EnvironmentLive).Reveal(), "malformed", tenant.key.Reveal()} {
		a, _ := postCheck(t, testClient(), s.url, tenant.token, key)
		ids[a.DecisionID] = true
	}
	_, metrics := get(t, testClient(), s.opsURL+"/metrics")
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range bytes.Lines(raw) {
		var e logs.EventV1
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&e); err != nil || !ids[e.DecisionID] || e.Input == nil || e.Result == nil || e.Labels["app"] != "keystile" {
			t.Errorf("%v: %s", err, line)
		}
		lines++
	}
	if lines != len(ids) || lines != 5 {
		t.Errorf("%d lines of %d decisions", lines, len(ids))
	}
	for _, name := range []string{"decision_log_written_total", "decision_log_dropped_total", "decisions_kept_total", "decisions_kept_dropped_total"} {
		if !strings.Contains(metrics, "\nkeystile_"+name+" ") {
			t.Errorf("there is no metric %s", name)
		}
	}
}

// A collector that takes nothing slows no check, and does not keep the service from ending.
func TestE2E_ADecisionLogThatIsStuckSlowsNoCheck(t *testing.T) {
	stuck := make(chan struct{})
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stuck }))
	defer collector.Close()
	defer close(stuck)
	env := testEnvironment(t)
	env["KEYSTILE_DECISION_LOG"] = collector.URL
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	s, err := startService(context.WithoutCancel(t.Context()), cfg, newLogger(cfg, io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	tenant := addTenant(t, s.store, cfg.KeyFormat)
	if err := s.announce(io.Discard, "text"); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if a, _ := postCheck(t, testClient(), s.url, tenant.token, tenant.key.Reveal()); !a.Allow {
			t.Fatalf("%+v", a)
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if h := s.decisions.Health(); h.Dropped != 50 || h.Written != 0 {
		t.Errorf("%+v", h)
	}
}

// On standard output decisions come behind the line that says "ready", and a reader that has
// gone takes nothing with it.
func TestE2E_DecisionsOnStandardOutputOutliveTheirReader(t *testing.T) {
	env := testEnvironment(t)
	cfg, err := configFromEnvironment(env)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.Options{URL: cfg.DatabaseURL, Peppers: cfg.Peppers})
	if err != nil {
		t.Fatal(err)
	}
	tenant := addTenant(t, s, cfg.KeyFormat)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := startProgram(t, func(cmd *exec.Cmd) {
		cmd.Stdout = writer
		for name, value := range env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		cmd.Env = append(cmd.Env, "KEYSTILE_DECISION_LOG=stdout")
	}, "serve", "-o", "json")
	_ = writer.Close()
	lines := bufio.NewReader(reader)
	var ready struct{ URL string }
	if err := json.NewDecoder(strings.NewReader(line(t, lines))).Decode(&ready); err != nil || ready.URL == "" {
		t.Fatalf("it is not ready: %v", err)
	}
	a, _ := postCheck(t, testClient(), ready.URL, tenant.token, tenant.key.Reveal())
	if logged := line(t, lines); !strings.Contains(logged, a.DecisionID) {
		t.Errorf("not the decision: %s", logged)
	}
	_ = reader.Close()
	for range 20 {
		if a, _ := postCheck(t, testClient(), ready.URL, tenant.token, tenant.key.Reveal()); !a.Allow {
			t.Errorf("%+v", a)
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
	if code := p.cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(p.stderr.String(), "the decision log cannot be written") {
		t.Errorf("exit status %d: %s", code, p.stderr)
	}
}

func line(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	text, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return text
}
