package cli_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/supportstation/keystile/sdk/cli"
)

func event(sequence int) obj {
	return obj{
		"id": "evt_" + strconv.Itoa(sequence), "organization_id": orgID, "sequence": sequence, "at": "2026-10-20T11:00:00Z", "revision": sequence,
		"actor": obj{"type": "admin", "id": adminID}, "action": "keys.revoke", "target": keyID, "before": obj{"name": "<a&b>"}, "after": nil,
		"address": nil, "request_id": nil, "key_id": "p1", "previous_mac": nil, "mac": "00",
	}
}

// trail serves so many events, in either order.
func (d *desk) trail(route string, events int) {
	d.mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) {
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		start, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
		items := []obj{}
		for ; len(items) < limit && start < events; start++ {
			sequence := start + 1
			if r.URL.Query().Get("order") != "oldest" {
				sequence = events - start
			}
			items = append(items, event(sequence))
		}
		var next any
		if start < events {
			next = strconv.Itoa(start)
		}
		answer(w, obj{"items": items, "next_cursor": next})
	})
}

func TestAuditLog_ListIsNewestFirst(t *testing.T) {
	d := newDesk(t)
	d.trail("GET /v1/organizations/{org}/audit-log", 3)
	o := d.run(t, "audit-log", "list", "--org", orgID, "--limit", "2", "--action", "keys.revoke", "--target", keyID)
	want := "" +
		"#  AT                    ACTION       TARGET                          ACTOR\n" +
		"3  2026-10-20 11:00:00Z  keys.revoke  " + keyID + "  " + adminID + "\n" +
		"2  2026-10-20 11:00:00Z  keys.revoke  " + keyID + "  " + adminID + "\n"
	if diff := cmp.Diff(want, o.out); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if got := d.last(t).query; got != "limit=2&order=newest&action=keys.revoke&target="+keyID {
		t.Errorf("asked with %q", got)
	}
}

func TestAuditLog_WithoutOrgIsTheChainThatTheAdminMaySee(t *testing.T) {
	d := newDesk(t)
	d.refuse("GET /v1/audit-log", 403, "role_forbidden")
	d.reply("GET /v1/organizations", page(orgDocument()))
	d.trail("GET /v1/organizations/{org}/audit-log", 1)
	if o := d.run(t, "audit-log", "list"); o.code != cli.ExitOK || !strings.Contains(o.out, keyID) {
		t.Errorf("exit %d, %v\n%s", o.code, o.err, o.out)
	}
	d = newDesk(t)
	d.trail("GET /v1/audit-log", 1)
	if o := d.run(t, "audit-log", "list"); o.code != cli.ExitOK || len(d.requests()) != 1 {
		t.Errorf("exit %d, %v, asked %d", o.code, o.err, len(d.requests()))
	}
}

func TestAuditLog_ExportHasAllEventsOldestFirst(t *testing.T) {
	d := newDesk(t)
	d.trail("GET /v1/audit-log", 450)
	name := filepath.Join(t.TempDir(), "trail.jsonl")
	o := d.run(t, "audit-log", "export", "--file", name)
	content, err := os.ReadFile(name)
	if o.code != cli.ExitOK || err != nil || o.out != "" || !strings.Contains(o.talk, "exported 450 events to "+name) {
		t.Fatalf("exit %d, %v, %v, data %q, told %q", o.code, o.err, err, o.out, o.talk)
	}
	lines := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	if len(lines) != 450 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, line := range lines {
		var got struct{ Sequence int }
		if err := json.Unmarshal([]byte(line), &got); err != nil || got.Sequence != i+1 {
			t.Fatalf("line %d: %v, %s", i+1, err, line)
		}
	}
	if o := d.run(t, "audit-log", "export", "--file", name); o.code != cli.ExitUsage {
		t.Errorf("over a file that is there: exit %d, %v", o.code, o.err)
	}
	if o := d.run(t, "audit-log", "export"); o.out != string(content) {
		t.Error("standard output has not what the file has")
	}
}

