package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

func TestManagement_TheSameRequestGetsTheSameAnswerWithoutItsSecret(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := "/v1/organizations/" + w.acme.id + "/keys"
	body := `{"name":"once","environment":"live","scopes":["tickets:read"]}`
	first := w.must(201, w.platform, "POST", keys, body, "Idempotency-Key", "k1")
	if first.str("secret") == "" || first.at("secret_already_shown") != false {
		t.Errorf("first: %s", first.Body)
	}
	before := w.dump()
	again := w.must(201, w.platform, "POST", keys, body, "Idempotency-Key", "k1")
	if again.at("secret") != nil || again.at("secret_already_shown") != true || again.str("key", "id") != first.str("key", "id") {
		t.Errorf("again: %s", again.Body)
	}
	other := w.must(422, w.platform, "POST", keys, body+" ", "Idempotency-Key", "k1")
	if other.code() != "idempotency_mismatch" {
		t.Errorf("another body: %s", other.Body)
	}
	if got := w.must(422, w.platform, "POST", keys+"?dry_run=false", body, "Idempotency-Key", "k1"); got.code() != "idempotency_mismatch" {
		t.Errorf("another query: %s", got.Body)
	}
	if w.dump() != before {
		t.Error("a repeated request changed something")
	}
	for name, got := range map[string]answer{
		"another actor":        w.must(201, w.acme.tokens[authz.RoleOwner], "POST", keys, body, "Idempotency-Key", "k1"),
		"another organization": w.must(201, w.platform, "POST", "/v1/organizations/"+w.globex.id+"/keys", body, "Idempotency-Key", "k1"),
	} {
		if got.str("secret") == "" {
			t.Errorf("%s gets what was another's: %s", name, got.Body)
		}
	}
	// Taking rights away again wants to know how far it has got.
	revoke := "/v1/keys/" + w.acme.key + "/revoke"
	for range 2 {
		if got := w.must(200, w.platform, "POST", revoke, "", "Idempotency-Key", "k2"); got.at("effective", "acknowledged") != 1.0 {
			t.Errorf("revoked: %s", got.Body)
		}
	}
}

func TestManagement_ALostRaceIs412(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, path := range []string{
		"/v1/keys/" + w.acme.key, "/v1/organizations/" + w.globex.id + "/keys/" + w.globex.key, "/v1/organizations/" + w.acme.id,
	} {
		tag := w.must(200, w.platform, "GET", path, "").Header().Get("ETag")
		if tag != `"1"` {
			t.Fatalf("%s: ETag %q", path, tag)
		}
		changed := w.must(200, w.platform, "PATCH", path, `{"name":"two"}`, "If-Match", tag)
		if changed.Header().Get("ETag") != `"2"` {
			t.Errorf("%s: ETag %q", path, changed.Header().Get("ETag"))
		}
		before := w.dump()
		for _, old := range []string{`"1"`, `1`, `"9999999999"`} {
			if got := w.ask(w.platform, "PATCH", path, `{"name":"three"}`, "If-Match", old); got.Code != 412 || got.code() != "version_mismatch" {
				t.Errorf("%s with %s: %d %s", path, old, got.Code, got.Body)
			}
		}
		if w.dump() != before {
			t.Errorf("%s: a lost race changed it", path)
		}
		w.must(200, w.platform, "PATCH", path, `{"name":"three"}`, "If-Match", `2`)
		w.must(200, w.platform, "PATCH", path, `{"name":"four"}`, "If-Match", `*`)
	}
}

func TestManagement_ADryRunShowsNoSecretAndNoReceipt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.dump()
	made := w.must(201, w.platform, "POST", "/v1/organizations/"+w.acme.id+"/keys?dry_run=true", `{"name":"n","environment":"live","scopes":["tickets:read"]}`)
	if made.at("secret") != nil || made.at("dry_run") != true || made.str("key", "name") != "n" {
		t.Errorf("%s", made.Body)
	}
	revoked := w.must(200, w.platform, "POST", "/v1/keys/"+w.acme.key+"/revoke?dry_run=true", "")
	if revoked.str("key", "status") != "revoked" || revoked.at("effective") != nil {
		t.Errorf("%s", revoked.Body)
	}
	if w.dump() != before {
		t.Error("a dry run kept something")
	}
}

