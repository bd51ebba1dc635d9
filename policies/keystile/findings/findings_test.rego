package keystile.findings_test

import data.keystile.findings

# A key of which there is nothing to say.
good := {
	"key": {
		"environment": "live",
		"state": "active",
		"expires": true,
		"rotated": true,
		"covered_days": long,
		"age_days": 0,
		"secret_age_days": 0,
		"used_for_days": 0,
		"idle_days": 0,
		"days_used": least.unused.days_used,
		"networked_days": least.new_network.networked_days,
		"allowed_requests": 0,
		"denied_requests": 0,
		"networks": 0,
		"limited_days": 0,
		"limited_percent": 0,
		"expired_requests": 0,
		"expired_days": 0,
		"revoked_requests": 0,
		"revoked_days": 0,
		"mismatched_requests": 0,
		"mismatched_days": 0,
		"browser_requests": 0,
		"browser_days": 0,
	},
	"scopes": [read, write],
}

# A window that is long enough for everything, and one that is for what is unused alone.
long := max({least.unused.covered_days, least.rarely_used.covered_days, least.high_confidence.covered_days})

least := findings.least

read := used("tickets:read", often)

write := used("tickets:write", often)

often := least.rarely_used.scope_days_used

once := least.unused.scope_days_used

used(scope, days) := object.union(known, {
	"scope": scope,
	"granted": true,
	"requests": 0,
	"days_used": days,
	"idle_days": 0,
})

# From where the key was always used.
known := {
	"networks": least.new_network.scope_networks,
	"network_age_days": least.new_network.scope_network_age_days,
	"used_for_days": least.new_network.scope_used_for_days,
}

key(change) := object.union(good, {"key": change})

scopes(list) := object.union(good, {"scopes": list})

# Before data turns some off.
found contains finding.code if some finding in findings.finding

nothing if {
	found == set()
	findings.undecided == set()
}

states := {"active", "disabled", "expired", "revoked", "suspended"}

test_a_good_key_has_no_finding if {
	nothing with input as good
}

test_nothing_known_is_nothing_found if {
	nothing with input as {}
	nothing with input as {"key": {}, "scopes": [{}]}
}

test_unused_key if {
	question := object.union(key({"days_used": 0}), {"scopes": [used("tickets:read", 0), used("tickets:write", 0)]})
	found == {"unused_key"} with input as question
	{"high"} == {finding.confidence | some finding in findings.finding} with input as question
}

test_unused_scope if {
	question := scopes([used("tickets:read", 0), write])
	found == {"unused_scope"} with input as question
	[["tickets:read"]] == [finding.scopes | some finding in findings.finding] with input as question
	[["tickets:read"]] == [finding.remove_scopes | some finding in findings.finding] with input as question
}

test_a_write_scope_is_unused_where_another_is_used if {
	question := scopes([read, used("customers:write", 0), write])
	found == {"unused_scope"} with input as question
	[["customers:write"]] == [finding.scopes | some finding in findings.finding] with input as question
}

test_write_never_used if {
	question := scopes([read, used("customers:write", 0), used("tickets:write", 0)])
	found == {"write_never_used"} with input as question
	some finding in findings.finding with input as question
	finding.remove_scopes == ["customers:write", "tickets:write"]
}

test_a_scope_that_is_not_granted_is_not_unused if {
	question := scopes([read, object.union(used("tickets:write", 0), {"granted": false})])
	found == set() with input as question
}

test_a_write_that_was_taken_away_was_a_write if {
	question := scopes([read, used("customers:write", 0), object.union(write, {"granted": false})])
	found == {"unused_scope"} with input as question
}

test_confidence_is_less_for_a_window_of_less if {
	question := object.union(key({"covered_days": least.unused.covered_days}), {"scopes": [
		used("tickets:read", 0),
		write,
	]})
	{"medium"} == {finding.confidence | some finding in findings.finding} with input as question
		with findings.least as object.union(least, {"high_confidence": {"covered_days": least.unused.covered_days + 1}})
}

test_a_short_window_is_not_enough_evidence if {
	short := key({"covered_days": least.unused.covered_days - 1})
	nothing with input as short

	unused := object.union(
		short,
		{"scopes": [used("customers:read", 0), used("tickets:read", once), used("tickets:write", 0)]},
	)
	found == set() with input as unused
	findings.undecided == {"rarely_used_scope", "unused_scope", "write_never_used"} with input as unused

	idle := object.union(short, {"key": {"days_used": 0}, "scopes": [used("tickets:read", 0)]})
	found == set() with input as idle
	findings.undecided == {"unused_key"} with input as idle
}

