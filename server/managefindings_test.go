package server

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// valid holds an answer to a schema of the document.
func (w *world) valid(t *testing.T, schema string, body []byte) {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.Document())
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var value map[string]any
	if err := decoder.Decode(&value); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	for _, issue := range schemaIssues(doc.Components.Schemas[schema].Value, value) {
		t.Errorf("%s: %s %s: %s", schema, issue.pointer, issue.message, body)
	}
}

// unusedScope is a key of acme's with a scope that nobody has used for a quarter, beside one
// that somebody has.
func (w *world) unusedScope() {
	w.t.Helper()
	key, org := mustID[authz.KeyID](w.t, w.acme.key), mustID[authz.OrganizationID](w.t, w.acme.id)
	w.exec(`UPDATE api_keys SET scopes = '{customers:read,tickets:read}', created_at = now() - interval '300 days', name = '=cmd()' WHERE id = $1`, key)
	w.exec(`INSERT INTO usage_shapes (id, policy, method, path, route, ambiguous, collapsed, action, environment, resource_type, resource_id,
		resource_organization, address, relative, browser, stale, scopes, seen_on)
		VALUES ('00000000-0000-0000-0000-000000000001', 'r', 'GET', '', '/api/v1/tickets', false, false, '', '', '', false, '', '', 0, false, false,
			'{tickets:read}', current_date)`)
	w.exec(`INSERT INTO usage_hours (hour, organization_id, key_id, secret_id, caller_id, shape_id, code, requests)
		SELECT date_trunc('hour', now() - d * interval '1 day'), $1, $2, '00000000-0000-0000-0000-000000000000', $3,
			'00000000-0000-0000-0000-000000000001', 'allowed', 5
		FROM generate_series(1, 100) d`, org, key, mustID[authz.CallerID](w.t, w.caller))
}

func TestFindings_ComeInTheFormThatAcceptPrefers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.unusedScope()
	path := "/v1/organizations/" + w.acme.id + "/findings"
	for accept, want := range map[string]string{
		"": "application/json", "*/*": "application/json", "application/*": "application/json", "text/*": "text/csv; charset=utf-8",
		"text/csv": "text/csv; charset=utf-8", "application/sarif+json, */*;q=0.1": "application/sarif+json",
		"text/csv;q=0.5, text/html;q=0.6": "text/html; charset=utf-8", "application/x-ndjson": "application/x-ndjson",
		"application/xml, application/json;q=0.2": "application/json",
	} {
		got := w.must(200, w.acme.tokens[authz.RoleAuditor], "GET", path, "", "Accept", accept)
		if media := got.Header().Get("Content-Type"); media != want {
			t.Errorf("Accept %q: %s, want %s", accept, media, want)
		}
		if saved := strings.HasPrefix(got.Header().Get("Content-Disposition"), "attachment"); saved != !strings.Contains(want, "application/json") && !strings.Contains(want, "ndjson") {
			t.Errorf("Accept %q: %s", accept, got.Header().Get("Content-Disposition"))
		}
		if !strings.Contains(strings.ReplaceAll(got.Body.String(), "Unused scope", "unused_scope"), "unused_scope") || !strings.Contains(got.Body.String(), "customers:read") {
			t.Errorf("Accept %q: it is not found: %s", accept, got.Body)
		}
	}
	if got := w.ask(w.platform, "GET", path, "", "Accept", "application/xml"); got.Code != 406 || got.code() != "not_acceptable" {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	if got := w.ask(w.platform, "GET", path+"?document=csv", ""); got.Code != 422 {
		t.Errorf("a document without lines: %d %s", got.Code, got.Body)
	}
	rows, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(w.must(200, w.platform, "GET", path, "", "Accept", "text/csv").Body.String(), "\ufeff"))).ReadAll()
	if err != nil || len(rows) < 2 {
		t.Fatalf("%v %v", rows, err)
	}
	for _, row := range rows {
		for _, cell := range row {
			if strings.HasPrefix(cell, "=") {
				t.Errorf("a cell is a formula: %q", cell)
			}
		}
	}
}