// Whatever is asked, a secret is in the one answer that made it.
func TestManagement_ASecretIsInExactlyOneAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key, caller, admin := "/v1/keys/"+w.acme.key, "/v1/callers/"+w.caller, "/v1/admins/"+w.acme.target
	w.shown(w.must(200, w.platform, "POST", key+"/rotate", `{"grace_seconds":60}`))
	w.shown(w.must(200, w.platform, "POST", caller+"/rotate", `{"grace_seconds":60}`))
	w.shown(w.must(200, w.platform, "POST", admin+"/rotate", `{"expires_in_days":1}`))
	seen := make(map[string]bool)
	for _, secret := range w.secrets {
		if seen[secret] {
			t.Error("a secret was made twice")
		}
		seen[secret] = true
	}
	if len(seen) < 14 {
		t.Errorf("only %d secrets were seen", len(seen))
	}
	silent := func(what, text string) {
		for secret := range seen {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds a secret", what)
			}
		}
	}
	org := "/v1/organizations/" + w.acme.id
	for _, path := range []string{
		key, caller, admin, org, org + "/keys", "/v1/callers", "/v1/admins", "/v1/organizations", org + "/audit-log", "/v1/audit-log",
		"/v1/scopes", "/v1/replicas",
	} {
		silent(path, w.must(200, w.platform, "GET", path, "").Body.String())
	}
	for path, body := range map[string]string{
		key: `{"name":"n"}`, org: `{"name":"n"}`,
	} {
		silent(path, w.must(200, w.platform, "PATCH", path, body).Body.String())
	}
	silent("revoke", w.must(200, w.platform, "POST", key+"/revoke", "").Body.String())
	silent("the log", w.log.String())
	metrics := httptest.NewRecorder()
	w.OpsHandler().ServeHTTP(metrics, httptest.NewRequest("GET", "/metrics", nil))
	silent("metrics", metrics.Body.String())
	if !strings.Contains(metrics.Body.String(), `keystile_management_requests_total{operation="revokeKey",status="2xx"} 1`) {
		t.Error("a request is not counted")
	}
	if !strings.Contains(w.log.String(), "operation=revokeKey actor=admin_") {
		t.Error("a change is not logged")
	}
}

func TestManagement_MetadataKeepsItsNumbers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const metadata = `{"big":12345678901234567890123,"decimal":0.10,"html":"<b>&"}`
	made := w.must(201, w.platform, "POST", "/v1/organizations", `{"name":"n","plan":"standard","metadata":`+metadata+`}`)
	var got struct {
		Organization struct {
			Metadata map[string]json.RawMessage
		}
	}
	again := w.must(200, w.platform, "GET", "/v1/organizations/"+made.str("organization", "id"), "")
	if err := json.Unmarshal(made.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if string(got.Organization.Metadata["big"]) != "12345678901234567890123" || string(got.Organization.Metadata["decimal"]) != "0.10" ||
		!strings.Contains(again.Body.String(), "12345678901234567890123") || strings.Contains(again.Body.String(), "<b>") {
		t.Errorf("%s, then %s", made.Body, again.Body)
	}
}

