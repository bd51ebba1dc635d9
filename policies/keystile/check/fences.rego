package keystile.check

# METADATA
# title: Wrong environment
# description: environment_mismatch. The key's environment is not one that the caller serves, or not the one asked for.
# labels:
#   code: environment_mismatch
reason contains {
	"code": "environment_mismatch",
	"message": "The key's environment is not accepted here.",
} if {
	not environment_matches
}

# METADATA
# title: Wrong organization
# description: organization_mismatch. The resource belongs to another organization than the key.
# labels:
#   code: organization_mismatch
reason contains {
	"code": "organization_mismatch",
	"message": "The resource does not belong to the key's organization.",
} if {
	not organization_matches
}

# METADATA
# title: Address not allowed
# description: ip_not_allowed. The key is fenced by address, and the client's is outside or unknown.
# labels:
#   code: ip_not_allowed
reason contains {
	"code": "ip_not_allowed",
	"message": "The key may not be used from this address.",
} if {
	not address_matches
}

# METADATA
# title: The environment matches
# description: The caller serves the key's environment, and an environment that is asked for is the key's.
# scope: document
environment_matches if {
	input.key.environment in input.caller.environments
	input.request.environment in {"", input.key.environment}
}

# METADATA
# title: The organization matches
# description: The resource's organization is unknown, or the key's by its id or external id.
# scope: document
organization_matches if {
	object.get(input.request.resource, "organization", "") in {"", input.organization.id, input.organization.external_id}
}

# METADATA
# title: The address matches
# description: The key has no fence, or the client's address is inside. An unknown address is inside of none.
# scope: document
address_matches if input.key.allowed_cidrs == []

address_matches if {
	# Of "" cidr_contains makes an error, and an error is no decision.
	input.request.client_ip != ""
	some cidr in input.key.allowed_cidrs
	net.cidr_contains(cidr, input.request.client_ip)
}
