# METADATA
# title: Mask of the decision log
# description: |
#   What of a decision is not logged, in OPA's form: paths into the log entry. A check's input holds no
#   secret; this keeps out what somebody adds to it, what a client puts into a path or an id, and what
#   tells of persons more than a log should. Where it fails, question and answer are not logged at all.
# scope: package
# labels:
#   area: log
package system.log

# METADATA
# title: Addresses of clients
# description: The network alone, /24 of IPv4 and /48 of IPv6, unless `shown_in_full` has client_ip.
mask contains {"op": "upsert", "path": "/input/request/client_ip", "value": network} if {
	not shown("client_ip")
	address := input.input.request.client_ip
	address != ""
	some network in net.cidr_merge([sprintf("%s/%d", [address, network_bits(address)])])
}

# METADATA
# title: Paths
# description: The template of the route in place of the path, unless `shown_in_full` has path.
mask contains {"op": "upsert", "path": "/input/request/path", "value": template} if {
	not shown("path")
	input.input.request.path != ""
	template := input.result.route
	is_string(template)
	not secret_text(template)
}

# METADATA
# title: Paths as they were sent
# description: Nothing of them, unless `shown_in_full` has path.
mask contains "/input/request/path" if {
	not shown("path")
	input.input.request.path != ""
}

# METADATA
# title: Segments of paths
# description: Nothing of them, unless `shown_in_full` has path.
mask contains "/input/request/segments" if {
	not shown("path")
	count(input.input.request.segments) > 0
}

# METADATA
# title: Ids of resources
# description: Nothing of them, unless `shown_in_full` has resource_id.
mask contains "/input/request/resource/id" if {
	not shown("resource_id")
	input.input.request.resource.id != ""
}

# METADATA
# title: Free-form metadata
# description: Adopters put into it what they like; unless `shown_in_full` has metadata.
mask contains sprintf("/input/%s/metadata", [owner]) if {
	not shown("metadata")
	some owner in ["key", "organization"]
	input.input[owner].metadata != {}
}

# METADATA
# title: Fields that are named like a secret
# description: Removed wherever they stand, with all below them.
mask contains pointer(path) if {
	regex.match(secret_names, whole)
	some path, _ in entries
	some part in path
	secret_name(part)
}

# METADATA
# title: Texts that hold a secret
# description: Texts that hold something of the form of our secrets and tokens, whatever their prefix.
mask contains pointer(path) if {
	secret_text(whole)
	some path, value in entries
	secret_text(value)
}

# METADATA
# title: Cached answers of builtins
# description: Removed as a whole.
mask contains "/nd_builtin_cache" if input.nd_builtin_cache

# In this form what is missing is not shown.
shown(field) if field in in_full

network_bits(address) := 48 if contains(address, ":")

network_bits(address) := 24 if not contains(address, ":")

# What stands in data.yaml.

# regal ignore:unresolved-reference
in_full := data.system.log.shown_in_full

# Question and answer as one text: most hold nothing to look for, and one look tells.
whole := json.marshal([object.get(input, "input", null), object.get(input, "result", null)])

# What is logged of the question and the answer, by path.
entries[array.concat([root], path)] := value if {
	some root in ["input", "result"]
	walk(input[root], [path, value])
	path != []
}

secret_text(value) if {
	is_string(value)
	regex.match(`(_(live|test)|ks[ac])_[0-9A-Za-z]{36}`, value)
}

# METADATA
# title: Names of secrets
# description: As JSON has them, in any case, with - for _.
# custom:
#   constant: true
secret_names := concat("", [
	`(?i)"(`, concat("|", [replace(name, "_", "[-_]") | some name in [
		"api_key", "authorization", "cookie", "headers", "key_sha256", "password", "pepper",
		"proxy_authorization", "secrets?", "set_cookie", "token", "x_api_key",
	]]),
	`)":`,
])

secret_name(part) if {
	is_string(part)
	regex.match(secret_names, sprintf("%q:", [part]))
}

# RFC 6901.
pointer(path) := concat("", [sprintf("/%s", [escaped]) |
	some part in path
	escaped := replace(replace(sprintf("%v", [part]), "~", "~0"), "/", "~1")
])
