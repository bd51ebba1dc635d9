package keystile.check_test

import data.keystile.catalog
import data.keystile.check
import data.keystile.rules

# A live key with two scopes that lists tickets. Everything else is unknown or off.
question := {
	"caller": {"id": "caller_1", "name": "tickets", "environments": ["live", "test"]},
	"organization": {"id": "org_1", "external_id": "acme", "plan": "standard", "metadata": {}},
	"key": {
		"id": "key_1",
		"environment": "live",
		"scopes": ["customers:read", "tickets:read"],
		"metadata": {},
		"allowed_cidrs": [],
		"rate_limit": null,
		"restricted": false,
	},
	"request": {
		"method": "GET",
		"path": "/api/v1/tickets",
		"segments": ["api", "v1", "tickets"],
		"ambiguous": false,
		"action": "",
		"environment": "",
		"resource": {"type": "", "id": "", "organization": ""},
		"client_ip": "",
		"browser": false,
	},
	"stale": false,
}

asked(method, path) := {"request": {
	"method": method,
	"path": path,
	"segments": [segment | some segment in split(path, "/"); segment != ""],
}}

changed(changes) := object.union(question, changes)

codes(decision) := [reason.code | some reason in decision.reasons]

# Whatever the plan's numbers are: changing them must not need a change of tests.
standard := catalog.plan_limits.standard

test_allowed_with_its_scope if {
	check.decision == {
		"allow": true,
		"reasons": [],
		"required_scopes": ["tickets:read"],
		"missing_scopes": [],
		"route": "/api/v1/tickets",
		"limits": standard,
	} with input as changed({})
}

test_denied_without_its_scope_and_named if {
	check.decision == {
		"allow": false,
		"reasons": [{"code": "insufficient_scope", "message": "The key lacks tickets:write."}],
		"required_scopes": ["tickets:write"],
		"missing_scopes": ["tickets:write"],
		"route": "/api/v1/tickets",
		"limits": standard,
	} with input as changed(asked("POST", "/api/v1/tickets"))
}

test_a_key_without_scopes_is_denied if {
	codes(check.decision) == ["insufficient_scope"] with input as changed({"key": {"scopes": []}})
}

test_no_scope_implies_another if {
	codes(check.decision) == ["insufficient_scope"] with input as changed({"key": {"scopes": ["tickets:write"]}})
}

# --- fences ---

test_environment_the_caller_does_not_serve_is_denied if {
	codes(check.decision) == ["environment_mismatch"]
		with input as changed({"caller": {"environments": ["test"]}})
	codes(check.decision) == ["environment_mismatch"] with input as changed({"caller": {"environments": []}})
	codes(check.decision) == ["environment_mismatch"] with input as changed({"key": {"environment": ""}})
}

test_environment_only_narrows if {
	check.decision.allow with input as changed({"request": {"environment": "live"}})
	codes(check.decision) == ["environment_mismatch"] with input as changed({"request": {"environment": "test"}})
	codes(check.decision) == ["environment_mismatch"]
		with input as changed({"request": {"environment": "test"}, "caller": {"environments": ["test"]}})
}

test_resource_of_the_keys_organization_is_allowed if {
	check.decision.allow with input as changed({"request": {"resource": {"organization": "org_1"}}})
	check.decision.allow with input as changed({"request": {"resource": {"organization": "acme"}}})
}

test_resource_of_another_organization_is_denied if {
	codes(check.decision) == ["organization_mismatch"]
		with input as changed({"request": {"resource": {"organization": "org_2"}}})
}

test_resource_of_unknown_organization_is_allowed if {
	patch := [{"op": "replace", "path": "request/resource", "value": {}}]
	check.decision.allow with input as json.patch(question, patch)
}

test_resource_of_another_type_is_denied if {
	codes(check.decision) == ["organization_mismatch"]
		with input as changed({"request": {"resource": {"organization": false}}})
	codes(check.decision) == ["organization_mismatch"]
		with input as changed({"request": {"resource": {"organization": null}}})
}

test_address_inside_a_fence_is_allowed if {
	fence := {"allowed_cidrs": ["2001:db8::/32", "203.0.113.0/24"]}
	check.decision.allow with input as changed({"key": fence, "request": {"client_ip": "203.0.113.7"}})
	check.decision.allow with input as changed({"key": fence, "request": {"client_ip": "2001:db8::1"}})
}

