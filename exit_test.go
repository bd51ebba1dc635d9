package main

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
)

func TestRun_ExitCodeTellsWhatWentWrong(t *testing.T) {
	t.Setenv("KEYSTILE_DATABASE_URL", "")
	for _, name := range []string{"KEYSTILE_TOKEN", "KEYSTILE_KEY"} {
		t.Setenv(name, "x")
	}
	t.Setenv("KEYSTILE_URL", "http://127.0.0.1:1")
	for name, tt := range map[string]struct {
		args []string
		code int
	}{
		"help":                 {[]string{"--help"}, 0},
		"nothing":              {nil, 0},
		"version":              {[]string{"version", "-o", "json"}, 0},
		"completion":           {[]string{"completion", "bash"}, 0},
		"an unknown command":   {[]string{"bogus"}, exitUsage},
		"an unknown command 2": {[]string{"config", "bogus"}, exitUsage},
		"an argument too much": {[]string{"version", "x"}, exitUsage},
		"an argument 2":        {[]string{"completion", "bash", "x"}, exitUsage},
		"an unknown flag":      {[]string{"serve", "--bogus"}, exitUsage},
		"an unknown output":    {[]string{"version", "-o", "xml"}, exitUsage},
		"a secret as a flag":   {[]string{"serve", "--peppers", "x"}, exitUsage},
		"a wrong value":        {[]string{"config", "show", "--listen", "x"}, exitInvalid},
		"no such file":         {[]string{"serve", "--config", filepath.Join(t.TempDir(), "none")}, exitInvalid},
		"no service to ask":    {[]string{"check", "GET", "/"}, exitDependency},
		"nothing to serve on":  {[]string{"serve"}, exitInvalid},
	} {
		var out, talk bytes.Buffer
		if code := run(t.Context(), tt.args, &out, &talk); code != tt.code {
			t.Errorf("%s: exit %d, want %d: %s", name, code, tt.code, talk.String())
		}
		if tt.code == 0 && out.Len() == 0 {
			t.Errorf("%s: output is %q", name, out.String())
		}
		if failed := tt.code != 0; (talk.Len() > 0) != failed || failed && !strings.HasPrefix(talk.String(), "keystile: ") {
			t.Errorf("%s: talk is %q", name, talk.String())
		}
	}
}

func TestExitCode_FirstCauseCounts(t *testing.T) {
	cause := errors.New("x")
	for want, err := range map[int]error{
		0: nil, exitUnexpected: cause, exitUsage: fmt.Errorf("doing: %w", usageError(cause)),
		exitInvalid: errors.Join(configError(cause), cause), exitDependency: dependencyError(cause),
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v ends with %d, want %d", err, got, want)
		}
	}
	if got := exitCode(dependencyError(authz.ErrNoPepper)); got != exitInvalid {
		t.Errorf("a missing pepper ends with %d, want %d", got, exitInvalid)
	}
}
