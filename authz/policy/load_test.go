package policy

import (
	"fmt"
	"go/build"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// Each name is a way out of the sandbox, or a builtin that no deadline ends.
func TestLoad_BuiltinsOutsideOfTheSandboxAreRefused(t *testing.T) {
	for _, call := range []string{
		`http.send({"method": "GET", "url": "http://localhost"})`, `net.lookup_ip_addr("localhost")`, `opa.runtime()`,
		`rand.intn("x", 2)`, `uuid.rfc4122("x")`, `time.now_ns()`, `bits.lsh(1, 1000000000)`,
		`io.jwt.encode_sign({}, {}, {})`, `io.jwt.encode_sign_raw("", "", "")`, `rego.parse_module("x", "y")`, `trace("x")`,
		`providers.aws.sign_req({}, {}, 1)`,
		`io.jwt.decode_verify("", {})`, `json.match_schema({}, {})`, `json.verify_schema({})`,
		`crypto.x509.parse_and_verify_certificates("")`, // reads the clock
		`crypto.x509.parse_and_verify_certificates_with_options("", {})`,
	} {
		name, _, _ := strings.Cut(call, "(")
		got := loadError(t, minimal("decision := "+call+"\n"))
		if !strings.Contains(got, "keystile/check/check.rego:3") || !strings.Contains(got, "undefined function "+name) {
			t.Errorf("%s: the error does not name place and reason: %s", name, got)
		}
	}
}

func TestLoad_NothingNondeterministicIsLeftInTheSandbox(t *testing.T) {
	caps, err := sandbox()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range caps.Builtins {
		if b.IsNondeterministic() {
			t.Errorf("policies may call %s", b.Name)
		}
	}
	if caps.AllowNet == nil || len(caps.AllowNet) != 0 {
		t.Error("policies may name hosts")
	}
}

func TestLoad_ErrorsNameFileLineAndReason(t *testing.T) {
	fine := "decision := " + allowing("true") + "\n"
	for name, c := range map[string]struct {
		files fs.FS
		want  []string
	}{
		"syntax":           {minimal("decision := {"), []string{"keystile/check/check.rego:3", "rego_parse_error"}},
		"unused variable":  {minimal(fine + "p if { x := 1 }\n"), []string{"check.rego:4", "unused"}},
		"unsafe variable":  {minimal("decision := x\n"), []string{"check.rego:3", "unsafe"}},
		"recursion":        {minimal("decision := decision\n"), []string{"check.rego:3", "recursive"}},
		"no check":         {minimal("other := 1\n"), []string{"data.keystile.check.decision"}},
		"no admin":         {minimal(fine, "keystile/admin/admin.rego", "package keystile.admin\n"), []string{"data.keystile.admin.decision"}},
		"rule over data":   {minimal(fine, "keystile/check/data.yaml", "decision: 1\n"), []string{"check.rego:3", "conflict"}},
		"data twice":       {minimal(fine, "data.yaml", "x: {y: 1}\n", "x/data.yaml", "y: 2\n"), []string{"x/data.yaml", `"y"`}},
		"data below text":  {minimal(fine, "data.yaml", "x: 1\n", "x/y/data.yaml", "z: 2\n"), []string{"x/y/data.yaml"}},
		"data is a list":   {minimal(fine, "data.yaml", "- 1\n"), []string{"data.yaml"}},
		"data not YAML":    {minimal(fine, "x/data.yaml", "a: [\n"), []string{"x/data.yaml"}},
		"other data file":  {minimal(fine, "x/other.json", "{}"), []string{"x/other.json", "data.yaml"}},
		"rule in a test":   {minimal(fine, "x_test.rego", "package keystile.check\n"), []string{"x_test.rego:1", "tests"}},
		"test in a rule":   {minimal(fine, "x.rego", "package x_test\n"), []string{"x.rego:1", "tests"}},
		"broken test":      {minimal(fine, "x_test.rego", "package x_test\n\ntest_x if y\n"), []string{"x_test.rego:3"}},
		"builtin replaced": {minimal(fine + "p if count([1]) == 2 with count as 2\n"), []string{"check.rego:4", "only a test"}},
		"nothing":          {fstest.MapFS{"README.md": {}}, []string{".rego"}},
	} {
		got := loadError(t, c.files)
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: the error lacks %q: %s", name, want, got)
			}
		}
	}
}

