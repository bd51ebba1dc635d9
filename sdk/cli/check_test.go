package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/cli"
	"github.com/supportstation/keystile/sdk/keystiletest"
)

const token = "ksc_for_tests_only"

type rig struct {
	service *keystiletest.Service
	secret  string
	env     map[string]string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	service := keystiletest.New(token)
	server := httptest.NewServer(service)
	t.Cleanup(server.Close)
	secret := keystiletest.Secret(keystile.Live)
	service.Grant(secret, "org_acme", keystile.Live, "tickets:read")
	return &rig{service: service, secret: secret, env: map[string]string{
		"KEYSTILE_URL": server.URL, "KEYSTILE_TOKEN": token, "KEYSTILE_KEY": secret,
	}}
}

// run returns output and exit code; nothing may be written besides.
func (r *rig) run(t *testing.T, stdin string, args ...string) (string, int, error) {
	t.Helper()
	cmd := cli.NewCheckCommand(cli.Config{LookupEnv: func(name string) (string, bool) {
		value, ok := r.env[name]
		return value, ok
	}})
	var out, talk bytes.Buffer
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&talk)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.WithoutCancel(t.Context()))
	if talk.Len() != 0 {
		t.Errorf("the command wrote %q to its error output; that is the root's", talk.String())
	}
	for _, text := range []string{out.String(), errorText(err)} {
		if strings.Contains(text, r.secret) || strings.Contains(text, token) {
			t.Errorf("a secret is printed: %s", text)
		}
	}
	if err == nil {
		return out.String(), cli.ExitOK, nil
	}
	var exit *cli.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("%v is no ExitError", err)
	}
	return out.String(), exit.Code, exit.Err
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestCheck_ExitCodeTellsTheDecision(t *testing.T) {
	problem := func(status int, code string) func(*http.Request, keystiletest.Asked) (int, string, string) {
		return func(*http.Request, keystiletest.Asked) (int, string, string) {
			return status, "application/problem+json", `{"code":"` + code + `"}`
		}
	}
	tests := []struct {
		name    string
		prepare func(*rig)
		code    int
	}{
		{"allowed", func(*rig) {}, cli.ExitOK},
		{"denied", func(r *rig) { r.env["KEYSTILE_KEY"] = "unknown" }, cli.ExitDenied},
		{"rate limited", func(r *rig) { r.service.ReplyDecision(keystiletest.Denied(keystile.CodeRateLimited, 429)) }, cli.ExitRateLimited},
		{"undecided", func(r *rig) { r.service.ReplyDecision(keystiletest.Denied(keystile.CodeUnavailable, 503)) }, cli.ExitUnavailable},
		{"not reachable", func(r *rig) { r.env["KEYSTILE_URL"] = "http://127.0.0.1:1" }, cli.ExitUnavailable},
		{"service 503", func(r *rig) { r.service.Reply(problem(503, "unavailable")) }, cli.ExitUnavailable},
		{"throttled", func(r *rig) { r.service.Reply(problem(429, "caller_throttled")) }, cli.ExitUnavailable},
		{"wrong token", func(r *rig) { r.env["KEYSTILE_TOKEN"] = "ksc_wrong" }, cli.ExitInvalid},
		{"question refused", func(r *rig) { r.service.Reply(problem(422, "string_too_long")) }, cli.ExitUsage},
		{"no sense", func(r *rig) { r.service.Reply(problem(200, "")) }, cli.ExitUnexpected},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			tt.prepare(r)
			out, code, err := r.run(t, "", "GET", "/api/v1/tickets")
			if code != tt.code {
				t.Fatalf("exit %d, want %d: %v", code, tt.code, err)
			}
			if (out == "") != (err != nil) {
				t.Errorf("data %q with error %v; want one of them", out, err)
			}
		})
	}
}

