package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/supportstation/keystile/authz"
)

// Snapshot is one compiled policy. It is immutable and safe for concurrent use.
type Snapshot struct {
	revision string
	compiler *ast.Compiler
	store    storage.Store
	txn      storage.Transaction
	caps     *ast.Capabilities
	check    ast.Body
	admin    ast.Body
	// mask is nil for a policy without one.
	mask ast.Body
	// drop is nil for a policy that has every decision logged.
	drop ast.Body
	// findings is nil for a policy that judges no evidence; steps are what that is rounded to.
	findings ast.Body
	steps    authz.EvidenceSteps
	// unasked are rules that nobody asks, or that are off though they are written as on.
	unasked []authz.PolicyProblem
	// findingKinds are those that the data says how much they matter.
	findingKinds []authz.FindingCode
	// catalogue is what the data lists.
	catalogue authz.Catalogue
	// templates are the catalogue's routes, as far as its data lists them.
	templates map[string]bool
	builtins  map[string]*topdown.Builtin
}

// in returns the snapshot with its large calls on the given lane.
func (s *Snapshot) in(l *lane) *Snapshot {
	copied := *s
	copied.builtins = guardedBuiltins(l, s.caps)
	return &copied
}

// Revision is the Source's.
func (s *Snapshot) Revision() string { return s.revision }

// The entry points that every policy must have; see maskEntrypoint, dropEntrypoint and
// findingsEntrypoint for those that it may.
const (
	checkEntrypoint = "data.keystile.check.decision"
	adminEntrypoint = "data.keystile.admin.decision"
)

// Load reads a policy and loads it: see Source.Load.
func Load(ctx context.Context, fsys fs.FS) (*Snapshot, error) {
	source, err := ReadSource(ctx, fsys)
	if err != nil {
		return nil, err
	}
	return source.Load(ctx)
}

// Load compiles the policy strictly in the sandbox and returns it ready for an Engine. The
// *_test.rego files must compile too, but are not part of what is evaluated.
//
// Errors name file, line and reason; there can be several, joined. A policy is
// refused whole: there is no part of a Snapshot.
func (s *Source) Load(ctx context.Context) (*Snapshot, error) {
	p, err := s.parse()
	if err != nil {
		return nil, err
	}
	// Once with the tests, for what is wrong in them, and once without: a test
	// must not be able to change what is decided.
	whole, err := compile(ctx, p.all, p.data, true)
	if err != nil {
		return nil, err
	}
	unasked := slices.Concat(whole.unaskedOf(p.live), switchesOf(s.files))
	if err := foldConstants(ctx, whole.in(newLane()), p.live); err != nil {
		return nil, err
	}
	loaded, err := compile(ctx, p.live, p.data, false)
	if err != nil {
		return nil, err
	}
	if loaded.catalogue, err = catalogueOf(p.data); err != nil {
		return nil, err
	}
	if loaded.steps, err = stepsOf(p.data); err != nil {
		return nil, at(findingsData, 0, err)
	}
	loaded.templates, loaded.findingKinds = templatesOf(p.data), findingKindsOf(p.data)
	loaded.revision, loaded.unasked = s.revision, unasked
	loaded.catalogue.Revision = s.revision
	return loaded, nil
}