func TestManagement_AnImportTellsEachBadRow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := "/v1/organizations/" + w.acme.id + "/keys/import?format_prefix=old_&format_length=32&format_alphabet=hex"
	foreign := "old_" + strings.Repeat("0123abcd", 4)
	hash := authz.NewSecret(foreign).Hash()
	row := func(sha string, more string) string {
		return `{"name":"n","environment":"live","scopes":["tickets:read"],"sha256":"` + sha + `"` + more + `}`
	}
	hexOf := func(b [32]byte) string {
		const digits = "0123456789abcdef"
		out := ""
		for _, c := range b {
			out += string(digits[c>>4]) + string(digits[c&15])
		}
		return out
	}
	lines := []string{
		1:  row(hexOf(hash), `,"expires_at":null,"hint":null`),
		2:  "",
		3:  row(hexOf(hash), ""),
		4:  `{"hunter2":1}`,
		5:  `{"Name":"hunter2"}`,
		6:  `{"name":"hunter2","name":"n"}`,
		7:  `{"name":["hunter2"]}`,
		8:  `{"scopes":[{"hunter2":1}]}`,
		9:  `hunter2`,
		10: `["hunter2"]`,
		11: `{"name":"hunter2`,
		12: row("hunter2", ""),
		13: row(strings.Repeat("b", 64), `,"expires_at":"2027-02-31T00:00:00Z"`),
		14: row(strings.Repeat("b", 64), `,"expires_at":"0001-01-01T00:00:00Z"`),
		15: row(strings.Repeat("b", 64), `,"hint":"`+strings.Repeat("hunter2", 9)+`"`),
		16: row(strings.Repeat("b", 64), `,"hint":"`+strings.Repeat("x", maxRow)+`"`),
		17: `{"name":"n","environment":"live","scopes":["tickets:read"]}`,
		18: "{\"name\":\"hunter2\xff\"}",
		19: row(strings.Repeat("c", 64), "") + ` {}`,
		20: " \t" + row(strings.Repeat("d", 64), "") + "\r",
	}
	before := w.dump()
	dry := w.must(200, w.platform, "POST", path+"&dry_run=true", strings.Join(lines[1:], "\n")+"\n", "Content-Type", mediaRows)
	if w.dump() != before || dry.at("dry_run") != true {
		t.Errorf("a dry run: %s", dry.Body)
	}
	got := w.must(200, w.platform, "POST", path, strings.Join(lines[1:], "\n")+"\n", "Content-Type", mediaRows)
	want := map[int][2]string{
		3: {"duplicate", "/sha256"}, 4: {"invalid_row", ""}, 5: {"invalid_row", ""}, 6: {"invalid_row", ""}, 7: {"invalid_row", "/name"},
		8: {"invalid_row", "/scopes"}, 9: {"invalid_row", ""}, 10: {"invalid_row", ""}, 11: {"invalid_row", ""}, 12: {"invalid_row", "/sha256"},
		13: {"invalid_row", "/expires_at"}, 14: {"invalid_row", "/expires_at"}, 15: {"invalid_row", "/hint"}, 16: {"invalid_row", ""},
		17: {"missing_field", "/sha256"}, 18: {"invalid_row", ""}, 19: {"invalid_row", ""},
	}
	want[17] = [2]string{"invalid_row", "/sha256"}
	rejected := got.at("rejected").([]any)
	for _, r := range rejected {
		r := r.(map[string]any)
		line := int(r["line"].(float64))
		pointer, _ := r["pointer"].(string)
		if w, ok := want[line]; !ok || w != [2]string{r["code"].(string), pointer} {
			t.Errorf("line %d: %v, want %v", line, r, want[line])
		}
		delete(want, line)
	}
	if got.at("imported") != 2.0 || len(want) > 0 || strings.Contains(got.Body.String(), hunter2) {
		t.Errorf("not told: %v: %s", want, got.Body)
	}
	again := w.must(200, w.platform, "POST", path, lines[1]+"\n"+lines[20], "Content-Type", mediaRows)
	if again.at("imported") != 0.0 || len(again.at("rejected").([]any)) != 2 {
		t.Errorf("a second run: %s", again.Body)
	}
	if got := w.must(422, w.platform, "POST", path, strings.Repeat("{}\n", 2_000_000), "Content-Type", mediaRows); got.code() != "out_of_range" {
		t.Errorf("too many rows: %s", got.Body)
	}
	if got := w.must(413, w.platform, "POST", path, strings.Repeat("\n", maxLongBody+1), "Content-Type", mediaRows); got.code() != "body_too_large" {
		t.Errorf("too large: %s", got.Body)
	}
	w.checkForeign(t, foreign)
}

