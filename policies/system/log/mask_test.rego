package system.log_test

import data.system.log

entry := {
	"decision_id": "x",
	"input": {
		"organization": {"id": "org_1", "metadata": {"note": "x"}},
		"key": {"id": "key_1", "scopes": ["tickets:read"], "metadata": {"note": "x"}},
		"request": {
			"method": "GET",
			"path": "/api/v1/tickets/42",
			"segments": ["api", "v1", "tickets", "42"],
			"resource": {"type": "ticket", "id": "42"},
			"client_ip": "203.0.113.7",
		},
	},
	"result": {"allow": true, "route": "/api/v1/tickets/{id}"},
}

nothing_known := {
	"decision_id": "x",
	"input": {
		"key": {"id": "", "scopes": [], "metadata": {}},
		"request": {"method": "", "path": "", "segments": [], "resource": {"type": "", "id": ""}, "client_ip": ""},
	},
	"result": {"allow": false, "route": null},
}

upsert(path, value) := {"op": "upsert", "path": path, "value": value}

changed(changes) := object.union(entry, changes)

secret := concat("", ["sk", "_live_", "0123456789abcdefghijABCDEFGHIJ012345"])

test_what_tells_of_persons_is_masked_and_the_rest_is_not if {
	log.mask == {
		"/input/key/metadata",
		"/input/organization/metadata",
		"/input/request/path",
		"/input/request/segments",
		"/input/request/resource/id",
		upsert("/input/request/path", "/api/v1/tickets/{id}"),
		upsert("/input/request/client_ip", "203.0.113.0/24"),
	} with input as changed({})
		with log.in_full as []
}

test_what_data_shows_is_not_masked if {
	log.mask == set() with input as changed({})
		with log.in_full as ["client_ip", "metadata", "path", "resource_id"]
}

test_without_data_nothing_is_shown if {
	every path in ["/input/key/metadata", "/input/request/path", "/input/request/resource/id"] {
		path in log.mask with input as changed({}) with log.in_full as {}
	}
}

test_what_is_not_known_is_not_masked if {
	log.mask == set() with input as nothing_known with log.in_full as []
}

test_network_of_a_longer_address_is_shorter if {
	six := changed({"input": {"request": {"client_ip": "2001:db8:1:2::7"}}})
	network := upsert("/input/request/client_ip", "2001:db8:1::/48")
	network in log.mask with input as six with log.in_full as []
}

test_path_without_a_route_is_erased if {
	mask := log.mask with input as changed({"result": {"route": null}}) with log.in_full as []
	"/input/request/path" in mask
	{op | some op in mask; op.path == "/input/request/path"} == set()
}

test_route_that_holds_a_secret_replaces_no_path if {
	route := sprintf("/a/%s", [secret])
	mask := log.mask with input as changed({"result": {"route": route}}) with log.in_full as []
	"/result/route" in mask
	not upsert("/input/request/path", route) in mask
}

test_fields_named_like_a_secret_are_masked if {
	every name in ["secret", "Authorization", "X-API-Key", "x_api_key", "key_sha256", "Cookie", "token", "headers"] {
		sprintf("/input/request/%s", [name]) in log.mask with input as changed({"input": {"request": {name: "x"}}})
	}
}

test_texts_that_hold_a_secret_are_masked if {
	texts := {"path": sprintf("/a/%s", [secret]), "segments": ["a", secret]}
	asked := changed({"input": {"request": texts}, "result": {"reasons": [{"message": secret}]}})
	mask := log.mask with input as asked with log.in_full as ["path"]
	"/input/request/path" in mask
	"/input/request/segments/1" in mask
	"/result/reasons/0/message" in mask
	not "/input/request/segments/0" in mask
}

test_tokens_are_masked if {
	every prefix in ["ksc_", "ksa_"] {
		token := concat("", [prefix, "0123456789abcdefghijABCDEFGHIJ012345"])
		asked := changed({"input": {"request": {"path": token}}})
		"/input/request/path" in log.mask with input as asked with log.in_full as ["path"]
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
