package keystile.findings

# METADATA
# title: Unused key
# description: unused_key. No check with the key was allowed in a window that is long enough to say so.
# labels:
#   code: unused_key
finding contains {
	"code": "unused_key",
	"confidence": confidence,
	"scopes": [],
	"message": concat(" ", [
		"No check with this key was allowed: this covers {covered_days day}; nothing older was asked.",
		"The last use that was noted: {last_used_on}.",
	]),
	"recommendation": "Revoke the key, or ask over a longer window if something needs it once a season.",
	"remedy": "revoke_key",
	"remove_scopes": [],
} if {
	usable
	key_without_use
	covers("unused")
}

# METADATA
# title: Unused scope
# description: |
#   unused_scope. The key is used, and no allowed check needed this scope. Scopes that write are told together
#   where none of them was exercised (write_never_used).
# labels:
#   code: unused_scope
finding contains {
	"code": "unused_scope",
	"confidence": confidence,
	"scopes": [scope.scope],
	"message": concat(" ", [
		"{scope} is granted and was not exercised once: this covers {covered_days day}; nothing older was asked.",
		"The last use that was noted: {scope_last_used_on}.",
	]),
	"recommendation": "Take {scope} from the key; it can be given back.",
	"remedy": "narrow_scopes",
	"remove_scopes": [scope.scope],
} if {
	usable
	covers("unused")
	some scope in input.scopes
	scope_without_use(scope)
}

# METADATA
# title: Write never used
# description: write_never_used. The key may change things, is used, and only ever read.
# labels:
#   code: write_never_used
finding contains {
	"code": "write_never_used",
	"confidence": confidence,
	"scopes": writes_without_use,
	"message": concat(" ", [
		"The key may write ({scopes}) and only read: this covers {covered_days day}; nothing older was asked.",
		"It was used on {days_used day}.",
	]),
	"recommendation": "Take {scopes} from the key: what only reads should not be able to write.",
	"remedy": "narrow_scopes",
	"remove_scopes": writes_without_use,
} if {
	usable
	count(writes_without_use) > 0
	covers("unused")
}

# METADATA
# title: Rarely used scope
# description: rarely_used_scope. The scope was exercised on fewer days than data says, or from one new network alone.
# labels:
#   code: rarely_used_scope
finding contains {
	"code": "rarely_used_scope",
	"confidence": confidence,
	"scopes": [scope.scope],
	"message": concat(" ", [
		"{scope} was exercised on {scope_days_used day} only: this covers {covered_days day}; nothing older was asked.",
		"The last use: {scope_last_used_on}.",
	]),
	"recommendation": concat(" ", [
		"Find out what needed {scope};",
		"if it was done by hand, take it from the key, or give that a key of its own.",
	]),
	"remedy": "review",
	"remove_scopes": [],
} if {
	usable
	covers("rarely_used")
	some scope in input.scopes
	seldom(scope)
}

# METADATA
# title: Scope from a new network alone
# description: |
#   rarely_used_scope. Whoever exercises the scope does so from one network, from which the key was not used before,
#   and nobody exercised it before; the key itself is known from others.
# labels:
#   code: rarely_used_scope
finding contains {
	"code": "rarely_used_scope",
	"confidence": "medium",
	"scopes": [scope.scope],
	"message": concat(" ", [
		"{scope} was exercised from one network alone, which is new: the key was first used from there",
		"{scope_network_age_days day} ago, and is known from others for {networked_days day}.",
	]),
	"recommendation": "Find out who uses {scope} there; if nobody should, rotate the key.",
	"remedy": "review",
	"remove_scopes": [],
} if {
	usable
	known_from_others
	some scope in from_a_new_network
	not seldom(scope)
}

# METADATA
# title: Key without use
key_without_use if input.key.days_used < least.unused.days_used

# METADATA
# title: Scope without use
# description: It is granted, the key is used, and not for this; writes that are told together are not among them.
scope_without_use(scope) if {
	unused(scope)
	not scope.scope in writes_without_use
}

# METADATA
# title: Writes without use
# description: The scopes that write, when the key is used and exercises none of them.
writes_without_use := [scope.scope |
	count(writes_in_use) == 0
	some scope in input.scopes
	unused(scope)
	writes(scope)
]

writes_in_use contains scope.scope if {
	some scope in input.scopes
	writes(scope)
	in_use(scope)
}

unused(scope) if {
	scope.granted
	not key_without_use
	scope.days_used < least.unused.scope_days_used
}

in_use(scope) if scope.days_used >= least.unused.scope_days_used

writes(scope) if split(scope.scope, ":")[1] in changing

seldom(scope) if {
	scope.granted
	in_use(scope)
	scope.days_used < least.rarely_used.scope_days_used
}

from_a_new_network contains scope if {
	some scope in input.scopes
	scope.granted
	in_use(scope)
	scope.networks >= 1
	scope.networks < new.scope_networks
	scope.network_age_days < new.scope_network_age_days
	scope.used_for_days < new.scope_used_for_days
}

known_from_others if input.key.networked_days >= new.networked_days

new := least.new_network
