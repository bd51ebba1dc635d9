package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/supportstation/keystile/authz"
)

const (
	// testTimeout is how long one test of a policy may take: three times as long as with the
	// stock `opa test`, because it has no processor of its own here.
	testTimeout = 15 * time.Second
	// maxTestTimeouts is after how many that took longer no more are run.
	maxTestTimeouts = 3
)

// runTests runs tests as the stock `opa test` does, with the sandbox's capabilities and the
// schemas: all of them, or those of some packages. The modules are not changed. The tracer
// may be nil.
func runTests(
	ctx context.Context, modules map[string]*ast.Module, data map[string]any, tracer topdown.QueryTracer, only ...ast.Ref,
) ([]authz.PolicyTest, error) {
	caps, err := sandbox()
	if err != nil {
		return nil, err
	}
	schemas, err := inputSchemas()
	if err != nil {
		return nil, err
	}
	store := inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true))
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the policy's data: %w", err)
	}
	defer store.Abort(ctx, txn)
	compiler := ast.NewCompiler().WithCapabilities(caps).WithSchemas(schemas).WithUseTypeCheckAnnotations(true)
	runner := tester.NewRunner().SetCompiler(compiler).SetStore(store).SetModules(copied(modules)).
		CapturePrintOutput(false).SetTimeout(testTimeout).SetCoverageRuns(nil).SetPrefixMatchers(only...)
	if tracer != nil {
		runner = runner.SetCoverageQueryTracer(tracer)
	}
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	ran, err := runner.RunTests(running, txn)
	if err != nil {
		return nil, err
	}
	declared := declaredTests(compiler.Modules, only)
	var results []authz.PolicyTest
	late := 0
	for r := range ran {
		result := resultOf(r)
		results = append(results, result)
		if r.Duration >= testTimeout && result.Failed() {
			if late++; late == maxTestTimeouts {
				cancel()
			}
		}
	}
	slices.SortFunc(results, func(a, b authz.PolicyTest) int { return strings.Compare(a.Name, b.Name) })
	// A test that was not run has not passed.
	if len(results) != declared || ctx.Err() != nil {
		return results, fmt.Errorf("%d of %d tests were run; %s", len(results), declared, lateTests(results))
	}
	return results, nil
}

// declaredTests counts what the runner takes for tests, of all packages or some.
func declaredTests(modules map[string]*ast.Module, only []ast.Ref) (n int) {
	for _, m := range modules {
		if len(only) > 0 && !slices.ContainsFunc(only, m.Package.Path.HasPrefix) {
			continue
		}
		for _, rule := range m.Rules {
			if slices.ContainsFunc(rule.Head.Ref().GroundPrefix(), isTestName) {
				n++
			}
		}
	}
	return n
}

func isTestName(t *ast.Term) bool {
	return strings.HasPrefix(nameOf(t), tester.TestPrefix) || strings.HasPrefix(nameOf(t), tester.SkipTestPrefix)
}

// lateTests says why others were not run.
func lateTests(results []authz.PolicyTest) string {
	var late []string
	for _, r := range results {
		if r.Failed() && r.Seconds >= testTimeout.Seconds() {
			late = append(late, fmt.Sprintf("%s (%s:%d)", r.Name, r.File, r.Line))
		}
	}
	if len(late) == 0 {
		return "the trial was ended"
	}
	return fmt.Sprintf("%s took longer than %v", strings.Join(late, ", "), testTimeout)
}

func resultOf(r *tester.Result) authz.PolicyTest {
	t := authz.PolicyTest{Name: r.Package + "." + r.Name, Outcome: authz.TestPasses, Seconds: r.Duration.Seconds()}
	if r.Location != nil {
		t.File, t.Line = r.Location.File, r.Location.Row
	}
	switch {
	case r.Skip:
		t.Outcome = authz.TestSkips
	case r.Error != nil && r.Duration >= testTimeout:
		t.Outcome, t.Message = authz.TestErrs, fmt.Sprintf("it took longer than %v", testTimeout)
	case r.Error != nil:
		t.Outcome, t.Message = authz.TestErrs, oneLine(r.Error.Error())
	case r.Fail:
		t.Outcome, t.Message = authz.TestFails, "it does not hold"
		if r.FailedAt != nil && r.FailedAt.Location != nil {
			t.Line = r.FailedAt.Location.Row
			t.Message = "it does not hold, from here on: " + oneLine(string(r.FailedAt.Location.Text))
		}
	}
	return t
}

func copied(modules map[string]*ast.Module) map[string]*ast.Module {
	copies := make(map[string]*ast.Module, len(modules))
	for name, module := range modules {
		copies[name] = module.Copy() // compiling rewrites modules
	}
	return copies
}

// parsed is a policy as its tests are run.
type parsed struct {
	source    *Source
	data      map[string]any
	live, all map[string]*ast.Module
	// where is told where tests are; nil for nobody.
	where *whereabouts
}

func (s *Source) parse() (*parsed, error) {
	data, err := parseData(s.files)
	if err != nil {
		return nil, err
	}
	live, all, err := parseModules(s.files)
	if err != nil {
		return nil, err
	}
	return &parsed{source: s, data: data, live: live, all: all}, nil
}

// tracer tells where, and next.
func (p *parsed) tracer(next topdown.QueryTracer) topdown.QueryTracer {
	if p.where == nil {
		return next
	}
	p.where.next = next
	return p.where
}

