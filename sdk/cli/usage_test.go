package cli_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/sdk/cli"
)

// usageOf is the usage of a key that rotates, with changes.
func usageOf(changes obj) obj {
	series, at := []obj{}, time.Date(2026, 10, 19, 12, 0, 0, 0, time.UTC)
	for i := range 25 {
		n := i * i
		if i == 20 {
			n = 0
		}
		series = append(series, obj{"at": at.Add(time.Duration(i) * time.Hour), "requests": n, "allowed": n - n/10, "denied": n / 10, "limited": n / 20})
	}
	none := obj{"rows": 0, "requests": 0}
	used := obj{"first_at": "2026-10-01T00:00:00Z", "at": "2026-10-20T11:57:00Z", "caller_id": callerID, "caller_name": "tickets", "network": "203.0.113.0/24"}
	u := obj{
		"organization_id": orgID, "key": obj{"id": keyID, "name": "ci\x1b[31m", "environment": "live", "hint": "sk_live_4fGh…9aBc"},
		"at": "2026-10-20T12:00:00Z", "since": "2026-10-19T12:00:00Z", "until": "2026-10-20T13:00:00Z", "step": "hour",
		"counted_since": "2026-10-19T15:00:00Z", "covers": obj{"since": "2026-10-19T15:00:00Z", "until": "2026-10-20T12:00:00Z", "days": 0.9},
		"totals": obj{"requests": 4500, "allowed": 4057, "denied": 443, "limited": 211}, "series": series,
		"denied":   []obj{{"code": "insufficient_scope", "title": "Insufficient scope", "requests": 232}, {"code": "rate_limited", "title": "Rate limited", "requests": 211}},
		"routes":   obj{"items": []obj{{"method": "GET", "route": "/api/v1/tickets/{id}", "action": nil, "requests": 4000, "allowed": 3789, "denied": 211, "limited": 211}, {"method": nil, "route": nil, "action": "tickets:read", "requests": 268, "allowed": 268, "denied": 0, "limited": 0}}, "rest": obj{"rows": 3, "requests": 232}},
		"callers":  obj{"items": []obj{{"id": callerID, "name": "tickets", "requests": 4500, "allowed": 4057, "denied": 443, "limited": 211}}, "rest": none},
		"networks": obj{"items": []obj{{"network": "203.0.113.0/24", "requests": 4000, "allowed": 3557, "denied": 443}, {"network": nil, "requests": 499, "allowed": 499, "denied": 0}}, "rest": obj{"rows": 0, "requests": 1}},
		"keys":     nil, "unused_scopes": []string{"tickets:write"},
		"rotation": obj{"recent_since": "2026-10-20T11:00:00Z", "secrets": []obj{
			{"id": newID, "hint": "sk_live_4fGh…9aBc", "created_at": "2026-10-20T00:00:00Z", "expires_at": nil, "requests": 500, "share": 0.11, "recent_requests": 88, "recent_share": 0.88, "last_use": used},
			{"id": oldID, "hint": "sk_live_1111…2222", "created_at": "2026-09-01T00:00:00Z", "expires_at": "2026-10-21T12:00:00Z", "requests": 4000, "share": 0.89, "recent_requests": 12, "recent_share": 0.12, "last_use": used},
		}},
		"scopes": []obj{
			{"scope": "tickets:read", "granted": true, "requests": 4057, "last_use": used},
			{"scope": "tickets:write", "granted": true, "requests": 0, "last_use": nil},
			{"scope": "customers:read", "granted": false, "requests": 0, "last_use": obj{"first_at": nil, "at": "2026-09-20T12:00:00Z", "caller_id": nil, "caller_name": nil, "network": nil}},
		},
	}
	for name, value := range changes {
		u[name] = value
	}
	return u
}

const usagePageText = `ci` + "\uFFFD" + `[31m  key_01jb0000000000000000000000, live
  secret        sk_live_4fGh…9aBc
  window        2026-10-19 12:00Z to 2026-10-20 13:00Z, by the hour
  covers        21 hours; counted since 2026-10-19 15:00Z, and of what was before nothing is known
  requests      4,500
  allowed       4,057 (90 %)
  denied        443 (9.8 %)
  rate limited  211 (4.7 %)
`

func TestUsage_IsToldOnAPage(t *testing.T) {
	d := newDesk(t)
	d.reply("GET /v1/keys/"+keyID+"/usage", usageOf(nil))
	o := d.run(t, "usage", keyID, "--since", "24h")
	if o.code != 0 || !strings.HasPrefix(o.out, usagePageText) || o.talk != "" {
		t.Errorf("exit %d, %v\n%s\n%s", o.code, o.err, o.out, o.talk)
	}
	for _, line := range []string{
		"  requests            ::::::::::::------======++++****##..%%@@@@    up to 529 in 1 hour",
		"  denied              ..::::::::::------======++++****##..%%@@@@    up to 52 in 1 hour",
		"                Oct 19 12:00                          Oct 20 13:00",
		"insufficient_scope       232  52 %  ##########",
		"GET /api/v1/tickets/{id}     4,000   89 %  ##################       211",
		"action tickets:read            268    6 %  #",
		"all others (3 more)            232  5.2 %  #",
		"tickets     4,500  100 %  ####################     443",
		"not told               499    11 %  ##",
		"all others               1  <0.1 %  #",
		"ROTATION, since 2026-10-20 11:00Z",
		"  new secret    sk_live_4fGh…9aBc  88 % (11 % of the window), last used 3 minutes ago by tickets from 203.0.113.0/24",
		"  old secret    sk_live_1111…2222  12 % (89 % of the window), last used 3 minutes ago by tickets from 203.0.113.0/24; ends in 24 hours",
		"tickets:read               4,057  3 minutes ago by tickets from 203.0.113.0/24",
		"tickets:write                  0  never used                                    not used in 21 hours",
		"customers:read                 0  30 days ago                                   not granted any more",
	} {
		if !strings.Contains(o.out, "\n"+line+"\n") {
			t.Errorf("there is no line %q in\n%s", line, o.out)
		}
	}
	query, _ := url.ParseQuery(d.last(t).query)
	if query.Get("since") != "2026-10-19T12:00:00Z" || query.Get("top") != "10" || query.Has("step") || query.Has("until") {
		t.Errorf("asked %v", query)
	}
}

