package main_test

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/supportstation/keystile"
	// maxLines bounds a file that is neither a test nor generated.
	maxLines = 500
)

// What rooms must not know, by import path.
const (
	gin     = "github.com/gin-gonic/gin"
	opa     = "github.com/open-policy-agent/opa"
	sqlx    = "github.com/jmoiron/sqlx"
	pq      = "github.com/lib/pq"
	redis   = "github.com/redis/go-redis"
	rate    = "github.com/go-redis/redis_rate"
	metrics = "github.com/prometheus"
	cobra   = "github.com/spf13/cobra"
	yaml    = "go.yaml.in/yaml"

	tables   = "github.com/jedib0t/go-pretty"
	progress = "github.com/schollz/progressbar"
	terminal = "golang.org/x/term"
)

// room is what a folder, and those below it without a room of their own, may import.
type room struct {
	path string
	// ours are the folders of this module that it may know: /… means all below as well.
	ours []string
	// never are foreign modules that it must not import.
	never []string
	// only, when not nil, are the foreign modules that it may import: none, or these.
	only   []string
	reason string
}

func rooms() []room {
	none := []string{}
	return []room{
		{path: "authz", only: none, reason: "the decision knows nobody: everyone speaks its types, on the standard library alone"},
		{path: "authz/manage", ours: []string{"authz"}, only: none, reason: "operations stand on ports, under JSON API and pages alike"},
		{path: "authz/audit", ours: []string{"authz"}, never: []string{gin, opa, sqlx, pq, redis, metrics}, reason: "evidence comes in and findings go out; where from is not its business"},
		{path: "authz/decisionlog", ours: []string{"authz"}, only: none, reason: "it hands on what somebody else writes down: the form of an event, and what of it is masked, is the policy's business"},
		{path: "authz/policy", ours: []string{"authz"}, never: []string{gin, sqlx, pq, redis, rate, metrics}, reason: "policies are evaluated on what they are given, and fetch nothing"},
		{path: "authz/policy/bundle", ours: []string{"authz/policy"}, never: []string{gin, sqlx, pq, redis, rate, metrics}, reason: "it reads and writes the form of a bundle; where one comes from is not its business"},
		{path: "authz/policy/origin", ours: []string{"authz", "authz/policy", "authz/policy/bundle"}, never: []string{gin, sqlx, pq, redis, rate, metrics}, reason: "it fetches policies; what they decide is not its business"},
		{path: "authz/policy/routes", ours: []string{"authz"}, never: []string{gin, sqlx, pq, redis, rate, metrics, cobra}, reason: "it edits a policy's data as a person would; what the policy decides is not its business"},
		{path: "authz/ratelimit", ours: []string{"authz"}, never: []string{gin, opa, sqlx, pq, metrics}, reason: "a limit is a value that somebody else decided"},
		{path: "policies", only: none, reason: "the room of Rego: it embeds, and has no logic in Go"},
		{path: "store", ours: []string{"authz", "authz/manage", "store/..."}, never: []string{gin, opa, redis, rate, metrics}, reason: "rows in, records out: it serves ports of authz and knows no transport"},
		{path: "server", ours: []string{"authz/...", "server/..."}, never: []string{opa, sqlx, pq, redis, rate}, reason: "a transport speaks to authz; store and engine are handed to it"},
		{path: "server/faults", only: none, reason: "tests alone, which measure the program from outside: there is nothing in it to import anything"},
		{path: "sdk", only: none, reason: "an application that asks for decisions must not inherit our dependencies"},
		{path: "sdk/ginmw", ours: []string{"sdk"}, only: []string{gin}, reason: "an adapter is the SDK and its framework"},
		{path: "sdk/grpcmw", ours: []string{"sdk"}, only: []string{"google.golang.org/grpc"}, reason: "an adapter is the SDK and its framework"},
		{path: "sdk/echomw", ours: []string{"sdk"}, only: []string{"github.com/labstack/echo"}, reason: "an adapter is the SDK and its framework"},
		{path: "sdk/admin", ours: []string{"sdk"}, never: []string{gin, opa, sqlx, pq, redis, rate, metrics}, reason: "a client is the SDK and its generator's runtime"},
		{path: "sdk/cli", ours: []string{"sdk", "sdk/admin"}, only: []string{cobra, yaml, tables, progress, terminal}, reason: "what a person asks from a shell, an application can ask with the SDK"},
		{path: "sdk/keystiletest", ours: []string{"sdk"}, only: none, reason: "it stands in for the service in the tests of applications"},
		{path: "sdk/examples", ours: []string{"sdk/..."}, never: []string{opa, redis, rate, cobra}, reason: "the examples show what an application needs, and that is the SDK"},
	}
}

