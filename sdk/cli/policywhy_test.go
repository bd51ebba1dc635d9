package cli_test

import (
	"strings"
	"testing"

	"github.com/supportstation/keystile/sdk/cli"
)

const decisionID = "dec_01jb0000000000000000000000"

// kept is a decision that is kept, with changes.
func kept(changes obj) obj {
	d := obj{
		"id": decisionID, "at": "2026-10-20T11:57:00Z", "allow": false, "code": "insufficient_scope", "status": 403, "title": "Insufficient scope",
		"organization_id": orgID, "key_id": keyID, "secret_id": oldID, "caller_id": callerID, "environment": "live", "method": "POST",
		"route": "/api/v1/tickets", "action": nil, "reasons": []string{"insufficient_scope", "mine"}, "required_scopes": []string{"tickets:write"},
		"missing_scopes": []string{"tickets:write"}, "policy_revision": "sha256:x", "network": "203.0.113.0/24", "degraded": []string{"limiter"}, "browser": true,
	}
	for name, value := range changes {
		d[name] = value
	}
	return d
}

func TestPolicyWhy_TellsInWords(t *testing.T) {
	d := newDesk(t)
	d.reply("GET /v1/decisions/"+decisionID, kept(nil))
	o := d.run(t, "policy", "why", decisionID)
	want := "DENIED insufficient_scope (403)\n" +
		"  why           The key lacked tickets:write.\n" +
		"  also          mine\n" +
		"  at            2026-10-20 11:57:00Z (3 minutes ago)\n" +
		"  request       POST /api/v1/tickets\n" +
		"  required      tickets:write\n" +
		"  missing       tickets:write\n" +
		"  key           " + keyID + ", live\n" +
		"  secret        " + oldID + "\n" +
		"  organization  " + orgID + "\n" +
		"  asked by      " + callerID + "\n" +
		"  client        203.0.113.0/24, a browser\n" +
		"  policy        sha256:x\n" +
		"  degraded      limiter did not answer, and was stood in for\n" +
		"  decision      " + decisionID + "\n"
	if o.code != 0 || o.out != want || !strings.Contains(o.talk, "keystile policy explain POST /api/v1/tickets --key-file FILE") {
		t.Errorf("exit %d, %v\n%s\n%s", o.code, o.err, o.out, o.talk)
	}
}

// Every code has its sentence, and nothing that is not known is made up.
func TestPolicyWhy_EveryCodeHasItsSentence(t *testing.T) {
	for _, code := range []string{
		"allowed", "key_missing", "key_malformed", "key_unknown", "key_revoked", "key_expired", "key_disabled", "organization_suspended",
		"environment_mismatch", "organization_mismatch", "ip_not_allowed", "ambiguous_path", "unknown_route", "browser_use", "policy_denied",
		"rate_limited", "unavailable",
	} {
		d := newDesk(t)
		d.reply("GET /v1/decisions/"+decisionID, kept(obj{
			"code": code, "title": "Title", "allow": code == "allowed", "key_id": nil, "secret_id": nil, "organization_id": nil, "caller_id": nil,
			"environment": nil, "route": nil, "network": nil, "policy_revision": nil, "browser": false, "degraded": []string{},
		}))
		o := d.run(t, "policy", "why", decisionID)
		if o.code != 0 || strings.Contains(o.out, "Title") || !strings.Contains(o.out, "matched no route") || strings.Contains(o.out, "  client ") || o.talk != "" {
			t.Errorf("%s: exit %d, %v\n%s%s", code, o.code, o.err, o.out, o.talk)
		}
	}
}

func TestPolicyWhy_WhatIsNotThereIsToldAsTheServiceSaysIt(t *testing.T) {
	d := newDesk(t)
	d.refuse("GET /v1/decisions/"+decisionID, 404, "not_found")
	o := d.run(t, "policy", "why", decisionID)
	if o.code != cli.ExitUnexpected || !strings.Contains(errorText(o.err), "it is refused") || strings.Contains(errorText(o.err), "list") {
		t.Errorf("exit %d, %v", o.code, o.err)
	}
	for _, id := range []string{"sk_live_secret", "key_01jb0000000000000000000000", "dec_../../v1/keys"} {
		if o := d.run(t, "policy", "why", id); o.code != cli.ExitUsage {
			t.Errorf("%s: exit %d, %v", id, o.code, o.err)
		}
	}
	if n := len(d.requests()); n != 1 {
		t.Errorf("%d requests: what is no id was sent", n)
	}
}
