# METADATA
# title: Catalogue
# description: |
#   The catalogue in data.yaml, arranged for look-ups by key. These rules follow from data alone, so the
#   service works them out once, when it loads the policy (`constant`), and not for every check.
#   A constant is one rule with one value, hence no partial rules (prefer-set-or-object-rule).
# scope: package
# labels:
#   area: catalog
package keystile.catalog

# METADATA
# title: Routes without variables
# description: method → path → route.
# custom:
#   constant: true
literal_routes := {method: found | # regal ignore:prefer-set-or-object-rule
	some method, buckets in data.keystile.catalog.routes
	found := {template: route_of(template, entry) |
		some bucket in buckets
		some template, entry in bucket
		not contains(template, "{")
	}
}

# METADATA
# title: Routes with variables
# description: |
#   method → number of segments → shapes, the ones with literals further left first. A shape tells which
#   segments are literal, and finds a route by these.
# custom:
#   constant: true
variable_routes := {method: found | # regal ignore:prefer-set-or-object-rule
	some method, buckets in data.keystile.catalog.routes
	found := {size: shapes_of(bucket) | some size, bucket in buckets}
}

# METADATA
# title: Limits of plans
# description: plan → the limits of a key on it.
# custom:
#   constant: true
plan_limits := {name: [limit_of(object.remove(plan, ["max_keys"]))] | # regal ignore:prefer-set-or-object-rule
	some name, plan in data.keystile.catalog.plans
}

# METADATA
# title: The limit of a rate
# description: The limit "key" with this rate, period and burst.
limit_of(rate) := object.union(rate, {"name": "key", "cost": 1})

shapes_of(bucket) := [shape |
	some mask in {mask_of(template) | some template, _ in bucket; contains(template, "{")}
	shape := {
		"literals": [i | some i, is_variable in mask; not is_variable],
		"routes": {literals_of(template): route_of(template, entry) |
			some template, entry in bucket
			mask_of(template) == mask
		},
	}
]

# false sorts before true: a set of masks has those with literals further left first.
mask_of(template) := [startswith(segment, "{") | some segment in segments_of(template)]

literals_of(template) := [segment |
	some segment in segments_of(template)
	not startswith(segment, "{")
]

# Nothing stands before the first slash.
segments_of(template) := array.slice(parts, 1, count(parts)) if parts := split(template, "/")

route_of(template, entry) := {"route": template, "scopes": sort({scope | some scope in entry.scopes})}
