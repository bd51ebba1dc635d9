package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// An evaluation stops between its steps when its time is over, but a step that
// calls a builtin cannot be stopped: a product of many numbers or a regular
// expression over a megabyte runs on for seconds. So every builtin that is not
// known to be quick is guarded: with small operands it is called as ever, and
// with large ones it is called beside the evaluation, which then waits for it no
// longer than its own time. Such large calls run one at a time, so that at most
// one is ever left running.

// guardedPrefix marks a guarded builtin. It cannot be written in Rego.
const guardedPrefix = "guarded:"

// Operands up to these are small. What a guarded builtin does with them takes a
// few milliseconds at worst.
const (
	smallText    = 1 << 10
	smallNumber  = 20
	smallMembers = 256
)

// isQuick tells whether a builtin needs no guard: it looks at its operands at most
// once, and makes nothing larger than they are.
func isQuick(name string) bool {
	switch name {
	case "eq", "equal", "neq", "lt", "lte", "gt", "gte", "assign", "internal.member_2", "internal.member_3", "internal.print",
		"count", "object.get", "startswith", "endswith", "type_name",
		"is_array", "is_boolean", "is_null", "is_number", "is_object", "is_set", "is_string":
		return true
	}
	return false
}

// guard has the compiled policy call guarded builtins in place of those that are
// not quick. A rule that replaces a builtin by `with` is refused: that is for tests.
func guard(compiler *ast.Compiler) error {
	var errs []error
	for _, module := range compiler.Modules {
		test := isTestPackage(module)
		ast.WalkExprs(module, func(expr *ast.Expr) bool {
			for _, with := range expr.With {
				if !test && ast.BuiltinMap[with.Target.String()] != nil {
					errs = append(errs, atLocation(with.Location, fmt.Errorf("only a test may replace the builtin %s", with.Target)))
				}
			}
			terms, ok := expr.Terms.([]*ast.Term)
			if !ok || !expr.IsCall() {
				return false
			}
			name := expr.Operator().String()
			if ast.BuiltinMap[name] == nil || isQuick(name) {
				return false
			}
			terms = slices.Clone(terms)
			terms[0] = ast.NewTerm(ast.Ref{ast.VarTerm(guardedPrefix + name)}).SetLocation(terms[0].Location)
			expr.Terms = terms
			return false
		})
	}
	return errors.Join(errs...)
}

// guardedBuiltins returns the guarded form of every builtin that is not quick.
func guardedBuiltins(lane *lane, caps *ast.Capabilities) map[string]*topdown.Builtin {
	guarded := make(map[string]*topdown.Builtin, len(caps.Builtins))
	for _, builtin := range caps.Builtins {
		call := topdown.GetBuiltin(builtin.Name)
		if call == nil || isQuick(builtin.Name) {
			continue
		}
		decl := *ast.BuiltinMap[builtin.Name]
		decl.CanSkipBctx = false // the guard needs the deadline
		guarded[guardedPrefix+builtin.Name] = &topdown.Builtin{Decl: &decl, Func: lane.guarded(builtin.Name, call)}
	}
	return guarded
}

func (l *lane) guarded(name string, call topdown.BuiltinFunc) topdown.BuiltinFunc {
	return func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
		if small(name, operands) {
			return call(bctx, operands, iter)
		}
		// The operands' slice is used again as soon as this returns.
		own := slices.Clone(operands)
		results, err := l.run(bctx, func(bctx topdown.BuiltinContext, keep func(*ast.Term) error) error {
			return call(bctx, own, keep)
		})
		if err != nil {
			return err
		}
		for _, result := range results {
			if err := iter(result); err != nil {
				return err
			}
		}
		return nil
	}
}

func small(name string, operands []*ast.Term) bool {
	longest := smallNumber
	switch {
	case isOpaque(name):
		return false
	case strings.HasPrefix(name, "numbers.range"):
		longest = 4 // a small number makes a large range
	case name == "sprintf":
		if format, ok := operands[0].Value.(ast.String); !ok || !plainFormat(string(format)) {
			return false
		}
	}
	left := smallMembers
	for _, operand := range operands {
		if !smallValue(operand.Value, longest, &left) {
			return false
		}
	}
	return true
}