// source is a Go file of this module.
type source struct {
	file, dir string
	test      bool
	generated bool
	imports   []string
}

func TestImports_RoomsKnowOnlyWhomTheyMay(t *testing.T) {
	all := rooms()
	for _, s := range goFiles(t) {
		if s.test || s.dir == "." {
			continue
		}
		r, ok := roomOf(all, s.dir)
		if !ok {
			t.Errorf("%s is in no room; the table above says who may know whom, and needs a line for it", s.file)
			continue
		}
		for _, imported := range s.imports {
			if complaint := r.judge(imported); complaint != "" {
				t.Errorf("%s imports %s: %s: %s", s.file, imported, complaint, r.reason)
			}
		}
	}
}

// roomOf returns the room with the longest path that holds dir.
func roomOf(all []room, dir string) (room, bool) {
	var found room
	for _, r := range all {
		if below(dir, r.path) && len(r.path) > len(found.path) {
			found = r
		}
	}
	return found, found.path != ""
}

// judge says what is wrong with an import, or nothing.
func (r room) judge(imported string) string {
	if own, ok := strings.CutPrefix(imported, module); ok {
		own = strings.TrimPrefix(own, "/")
		for _, allowed := range r.ours {
			if tree, ok := strings.CutSuffix(allowed, "/..."); own == allowed || ok && below(own, tree) {
				return ""
			}
		}
		return r.path + " must not know " + own
	}
	if !strings.Contains(strings.Split(imported, "/")[0], ".") {
		return "" // the standard library
	}
	if slices.ContainsFunc(r.never, func(m string) bool { return below(imported, m) }) {
		return r.path + " must not know it"
	}
	if r.only != nil && len(r.only) == 0 {
		return r.path + " may import the standard library alone"
	}
	if r.only != nil && !slices.ContainsFunc(r.only, func(m string) bool { return below(imported, m) }) {
		return fmt.Sprintf("%s may import %v beside the standard library", r.path, r.only)
	}
	return ""
}

// below tells whether a slash-separated path is tree, or in it.
func below(p, tree string) bool { return p == tree || strings.HasPrefix(p, tree+"/") }

// TestImports_TableJudges holds the judge itself to the table's meaning: a rule that
// never complains would keep nothing.
func TestImports_TableJudges(t *testing.T) {
	tests := []struct {
		dir, imported string
		allowed       bool
	}{
		{"authz", "crypto/hmac", true},
		{"authz", opa + "/v1/rego", false},
		{"authz", module + "/authz/policy", false},
		{"authz/policy", module + "/authz", true},
		{"authz/policy", module + "/store", false},
		{"authz/policy", redis + "/v9", false},
		{"authz/ratelimit", redis + "/v9", true},
		{"store/localserver", module + "/store", true},
		{"store/localserver", module + "/server", false},
		{"store", redis + "/v9", false},
		{"server", module + "/authz/ratelimit", true},
		{"server/dashboard", module + "/store", false},
		{"server/dashboard", module + "/server/api", true},
		{"sdk", "golang.org/x/sync/errgroup", false},
		{"sdk/ginmw", gin + "/render", true},
		{"sdk/ginmw", gin + "x", false},
		{"sdk/examples/tickets", module + "/sdk/ginmw", true},
		{"sdk/examples/tickets", module + "/authz", false},
		{"sdk/cli", module, false},
	}
	for _, tt := range tests {
		r, ok := roomOf(rooms(), tt.dir)
		if !ok {
			t.Errorf("%s is in no room", tt.dir)
			continue
		}
		if complaint := r.judge(tt.imported); (complaint == "") != tt.allowed {
			t.Errorf("%s importing %s: %q, want allowed %t", tt.dir, tt.imported, complaint, tt.allowed)
		}
	}
}