// compile compiles in the sandbox. Strict goes for what was written; once constants
// are folded, an import may be left that nothing uses.
func compile(ctx context.Context, modules map[string]*ast.Module, data map[string]any, strict bool) (*Snapshot, error) {
	caps, err := sandbox()
	if err != nil {
		return nil, err
	}
	schemas, err := inputSchemas()
	if err != nil {
		return nil, err
	}
	store := inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true))
	// Nothing is ever written, so one read transaction serves every evaluation.
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the policy's data: %w", err)
	}
	compiler := ast.NewCompiler().
		WithStrict(strict).
		WithCapabilities(caps).
		WithSchemas(schemas).
		WithUseTypeCheckAnnotations(true).
		WithEnablePrintStatements(false).
		WithPathConflictsCheck(storage.NonEmpty(ctx, store, txn))
	if compiler.Compile(copied(modules)); compiler.Failed() {
		return nil, compileErrors(compiler.Errors)
	}
	if err := guard(compiler); err != nil {
		return nil, err
	}
	s := &Snapshot{compiler: compiler, store: store, txn: txn, caps: caps}
	for _, entrypoint := range []string{checkEntrypoint, adminEntrypoint} {
		if len(compiler.GetRulesExact(ast.MustParseRef(entrypoint))) == 0 {
			return nil, atLocation(packageOf(modules, entrypoint), fmt.Errorf("the policy has no rule %s", entrypoint))
		}
	}
	if s.check, err = prepare(compiler, checkEntrypoint); err != nil {
		return nil, err
	}
	if s.admin, err = prepare(compiler, adminEntrypoint); err != nil {
		return nil, err
	}
	for entrypoint, to := range map[string]*ast.Body{maskEntrypoint: &s.mask, dropEntrypoint: &s.drop, findingsEntrypoint: &s.findings} {
		if len(compiler.GetRulesExact(ast.MustParseRef(entrypoint))) == 0 {
			continue
		}
		if *to, err = prepare(compiler, entrypoint); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// packageOf is where the package of an entry point begins; nil when there is none.
func packageOf(modules map[string]*ast.Module, entrypoint string) *ast.Location {
	ref := ast.MustParseRef(entrypoint)
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		if m := modules[name]; m.Package.Path.Equal(ref[:len(ref)-1]) {
			return m.Package.Location
		}
	}
	return nil
}

// resultVar is the variable that a prepared query binds to the entry point's value.
const resultVar = ast.Var("result")

func prepare(compiler *ast.Compiler, entrypoint string) (ast.Body, error) {
	query, err := ast.ParseBody(string(resultVar) + " = " + entrypoint)
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", entrypoint, err)
	}
	body, err := compiler.QueryCompiler().Compile(query)
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", entrypoint, err)
	}
	return body, nil
}

func compileErrors(errs ast.Errors) error {
	joined := make([]error, len(errs))
	for i, err := range errs {
		joined[i] = err
	}
	return errors.Join(joined...)
}