func TestCheck_WrongUseIsToldWithoutAsking(t *testing.T) {
	tests := map[string][]string{
		"no arguments":      {},
		"one argument":      {"GET"},
		"a relative path":   {"GET", "api"},
		"a URL":             {"GET", "http://127.0.0.1/api"},
		"a query":           {"GET", "/api?x=1"},
		"an environment":    {"GET", "/api", "--environment", "prod"},
		"an output format":  {"GET", "/api", "-o", "xml"},
		"an address":        {"GET", "/api", "--client-ip", "203.0.113"},
		"no cost":           {"GET", "/api", "--cost", "0"},
		"a negative cost":   {"GET", "/api", "--cost", "-1"},
		"too much":          {"GET", "/api", "--cost", "10001"},
		"an unknown flag":   {"GET", "/api", "--key", "x"},
		"a missing file":    {"GET", "/api", "--key-file", "/no/such/file"},
		"a URL with a user": {"GET", "/api", "--url", "https://u:p@keystile.example"},
	}
	for name, args := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			out, code, err := r.run(t, "", args...)
			if code != cli.ExitUsage || err == nil || out != "" || len(r.service.Asked()) != 0 {
				t.Errorf("exit %d, error %v, output %q, asked %d; want usage", code, err, out, len(r.service.Asked()))
			}
		})
	}
	for _, name := range []string{"KEYSTILE_URL", "KEYSTILE_TOKEN", "KEYSTILE_KEY"} {
		t.Run("without "+name, func(t *testing.T) {
			r := newRig(t)
			delete(r.env, name)
			if _, code, err := r.run(t, "", "GET", "/api"); code != cli.ExitUsage || !strings.Contains(errorText(err), name) {
				t.Errorf("exit %d, %v; want usage that names %s", code, err, name)
			}
			r.env[name], r.env[name+"_FILE"] = "x", "y"
			if _, code, err := r.run(t, "", "GET", "/api"); code != cli.ExitUsage || !strings.Contains(errorText(err), name+" and "+name+"_FILE") {
				t.Errorf("both: exit %d, %v; want usage that names %s_FILE", code, err, name)
			}
		})
	}
}

func TestCheck_SecretsComeFromFilesAndStandardInput(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	keyFile, tokenFile := filepath.Join(dir, "key"), filepath.Join(dir, "token")
	for name, content := range map[string]string{keyFile: r.secret + "\n", tokenFile: token + "\r\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	delete(r.env, "KEYSTILE_TOKEN")
	r.env["KEYSTILE_TOKEN_FILE"] = tokenFile
	r.env["KEYSTILE_KEY"] = "another"
	for _, run := range []struct {
		stdin string
		args  []string
	}{
		{"", []string{"GET", "/api/v1/tickets", "--key-file", keyFile}},
		{r.secret + "\n", []string{"GET", "/api/v1/tickets", "--key-file", "-"}},
	} {
		if out, code, err := r.run(t, run.stdin, run.args...); code != cli.ExitOK {
			t.Errorf("%v: exit %d, %v, %s", run.args, code, err, out)
		}
	}
	if _, code, err := r.run(t, strings.Repeat("k", 9<<10), "GET", "/api/v1/tickets", "--key-file", "-"); code != cli.ExitUsage {
		t.Errorf("an endless key: exit %d, %v; want usage", code, err)
	}
	if _, code, _ := r.run(t, "", "GET", "/api/v1/tickets", "--key-file", "-"); code != cli.ExitDenied {
		t.Errorf("an empty key: exit %d; want denied as missing", code)
	}
}

func TestCheck_FlagsReachTheQuestion(t *testing.T) {
	r := newRig(t)
	if _, code, _ := r.run(t, "", http.MethodDelete, "/api/v1/tickets/42", "--action", "tickets:read", "--environment", "test",
		"--client-ip", "203.0.113.7", "--browser", "--cost", "7",
		"--resource-type", "ticket", "--resource-id", "42", "--resource-org", "org_globex"); code != cli.ExitDenied {
		t.Errorf("exit %d; want denied", code)
	}
	want := keystiletest.Asked{
		Method: http.MethodDelete, Path: "/api/v1/tickets/42", Action: "tickets:read", Environment: "test",
		ClientIP: "203.0.113.7", Browser: true, Cost: 7,
		Resource: &keystile.Resource{Type: "ticket", ID: "42", Organization: "org_globex"},
	}
	got := r.service.Asked()[0]
	got.KeySHA256 = ""
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("asked, -want +got:\n%s", diff)
	}
}

