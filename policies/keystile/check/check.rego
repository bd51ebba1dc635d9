# METADATA
# title: Check
# description: |
#   Decides whether a key may do a request. It decides first and explains only a denial: what
#   allows is a conjunction of guarantees, each undefined (and so denying) when its input is missing.
# scope: package
# labels:
#   area: check
# schemas:
#   - input: schema.check
package keystile.check

import data.keystile.rules

# METADATA
# title: Decision
# description: |
#   The whole answer. It is complete for every input, and allows only when every guarantee holds. First
#   comes the ordinary request, with its guarantees in place: a rule costs several times what its body
#   does, and this is asked for every request. It allows nothing that `allowed` would not; a test says so.
# entrypoint: true
decision := {
	"allow": true,
	"reasons": [],
	"required_scopes": found.scopes,
	"missing_scopes": [],
	"route": found.route,
	"limits": limits,
} if {
	input.request.action == ""
	input.request.environment == ""
	input.request.resource.organization == ""
	input.key.allowed_cidrs == []
	input.key.environment in input.caller.environments
	found := matched # regal ignore:pointless-reassignment
	found.scopes != []
	held := input.key.scopes # outside of the comprehension, where a missing one denies
	[scope | some scope in found.scopes; not scope in held] == []
	not denied_by_rule
} else := allowed if {
	allowed
} else := {
	"allow": false,
	"reasons": reasons,
	"required_scopes": required_scopes,
	"missing_scopes": missing_scopes,
	"route": matched.route,
	"limits": limits,
}

# METADATA
# title: Allowed
# description: The answer to whatever is allowed, the ordinary and the rest.
allowed := {
	"allow": true,
	"reasons": [],
	"required_scopes": required_scopes,
	"missing_scopes": [],
	"route": matched.route,
	"limits": limits,
} if {
	environment_matches
	organization_matches
	address_matches
	required_scopes != []
	missing_scopes == []
	not denied_by_rule
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