// checkForeign asks about a key that another system has made.
func (w *world) checkForeign(t *testing.T, secret string) {
	t.Helper()
	ask := func(key string) answer {
		return w.must(200, w.callerToken, "POST", "/v1/check", `{"key":"`+key+`","method":"GET","path":"/api/v1/tickets"}`)
	}
	if err := w.store.Synchronize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(secret); got.code() != "allowed" {
		t.Errorf("an imported key: %s", got.Body)
	}
	for _, other := range []string{secret[:35] + "X", secret + "0", "new_" + secret[4:], w.acme.secret[:len(w.acme.secret)-1] + "!"} {
		if got := ask(other); got.code() != "key_malformed" {
			t.Errorf("a key of no form: %s", got.Body)
		}
	}
	if got := ask(w.acme.secret); got.code() != "allowed" {
		t.Errorf("our own key: %s", got.Body)
	}
}

func TestManagement_PagesFollowEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 4 {
		w.newKey(w.acme)
	}
	for path, want := range map[string]int{
		"/v1/organizations/" + w.acme.id + "/keys?limit=2": 5, "/v1/organizations?limit=1": 2, "/v1/admins?limit=3": 9,
		"/v1/callers?limit=1": 1, "/v1/organizations/" + w.acme.id + "/audit-log?limit=2&order=oldest": 10,
		"/v1/organizations/" + w.acme.id + "/audit-log?limit=3": 10,
	} {
		seen, next := make(map[string]bool), ""
		for range 20 {
			page := w.must(200, w.platform, "GET", path+next, "")
			for _, item := range page.at("items").([]any) {
				seen[item.(map[string]any)["id"].(string)] = true
			}
			cursor := page.str("next_cursor")
			if next = "&cursor=" + cursor; cursor == "" {
				break
			}
		}
		if len(seen) != want {
			t.Errorf("%s: %d things, want %d", path, len(seen), want)
		}
	}
	empty := w.must(200, w.platform, "GET", "/v1/organizations/"+w.acme.id+"/keys?status=revoked", "")
	if !strings.Contains(empty.Body.String(), `{"items":[],"next_cursor":null}`) {
		t.Errorf("an empty list: %s", empty.Body)
	}
}

// Every answer of the management API is as the document says, every field of it.
func TestManagement_AnswersAreAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	doc, err := openapi3.NewLoader().LoadFromData(api.Document())
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range accessRows(w) {
		for route, op := range w.management.document.operations {
			if op.id != row.operation {
				continue
			}
			method, _, _ := strings.Cut(route, " ")
			var headers []string
			if row.media != "" {
				headers = []string{"Content-Type", row.media}
			}
			target := row.path
			if !row.readOnly {
				target += separator(target) + "dry_run=true"
			}
			got := w.must(row.ok, w.platform, method, target, row.body, headers...)
			_, path, _ := strings.Cut(op.route, " ")
			described := doc.Paths.Value(path).GetOperation(method)
			answered := described.Responses.Status(row.ok)
			if answered == nil {
				answered = described.Responses.Default() // an operation that is refused here to everyone
			}
			checkAnswer(t, op.id, answered, got)
			refused := w.ask("", method, target, row.body, headers...)
			checkAnswer(t, op.id, described.Responses.Default(), refused)
		}
	}
}

func checkAnswer(t *testing.T, what string, described *openapi3.ResponseRef, got answer) {
	t.Helper()
	media := described.Value.Content[got.Header().Get("Content-Type")]
	if media == nil {
		t.Errorf("%s: Content-Type %q is not in the document", what, got.Header().Get("Content-Type"))
		return
	}
	if issues := schemaIssues(media.Schema.Value, got.at()); len(issues) > 0 {
		t.Errorf("%s: %v: %s", what, issues, got.Body)
	}
	named := media.Schema.Value.Properties
	for name := range got.at().(map[string]any) {
		if named[name] == nil {
			t.Errorf("%s: %s is not in the document", what, name)
		}
	}
	for name := range described.Value.Headers {
		if got.Header().Get(name) == "" {
			t.Errorf("%s: no %s", what, name)
		}
	}
}