func TestLoad_MisspeltFieldsOfTheInputAreRefused(t *testing.T) {
	const rule = `# METADATA
# title: x
package keystile.rules.x

deny contains {"code": "x", "message": "x"} if input.key.restrictd
`
	got := loadError(t, with(t, map[string]string{"keystile/rules/x/x.rego": rule}))
	if !strings.Contains(got, "keystile/rules/x/x.rego:5") || !strings.Contains(got, "restrictd") {
		t.Error(got)
	}
	mustLoad(t, with(t, map[string]string{"keystile/rules/x/x.rego": strings.Replace(rule, "restrictd", "restricted", 1)}))
}

func TestLoad_SizeIsBounded(t *testing.T) {
	fine := "decision := " + allowing("true") + "\n"
	large := minimal(fine, "data.yaml", "x: "+strings.Repeat("x", MaxBytes)+"\n")
	if got := loadError(t, large); !strings.Contains(got, "bytes") {
		t.Error(got)
	}
	many := minimal(fine)
	for i := range MaxFiles {
		many[fmt.Sprintf("x%d/data.yaml", i)] = &fstest.MapFile{}
	}
	if got := loadError(t, many); !strings.Contains(got, "files") {
		t.Error(got)
	}
}

func TestLoad_ConstantsMustFollowFromDataAlone(t *testing.T) {
	const annotated = "# METADATA\n# custom:\n#   constant: true\n"
	for name, c := range map[string]struct{ rules, want string }{
		"input":            {annotated + "c := input.x\n", "depends on the input"},
		"input in another": {annotated + "c := other\n\nother := input.x\n", "depends on the input"},
		"undefined":        {annotated + "c := data.none.such\n", "undefined"},
		"two rules":        {annotated + "c := 1 if data.x\n\nc := 2 if not data.x\n", "exactly one rule"},
		"partial":          {annotated + "c contains 1\n", "of the form"},
		"else":             {annotated + "c := 1 if data.x\nelse := 2\n", "of the form"},
	} {
		got := loadError(t, minimal("decision := "+allowing("true")+"\n\n"+c.rules))
		if !strings.Contains(got, c.want) || !strings.Contains(got, "check.rego:") {
			t.Errorf("%s: %s", name, got)
		}
	}
	mustLoad(t, minimal("decision := "+allowing("c")+"\n\n"+annotated+"c := count(data.x) == 1\n", "data.yaml", "x: [1]\n"))
}

func TestRevision_FollowsFromContentAlone(t *testing.T) {
	fine := "decision := " + allowing("true") + "\n"
	base := minimal(fine, "x_test.rego", "package x_test\n")
	first := mustLoad(t, base).Revision()
	if !strings.HasPrefix(first, "sha256:") || len(first) != len("sha256:")+64 {
		t.Fatalf("revision %q", first)
	}
	same := minimal(fine, "x_test.rego", "package x_test\n", "README.md", "other", ".manifest", "{}", "embed.go", "package x")
	if got := mustLoad(t, same).Revision(); got != first {
		t.Error("what is no part of the policy changes its revision")
	}
	seen := []string{first}
	for name, changed := range map[string]fs.FS{
		"rule": minimal(fine+"\n", "x_test.rego", "package x_test\n"),
		"test": minimal(fine, "x_test.rego", "package x_test\n\n"),
		"path": minimal(fine, "y_test.rego", "package x_test\n"),
		"data": minimal(fine, "x_test.rego", "package x_test\n", "data.yaml", "x: 1\n"),
	} {
		got := mustLoad(t, changed).Revision()
		if slices.Contains(seen, got) {
			t.Errorf("%s: the revision did not change", name)
		}
		seen = append(seen, got)
	}
}

func TestRevision_IsTheSameFromFolderAndCopy(t *testing.T) {
	if folder, copied := mustLoad(t, shipped()).Revision(), mustLoad(t, with(t, nil)).Revision(); folder != copied {
		t.Errorf("%s and %s", folder, copied)
	}
}

// The engine is handed its policy; it must not know the built-in one.
func TestImports_TheEngineDoesNotKnowTheBuiltInPolicies(t *testing.T) {
	pkg, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for _, path := range pkg.Imports {
		if strings.HasPrefix(path, "github.com/supportstation/") {
			ours = append(ours, path)
		}
	}
	if diff := cmp.Diff([]string{"github.com/supportstation/keystile/authz"}, ours); diff != "" {
		t.Error(diff)
	}
}