// isOpaque tells whether a builtin can be slow, or make something huge, of short
// operands: 1e999999999, a template that loops, a schema, a chain of certificates.
func isOpaque(name string) bool {
	switch name {
	case "to_number", "json.unmarshal", "yaml.unmarshal",
		"net.cidr_expand", "regex.globs_match", "strings.render_template":
		return true
	}
	return strings.HasPrefix(name, "units.") || strings.HasPrefix(name, "graphql.") ||
		strings.HasPrefix(name, "io.jwt.") || strings.HasPrefix(name, "crypto.x509.") ||
		strings.HasPrefix(name, "crypto.parse")
}

// plainFormat tells whether a format has verbs without a width, which could be a billion.
func plainFormat(format string) bool {
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			continue
		}
		i++
		if i == len(format) || strings.IndexByte("vdsqtxXfgeco%", format[i]) < 0 {
			return false
		}
	}
	return true
}

func smallValue(value ast.Value, longest int, left *int) bool {
	*left--
	if *left < 0 {
		return false
	}
	switch v := value.(type) {
	case ast.String:
		return len(v) <= smallText
	case ast.Number:
		return len(v) <= longest && !strings.ContainsAny(string(v), "eE")
	case *ast.Array:
		return v.Len() <= *left && !v.Until(func(m *ast.Term) bool { return !smallValue(m.Value, longest, left) })
	case ast.Set:
		return v.Len() <= *left && !v.Until(func(m *ast.Term) bool { return !smallValue(m.Value, longest, left) })
	case ast.Object:
		return v.Len() <= *left && !v.Until(func(k, m *ast.Term) bool {
			return !smallValue(k.Value, longest, left) || !smallValue(m.Value, longest, left)
		})
	}
	return true
}

// lane runs large calls, one at a time.
type lane struct {
	free chan struct{}
}

func newLane() *lane {
	l := &lane{free: make(chan struct{}, 1)}
	l.free <- struct{}{}
	return l
}

// busy tells that a large call is running.
func (l *lane) busy() bool { return len(l.free) == 0 }

// call is one large call.
type call struct {
	stop    stopped
	done    chan struct{}
	results []*ast.Term
	err     error
	// ended and took are when it has ended and how long it has run, set before done is closed.
	ended time.Time
	took  time.Duration
}

// stopped ends those builtins that ask.
type stopped struct{ ch chan struct{} }

func (s stopped) Cancel() {}

func (s stopped) Cancelled() bool {
	select {
	case <-s.ch:
		return true
	default:
		return false
	}
}

// run runs one large call and waits for it until the evaluation's time is over,
// then leaves it behind; until that has ended, no other large call begins.
func (l *lane) run(
	bctx topdown.BuiltinContext, f func(topdown.BuiltinContext, func(*ast.Term) error) error,
) ([]*ast.Term, error) {
	d, ok := bctx.Cancel.(*deadline)
	if !ok {
		return nil, topdown.Halt{Err: errNoDeadline}
	}
	timer := time.NewTimer(time.Until(d.at))
	defer timer.Stop()
	select {
	case <-l.free: // first: who finds it free is in nobody's way, and nobody in theirs
	default:
		select {
		case <-l.free:
		case <-timer.C:
			return nil, topdown.Halt{Err: errLaneBusy} // by somebody else: this evaluation is not to blame
		}
	}
	c := &call{stop: stopped{make(chan struct{})}, done: make(chan struct{})}
	bctx.Cancel = c.stop
	started := time.Now()
	go func() {
		defer func() {
			c.ended = time.Now()
			c.took = c.ended.Sub(started)
			if r := recover(); r != nil {
				c.err = topdown.Halt{Err: fmt.Errorf("panic in a builtin: %v", r)}
			}
			l.free <- struct{}{}
			close(c.done)
		}()
		c.err = f(bctx, func(t *ast.Term) error { c.results = append(c.results, t); return nil })
	}()
	select {
	case <-c.done:
		return c.results, c.err
	case <-timer.C:
		close(c.stop.ch)
		d.over, d.abandoned = true, c
		return nil, topdown.Halt{Err: errOverBudget}
	}
}
