package system.log_test

import data.system.log

entry := {
	"decision_id": "x",
	"input": {
		"key": {"id": "key_1", "scopes": ["tickets:read"], "metadata": {"note": "x"}},
		"request": {"path": "/api/v1/tickets", "segments": ["api", "v1", "tickets"]},
	},
	"result": {"allow": true},
}

changed(changes) := object.union(entry, changes)

secret := concat("", ["sk", "_live_", "0123456789abcdefghijABCDEFGHIJ012345"])

test_metadata_is_masked_and_the_rest_is_not if {
	log.mask == {"/input/key/metadata"} with input as changed({})
}

test_fields_named_like_a_secret_are_masked if {
	every name in ["secret", "Authorization", "X-API-Key", "x_api_key", "key_sha256", "Cookie", "token", "headers"] {
		sprintf("/input/request/%s", [name]) in log.mask with input as changed({"input": {"request": {name: "x"}}})
	}
}

test_texts_that_hold_a_secret_are_masked if {
	texts := {"path": sprintf("/a/%s", [secret]), "segments": ["a", secret]}
	mask := log.mask with input as changed({"input": {"request": texts}, "result": {"reasons": [{"message": secret}]}})
	"/input/request/path" in mask
	"/input/request/segments/1" in mask
	"/result/reasons/0/message" in mask
	not "/input/request/segments/0" in mask
}

test_tokens_are_masked if {
	every prefix in ["ksc_", "ksa_"] {
		token := concat("", [prefix, "0123456789abcdefghijABCDEFGHIJ012345"])
		"/input/request/path" in log.mask with input as changed({"input": {"request": {"path": token}}})
	}
}

test_names_are_escaped if {
	"/input/a~1b~0/secret" in log.mask with input as changed({"input": {"a/b~": {"secret": "x"}}})
}

test_cached_answers_are_masked if {
	"/nd_builtin_cache" in log.mask with input as changed({"nd_builtin_cache": {"x": 1}})
}

test_entry_without_input_masks_nothing if {
	log.mask == set() with input as {}
}
