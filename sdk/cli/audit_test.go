package cli_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/supportstation/keystile/sdk/cli"
)

func foundKey(id, name, organization, severity, code, remedy string) obj {
	counted := obj{"requests": 7, "days": 3}
	return obj{
		"evidence": obj{
			"organization_id": orgID, "organization_name": organization, "key_id": id, "key_name": name, "hint": "sk_live_4fGh…9aBc", "environment": "live",
			"state": "active", "version": 3, "created_at": "2026-01-01T00:00:00Z", "window": obj{"since": "2026-07-22T00:00:00Z", "until": "2026-10-20T12:00:00Z"},
			"days_used": 3, "allowed": counted, "denied": counted, "scopes": []obj{{"scope": "tickets:write", "granted": true, "requests": 0, "days_used": 0}},
		},
		"findings": []obj{{
			"code": code, "severity": severity, "confidence": "high", "scopes": []string{"tickets:write"}, "message": "tickets:write granted, not exercised in 92 days.",
			"recommendation": "Ask who uses it.", "remedy": remedy, "remove_scopes": []string{"tickets:write"},
		}},
		"not_enough_evidence": []string{}, "coverage": "Covers 92 days; nothing older was asked.", "proposed_scopes": []string{"tickets:read"},
	}
}

func findingsSummary(high, low int) obj {
	return obj{
		"policy_revision": "sha256:x", "window": obj{"since": "2026-07-22T00:00:00Z", "until": "2026-10-20T12:00:00Z"}, "keys": 40, "keys_with_findings": high + low,
		"keys_not_enough_evidence": 5, "findings": high + low, "by_code": obj{"unused_scope": high + low}, "by_severity": obj{"high": high, "low": low},
		"evidence_classes": 9, "seconds": 0.1,
	}
}

// lines has a route answer in lines.
func (d *desk) lines(route string, lines ...any) {
	d.mux.HandleFunc(route, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		for _, line := range lines {
			_ = json.NewEncoder(w).Encode(line)
		}
	})
}

const findingsRoute = "GET /v1/organizations/" + orgID + "/findings"

func TestAuditRun_ATableTellsTheGravestFirstWithACommand(t *testing.T) {
	d := newDesk(t)
	d.lines(findingsRoute, obj{"progress": obj{"judged": 0, "keys": 40}},
		obj{"key": foundKey(keyID, "ci\x1b[31m", "Acme", "low", "unused_scope", "narrow_scopes")},
		obj{"key": foundKey("key_01jb0000000000000000000001", "web", "Acme", "high", "live_key_in_browser", "change_client")},
		obj{"summary": findingsSummary(1, 1)})
	o := d.run(t, "audit", "run", "--org", orgID, "--since", "90d")
	want := "Acme " + orgID + "\n\n" +
		"  web key_01jb0000000000000000000001, sk_live_4fGh…9aBc, live, active\n" +
		"    high   live_key_in_browser  tickets:write\n" +
		"           tickets:write granted, not exercised in 92 days.\n" +
		"           Ask who uses it.\n" +
		"    Covers 92 days; nothing older was asked.\n\n" +
		"  ci\uFFFD[31m " + keyID + ", sk_live_4fGh…9aBc, live, active\n" +
		"    low    unused_scope  tickets:write\n" +
		"           tickets:write granted, not exercised in 92 days.\n" +
		"           Ask who uses it.\n" +
		"           keystile audit apply " + keyID + "\n" +
		"    Covers 92 days; nothing older was asked.\n\n" +
		"  judged        40 keys of 2026-07-22 00:00:00Z to 2026-10-20 12:00:00Z\n" +
		"  findings      1 high, 1 low, of 2 keys\n" +
		"  not known     5 keys with too little evidence for some kinds; -o json names them\n"
	if o.code != 0 || o.out != want {
		t.Errorf("exit %d, %v:\n%s\nwant:\n%s", o.code, o.err, o.out, want)
	}
	if asked := d.last(t); asked.header.Get("Accept") != "application/x-ndjson" || !strings.Contains(asked.query, "since=2026-07-22T12") {
		t.Errorf("asked %s", asked.query)
	}
}

func TestAuditRun_ExitTellsHowGraveItIs(t *testing.T) {
	for args, want := range map[string]int{"": 0, "--fail-on high": 0, "--fail-on medium": 0, "--fail-on low": cli.ExitFindings} {
		d := newDesk(t)
		d.lines(findingsRoute, obj{"summary": findingsSummary(0, 2)})
		if o := d.run(t, append([]string{"audit", "run", "--org", orgID}, strings.Fields(args)...)...); o.code != want {
			t.Errorf("%q: exit %d, %v; want %d", args, o.code, o.err, want)
		}
	}
}

