package server

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/supportstation/keystile/authz"
)

// check has a caller's key be asked for, so many times.
func (w *world) check(o *tenant, n int, method, path, address string) {
	w.t.Helper()
	if err := w.store.Synchronize(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	for range n {
		body, _ := json.Marshal(map[string]any{"key": o.secret, "method": method, "path": path, "client_ip": address})
		w.must(200, w.callerToken, "POST", "/v1/check", string(body))
	}
}

// settle waits until all that was counted is written.
func (w *world) settle() {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(10 * time.Millisecond) {
		h := w.store.Health()
		if h.CountedUsage == h.StoredUsage {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("usage is not written: %+v", h)
		}
	}
}

// What was asked of a key, and of its organization, is told to the last request, and to
// nobody else: also while the key rotates.
func TestUsage_IsToldToTheLastRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	auditor := w.acme.tokens[authz.RoleAuditor]
	w.must(200, w.platform, "PATCH", "/v1/keys/"+w.acme.key, `{"scopes":["customers:read","tickets:read","tickets:write"]}`)
	w.check(w.acme, 5, "GET", "/api/v1/tickets/42", "203.0.113.7")
	w.check(w.acme, 2, "GET", "/api/v1/customers", "198.51.100.7")
	w.check(w.acme, 1, "GET", "/api/v1/nowhere", "")
	w.check(w.globex, 4, "GET", "/api/v1/tickets", "203.0.113.7")
	rotated := w.must(200, w.acme.tokens[authz.RoleOwner], "POST", "/v1/keys/"+w.acme.key+"/rotate", `{"grace_seconds":3600}`)
	w.acme.secret = rotated.str("secret")
	w.check(w.acme, 2, "GET", "/api/v1/tickets", "203.0.113.9")
	w.settle()

	var got map[string]any
	reader := auditor
	read := func(path string) map[string]any {
		t.Helper()
		got = map[string]any{}
		if err := json.Unmarshal(w.must(200, reader, "GET", path, "").Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	// Callers are the platform's: an organization is not told how they are called.
	for step, caller := range map[string]string{"hour": "", "day": "tickets"} {
		if reader = auditor; caller != "" {
			reader = w.platform
		}
		read("/v1/organizations/" + w.acme.id + "/keys/" + w.acme.key + "/usage?step=" + step)
		want := map[string]any{
			"totals":  map[string]any{"requests": 10.0, "allowed": 9.0, "denied": 1.0, "limited": 0.0},
			"denied":  []any{map[string]any{"code": "unknown_route", "title": "Unknown route", "requests": 1.0}},
			"routes":  []string{"GET /api/v1/tickets/{id} 5", "GET /api/v1/customers 2", "GET /api/v1/tickets 2", "GET /api/v1/nowhere 1"},
			"callers": []string{caller + " 10"}, "networks": []string{"203.0.113.0/24 7", "198.51.100.0/24 2", " 1"},
			"scopes": []string{"customers:read 2", "tickets:read 7", "tickets:write 0"}, "unused": []any{"tickets:write"}, "rotation": []string{"2 0.2", "8 0.8"},
			"rest": []any{map[string]any{"rows": 0.0, "requests": 0.0}, map[string]any{"rows": 0.0, "requests": 0.0}, map[string]any{"rows": 0.0, "requests": 0.0}},
		}
		told := map[string]any{"totals": got["totals"], "denied": got["denied"]}
		told["unused"] = got["unused_scopes"]
		told["routes"] = rowsOf(got["routes"], "method", "route", "requests")
		told["callers"] = rowsOf(got["callers"], "name", "requests")
		told["networks"] = rowsOf(got["networks"], "network", "requests")
		told["scopes"] = rowsOf(got["scopes"], "scope", "requests")
		rotation, _ := got["rotation"].(map[string]any)
		told["rotation"] = rowsOf(rotation["secrets"], "requests", "share")
		told["rest"] = []any{}
		for _, list := range []string{"routes", "callers", "networks"} {
			l, _ := got[list].(map[string]any)
			told["rest"] = append(told["rest"].([]any), l["rest"])
		}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Errorf("by the %s: %s", step, diff)
		}
	}
	if read("/v1/keys/" + w.acme.key + "/usage?top=1"); fmt.Sprint(rowsOf(got["routes"], "route", "requests")) != "[/api/v1/tickets/{id} 5]" {
		t.Errorf("%v", got["routes"])
	}
	if rest := got["routes"].(map[string]any)["rest"]; fmt.Sprint(rest) != "map[requests:5 rows:3]" {
		t.Errorf("the rest: %v", rest)
	}
	read("/v1/organizations/" + w.acme.id + "/usage")
	if keys := rowsOf(got["keys"], "id", "requests"); fmt.Sprint(keys) != fmt.Sprintf("[%s 10]", w.acme.key) || got["key"] != nil || got["rotation"] != nil {
		t.Errorf("%v, %v", keys, got["key"])
	}
	series, _ := got["series"].([]any)
	if len(series) < 168 || got["covers"] == nil || got["counted_since"] == nil {
		t.Errorf("%d steps, covers %v, counted since %v", len(series), got["covers"], got["counted_since"])
	}
}

func rowsOf(list any, fields ...string) []string {
	if object, ok := list.(map[string]any); ok {
		list = object["items"]
	}
	items, _ := list.([]any)
	rows := []string{}
	for _, item := range items {
		row := ""
		for i, field := range fields {
			if v := item.(map[string]any)[field]; v != nil {
				row += fmt.Sprint(v)
			}
			if i < len(fields)-1 {
				row += " "
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// A window is told in full steps, and one that is too large, or none, is refused.
func TestUsage_WindowsAreWholeAndBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := "/v1/organizations/" + w.acme.id + "/usage"
	for query, want := range map[string]string{
		"since=2026-03-01T10:20:00Z&until=2026-03-01T12:20:00Z":           "2026-03-01T10:00:00Z 2026-03-01T13:00:00Z hour 3",
		"since=2026-03-01T10:20:00Z&until=2026-03-05T12:20:00Z&step=day":  "2026-03-01T00:00:00Z 2026-03-06T00:00:00Z day 5",
		"since=2026-03-01T01:00:00%2B05:00&until=2026-03-20T00:00:00Z":    "2026-02-28T00:00:00Z 2026-03-20T00:00:00Z day 20",
		"since=2026-03-01T00:00:00Z&until=2026-04-01T00:00:00Z&step=hour": "2026-03-01T00:00:00Z 2026-04-01T00:00:00Z hour 744",
	} {
		var got struct {
			Since, Until, Step string
			Series             []any
			Covers             any
		}
		if err := json.Unmarshal(w.must(200, w.platform, "GET", path+"?"+query, "").Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if told := fmt.Sprint(got.Since, " ", got.Until, " ", got.Step, " ", len(got.Series)); told != want || got.Covers != nil {
			t.Errorf("%s: %s, covers %v; want %s", query, told, got.Covers, want)
		}
	}
	for _, query := range []string{
		"since=2026-03-02T00:00:00Z&until=2026-03-01T00:00:00Z", "since=2026-03-01T00:00:00Z&until=2026-03-01T00:00:00Z",
		"since=2026-03-01T00:00:00Z&until=2026-04-01T01:00:00Z&step=hour", "since=2020-03-01T00:00:00Z", "step=week", "top=0", "top=101",
	} {
		w.must(422, w.platform, "GET", path+"?"+query, "")
	}
}
