package cli_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/supportstation/keystile/sdk/cli"
)

func TestKeys_GetShowsAPage(t *testing.T) {
	d := newDesk(t)
	d.reply("GET /v1/keys/{key}", with(keyDocument(), obj{
		"name": "ci\x1b[2J\u202e", "rate_limit": obj{"rate": 50, "period_seconds": 60, "burst": 10}, "last_used_at": "2026-10-20T11:00:00Z",
		"secrets": []obj{
			{"id": newID, "hint": "sk_test_new", "created_at": "2026-10-20T12:00:00Z", "expires_at": nil, "last_used_at": nil},
			{"id": oldID, "hint": "sk_test_old", "created_at": "2026-10-18T12:00:00Z", "expires_at": "2026-10-21T12:00:00Z", "last_used_at": "2026-10-20T11:58:00Z"},
		},
	}))
	want := "" +
		"  key           " + keyID + "\n" +
		"  name          ci\uFFFD[2J\uFFFD\n" +
		"  organization  " + orgID + "\n" +
		"  environment   test\n" +
		"  status        active\n" +
		"  scopes        tickets:read\n" +
		"  expires       2026-11-01 (in 12 days)\n" +
		"  last used     2026-10-20 (1 hour ago)\n" +
		"  addresses     any\n" +
		"  limit         50 in 60 s, burst 10\n" +
		"  metadata      {\"team\":\"billing\"}\n" +
		"  created       2026-10-18 12:00:00Z (2 days ago) by " + adminID + "\n" +
		"  version       3\n" +
		"  secret        " + newID + "  sk_test_new\n" +
		"  secret        " + oldID + "  sk_test_old, ends 2026-10-21 12:00:00Z (in 24 hours), last used 2 minutes ago\n"
	if diff := cmp.Diff(want, d.run(t, "keys", "get", keyID).out); diff != "" {
		t.Errorf("page (-want +got):\n%s", diff)
	}
}

