package server

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v3"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/server/api"
)

// checkSchemas are what the document says of POST /v1/check.
func checkSchemas(t testing.TB) (question, decision *openapi3.Schema) {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.Document())
	if err != nil {
		t.Fatal(err)
	}
	return doc.Components.Schemas["Check"].Value, doc.Components.Schemas["Decision"].Value
}

// refusedBySchema tells whether a body is JSON that the schema refuses.
func refusedBySchema(schema *openapi3.Schema, body []byte) bool {
	var value any
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	return decoder.Decode(&value) == nil && len(schemaIssues(schema, value)) > 0
}

// questions are the bodies of testdata/checks, and some that have every field.
func questions(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("../testdata/checks/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	secret := testFormat(t).Generate(authz.EnvironmentLive).Reveal()
	hash := strings.Repeat("0a", 32)
	out := []string{
		`{"key":"","method":"GET","path":"/","action":"a:b","environment":"","client_ip":"","browser":true,"cost":10000,
			"resource":{"type":"t","id":"1","organization":"o"}}`,
		`{"key_sha256":"` + strings.ToUpper(hash) + `","action":"a:b","resource":{}}`,
		`{"key_sha256":"` + hash + `0","action":"a:b"}`, `{"key":null,"action":"a:b"}`, `{"key":"","action":"a:b","resource":null}`,
		`{"key":"","action":"` + strings.Repeat("a", maxCheckString) + `"}`, `{"key":"","action":"` + strings.Repeat("a", maxCheckString+1) + `"}`,
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var cases []struct {
			Check *map[string]any
			Body  *string
		}
		if err := yaml.Unmarshal(raw, &cases); err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			switch {
			case c.Body != nil:
				out = append(out, strings.NewReplacer("{KEY}", secret, "{SHA256}", hash).Replace(*c.Body))
			case c.Check != nil:
				fields := *c.Check
				fields["key"] = secret
				body, err := json.Marshal(fields)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, string(body))
			}
		}
	}
	if len(out) < 60 {
		t.Fatalf("only %d questions", len(out))
	}
	return out
}

func TestCheck_IsAsTheDocumentSays(t *testing.T) {
	question, decision := checkSchemas(t)
	allowed, denied, unknown := newParts(), newParts(), newParts()
	denied.verdict = authz.Verdict{
		Route: "/x", Required: []authz.Scope{"a:b"}, Missing: []authz.Scope{"a:b"}, Limits: denied.verdict.Limits,
		Reasons: []authz.Reason{{Code: authz.CodeInsufficientScope, Message: "no"}},
	}
	unknown.key, unknown.secret = nil, nil
	undecided := newParts()
	undecided.findErr = authz.Unavailable("away", nil)
	servers := []*Server{newServer(t, allowed), newServer(t, denied), newServer(t, unknown), newServer(t, undecided)}
	accepted := 0
	for _, body := range questions(t) {
		_, issue := servers[0].decoders.decodeCheck([]byte(body), testFormat(t), nil)
		refused := refusedBySchema(question, []byte(body))
		if refused && issue == nil || !refused && issue != nil && !alone(issue) {
			t.Errorf("the document refuses: %v, the decoder: %+v: %.200s", refused, issue, body)
		}
		if issue != nil {
			continue
		}
		accepted++
		for _, s := range servers {
			w := ask(s, body)
			if w.Code == 422 {
				continue // cost_exceeds_burst
			}
			var value any
			if err := json.Unmarshal(w.Body.Bytes(), &value); err != nil {
				t.Fatal(err)
			}
			if issues := schemaIssues(decision, value); len(issues) > 0 {
				t.Errorf("a decision is not as the document says: %v: %s", issues, w.Body)
			}
		}
	}
	if accepted < 10 {
		t.Errorf("only %d questions were accepted", accepted)
	}
}

// alone tells whether a refusal is one that no JSON Schema of ours can tell: syntax,
// fields that need or exclude each other, NUL characters.
func alone(issue *problem) bool {
	switch issue.Code {
	case "malformed_json", "trailing_data", "duplicate_field", "nul_character", "invalid_utf8":
		return true
	case "missing_field":
		return true
	}
	return false
}

// What the decoder accepts the document accepts.
func FuzzCheck_Document(f *testing.F) {
	schema, _ := checkSchemas(f)
	for _, body := range questions(f) {
		f.Add([]byte(body))
	}
	decoders, format := newDecoderPool(), testFormat(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, issue := decoders.decodeCheck(body, format, nil); issue == nil && refusedBySchema(schema, body) {
			t.Errorf("the document refuses %q", body)
		}
	})
}