// What ends before its end, or with a problem, is no report: nothing is left of it.
func TestAuditRun_AReportIsWholeOrNotThere(t *testing.T) {
	for name, tt := range map[string]struct {
		last any
		code int
	}{
		"whole":     {obj{"summary": findingsSummary(0, 0)}, 0},
		"cut off":   {obj{"text": "more"}, cli.ExitUnexpected},
		"a problem": {obj{"problem": obj{"type": "x", "title": "x", "status": 503, "code": "unavailable", "detail": "x", "request_id": "r"}}, cli.ExitUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.lines(findingsRoute, obj{"text": "a,b\r\n"}, tt.last)
			file := filepath.Join(t.TempDir(), "findings.csv")
			o := d.run(t, "audit", "run", "--org", orgID, "-o", "csv", "--out", file)
			if o.code != tt.code {
				t.Errorf("exit %d, %v; want %d", o.code, o.err, tt.code)
			}
			text, err := os.ReadFile(file)
			if whole := err == nil && string(text) == "a,b\r\n"; whole != (tt.code == 0) {
				t.Errorf("%q, %v", text, err)
			}
			if left, _ := os.ReadDir(filepath.Dir(file)); len(left) > 1 || len(left) == 1 && tt.code != 0 {
				t.Errorf("left: %v", left)
			}
			if !strings.Contains(d.last(t).query, "document=csv") {
				t.Errorf("asked %s", d.last(t).query)
			}
		})
	}
}

func TestAuditRun_TheNameOfOutTellsTheFormUnlessItIsGiven(t *testing.T) {
	for _, c := range []struct{ name, output, want string }{
		{"o.html", "", "document=html"},
		{"o.CSV", "", "document=csv"},
		{"o.sarif", "", "document=sarif"},
		{"o.json", "", "document=json"},
		{"o.txt", "", ""},
		{"html", "", ""},
		{"o.html", "csv", "document=csv"},
		{"o.html", "table", ""},
	} {
		d := newDesk(t)
		d.lines(findingsRoute, obj{"text": "x"}, obj{"summary": findingsSummary(0, 0)})
		args := []string{"audit", "run", "--org", orgID, "--out", filepath.Join(t.TempDir(), c.name)}
		if c.output != "" {
			args = append(args, "-o", c.output)
		}
		if o := d.run(t, args...); o.code != 0 {
			t.Errorf("%s: exit %d, %v", c.name, o.code, o.err)
		}
		if asked := d.last(t).query; !strings.Contains(asked, c.want) || c.want == "" && strings.Contains(asked, "document") {
			t.Errorf("%s -o %q: asked %q; want %q", c.name, c.output, asked, c.want)
		}
	}
}

