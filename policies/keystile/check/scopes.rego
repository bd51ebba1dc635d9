package keystile.check

# METADATA
# title: Insufficient scope
# description: insufficient_scope. The key lacks scopes that the request needs; the message names them.
# labels:
#   code: insufficient_scope
reason contains {
	"code": "insufficient_scope",
	"message": sprintf("The key lacks %s.", [concat(", ", missing_scopes)]),
} if {
	missing_scopes != []
}

# METADATA
# title: Required scopes
# description: |
#   What the route needs and the action, together, sorted. Empty when either is given and not known: what
#   an unknown request needs is unknown, and without a required scope nothing is allowed.
# scope: document
default required_scopes := []

required_scopes := matched.scopes if {
	input.request.action == ""
} else := sort({input.request.action} | {scope | some scope in matched.scopes}) if {
	matched.scopes != []
	action_known
} else := [input.request.action] if {
	not path_given
	action_known
}

# METADATA
# title: Missing scopes
# description: The required scopes that the key does not have. No scope implies another.
missing_scopes := [scope |
	some scope in required_scopes
	not held(scope)
]

# A rule of its own: in `not scope in input.key.scopes` a key whose scopes are not there would lack none.
held(scope) if scope in input.key.scopes
