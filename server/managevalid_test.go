package server

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/supportstation/keystile/server/api"
)

// hunter2 marks what must not come back.
const hunter2 = "hunter2"

func TestManagement_WhatIsWrongIsToldWithoutRepeatingIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	organizations, keys, key := "/v1/organizations", "/v1/organizations/"+w.acme.id+"/keys", "/v1/keys/"+w.acme.key
	rotate := key + "/rotate"
	const goodKey = `{"name":"n","environment":"live","scopes":["tickets:read"]`
	list := func(n int) string { return `["` + strings.Repeat(`hunter2","`, n-1) + `hunter2"]` }
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		code, pointer      string
		message            string
	}{
		"no JSON":              {"POST", organizations, `hunter2`, nil, 400, "malformed_json", "", ""},
		"an empty body":        {"POST", organizations, ` `, nil, 400, "malformed_json", "", ""},
		"no body":              {"POST", organizations, ``, nil, 415, "unsupported_media_type", "", ""},
		"half a body":          {"POST", organizations, `{"name":"hunter2`, nil, 400, "malformed_json", "", ""},
		"not UTF-8":            {"POST", organizations, "{\"name\":\"hunter2\xff\"}", nil, 400, "invalid_utf8", "", ""},
		"half a surrogate":     {"POST", organizations, `{"name":"hunter2\ud800"}`, nil, 400, "malformed_json", "", ""},
		"a NUL":                {"POST", organizations, "{\"name\":\"hunter2\x00\"}", nil, 400, "nul_character", "", ""},
		"an escaped NUL":       {"POST", organizations, `{"name":"hunter2\u0000","plan":"standard"}`, nil, 400, "nul_character", "", ""},
		"a deep NUL":           {"POST", organizations, `{"name":"n","plan":"standard","metadata":{"a":[{"b":"\u0000"}]}}`, nil, 400, "nul_character", "", ""},
		"a duplicate":          {"POST", organizations, `{"name":"a","name":"hunter2"}`, nil, 400, "duplicate_field", "", ""},
		"a deep duplicate":     {"POST", organizations, `{"name":"n","plan":"standard","metadata":{"a":[{"hunter2":1,"hunter2":2}]}}`, nil, 400, "duplicate_field", "", ""},
		"two bodies":           {"POST", organizations, `{"name":"n","plan":"standard"}{"hunter2":1}`, nil, 400, "trailing_data", "", ""},
		"a form":               {"POST", organizations, `name=hunter2`, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "unsupported_media_type", "", ""},
		"compressed":           {"POST", organizations, `{}`, []string{"Content-Encoding", "gzip"}, 415, "unsupported_media_type", "", ""},
		"too large":            {"POST", organizations, `{"name":"` + strings.Repeat(" ", maxManagementBody) + `"}`, nil, 413, "body_too_large", "", ""},
		"very many values":     {"POST", "/v1/audit-log/verify", `{"checkpoints":[` + strings.Repeat("1,", maxTokens) + `1]}`, nil, 400, "malformed_json", "", ""},
		"an unknown field":     {"POST", organizations, `{"name":"n","plan":"standard","hunter2":1}`, nil, 400, "unknown_field", "", "has a field that is not one of external_id, metadata, name, plan"},
		"another case":         {"POST", organizations, `{"Name":"n","plan":"standard"}`, nil, 400, "unknown_field", "", ""},
		"a Kelvin sign":        {"POST", keys, goodKey + `,"\u212aey":"hunter2"}`, nil, 400, "unknown_field", "", ""},
		"a deep unknown field": {"POST", keys, goodKey + `,"rate_limit":{"rate":1,"period_seconds":1,"burst":1,"hunter2":1}}`, nil, 400, "unknown_field", "/rate_limit", "has a field that is not one of burst, period_seconds, rate"},
		"a list as body":       {"POST", organizations, `["hunter2"]`, nil, 422, "invalid_type", "", "must be an object"},
		"null as body":         {"POST", organizations, `null`, nil, 422, "invalid_type", "", "must be an object"},
		"a missing field":      {"POST", organizations, `{"name":"hunter2"}`, nil, 422, "missing_field", "/plan", "is required"},
		"a number for a name":  {"POST", organizations, `{"name":1234567,"plan":"standard"}`, nil, 422, "invalid_type", "/name", "must be a string"},
		"null for a name":      {"PATCH", key, `{"name":null}`, nil, 422, "invalid_type", "/name", "must be a string"},
		"an empty name":        {"POST", organizations, `{"name":"","plan":"standard"}`, nil, 422, "out_of_range", "/name", "must have from 1 to 100 characters"},
		"a long name":          {"POST", organizations, `{"name":"` + strings.Repeat("hunter2", 20) + `","plan":"standard"}`, nil, 422, "string_too_long", "/name", "must have from 1 to 100 characters"},
		"spaces around a name": {"POST", organizations, `{"name":" hunter2","plan":"standard"}`, nil, 422, "out_of_range", "/name", ""},
		"an unknown plan":      {"POST", organizations, `{"name":"n","plan":"hunter2"}`, nil, 422, "out_of_range", "/plan", ""},
		"an odd external id":   {"POST", organizations, `{"name":"n","plan":"standard","external_id":"hunter2 x"}`, nil, 422, "out_of_range", "/external_id", "must be printable ASCII without spaces"},
		"a list as metadata":   {"POST", organizations, `{"name":"n","plan":"standard","metadata":["hunter2"]}`, nil, 422, "invalid_type", "/metadata", "must be an object"},
		"large metadata":       {"POST", organizations, `{"name":"n","plan":"standard","metadata":{"hunter2":"` + strings.Repeat("x", 5000) + `"}}`, nil, 422, "out_of_range", "/metadata", ""},
		"deep metadata":        {"POST", organizations, `{"name":"n","plan":"standard","metadata":{"hunter2":{"a":{"a":{"a":{"a":{"a":1}}}}}}}`, nil, 422, "out_of_range", "/metadata", ""},
		"huge numbers":         {"POST", organizations, `{"name":"n","plan":"standard","metadata":{"hunter2":1e999}}`, nil, 422, "out_of_range", "/metadata", ""},
		"nothing to change":    {"PATCH", key, `{}`, nil, 422, "missing_field", "", "must have at least one of allowed_cidrs, disabled, expires_at, metadata, name, rate_limit, scopes"},

		"another environment":    {"POST", keys, `{"name":"n","environment":"hunter2","scopes":["tickets:read"]}`, nil, 422, "out_of_range", "/environment", "must be one of: live, test"},
		"a number for one":       {"POST", keys, `{"name":"n","environment":5,"scopes":["tickets:read"]}`, nil, 422, "invalid_type", "/environment", "must be one of: live, test"},
		"no scopes":              {"POST", keys, `{"name":"n","environment":"live","scopes":[]}`, nil, 422, "out_of_range", "/scopes", "must have from 1 to 50 items"},
		"a scope for a list":     {"POST", keys, `{"name":"n","environment":"live","scopes":"hunter2"}`, nil, 422, "invalid_type", "/scopes", "must be a list"},
		"a number for a scope":   {"POST", keys, `{"name":"n","environment":"live","scopes":["tickets:read",7]}`, nil, 422, "invalid_type", "/scopes/1", "must be a string"},
		"a scope twice":          {"POST", keys, `{"name":"n","environment":"live","scopes":["tickets:read","tickets:read"]}`, nil, 422, "out_of_range", "/scopes", "must not name anything twice"},
		"an unknown scope":       {"POST", keys, `{"name":"n","environment":"live","scopes":["hunter2:x"]}`, nil, 422, "out_of_range", "/scopes", ""},
		"a date alone":           {"POST", keys, goodKey + `,"expires_at":"2036-01-31"}`, nil, 422, "out_of_range", "/expires_at", "must be an RFC 3339 time such as 2027-01-31T00:00:00Z"},
		"the 31st of February":   {"POST", keys, goodKey + `,"expires_at":"2036-02-31T00:00:00Z"}`, nil, 422, "out_of_range", "/expires_at", "must be an RFC 3339 time such as 2027-01-31T00:00:00Z"},
		"a number for a time":    {"POST", keys, goodKey + `,"expires_at":1790000000}`, nil, 422, "invalid_type", "/expires_at", "must be a string or null"},
		"the past":               {"POST", keys, goodKey + `,"expires_at":"2020-01-01T00:00:00Z"}`, nil, 422, "out_of_range", "/expires_at", ""},
		"the year one":           {"POST", keys, goodKey + `,"expires_at":"0001-01-01T00:00:00Z"}`, nil, 422, "out_of_range", "/expires_at", "must be in the future"},
		"the year one elsewhere": {"PATCH", key, `{"expires_at":"0001-01-01T01:00:00+01:00"}`, nil, 422, "out_of_range", "/expires_at", "must be in the future"},
		"an escaped time":        {"POST", keys, goodKey + `,"expires_at":"2036-01-31T00:00:00\u005a"}`, nil, 422, "out_of_range", "", ""},
		"an escaped time to set": {"PATCH", key, `{"expires_at":"2036-01-31T00:00:00\u005a"}`, nil, 422, "out_of_range", "", ""},
		"both expiries":          {"POST", keys, goodKey + `,"expires_at":"2036-01-01T00:00:00Z","expires_in_days":1}`, nil, 422, "out_of_range", "/expires_in_days", ""},
		"too many days":          {"POST", keys, goodKey + `,"expires_in_days":36501}`, nil, 422, "out_of_range", "/expires_in_days", "must be a whole number from 1 to 36500"},
		"half a day":             {"POST", keys, goodKey + `,"expires_in_days":1.5}`, nil, 422, "invalid_type", "/expires_in_days", "must be a whole number from 1 to 36500"},
		"a day as 1.0":           {"POST", keys, goodKey + `,"expires_in_days":1.0}`, nil, 422, "invalid_type", "/expires_in_days", ""},
		"a day as 1e0":           {"POST", keys, goodKey + `,"expires_in_days":1e0}`, nil, 422, "invalid_type", "/expires_in_days", ""},
		"days beyond all":        {"POST", keys, goodKey + `,"expires_in_days":1e999}`, nil, 422, "invalid_type", "/expires_in_days", ""},
		"no network":             {"POST", keys, goodKey + `,"allowed_cidrs":["hunter2"]}`, nil, 422, "out_of_range", "/allowed_cidrs", ""},
		"many networks":          {"POST", keys, goodKey + `,"allowed_cidrs":` + list(65) + `}`, nil, 422, "out_of_range", "/allowed_cidrs", "must have at most 64 items"},
		"an endless network":     {"POST", keys, goodKey + `,"allowed_cidrs":["` + strings.Repeat("hunter2", 7) + `"]}`, nil, 422, "string_too_long", "/allowed_cidrs/0", "must have from 1 to 43 characters"},
		"no limit":               {"POST", keys, goodKey + `,"rate_limit":{"rate":0,"period_seconds":60,"burst":1}}`, nil, 422, "out_of_range", "/rate_limit/rate", "must be a whole number from 1 to 864000000"},
		"half a limit":           {"POST", keys, goodKey + `,"rate_limit":{"rate":1}}`, nil, 422, "missing_field", "/rate_limit/period_seconds", "is required"},
		"a text for a limit":     {"PATCH", key, `{"rate_limit":"hunter2"}`, nil, 422, "invalid_type", "/rate_limit", "must be an object"},
		"a limit as 1.0":         {"PATCH", key, `{"rate_limit":{"rate":1.0,"period_seconds":60,"burst":1}}`, nil, 422, "invalid_type", "/rate_limit/rate", ""},

		"no grace":           {"POST", rotate, `{}`, nil, 422, "missing_field", "/grace_seconds", "is required"},
		"a long grace":       {"POST", rotate, `{"grace_seconds":7776001}`, nil, 422, "out_of_range", "/grace_seconds", "must be a whole number from 0 to 7776000"},
		"another reason":     {"POST", rotate, `{"grace_seconds":0,"reason":"hunter2"}`, nil, 422, "out_of_range", "/reason", "must be one of: scheduled, compromised, other"},
		"a body for none":    {"POST", key + "/revoke", `{"hunter2":1}`, nil, 400, "unknown_field", "", "has a field, and this takes none"},
		"a body for a GET":   {"GET", key, `{"hunter2":1}`, nil, 400, "unknown_field", "", ""},
		"no admin's life":    {"POST", "/v1/admins", `{"name":"n","role":"auditor"}`, nil, 422, "missing_field", "/expires_in_days", "is required"},
		"an eternal admin":   {"POST", "/v1/admins", `{"name":"n","role":"platform_admin","expires_in_days":91}`, nil, 422, "out_of_range", "/expires_in_days", "must be a whole number from 1 to 90"},
		"another role":       {"POST", "/v1/admins", `{"name":"n","role":"hunter2","expires_in_days":1}`, nil, 422, "out_of_range", "/role", "must be one of: platform_admin, owner, developer, auditor"},
		"a malformed id":     {"POST", "/v1/admins", `{"name":"n","role":"owner","organization_id":"hunter2","expires_in_days":1}`, nil, 422, "out_of_range", "/organization_id", "must be the id of an organization"},
		"no environments":    {"POST", "/v1/callers", `{"name":"n","environments":[]}`, nil, 422, "out_of_range", "/environments", "must have from 1 to 2 items"},
		"another permission": {"POST", "/v1/callers", `{"name":"n","environments":["live"],"permissions":["hunter2"]}`, nil, 422, "out_of_range", "/permissions/0", "must be one of: check, explain, introspect, search"},

		"an unknown parameter":   {"GET", keys + "?hunter2=1", ``, nil, 422, "unknown_parameter", "", "the query has a parameter that is not one of cursor, limit, status, environment, scope, unused, external_id"},
		"a parameter for none":   {"GET", key + "?hunter2=1", ``, nil, 422, "unknown_parameter", "", "the query has a parameter, and this takes none"},
		"another spelling":       {"GET", keys + "?Limit=1", ``, nil, 422, "unknown_parameter", "", ""},
		"a parameter twice":      {"GET", keys + "?limit=1&limit=2", ``, nil, 422, "duplicate_parameter", "", "query parameter limit must be sent once"},
		"no number":              {"GET", keys + "?limit=hunter2", ``, nil, 422, "invalid_type", "", "query parameter limit must be a whole number from 1 to 200"},
		"a number with a sign":   {"GET", keys + "?limit=%2B5", ``, nil, 422, "invalid_type", "", ""},
		"a number with zeros":    {"GET", keys + "?limit=05", ``, nil, 422, "invalid_type", "", ""},
		"too long a page":        {"GET", keys + "?limit=201", ``, nil, 422, "out_of_range", "", "query parameter limit must be a whole number from 1 to 200"},
		"another status":         {"GET", keys + "?status=hunter2", ``, nil, 422, "out_of_range", "", "query parameter status must be one of: active, disabled, expired, revoked"},
		"an empty filter":        {"GET", keys + "?external_id=", ``, nil, 422, "out_of_range", "", ""},
		"a filter with a NUL":    {"GET", keys + "?scope=hunter2%00", ``, nil, 422, "out_of_range", "", "query parameter scope must be UTF-8 without NUL characters"},
		"a filter in Latin-1":    {"GET", keys + "?external_id=hunter2%ff", ``, nil, 422, "out_of_range", "", ""},
		"a malformed query":      {"GET", keys + "?limit=%zz;hunter2", ``, nil, 422, "out_of_range", "", "the query is not well-formed"},
		"a cursor of one's own":  {"GET", keys + "?cursor=hunter2", ``, nil, 422, "out_of_range", "", ""},
		"a cursor of audit logs": {"GET", "/v1/audit-log?cursor=-1", ``, nil, 422, "out_of_range", "", ""},
		"perhaps":                {"DELETE", organizations + "/" + w.acme.id + "?dry_run=perhaps", ``, nil, 422, "invalid_type", "", "query parameter dry_run must be true or false"},
		"a dry read":             {"GET", key + "?dry_run=true", ``, nil, 422, "unknown_parameter", "", ""},
		"an odd version":         {"PATCH", key, `{"name":"n"}`, []string{"If-Match", `hunter2`}, 422, "out_of_range", "", "header If-Match must be one version, as in ETag, or *"},
		"half a quote":           {"PATCH", key, `{"name":"n"}`, []string{"If-Match", `"1`}, 422, "out_of_range", "", ""},
		"a weak tag":             {"PATCH", key, `{"name":"n"}`, []string{"If-Match", `W/"1"`}, 422, "out_of_range", "", ""},
		"two versions":           {"PATCH", key, `{"name":"n"}`, []string{"If-Match", `"1"`, "If-Match", `"2"`}, 422, "duplicate_parameter", "", "header If-Match must be sent once"},
		"a version for nobody":   {"POST", rotate, `{"grace_seconds":0}`, []string{"If-Match", `"1"`}, 422, "unknown_parameter", "", ""},
		"an odd key":             {"POST", rotate, `{"grace_seconds":0}`, []string{"Idempotency-Key", "hunter2 x"}, 422, "out_of_range", "", "header Idempotency-Key must be printable ASCII without spaces"},
		"an empty key":           {"POST", rotate, `{"grace_seconds":0}`, []string{"Idempotency-Key", ""}, 422, "out_of_range", "", ""},
		"two keys":               {"POST", rotate, `{"grace_seconds":0}`, []string{"Idempotency-Key", "a", "Idempotency-Key", "b"}, 422, "duplicate_parameter", "", ""},
		"no format":              {"POST", keys + "/import", `{}`, []string{"Content-Type", mediaRows}, 422, "missing_field", "", "query parameter format_prefix is required"},
		"a weak format": {
			"POST", keys + "/import?format_prefix=hunter2&format_length=16&format_alphabet=hex", `{}`, []string{"Content-Type", mediaRows}, 422, "out_of_range", "", "",
		},
		"rows as JSON": {"POST", keys + "/import?format_prefix=x&format_length=32&format_alphabet=hex", `{}`, nil, 415, "unsupported_media_type", "", ""},
	} {
		before := w.dump()
		got := w.ask(w.platform, c.method, c.path, c.body, c.headers...)
		if got.Code != c.status || got.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", name, got.Code, got.Body, c.status, c.code)
			continue
		}
		if strings.Contains(got.Body.String(), hunter2) || strings.Contains(got.Body.String(), "1234567") {
			t.Errorf("%s: it repeats what was sent: %s", name, got.Body)
		}
		if c.message != "" && (got.str("errors", "0", "message") != c.message || got.str("errors", "0", "pointer") != c.pointer) {
			t.Errorf("%s: %s, want %s %q", name, got.Body, c.pointer, c.message)
		}
		if c.pointer != "" && got.str("errors", "0", "pointer") != c.pointer {
			t.Errorf("%s: %s, want pointer %s", name, got.Body, c.pointer)
		}
		if got.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: Content-Type %q", name, got.Header().Get("Content-Type"))
		}
		if w.dump() != before {
			t.Fatalf("%s: the database changed", name)
		}
	}
	if strings.Contains(w.log.String(), hunter2) {
		t.Error("the log repeats what was sent")
	}
}

