# METADATA
# title: Mask of the decision log
# description: |
#   What of a decision is not logged, in OPA's form: paths into the log entry. A check's input holds no
#   secret; this keeps out what somebody adds to it, or what a client puts into a path or an id.
# scope: package
# labels:
#   area: log
package system.log

# METADATA
# title: Fields that are named like a secret
# description: Removed wherever they stand, with all below them.
mask contains pointer(path) if {
	some path, _ in entries
	some part in path
	secret_name(part)
}

# METADATA
# title: Free-form metadata
# description: Adopters put into it what they like.
mask contains pointer(path) if {
	some path, _ in entries
	path[count(path) - 1] == "metadata"
}

# METADATA
# title: Texts that hold a secret
# description: Texts that hold something of the form of our secrets and tokens, whatever their prefix.
mask contains pointer(path) if {
	some path, value in entries
	is_string(value)
	regex.match(`(_(live|test)|ks[ac])_[0-9A-Za-z]{36}`, value)
}

# METADATA
# title: Cached answers of builtins
# description: Removed as a whole.
mask contains "/nd_builtin_cache" if input.nd_builtin_cache

# What is logged of the question and the answer, by path.
entries[array.concat([root], path)] := value if {
	some root in ["input", "result"]
	walk(input[root], [path, value])
	path != []
}

secret_name(part) if {
	is_string(part)
	name := replace(lower(part), "-", "_")
	name in {
		"api_key", "authorization", "cookie", "headers", "key_sha256", "password",
		"pepper", "proxy_authorization", "secret", "secrets", "set_cookie", "token", "x_api_key",
	}
}

# RFC 6901.
pointer(path) := concat("", [sprintf("/%s", [escaped]) |
	some part in path
	escaped := replace(replace(sprintf("%v", [part]), "~", "~0"), "/", "~1")
])
