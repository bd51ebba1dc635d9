package keystile.catalog_test

import data.keystile.catalog

# These tests are over the catalogue itself: a mistake in data.yaml fails here, with what is wrong.

test_catalogue_is_sound if {
	mistakes == set()
}

test_every_scope_has_its_form_and_description if {
	every name, scope in catalog.scopes {
		regex.match(`^[a-z][a-z0-9_.-]{0,63}:[a-z][a-z0-9_.-]{0,63}$`, name)
		is_string(scope.description)
		scope.description != ""
	}
}

test_unknown_route_status_is_403_or_404 if {
	catalog.unknown_route_status in {403, 404}
}

# --- that each mistake is found ---

test_unknown_scope_is_found if {
	"GET /a needs the scope none:such, which is not in scopes" in mistakes
		with catalog.routes as {"GET": {"1": {"/a": {"scopes": ["none:such"]}}}}
}

test_route_without_scopes_is_found if {
	"GET /a needs no scope" in mistakes
		with catalog.routes as {"GET": {"1": {"/a": {"scopes": []}}}}
}

test_unknown_field_is_found if {
	route := {"scopes": ["tickets:read"], "scope": "x"}
	"GET /a has the field scope, which nobody reads" in mistakes
		with catalog.routes as {"GET": {"1": {"/a": route}}}
}

test_wrong_bucket_is_found if {
	"GET /a/b stands under 1 but has 2 segments" in mistakes
		with catalog.routes as {"GET": {"1": {"/a/b": {"scopes": ["tickets:read"]}}}}
}

test_wrong_form_is_found if {
	every template in ["a", "/a/", "//a", "/a b", "/a{id}", "/{id", "/{Id}", "/..", "/a;b", "/%61", "/{a}/{a}"] {
		sprintf("GET %s is not a template", [template]) in mistakes
			with catalog.routes as {"GET": {"1": {template: {"scopes": ["tickets:read"]}}}}
	}
}

test_wrong_method_is_found if {
	every method in ["get", "HEAD", "", "G T"] {
		sprintf("%q is not a method of a route (HEAD is GET)", [method]) in mistakes
			with catalog.routes as {method: {}}
	}
}

test_ambiguous_overlap_is_found if {
	route := {"scopes": ["tickets:read"]}
	"GET /y/{b} and /{a}/x match the same paths" in mistakes
		with catalog.routes as {"GET": {"2": {"/{a}/x": route, "/y/{b}": route}}}
	"GET /{a}/x and /{b}/x match the same paths" in mistakes
		with catalog.routes as {"GET": {"2": {"/{a}/x": route, "/{b}/x": route}}}
}

test_overlap_that_has_a_winner_is_no_mistake if {
	route := {"scopes": ["tickets:read"]}
	routes := {"GET": {"2": {"/{a}/{b}": route, "/{a}/x": route, "/y/x": route}, "1": {"/{a}": route, "/y": route}}}
	mistakes == set() with catalog.routes as routes
}

test_root_is_a_template if {
	mistakes == set() with catalog.routes as {"GET": {"0": {"/": {"scopes": ["tickets:read"]}}}}
}

test_plan_needs_no_number_of_keys if {
	every plan in [
		{"rate": 1, "period_seconds": 60, "burst": 1},
		{"rate": 1, "period_seconds": 60, "burst": 1, "max_keys": 0},
	] {
		mistakes == set() with catalog.plans as {"p": plan}
	}
}

test_wrong_plan_is_found if {
	every plan in [
		{"rate": 0, "period_seconds": 60, "burst": 1},
		{"rate": 1, "period_seconds": 0, "burst": 1},
		{"rate": 1, "period_seconds": 60, "burst": 0},
		{"rate": 1.5, "period_seconds": 60, "burst": 1},
		{"rate": 10001, "period_seconds": 1, "burst": 1},
		{"rate": 1, "period_seconds": 60, "burst": 1, "cost": 1},
		{"rate": 1, "period_seconds": 60},
		{"rate": 1, "period_seconds": 60, "burst": 1, "max_keys": -1},
		{"rate": 1, "period_seconds": 60, "burst": 1, "max_keys": "many"},
		null,
	] {
		found := mistakes with catalog.plans as {"p": plan}
		found == {"the plan p is not {rate, period_seconds, burst, max_keys} of whole numbers within bounds"}
	}
}

