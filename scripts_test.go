package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// Every script in testdata/scripts runs the program, as a person would from a shell,
// against a service of its own whose one admin is in KEYSTILE_ADMIN_TOKEN. Beside the
// commands of testscript it has
//
//	exits N keystile ARGS…   runs and wants exactly this exit status
//	capture NAME PATH        sets $NAME from the last output as JSON; PATH is like items.0.id
func TestScripts_CommandsDoWhatTheySay(t *testing.T) {
	bin := programDirectory(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/scripts",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "capture": capture,
		},
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			return setUpScript(t, env, bin)
		},
	})
}

// programDirectory holds this test binary under the program's name.
func programDirectory(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "keystile")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func setUpScript(t *testing.T, env *testscript.Env, bin string) error {
	t.Helper()
	variables := testEnvironment(t)
	cfg, err := configFromEnvironment(variables)
	if err != nil {
		return err
	}
	s, err := startService(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	env.Defer(func() {
		if err := s.close(); err != nil {
			t.Errorf("the service ended with %v", err)
		}
	})
	first, err := manage.Bootstrap(t.Context(), s.store, manage.AuditKeys(authz.Peppers{}, cfg.Peppers), "script", 90)
	if err != nil {
		return err
	}
	env.Setenv(asProgram, "1")
	env.Setenv("PATH", bin+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("KEYSTILE_URL", s.url)
	env.Setenv("KEYSTILE_ADMIN_TOKEN", first.Secret.Reveal())
	return nil
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N COMMAND ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit status %d, want %d", code, want)
	}
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture NAME PATH")
	}
	var at any
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &at); err != nil {
		ts.Fatalf("the last output is not JSON: %v", err)
	}
	for part := range strings.SplitSeq(args[1], ".") {
		switch v := at.(type) {
		case map[string]any:
			at = v[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(v) {
				ts.Fatalf("%s: no such item %s", args[1], part)
			}
			at = v[i]
		default:
			ts.Fatalf("%s: nothing at %s", args[1], part)
		}
	}
	text, ok := at.(string)
	if !ok {
		raw, err := json.Marshal(at)
		ts.Check(err)
		text = string(raw)
	}
	ts.Setenv(args[0], text)
}
