package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

var (
	_ authz.FindingsPolicies = (*Engine)(nil)
	_ authz.FindingsPolicy   = (*Findings)(nil)
)

// findingsEntrypoint judges evidence. A policy may lack it: then there is no audit, and
// everything else goes on.
const findingsEntrypoint = "data.keystile.findings.findings"

const (
	// findingsBudget is how long one judgement may take. An ordinary one takes less than a
	// hundredth of it, and nobody's check waits for it.
	findingsBudget = 250 * time.Millisecond
	// MaxFindings is how many things a policy may find about one key.
	MaxFindings = 64
)

// Findings lets one Snapshot judge evidence. It is safe for concurrent use.
type Findings struct {
	s      *Snapshot
	budget time.Duration
}

// Findings implements authz.FindingsPolicies.
func (e *Engine) Findings() (authz.FindingsPolicy, error) {
	s := e.current.Load()
	switch {
	case s == nil:
		return nil, authz.Unavailable("There is no policy in force yet that could judge.", ErrNoPolicy)
	case s.findings == nil:
		return nil, &authz.Error{
			Kind: authz.KindConflict, Code: "policy_without_findings",
			Message: "The policy in force cannot judge evidence: it has no " + findingsEntrypoint + ". Add the folder keystile/findings to it " +
				"(keystile policy export DIR writes the built-in one), and activate that.",
		}
	}
	return s.in(e.judging).Findings(findingsBudget), nil
}

// Findings judges by this snapshot, which has the entry point, within a budget for each.
func (s *Snapshot) Findings(budget time.Duration) *Findings { return &Findings{s, budget} }

// Revision implements authz.FindingsPolicy.
func (f *Findings) Revision() string { return f.s.revision }

// Steps implements authz.FindingsPolicy.
func (f *Findings) Steps() *authz.EvidenceSteps { return &f.s.steps }

// Kinds implements authz.FindingsPolicy.
func (f *Findings) Kinds() []authz.FindingCode { return f.s.findingKinds }

// Judge implements authz.FindingsPolicy. Nothing but a complete answer is one: undefined, another
// type, an error of a builtin, a timeout and a panic are errors.
func (f *Findings) Judge(ctx context.Context, facts *authz.Facts) (r authz.Ruling, err error) {
	defer func() {
		if p := recover(); p != nil {
			r, err = authz.Ruling{}, fmt.Errorf("judge evidence: panic: %v", p)
		}
	}()
	d := newDeadline(ctx, f.budget)
	value, err := f.s.run(ctx, f.s.findings, findingsInput(facts), d)
	switch {
	case d.over:
		return authz.Ruling{}, fmt.Errorf("judge evidence: %w", d.err(err))
	case err != nil:
		return authz.Ruling{}, fmt.Errorf("judge evidence: %w", err)
	case value == nil:
		return authz.Ruling{}, errUndefined
	}
	if r, err = ruling(value, facts); err != nil {
		return authz.Ruling{}, fmt.Errorf("read what the policy finds: %w", err)
	}
	return r, nil
}

// findingsInput is the input document of facts.
func findingsInput(f *authz.Facts) *ast.Term {
	key := ast.NewObject(
		field("environment", ast.StringTerm(string(f.Environment))), field("state", ast.StringTerm(string(f.State))),
		field("expires", ast.BooleanTerm(f.Expires)), field("rotated", ast.BooleanTerm(f.Rotated)),
	)
	for i, n := range f.Figures {
		key.Insert(ast.InternedTerm(authz.Figure(i).String()), number(n))
	}
	scopes := make([]*ast.Term, len(f.Scopes))
	for i := range f.Scopes {
		s := &f.Scopes[i]
		scope := ast.NewObject(field("scope", ast.StringTerm(string(s.Scope))), field("granted", ast.BooleanTerm(s.Granted)))
		for n, figure := range s.Figures {
			scope.Insert(ast.InternedTerm(authz.ScopeFigure(n).String()), number(figure))
		}
		scopes[i] = ast.NewTerm(scope)
	}
	return ast.ObjectTerm(field("key", ast.NewTerm(key)), field("scopes", ast.ArrayTerm(scopes...)))
}

func field(name string, value *ast.Term) [2]*ast.Term {
	return [2]*ast.Term{ast.InternedTerm(name), value}
}

func number(n int64) *ast.Term { return ast.IntNumberTerm(int(n)) }

// ruling reads {findings, not_enough_evidence}. Whatever is not exactly that is an error.
func ruling(value ast.Value, facts *authz.Facts) (r authz.Ruling, err error) {
	err = eachField(value, "what is found", func(name string, value ast.Value) error {
		switch name {
		case "findings":
			return eachMember(value, MaxFindings, func(v ast.Value) error {
				found, err := finding(v, facts)
				r.Findings = append(r.Findings, found)
				return err
			})
		case "not_enough_evidence":
			return eachMember(value, MaxFindings, func(v ast.Value) error {
				code, err := findingCode(v)
				r.Undecided = append(r.Undecided, code)
				return err
			})
		}
		return errUnknownField
	}, "findings", "not_enough_evidence")
	return r, err
}

var errUnknownField = errors.New("there is no such field")