func TestManagement_EverythingWrongIsToldAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	got := w.must(422, w.platform, "POST", "/v1/organizations/"+w.acme.id+"/keys", `{"environment":"x","scopes":[1,2],"expires_in_days":0}`)
	pointers := make(map[string]bool)
	for _, e := range got.at("errors").([]any) {
		pointers[e.(map[string]any)["pointer"].(string)] = true
	}
	for _, want := range []string{"/name", "/environment", "/scopes/0", "/scopes/1", "/expires_in_days"} {
		if !pointers[want] {
			t.Errorf("%s is not told: %s", want, got.Body)
		}
	}
	many := w.must(422, w.platform, "POST", "/v1/organizations/"+w.acme.id+"/keys",
		`{"name":"n","environment":"live","scopes":[`+strings.Repeat("1,", 5000)+`1]}`)
	if n := len(many.at("errors").([]any)); n != maxIssues {
		t.Errorf("%d errors are told", n)
	}
}

// Whatever the body, a management request is never a fault of ours, and what was
// sent does not come back.
func FuzzManagement_Body(f *testing.F) {
	doc, err := newDocument(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	for _, body := range []string{
		`{"name":"n","environment":"live","scopes":["a:b"],"rate_limit":{"rate":1,"period_seconds":1,"burst":1},"metadata":{"a":[1e400]}}`,
		`{}`, `[]`, `null`, `{"name":"a","name":"b"}`, "\xff", `{"scopes":[{"a":"\u0000"}]}`, `{"expires_at":"2027-02-31T00:00:00Z"}`,
		`{"expires_at":"2027-01-31T00:00:00\u005a"}`, `{"expires_at":"\u0032027-01-31T00:00:00Z","rate_limit":{"rate":1e0,"period_seconds":1,"burst":1}}`,
		`{"name":"n","environment":"live","scopes":["a:b"],"expires_at":"2027-01-31T00:00:00\u005a"}`,
		`{"grace_seconds":1e0,"reason":"hunter2"}`, `{"hunter2hunter2":{}}{}`, `{"rate_limit":null,"allowed_cidrs":["10.0.0.0/8"]}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, op := range doc.operations {
			issue := op.checkBody(body)
			if issue == nil {
				if issue = decodeAs(t, op.id, body); issue == nil {
					continue
				}
			}
			if issue.Status < 400 || issue.Status >= 500 {
				t.Fatalf("%s: %+v", op.id, issue)
			}
			checkSilence(t, body, issue)
		}
	})
}

// decodeAs decodes an accepted body as the handlers do.
func decodeAs(t *testing.T, operation string, body []byte) *problem {
	t.Helper()
	into := map[string]any{
		"createOrganization": &api.OrganizationCreate{}, "updateOrganization": &api.OrganizationUpdate{},
		"createKey": &api.KeyCreate{}, "updateKey": &api.KeyUpdate{}, "rotateKey": &api.KeyRotate{},
		"createCaller": &api.CallerCreate{}, "rotateCaller": &api.CallerRotate{},
		"createAdmin": &api.AdminCreate{}, "rotateAdmin": &api.AdminRotate{}, "verifyAuditLog": &api.AuditLogVerify{},
	}[operation]
	if into == nil {
		return nil
	}
	err := json.Unmarshal(body, into)
	if err == nil {
		return nil
	}
	issue := misfit(err)
	if issue == nil {
		t.Fatalf("%s takes %q, and then it is %v", operation, body, err)
	}
	return issue
}

// checkSilence fails when a problem holds a string of the body that the document
// does not have itself.
func checkSilence(t *testing.T, body []byte, issue *problem) {
	t.Helper()
	told := issue.Detail
	for _, i := range issue.Issues {
		told += " " + i.pointer + " " + i.message
	}
	var value any
	if json.Unmarshal(body, &value) != nil {
		return
	}
	document := string(api.Document())
	var walk func(any)
	refuse := func(text string) {
		if len(text) > 6 && strings.Contains(told, text) && !strings.Contains(document, text) && !strings.Contains(ownSentences, text) {
			t.Fatalf("%q repeats %q of %q", told, text, body)
		}
	}
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			refuse(v)
		case []any:
			for _, item := range v {
				walk(item)
			}
		case map[string]any:
			for name, item := range v {
				refuse(name)
				walk(item)
			}
		}
	}
	walk(value)
}

// ownSentences are texts that a fuzzer may happen to send.
const ownSentences = "must be printable ASCII without spaces has a field that is not one of, and this takes none " +
	"must be an RFC 3339 time such as 2027-01-31T00:00:00Z must not name anything twice is required must have at least " +
	"times must be like 2027-01-31T00:00:00Z, without escapes must be a whole number without fraction or exponent A field is unknown; names are case-sensitive. See errors. Some fields or parameters are missing or not acceptable; see errors."