// parseModules parses all .rego files. The first map leaves out the tests.
func parseModules(files []file) (live, all map[string]*ast.Module, err error) {
	live, all = make(map[string]*ast.Module), make(map[string]*ast.Module)
	caps, err := sandbox()
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for _, f := range files {
		if !f.isRego() {
			continue
		}
		module, err := ast.ParseModuleWithOpts(f.path, string(f.content), ast.ParserOptions{
			ProcessAnnotation: true, RegoVersion: ast.RegoV1, Capabilities: caps,
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		test := isTestPackage(module)
		if test != f.isTest() {
			errs = append(errs, atLocation(module.Package.Location,
				errors.New("tests stand in files *_test.rego with a package *_test, and nothing else does")))
			continue
		}
		all[f.path] = module
		if !test {
			live[f.path] = module
		}
	}
	return live, all, errors.Join(append(errs, reachesTests(live, all))...)
}

func isTestPackage(module *ast.Module) bool {
	path := module.Package.Path
	last, _ := path[len(path)-1].Value.(ast.String)
	return strings.HasSuffix(string(last), "_test")
}

// reachesTests is a rule whose name, with its package, leads into a package of tests: it would
// be part of them, and could make them hold.
func reachesTests(live, all map[string]*ast.Module) error {
	var tests []ast.Ref
	for name, m := range all {
		if live[name] == nil {
			tests = append(tests, m.Package.Path)
		}
	}
	var errs []error
	for _, m := range live {
		for _, rule := range m.Rules {
			ref := slices.Concat(m.Package.Path, rule.Head.Ref())
			ground := ref.GroundPrefix()
			inside := slices.ContainsFunc(ground, func(t *ast.Term) bool { return strings.HasSuffix(nameOf(t), "_test") })
			// What comes after is worked out as it runs.
			above := len(ground) < len(ref) && slices.ContainsFunc(tests, func(t ast.Ref) bool { return t.HasPrefix(asPath(ground)) })
			if inside || above {
				errs = append(errs, atLocation(rule.Location, fmt.Errorf("the rule %s leads into a package *_test; tests stand in files *_test.rego, and nothing else does", rule.Head.Ref())))
			}
		}
	}
	return errors.Join(errs...)
}

// asPath is a reference whose names are all strings, as those of packages are.
func asPath(ref ast.Ref) ast.Ref {
	path := slices.Clone(ref)
	for i := 1; i < len(path); i++ {
		if v, ok := path[i].Value.(ast.Var); ok {
			path[i] = ast.StringTerm(string(v))
		}
	}
	return path
}

// nameOf is a term of a reference as a name, "" when it is none.
func nameOf(t *ast.Term) string {
	switch v := t.Value.(type) {
	case ast.Var:
		return string(v)
	case ast.String:
		return string(v)
	}
	return ""
}

// parseData puts each data.yaml at the place that its folder names.
func parseData(files []file) (map[string]any, error) {
	root := map[string]any{}
	for _, f := range files {
		if f.isRego() {
			continue
		}
		var value map[string]any
		// util.Unmarshal is what the stock tools read YAML 1.2 with.
		if err := util.Unmarshal(f.content, &value); err != nil {
			return nil, at(f.path, yamlLine(err), err)
		}
		if err := place(root, path.Dir(f.path), value); err != nil {
			return nil, at(f.path, 0, err)
		}
	}
	return root, nil
}

var yamlLineText = regexp.MustCompile(`\bline (\d+)`)

// yamlLine is the line that an error of the YAML reader speaks of, or 0.
func yamlLine(err error) int {
	found := yamlLineText.FindStringSubmatch(err.Error())
	if found == nil {
		return 0
	}
	line, _ := strconv.Atoi(found[1])
	return line
}

func place(root map[string]any, dir string, value map[string]any) error {
	at := root
	if dir != "." {
		for name := range strings.SplitSeq(dir, "/") {
			next, ok := at[name]
			if !ok {
				next = map[string]any{}
				at[name] = next
			}
			at, ok = next.(map[string]any)
			if !ok {
				return fmt.Errorf("its folder is already data of a folder above, at %q", name)
			}
		}
	}
	for name, v := range value {
		if _, ok := at[name]; ok {
			return fmt.Errorf("%q is already data of another file", name)
		}
		at[name] = v
	}
	return nil
}

// run evaluates one prepared query. An undefined result is nil. Builtin errors are
// errors: under a `not` they would allow.
func (s *Snapshot) run(ctx context.Context, body ast.Body, input *ast.Term, cancel topdown.Cancel) (ast.Value, error) {
	return s.runTraced(ctx, body, input, cancel, nil)
}

// runTraced is run with a tracer, nil for none.
func (s *Snapshot) runTraced(
	ctx context.Context, body ast.Body, input *ast.Term, cancel topdown.Cancel, tracer topdown.QueryTracer,
) (ast.Value, error) {
	var result ast.Value
	query := topdown.NewQuery(body).
		WithCompiler(s.compiler).
		WithStore(s.store).
		WithTransaction(s.txn).
		WithInput(input).
		WithCancel(cancel).
		WithBuiltins(s.builtins).
		WithStrictBuiltinErrors(true).
		WithMetrics(metrics.NoOp())
	if tracer != nil {
		query = query.WithQueryTracer(tracer)
	}
	err := query.Iter(ctx, func(bindings topdown.QueryResult) error {
		if term, ok := bindings[resultVar]; ok {
			result = term.Value
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}