func TestKeys_CreateSendsItsFlags(t *testing.T) {
	d := newDesk(t)
	d.reply("POST /v1/organizations/{org}/keys", keyChange(obj{"secret": newSecret}))
	tests := map[string]struct {
		args []string
		want string
	}{
		"the least": {nil, `{"environment":"test","name":"ci","scopes":["tickets:read"]}`},
		"days":      {[]string{"--expires-in", "90d"}, `{"environment":"test","expires_in_days":90,"name":"ci","scopes":["tickets:read"]}`},
		"hours":     {[]string{"--expires-in", "12h"}, `{"environment":"test","expires_at":"2026-10-21T00:00:00Z","name":"ci","scopes":["tickets:read"]}`},
		"a time":    {[]string{"--expires-at", "2027-01-01T01:00:00+01:00"}, `{"environment":"test","expires_at":"2027-01-01T00:00:00Z","name":"ci","scopes":["tickets:read"]}`},
		"a rate":    {[]string{"--rate", "50/1m"}, `{"environment":"test","name":"ci","rate_limit":{"burst":50,"period_seconds":60,"rate":50},"scopes":["tickets:read"]}`},
		"the rest": {
			[]string{"--scope", "tickets:write", "--cidr", "203.0.113.0/24", "--rate", "50/60s", "--burst", "5", "--metadata", "team=a=b,c", "--external-id", "x-1"},
			`{"allowed_cidrs":["203.0.113.0/24"],"environment":"test","external_id":"x-1","metadata":{"team":"a=b,c"},"name":"ci",` +
				`"rate_limit":{"burst":5,"period_seconds":60,"rate":50},"scopes":["tickets:read","tickets:write"]}`,
		},
		"metadata": {[]string{"--metadata-json", `{"n":1}`}, `{"environment":"test","metadata":{"n":1},"name":"ci","scopes":["tickets:read"]}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := d.run(t, append([]string{"keys", "create", "--org", orgID, "--name", "ci", "--env", "test", "--scope", "tickets:read"}, tt.args...)...)
			if o.code != cli.ExitOK {
				t.Fatalf("exit %d, %v", o.code, o.err)
			}
			var got, want any
			_ = json.Unmarshal([]byte(d.last(t).body), &got)
			_ = json.Unmarshal([]byte(tt.want), &want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if d.last(t).header.Get("Idempotency-Key") == "" {
				t.Error("there is no Idempotency-Key")
			}
		})
	}
}

func TestKeys_SecretIsPrintedOnceAndLast(t *testing.T) {
	d := newDesk(t)
	d.reply("POST /v1/organizations/{org}/keys", keyChange(obj{"secret": newSecret}))
	create := []string{"keys", "create", "--org", orgID, "--name", "ci", "--env", "test", "--scope", "tickets:read"}
	o := d.run(t, create...)
	if !strings.HasSuffix(o.out, "\n"+newSecret+"\n") || !strings.Contains(o.talk, "only time") || !strings.Contains(o.talk, "keystile keys rotate "+keyID) {
		t.Errorf("data\n%s\ntold\n%s", o.out, o.talk)
	}
	o = d.run(t, append(create, "-o", "json")...)
	if !strings.Contains(o.out, `"secret": "`+newSecret+`"`) {
		t.Errorf("data\n%s", o.out)
	}
}

func TestKeys_SecretFileIsNewAndPrivate(t *testing.T) {
	d := newDesk(t)
	d.reply("POST /v1/keys/{key}/rotate", keyChange(obj{"secret": newSecret}))
	name := filepath.Join(t.TempDir(), "secret")
	rotate := []string{"keys", "rotate", keyID, "--grace", "24h", "--secret-file", name}
	for _, form := range []string{"table", "json", "yaml"} {
		_ = os.Remove(name)
		o := d.run(t, append(rotate, "-o", form)...)
		content, err := os.ReadFile(name)
		if o.code != cli.ExitOK || err != nil || string(content) != newSecret+"\n" || strings.Contains(o.out, newSecret) {
			t.Errorf("%s: exit %d, %v, file %q (%v)\n%s", form, o.code, o.err, content, err, o.out)
		}
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info, err)
	}
	before := len(d.requests())
	if o := d.run(t, rotate...); o.code != cli.ExitUsage || len(d.requests()) != before {
		t.Errorf("over a file that is there: exit %d, %v, asked %d; want usage, and nothing asked", o.code, o.err, len(d.requests())-before)
	}
}

func TestKeys_SecretFileIsRemovedWhenThereIsNoSecret(t *testing.T) {
	d := newDesk(t)
	d.refuse("POST /v1/keys/{key}/rotate", 404, "not_found")
	name := filepath.Join(t.TempDir(), "secret")
	if o := d.run(t, "keys", "rotate", keyID, "--grace", "24h", "--secret-file", name); o.code != cli.ExitUnexpected {
		t.Errorf("exit %d, %v", o.code, o.err)
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("an empty file is left")
	}
}

func TestKeys_SecretThatWasLostIsSaid(t *testing.T) {
	d := newDesk(t)
	d.reply("POST /v1/keys/{key}/rotate", keyChange(obj{"secret_already_shown": true}))
	if o := d.run(t, "keys", "rotate", keyID, "--grace", "24h"); o.code != cli.ExitUnexpected || !strings.Contains(errorText(o.err), "keystile keys rotate "+keyID+" --grace 0") {
		t.Errorf("exit %d, %v; want how to make another", o.code, o.err)
	}
}

func TestKeys_RotateTellsHowToEndTheOldSecret(t *testing.T) {
	d := newDesk(t)
	key := with(keyDocument(), obj{"secrets": []obj{
		{"id": newID, "hint": "n", "created_at": "2026-10-20T12:00:00Z", "expires_at": nil, "last_used_at": nil},
		{"id": oldID, "hint": "o", "created_at": "2026-10-18T12:00:00Z", "expires_at": "2026-10-21T12:00:00Z", "last_used_at": nil},
	}})
	d.reply("POST /v1/keys/{key}/rotate", keyChange(obj{"secret": newSecret, "key": key}))
	o := d.run(t, "keys", "rotate", keyID, "--grace", "24h", "--drop-oldest", "--expires-in", "30d", "--reason", "scheduled")
	if !strings.Contains(o.talk, "keystile keys secrets revoke "+keyID+" "+oldID) || strings.Contains(o.talk, newID) {
		t.Errorf("told %q", o.talk)
	}
	if got := d.last(t).body; got != `{"drop":"oldest","expires_in_days":30,"grace_seconds":86400,"reason":"scheduled"}` {
		t.Errorf("asked %s", got)
	}
	if d.run(t, "keys", "rotate", keyID, "--reason", "compromised"); d.last(t).body != `{"grace_seconds":0,"reason":"compromised"}` {
		t.Errorf("asked %s", d.last(t).body)
	}
}

func TestKeys_RotationsReceiptSaysThatTheOldSecretIsDeniedOnlyWhenItIs(t *testing.T) {
	two := with(keyDocument(), obj{"secrets": []obj{
		{"id": newID, "hint": "n", "created_at": "2026-10-20T12:00:00Z", "expires_at": nil, "last_used_at": nil},
		{"id": oldID, "hint": "o", "created_at": "2026-10-18T12:00:00Z", "expires_at": "2026-10-21T12:00:00Z", "last_used_at": nil},
	}})
	for _, c := range []struct {
		grace     string
		key       obj
		want, not string
	}{
		{"24h", two, "effective     known on 1 of 1 replica after 41 ms; the old secret works until 2026-10-21 12:00:00Z (in 24 hours)\n", "denied"},
		{"0", keyDocument(), "effective     old secret denied on 1 of 1 replica after 41 ms\n", "works until"},
	} {
		d := newDesk(t)
		d.reply("POST /v1/keys/{key}/rotate", keyChange(obj{"secret": newSecret, "key": c.key, "effective": receipt(1, 1)}))
		if o := d.run(t, "keys", "rotate", keyID, "--grace", c.grace); !strings.Contains(o.out, c.want) || strings.Contains(o.out, c.not) {
			t.Errorf("--grace %s prints\n%s\nwant %q", c.grace, o.out, c.want)
		}
	}
}

func TestKeys_RotateWithinAGraceNamesTheFlag(t *testing.T) {
	d := newDesk(t)
	d.refuse("POST /v1/keys/{key}/rotate", 409, "rotation_in_progress")
	if o := d.run(t, "keys", "rotate", keyID, "--grace", "24h"); o.code != cli.ExitUnexpected || !strings.Contains(errorText(o.err), "--drop-oldest") {
		t.Errorf("exit %d, %v", o.code, o.err)
	}
}

func TestKeys_ReceiptTellsWhoDenies(t *testing.T) {
	tests := []struct {
		name    string
		receipt obj
		want    []string
		talk    string
	}{
		{"all", receipt(3, 3), []string{"denied on 3 of 3 replicas after 41 ms"}, ""},
		{"one", receipt(1, 1), []string{"denied on 1 of 1 replica after 41 ms"}, ""},
		{"none", receipt(0, 0), []string{"no replica is live"}, ""},
		{
			"a silent one", receipt(3, 2, obj{"replica": "web-2", "serves_until": "2026-10-20T12:05:00Z"}),
			[]string{"denied on 2 of 3 replicas", "web-2 may still serve what it knew until 2026-10-20 12:05:00Z (in 5 minutes)"},
			"keystile replicas",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			d.reply("POST /v1/keys/{key}/revoke", keyChange(obj{"effective": tt.receipt}))
			o := d.run(t, "keys", "revoke", keyID)
			for _, want := range tt.want {
				if !strings.Contains(o.out, want) {
					t.Errorf("data\n%s\nwant %q", o.out, want)
				}
			}
			if !strings.Contains(o.talk, tt.talk) || !strings.Contains(o.talk, "keystile keys list --org "+orgID) {
				t.Errorf("told %q", o.talk)
			}
			var got struct {
				Effective any `json:"effective"`
			}
			if err := json.Unmarshal([]byte(d.run(t, "keys", "revoke", keyID, "-o", "json").out), &got); err != nil {
				t.Fatal(err)
			}
			encoded, _ := json.Marshal(tt.receipt)
			var want any
			_ = json.Unmarshal(encoded, &want)
			if diff := cmp.Diff(want, got.Effective); diff != "" {
				t.Errorf("json (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKeys_UpdateSendsWhatChanges(t *testing.T) {
	d := newDesk(t)
	d.reply("PATCH /v1/keys/{key}", keyChange(nil))
	d.reply("GET /v1/keys/{key}", keyDocument())
	tests := map[string]struct {
		args        []string
		want, match string
	}{
		"a name":        {[]string{"--name", "x"}, `{"name":"x"}`, ""},
		"scopes":        {[]string{"--scope", "a:b,c:d", "--if-version", "9"}, `{"scopes":["a:b","c:d"]}`, `"9"`},
		"more scopes":   {[]string{"--add-scope", "a:b"}, `{"scopes":["a:b","tickets:read"]}`, `"3"`},
		"other scopes":  {[]string{"--add-scope", "a:b", "--remove-scope", "tickets:read"}, `{"scopes":["a:b"]}`, `"3"`},
		"no addresses":  {[]string{"--no-cidrs"}, `{"allowed_cidrs":[]}`, ""},
		"its plan":      {[]string{"--plan-rate", "--never-expires"}, `{"expires_at":null,"rate_limit":null}`, ""},
		"a life":        {[]string{"--expires-in", "1d"}, `{"expires_at":"2026-10-21T12:00:00Z"}`, ""},
		"a limit":       {[]string{"--rate", "5/1s"}, `{"rate_limit":{"burst":5,"period_seconds":1,"rate":5}}`, ""},
		"metadata":      {[]string{"--metadata-json", "{}"}, `{"metadata":{}}`, ""},
		"own addresses": {[]string{"--cidr", "10.0.0.0/8,::1/128"}, `{"allowed_cidrs":["10.0.0.0/8","::1/128"]}`, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if o := d.run(t, append([]string{"keys", "update", keyID}, tt.args...)...); o.code != cli.ExitOK {
				t.Fatalf("exit %d, %v", o.code, o.err)
			}
			if got := d.last(t); got.body != tt.want || got.header.Get("If-Match") != tt.match {
				t.Errorf("asked %s with If-Match %s; want %s with %s", got.body, got.header.Get("If-Match"), tt.want, tt.match)
			}
		})
	}
}

func TestKeys_DisableAndEnable(t *testing.T) {
	d := newDesk(t)
	d.reply("PATCH /v1/keys/{key}", keyChange(obj{"effective": receipt(2, 2)}))
	if o := d.run(t, "keys", "disable", keyID); !strings.Contains(o.out, "denied on 2 of 2") || !strings.Contains(o.talk, "keystile keys enable "+keyID) {
		t.Errorf("data\n%s\ntold %q", o.out, o.talk)
	}
	if d.run(t, "keys", "enable", keyID); d.last(t).body != `{"disabled":false}` {
		t.Errorf("asked %s", d.last(t).body)
	}
}

func TestKeys_PostIsRepeatedOnceWhenItsConnectionBreaks(t *testing.T) {
	d := newDesk(t)
	broken := 0
	d.mux.HandleFunc("POST /v1/keys/{key}/revoke", func(w http.ResponseWriter, _ *http.Request) {
		if broken++; broken == 1 {
			panic(http.ErrAbortHandler)
		}
		answer(w, keyChange(obj{"effective": receipt(1, 1)}))
	})
	if o := d.run(t, "keys", "revoke", keyID); o.code != cli.ExitOK {
		t.Fatalf("exit %d, %v", o.code, o.err)
	}
	all := d.requests()
	if len(all) != 2 || all[0].header.Get("Idempotency-Key") == "" || all[0].header.Get("Idempotency-Key") != all[1].header.Get("Idempotency-Key") {
		t.Errorf("asked %d times; want twice with one Idempotency-Key", len(all))
	}
}
