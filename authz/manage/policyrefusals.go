package manage

import (
	"fmt"

	"github.com/supportstation/keystile/authz"
)

func errPolicyChanged() error {
	return conflict("policy_changed", "another policy came into force meanwhile, here or on another replica; try again")
}

func errPolicyOrigin(origin authz.PolicyOrigin) error {
	return conflict("policy_origin", "this service takes its policy from a "+string(origin)+": change it there, or configure the service without it")
}

func errNoPolicies() error {
	return conflict("policy_origin", "policies cannot be managed here")
}

func untried(err error) error {
	if err == nil {
		return nil
	}
	return authz.Unavailable("the policy could not be tried; see the log", fmt.Errorf("%w: %w", errPolicy, err))
}

// refused turns a report into an error that tells what to mend.
func refused(report *authz.PolicyReport) error {
	return refusal(report, "the policy is refused, and what is in force stays")
}

// unloadable is refused for a policy that nobody wanted in force.
func unloadable(report *authz.PolicyReport) error {
	return refusal(report, "the policy does not load, so it cannot be asked")
}

func refusal(report *authz.PolicyReport, what string) error {
	e := &authz.Error{
		Kind: authz.KindInvalid, Code: "policy_refused",
		Message: fmt.Sprintf("%s: %d problems; see reasons", what, len(report.Problems)),
	}
	for _, p := range report.Problems {
		e.Reasons = append(e.Reasons, authz.Reason{Code: authz.Code(p.Stage), Message: p.String()})
	}
	return e
}

func errPastSecurityFix(advice string) error {
	return conflict("past_security_fix", "this would take back a policy that was marked as a security fix; "+advice)
}
