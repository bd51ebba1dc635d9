package policy

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/supportstation/keystile/authz"
)

const patience = 20 * time.Second

// Each of these would run for hours.
func TestEvaluate_EndlessPoliciesEndWithinTheirBudget(t *testing.T) {
	for name, condition := range map[string]string{
		"steps":     "count([1 | some a in data.many; some b in data.many; some c in data.many; some d in data.many; a + b + c == d]) == 0",
		"range":     "count(numbers.range(1, 1000000000000)) == 0",
		"addresses": `count(net.cidr_expand("::/0")) == 0`,
	} {
		files := minimal("decision := "+allowing("true")+" if "+condition+"\n",
			"data.yaml", "many: ["+strings.Repeat("1, ", 999)+"1]\n")
		e := NewEngine(mustLoad(t, files), WithBudget(time.Millisecond))
		done := make(chan error, 1)
		go func() {
			_, err := evaluate(t, e, exampleKey(), exampleCheck("GET", "/"))
			done <- err
		}()
		select {
		case err := <-done:
			if !errors.Is(err, errOverBudget) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(patience):
			t.Fatalf("%s: no end", name)
		}
	}
}

// stuck is an engine whose policy calls product over the thousand numbers of
// data.many for keys that are restricted. A product counts up calls and returns
// when released; it hears nothing of deadlines, like OPA's own.
func stuck(t *testing.T) (e *Engine, calls *atomic.Int64, release func()) {
	t.Helper()
	e = NewEngine(mustLoad(t, minimal(
		"decision := "+allowing("true")+" if product(numbers) == 1\n\nnumbers := data.many if input.key.restricted\nelse := [1]\n",
		"data.yaml", "many: ["+strings.Repeat("1, ", 999)+"1]\n",
	)), WithBudget(time.Millisecond))
	calls = new(atomic.Int64)
	released := make(chan struct{})
	e.current.Load().builtins[guardedPrefix+"product"].Func = e.lane.guarded("product",
		func(_ topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
			if many, ok := operands[0].Value.(*ast.Array); ok && many.Len() > 1 {
				calls.Add(1)
				<-released
			}
			return iter(ast.InternedTerm(1))
		})
	return e, calls, func() { close(released) }
}

func keyOf(organization *authz.Organization, restricted bool) *authz.Key {
	k := exampleKey()
	k.Restricted = restricted
	if organization != nil {
		k.Organization = organization
	}
	return k
}

func TestEvaluate_AtMostOneEvaluationIsLeftRunning(t *testing.T) {
	e, calls, release := stuck(t)
	check := exampleCheck("GET", "/")
	first := keyOf(nil, true)
	if got, err := evaluate(t, e, first, check); !errors.Is(err, errOverBudget) || got.Allow {
		t.Fatal(got, err)
	}
	if _, err := evaluate(t, e, first, check); !errors.Is(err, ErrHeldBack) {
		t.Errorf("the key whose evaluation is left running is evaluated: %v", err)
	}
	for range 3 {
		if _, err := evaluate(t, e, keyOf(nil, true), check); !errors.Is(err, errLaneBusy) {
			t.Errorf("another large call: %v", err)
		}
	}
	if got, err := evaluate(t, e, keyOf(nil, false), check); err != nil || !got.Allow {
		t.Errorf("a small call is held up: %v", err)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls were left running", n)
	}
	left := e.held.keys[first.ID]
	release()
	select {
	case <-left.done:
	case <-time.After(patience):
		t.Fatal("the call did not end")
	}
	if got, err := e.evaluate(t.Context(), e.current.Load(), first, check); err != nil || !got.Allow {
		t.Errorf("after its end the key is still held back: %v", err)
	}
}

func TestEvaluate_LargeCallsThatEndInTimeGiveTheirResult(t *testing.T) {
	e := NewEngine(mustLoad(t, minimal("decision := "+allowing("sum(data.many) == 1000")+"\n",
		"data.yaml", "many: ["+strings.Repeat("1, ", 999)+"1]\n")), WithBudget(patience))
	if got, err := evaluate(t, e, exampleKey(), exampleCheck("GET", "/")); err != nil || !got.Allow {
		t.Error(got, err)
	}
}

