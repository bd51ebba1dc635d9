package custom.regal.rules.keystile["reason-metadata_test"]

import data.custom.regal.rules.keystile["reason-metadata"] as rule

test_a_documented_reason_is_fine if {
	every text in [good, replace(good, "deny contains", "reason contains"), "package p\n\nallow if input.x\n"] {
		rows(rule.report) == set() with input as regal.parse_module("p.rego", text)
	}
}

test_a_reason_without_its_metadata_is_found if {
	every change in [
		["p_denied. When", "When"],
		["p_denied. When", "other. When"],
		["p_denied. When", "p_denied when"],
		[`"code": "p_denied"`, `"code": "another"`],
		["# description: p_denied. When it is p.\n", ""],
		["# title: P\n", ""],
		["# METADATA\n# title: P\n# description: p_denied. When it is p.\n", ""],
	] {
		count(rule.report) == 1 with input as changed("p.rego", change)
	}
	rows(rule.report) == {6} with input as changed("p.rego", ["p_denied. When", "When"])
}

test_a_code_that_is_worked_out_is_found if {
	every change in [
		[`"code": "p_denied"`, `"code": input.code`],
		[`"code": "p_denied"`, `"code": sprintf("p_%s", [input.code])`],
		[`"code": "p_denied", `, ""],
		[`{"code": "p_denied", "message": "P."}`, `object.union(data.x, {"message": "P."})`],
		[`{"code": "p_denied", "message": "P."}`, "found"],
	] {
		rows(rule.report) == {6} with input as changed("p.rego", change)
	}
}

test_the_check_passes_reasons_on if {
	text := "package keystile.check\n\nreason contains found if some found in data.keystile.rules.x.deny\n"
	rows(rule.report) == set() with input as regal.parse_module("p.rego", text)
	elsewhere := replace(text, "keystile.check", "keystile.rules.y")
	rows(rule.report) == {3} with input as regal.parse_module("p.rego", elsewhere)
}

test_a_finding_is_described_as_a_reason_is if {
	found := replace(good, "deny contains", "finding contains")
	rows(rule.report) == set() with input as regal.parse_module("p.rego", found)
	rows(rule.report) == {6} with input as regal.parse_module("p.rego", replace(found, "p_denied. When", "When"))
}

test_tests_may if {
	rows(rule.report) == set() with input as changed("p_test.rego", ["p_denied. When", "When"])
}

good := `package keystile.rules.p

# METADATA
# title: P
# description: p_denied. When it is p.
deny contains {"code": "p_denied", "message": "P."} if input.request.browser
`

changed(name, change) := regal.parse_module(name, replace(good, change[0], change[1]))

rows(report) := {violation.location.row | some violation in report}