test_address_outside_or_unknown_is_denied if {
	fence := {"allowed_cidrs": ["203.0.113.0/24"]}
	codes(check.decision) == ["ip_not_allowed"]
		with input as changed({"key": fence, "request": {"client_ip": "198.51.100.1"}})
	codes(check.decision) == ["ip_not_allowed"]
		with input as changed({"key": fence, "request": {"client_ip": "2001:db8::1"}})
	codes(check.decision) == ["ip_not_allowed"] with input as changed({"key": fence})
	codes(check.decision) == ["ip_not_allowed"] with input as changed({"key": {"allowed_cidrs": ["0.0.0.0/0"]}})
}

# --- routes ---

test_variable_segment_matches if {
	decision := check.decision with input as changed(asked("GET", "/api/v1/tickets/42"))
	decision.allow
	decision.route == "/api/v1/tickets/{id}"
}

test_path_is_matched_as_decoded if {
	request := {"path": "/api/v1/%74ickets/a%20b", "segments": ["api", "v1", "tickets", "a b"]}
	check.decision.route == "/api/v1/tickets/{id}" with input as changed({"request": request})
}

test_text_of_a_variable_is_not_special if {
	check.decision.route == "/api/v1/tickets/{id}" with input as changed(asked("GET", "/api/v1/tickets/{id}"))
	codes(check.decision) == ["unknown_route"] with input as changed(asked("GET", "/api/v1/{id}/42"))
}

test_adding_a_message_needs_tickets_write if {
	check.decision.missing_scopes == ["tickets:write"]
		with input as changed(asked("POST", "/api/v1/tickets/42/messages"))
}

# Over routes of its own: whoever adds a route must not have to look for one that nobody has.
test_unknown_routes_are_denied if {
	route_entry := {"scopes": ["tickets:read"]}
	routes := {
		"GET": {"3": {"/api/v1/tickets": route_entry}, "4": {"/api/v1/tickets/{id}": route_entry}},
		"POST": {"5": {"/api/v1/tickets/{id}/messages": route_entry}},
	}
	every route in [
		["GET", "/"],
		["GET", "/api/v1/invoices"],
		["GET", "/api/v1/Tickets"],
		["GET", "/api/v1/tickets/42/messages/7"],
		["DELETE", "/api/v1/tickets/42"],
		["get", "/api/v1/tickets"],
		["", "/api/v1/tickets"],
		["GET", ""],
	] {
		decision := check.decision with catalog.routes as routes with input as changed(asked(route[0], route[1]))
		decision.reasons == [{
			"code": "unknown_route",
			"message": "No route of the catalogue has this method and path.",
			"status": 403,
		}]
		decision.route == null
		not decision.allow
	}
}

test_no_scope_deletes_a_ticket if {
	codes(check.decision) == ["unknown_route"] with input as changed(asked("DELETE", "/api/v1/tickets/42"))
}

test_status_of_unknown_routes_is_data if {
	decision := check.decision with catalog.unknown_route_status as 404
		with input as changed(asked("GET", "/nowhere"))
	decision.reasons[0].status == 404
}

test_literal_wins_over_variable_leftmost_first if {
	routes := {"GET": {"2": {
		"/{a}/{b}": {"scopes": ["s:both"]},
		"/{a}/y": {"scopes": ["s:right"]},
		"/x/{b}": {"scopes": ["s:left"]},
		"/x/z": {"scopes": ["s:none"]},
	}}}
	every path, scope in {"/x/z": "s:none", "/x/y": "s:left", "/q/y": "s:right", "/q/r": "s:both"} {
		decision := check.decision with catalog.routes as routes
			with input as changed(asked("GET", path))
		decision.required_scopes == [scope]
	}
}

test_root_can_be_a_route if {
	check.decision.allow with catalog.routes as {"GET": {"0": {"/": {"scopes": ["tickets:read"]}}}}
		with input as changed({"request": {"path": "/", "segments": []}})
}

test_encoded_literal_is_that_literal if {
	routes := {"GET": {"2": {"/x/{b}": {"scopes": ["s:variable"]}, "/x/z": {"scopes": ["s:literal"]}}}}
	every path in ["/x/z", "/x/%7a", "/%78/%7A"] {
		decision := check.decision with catalog.routes as routes
			with input as changed({"request": {"path": path, "segments": ["x", "z"]}})
		decision.required_scopes == ["s:literal"]
		decision.route == "/x/z"
	}
	decision := check.decision with catalog.routes as routes
		with input as changed({"request": {"path": "/x/%71", "segments": ["x", "q"]}})
	decision.required_scopes == ["s:variable"]
}