// What is there keeps its kind, its place and its mode.
func TestAuditRun_OutWritesToWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	run := func(out string) {
		t.Helper()
		d := newDesk(t)
		d.lines(findingsRoute, obj{"text": "a,b\r\n"}, obj{"summary": findingsSummary(0, 0)})
		if o := d.run(t, "audit", "run", "--org", orgID, "-o", "csv", "--out", out); o.code != 0 {
			t.Fatalf("exit %d, %v", o.code, o.err)
		}
	}
	file, link, pipe := filepath.Join(dir, "findings.csv"), filepath.Join(dir, "latest.csv"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(file, nil, 0o640), os.Chmod(file, 0o640), os.Symlink("findings.csv", link), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	run(link)
	text, err := os.ReadFile(file)
	info, err2 := os.Lstat(link)
	if err := errors.Join(err, err2); err != nil || string(text) != "a,b\r\n" || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("through a link: %q, %v, %v", text, info, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	read := make(chan string, 1)
	go func() {
		text, err := os.ReadFile(pipe)
		read <- fmt.Sprint(string(text), err)
	}()
	run(pipe)
	if got := <-read; got != "a,b\r\n<nil>" {
		t.Errorf("through a pipe: %q", got)
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("the pipe was replaced: %v, %v", info, err)
	}
}

// Without --org it is the only organization that the admin sees, or all of them.
func TestAuditRun_AsksAboutWhatTheAdminSees(t *testing.T) {
	for name, orgs := range map[string]obj{"/v1/organizations/" + orgID + "/findings": page(orgDocument()), "/v1/findings": page(orgDocument(), orgDocument())} {
		d := newDesk(t)
		d.reply("GET /v1/organizations", orgs)
		d.lines("GET "+name, obj{"summary": findingsSummary(0, 0)})
		if o := d.run(t, "audit", "run"); o.code != 0 || d.last(t).path != name {
			t.Errorf("asked %s; exit %d, %v", d.last(t).path, o.code, o.err)
		}
	}
}

func narrowedDocument(changes obj) obj {
	return with(obj{
		"key": keyDocument(), "scopes_before": []string{"tickets:read", "tickets:write"}, "scopes_after": []string{"tickets:read"}, "narrowed_at": "2026-10-20T12:00:00Z",
		"narrowed_by": adminID, "undoable_until": "2027-11-24T12:00:00Z", "undone": false, "findings": foundKey(keyID, "ci", "Acme", "medium", "unused_scope", "narrow_scopes")["findings"],
		"coverage": "Covers 92 days; nothing older was asked.", "effective": receipt(3, 3), "dry_run": false,
		"asked": obj{
			"policy_revision": "sha256:x", "since": "2026-07-22T12:00:00Z", "until": "2026-10-20T12:00:00Z", "kinds": 1, "requests": 412,
			"listed": []obj{{"outcome": "kept", "method": "GET", "path": "/api/v1/tickets", "action": "", "caller": "tickets", "requests": 412, "passed": 400, "before": "allowed", "after": "allowed"}},
		},
	}, changes)
}

func TestAuditApply_TellsWhyAndHowToUndo(t *testing.T) {
	d := newDesk(t)
	d.reply("POST /v1/keys/"+keyID+"/findings/apply", narrowedDocument(nil))
	o := d.run(t, "audit", "apply", keyID, "--keep", "customers:read", "--if-version", "3")
	for _, part := range []string{
		"  scopes        tickets:read\n", "  were          tickets:read tickets:write\n", "  because       tickets:write granted, not exercised in 92 days.\n",
		"  evidence      Covers 92 days", "asked         the policy about 1 kind of requests, 412 requests of them, since 2026-07-22 12:00:00Z",
		"narrowed on 3 of 3 replicas after 41 ms", "undo until    2027-11-24 12:00:00Z", "GET /api/v1/tickets", "allowed",
	} {
		if !strings.Contains(o.out, part) {
			t.Errorf("no %q in:\n%s", part, o.out)
		}
	}
	if asked := d.last(t); o.code != 0 || asked.body != `{"keep":["customers:read"]}`+"\n" && asked.body != `{"keep":["customers:read"]}` || asked.header.Get("If-Match") != `"3"` ||
		!strings.Contains(o.talk, "keystile audit undo "+keyID) {
		t.Errorf("exit %d, sent %q, said %s", o.code, asked.body, o.talk)
	}
	d = newDesk(t)
	d.reply("POST /v1/keys/"+keyID+"/findings/undo", narrowedDocument(obj{"undone": true, "asked": nil, "effective": nil, "coverage": nil, "findings": []obj{}}))
	if o := d.run(t, "audit", "undo", keyID); o.code != 0 || !strings.Contains(o.talk, "gave back the scopes of key "+keyID) {
		t.Errorf("exit %d, %v, said %s", o.code, o.err, o.talk)
	}
}

func TestAuditApply_EachRequestThatIsAgainstItIsTold(t *testing.T) {
	for code, want := range map[string]int{"traffic_needs_scopes": cli.ExitFindings, "usage_not_written": cli.ExitUnavailable} {
		d := newDesk(t)
		d.mux.HandleFunc("POST /", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(409)
			_ = json.NewEncoder(w).Encode(obj{
				"type": "x", "title": "x", "status": 409, "code": code, "detail": "the key stays as it is", "request_id": "r",
				"reasons": []obj{{"code": "denied", "message": "POST /api/v1/tickets, 3 times."}, {"code": "doubtful", "message": "GET /x, once."}},
			})
		})
		o := d.run(t, "audit", "apply", keyID)
		if o.code != want || !strings.Contains(o.talk, "denied: POST /api/v1/tickets, 3 times.\ndoubtful: GET /x, once.\n") || !strings.Contains(errorText(o.err), "stays as it is") {
			t.Errorf("%s: exit %d, %v, said %q", code, o.code, o.err, o.talk)
		}
	}
}

func TestAuditRun_NoCommandKeepsAnExposedSecretOrTakesAKeyForGood(t *testing.T) {
	for code, c := range map[string]struct{ remedy, want string }{
		"live_key_in_browser": {"rotate_key", "keystile keys rotate " + keyID + " --reason compromised\n"},
		"never_rotated":       {"rotate_key", "keystile keys rotate " + keyID + " --grace 24h\n"},
		"unused_key":          {"revoke_key", "keystile keys disable " + keyID + "   # and revoke it once nobody has missed it\n"},
	} {
		d := newDesk(t)
		d.lines(findingsRoute,
			obj{"key": foundKey(keyID, "ci", "Acme", "high", code, c.remedy)}, obj{"summary": findingsSummary(1, 0)})
		if o := d.run(t, "audit", "run", "--org", orgID); !strings.Contains(o.out, "Ask who uses it.\n           "+c.want) {
			t.Errorf("%s: exit %d, %v:\n%s\nwant %s", code, o.code, o.err, o.out, c.want)
		}
	}
}