func TestManagement_TheDocumentIsServedToEverybody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := w.must(200, "", "GET", "/openapi.yaml", "")
	if got.Body.String() != string(api.Document()) || got.Header().Get("Content-Type") != "application/yaml" || got.Header().Get("Cache-Control") != "no-cache" {
		t.Errorf("%v", got.Header())
	}
	w.must(304, "", "GET", "/openapi.yaml", "", "If-None-Match", got.Header().Get("ETag"))
}

type awayAdmins struct{}

func (awayAdmins) FindAdmin(context.Context, authz.SecretHash) (*authz.Admin, error) {
	return nil, io.ErrUnexpectedEOF
}

func TestManagement_AnUnverifiableAdminIs503(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.management.admins = authz.NewAdmins(awayAdmins{}, w.store.Clock())
	for range 3 {
		got := w.must(503, w.platform, "GET", "/v1/scopes", "")
		if got.Header().Get("Retry-After") != "1" {
			t.Errorf("%v", got.Header())
		}
	}
	if n := strings.Count(w.log.String(), `msg="an admin could not be verified"`); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
}

func TestManagement_AddressesAreBelievedFromTrustedProxiesAlone(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	for name, c := range map[string]struct {
		peer  string
		lines []string
		want  string
	}{
		"nobody trusted":            {"203.0.113.9:1", []string{"198.51.100.1"}, "203.0.113.9"},
		"a proxy":                   {"10.0.0.1:1", []string{"198.51.100.1"}, "198.51.100.1"},
		"a client's own word first": {"10.0.0.1:1", []string{"192.0.2.1, 198.51.100.1"}, "198.51.100.1"},
		"two proxies":               {"10.0.0.1:1", []string{"192.0.2.1, 198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		"two lines":                 {"10.0.0.1:1", []string{"192.0.2.1", "198.51.100.1,10.0.0.2"}, "198.51.100.1"},
		"garbage":                   {"10.0.0.1:1", []string{"198.51.100.1, hunter2, 10.0.0.2"}, "10.0.0.2"},
		"garbage at once":           {"10.0.0.1:1", []string{"198.51.100.1, "}, "10.0.0.1"},
		"no header":                 {"10.0.0.1:1", nil, "10.0.0.1"},
		"proxies alone":             {"10.0.0.1:1", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		"IPv6":                      {"[2001:db8::1]:1", []string{"2001:db9::7"}, "2001:db9::7"},
		"mapped":                    {"[::ffff:10.0.0.1]:1", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		"a port":                    {"10.0.0.1:1", []string{"198.51.100.1:4711"}, "198.51.100.1"},
		"a socket":                  {"@", []string{"198.51.100.1"}, "invalid IP"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = c.peer
		r.Header["X-Forwarded-For"] = c.lines
		if got := clientAddress(r, trusted).String(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestManagement_TheAuditLogTellsWhoAskedAndFromWhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, trust("192.0.2.0/24"))
	w.must(200, w.acme.tokens[authz.RoleOwner], "PATCH", "/v1/keys/"+w.acme.key, `{"name":"n"}`,
		"X-Forwarded-For", "198.51.100.7", "X-Request-Id", "req-1")
	row := w.must(200, w.platform, "GET", "/v1/organizations/"+w.acme.id+"/audit-log?limit=1", "")
	if row.str("items", "0", "address") != "198.51.100.7" || row.str("items", "0", "request_id") != "req-1" ||
		row.str("items", "0", "action") != "keys.update" || row.str("items", "0", "target") != w.acme.key {
		t.Errorf("%s", row.Body)
	}
	if got := w.must(200, w.platform, "POST", "/v1/audit-log/verify", "{}"); got.at("valid") != true {
		t.Errorf("%s", got.Body)
	}
}

func TestImport_RowsBeyondTheLastAreNotEvenRead(t *testing.T) {
	if rows := readRows([]byte(strings.Repeat("{}\n", 1<<20))); len(rows) != manage.MaxImportRows+1 {
		t.Errorf("%d rows are held", len(rows))
	}
}