func verification(valid bool, problems ...obj) obj {
	if problems == nil {
		problems = []obj{}
	}
	return obj{"valid": valid, "chains": 2, "rows": 9, "checkpoints": 1, "problems": problems}
}

func TestAuditLog_VerifySendsTheCheckpointsOfALog(t *testing.T) {
	d := newDesk(t)
	d.reply("POST /v1/audit-log/verify", verification(true))
	checkpoint := `{"keystile_checkpoint":1,"at":"2026-10-20T12:00:00Z","heads":[]}`
	quoted, _ := json.Marshal(checkpoint)
	log := strings.Join([]string{
		`{"level":"INFO","msg":"serving"}`,
		`{"level":"INFO","msg":"a line about keystile_checkpoint"}`,
		checkpoint,
		`{"level":"INFO","msg":"checkpoint","checkpoint":` + string(quoted) + `}`,
		`{"keystile_checkpoint":1,"at":"2026-10-2`,
	}, "\n")
	o := d.runWith(t, log, "audit-log", "verify", "--checkpoint", "-")
	if o.code != cli.ExitOK || o.out != "SOUND 9 events in 2 chains, 1 checkpoint\n" {
		t.Errorf("exit %d, %v\n%s", o.code, o.err, o.out)
	}
	var got struct{ Checkpoints []string }
	_ = json.Unmarshal([]byte(d.last(t).body), &got)
	if diff := cmp.Diff([]string{checkpoint, checkpoint, `{"keystile_checkpoint":1,"at":"2026-10-2`}, got.Checkpoints); diff != "" {
		t.Errorf("checkpoints (-want +got):\n%s", diff)
	}
}