func TestUsage_OfAnOrganizationHasItsKeys(t *testing.T) {
	d := newDesk(t)
	d.reply("GET /v1/organizations", obj{"items": []obj{{"id": orgID, "name": "Acme", "plan": "standard", "status": "active", "metadata": obj{}, "version": 1, "created_at": "2026-01-01T00:00:00Z"}}, "next_cursor": nil})
	d.reply("GET /v1/organizations/"+orgID+"/usage", usageOf(obj{
		"key": nil, "rotation": nil, "scopes": []obj{}, "unused_scopes": []string{},
		"keys": obj{"items": []obj{{"id": keyID, "name": "ci", "environment": "live", "requests": 4500, "allowed": 4057, "denied": 443, "limited": 211}}, "rest": obj{"rows": 0, "requests": 0}},
	}))
	o := d.run(t, "usage", "--step", "day")
	if o.code != 0 || !strings.HasPrefix(o.out, "All keys of "+orgID+"\n") || !strings.Contains(o.out, "\nci  "+keyID+", live     4,500  100 %") ||
		strings.Contains(o.out, "ROTATION") || strings.Contains(o.out, "SCOPE") || !strings.Contains(d.last(t).query, "step=day") {
		t.Errorf("exit %d, %v\n%s\n%s", o.code, o.err, o.out, d.last(t).query)
	}
}

// What is not known is not told as nothing; an old secret that nobody uses may go.
func TestUsage_SaysWhatIsNotKnownAndWhatToDo(t *testing.T) {
	d := newDesk(t)
	d.reply("GET /v1/organizations/"+orgID+"/keys/"+keyID+"/usage", usageOf(obj{
		"counted_since": nil, "covers": nil, "totals": obj{"requests": 0, "allowed": 0, "denied": 0, "limited": 0}, "rotation": nil,
		"scopes": []obj{{"scope": "tickets:write", "granted": true, "requests": 0, "last_use": nil}},
	}))
	o := d.run(t, "usage", keyID, "--org", orgID)
	if o.code != 0 || !strings.Contains(o.out, "  covers        nothing; nothing was counted yet\n") || strings.Contains(o.out, "not used in") ||
		!strings.Contains(o.talk, "nothing was counted in that time") || strings.Contains(o.out, "ROUTE") {
		t.Errorf("exit %d, %v\n%s\n%s", o.code, o.err, o.out, o.talk)
	}
	secrets := usageOf(nil)["rotation"].(obj)["secrets"].([]obj)
	secrets[1]["recent_requests"], secrets[1]["recent_share"] = 0, 0.0
	for lastUse, mayGo := range map[string]bool{
		"2026-10-20T10:00:00Z": false, // hours ago: a nightly job may be what uses it
		"2026-10-19T10:00:00Z": true,
	} {
		d := newDesk(t)
		secrets[1]["last_use"].(obj)["at"] = lastUse
		d.reply("GET /v1/keys/"+keyID+"/usage", usageOf(obj{"rotation": obj{"recent_since": "2026-10-20T11:00:00Z", "secrets": secrets}}))
		o := d.run(t, "usage", keyID)
		if strings.Contains(o.talk, "keystile keys secrets revoke "+keyID+" "+oldID) != mayGo {
			t.Errorf("an old secret last used at %s may go: not %v\n%s", lastUse, mayGo, o.talk)
		}
	}
}

func TestUsage_WhatIsWrongIsNotSent(t *testing.T) {
	for name, args := range map[string][]string{
		"a secret":      {"usage", "sk_live_secret"},
		"no id of orgs": {"usage", keyID, "--org", "acme"},
		"a wrong time":  {"usage", keyID, "--since", "yesterday"},
		"two keys":      {"usage", keyID, keyID},
	} {
		d := newDesk(t)
		if o := d.run(t, args...); o.code != cli.ExitUsage || len(d.requests()) > 0 {
			t.Errorf("%s: exit %d, %v, %d requests", name, o.code, o.err, len(d.requests()))
		}
	}
	d := newDesk(t)
	d.refuse("GET /v1/keys/"+keyID+"/usage", 422, "out_of_range")
	if o := d.run(t, "usage", keyID, "--since", "90d", "--step", "hour"); o.code != cli.ExitUsage {
		t.Errorf("exit %d, %v", o.code, o.err)
	}
}
