package cli_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/supportstation/keystile/sdk/admin"
	"github.com/supportstation/keystile/sdk/cli"
)

func TestManage_ExitCodeTellsWhatFailed(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(*desk)
		code    int
		says    string
	}{
		{"denied", func(d *desk) { d.refuse("POST /", 403, "role_forbidden") }, cli.ExitDenied, "role_forbidden"},
		{"not found", func(d *desk) { d.refuse("POST /", 404, "not_found") }, cli.ExitUnexpected, "keystile keys list"},
		{"conflict", func(d *desk) { d.refuse("POST /", 409, "key_revoked") }, cli.ExitUnexpected, "keystile keys create"},
		{"a new conflict", func(d *desk) { d.refuse("POST /", 409, "made_up_later") }, cli.ExitUnexpected, "stands in the way"},
		{"lost race", func(d *desk) { d.refuse("POST /", 412, "version_mismatch") }, cli.ExitUnexpected, "keystile keys get"},
		{"refused value", func(d *desk) { d.refuse("POST /", 422, "out_of_range") }, cli.ExitUsage, "out_of_range"},
		{"not available", func(d *desk) { d.refuse("POST /", 503, "unavailable") }, cli.ExitUnavailable, "try again"},
		{"fault", func(d *desk) { d.refuse("POST /", 500, "internal") }, cli.ExitUnexpected, "internal"},
		{"not reachable", func(d *desk) { d.env["KEYSTILE_URL"] = "http://127.0.0.1:1" }, cli.ExitUnavailable, "KEYSTILE_URL"},
		{"wrong token", func(d *desk) { d.env["KEYSTILE_ADMIN_TOKEN"] = "ksa_wrong" }, cli.ExitInvalid, "KEYSTILE_ADMIN_TOKEN"},
		{"no sense", func(d *desk) {
			d.mux.HandleFunc("POST /", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) })
		}, cli.ExitUnexpected, "URL right"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			tt.prepare(d)
			o := d.run(t, "keys", "revoke", keyID)
			if o.code != tt.code || !strings.Contains(errorText(o.err), tt.says) || o.out != "" {
				t.Errorf("exit %d, %v, data %q; want %d that says %q, and no data", o.code, o.err, o.out, tt.code, tt.says)
			}
		})
	}
}

func TestManage_AConflictIsToldWithWhatEndsIt(t *testing.T) {
	for code, says := range map[string]string{
		"key_revoked":          "make another key with `keystile keys create`",
		"caller_revoked":       "make another caller with `keystile callers create`",
		"admin_revoked":        "make another admin with `keystile admins create`",
		"organization_deleted": "`keystile orgs list`",
		"quota_exceeded":       "`keystile keys revoke KEY`",
		"unknown_plan":         "`keystile scopes`",
		"external_id_taken":    "`keystile keys list --external-id ID`",
		"name_taken":           "`keystile keys list`",
		"last_platform_admin":  "`keystile admins create --role platform_admin`",
		"too_many_formats":     "import",
		"rotation_in_progress": "--drop-oldest",
	} {
		d := newDesk(t)
		d.refuse("POST /", 409, code)
		o := d.run(t, "keys", "rotate", keyID, "--grace", "24h")
		if text := errorText(o.err); o.code != cli.ExitUnexpected || !strings.Contains(text, says) || strings.Contains(text, "stands in the way") {
			t.Errorf("%s: exit %d, %q; want advice that says %q", code, o.code, text, says)
		}
	}
}

func TestManage_AdviceNamesCommandsThatThereAre(t *testing.T) {
	named := regexp.MustCompile("`keystile ([^`]*)`")
	for says, args := range map[string][]string{
		"orgs list":      {"orgs", "suspend", orgID},
		"keys list":      {"keys", "revoke", keyID},
		"callers list":   {"callers", "delete", callerID},
		"admins list":    {"admins", "delete", adminID},
		"audit-log list": {"audit-log", "list"},
		"scopes":         {"scopes"},
		"replicas":       {"replicas"},
		"policy history": {"policy", "rollback"},
	} {
		for _, status := range []int{404, 409, 502} {
			d := newDesk(t)
			if status == 502 {
				d.mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
			} else {
				d.refuse("/", status, "made_up_later")
			}
			o := d.run(t, args...)
			advice := named.FindAllStringSubmatch(errorText(o.err), -1)
			if len(advice) != 1 || advice[0][1] != says {
				t.Errorf("%v, %d: %v; want advice that names %q", args, status, o.err, says)
				continue
			}
			if o = d.run(t, strings.Fields(advice[0][1])...); o.code == cli.ExitUsage {
				t.Errorf("%v, %d: what is advised is no command: %v", args, status, o.err)
			}
		}
	}
	d := newDesk(t)
	d.refuse("/", 404, "not_found")
	if o := d.run(t, "usage", keyID); !strings.Contains(errorText(o.err), "`keystile keys list`") {
		t.Errorf("usage of a key that is not there: %v", o.err)
	}
}

