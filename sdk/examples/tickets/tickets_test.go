package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/examples/service"
	"github.com/supportstation/keystile/sdk/keystiletest"
)

const (
	token = "ksc_for_tests_only"
	all   = "/api/v1/tickets"
)

// rig is the application on a database of its own, with keys of two
// organizations.
type rig struct {
	handler                            http.Handler
	keystile                           *keystiletest.Service
	acme, acmeTest, globex, acmeReader string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	keystileService := keystiletest.New(token)
	server := httptest.NewServer(keystileService)
	t.Cleanup(server.Close)
	client, err := keystile.New(server.URL, token)
	if err != nil {
		t.Fatal(err)
	}
	db, err := service.Open(t.Context(), database(t), schema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	handler, err := newHandler(db, client, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{handler: handler, keystile: keystileService}
	grant := func(organization string, environment keystile.Environment, scopes ...string) string {
		secret := keystiletest.Secret(environment)
		keystileService.Grant(secret, organization, environment, scopes...)
		return secret
	}
	r.acme = grant("org_acme", keystile.Live, "tickets:read", "tickets:write")
	r.acmeTest = grant("org_acme", keystile.Test, "tickets:read", "tickets:write")
	r.globex = grant("org_globex", keystile.Live, "tickets:read", "tickets:write")
	r.acmeReader = grant("org_acme", keystile.Live, "tickets:read")
	return r
}

func (r *rig) call(t *testing.T, key, method, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, req)
	return w
}

// want calls and decodes the answer, which must have the status.
func (r *rig) want(t *testing.T, status int, key, method, path, body string) map[string]any {
	t.Helper()
	resp := r.call(t, key, method, path, body)
	text := resp.Body.Bytes()
	if resp.Code != status {
		t.Fatalf("%s %s: %d %s; want %d", method, path, resp.Code, text, status)
	}
	wanted := "application/json; charset=utf-8"
	if status >= 400 {
		wanted = "application/problem+json"
	}
	if got := resp.Header().Get("Content-Type"); got != wanted {
		t.Errorf("%s %s: Content-Type %q; want %q", method, path, got, wanted)
	}
	var decoded map[string]any
	if err := json.Unmarshal(text, &decoded); err != nil {
		t.Fatalf("%s %s: %s: %v", method, path, text, err)
	}
	return decoded
}

func names(m map[string]any) []string {
	var all []string
	for name := range m {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func items(t *testing.T, page map[string]any) (subjects, ids []string) {
	t.Helper()
	for _, item := range page["items"].([]any) {
		row := item.(map[string]any)
		if diff := cmp.Diff([]string{"created_at", "id", "subject", "status"}, names(row), cmp.Transformer("sorted", func(in []string) []string {
			out := slices.Clone(in)
			slices.Sort(out)
			return out
		})); diff != "" {
			t.Errorf("members of an item (-want +got):\n%s", diff)
		}
		subjects, ids = append(subjects, row["subject"].(string)), append(ids, row["id"].(string))
	}
	return subjects, ids
}

func TestTickets_FirstCallFindsThreeSamplesPerOrganizationAndEnvironment(t *testing.T) {
	r := newRig(t)
	seen := map[string]bool{}
	for _, key := range []string{r.acme, r.acmeTest, r.globex} {
		page := r.want(t, 200, key, "GET", all, "")
		subjects, ids := items(t, page)
		if len(subjects) != 3 || page["next_cursor"] != nil {
			t.Errorf("%v; want three samples and no next page", page)
		}
		for _, id := range ids {
			if seen[id] {
				t.Errorf("ticket %s is shown to two tenants", id)
			}
			seen[id] = true
		}
	}
}

func TestTickets_AnotherTenantsTicketIsNotThere(t *testing.T) {
	r := newRig(t)
	id := r.want(t, 201, r.acme, "POST", all, `{"subject":"Ours","body":"b"}`)["id"].(string)
	missing := r.want(t, 404, r.acme, "GET", all+"/999999", "")
	for _, key := range []string{r.globex, r.acmeTest} {
		for _, tt := range []struct{ method, path, body string }{
			{"GET", "/" + id, ""},
			{"PATCH", "/" + id, `{"status":"closed"}`},
			{"POST", "/" + id + "/messages", `{"body":"b"}`},
		} {
			got := r.want(t, 404, key, tt.method, all+tt.path, tt.body)
			if diff := cmp.Diff(missing, got); diff != "" {
				t.Errorf("another's differs from none (-none +another's):\n%s", diff)
			}
		}
		if subjects, _ := items(t, r.want(t, 200, key, "GET", all, "")); slices.Contains(subjects, "Ours") {
			t.Error("another's ticket is listed")
		}
	}
	if got := r.want(t, 200, r.acme, "GET", all+"/"+id, ""); got["status"] != "open" || len(got["messages"].([]any)) != 0 {
		t.Errorf("it was changed: %v", got)
	}
}

func TestTickets_CreatedChangedAndAnswered(t *testing.T) {
	r := newRig(t)
	created := r.want(t, 201, r.acme, "POST", all, `{"subject":"Hello","body":"First"}`)
	if diff := cmp.Diff([]string{"created_at", "id", "status", "subject"}, names(created)); diff != "" {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	at := all + "/" + created["id"].(string)
	if !strings.HasSuffix(created["created_at"].(string), "Z") {
		t.Errorf("created_at = %v; want UTC", created["created_at"])
	}
	changed := r.want(t, 200, r.acme, "PATCH", at, `{"status":"pending"}`)
	if changed["status"] != "pending" || changed["subject"] != "Hello" {
		t.Errorf("changed to %v", changed)
	}
	if changed = r.want(t, 200, r.acme, "PATCH", at, `{"subject":"Hello again"}`); changed["status"] != "pending" || changed["subject"] != "Hello again" {
		t.Errorf("changed to %v", changed)
	}
	for i := range 2 {
		r.want(t, 201, r.acme, "POST", at+"/messages", fmt.Sprintf(`{"body":"message %d"}`, i))
	}
	whole := r.want(t, 200, r.acme, "GET", at, "")
	messages := whole["messages"].([]any)
	if whole["body"] != "First" || len(messages) != 2 || messages[1].(map[string]any)["body"] != "message 1" {
		t.Errorf("whole = %v", whole)
	}
	if resp := r.call(t, r.acme, "HEAD", at, ""); resp.Code != 200 {
		t.Errorf("HEAD: %d", resp.Code)
	}
}

func TestTickets_PagesShowEachTicketOnceNewestFirst(t *testing.T) {
	r := newRig(t)
	for i := range 4 {
		r.want(t, 201, r.acme, "POST", all, fmt.Sprintf(`{"subject":"t%d","body":"b"}`, i))
	}
	var got []string
	path := all + "?limit=3"
	for range 5 {
		page := r.want(t, 200, r.acme, "GET", path, "")
		subjects, _ := items(t, page)
		got = append(got, subjects...)
		cursor, more := page["next_cursor"].(string)
		if !more {
			break
		}
		// A new one does not shift the pages.
		r.want(t, 201, r.acme, "POST", all, `{"subject":"later","body":"b"}`)
		path = all + "?limit=3&cursor=" + cursor
	}
	if len(got) != 7 || !slices.Equal(got[:4], []string{"t3", "t2", "t1", "t0"}) {
		t.Errorf("walked %v", got)
	}
	r.want(t, 400, r.acme, "GET", all+"?limit=101", "")
	r.want(t, 400, r.acme, "GET", all+"?cursor=x", "")
	r.want(t, 200, r.acme, "GET", all+"?n=7", "")
}

func TestTickets_BadInputIsTheClientsFault(t *testing.T) {
	r := newRig(t)
	for body, want := range map[string]struct {
		status int
		code   string
	}{
		`{"subject":"a"}`:                                              {422, "missing_field"},
		`{"subject":"a","body":"b","status":"x"}`:                      {400, "unknown_field"},
		`{"subject":"` + strings.Repeat("a", 201) + `","body":"b"}`:    {422, "string_too_long"},
		`{"subject":"a","body":"` + strings.Repeat("b", 10_001) + `"}`: {422, "string_too_long"},
	} {
		if got := r.want(t, want.status, r.acme, "POST", all, body); got["code"] != want.code {
			t.Errorf("%.40s: %v; want %s", body, got, want.code)
		}
	}
	if got := r.want(t, 422, r.acme, "PATCH", all+"/1", `{"status":"won"}`); got["code"] != "out_of_range" {
		t.Errorf("a status: %v", got)
	}
	for _, id := range []string{"abc", "0", "-1", "99999999999999999999", "1%00", "%27"} {
		r.want(t, 404, r.acme, "GET", all+"/"+id, "")
	}
	for _, path := range []string{all + "/", all + "/1/messages/1", "/api/v1/other"} {
		if resp := r.call(t, r.acme, "GET", path, ""); resp.Code != 404 && resp.Code != 403 {
			t.Errorf("%s: %d", path, resp.Code)
		}
	}
	r.want(t, 405, r.acme, "DELETE", all+"/1", "")
}

func TestTickets_DenialsAndLimitsArePassedOnAsTheyAre(t *testing.T) {
	r := newRig(t)
	resp := r.call(t, r.acme, "GET", all, "")
	if got := map[string][]string(resp.Header())["X-RateLimit-Remaining"]; !slices.Equal(got, []string{"99"}) {
		t.Errorf("X-RateLimit-Remaining = %v", got)
	}
	if got := r.want(t, 403, r.acmeReader, "POST", all, `{"subject":"a","body":"b"}`); got["code"] != "insufficient_scope" {
		t.Errorf("a reader's post: %v", got)
	}
	if got := r.want(t, 401, "", "GET", all, ""); got["code"] != "key_missing" {
		t.Errorf("no key: %v", got)
	}
	r.keystile.ReplyDecision(keystiletest.Denied(keystile.CodeRateLimited, 429))
	if resp := r.call(t, r.acme, "GET", all, ""); resp.Code != 429 || resp.Header().Get("Retry-After") != "1" {
		t.Errorf("limited: %d, Retry-After %q", resp.Code, resp.Header().Get("Retry-After"))
	}
}