test_every_scope_of_a_route_is_required if {
	routes := {"GET": {"1": {"/x": {"scopes": ["tickets:write", "tickets:read", "customers:write", "tickets:write"]}}}}
	decision := check.decision with catalog.routes as routes
		with input as changed(asked("GET", "/x"))
	decision.required_scopes == ["customers:write", "tickets:read", "tickets:write"]
	decision.missing_scopes == ["customers:write", "tickets:write"]
	decision.reasons[0].message == "The key lacks customers:write, tickets:write."
}

test_route_without_scopes_is_denied if {
	every entry in [{"scopes": []}, {"scopes": null}] {
		decision := check.decision with catalog.routes as {"GET": {"1": {"/x": entry}}}
			with input as changed(asked("GET", "/x"))
		decision.reasons == [{"code": "policy_denied", "message": "The catalogue names no scope for this route."}]
		not decision.allow
	}
}

test_route_without_scopes_is_denied_also_with_an_action if {
	request := object.union(asked("GET", "/x"), {"request": {"action": "tickets:read"}})
	decision := check.decision with catalog.routes as {"GET": {"1": {"/x": {"scopes": []}}}}
		with input as changed(request)
	not decision.allow
}

test_ambiguous_path_matches_no_route if {
	every path in ["/api/v1/tickets", "/", "/api/v1/tickets/"] {
		changes := {"request": {"path": path, "segments": [], "ambiguous": true}}
		codes(check.decision) == ["ambiguous_path"] with input as changed(changes)
		check.decision.route == null with input as changed(changes)
	}
}

# --- actions ---

nothing_but_action := object.union(asked("", ""), {"request": {"action": "tickets:read"}})

test_action_alone_is_enough if {
	decision := check.decision with input as changed(nothing_but_action)
	decision.allow
	decision.required_scopes == ["tickets:read"]
	decision.route == null
}

test_action_alone_needs_its_scope if {
	codes(check.decision) == ["insufficient_scope"]
		with input as changed(object.union(nothing_but_action, {"key": {"scopes": []}}))
}

test_action_and_route_must_both_pass if {
	decision := check.decision with input as changed({"request": {"action": "customers:read"}})
	decision.allow
	decision.required_scopes == ["customers:read", "tickets:read"]
	check.decision.missing_scopes == ["customers:write"]
		with input as changed({"request": {"action": "customers:write"}})
}

test_unknown_action_is_denied if {
	check.decision.reasons == [{
		"code": "unknown_route",
		"message": "The action is not a scope of the catalogue.",
		"status": 403,
	}] with input as changed({"request": {"action": "tickets:delete"}})
	codes(check.decision) == ["unknown_route"]
		with input as changed(object.union(asked("", ""), {"request": {"action": "tickets:delete"}}))
}

test_action_does_not_help_an_unknown_route if {
	codes(check.decision) == ["unknown_route"]
		with input as changed(object.union(asked("GET", "/nowhere"), {"request": {"action": "tickets:read"}}))
}

test_nothing_asked_is_denied if {
	check.decision.reasons[0].message == "Neither a method and path nor an action was given."
		with input as changed(asked("", ""))
}

# --- limits ---

test_own_limit_takes_the_place_of_the_plans if {
	check.decision.limits == [{
		"name": "key",
		"rate": 5,
		"period_seconds": 1,
		"burst": 7,
		"cost": 1,
	}] with input as changed({"key": {"rate_limit": {"rate": 5, "period_seconds": 1, "burst": 7}}})
}

test_unknown_plan_has_no_limits if {
	check.decision.limits == [] with input as changed({"organization": {"plan": "none-such"}})
}

# --- reasons ---

test_all_reasons_are_given_in_their_order if {
	decision := check.decision with rules.browser_use.enabled as true
		with input as changed({
			"key": {"scopes": [], "allowed_cidrs": ["203.0.113.0/24"]},
			"request": {
				"environment": "test",
				"resource": {"organization": "org_2"},
				"browser": true,
				"action": "none:such",
				"ambiguous": true,
			},
		})
	[reason.code | some reason in decision.reasons] == [
		"environment_mismatch",
		"organization_mismatch",
		"ip_not_allowed",
		"ambiguous_path",
		"unknown_route",
		"browser_use",
	]
	every reason in decision.reasons {
		reason.message != ""
	}
}