func TestManage_AnAnswerTooLongIsNotSilence(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		says string
	}{
		"a list":   {[]string{"keys", "list", "--org", orgID}, "--limit"},
		"a change": {[]string{"keys", "revoke", keyID}, "may have been done"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write(make([]byte, admin.MaxAnswerBytes+1))
			})
			o := d.run(t, tt.args...)
			text := errorText(o.err)
			if o.code != cli.ExitUnexpected || !strings.Contains(text, "the answer is longer than 16777216 bytes") || !strings.Contains(text, tt.says) ||
				strings.Contains(text, "did not answer") || len(d.requests()) != 1 {
				t.Errorf("exit %d, %q, asked %d", o.code, text, len(d.requests()))
			}
		})
	}
}

func TestManage_WrongUseIsToldWithoutAsking(t *testing.T) {
	tests := map[string][]string{
		"an unknown command":      {"keys", "remove"},
		"no key":                  {"keys", "get"},
		"a secret for an id":      {"keys", "revoke", newSecret},
		"a secret for a secret":   {"keys", "secrets", "revoke", keyID, newSecret},
		"a name for --org":        {"keys", "list", "--org", "Acme"},
		"dots for an id":          {"orgs", "get", ".."},
		"no grace":                {"keys", "rotate", keyID},
		"no flags":                {"keys", "create"},
		"nothing to change":       {"keys", "update", keyID},
		"two expiries":            {"keys", "update", keyID, "--expires-in", "1d", "--never-expires"},
		"scopes both ways":        {"keys", "update", keyID, "--scope", "a:b", "--add-scope", "a:c"},
		"a burst alone":           {"keys", "update", keyID, "--burst", "5"},
		"a strange rate":          {"keys", "update", keyID, "--rate", "50"},
		"metadata that is a list": {"keys", "update", keyID, "--metadata-json", "[1]"},
		"a version of nothing":    {"orgs", "suspend", orgID, "--if-version", "0"},
		"an output format":        {"scopes", "-o", "xml"},
		"a negative limit":        {"orgs", "list", "--limit", "-1"},
		"half a day":              {"callers", "create", "--name", "x", "--env", "live", "--expires-in", "12h"},
		"an owner of nothing":     {"admins", "create", "--name", "x", "--role", "owner", "--expires-in", "1d"},
		"a platform's org":        {"admins", "create", "--name", "x", "--role", "platform_admin", "--expires-in", "1d", "--org", orgID},
		"no life":                 {"admins", "rotate", adminID},
		"no format":               {"keys", "import", "-"},
		"no file":                 {"keys", "import", "/no/such/file", "--prefix", "a", "--length", "32", "--alphabet", "hex"},
		"no checkpoints":          {"audit-log", "verify", "--checkpoint", "-"},
	}
	for name, args := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			o := d.run(t, args...)
			if o.code != cli.ExitUsage || o.err == nil || o.out != "" || len(d.requests()) != 0 {
				t.Errorf("exit %d, error %v, output %q, asked %d; want usage", o.code, o.err, o.out, len(d.requests()))
			}
		})
	}
	for _, name := range []string{"KEYSTILE_URL", "KEYSTILE_ADMIN_TOKEN"} {
		t.Run("without "+name, func(t *testing.T) {
			d := newDesk(t)
			delete(d.env, name)
			if o := d.run(t, "scopes"); o.code != cli.ExitUsage || !strings.Contains(errorText(o.err), name) {
				t.Errorf("exit %d, %v; want usage that names %s", o.code, o.err, name)
			}
		})
	}
}