// Packages whose name ends in "test" are for tests alone; nothing else that the
// program is made of may link package testing, or bring it in through them.
func TestImports_TestingIsLinkedInTestsAlone(t *testing.T) {
	for _, s := range goFiles(t) {
		for _, imported := range s.imports {
			if below(imported, "github.com/stretchr/testify") {
				t.Errorf("%s imports testify: tests are written with the standard library and go-cmp", s.file)
			}
			if s.test || strings.HasSuffix(s.dir, "test") {
				continue
			}
			if below(imported, "testing") || strings.HasPrefix(imported, module) && strings.HasSuffix(imported, "test") {
				t.Errorf("%s imports %s, and is no test: help for tests must not be linked into the program", s.file, imported)
			}
		}
	}
}

func TestHouse_TopLevelHoldsOnlyTheAgreedRooms(t *testing.T) {
	agreed := []string{
		"authz", "policies", "server", "store", "sdk", "testdata",
		"Makefile", "go.mod", "go.sum", "README.md", "LICENSE", "CHANGELOG.md",
		"bin", // what make builds; not in git
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".go") && !e.IsDir() || slices.Contains(agreed, name) {
			continue
		}
		t.Errorf("%s does not belong at the top: rooms are few, so that a reader knows where to look", name)
	}
}

func TestHouse_EveryRoomHasAReadme(t *testing.T) {
	dirs := map[string]bool{"policies": true}
	for _, s := range goFiles(t) {
		dirs[s.dir] = s.dir != "."
	}
	for dir, wanted := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "README.md")); wanted && err != nil {
			t.Errorf("%s has no README.md: what it is for, what it must not know, where a change of each kind goes", dir)
		}
	}
}

func TestHouse_FilesFitTheirReader(t *testing.T) {
	for _, s := range goFiles(t) {
		if s.test || s.generated {
			continue
		}
		if lines := bytes.Count(read(t, s.file), []byte("\n")); lines > maxLines {
			t.Errorf("%s has %d lines, more than %d: does it have one subject?", s.file, lines, maxLines)
		}
	}
}

// A file with something that looks like a key makes scanners and people run: tests
// make their secrets when they run.
func TestHouse_NoFileLooksLikeALeakedKey(t *testing.T) {
	key := regexp.MustCompile(`\b(?:[a-z][a-z0-9]*_(?:live|test)|ks[ac])_[0-9A-Za-z]{36}\b`)
	for _, sample := range []string{"sk_live_", "acme_test_", "ksc_", "ksa_"} {
		if !key.MatchString("x " + sample + strings.Repeat("a", 36) + ".") {
			t.Errorf("the pattern does not find keys with the prefix %s", sample)
		}
	}
	walk(t, func(file string) {
		scanner := bufio.NewScanner(bytes.NewReader(read(t, file)))
		scanner.Buffer(nil, 16<<20)
		for line := 1; scanner.Scan(); line++ {
			if key.Match(scanner.Bytes()) {
				t.Errorf("%s:%d looks like a leaked key", file, line)
			}
		}
		if err := scanner.Err(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	})
}

// goFiles reads the imports of every Go file of this module.
func goFiles(t *testing.T) []source {
	t.Helper()
	var found []source
	walk(t, func(file string) {
		if path.Ext(file) != ".go" || below(file, "testdata") || strings.HasPrefix(file, ".") {
			return
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			return
		}
		s := source{
			file: file, dir: path.Dir(file),
			test: strings.HasSuffix(file, "_test.go"), generated: ast.IsGenerated(parsed),
		}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Errorf("%s: %v", file, err)
			}
			s.imports = append(s.imports, imported)
		}
		found = append(found, s)
	})
	if len(found) == 0 {
		t.Fatal("no Go file found")
	}
	return found
}

// walk visits every file of the repository, without what git and make put there.
func walk(t *testing.T, visit func(file string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (file == ".git" || file == "bin" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() && file != ".git" { // .git is a file in a linked work tree
			visit(filepath.ToSlash(file))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
