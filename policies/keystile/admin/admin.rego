# METADATA
# title: Management
# description: |
#   Decides whether an actor may do a management action. It can only narrow what Go and SQL allow: the
#   walls between organizations and the ceilings of roles stand there.
# scope: package
# labels:
#   area: admin
# schemas:
#   - input: schema.admin
package keystile.admin

# METADATA
# title: Decision
# description: The whole answer. It allows only when the role permits the action here and nothing is against it.
# entrypoint: true
decision := {"allow": true, "reasons": []} if {
	permitted
	count(reason) == 0
} else := {"allow": false, "reasons": sort(reason)}

# METADATA
# title: Not permitted
# description: not_permitted. The role does not permit this action here.
# labels:
#   code: not_permitted
reason contains {
	"code": "not_permitted",
	"message": "The role does not permit this action here.",
} if {
	not permitted
}

# METADATA
# title: Live key lives too long
# description: |
#   key_lifetime. Data bounds the life of live keys, and this one would live longer, for ever, or from an
#   unknown day on. Its life counts from its newest secret. A change that leaves the expiry as it is passes,
#   so that an old key can always be narrowed or disabled. Off while the bound is 0.
# labels:
#   code: key_lifetime
reason contains {
	"code": "key_lifetime",
	"message": sprintf("A live key must expire within %d days of its newest secret.", [max_days]),
} if {
	max_days > 0
	sets_lifetime
	wanted.environment == "live"
	not short_lived
}

# METADATA
# title: Permitted
# description: A platform admin may do everything; the other roles what data says, in their own organization.
# scope: document
permitted if input.actor.role == "platform_admin"

permitted if {
	input.actor.organization != ""
	input.actor.organization == input.organization.id
	[resource, verb] := split(input.action, ".")
	some allowed in granted[input.actor.role][resource]
	allowed in {"*", verb}
}

# Everybody may renew the own token before it ends, and look at oneself.
permitted if {
	input.actor.id != ""
	input.actor.id == input.current.id
	input.actor.organization == input.organization.id
	input.action in {"admins.get", "admins.rotate"}
}

# METADATA
# title: Wanted
# description: The resource as it would be.
wanted := object.union(
	object_or_empty(object.get(input, "current", null)),
	object_or_empty(object.get(input, "wanted", null)),
)

object_or_empty(x) := x if is_object(x)

object_or_empty(x) := {} if not is_object(x)

sets_lifetime if input.action in {"keys.create", "keys.import", "keys.rotate"}

sets_lifetime if {
	input.action == "keys.update"
	not same_expiry
}

same_expiry if wanted.expires_at == input.current.expires_at

short_lived if {
	is_string(wanted.expires_at)
	is_string(born)
	life := time.parse_rfc3339_ns(wanted.expires_at) - time.parse_rfc3339_ns(born)
	life <= max_days * nanoseconds_a_day
}

born := wanted.renewed_at

born := wanted.created_at if not wanted.renewed_at

nanoseconds_a_day := ((24 * 60) * 60) * 1000000000

# What stands in data.yaml.

# regal ignore:unresolved-reference
granted := data.keystile.admin.roles

# regal ignore:unresolved-reference
max_days := data.keystile.admin.live_key_max_days