func TestManage_TokenComesFromAFile(t *testing.T) {
	d := newDesk(t)
	d.reply("GET /v1/scopes", obj{"scopes": []obj{}, "plans": []obj{}, "policy_revision": "sha256:1"})
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(adminToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	delete(d.env, "KEYSTILE_ADMIN_TOKEN")
	d.env["KEYSTILE_ADMIN_TOKEN_FILE"] = file
	if o := d.run(t, "scopes"); o.code != cli.ExitOK {
		t.Errorf("exit %d, %v", o.code, o.err)
	}
}

func TestManage_OrganizationIsTheOnlyOneToSee(t *testing.T) {
	tests := []struct {
		name string
		orgs []any
		code int
		says string
	}{
		{"one", []any{orgDocument()}, cli.ExitOK, ""},
		{"none", []any{}, cli.ExitUsage, "keystile orgs create"},
		{"two", []any{orgDocument(), orgDocument()}, cli.ExitUsage, "--org"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			d.reply("GET /v1/organizations", obj{"items": tt.orgs, "next_cursor": nil})
			d.reply("GET /v1/organizations/"+orgID+"/keys", page(keyDocument()))
			if o := d.run(t, "keys", "list"); o.code != tt.code || !strings.Contains(errorText(o.err), tt.says) {
				t.Errorf("exit %d, %v; want %d that says %q", o.code, o.err, tt.code, tt.says)
			}
		})
	}
}

func TestManage_ListsReadWellAndHoldTheirIDs(t *testing.T) {
	d := newDesk(t)
	many := with(keyDocument(), obj{
		"name": "a name that is much too long for a column\x1b[2J", "expires_at": nil, "status": "revoked",
		"scopes": []string{"customers:read", "customers:write", "tickets:read", "tickets:write"},
	})
	d.reply("GET /v1/organizations/{org}/keys", page(keyDocument(), many))
	o := d.run(t, "keys", "list", "--org", orgID, "--status", "active", "--env", "test")
	want := "" +
		"ID                              NAME                      ENV   STATUS   EXPIRES     LAST USED  SCOPES\n" +
		keyID + "  ci                        test  active   2026-11-01  never      tickets:read\n" +
		keyID + "  a name that is much too…  test  revoked  never       never      customers:read +3\n"
	if diff := cmp.Diff(want, o.out); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if got := d.last(t).query; got != "limit=100&status=active&environment=test" {
		t.Errorf("asked with %q", got)
	}
	for _, line := range strings.Split(o.out, "\n") {
		if len([]rune(line)) > 120 {
			t.Errorf("a line of %d columns: %s", len([]rune(line)), line)
		}
	}
}

func TestManage_ListsFollowPagesUpToTheirLimit(t *testing.T) {
	d := newDesk(t)
	d.mux.HandleFunc("GET /v1/organizations", func(w http.ResponseWriter, r *http.Request) {
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		start, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
		items := []obj{}
		for len(items) < limit && start < 450 {
			items = append(items, orgDocument())
			start++
		}
		var next any
		if start < 450 {
			next = strconv.Itoa(start)
		}
		answer(w, obj{"items": items, "next_cursor": next})
	})
	count := func(args ...string) (int, any, string) {
		o := d.run(t, append([]string{"orgs", "list", "-o", "json"}, args...)...)
		var got struct {
			Items []any `json:"items"`
			Next  any   `json:"next_cursor"`
		}
		if err := json.Unmarshal([]byte(o.out), &got); err != nil {
			t.Fatalf("%v: %s", err, o.out)
		}
		return len(got.Items), got.Next, o.talk
	}
	if n, next, talk := count(); n != 100 || next != "100" || !strings.Contains(talk, "--limit 0") {
		t.Errorf("%d listed, next %v, told %q; want 100 and how to go on", n, next, talk)
	}
	if n, next, _ := count("--limit", "250"); n != 250 || next != "250" {
		t.Errorf("%d listed, next %v; want 250", n, next)
	}
	if n, next, talk := count("--limit", "0"); n != 450 || next != nil || talk != "" {
		t.Errorf("%d listed, next %v, told %q; want all 450", n, next, talk)
	}
	if n, next, _ := count("--limit", "0", "--cursor", "400"); n != 50 || next != nil {
		t.Errorf("%d listed, next %v; want the last 50", n, next)
	}
}

