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
	"required_scopes": required_scopes,
	"missing_scopes": missing_scopes,
	"route": matched.route,
	"limits": limits,
} if {
	environment_matches
	organization_matches
	address_matches
	required_scopes != []
	missing_scopes == []
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