func TestEvaluate_PanicsAreErrors(t *testing.T) {
	for name, numbers := range map[string]string{"small call": "[1]", "large call": "data.many"} {
		e := NewEngine(mustLoad(t, minimal("decision := "+allowing("true")+" if product("+numbers+") == 1\n",
			"data.yaml", "many: ["+strings.Repeat("1, ", 999)+"1]\n")), WithBudget(patience))
		e.current.Load().builtins[guardedPrefix+"product"].Func = e.lane.guarded("product",
			func(topdown.BuiltinContext, []*ast.Term, func(*ast.Term) error) error { panic("broken") })
		if got, err := evaluate(t, e, exampleKey(), exampleCheck("GET", "/")); err == nil || !strings.Contains(err.Error(), "panic") || got.Allow {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every place of a rule in which a call can stand is guarded.
func TestGuard_NoCallIsOverlooked(t *testing.T) {
	s := mustLoad(t, minimal(`decision := `+allowing("f(1) == 1")+`

f(x) := product([x]) if product([x]) == 1
else := product([2]) if every y in [1] { product([y]) == 1 }
else := z if { z := [sum([a]) | some a in [product([1])]]; not product([3]) == 3 }
else := {product([1]): product([2]) | some _ in {product([b]) | some b in [1]}}
`))
	for _, module := range s.compiler.Modules {
		ast.WalkExprs(module, func(expr *ast.Expr) bool {
			if expr.IsCall() {
				if name := expr.Operator().String(); ast.BuiltinMap[name] != nil && !isQuick(name) {
					t.Errorf("%s calls %s unguarded", expr.Location, name)
				}
			}
			return false
		})
	}
	if !strings.Contains(s.compiler.Modules["keystile/check/check.rego"].String(), guardedPrefix+"product") {
		t.Error("nothing is guarded")
	}
}

func TestGuard_OperandsThatCanBeSlowAreLarge(t *testing.T) {
	for name, c := range map[string]struct {
		builtin  string
		operands []string
		small    bool
	}{
		"texts":              {"concat", []string{`"/"`, `["a", "b"]`}, true},
		"small numbers":      {"plus", []string{"1", "2.5"}, true},
		"small set":          {"sort", []string{`{"a", "b"}`}, true},
		"plain format":       {"sprintf", []string{`"%s lacks %d%%"`, `["x", 1]`}, true},
		"small range":        {"numbers.range", []string{"1", "9999"}, true},
		"long text":          {"regex.match", []string{`"a"`, `"` + strings.Repeat("a", smallText+1) + `"`}, false},
		"huge exponent":      {"plus", []string{"1e999999999", "1"}, false},
		"long number":        {"mul", []string{strings.Repeat("9", smallNumber+1), "1"}, false},
		"many members":       {"product", []string{"[" + strings.Repeat("1,", smallMembers) + "1]"}, false},
		"many below":         {"array.concat", []string{"[[" + strings.Repeat("1,", smallMembers) + "1]]", "[]"}, false},
		"long text below":    {"concat", []string{`""`, `["` + strings.Repeat("a", smallText+1) + `"]`}, false},
		"long key below":     {"object.keys", []string{`{"` + strings.Repeat("a", smallText+1) + `": 1}`}, false},
		"format with width":  {"sprintf", []string{`"%999999999d"`, "[1]"}, false},
		"format with a star": {"sprintf", []string{`"%*d"`, "[999999999, 1]"}, false},
		"large range":        {"numbers.range", []string{"1", "10000"}, false},
		"text to number":     {"to_number", []string{`"1e999999999"`}, false},
	} {
		var operands []*ast.Term
		for _, text := range c.operands {
			if text == "1e999999999" { // the parser refuses it, but JSON does not
				operands = append(operands, ast.NumberTerm("1e999999999"))
				continue
			}
			operands = append(operands, ast.MustParseTerm(text))
		}
		if got := small(c.builtin, operands); got != c.small {
			t.Errorf("%s: small is %v", name, got)
		}
	}
}

func TestHolding_AfterTwoOverrunsTheOrganizationIsHeldBackForAWhile(t *testing.T) {
	now := time.Unix(1_795_000_000, 0)
	h := newHolding(func() time.Time { return now })
	ours, theirs := keyOf(nil, false), keyOf(&authz.Organization{ID: authz.NewOrganizationID(now)}, false)
	steps := []struct {
		after   time.Duration
		overran bool
		held    bool
	}{
		{0, false, false},
		{0, true, false}, // once can be bad luck
		{time.Second, true, true},
		{firstHold - 1, false, true},
		{1, false, false},
		{0, true, true}, // and the next one doubles it
		{2*firstHold - 1, false, true},
		{1, false, false},
		{time.Hour, true, false}, // forgotten
		{strikeWindow + 1, true, false},
	}
	for i, step := range steps {
		now = now.Add(step.after)
		if step.overran {
			h.overran(ours, nil)
		}
		if got := h.holds(ours); got != step.held {
			t.Errorf("step %d: held is %v", i, got)
		}
		if h.holds(theirs) {
			t.Errorf("step %d: another organization is held back", i)
		}
	}
}

func TestHolding_MemoryIsBounded(t *testing.T) {
	now := time.Unix(1_795_000_000, 0)
	h := newHolding(func() time.Time { return now })
	for range 2 * maxHeld {
		h.overran(&authz.Key{ID: authz.NewKeyID(now), Organization: &authz.Organization{ID: authz.NewOrganizationID(now)}}, &call{done: make(chan struct{})})
	}
	if len(h.keys) > maxHeld || len(h.organizations) > maxHeld {
		t.Errorf("%d keys, %d organizations", len(h.keys), len(h.organizations))
	}
}

func TestHolding_NewPolicyForgets(t *testing.T) {
	e, _, release := stuck(t)
	defer release()
	k := keyOf(nil, true)
	if _, err := evaluate(t, e, k, exampleCheck("GET", "/")); !errors.Is(err, errOverBudget) {
		t.Fatal(err)
	}
	e.Swap(mustLoad(t, minimal("decision := "+allowing("true")+"\n")))
	if got, err := evaluate(t, e, k, exampleCheck("GET", "/")); err != nil || !got.Allow {
		t.Error(got, err)
	}
}

// What was left running counts: an organization is held back while it runs and for a
// multiple of that after its end.
func TestHolding_ACallLeftRunningHoldsBackUntilLongAfterItsEnd(t *testing.T) {
	now := time.Unix(1_795_000_000, 0)
	h := newHolding(func() time.Time { return now })
	ours := keyOf(nil, false)
	other := &authz.Key{ID: authz.NewKeyID(now), Organization: ours.Organization}
	h.overran(ours, nil)
	left := &call{done: make(chan struct{})}
	h.overran(ours, left)
	now = now.Add(2 * firstHold)
	if !h.holds(other) {
		t.Error("a second call is begun beside the one that is left")
	}
	now = now.Add(firstHold)
	left.took, left.ended = firstHold, now
	close(left.done)
	now = now.Add(holdPerCall*left.took - 1)
	if !h.holds(other) {
		t.Error("it is held back for less than its call took")
	}
	if now = now.Add(1); h.holds(other) {
		t.Error("it is held back for ever")
	}
}

// evaluateAtOnce has so many goroutines evaluate what is allowed.
func evaluateAtOnce(t *testing.T, e *Engine, n int) {
	t.Helper()
	var group sync.WaitGroup
	all := make(chan struct{})
	for range n {
		group.Go(func() {
			<-all
			if got, err := e.Evaluate(t.Context(), keyOf(nil, true), exampleCheck("GET", "/")); err != nil || !got.Allow {
				t.Error(got, err)
			}
		})
	}
	close(all)
	group.Wait()
}

// Thousands of connections do not leave thousands of large stacks behind.
func TestEngine_FewGoroutinesEvaluate(t *testing.T) {
	e := NewEngine(mustLoad(t, minimal("decision := "+allowing("true")+"\n")))
	evaluateAtOnce(t, e, 5_000)
	if n := e.stacks.count.Load(); n < 1 || n > maxStacks {
		t.Errorf("%d goroutines evaluate", n)
	}
}

// Who cannot wait for one of them evaluates all the same.
func TestEngine_EvaluatesThoughAllAreBusy(t *testing.T) {
	e := NewEngine(mustLoad(t, minimal("decision := "+allowing("true")+"\n")))
	e.stacks.count.Store(maxStacks)
	if e.stacks.hand(&task{}) {
		t.Error("a task is handed to nobody")
	}
	evaluateAtOnce(t, e, 2*manyGoroutines)
}
