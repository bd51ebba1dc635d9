package conventions_test

import data.conventions

test_a_good_policy_has_nothing_to_report if {
	conventions.report == [] with input as good
}

test_nothing_is_not_good if {
	every nothing in [{}, {"annotations": []}, object.remove(good, ["annotations"])] {
		count(conventions.report) > 0 with input as nothing
	}
	message := ".:0: opa inspect names no package with METADATA; was it given --annotations?"
	conventions.report == [message] with input as {}
}

test_a_package_without_metadata_is_named if {
	other := {"data.p.other": ["/p/other/b_test.rego", "/p/other/b.rego", "/p/other/a.rego"]}
	message := "the package data.p.other has no METADATA of scope package (title, description, labels)"
	more := object.union(good, {"namespaces": other})
	conventions.report == [sprintf("p/other/a.rego:1: %s", [message])] with input as more
}

test_tests_and_data_need_no_metadata if {
	more := {
		"data.p_test": ["/p/p_test.rego"],
		"data.p.only": ["/p/only/only_test.rego"],
		"data.p.numbers": ["p/numbers/data.yaml"],
	}
	conventions.report == [] with input as object.union(good, {"namespaces": more})
}

test_metadata_of_tests_is_not_looked_at if {
	entry := {
		"path": path(["data", "p_test", "deny"]),
		"location": {"file": "/p/p_test.rego", "row": 3},
		"annotations": {"scope": "rule"},
	}
	conventions.report == [] with input as object.union(good, {"annotations": array.concat(good.annotations, [entry])})
}

test_each_field_of_a_package_is_missed if {
	every field in ["title", "description", "labels"] {
		message := sprintf("p/p.rego:2: the METADATA of the package data.p has no %s", [field])
		conventions.report == [message] with input as without(0, field)
	}
}

test_a_package_tells_its_area if {
	message := "p/p.rego:2: the labels of the package data.p do not tell its area"
	every labels in [{"owner": "us"}, {"area": ""}, {"area": " "}, {"area": 1}] {
		conventions.report == [message] with input as having(0, "labels", labels)
	}
}

test_each_field_of_a_reason_is_missed if {
	every field in ["title", "description", "labels"] {
		message := sprintf("p/p.rego:9: the METADATA of data.p.reason has no %s", [field])
		message in conventions.report with input as without(1, field)
		message in conventions.report with input as edited(1, {field: " "})
	}
}

test_a_reason_is_labelled_with_the_code_that_it_describes if {
	about := "the label code of data.p.reason is not the code that its description begins with"
	message := sprintf("p/p.rego:9: %s", [about])
	every code in ["other", "", "Too_many", 1, ["too_many"]] {
		conventions.report == [message] with input as having(1, "labels", {"code": code})
	}
	conventions.report == [message] with input as having(1, "labels", {"kind": "too_many"})
	every description in ["Too many of them.", "too_many: of them", "too_many", "too_many.of them"] {
		conventions.report == [message] with input as having(1, "description", description)
	}
}

test_each_field_of_a_finding_is_missed if {
	entry := object.union(without(1, "title").annotations[1], {"path": path(["data", "p", "finding"])})
	message := "p/p.rego:9: the METADATA of data.p.finding has no title"
	message in conventions.report with input as object.union(good, {"annotations": [good.annotations[0], entry]})
}

test_what_passes_reasons_on_has_no_code if {
	conventions.report == [] with input as edited(1, {"labels": {"code": "custom"}, "description": "What the rules give."})
}

test_deny_is_held_to_the_same if {
	entry := object.union(without(1, "labels").annotations[1], {"path": path(["data", "p", "deny"])})
	message := "p/p.rego:9: the METADATA of data.p.deny has no labels"
	conventions.report == [message] with input as object.union(good, {"annotations": [good.annotations[0], entry]})
}

test_each_field_of_an_entry_point_is_missed if {
	every field in ["title", "description"] {
		message := sprintf("p/p.rego:20: the METADATA of the entry point data.p.decision has no %s", [field])
		conventions.report == [message] with input as without(2, field)
	}
}

test_other_rules_are_free if {
	entry := {
		"path": path(["data", "p", "helper"]),
		"location": {"file": "/p/p.rego", "row": 30},
		"annotations": {"scope": "rule", "title": "Helper"},
	}
	conventions.report == [] with input as object.union(good, {"annotations": array.concat(good.annotations, [entry])})
}

# --- what opa inspect says of a good policy, in short ---

good := {
	"namespaces": {"data.p": ["/p/p.rego"]},
	"annotations": [
		{
			"path": path(["data", "p"]),
			"location": {"file": "/p/p.rego", "row": 2, "col": 1},
			"annotations": {"scope": "package", "title": "P", "description": "Decides.", "labels": {"area": "p"}},
		},
		{
			"path": path(["data", "p", "reason"]),
			"location": {"file": "/p/p.rego", "row": 9, "col": 1},
			"annotations": {
				"scope": "rule",
				"title": "Too many",
				"description": "too_many. There are too many.",
				"labels": {"code": "too_many"},
			},
		},
		{
			"path": path(["data", "p", "decision"]),
			"location": {"file": "/p/p.rego", "row": 20, "col": 1},
			"annotations": {"scope": "document", "title": "Decision", "description": "The answer.", "entrypoint": true},
		},
	],
}

path(parts) := [{"type": "string", "value": part} | some part in parts]

# The good policy with other fields in its nth METADATA.
edited(n, fields) := replaced(n, object.union(without_fields, fields)) if {
	without_fields := object.remove(good.annotations[n].annotations, object.keys(fields))
}

having(n, field, value) := edited(n, {field: value})

without(n, field) := replaced(n, object.remove(good.annotations[n].annotations, [field]))

replaced(n, annotations) := object.union(good, {"annotations": [entry |
	some i, original in good.annotations
	entry := changed(i == n, original, annotations)
]})

changed(true, entry, annotations) := {"path": entry.path, "location": entry.location, "annotations": annotations}

changed(false, entry, _) := entry