# --- what a mistake is ---

mistakes contains sprintf("%q is not a method of a route (HEAD is GET)", [method]) if {
	some method, _ in catalog.routes
	not valid_method(method)
}

mistakes contains message if {
	some route in all_routes
	n := count(segments(route.template))
	format_int(n, 10) != route.size
	message := sprintf("%s %s stands under %s but has %d segments", [route.method, route.template, route.size, n])
}

mistakes contains sprintf("%s %s is not a template", [route.method, route.template]) if {
	some route in all_routes
	not valid_template(route.template)
}

mistakes contains sprintf("%s %s needs no scope", [route.method, route.template]) if {
	some route in all_routes
	count(route.entry.scopes) == 0
}

mistakes contains message if {
	some route in all_routes
	some scope in route.entry.scopes
	not catalog.scopes[scope]
	message := sprintf("%s %s needs the scope %s, which is not in scopes", [route.method, route.template, scope])
}

mistakes contains sprintf("%s %s has the field %s, which nobody reads", [route.method, route.template, field]) if {
	some route in all_routes
	some field, _ in route.entry
	field != "scopes"
}

mistakes contains sprintf("%s %s and %s match the same paths", [route.method, route.template, other.template]) if {
	some route in all_routes
	some other in all_routes
	[other.method, other.size] == [route.method, route.size]
	route.template < other.template
	overlap(route.template, other.template)
	not narrower(route.template, other.template)
	not narrower(other.template, route.template)
}

mistakes contains message if {
	some name, plan in catalog.plans
	not valid_plan(plan)
	message := sprintf("the plan %s is not {rate, period_seconds, burst, max_keys} of whole numbers within bounds", [name])
}

all_routes contains {"method": method, "size": size, "template": template, "entry": entry} if {
	some method, buckets in catalog.routes
	some size, bucket in buckets
	some template, entry in bucket
}

segments(template) := [segment | some segment in split(template, "/"); segment != ""]

variable(segment) if startswith(segment, "{")

valid_method(method) if {
	regex.match(`^[A-Z]+$`, method)
	method != "HEAD"
}

valid_template("/")

# Literals are of RFC 3986's unreserved characters: those that nobody writes encoded.
valid_template(template) if {
	regex.match(`^(/([A-Za-z0-9._~-]+|\{[a-z][a-z0-9_]*\}))+$`, template)
	names := [segment | some segment in segments(template); variable(segment)]
	count(names) == count({name | some name in names})
	every segment in segments(template) {
		not segment in {".", ".."}
	}
}

# No keys at all would be a plan for nobody: 0 means without a bound.
least("max_keys") := 0

least(name) := 1 if name != "max_keys"

# Some path matches both: wherever both are literal, they are the same.
overlap(a, b) if {
	other := segments(b)
	every i, segment in segments(a) {
		fits(segment, other[i])
	}
}

fits(a, b) if a == b

fits(a, _) if variable(a)

fits(_, b) if variable(b)

# Whatever matches the first matches the second, and not the other way round.
narrower(a, b) if {
	literal_where(a, b)
	not literal_where(b, a)
}

literal_where(a, b) if {
	own := segments(a)
	every i, segment in segments(b) {
		covered(own[i], segment)
	}
}

covered(_, b) if variable(b)

covered(a, b) if {
	not variable(a)
	not variable(b)
}

valid_plan(plan) if {
	object.keys(object.remove(plan, ["max_keys"])) == {"rate", "period_seconds", "burst"}
	every name, n in plan {
		is_number(n)
		n == floor(n)
		n >= least(name)
	}
	plan.rate <= 10000 * plan.period_seconds
}