func TestFindings_AreAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.unusedScope()
	for _, path := range []string{"/v1/findings", "/v1/organizations/" + w.acme.id + "/findings?key=" + w.acme.key + "&severity=low"} {
		got := w.must(200, w.platform, "GET", path, "")
		w.valid(t, "Findings", got.Body.Bytes())
		if got.at("keys", "0", "evidence", "key_id") != w.acme.key {
			t.Errorf("%s: %s", path, got.Body)
		}
		lines := strings.Split(strings.TrimSpace(w.must(200, w.platform, "GET", path, "", "Accept", "application/x-ndjson").Body.String()), "\n")
		for _, line := range lines {
			w.valid(t, "FindingsLine", []byte(line))
		}
		if !strings.HasPrefix(lines[len(lines)-1], `{"summary"`) {
			t.Errorf("the last line is %s", lines[len(lines)-1])
		}
	}
	// Of a word that is misspelled nothing is ever found, and a gate would be green.
	if said := w.must(422, w.platform, "GET", "/v1/findings?code=unused_scop", "").Body.String(); !strings.Contains(said, "unused_scope") {
		t.Error(said)
	}
	for query, keys := range map[string]int{"?code=unused_scope": 1, "?code=over_limit_habit": 0, "?code=unused_scope&severity=high": 0} {
		got := w.must(200, w.platform, "GET", "/v1/organizations/"+w.acme.id+"/findings"+query, "")
		if n := len(got.at("keys").([]any)); n != keys || got.at("summary", "keys_with_findings") != float64(keys) {
			t.Errorf("%s: %d keys of %s", query, n, got.Body)
		}
	}
	// As text, it is the same as by itself.
	csvText := w.must(200, w.platform, "GET", "/v1/findings", "", "Accept", "text/csv").Body.String()
	var joined strings.Builder
	for line := range strings.SplitSeq(strings.TrimSpace(w.must(200, w.platform, "GET", "/v1/findings?document=csv", "", "Accept", "application/x-ndjson").Body.String()), "\n") {
		var part struct{ Text string }
		if err := json.Unmarshal([]byte(line), &part); err != nil {
			t.Fatal(err)
		}
		joined.WriteString(part.Text)
	}
	asked := regexp.MustCompile(`"20[0-9T:-]+Z"`) // each was asked at a time of its own
	if inLines, alone := asked.ReplaceAllString(joined.String(), ""), asked.ReplaceAllString(csvText, ""); inLines != alone {
		t.Errorf("%q, alone %q", inLines, alone)
	}
}

// breaking finds something of many keys, and then breaks.
type breaking struct{ after int }

func (breaking) Kinds() ([]authz.FindingCode, error) { return nil, nil }

func (b breaking) Audit(_ context.Context, _ authz.EvidenceStream, each func(*authz.KeyFindings) error) (authz.AuditSummary, error) {
	for range b.after {
		err := each(&authz.KeyFindings{Findings: []authz.Finding{{Code: authz.FindingNoExpiry, Severity: authz.SeverityLow, Message: strings.Repeat("x", 500)}}})
		if err != nil {
			return authz.AuditSummary{}, err
		}
	}
	return authz.AuditSummary{}, errors.New("broken")
}

