package manage

import (
	"errors"

	"github.com/supportstation/keystile/authz"
)

// errPolicy marks what policy could not decide from what the store did not answer.
var errPolicy = errors.New("policy")

// translate is the one place that turns a store's errors into ours.
func translate(err error) error {
	var known *authz.Error
	var taken *ConflictError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		if known.Kind == authz.KindUnavailable && known.Code == string(authz.CodeUnavailable) && known.Cause != nil && !errors.Is(err, errPolicy) {
			return authz.Unavailable("management needs Postgres, and it does not answer; try again", err)
		}
		return known
	case errors.As(err, &taken):
		return &authz.Error{
			Kind: authz.KindConflict, Code: taken.Field + "_taken", Pointer: "/" + taken.Field,
			Message: "another one has this " + taken.Field + " already",
		}
	case errors.Is(err, ErrNotFound):
		return notFound("thing")
	}
	return err
}

func forbidden(action string) error {
	return &authz.Error{
		Kind: authz.KindForbidden, Code: "role_forbidden",
		Message: "this role may not do " + action,
	}
}

func notFound(what string) error {
	return &authz.Error{Kind: authz.KindNotFound, Code: "not_found", Message: "there is no such " + what}
}

func conflict(code, message string) error {
	return &authz.Error{Kind: authz.KindConflict, Code: code, Message: message}
}

func invalid(code, pointer, message string) error {
	return &authz.Error{Kind: authz.KindInvalid, Code: code, Pointer: pointer, Message: message}
}

func outOfRange(pointer, message string) error { return invalid("out_of_range", pointer, message) }

// precondition refuses a change that was meant for another version.
func precondition(r Request, version int) error {
	if r.IfVersion == 0 || r.IfVersion == version {
		return nil
	}
	return &authz.Error{
		Kind: authz.KindPrecondition, Code: "version_mismatch",
		Message: "it has changed since that version; read it again, and send its version in If-Match",
	}
}