// eachField reads an object that has exactly these fields.
func eachField(value ast.Value, what string, do func(string, ast.Value) error, fields ...string) error {
	object, ok := value.(ast.Object)
	if !ok {
		return fmt.Errorf("%s is %s, not an object", what, ast.ValueName(value))
	}
	var errs error
	object.Foreach(func(name, field *ast.Term) {
		key, _ := name.Value.(ast.String)
		err := errUnknownField
		if slices.Contains(fields, string(key)) {
			err = do(string(key), field.Value)
		}
		if err != nil {
			errs = fmt.Errorf("%s: %w", string(key), err)
		}
	})
	if errs == nil && object.Len() != len(fields) {
		return fmt.Errorf("%s has exactly the fields %v", what, fields)
	}
	return errs
}

func eachMember(value ast.Value, most int, do func(ast.Value) error) error {
	each, _, err := list(value, most)
	if err != nil {
		return err
	}
	each(func(t *ast.Term) {
		if wrong := do(t.Value); wrong != nil {
			err = wrong
		}
	})
	return err
}

func findingCode(value ast.Value) (authz.FindingCode, error) {
	code, err := text(value)
	if err == nil && !validCode(code) {
		err = errors.New("a code is made of a-z, 0-9 and _, a letter first, 64 at most")
	}
	return authz.FindingCode(code), err
}

// finding reads one thing that is found: about scopes of the facts, in words that are known,
// with placeholders that can be filled.
func finding(value ast.Value, facts *authz.Facts) (f authz.Finding, err error) {
	err = eachField(value, "a finding", func(name string, value ast.Value) (err error) {
		switch name {
		case "code":
			f.Code, err = findingCode(value)
		case "severity":
			f.Severity, err = oneOf[authz.Severity](value, "high, medium or low; data may say off")
		case "confidence":
			f.Confidence, err = oneOf[authz.Confidence](value, "high, medium or low")
		case "remedy":
			f.Remedy, err = oneOf[authz.FindingRemedy](value, "narrow_scopes, revoke_key, rotate_key, set_expiry, change_client, split_key or review")
		case "scopes":
			f.Scopes, err = scopes(value)
		case "remove_scopes":
			f.RemoveScopes, err = scopes(value)
		case "message":
			f.Message, err = text(value)
		case "recommendation":
			f.Recommendation, err = text(value)
		}
		return err
	}, "code", "severity", "confidence", "remedy", "scopes", "remove_scopes", "message", "recommendation")
	if err != nil {
		return authz.Finding{}, err
	}
	granted := map[authz.Scope]bool{}
	for i := range facts.Scopes {
		granted[facts.Scopes[i].Scope] = facts.Scopes[i].Granted
	}
	for _, s := range f.Scopes {
		if _, known := granted[s]; !known {
			return authz.Finding{}, fmt.Errorf("%s is about the scope %s, which the evidence does not have", f.Code, s)
		}
	}
	for _, s := range f.RemoveScopes {
		if !granted[s] || f.Remedy != authz.RemedyNarrow {
			return authz.Finding{}, fmt.Errorf("%s removes the scope %s; %s alone removes scopes, and those that are granted", f.Code, s, authz.RemedyNarrow)
		}
	}
	if err := f.CheckText(); err != nil {
		return authz.Finding{}, fmt.Errorf("%s: %w", f.Code, err)
	}
	return f, nil
}

func oneOf[T interface {
	~string
	Valid() bool
}](value ast.Value, which string) (T, error) {
	s, _ := value.(ast.String)
	if !T(s).Valid() {
		return "", errors.New("it is one of " + which)
	}
	return T(s), nil
}

// findingsData is where steps stand.
const findingsData = "keystile/findings/data.yaml"

// wholeNumber reads a number of the policy's data.
func wholeNumber(v any) (int64, bool) {
	number, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	n, err := number.Int64()
	return n, err == nil
}

// stepsOf reads data.keystile.findings.steps: figure: values, ascending.
// findingKindsOf are the kinds in data.keystile.findings.severities.
func findingKindsOf(data map[string]any) []authz.FindingCode {
	var kinds []authz.FindingCode
	for _, name := range slices.Sorted(maps.Keys(objectAt(data, "keystile", "findings", "severities"))) {
		kinds = append(kinds, authz.FindingCode(name))
	}
	return kinds
}

func stepsOf(data map[string]any) (authz.EvidenceSteps, error) {
	var steps authz.EvidenceSteps
	given := objectAt(data, "keystile", "findings", "steps")
	at := map[string]*[]int64{}
	for f := range authz.Figures {
		at[f.String()] = &steps.Key[f]
	}
	for f := range authz.ScopeFigures {
		at[authz.ScopePrefix+f.String()] = &steps.Scope[f]
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		into, known := at[name]
		if !known {
			return steps, fmt.Errorf("data.keystile.findings.steps: there is no figure %q; there are %v", name, slices.Sorted(maps.Keys(at)))
		}
		values, ok := given[name].([]any)
		if !ok || len(values) > authz.MaxSteps {
			return steps, fmt.Errorf("data.keystile.findings.steps.%s: steps are a list of at most %d whole numbers", name, authz.MaxSteps)
		}
		last := int64(0)
		for _, v := range values {
			n, ok := wholeNumber(v)
			if !ok || n <= last {
				return steps, fmt.Errorf("data.keystile.findings.steps.%s: steps are whole numbers that ascend from above 0", name)
			}
			*into, last = append(*into, n), n
		}
	}
	return steps, nil
}
