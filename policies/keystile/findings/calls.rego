package keystile.findings

# METADATA
# title: Expired but called
# description: expired_but_called. Somebody goes on to call with a secret that has expired.
# labels:
#   code: expired_but_called
finding contains {
	"code": "expired_but_called",
	"confidence": "high",
	"scopes": [],
	"message": concat(" ", [
		"{expired_requests request} on {expired_days day} came with a secret that had expired,",
		"the last ones on {expired_last_on}.",
	]),
	"recommendation": "Tell whoever calls to use the new secret, or to stop; nothing of this was allowed.",
	"remedy": "change_client",
	"remove_scopes": [],
} if {
	input.key.expired_days >= least.expired_but_called.expired_days
}

# METADATA
# title: Revoked but called
# description: |
#   revoked_but_called. Somebody goes on to call with a secret that was revoked, and may not be whom it was given to.
# labels:
#   code: revoked_but_called
finding contains {
	"code": "revoked_but_called",
	"confidence": "high",
	"scopes": [],
	"message": concat(" ", [
		"{revoked_requests request} on {revoked_days day} came with a secret that was revoked,",
		"the last ones on {revoked_last_on}.",
	]),
	"recommendation": concat(" ", [
		"Find out who calls: a client that was forgotten, or somebody who found the secret.",
		"Nothing of this was allowed.",
	]),
	"remedy": "change_client",
	"remove_scopes": [],
} if {
	input.key.revoked_days >= least.revoked_but_called.revoked_days
}

# METADATA
# title: Test key in a live app
# description: test_key_in_live_app. A test key is presented where live ones are served.
# labels:
#   code: test_key_in_live_app
finding contains {
	"code": "test_key_in_live_app",
	"confidence": "high",
	"scopes": [],
	"message": concat(" ", [
		"A test key came with {mismatched_requests request} on {mismatched_days day} to where live keys are served,",
		"the last ones on {mismatched_last_on}.",
	]),
	"recommendation": "Put a live key of its own into the app's configuration; nothing of this was allowed.",
	"remedy": "change_client",
	"remove_scopes": [],
} if {
	input.key.environment == "test"
	input.key.mismatched_days >= least.test_key_in_live_app.mismatched_days
}

# METADATA
# title: Live key in a browser
# description: live_key_in_browser. A live key came from a browser, where everybody who uses the page can read it.
# labels:
#   code: live_key_in_browser
finding contains {
	"code": "live_key_in_browser",
	"confidence": "high",
	"scopes": [],
	"message": "{browser_requests request} with this live key came from a browser, the last ones on {browser_last_on}.",
	"recommendation": "Call the API from a server, and rotate the key: whoever saw the page may have it.",
	"remedy": "rotate_key",
	"remove_scopes": [],
} if {
	usable
	input.key.environment == "live"
	input.key.browser_requests >= least.live_key_in_browser.browser_requests
}

# METADATA
# title: Shared key
# description: shared_key. The key is used from more networks than one client has.
# labels:
#   code: shared_key
finding contains {
	"code": "shared_key",
	"confidence": "medium",
	"scopes": [],
	"message": "The key was used from {networks network}: many clients seem to share it.",
	"recommendation": "Give each client a key of its own, so that one can be revoked without the others.",
	"remedy": "split_key",
	"remove_scopes": [],
} if {
	usable
	input.key.networks >= least.shared_key.networks
}

# METADATA
# title: Over the limit by habit
# description: over_limit_habit. The key runs into its rate limit day after day, with more than a few of its requests.
# labels:
#   code: over_limit_habit
finding contains {
	"code": "over_limit_habit",
	"confidence": "high",
	"scopes": [],
	"message": concat(" ", [
		"The key ran into its rate limit on {limited_days day}, with {limited_percent}% of its requests,",
		"the last time on {limited_last_on}.",
	]),
	"recommendation": concat(" ", [
		"Let the client wait as Retry-After says, or spread its work;",
		"if it needs more, give the key a limit of its own.",
	]),
	"remedy": "change_client",
	"remove_scopes": [],
} if {
	usable
	input.key.limited_days >= least.over_limit_habit.limited_days
	input.key.limited_percent >= least.over_limit_habit.limited_percent
}
