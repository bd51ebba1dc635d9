# METADATA
# title: Check
# description: |
#   Decides whether a key may do a request. It decides first and explains only a denial: what
#   allows is a conjunction of guarantees, each undefined (and so denying) when its input is missing.
# scope: package
# schemas:
#   - input: schema.check
package keystile.check

import data.keystile.rules

# METADATA
# title: Decision
# description: The whole answer. It is complete for every input, and allows only when every guarantee holds.
# entrypoint: true
decision := {
	"allow": true,
	"reasons": [],
	"required_scopes": required,
	"missing_scopes": [],
	"route": matched.route,
	"limits": limits,
} if {
	# The fences once more, in place: a rule costs several times what its body does, and
	# this is asked for every request. That both say the same is held by a test.
	input.key.environment in input.caller.environments
	input.request.environment in {"", input.key.environment}
	object.get(input.request.resource, "organization", "") in {"", input.organization.id, input.organization.external_id}
	address_matches
	required := required_scopes # regal ignore:pointless-reassignment
	required != []
	held := input.key.scopes # outside of the comprehension, where a missing one denies
	[scope | some scope in required; not scope in held] == []
	not denied_by_rule
} else := {
	"allow": false,
	"reasons": reasons,
	"required_scopes": required_scopes,
	"missing_scopes": missing_scopes,
	"route": matched.route,
	"limits": limits,
}

# METADATA
# title: Denied by a rule
# description: |
#   Holds when a rule under keystile/rules gives reasons. A `deny` that is anything but a set of
#   reasons denies as well: a rule that is written wrong must not be a rule that is not there.
denied_by_rule if {
	some name
	rules[name].deny != set()
}