func TestManage_EmptyListIsAnEmptyDocument(t *testing.T) {
	d := newDesk(t)
	d.reply("GET /v1/callers", obj{"items": []obj{}, "next_cursor": nil})
	if o := d.run(t, "callers", "list"); o.out != "" || !strings.Contains(o.talk, "no callers") {
		t.Errorf("data %q, told %q", o.out, o.talk)
	}
	if o := d.run(t, "callers", "list", "-o", "json"); !strings.Contains(o.out, `"items": []`) {
		t.Errorf("data %q", o.out)
	}
}

func TestManage_JSONAndYAMLHoldTheAnswer(t *testing.T) {
	d := newDesk(t)
	want := keyDocument()
	d.reply("GET /v1/keys/{key}", want)
	encoded, _ := json.Marshal(want)
	var wanted, fromJSON, fromYAML any
	_ = json.Unmarshal(encoded, &wanted)
	if err := json.Unmarshal([]byte(d.run(t, "keys", "get", keyID, "-o", "json").out), &fromJSON); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wanted, fromJSON); diff != "" {
		t.Errorf("json (-want +got):\n%s", diff)
	}
	if err := yaml.Unmarshal([]byte(d.run(t, "keys", "get", keyID, "-o", "yaml").out), &fromYAML); err != nil {
		t.Fatal(err)
	}
	again, _ := json.Marshal(fromYAML)
	fromJSON = nil
	_ = json.Unmarshal(again, &fromJSON)
	if diff := cmp.Diff(wanted, fromJSON); diff != "" {
		t.Errorf("yaml (-want +got):\n%s", diff)
	}
}