test_rarely_used_scope if {
	question := scopes([used("tickets:read", once), write])
	found == {"rarely_used_scope"} with input as question
	shorter := object.union(question, {"key": {"covered_days": least.rarely_used.covered_days - 1}})
	found == set() with input as shorter
	findings.undecided == {"rarely_used_scope"} with input as shorter
}

test_scope_from_a_new_network_alone if {
	new := object.union(read, {"networks": 1, "network_age_days": 0, "used_for_days": 0})
	found == {"rarely_used_scope"} with input as scopes([new, write])
	better_ones := [
		{"networks": 0},
		{"networks": known.networks},
		{"network_age_days": known.network_age_days},
		{"used_for_days": known.used_for_days},
		{"granted": false},
		{"days_used": 0},
	]
	every better in better_ones {
		not "rarely_used_scope" in found with input as scopes([object.union(new, better), write])
	}
	found == set() with input as object.union(scopes([new, write]), {"key": {"networked_days": 0}})

	# Told once, where both are so.
	count(findings.finding) == 1 with input as scopes([object.union(new, {"days_used": once}), write])
}

test_never_rotated if {
	old := {"secret_age_days": least.rotation.secret_age_days}
	found == {"never_rotated"} with input as key(object.union(old, {"rotated": false}))
	found == {"never_rotated"} with input as key(old)
	found == set() with input as key({"rotated": false})
}

test_no_expiry if {
	found == {"no_expiry"} with input as key({"expires": false})
}

test_calls_with_what_has_ended_are_found_in_every_state if {
	every state in states {
		found == {"expired_but_called"} with input as key(object.union({"state": state}, least.expired_but_called))
		found == {"revoked_but_called"} with input as key(object.union({"state": state}, least.revoked_but_called))
	}
}

test_test_key_in_live_app if {
	found == {"test_key_in_live_app"} with input as key(object.union({"environment": "test"}, least.test_key_in_live_app))
	found == set() with input as key({"environment": "test"})
	found == set() with input as key(least.test_key_in_live_app)
}

test_live_key_in_browser if {
	found == {"live_key_in_browser"} with input as key(least.live_key_in_browser)
	found == set() with input as key(object.union({"environment": "test"}, least.live_key_in_browser))
}

test_shared_key if {
	found == {"shared_key"} with input as key(least.shared_key)
}

habit := least.over_limit_habit

test_over_limit_habit if {
	found == {"over_limit_habit"} with input as key(habit)
	found == set() with input as key({"limited_days": habit.limited_days})
	found == set() with input as key({"limited_percent": habit.limited_percent})
}

test_a_key_that_cannot_be_used_needs_no_care if {
	every state in states - {"active"} {
		bad := object.union(good.key, {
			"state": state,
			"expires": false,
			"rotated": false,
			"secret_age_days": least.rotation.secret_age_days,
			"networks": least.shared_key.networks,
			"limited_days": habit.limited_days,
			"limited_percent": habit.limited_percent,
			"browser_requests": least.live_key_in_browser.browser_requests,
		})
		every covered in [0, long] {
			every days in [0, 1] {
				question := {
					"key": object.union(bad, {"covered_days": covered, "days_used": days}),
					"scopes": [used("tickets:read", once), used("tickets:write", 0), used("customers:read", 0)],
				}
				nothing with input as question
			}
		}
	}
}

test_all_that_is_found_has_its_severity if {
	question := object.union(key({"expires": false}), {"scopes": [used("tickets:read", 0), write]})
	[["no_expiry", "low"], ["unused_scope", "high"]] == [[finding.code, finding.severity] |
		some finding in findings.findings.findings
	] with input as question
		with findings.weights as {"no_expiry": "low", "unused_scope": "high"}
	findings.findings.not_enough_evidence == [] with input as question
}

test_data_turns_a_kind_off if {
	off := {"no_expiry": "off", "unused_key": "off"}
	question := key({"expires": false, "covered_days": 0, "days_used": 0})
	findings.findings == {"findings": [], "not_enough_evidence": []} with input as question
		with findings.weights as off
	findings.findings.not_enough_evidence == ["unused_key"] with input as question
		with findings.weights as {"no_expiry": "off"}
}

test_a_kind_that_data_does_not_know_matters if {
	findings.findings.findings[0].severity == "medium" with input as key({"expires": false})
		with findings.weights as {}
}

test_each_kind_has_a_severity if {
	every severity in findings.weights {
		severity in {"high", "medium", "low", "off"}
	}
}

# Figures are rounded down to steps: a threshold between two of them would not be what it says.
test_each_threshold_is_a_step if {
	every figures in findings.least {
		every figure, value in figures {
			value in findings.steps_of[figure]
		}
	}
}

test_steps_ascend_from_above_zero if {
	every values in findings.steps_of {
		values == sort({value | some value in values})
		values[0] > 0
	}
}
