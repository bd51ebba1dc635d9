package cli_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/supportstation/keystile/sdk/cli"
)

var importArgs = []string{"keys", "import", "--org", orgID, "--prefix", "acme_", "--length", "32", "--alphabet", "base62"}

// takeRows rejects rows by words that they hold, as the service does by what is
// wrong with them.
func (d *desk) takeRows() {
	d.mux.HandleFunc("POST /v1/organizations/{org}/keys/import", func(w http.ResponseWriter, r *http.Request) {
		var body strings.Builder
		buffer := make([]byte, 64<<10)
		for {
			n, err := r.Body.Read(buffer)
			body.Write(buffer[:n])
			if err != nil {
				break
			}
		}
		rejected := []obj{}
		lines := strings.Split(strings.TrimSuffix(body.String(), "\n"), "\n")
		for i, line := range lines {
			switch {
			case strings.Contains(line, "bad"):
				rejected = append(rejected, obj{"line": i + 1, "code": "invalid_row", "pointer": "/scopes", "message": "must name at least one scope"})
			case strings.Contains(line, "again"):
				rejected = append(rejected, obj{"line": i + 1, "code": "duplicate", "message": "is there already"})
			}
		}
		answer(w, obj{"imported": len(lines) - len(rejected), "rejected": rejected, "dry_run": r.URL.Query().Get("dry_run") == "true"})
	})
}

func rows(n int, special map[int]string) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		if line, ok := special[i]; ok {
			b.WriteString(line + "\n")
			continue
		}
		fmt.Fprintf(&b, `{"name":"row %d"}`+"\n", i)
	}
	return b.String()
}

func TestImport_ChunksAndNamesTheLinesOfTheFile(t *testing.T) {
	d := newDesk(t)
	d.takeRows()
	name := filepath.Join(t.TempDir(), "keys.jsonl")
	content := rows(1203, map[int]string{2: `{"bad":"private"}`, 3: "", 500: "", 502: "  again\r", 1203: "bad"})
	if err := os.WriteFile(name, []byte(strings.TrimSuffix(content, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	o := d.run(t, append(importArgs, name)...)
	want := "" +
		"line 2       invalid_row  /scopes must name at least one scope\n" +
		"line 502     duplicate    is there already\n" +
		"line 1203    invalid_row  /scopes must name at least one scope\n" +
		"imported 1198, rejected 3\n"
	if diff := cmp.Diff(want, o.out); diff != "" || o.code != cli.ExitFindings || o.err != nil {
		t.Errorf("exit %d, %v, data (-want +got):\n%s", o.code, o.err, diff)
	}
	if strings.Contains(o.out+o.talk, "private") {
		t.Error("a row is printed")
	}
	var sizes []int
	for _, request := range d.requests() {
		sizes = append(sizes, strings.Count(request.body, "\n"))
		if request.header.Get("Content-Type") != "application/x-ndjson" || request.query != "format_prefix=acme_&format_length=32&format_alphabet=base62" {
			t.Errorf("asked as %s with %s", request.header.Get("Content-Type"), request.query)
		}
	}
	if diff := cmp.Diff([]int{500, 500, 201}, sizes); diff != "" {
		t.Errorf("lines in a request (-want +got):\n%s", diff)
	}
}

func TestImport_DuplicatesAloneAreNoFinding(t *testing.T) {
	d := newDesk(t)
	d.takeRows()
	o := d.runWith(t, "again\nagain\n", append(importArgs, "-")...)
	if o.code != cli.ExitOK || !strings.Contains(o.talk, "imported 0 keys; 2 rejected, 2 of them duplicates") {
		t.Errorf("exit %d, %v, told %q", o.code, o.err, o.talk)
	}
}

func TestImport_LongLineIsRejectedHere(t *testing.T) {
	d := newDesk(t)
	d.takeRows()
	o := d.runWith(t, "one\n"+strings.Repeat("x", 200<<10)+"\nthree\nbad\n", append(importArgs, "-")...)
	if o.code != cli.ExitFindings || !strings.Contains(o.out, "line 2 ") || !strings.Contains(o.out, "line 4 ") || !strings.Contains(o.out, "imported 2, rejected 2") {
		t.Errorf("exit %d, %v\n%s", o.code, o.err, o.out)
	}
}

func TestImport_JSONAndYAMLAreOneDocument(t *testing.T) {
	for _, stdin := range []string{"one\n", "bad\none\nagain\n"} {
		d := newDesk(t)
		d.takeRows()
		var fromJSON, fromYAML struct {
			Imported int              `json:"imported" yaml:"imported"`
			DryRun   bool             `json:"dry_run" yaml:"dry_run"`
			Rejected []map[string]any `json:"rejected" yaml:"rejected"`
		}
		out := d.runWith(t, stdin, append(importArgs, "-", "--dry-run", "-o", "json")...).out
		if err := json.Unmarshal([]byte(out), &fromJSON); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		out = d.runWith(t, stdin, append(importArgs, "-", "--dry-run", "-o", "yaml")...).out
		if err := yaml.Unmarshal([]byte(out), &fromYAML); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		want := strings.Count(stdin, "\n") - 1
		if fromJSON.Imported != 1 || !fromJSON.DryRun || len(fromJSON.Rejected) != want || len(fromYAML.Rejected) != want || fromYAML.Imported != 1 {
			t.Errorf("%q: %+v, %+v", stdin, fromJSON, fromYAML)
		}
	}
}

func TestImport_BrokenOffTellsWhereToGoOn(t *testing.T) {
	d := newDesk(t)
	count := 0
	d.mux.HandleFunc("POST /v1/organizations/{org}/keys/import", func(w http.ResponseWriter, _ *http.Request) {
		if count++; count > 1 {
			problem(w, 503, "unavailable", "try again")
			return
		}
		answer(w, obj{"imported": 500, "rejected": []obj{}, "dry_run": false})
	})
	o := d.runWith(t, rows(600, nil), append(importArgs, "-")...)
	if o.code != cli.ExitUnavailable || !strings.Contains(o.talk, "imported 500 keys") || !strings.Contains(o.talk, "line 501") {
		t.Errorf("exit %d, %v, told %q", o.code, o.err, o.talk)
	}
	d = newDesk(t)
	d.refuse("POST /", 403, "role_forbidden")
	if o := d.runWith(t, "one\n", append(importArgs, "-")...); o.code != cli.ExitDenied || o.out != "" {
		t.Errorf("exit %d, %v, data %q; want denied, and no data", o.code, o.err, o.out)
	}
}
