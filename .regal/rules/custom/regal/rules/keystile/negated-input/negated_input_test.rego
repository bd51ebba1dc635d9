package custom.regal.rules.keystile["negated-input_test"]

import data.custom.regal.rules.keystile["negated-input"] as rule

test_a_negated_call_on_the_input_is_found if {
	every body in [
		"not input.request.method in data.methods",
		`not "tickets:read" in input.key.scopes`,
		`not startswith(input.request.path, "/api")`,
		"not input.request.size > 3",
		"not count(input.key.scopes) > 3",
		"not allowed(input.request)",
		"not input.key.metadata.n != 2",
		"every x in [1] { not x in input.key.scopes }",
		"xs := [x | some x in [1]; not x in input.key.scopes]; xs == []",
	] {
		rows(rule.report) == {4} with input as module("p.rego", body)
	}
}

test_what_holds_where_the_field_is_missing_is_fine if {
	every body in [
		"not input.request.browser",
		`not input.request.method == "GET"`,
		"input.request.method in data.methods",
		"not allowed",
		"held := input.key.scopes; not 1 in held",
		`not object.get(input.key.metadata, "team", "") in {"a"}`,
		`not object.get(input.key.metadata, "blocked", false)`,
		"not 1 in {s | some s in input.key.scopes}",
	] {
		rows(rule.report) == set() with input as module("p.rego", body)
	}
}

test_tests_may if {
	rows(rule.report) == set() with input as module("p_test.rego", "not 1 in input.x")
}

module(name, body) := regal.parse_module(name, sprintf("package p\n\nr if {\n\t%s\n}\n", [body]))

rows(report) := {violation.location.row | some violation in report}