func TestManage_DryRunIsAskedForAndSaid(t *testing.T) {
	d := newDesk(t)
	change := obj{"organization": orgDocument(), "effective": nil, "dry_run": true}
	d.reply("POST /v1/organizations", change)
	d.reply("PATCH /v1/organizations/{org}", change)
	d.reply("DELETE /v1/organizations/{org}", change)
	d.reply("POST /v1/keys/{key}/rotate", keyChange(obj{"dry_run": true}))
	d.reply("POST /v1/keys/{key}/revoke", keyChange(obj{"dry_run": true}))
	d.reply("DELETE /v1/callers/{caller}", obj{"caller": callerDocument(), "secret": nil, "secret_already_shown": false, "effective": nil, "dry_run": true})
	d.reply("DELETE /v1/admins/{admin}", obj{"admin": adminDocument(), "secret": nil, "secret_already_shown": false, "dry_run": true})
	file := filepath.Join(t.TempDir(), "secret")
	for _, args := range [][]string{
		{"orgs", "create", "--name", "Acme", "--plan", "standard"},
		{"orgs", "update", orgID, "--plan", "standard"},
		{"orgs", "suspend", orgID},
		{"orgs", "delete", orgID},
		{"keys", "rotate", keyID, "--grace", "24h", "--secret-file", file},
		{"keys", "revoke", keyID},
		{"callers", "delete", callerID},
		{"admins", "delete", adminID},
	} {
		o := d.run(t, append(args, "--dry-run")...)
		if o.code != cli.ExitOK || o.out == "" || !strings.Contains(o.talk, "would ") || strings.Contains(o.talk, "keystile ") {
			t.Errorf("%v: exit %d, %v, told %q; want what it would do, and no next step", args, o.code, o.err, o.talk)
		}
		if got := d.last(t).query; got != "dry_run=true" {
			t.Errorf("%v: asked with %q", args, got)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a dry run made the secret's file")
	}
}

func TestManage_VersionGoesAlong(t *testing.T) {
	d := newDesk(t)
	d.reply("PATCH /v1/organizations/{org}", obj{"organization": orgDocument(), "effective": nil, "dry_run": false})
	if o := d.run(t, "orgs", "resume", orgID, "--if-version", "7"); o.code != cli.ExitOK {
		t.Fatalf("exit %d, %v", o.code, o.err)
	}
	if got := d.last(t); got.header.Get("If-Match") != `"7"` || got.body != `{"suspended":false}` {
		t.Errorf("asked %s with If-Match %s", got.body, got.header.Get("If-Match"))
	}
}

func TestManage_CallersAndAdminsGetTheirTokensOnce(t *testing.T) {
	d := newDesk(t)
	d.reply("POST /v1/callers", obj{"caller": callerDocument(), "secret": newSecret, "secret_already_shown": false, "effective": nil, "dry_run": false})
	d.reply("POST /v1/admins/{admin}/rotate", obj{"admin": adminDocument(), "secret": newSecret, "secret_already_shown": false, "dry_run": false})
	o := d.run(t, "callers", "create", "--name", "tickets", "--env", "live,test", "--expires-in", "90d")
	if o.code != cli.ExitOK || !strings.HasSuffix(o.out, "\n"+newSecret+"\n") || !strings.Contains(o.talk, "callers rotate "+callerID) {
		t.Errorf("exit %d, %v\n%s\n%s", o.code, o.err, o.out, o.talk)
	}
	if got := d.last(t).body; got != `{"environments":["live","test"],"expires_in_days":90,"name":"tickets"}` {
		t.Errorf("asked %s", got)
	}
	o = d.run(t, "admins", "rotate", adminID, "--expires-in", "30d", "--grace", "1h")
	if o.code != cli.ExitOK || !strings.HasSuffix(o.out, "\n"+newSecret+"\n") {
		t.Errorf("exit %d, %v\n%s", o.code, o.err, o.out)
	}
	if got := d.last(t).body; got != `{"expires_in_days":30,"grace_seconds":3600}` {
		t.Errorf("asked %s", got)
	}
}

func TestManage_ScopesAndReplicas(t *testing.T) {
	d := newDesk(t)
	d.reply("GET /v1/scopes", obj{
		"scopes": []obj{{"name": "tickets:read", "description": "Read tickets"}},
		"plans":  []obj{{"name": "standard", "rate_limit": obj{"rate": 100, "period_seconds": 60, "burst": 100}, "max_keys": 0}}, "policy_revision": "sha256:1",
	})
	want := "SCOPE         DESCRIPTION\ntickets:read  Read tickets\n\nPLAN      LIMIT                   KEYS\nstandard  100 in 60 s, burst 100  no bound\n\npolicy sha256:1\n"
	if diff := cmp.Diff(want, d.run(t, "scopes").out); diff != "" {
		t.Errorf("scopes (-want +got):\n%s", diff)
	}
	d.reply("GET /v1/replicas", obj{"revision": 9, "items": []obj{{
		"id": "rep_1", "name": "web-1", "started_at": "2026-10-20T11:00:00Z", "heartbeat_at": "2026-10-20T11:59:59Z",
		"applied_revision": 7, "live": false, "serves_until": "2026-10-20T12:04:59Z",
	}}})
	if o := d.run(t, "replicas"); !strings.Contains(o.out, "silent") || !strings.Contains(o.out, "2 behind") || !strings.Contains(o.out, "2026-10-20 12:04:59Z") {
		t.Errorf("replicas:\n%s", o.out)
	}
}

func TestManage_PolicyShowTellsHowItFails(t *testing.T) {
	d := newDesk(t)
	state := obj{
		"revision": "sha256:1", "origin": "database", "source": "database", "since": nil, "activation": nil, "refused": nil,
		"runtime_errors": obj{
			"errors": 24, "organizations": 3, "window_seconds": 30, "kind": "error", "where": "keystile/rules/x/x.rego:7", "stays": "it is a security fix",
		},
	}
	d.reply("GET /v1/policy", state)
	want := "  failing       24 checks of 3 organizations not decided in 30 s (error, keystile/rules/x/x.rego:7)\n  stays         it is a security fix\n"
	if o := d.run(t, "policy", "show"); o.code != cli.ExitOK || !strings.Contains(o.out, want) {
		t.Errorf("exit %d, %v\n%s", o.code, o.err, o.out)
	}
	d = newDesk(t)
	state["runtime_errors"] = nil
	d.reply("GET /v1/policy", state)
	if o := d.run(t, "policy", "show"); strings.Contains(o.out, "failing") || strings.Contains(o.out, "stays") {
		t.Errorf("nothing fails:\n%s", o.out)
	}
	d.reply("GET /v1/policy/history", obj{"next_cursor": nil, "items": []obj{{
		"revision": nil, "built_in": true, "activated_at": "2026-10-20T11:00:00Z", "activated_by": "replica web-1:7", "note": "stepped back", "security_fix": false,
		"rolled_back": true, "accepted_tests": []string{},
	}}})
	if o := d.run(t, "policy", "history"); !strings.Contains(o.out, "stepped back by itself") {
		t.Errorf("history:\n%s", o.out)
	}
}
