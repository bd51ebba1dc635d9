package policy

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

// Bounds of a policy's answer. Beyond them it is no answer.
const (
	// MaxReasons is how many reasons a decision may give.
	MaxReasons = 64
	// MaxScopes is how many scopes a decision may require.
	MaxScopes = 256
	// MaxLimits is how many limits a decision may name.
	MaxLimits = 8
	// MaxText is how long a code, message or route may be, in bytes.
	MaxText = 8 << 10
)

// verdict reads a policy's answer. Whatever is not exactly a decision is an error:
// a policy that says something else than we understand must not let anyone in.
func verdict(value ast.Value) (authz.Verdict, error) {
	var v authz.Verdict
	object, ok := value.(ast.Object)
	if !ok {
		return v, fmt.Errorf("the decision is %s, not an object", ast.ValueName(value))
	}
	seen := 0
	var errs error
	object.Foreach(func(name, field *ast.Term) {
		if errs != nil {
			return
		}
		key, _ := name.Value.(ast.String)
		var err error
		switch key {
		case "allow":
			v.Allow, err = boolean(field.Value)
		case "reasons":
			v.Reasons, err = reasons(field.Value)
		case "required_scopes":
			v.Required, err = scopes(field.Value)
		case "missing_scopes":
			v.Missing, err = scopes(field.Value)
		case "route":
			v.Route, err = route(field.Value)
		case "limits":
			v.Limits, err = limits(field.Value)
		default:
			errs = errors.New("the decision has a field that is not known")
			return
		}
		if err != nil {
			errs = fmt.Errorf("%s: %w", string(key), err)
		}
		seen++
	})
	if errs != nil {
		return authz.Verdict{}, errs
	}
	if seen != 6 {
		return authz.Verdict{}, errors.New("the decision lacks fields; it has allow, reasons, required_scopes, missing_scopes, route and limits")
	}
	if v.Allow && (len(v.Reasons) > 0 || len(v.Missing) > 0) {
		return authz.Verdict{}, errors.New("the decision allows and gives reasons against it")
	}
	for _, missing := range v.Missing {
		if !contains(v.Required, missing) {
			return authz.Verdict{}, fmt.Errorf("the scope %q is missing and not required", missing)
		}
	}
	return v, nil
}

// decisionOf reads a policy's answer to a check of a key. An allow that no policy may give is no
// decision.
func decisionOf(value ast.Value, k *authz.Key, c *authz.Check) (authz.Verdict, error) {
	v, err := verdict(value)
	if err == nil {
		err = v.Overreach(k, c)
	}
	if err != nil {
		return authz.Verdict{}, fmt.Errorf("%w: %w", errNoDecision, err)
	}
	return v, nil
}

func contains(scopes []authz.Scope, wanted authz.Scope) bool {
	for _, s := range scopes {
		if s == wanted {
			return true
		}
	}
	return false
}

func boolean(value ast.Value) (bool, error) {
	b, ok := value.(ast.Boolean)
	if !ok {
		return false, fmt.Errorf("it is %s, not a boolean", ast.ValueName(value))
	}
	return bool(b), nil
}

func text(value ast.Value) (string, error) {
	s, ok := value.(ast.String)
	if !ok {
		return "", fmt.Errorf("it is %s, not a string", ast.ValueName(value))
	}
	if s == "" || len(s) > MaxText {
		return "", fmt.Errorf("a text has between 1 and %d bytes", MaxText)
	}
	return string(s), nil
}

func route(value ast.Value) (string, error) {
	if _, ok := value.(ast.Null); ok {
		return "", nil
	}
	return text(value)
}

// list gives the members of an array or, in their order, of a set: what is a list
// in JSON may be either in Rego.
func list(value ast.Value, most int) (each func(func(*ast.Term)), n int, err error) {
	switch l := value.(type) {
	case *ast.Array:
		each, n = l.Foreach, l.Len()
	case ast.Set:
		each, n = l.Foreach, l.Len()
	default:
		return nil, 0, fmt.Errorf("it is %s, not a list", ast.ValueName(value))
	}
	if n > most {
		return nil, 0, fmt.Errorf("it has more than %d members", most)
	}
	return each, n, nil
}

