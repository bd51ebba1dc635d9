package keystile.check

import data.keystile.rules

# The order in which reasons win over each other. Codes of custom rules come after all of them.
precedence := [
	"environment_mismatch",
	"organization_mismatch",
	"ip_not_allowed",
	"ambiguous_path",
	"unknown_route",
	"browser_use",
	"insufficient_scope",
]

# METADATA
# title: Reasons
# description: All reasons of a denial, the ones that win first. A denial always has one.
# scope: document
default reasons := [{
	"code": "policy_denied",
	"message": "The policy does not allow this request.",
}]

reasons := array.concat(
	[found | some code in precedence; some found in reason; found.code == code],
	[found | some found in reason; not found.code in precedence],
) if {
	count(reason) > 0
}

# METADATA
# title: Custom reasons
# description: What the rules under keystile/rules give.
# labels:
#   code: custom
reason contains found if {
	some name
	denials := rules[name].deny
	is_set(denials)
	some found in denials
}

# METADATA
# title: Broken rule
# description: policy_denied. A rule's `deny` is not a set of reasons.
# labels:
#   code: policy_denied
reason contains {
	"code": "policy_denied",
	"message": sprintf("The rule %s does not give a set of reasons.", [name]),
} if {
	some name
	denials := rules[name].deny
	not is_set(denials)
}
