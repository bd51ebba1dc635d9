package keystile.check

import data.keystile.catalog

# METADATA
# title: Limits
# description: |
#   The limits to charge, narrowest first: the key's own in place of its plan's. Empty when the catalogue
#   does not know the plan, which leaves the check undecided.
# scope: document
default limits := []

limits := catalog.plan_limits[input.organization.plan] if {
	input.key.rate_limit == null
} else := [catalog.limit_of(input.key.rate_limit)] if {
	# null is no limit of its own, and of it limit_of would make an error.
	input.key.rate_limit != null
}