func TestFindings_WhatIsCutOffIsNotTakenForTheWhole(t *testing.T) {
	t.Parallel()
	for after, began := range map[int]bool{0: false, 100: true} {
		w := newWorld(t, func(_ *Options, o *manage.Options) { o.Auditor = breaking{after} })
		ask := func(accept string) (got answer, aborted bool) {
			defer func() {
				if fault := recover(); fault != nil {
					if err, ok := fault.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
						panic(fault)
					}
					aborted = true
				}
			}()
			return w.ask(w.platform, "GET", "/v1/findings", "", "Accept", accept), false
		}
		for _, accept := range []string{"application/json", "text/csv"} {
			if got, aborted := ask(accept); aborted != began || !began && got.Code != 500 {
				t.Errorf("%s after %d keys: aborted %v", accept, after, aborted)
			}
		}
		for _, accept := range []string{"text/html", "application/sarif+json"} { // they are written at the end
			if got, aborted := ask(accept); aborted || got.Code != 500 {
				t.Errorf("%s after %d keys: aborted %v, %d", accept, after, aborted, got.Code)
			}
		}
		got, aborted := ask("application/x-ndjson")
		lines := strings.Split(strings.TrimSpace(got.Body.String()), "\n")
		if last := lines[len(lines)-1]; aborted || got.Code != 200 || !strings.HasPrefix(last, `{"problem":{`) || strings.Contains(last, "broken") {
			t.Errorf("lines after %d keys: %d, aborted %v, the last %s", after, got.Code, aborted, last)
		}
	}
}

func TestTextLines_KeepCharactersWhole(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "a", "ä", "日本語 and 🙂", strings.Repeat("🙂", 20_000), "\xff\xfe broken"} {
		for size := 1; size <= 5; size++ {
			var got strings.Builder
			lines := &textLines{line: func(part string) {
				if len(part) > maxTextLine+3 {
					t.Errorf("a part has %d bytes", len(part))
				}
				raw, _ := json.Marshal(part)
				var back string
				_ = json.Unmarshal(raw, &back)
				got.WriteString(back)
			}}
			for rest := text; rest != ""; {
				n := min(size, len(rest))
				_, _ = lines.Write([]byte(rest[:n]))
				rest = rest[n:]
			}
			if want := strings.ToValidUTF8(text, "\ufffd"); strings.ToValidUTF8(got.String(), "\ufffd") != want && !strings.HasPrefix(text, "\xff") {
				t.Errorf("%q by %d bytes: %q", text[:min(len(text), 40)], size, got.String()[:min(got.Len(), 40)])
			}
		}
	}
}

func TestFindings_AreAppliedAndUndone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.unusedScope()
	path := "/v1/organizations/" + w.acme.id + "/keys/" + w.acme.key + "/findings/"
	developer := w.acme.tokens[authz.RoleDeveloper]
	would := w.must(200, developer, "POST", path+"apply?dry_run=true", `{}`)
	w.valid(t, "FindingsChange", would.Body.Bytes())
	if would.at("dry_run") != true || would.at("effective") != nil || would.str("asked", "listed", "0", "outcome") != "kept" {
		t.Errorf("%s", would.Body)
	}
	done := w.must(200, developer, "POST", path+"apply", `{}`, "If-Match", `"1"`)
	w.valid(t, "FindingsChange", done.Body.Bytes())
	if done.Header().Get("ETag") != `"2"` || done.str("key", "scopes", "0") != "tickets:read" || done.at("effective", "acknowledged") != float64(1) ||
		done.str("findings", "0", "code") == "" || done.at("asked", "requests") != float64(450) {
		t.Errorf("%s %s", done.Header().Get("ETag"), done.Body)
	}
	if got := w.ask(developer, "POST", path+"undo", "", "If-Match", `"1"`); got.Code != 412 {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	undone := w.must(200, developer, "POST", "/v1/keys/"+w.acme.key+"/findings/undo", "", "Idempotency-Key", "u")
	w.valid(t, "FindingsChange", undone.Body.Bytes())
	if undone.at("undone") != true || len(undone.at("key", "scopes").([]any)) != 2 || undone.at("asked") != nil {
		t.Errorf("%s", undone.Body)
	}
	again := w.must(200, developer, "POST", "/v1/keys/"+w.acme.key+"/findings/undo", "", "Idempotency-Key", "u")
	if again.at("key", "version") != undone.at("key", "version") {
		t.Errorf("repeated: %s", again.Body)
	}
	if got := w.ask(w.platform, "POST", path+"apply", `{"keep":["tickets:delete"]}`); got.Code != 422 {
		t.Errorf("%d %s", got.Code, got.Body)
	}
}
