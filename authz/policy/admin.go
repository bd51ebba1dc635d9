package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/supportstation/keystile/authz"
)

// DecideAdmin asks the active policy about one management action. As with checks,
// nothing but a complete decision whose allow is the boolean true allows; everything
// else is an error. It is safe for concurrent use.
func (e *Engine) DecideAdmin(ctx context.Context, q authz.AdminQuestion) (v authz.AdminVerdict, err error) {
	defer func() {
		if r := recover(); r != nil {
			v, err = authz.AdminVerdict{}, fmt.Errorf("evaluate the admin policy: panic: %v", r)
		}
	}()
	s := e.current.Load()
	if s == nil {
		return v, ErrNoPolicy
	}
	input, err := adminInput(q)
	if err != nil {
		return v, err
	}
	d := newDeadline(ctx, e.budget)
	result, err := s.run(ctx, s.admin, ast.NewTerm(input), d)
	switch {
	case d.over:
		return v, fmt.Errorf("evaluate the admin policy: %w", d.err(err))
	case err != nil:
		return v, fmt.Errorf("evaluate the admin policy: %w", err)
	case result == nil:
		return v, errUndefined
	}
	if v, err = adminVerdict(result); err != nil {
		return authz.AdminVerdict{}, fmt.Errorf("read the admin policy's decision: %w", err)
	}
	return v, nil
}

// Catalogue returns the scopes and plans of the active policy's data.
func (e *Engine) Catalogue() authz.Catalogue {
	if s := e.current.Load(); s != nil {
		return s.catalogue
	}
	return authz.Catalogue{}
}

func adminInput(q authz.AdminQuestion) (ast.Value, error) {
	if q.Actor == nil {
		return nil, errors.New("make the admin policy's input: there is no actor")
	}
	organization := ""
	if !q.Actor.Organization.IsZero() {
		organization = q.Actor.Organization.String()
	}
	document := map[string]any{
		"actor": map[string]any{
			"type": "admin", "id": q.Actor.ID.String(), "role": string(q.Actor.Role), "organization": organization,
		},
		"action": q.Action, "organization": nilOr(q.Organization), "current": nilOr(q.Current), "wanted": nilOr(q.Wanted),
	}
	// Through JSON, so that numbers and metadata are what a policy would read from a file.
	raw, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("make the admin policy's input: %w", err)
	}
	var plain any
	if err := util.UnmarshalJSON(raw, &plain); err != nil {
		return nil, fmt.Errorf("make the admin policy's input: %w", err)
	}
	value, err := ast.InterfaceToValue(plain)
	if err != nil {
		return nil, fmt.Errorf("make the admin policy's input: %w", err)
	}
	return value, nil
}

// nilOr keeps a nil map from becoming an empty object.
func nilOr(m map[string]any) any {
	if m == nil {
		return nil
	}
	return m
}

// adminVerdict reads {allow, reasons}. Whatever is not exactly that is an error.
func adminVerdict(value ast.Value) (authz.AdminVerdict, error) {
	var v authz.AdminVerdict
	object, ok := value.(ast.Object)
	if !ok {
		return v, fmt.Errorf("the decision is %s, not an object", ast.ValueName(value))
	}
	allow, given := object.Get(ast.InternedTerm("allow")), object.Get(ast.InternedTerm("reasons"))
	if object.Len() != 2 || allow == nil || given == nil {
		return v, errors.New("the decision has exactly allow and reasons")
	}
	var err error
	if v.Allow, err = boolean(allow.Value); err != nil {
		return authz.AdminVerdict{}, fmt.Errorf("allow: %w", err)
	}
	if v.Reasons, err = reasons(given.Value); err != nil {
		return authz.AdminVerdict{}, fmt.Errorf("reasons: %w", err)
	}
	if v.Allow && len(v.Reasons) > 0 {
		return authz.AdminVerdict{}, errors.New("the decision allows and gives reasons against it")
	}
	return v, nil
}
