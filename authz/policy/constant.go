package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// constantBudget is how long a constant may take when a policy is loaded.
const constantBudget = 5 * time.Second

// foldConstants gives every live rule that is annotated `custom: {constant: true}`
// the value that it has in compiled, in place of its body: such a rule follows
// from data alone, and data does not change in a snapshot, so it is worked out
// once and not for every check. That the rule depends on nothing else is proved
// first; what is annotated wrongly is an error.
func foldConstants(ctx context.Context, compiled *Snapshot, live map[string]*ast.Module) error {
	var errs []error
	for _, module := range live {
		for _, rule := range module.Rules {
			if !isConstant(rule) {
				continue
			}
			value, err := compiled.constant(ctx, rule)
			if err != nil {
				errs = append(errs, atLocation(rule.Location, fmt.Errorf("constant %s: %w", rule.Ref(), err)))
				continue
			}
			rule.Head.Value = ast.NewTerm(value).SetLocation(rule.Head.Value.Location)
			rule.Body = ast.NewBody(ast.NewExpr(ast.BooleanTerm(true)))
		}
	}
	return errors.Join(errs...)
}

func isConstant(rule *ast.Rule) bool {
	for _, a := range rule.Annotations {
		if yes, _ := a.Custom["constant"].(bool); yes {
			return true
		}
	}
	return false
}

func (s *Snapshot) constant(ctx context.Context, rule *ast.Rule) (ast.Value, error) {
	if len(rule.Head.Args) > 0 || rule.Head.Key != nil || rule.Default || rule.Else != nil {
		return nil, errors.New("only a rule of the form name := value can be constant")
	}
	ref := rule.Ref()
	compiled := s.compiler.GetRulesExact(ref)
	if len(compiled) != 1 {
		return nil, errors.New("a constant has exactly one rule")
	}
	if reason := s.varies(compiled[0], make(map[*ast.Rule]bool)); reason != "" {
		return nil, errors.New(reason)
	}
	body, err := prepare(s.compiler, ref.String())
	if err != nil {
		return nil, err
	}
	value, err := s.run(ctx, body, nil, newDeadline(ctx, constantBudget))
	if err != nil {
		return nil, err
	}
	if value == nil {
		return nil, errors.New("it is undefined")
	}
	return value, nil
}

// varies tells why a rule's value could differ between two evaluations, or "".
func (s *Snapshot) varies(rule *ast.Rule, seen map[*ast.Rule]bool) string {
	if seen[rule] {
		return ""
	}
	seen[rule] = true
	reason := ""
	ast.WalkTerms(rule, func(t *ast.Term) bool {
		ref, ok := t.Value.(ast.Ref)
		if ok && ref[0].Equal(ast.InputRootDocument) || t.Equal(ast.InputRootDocument) {
			reason = fmt.Sprintf("it depends on the input, at %s", t.Location)
		}
		if ok {
			if builtin := ast.BuiltinMap[strings.TrimPrefix(ref.String(), guardedPrefix)]; builtin != nil && builtin.IsNondeterministic() {
				reason = fmt.Sprintf("it depends on %s, at %s", builtin.Name, t.Location)
			}
		}
		return reason != ""
	})
	if reason != "" {
		return reason
	}
	for dependency := range s.compiler.Graph.Dependencies(rule) {
		if next, ok := dependency.(*ast.Rule); ok {
			if reason := s.varies(next, seen); reason != "" {
				return reason
			}
		}
	}
	return ""
}
