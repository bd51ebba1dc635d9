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
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/sdk/admin"
)

// Every script in testdata/scripts runs the program, as a person would from a shell,
// against a service of its own whose one admin is in KEYSTILE_ADMIN_TOKEN. Beside the
// commands of testscript it has
//
//	exits N keystile ARGS…   runs and wants exactly this exit status
//	eventually N keystile ARGS…   runs again and again until it has this one
//	recorded N               waits until so many decisions are counted and stored
//	shadow begun|ended       waits until a policy is asked beside the one in force, or no more
//	settled                  waits until the policy that was activated last decides
//	readme SECTION           runs the shell blocks of README.md's section as they are printed
//	capture NAME PATH        sets $NAME from the last output as JSON; PATH is like items.0.id
func TestScripts_CommandsDoWhatTheySay(t *testing.T) {
	bin := programDirectory(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/scripts",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "eventually": eventually, "recorded": recorded, "shadow": shadow, "settled": settled, "readme": readme, "capture": capture,
		},
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			return setUpScript(t, env, bin)
		},
	})
}

// programDirectory holds the plain program under its name.
func programDirectory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(plain(), filepath.Join(dir, "keystile")); err != nil {
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
	env.Values[scriptService{}] = s
	if !raceEnabled {
		env.Setenv(asProgram, "1")
	}
	env.Setenv("PATH", bin+string(filepath.ListSeparator)+env.Getenv("PATH"))
	readmeFile, err := filepath.Abs("README.md")
	if err != nil {
		return err
	}
	env.Setenv("README", readmeFile)
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
	if code := exitOf(ts, args[1:]); code != want {
		ts.Fatalf("exit status %d, want %d", code, want)
	}
}

// eventually is for what a service does behind its answers.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually N COMMAND ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(200 * time.Millisecond) {
		code := exitOf(ts, args[1:])
		if code == want {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("exit status %d, want %d", code, want)
		}
	}
}

// recorded is for the requests that a policy can be asked about.
func recorded(ts *testscript.TestScript, neg bool, args []string) {
	s, ok := ts.Value(scriptService{}).(*service)
	if neg || len(args) != 1 || !ok {
		ts.Fatalf("usage: recorded N")
	}
	want, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	for deadline := time.Now().Add(30 * time.Second); s.store.Health().StoredUsage < want; <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("%+v are not %d", s.store.Health(), want)
		}
	}
}

// shadow is for what the service does behind the answer that a policy is asked, or no more.
func shadow(ts *testscript.TestScript, neg bool, args []string) {
	s, ok := ts.Value(scriptService{}).(*service)
	if neg || len(args) != 1 || !ok {
		ts.Fatalf("usage: shadow begun|ended")
	}
	is := func() bool {
		s.shadows.mu.Lock()
		defer s.shadows.mu.Unlock()
		r := s.shadows.running
		if args[0] == "ended" || r == nil {
			return args[0] == "ended" && r == nil
		}
		select {
		case <-r.Begun():
			return true
		default:
			return false
		}
	}
	for deadline := time.Now().Add(30 * time.Second); !is(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("the shadow is not %s", args[0])
		}
	}
}

// settled waits until what was activated last decides: a receipt waits for a second only.
func settled(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: settled")
	}
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(100 * time.Millisecond) {
		ts.Check(ts.Exec("keystile", "policy", "show", "-o", "json"))
		var p admin.Policy
		ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &p))
		switch a := p.Activation; {
		case a == nil || p.Revision == nil:
		case a.BuiltIn && p.Origin == admin.OriginBuiltIn, !a.BuiltIn && *a.Revision == *p.Revision:
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("what was activated does not decide")
		}
	}
}

// readme runs what README.md tells people to run, each block in a shell that ends at the first
// command that fails.
func readme(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: readme SECTION")
	}
	raw, err := os.ReadFile(ts.Getenv("README"))
	ts.Check(err)
	_, section, found := strings.Cut(string(raw), "\n## "+args[0]+"\n")
	if !found {
		ts.Fatalf("README.md has no section %q", args[0])
	}
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := strings.Split(section, "```sh\n")[1:]
	if len(blocks) == 0 {
		ts.Fatalf("the section %q has no shell block", args[0])
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		if err := ts.Exec("sh", "-e", "-c", block); err != nil {
			ts.Fatalf("%v, of the commands\n%s", err, block)
		}
	}
}

// scriptService is where a script keeps its service.
type scriptService struct{}

func exitOf(ts *testscript.TestScript, args []string) int {
	err := ts.Exec(args[0], args[1:]...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
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
