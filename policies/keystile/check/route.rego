package keystile.check

import data.keystile.catalog

# METADATA
# title: Ambiguous path
# description: ambiguous_path. Two readers could understand the path differently, so it matches no route.
# labels:
#   code: ambiguous_path
reason contains {
	"code": "ambiguous_path",
	"message": "The path can be read in more than one way; send it without encoded or empty segments.",
} if {
	input.request.ambiguous
}

# METADATA
# title: Unknown route
# description: unknown_route. The catalogue has no such method and path. Its status is the catalogue's.
# labels:
#   code: unknown_route
reason contains {
	"code": "unknown_route",
	"message": "No route of the catalogue has this method and path.",
	"status": catalog.unknown_route_status,
} if {
	path_given
	not input.request.ambiguous
	matched.route == null
}

# METADATA
# title: Unknown action
# description: unknown_route. The action is not a scope of the catalogue.
# labels:
#   code: unknown_route
reason contains {
	"code": "unknown_route",
	"message": "The action is not a scope of the catalogue.",
	"status": catalog.unknown_route_status,
} if {
	input.request.action != ""
	not action_known
}

# METADATA
# title: Nothing asked
# description: unknown_route. Neither a method and path nor an action was given.
# labels:
#   code: unknown_route
reason contains {
	"code": "unknown_route",
	"message": "Neither a method and path nor an action was given.",
	"status": catalog.unknown_route_status,
} if {
	not path_given
	input.request.action == ""
}

# METADATA
# title: Unprotected route
# description: policy_denied. The catalogue names no scope for the route, and without a scope nothing is allowed.
# labels:
#   code: policy_denied
reason contains {
	"code": "policy_denied",
	"message": "The catalogue names no scope for this route.",
} if {
	matched.route != null
	matched.scopes == []
}

# METADATA
# title: Matched route
# description: |
#   The route that the path matches, with its scopes. A literal segment wins over a variable one, the
#   leftmost first. An ambiguous path matches nothing.
# scope: document
default matched := {"route": null, "scopes": []}

matched := catalog.literal_routes[input.request.method][input.request.path] if {
	input.request.ambiguous == false
} else := catalog.literal_routes[input.request.method][decoded_path] if {
	# An encoded spelling of a literal must not pass for the value of a variable.
	input.request.ambiguous == false
	contains(input.request.path, "%")
} else := variable_matches[0] if {
	input.request.ambiguous == false
}

# METADATA
# title: Decoded path
# description: The path as an app reads it, from its decoded segments.
decoded_path := concat("/", array.concat([""], input.request.segments))

variable_matches := [route |
	size := format_int(count(input.request.segments), 10)
	some shape in catalog.variable_routes[input.request.method][size]
	literals := [segment | some i in shape.literals; segment := input.request.segments[i]]
	route := shape.routes[literals]
]

path_given if input.request.method != ""

path_given if input.request.path != ""

# A scope of the catalogue is an object, so it holds.
action_known if catalog.scopes[input.request.action]
