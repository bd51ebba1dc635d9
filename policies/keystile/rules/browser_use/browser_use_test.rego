package keystile.rules.browser_use_test

import data.keystile.rules.browser_use

browser(environment) := {"key": {"environment": environment}, "request": {"browser": true}}

test_off_as_shipped if {
	browser_use.deny == set() with input as browser("live")
}

test_live_key_in_a_browser_is_denied_when_enabled if {
	deny := browser_use.deny with input as browser("live") with browser_use.enabled as true
	[reason.code | some reason in deny] == ["browser_use"]
}

test_only_true_enables if {
	every value in [false, "yes", 1, null] {
		browser_use.deny == set() with input as browser("live") with browser_use.enabled as value
	}
}

test_test_key_in_a_browser_is_no_reason if {
	browser_use.deny == set() with input as browser("test") with browser_use.enabled as true
}

test_live_key_on_a_server_is_no_reason if {
	server := {"key": {"environment": "live"}, "request": {"browser": false}}
	browser_use.deny == set() with input as server with browser_use.enabled as true
}