test_custom_reasons_come_last if {
	decision := check.decision with rules as {
		"a_rule": {"deny": {{"code": "a_code", "message": "No."}}},
		"no_rule": {"other": 1},
		"quiet_rule": {"deny": set()},
	}
		with input as changed({"key": {"scopes": []}})
	[reason.code | some reason in decision.reasons] == ["insufficient_scope", "a_code"]
}

test_custom_rule_alone_denies if {
	decision := check.decision with rules as {"extra": {"deny": {{"code": "a_code", "message": "No."}}}}
		with input as question
	decision.reasons == [{"code": "a_code", "message": "No."}]
	not decision.allow
}

test_folder_without_deny_does_no_harm if {
	decision := check.decision with rules as {"extra": {"limit": 3}} with input as question
	decision.allow
}

test_rule_that_is_no_set_denies if {
	every broken in [true, false, null, "x", ["x"], [], {"code": "x", "message": "x"}, {}, 1] {
		decision := check.decision with rules as {"extra": {"deny": broken}} with input as question
		decision.reasons == [{"code": "policy_denied", "message": "The rule extra does not give a set of reasons."}]
		not decision.allow
	}
}

test_decision_is_complete_without_input if {
	decision := check.decision with input as {}
	object.keys(decision) == {"allow", "reasons", "required_scopes", "missing_scopes", "route", "limits"}
	decision.allow == false
	count(decision.reasons) > 0
}

test_denial_without_a_reason_gets_one if {
	reason := {"code": "policy_denied", "message": "The policy does not allow this request."}
	check.reasons == [reason] with check.reason as set()
}

# The ordinary request is decided in place, everything else by its rules: whatever is asked,
# both say the same, and there is an allow exactly when there is no reason against it.
test_allowed_in_place_exactly_as_by_rule if {
	every changes in combinations {
		decision := check.decision with input as changed(changes)
		by_rule := object.get(check, "allowed", null) with input as changed(changes)
		against := count(check.reason) with input as changed(changes)
		same(decision, by_rule, against)
	}
	some changes in combinations
	check.decision.allow with input as changed(changes)
}

same(decision, by_rule, 0) if {
	decision == by_rule
	decision.allow == true
}

same(decision, null, against) if {
	against > 0
	decision.allow == false
}

combinations contains combination(served, wanted, every_scope, [], "", asked_for) if {
	some served in [[["live"], "live"], [["live"], "test"], [["live", "test"], "test"]]
	some wanted in ["", "live"]
	some asked_for in whatever_is_asked
}

combinations contains combination([["live"], "live"], "", scopes, [], "", asked_for) if {
	scopes := ["tickets:read"]
	some asked_for in whatever_is_asked
}

combinations contains combination([["live"], "live"], "", every_scope, cidrs, organization, asked_for) if {
	asked_for := ["GET", "/api/v1/tickets", ""]
	some cidrs in [[], ["203.0.113.0/24"], ["198.51.100.0/24"]]
	some organization in ["", "acme", "org_2"]
}

every_scope := ["customers:read", "tickets:read", "tickets:write"]

whatever_is_asked := [
	["GET", "/api/v1/tickets", ""],
	["POST", "/api/v1/tickets", "customers:read"],
	["", "", "tickets:read"],
	["GET", "/nowhere", ""],
]

combination(served, wanted, scopes, cidrs, organization, asked_for) := {
	"caller": {"environments": served[0]},
	"key": {"environment": served[1], "scopes": scopes, "allowed_cidrs": cidrs},
	"request": {
		"method": asked_for[0],
		"path": asked_for[1],
		"segments": [segment | some segment in split(asked_for[1], "/"); segment != ""],
		"action": asked_for[2],
		"environment": wanted,
		"resource": {"organization": organization},
		"client_ip": "203.0.113.7",
	},
}

# A question that lacks a field that a shipped rule reads is never allowed.
test_missing_field_never_allows if {
	every path in needed {
		decision := check.decision with input as json.remove(question, [path])
		decision.allow == false
		count(decision.reasons) > 0
	}
}

needed := {
	"caller",
	"caller/environments",
	"key",
	"key/environment",
	"key/scopes",
	"key/allowed_cidrs",
	"request",
	"request/method",
	"request/path",
	"request/ambiguous",
	"request/action",
	"request/environment",
	"request/resource",
}