func TestCheck_TableTellsVerdictWhyAndFix(t *testing.T) {
	r := newRig(t)
	d := keystiletest.Denied(keystile.CodeInsufficientScope, 403)
	d.Organization = &keystile.Organization{ID: "org_1", Name: "Acme\x1b[2J\u202e", Plan: "standard"}
	d.Scopes, d.MissingScopes = []string{"tickets:read"}, []string{"tickets:write"}
	d.RateLimit = &keystile.RateLimit{Name: "key", Limit: 100, Remaining: 95, PeriodSeconds: 60, ResetSeconds: 3, Mode: "exact"}
	d.Warnings = []keystile.Reason{{Code: "expires_soon", Message: "Soon."}}
	r.service.ReplyDecision(d)
	out, _, _ := r.run(t, "", "POST", "/api/v1/tickets")
	want := "DENY insufficient_scope (403): The request is denied: insufficient_scope.\n" +
		"  organization  Acme\uFFFD[2J\uFFFD (org_1), plan standard\n" +
		"  scopes        tickets:read\n" +
		"  missing       tickets:write\n" +
		"  limit         key: 95 of 100 left in 60 s, full in 3 s (exact)\n" +
		"  warning       expires_soon: Soon.\n" +
		"  decision      dec_test\n" +
		"  policy        sha256:test\n" +
		"  fix           Use a key that has tickets:write, or have the scope added to this one.\n"
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	r.service.Reply(nil)
	if out, _, _ := r.run(t, "", "GET", "/api/v1/tickets"); !strings.HasPrefix(out, "ALLOW allowed (200)\n") || strings.Contains(out, "fix") {
		t.Errorf("an allow prints:\n%s", out)
	}
}

func TestCheck_EveryDenialNamesAFix(t *testing.T) {
	for _, code := range []keystile.Code{
		keystile.CodeKeyMissing, keystile.CodeKeyMalformed, keystile.CodeKeyUnknown, keystile.CodeKeyRevoked, keystile.CodeKeyExpired,
		keystile.CodeKeyDisabled, keystile.CodeOrganizationSuspended, keystile.CodeEnvironmentMismatch, keystile.CodeOrganizationMismatch,
		keystile.CodeIPNotAllowed, keystile.CodeAmbiguousPath, keystile.CodeUnknownRoute, keystile.CodeBrowserUse,
		keystile.CodeInsufficientScope, keystile.CodePolicyDenied, keystile.CodeRateLimited, keystile.CodeUnavailable,
	} {
		r := newRig(t)
		r.service.ReplyDecision(keystiletest.Denied(code, 403))
		if out, _, _ := r.run(t, "", "GET", "/"); !strings.Contains(out, "\n  fix ") {
			t.Errorf("%s has no fix:\n%s", code, out)
		}
	}
}

func TestCheck_JSONAndYAMLHoldTheWholeDecision(t *testing.T) {
	r := newRig(t)
	d := keystiletest.Denied(keystile.CodeInsufficientScope, 403)
	d.Scopes = []string{"yes", "1.0", "tickets:read"}
	r.service.ReplyDecision(d)
	encoded, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var want, fromJSON, fromYAML map[string]any
	jsonOut, _, _ := r.run(t, "", "GET", "/", "-o", "json")
	yamlOut, _, _ := r.run(t, "", "GET", "/", "-o", "yaml")
	if err := errors.Join(json.Unmarshal(encoded, &want), json.Unmarshal([]byte(jsonOut), &fromJSON), yaml.Unmarshal([]byte(yamlOut), &fromYAML)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, fromJSON); diff != "" {
		t.Errorf("json (-want +got):\n%s", diff)
	}
	again, err := json.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	clear(fromJSON)
	if err := json.Unmarshal(again, &fromJSON); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, fromJSON); diff != "" {
		t.Errorf("yaml (-want +got):\n%s", diff)
	}
	if strings.HasPrefix(yamlOut, "{") {
		t.Errorf("the YAML is JSON:\n%s", yamlOut)
	}
}