// ownTests runs a policy's own tests and tells how much of its rules they reach.
func (p *parsed) ownTests(ctx context.Context) (results []authz.PolicyTest, percent float64, gaps []authz.PolicyGap, err error) {
	covered := cover.New()
	if results, err = runTests(ctx, p.all, p.data, p.tracer(covered)); err != nil {
		return nil, 0, nil, err
	}
	report := covered.Report(p.live)
	lines, missing := 0, 0
	for _, name := range slices.Sorted(maps.Keys(p.live)) {
		f := report.Files[name]
		if f == nil {
			continue
		}
		lines += f.CoveredLines + f.NotCoveredLines
		missing += f.NotCoveredLines
		for _, r := range f.NotCovered {
			gaps = append(gaps, authz.PolicyGap{File: name, From: r.Start.Row, To: r.End.Row})
		}
	}
	if lines == 0 {
		return results, 0, gaps, nil
	}
	return results, 100 * float64(lines-missing) / float64(lines), gaps, nil
}

// activeTests runs the active policy's tests of some packages, with nothing of the candidate's
// tests, against the candidate's rules and data: a file beside them could make a helper of
// theirs hold whatever it is asked. A test that does not even compile fails, and so does one
// that needs something of such a file: what it spoke of is gone.
func (p *parsed) activeTests(ctx context.Context, active *parsed, only []ast.Ref) ([]authz.PolicyTest, error) {
	modules := maps.Clone(p.live)
	for name, module := range active.all {
		if active.live[name] == nil {
			modules[name] = module
		}
	}
	var broken []authz.PolicyTest
	for {
		results, err := runTests(ctx, modules, p.data, p.tracer(nil), only...)
		var errs ast.Errors
		switch {
		case err == nil:
			return append(results, broken...), nil
		case !errors.As(err, &errs):
			return nil, err
		}
		why := map[string]string{}
		for _, e := range errs {
			if l := e.Location; l != nil && p.live[l.File] == nil && modules[l.File] != nil && why[l.File] == "" {
				why[l.File] = "it does not compile any more: " + oneLine(e.Code+": "+e.Message)
			}
		}
		if len(why) == 0 {
			return nil, err // not the tests' fault
		}
		if err := p.addDependents(why, modules); err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(why)) {
			broken = append(broken, brokenTests(modules[name], why[name])...)
			delete(modules, name)
		}
	}
}

// addDependents adds the files of tests that refer to rules of those that are left out. They
// would compile without: such a reference is undefined then, and a `not` of it holds.
func (p *parsed) addDependents(why map[string]string, modules map[string]*ast.Module) error {
	caps, err := sandbox()
	if err != nil {
		return err
	}
	compiler := ast.NewCompiler().WithCapabilities(caps).SetErrorLimit(0)
	compiler.Compile(copied(modules)) // it fails; names are resolved before anything else
	names := slices.Sorted(maps.Keys(compiler.Modules))
	for out := slices.Sorted(maps.Keys(why)); len(out) > 0; out = out[1:] {
		for _, name := range names {
			if p.live[name] == nil && why[name] == "" && refersTo(compiler.Modules[name], modules[out[0]]) {
				why[name] = "it needs " + out[0] + ", which does not compile any more"
				out = append(out, name)
			}
		}
	}
	return nil
}

// refersTo tells whether a module, whose names are resolved, can look at a rule of another.
func refersTo(module, other *ast.Module) (refers bool) {
	for _, rule := range module.Rules {
		ast.WalkRefs(rule, func(ref ast.Ref) bool {
			ground := ref.GroundPrefix()
			refers = refers || ref.HasPrefix(ast.DefaultRootRef) && slices.ContainsFunc(other.Rules, func(r *ast.Rule) bool {
				path := other.Package.Path.Extend(r.Head.Ref().GroundPrefix())
				return path.HasPrefix(ground) || ground.HasPrefix(path)
			})
			return refers
		})
	}
	return refers
}

// brokenTests are all tests of a module that is left out, named as the runner names them.
func brokenTests(module *ast.Module, why string) []authz.PolicyTest {
	var all []authz.PolicyTest
	for _, rule := range module.Rules {
		ref := rule.Head.Ref().GroundPrefix()
		i := slices.IndexFunc(ref, isTestName)
		if i < 0 {
			continue
		}
		t := authz.PolicyTest{
			Name: module.Package.Path.String() + "." + ref[:i+1].String(), File: rule.Location.File, Line: rule.Location.Row,
			Outcome: authz.TestErrs, Message: why,
		}
		if strings.HasPrefix(nameOf(ref[i]), tester.SkipTestPrefix) {
			t.Outcome, t.Message = authz.TestSkips, "" // nor would it be asked if it compiled
		}
		all = append(all, t)
	}
	return all
}

// testsToRepeat are the packages of the active policy's tests, all of them unless every file is
// in the candidate exactly as it is: the tests of one package can hold by the helpers of another.
// A file more in one of them counts, too, and so does one in a package above, whose rules can
// lead into it.
func (p *parsed) testsToRepeat(active *parsed) []ast.Ref {
	var packages []ast.Ref
	for name, m := range active.all {
		if active.live[name] == nil {
			packages = append(packages, m.Package.Path)
		}
	}
	if maps.EqualFunc(p.testsOf(packages), active.testsOf(packages), bytes.Equal) {
		return nil // its own tests were these, and maybe others
	}
	return packages
}

// testsOf are the test files whose rules can be in one of some packages, by path.
func (p *parsed) testsOf(packages []ast.Ref) map[string][]byte {
	files := map[string][]byte{}
	for _, f := range p.source.files {
		m := p.all[f.path]
		if m != nil && p.live[f.path] == nil && slices.ContainsFunc(packages, func(pkg ast.Ref) bool { return pkg.HasPrefix(m.Package.Path) }) {
			files[f.path] = f.content
		}
	}
	return files
}