func TestAuditLog_VerifyFindsCheckpointsInEveryFormOfLog(t *testing.T) {
	checkpoint := `{"keystile_checkpoint":1,"at":"2026-10-20T12:00:00Z","heads":[{"chain":"platform"}],"signature":"a+/="}`
	logged := func(handler func(io.Writer) slog.Handler, message string, args ...any) string {
		var line strings.Builder
		record := slog.NewRecord(testNow, slog.LevelInfo, message, 0)
		record.Add(args...)
		_ = handler(&line).Handle(t.Context(), record)
		return strings.TrimSuffix(line.String(), "\n")
	}
	text := func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) }
	object := func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) }
	inText := logged(text, "audit checkpoint", "checkpoint", checkpoint)
	cut := inText[:len(inText)-40]
	_, left, _ := strings.Cut(cut, `checkpoint="`)
	for name, tt := range map[string]struct {
		line string
		want []string
	}{
		"a plain line":                      {checkpoint, []string{checkpoint}},
		"a plain line behind a prefix":      {"Oct 20 12:00:00 host keystile[7]: " + checkpoint, []string{checkpoint}},
		"a text log":                        {inText, []string{checkpoint}},
		"a text log behind a prefix":        {"Oct 20 12:00:00 host keystile[7]: " + inText, []string{checkpoint}},
		"a text log that goes on":           {inText + ` replica="a b" n=1`, []string{checkpoint}},
		"a JSON log":                        {logged(object, "audit checkpoint", "checkpoint", checkpoint), []string{checkpoint}},
		"a text log in a collector's JSON":  {`{"stream":"stderr","log":` + strconv.Quote(inText) + `}`, []string{checkpoint}},
		"a JSON log behind a prefix":        {"keystile: " + logged(object, "audit checkpoint", "checkpoint", checkpoint), []string{checkpoint}},
		"a damaged plain line":              {checkpoint[:30], []string{checkpoint[:30]}},
		"a damaged object in a text log":    {logged(text, "audit checkpoint", "checkpoint", checkpoint[:30]), []string{checkpoint[:30]}},
		"a damaged object in a JSON log":    {logged(object, "audit checkpoint", "checkpoint", checkpoint[:30]), []string{checkpoint[:30]}},
		"a text line that is cut":           {cut, []string{left}},
		"a mention in a text log":           {logged(text, "a line about keystile_checkpoint"), nil},
		"a mention in a JSON log":           {logged(object, "a line about keystile_checkpoint"), nil},
		"a mention as the checkpoint":       {logged(text, "x", "checkpoint", "no keystile_checkpoint here"), nil},
		"a mention as a JSON checkpoint":    {logged(object, "x", "checkpoint", "no keystile_checkpoint here"), nil},
		"a mention without quotes":          {"checkpoint=keystile_checkpoint", nil},
		"a mention next to other JSON":      {`level=INFO msg="{} keystile_checkpoint" n={"a":1}`, nil},
		"a mention before the checkpoint":   {logged(text, "keystile_checkpoint", "checkpoint", checkpoint), []string{checkpoint}},
		"another key that ends the same":    {logged(text, "x", "last_checkpoint", "keystile_checkpoint"), nil},
		"a word that ends in checkpoint=":   {`msg="checkpoint=" checkpoint=` + strconv.Quote(checkpoint), []string{checkpoint}},
		"a checkpoint whose start was lost": {checkpoint[1:], []string{checkpoint[1:]}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.reply("POST /v1/audit-log/verify", verification(true))
			o := d.runWith(t, tt.line+"\n", "audit-log", "verify", "--checkpoint", "-")
			if tt.want == nil {
				if o.code != cli.ExitUsage || len(d.requests()) != 0 {
					t.Errorf("exit %d, %v, asked %d; want nothing sent", o.code, o.err, len(d.requests()))
				}
				return
			}
			if o.code != cli.ExitOK {
				t.Fatalf("exit %d, %v", o.code, o.err)
			}
			var got struct{ Checkpoints []string }
			_ = json.Unmarshal([]byte(d.last(t).body), &got)
			if diff := cmp.Diff(tt.want, got.Checkpoints); diff != "" {
				t.Errorf("checkpoints (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAuditLog_VerifySendsManyCheckpointsInParts(t *testing.T) {
	d := newDesk(t)
	d.reply("POST /v1/organizations/{org}/audit-log/verify", verification(false, obj{"organization_id": orgID, "sequence": 4, "code": "missing", "message": "a row is missing"}))
	line := `{"keystile_checkpoint":1,"heads":["` + strings.Repeat("0", 60<<10) + `"]}`
	o := d.runWith(t, strings.Repeat(line+"\n", 40), "audit-log", "verify", "--org", orgID, "--checkpoint", "-", "-o", "json")
	sizes := []int{}
	for _, request := range d.requests() {
		sizes = append(sizes, strings.Count(request.body, "keystile_checkpoint"))
	}
	if slices.Max(sizes) > 17 || len(sizes) < 3 {
		t.Errorf("sent in parts of %v", sizes)
	}
	var got struct {
		Problems    []any
		Checkpoints int
	}
	if err := json.Unmarshal([]byte(o.out), &got); err != nil || len(got.Problems) != 1 || got.Checkpoints != len(sizes) || o.code != cli.ExitFindings {
		t.Errorf("exit %d, %v, %+v", o.code, err, got)
	}
}

func TestAuditLog_VerifyNamesEachProblem(t *testing.T) {
	d := newDesk(t)
	d.reply("POST /v1/audit-log/verify", verification(false,
		obj{"organization_id": orgID, "sequence": 4, "code": "edited", "message": "the row differs from its MAC"},
		obj{"organization_id": nil, "sequence": nil, "code": "bad_checkpoint", "message": "line 3"},
		obj{"organization_id": nil, "sequence": 7, "code": "missing", "message": "rows 7 to 8 are missing"}))
	o := d.run(t, "audit-log", "verify")
	want := "" +
		"NOT SOUND 9 events in 2 chains, 1 checkpoint\n" +
		"CHAIN                           #  PROBLEM         WHAT\n" +
		orgID + "  4  edited          the row differs from its MAC\n" +
		"-                               -  bad_checkpoint  line 3\n" +
		"platform                        7  missing         rows 7 to 8 are missing\n"
	if diff := cmp.Diff(want, o.out); diff != "" || o.code != cli.ExitFindings || o.err != nil {
		t.Errorf("exit %d, %v, data (-want +got):\n%s", o.code, o.err, diff)
	}
	if d.last(t).body != "{}" {
		t.Errorf("asked %s", d.last(t).body)
	}
}
