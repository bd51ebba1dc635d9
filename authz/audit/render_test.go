package audit_test

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"
	"golang.org/x/net/html"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/audit"
)

// hostile are names that somebody gives a key to do harm wherever it is shown.
func hostile() []string {
	return []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `=cmd|' /C calc'!A0`, `+1+1`, `-2+3`, `@SUM(A1)`, "\t=1", "\r=1", "\n=1", "  =1+1",
		"＝1", `a",=1`, "a\r\n=1", `a;=1`, "{{.Title}}", "</title><svg/onload=alert(1)>", "\ufeff=1", "–plain", "ordinary",
	}
}

func rendered(t *testing.T, f audit.Format, all []*authz.Evidence) []byte {
	t.Helper()
	var out bytes.Buffer
	r, err := audit.NewRenderer(f, &out)
	if err != nil {
		t.Fatal(err)
	}
	found, summary := collect(t, audit.New(shipped(t)), all)
	for _, k := range found {
		if err := r.Key(k); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.End(&summary); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// evil are keys with hostile names and findings.
func evil() (all []*authz.Evidence) {
	for i, name := range hostile() {
		e := quiet()
		e.KeyName, e.OrganizationName, e.Hint = name, name, name
		e.Scopes[1].DaysUsed, e.Scopes[1].Requests = 0, 0
		e.Networks, e.ExpiresAt = 20+i, time.Time{}
		all = append(all, e)
	}
	return all
}

// Every cell is read as it was written, and none begins like a formula.
func TestCSV_NoCellIsAFormula(t *testing.T) {
	raw := rendered(t, audit.CSV, evil())
	if !bytes.HasSuffix(raw, []byte("\r\n")) || !bytes.HasPrefix(raw, []byte(`"severity","code",`)) {
		t.Errorf("it is no CSV of RFC 4180: %q", raw[:50])
	}
	rows, err := csv.NewReader(bytes.NewReader(raw)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if want := 1 + 3*len(hostile()); len(rows) != want {
		t.Fatalf("there are %d rows, not %d", len(rows), want)
	}
	for _, row := range rows {
		for _, cell := range row {
			if begins, _ := utf8.DecodeRuneInString(strings.TrimLeft(cell, " \t\r\n\u00a0\ufeff")); strings.ContainsRune("=+-@＝＋－＠", begins) || strings.HasPrefix(cell, "\t") {
				t.Errorf("a cell is %q", cell)
			}
		}
	}
	// Somebody else's separator finds no cell inside of one either: each is in quotes.
	if n := bytes.Count(raw, []byte(`","`)); n != len(rows)*(len(rows[0])-1) {
		t.Errorf("%d cells are in quotes", n)
	}
}

// A page has nothing that runs, whatever a key is called, and needs nothing from elsewhere.
func TestHTML_NamesAreInertAndThePageIsWhole(t *testing.T) {
	raw := rendered(t, audit.HTML, evil())
	texts := map[string]bool{}
	tokens := html.NewTokenizer(bytes.NewReader(raw))
	for {
		kind := tokens.Next()
		if kind == html.ErrorToken {
			break
		}
		token := tokens.Token()
		if kind == html.TextToken {
			texts[token.Data] = true
			continue
		}
		switch token.Data {
		case "script", "img", "iframe", "link", "object", "embed", "form", "base", "a":
			t.Errorf("there is a <%s>", token.Data)
		}
		for _, a := range token.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "src" || a.Key == "href" || a.Key == "style" {
				t.Errorf("<%s> has %s=%q", token.Data, a.Key, a.Val)
			}
		}
	}
	for _, name := range hostile() {
		if name = strings.ReplaceAll(strings.ReplaceAll(name, "\r\n", "\n"), "\r", "\n"); !texts[name] {
			t.Errorf("%q is not shown as it is", name)
		}
	}
	for _, want := range []string{"All of it was counted, 92 days; nothing older was asked.", "Would do with", "prefers-color-scheme: dark", "@media print", "<svg"} {
		if !bytes.Contains(raw, []byte(want)) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if bytes.Contains(raw, []byte("ZgotmplZ")) {
		t.Error("the template refused something")
	}
}

func TestHTML_APageWithoutFindingsSaysSo(t *testing.T) {
	if raw := rendered(t, audit.HTML, []*authz.Evidence{quiet()}); !bytes.Contains(raw, []byte("Nothing was found.")) {
		t.Error("it does not say so")
	}
}

func TestSARIF_ValidatesAgainstItsSchema(t *testing.T) {
	for name, all := range map[string][]*authz.Evidence{"some": evil(), "none": {quiet()}} {
		t.Run(name, func(t *testing.T) {
			raw := rendered(t, audit.SARIF, all)
			report, err := sarif.FromBytes(raw, sarif.WithStrictValidation())
			if err != nil {
				t.Fatal(err)
			}
			if err := report.Validate(); err != nil {
				t.Fatal(err)
			}
			run := report.Runs[0]
			if name == "none" {
				if len(run.Results) != 0 || !bytes.Contains(raw, []byte(`"results":[]`)) {
					t.Errorf("there are %d results", len(run.Results))
				}
				return
			}
			if len(run.Results) != 3*len(hostile()) || len(run.Tool.Driver.Rules) != 3 || run.Results[0].Level != "error" {
				t.Errorf("there are %d results of %d rules", len(run.Results), len(run.Tool.Driver.Rules))
			}
			for _, r := range run.Results {
				if *run.Tool.Driver.Rules[r.RuleIndex].ID != *r.RuleID || len(r.PartialFingerprints) != 1 || *r.Locations[0].LogicalLocations[0].FullyQualifiedName == "" {
					t.Errorf("a result is %+v", r)
				}
			}
		})
	}
}

func TestJSON_IsWhole(t *testing.T) {
	for _, all := range [][]*authz.Evidence{evil(), {quiet()}, nil} {
		var whole struct {
			Keys    []authz.KeyFindings `json:"keys"`
			Summary authz.AuditSummary  `json:"summary"`
		}
		if err := json.Unmarshal(rendered(t, audit.JSON, all), &whole); err != nil {
			t.Fatal(err)
		}
		lines := bytes.Split(bytes.TrimSpace(rendered(t, audit.JSONLines, all)), []byte("\n"))
		if int64(len(whole.Keys)) != whole.Summary.Flagged || len(lines) != len(whole.Keys)+1 || whole.Summary.Keys != int64(len(all)) {
			t.Errorf("%d keys, %d lines, %+v", len(whole.Keys), len(lines), whole.Summary)
		}
		for _, line := range lines {
			if !json.Valid(line) {
				t.Errorf("a line is %s", line)
			}
		}
	}
}

func TestRenderer_FormatsHaveMediaTypes(t *testing.T) {
	for _, f := range []audit.Format{audit.JSON, audit.JSONLines, audit.CSV, audit.SARIF, audit.HTML} {
		if f.MediaType() == "" {
			t.Errorf("%s has none", f)
		}
	}
	if _, err := audit.NewRenderer("pdf", nil); err == nil || audit.Format("pdf").MediaType() != "" {
		t.Error("pdf is a format")
	}
}

// broken is a writer that is full.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errFull }

var errFull = errors.New("full")

func TestRenderer_AFullDiskIsAnError(t *testing.T) {
	found, summary := collect(t, audit.New(shipped(t)), evil())
	for _, f := range []audit.Format{audit.JSON, audit.JSONLines, audit.CSV, audit.SARIF, audit.HTML} {
		r, err := audit.NewRenderer(f, broken{})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range found {
			if err = r.Key(k); err != nil {
				break
			}
		}
		if err == nil {
			err = r.End(&summary)
		}
		if !errors.Is(err, errFull) {
			t.Errorf("%s says %v", f, err)
		}
	}
}