func scopes(value ast.Value) ([]authz.Scope, error) {
	each, n, err := list(value, MaxScopes)
	if err != nil || n == 0 {
		return nil, err
	}
	found := make([]authz.Scope, 0, n)
	each(func(member *ast.Term) {
		s, ok := member.Value.(ast.String)
		if !ok || !authz.Scope(s).Valid() {
			err = errors.New("a scope has the form resource:verb")
		}
		found = append(found, authz.Scope(s))
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func reasons(value ast.Value) ([]authz.Reason, error) {
	each, n, err := list(value, MaxReasons)
	if err != nil || n == 0 {
		return nil, err
	}
	found := make([]authz.Reason, 0, n)
	each(func(member *ast.Term) {
		r, wrong := reason(member.Value)
		if wrong != nil {
			err = wrong
		}
		found = append(found, r)
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func reason(value ast.Value) (authz.Reason, error) {
	var r authz.Reason
	object, ok := value.(ast.Object)
	if !ok {
		return r, fmt.Errorf("a reason is %s, not an object", ast.ValueName(value))
	}
	var errs error
	object.Foreach(func(name, field *ast.Term) {
		key, _ := name.Value.(ast.String)
		var s string
		var err error
		switch key {
		case "code":
			s, err = text(field.Value)
			if err == nil && !validCode(s) {
				err = errors.New("it is not made of a-z, 0-9 and _, a letter first, 64 at most")
			}
			r.Code = authz.Code(s)
		case "message":
			r.Message, err = text(field.Value)
		case "status":
			r.Status, err = integer(field.Value)
		default:
			err = errors.New("a reason has no such field")
		}
		if err != nil {
			errs = fmt.Errorf("%s: %w", string(key), err)
		}
	})
	switch {
	case errs != nil:
		return authz.Reason{}, errs
	case r.Code == "" || r.Message == "":
		return authz.Reason{}, errors.New("a reason has a code and a message")
	case r.Status != 0 && (r.Code != authz.CodeUnknownRoute || r.Status != 403 && r.Status != 404):
		return authz.Reason{}, errors.New("a status is 403 or 404, for unknown_route alone")
	}
	return r, nil
}

func validCode(s string) bool {
	if len(s) > 64 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

func limits(value ast.Value) ([]authz.Limit, error) {
	each, n, err := list(value, MaxLimits)
	if err != nil || n == 0 {
		return nil, err
	}
	if _, ok := value.(ast.Set); ok && n > 1 {
		return nil, errors.New("the limits have an order, and a set has none")
	}
	found := make([]authz.Limit, 0, n)
	each(func(member *ast.Term) {
		l, wrong := limit(member.Value)
		if wrong == nil && l.Name == authz.Unlimited && n > 1 {
			wrong = errors.New("no limit at all stands alone")
		}
		if wrong != nil {
			err = wrong
		}
		found = append(found, l)
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func limit(value ast.Value) (authz.Limit, error) {
	var l authz.Limit
	object, ok := value.(ast.Object)
	if !ok {
		return l, fmt.Errorf("a limit is %s, not an object", ast.ValueName(value))
	}
	var errs error
	object.Foreach(func(name, field *ast.Term) {
		key, _ := name.Value.(ast.String)
		var err error
		switch key {
		case "name":
			l.Name, err = text(field.Value)
		case "rate":
			l.Rate.Rate, err = integer(field.Value)
		case "period_seconds":
			var seconds int
			seconds, err = integer(field.Value)
			l.Period = time.Duration(seconds) * time.Second
		case "burst":
			l.Burst, err = integer(field.Value)
		case "cost":
			l.Cost, err = integer(field.Value)
		default:
			err = errors.New("a limit has no such field")
		}
		if err != nil {
			errs = fmt.Errorf("%s: %w", string(key), err)
		}
	})
	if errs != nil {
		return authz.Limit{}, errs
	}
	if l.Name == authz.Unlimited {
		if l != (authz.Limit{Name: authz.Unlimited}) {
			return authz.Limit{}, errors.New("no limit at all has a name alone")
		}
		return l, nil
	}
	if err := l.Validate(); err != nil {
		return authz.Limit{}, err
	}
	return l, nil
}

// integer reads a whole number. It is bounded so that seconds fit into a time.Duration.
func integer(value ast.Value) (int, error) {
	number, ok := value.(ast.Number)
	if !ok {
		return 0, fmt.Errorf("it is %s, not a number", ast.ValueName(value))
	}
	n, ok := number.Int()
	if !ok || n < math.MinInt32 || n > math.MaxInt32 {
		return 0, errors.New("it is not a whole number of 32 bits")
	}
	return n, nil
}
