package keystile.findings

# METADATA
# title: Never rotated
# description: never_rotated. The key still has its first secret, and for longer than data says.
# labels:
#   code: never_rotated
finding contains {
	"code": "never_rotated",
	"confidence": "high",
	"scopes": [],
	"message": "The key has its first secret still, made {secret_age_days day} ago, on {created_on}.",
	"recommendation": "Rotate the key: both secrets work for the time of grace that you choose.",
	"remedy": "rotate_key",
	"remove_scopes": [],
} if {
	usable
	old_secret
	input.key.rotated == false
}

# METADATA
# title: Not rotated for long
# description: never_rotated. The key was rotated, and its secret is older again than data says.
# labels:
#   code: never_rotated
finding contains {
	"code": "never_rotated",
	"confidence": "high",
	"scopes": [],
	"message": "The key was not rotated for {secret_age_days day}, since {rotated_on}.",
	"recommendation": "Rotate the key: both secrets work for the time of grace that you choose.",
	"remedy": "rotate_key",
	"remove_scopes": [],
} if {
	usable
	old_secret
	input.key.rotated == true
}

# METADATA
# title: No expiry
# description: no_expiry. The key works until somebody thinks of it.
# labels:
#   code: no_expiry
finding contains {
	"code": "no_expiry",
	"confidence": "high",
	"scopes": [],
	"message": "The key never expires. It was made {age_days day} ago, on {created_on}.",
	"recommendation": "Give the key an end, and rotate it before.",
	"remedy": "set_expiry",
	"remove_scopes": [],
} if {
	usable
	input.key.expires == false
}

old_secret if input.key.secret_age_days >= least.rotation.secret_age_days
