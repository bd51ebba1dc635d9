package authz

import "net/http"

// Code is the stable name of why a decision is as it is. The zero Code is no
// decision.
type Code string

// The codes of a decision, in the order in which they win over each other.
const (
	CodeAllowed Code = "allowed"

	CodeKeyMissing   Code = "key_missing"
	CodeKeyMalformed Code = "key_malformed"
	CodeKeyUnknown   Code = "key_unknown"
	CodeKeyRevoked   Code = "key_revoked"
	CodeKeyExpired   Code = "key_expired"
	CodeKeyDisabled  Code = "key_disabled"

	CodeOrganizationSuspended Code = "organization_suspended"

	CodeEnvironmentMismatch  Code = "environment_mismatch"
	CodeOrganizationMismatch Code = "organization_mismatch"
	CodeIPNotAllowed         Code = "ip_not_allowed"

	CodeAmbiguousPath     Code = "ambiguous_path"
	CodeUnknownRoute      Code = "unknown_route"
	CodeBrowserUse        Code = "browser_use"
	CodeInsufficientScope Code = "insufficient_scope"
	CodePolicyDenied      Code = "policy_denied"

	CodeRateLimited Code = "rate_limited"
	CodeUnavailable Code = "unavailable"
)

// codeInvalidKey is what the end client is told for an unknown and for a malformed
// key, so that it cannot tell which of its guesses had the right form.
const codeInvalidKey Code = "invalid_key"

// Status returns the HTTP status that the app sends on: 200 for an allow, 403 for
// a code that it does not know.
func (c Code) Status() int {
	switch c {
	case CodeAllowed:
		return http.StatusOK
	case CodeKeyMissing, CodeKeyMalformed, CodeKeyUnknown, CodeKeyRevoked, CodeKeyExpired, CodeKeyDisabled, codeInvalidKey:
		return http.StatusUnauthorized
	case CodeRateLimited:
		return http.StatusTooManyRequests
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusForbidden
}

// Title returns a short name for humans, the same for every occurrence (RFC 9457 §3.1.3).
func (c Code) Title() string {
	switch c {
	case CodeAllowed:
		return "Allowed"
	case CodeKeyMissing:
		return "API key missing"
	case CodeKeyMalformed, CodeKeyUnknown, codeInvalidKey:
		return "Invalid API key"
	case CodeKeyRevoked:
		return "API key revoked"
	case CodeKeyExpired:
		return "API key expired"
	case CodeKeyDisabled:
		return "API key disabled"
	case CodeOrganizationSuspended:
		return "Organization suspended"
	case CodeEnvironmentMismatch:
		return "Wrong environment"
	case CodeOrganizationMismatch:
		return "Wrong organization"
	case CodeIPNotAllowed:
		return "Address not allowed"
	case CodeAmbiguousPath:
		return "Ambiguous path"
	case CodeUnknownRoute:
		return "Unknown route"
	case CodeBrowserUse:
		return "Key used in a browser"
	case CodeInsufficientScope:
		return "Insufficient scope"
	case CodeRateLimited:
		return "Rate limit exceeded"
	case CodeUnavailable:
		return "Authorization unavailable"
	}
	return "Denied by policy"
}

// fence tells whether a policy code is a fence. Behind a fence nothing is charged:
// a thief outside of it must not be able to drain the key.
func (c Code) fence() bool {
	return c == CodeEnvironmentMismatch || c == CodeOrganizationMismatch || c == CodeIPNotAllowed
}

// policyRank orders the codes that policy gives; a code of the policy's own comes
// last, as policy_denied.
func (c Code) policyRank() int {
	switch c {
	case CodeEnvironmentMismatch:
		return 0
	case CodeOrganizationMismatch:
		return 1
	case CodeIPNotAllowed:
		return 2
	case CodeAmbiguousPath:
		return 3
	case CodeUnknownRoute:
		return 4
	case CodeBrowserUse:
		return 5
	case CodeInsufficientScope:
		return 6
	}
	return 7
}

// PolicyDenials are the codes under which policy denies.
func PolicyDenials() []Code {
	return []Code{
		CodeEnvironmentMismatch, CodeOrganizationMismatch, CodeIPNotAllowed, CodeAmbiguousPath, CodeUnknownRoute, CodeBrowserUse,
		CodeInsufficientScope, CodePolicyDenied,
	}
}

// reserved tells whether a code is one that Go alone gives: a policy that returns
// it is wrong.
func (c Code) reserved() bool {
	switch c {
	case "", CodeAllowed, CodeKeyMissing, CodeKeyMalformed, CodeKeyUnknown, CodeKeyRevoked, CodeKeyExpired,
		CodeKeyDisabled, CodeOrganizationSuspended, CodeRateLimited, CodeUnavailable, codeInvalidKey:
		return true
	}
	return false
}
