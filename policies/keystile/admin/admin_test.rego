package keystile.admin_test

import data.keystile.admin

asking(role, action) := {
	"actor": {"type": "admin", "id": "admin_1", "role": role, "organization": "org_1"},
	"action": action,
	"organization": {"id": "org_1"},
	"current": null,
	"wanted": null,
}

allowed := {"allow": true, "reasons": []}

codes(decision) := [reason.code | some reason in decision.reasons]

test_platform_admin_may_everything if {
	every action in ["callers.create", "keys.import", "policy.activate", "organizations.create"] {
		admin.decision == allowed with input as asking("platform_admin", action)
	}
}

test_platform_admin_may_where_there_is_no_organization if {
	question := object.union(asking("platform_admin", "callers.list"), {"organization": null})
	admin.decision.allow with input as question
}

test_owner_manages_the_own_organization if {
	every action in ["admins.create", "keys.create", "organizations.update", "findings.apply", "audit_log.export"] {
		admin.decision == allowed with input as asking("owner", action)
	}
	every action in ["organizations.create", "organizations.delete", "callers.create", "policy.activate"] {
		codes(admin.decision) == ["not_permitted"] with input as asking("owner", action)
	}
}

test_developer_manages_keys if {
	every action in ["keys.create", "keys.rotate", "keys.revoke", "keys.update", "findings.apply", "usage.get"] {
		admin.decision == allowed with input as asking("developer", action)
	}
	every action in ["keys.import", "admins.create", "organizations.update", "audit_log.list"] {
		codes(admin.decision) == ["not_permitted"] with input as asking("developer", action)
	}
}

test_auditor_reads if {
	every action in ["keys.list", "keys.get", "audit_log.list", "audit_log.export", "findings.export", "usage.export"] {
		admin.decision == allowed with input as asking("auditor", action)
	}
}

test_auditor_changes_nothing if {
	every _, verbs in admin.granted.auditor {
		every verb in verbs {
			verb in {"list", "get", "export", "verify"}
		}
	}
	codes(admin.decision) == ["not_permitted"] with input as asking("auditor", "keys.create")
}

test_another_organization_is_denied if {
	codes(admin.decision) == ["not_permitted"]
		with input as object.union(asking("owner", "keys.list"), {"organization": {"id": "org_2"}})
	codes(admin.decision) == ["not_permitted"]
		with input as object.union(asking("owner", "keys.list"), {"organization": null})
}

test_no_organization_is_not_the_own if {
	question := asking("owner", "keys.list")
	codes(admin.decision) == ["not_permitted"]
		with input as object.union(question, {"actor": {"organization": ""}, "organization": {"id": ""}})
}

test_unknown_roles_and_actions_are_denied if {
	codes(admin.decision) == ["not_permitted"] with input as asking("", "keys.list")
	codes(admin.decision) == ["not_permitted"] with input as asking("root", "keys.list")
	codes(admin.decision) == ["not_permitted"] with input as asking("owner", "keys")
	codes(admin.decision) == ["not_permitted"] with input as asking("owner", "keys.create.all")
	codes(admin.decision) == ["not_permitted"] with input as asking("owner", "")
}

test_nothing_asked_is_denied if {
	codes(admin.decision) == ["not_permitted"] with input as {}
}

# --- key_lifetime ---

creating(key) := object.union(
	asking("developer", "keys.create"),
	{"wanted": object.union({"environment": "live"}, key)},
)

test_lifetime_is_unbounded_while_the_bound_is_0 if {
	admin.decision.allow == true
		with input as creating({"expires_at": null})
		with admin.max_days as 0
}

test_live_key_within_the_bound_is_allowed if {
	admin.decision.allow == true
		with input as creating({"created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-04-01T00:00:00Z"})
		with admin.max_days as 90
}

test_live_key_beyond_the_bound_is_denied if {
	admin.decision == {
		"allow": false,
		"reasons": [{"code": "key_lifetime", "message": "A live key must expire within 90 days of its newest secret."}],
	}
		with input as creating({"created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-04-01T00:00:01Z"})
		with admin.max_days as 90
}

test_live_key_without_end_or_start_is_denied if {
	admin.decision.allow == false
		with input as creating({"created_at": "2026-01-01T00:00:00Z", "expires_at": null})
		with admin.max_days as 90
	admin.decision.allow == false
		with input as creating({"created_at": "2026-01-01T00:00:00Z"})
		with admin.max_days as 90
	admin.decision.allow == false
		with input as creating({"expires_at": "2026-01-01T00:00:00Z"})
		with admin.max_days as 90
}

test_update_is_measured_from_the_creation if {
	question := {
		"actor": {"type": "admin", "id": "admin_1", "role": "owner", "organization": "org_1"},
		"action": "keys.update",
		"organization": {"id": "org_1"},
		"current": {"environment": "live", "created_at": "2026-01-01T00:00:00Z", "expires_at": null},
		"wanted": {"expires_at": "2026-06-01T00:00:00Z"},
	}
	admin.decision.allow == false
		with input as question
		with admin.max_days as 90
	admin.decision.allow == true
		with input as object.union(question, {"wanted": {"expires_at": "2026-02-01T00:00:00Z"}})
		with admin.max_days as 90
}

test_rotation_counts_from_the_new_secret if {
	question := object.union(asking("developer", "keys.rotate"), {
		"current": {"environment": "live", "created_at": "2026-01-01T00:00:00Z"},
		"wanted": {"renewed_at": "2026-06-01T00:00:00Z", "expires_at": "2026-08-30T00:00:00Z"},
	})
	admin.decision.allow == true
		with input as question
		with admin.max_days as 90
	admin.decision.allow == false
		with input as object.union(question, {"wanted": {"expires_at": "2026-08-30T00:00:01Z"}})
		with admin.max_days as 90
}

test_old_key_can_be_disabled_though_it_lives_too_long if {
	question := object.union(asking("developer", "keys.update"), {
		"current": {"environment": "live", "expires_at": null, "disabled": false},
		"wanted": {"environment": "live", "expires_at": null, "disabled": true},
	})
	admin.decision.allow == true
		with input as question
		with admin.max_days as 90
}

# --- oneself ---

about(role, action, id) := object.union(asking(role, action), {"current": {"id": id}})

test_everybody_renews_the_own_token if {
	every role in ["owner", "developer", "auditor"] {
		admin.decision == allowed with input as about(role, "admins.rotate", "admin_1")
		admin.decision == allowed with input as about(role, "admins.get", "admin_1")
	}
}

test_oneself_is_no_other_and_not_more if {
	codes(admin.decision) == ["not_permitted"] with input as about("developer", "admins.rotate", "admin_2")
	codes(admin.decision) == ["not_permitted"] with input as about("developer", "admins.delete", "admin_1")
	codes(admin.decision) == ["not_permitted"]
		with input as object.union(about("developer", "admins.rotate", ""), {"actor": {"id": ""}})
	codes(admin.decision) == ["not_permitted"]
		with input as object.union(about("developer", "admins.rotate", "admin_1"), {"organization": {"id": "org_2"}})
}

test_test_keys_and_other_actions_are_not_bounded if {
	admin.decision.allow == true
		with input as creating({"environment": "test", "expires_at": null})
		with admin.max_days as 90
	admin.decision.allow == true
		with input as asking("developer", "keys.list")
		with admin.max_days as 90
}
