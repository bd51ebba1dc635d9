package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/examples/service"
	"github.com/supportstation/keystile/sdk/keystiletest"
)

const path = "/api/v1/customers"

// rig is the application on a database of its own.
type rig struct {
	handler  http.Handler
	keystile *keystiletest.Service
}

func newRig(t *testing.T) *rig {
	t.Helper()
	const token = "ksc_for_tests_only"
	stand := keystiletest.New(token)
	server := httptest.NewServer(stand)
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
	return &rig{handler, stand}
}

func (r *rig) grant(organization string, environment keystile.Environment) string {
	secret := keystiletest.Secret(environment)
	r.keystile.Grant(secret, organization, environment, "customers:read", "customers:write")
	return secret
}

// call sends a request and decodes the answer, if it has a body, into answer.
func (r *rig) call(t *testing.T, key, method, target, body string, answer any) int {
	t.Helper()
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, req)
	text, err := io.ReadAll(w.Body)
	if err == nil && len(text) > 0 && answer != nil {
		err = json.Unmarshal(text, answer)
	}
	if err != nil {
		t.Fatalf("%s %s: %s: %v", method, target, text, err)
	}
	return w.Code
}

func TestCustomers_CreatedChangedAndDeleted(t *testing.T) {
	r := newRig(t)
	acme := r.grant("org_acme", keystile.Live)
	var created, changed, read customer
	if status := r.call(t, acme, "POST", path, `{"name":"Alan","email":"alan@example.com"}`, &created); status != 201 {
		t.Fatalf("POST: %d", status)
	}
	var raw map[string]any
	at := path + "/" + idOf(created)
	r.call(t, acme, "GET", at, "", &raw)
	if diff := cmp.Diff(map[string]any{"id": idOf(created), "name": "Alan", "email": "alan@example.com"}, raw); diff != "" {
		t.Errorf("a customer (-want +got):\n%s", diff)
	}
	if status := r.call(t, acme, "PATCH", at, `{"email":"turing@example.com"}`, &changed); status != 200 {
		t.Fatalf("PATCH: %d", status)
	}
	want := customer{ID: created.ID, Name: "Alan", Email: "turing@example.com"}
	if diff := cmp.Diff(want, changed); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
	if status := r.call(t, acme, "DELETE", at, "", nil); status != 204 {
		t.Errorf("DELETE: %d", status)
	}
	if status := r.call(t, acme, "GET", at, "", &read); status != 404 {
		t.Errorf("GET of a deleted one: %d", status)
	}
	if status := r.call(t, acme, "DELETE", at, "", nil); status != 404 {
		t.Errorf("DELETE of a deleted one: %d", status)
	}
}

func idOf(c customer) string {
	encoded, err := json.Marshal(c)
	if err != nil {
		return ""
	}
	var row struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(encoded, &row) != nil {
		return ""
	}
	return row.ID
}

func TestCustomers_AnotherTenantsCustomerIsNotThere(t *testing.T) {
	r := newRig(t)
	acme := r.grant("org_acme", keystile.Live)
	var created customer
	r.call(t, acme, "POST", path, `{"name":"Ours","email":"ours@example.com"}`, &created)
	at := path + "/" + idOf(created)
	for _, other := range []string{r.grant("org_globex", keystile.Live), r.grant("org_acme", keystile.Test)} {
		for method, body := range map[string]string{"GET": "", "PATCH": `{"name":"Theirs"}`, "DELETE": ""} {
			if status := r.call(t, other, method, at, body, nil); status != 404 {
				t.Errorf("%s: %d; want 404", method, status)
			}
		}
		var page service.Page[customer]
		if status := r.call(t, other, "GET", path, "", &page); status != 200 || len(page.Items) != 3 {
			t.Errorf("list: %d %v; want the three samples of its own", status, page)
		}
	}
	var read customer
	r.call(t, acme, "GET", at, "", &read)
	if diff := cmp.Diff(created, read); diff != "" {
		t.Errorf("it was changed (-before +after):\n%s", diff)
	}
}

func TestCustomers_PagesShowEachCustomerOnceNewestFirst(t *testing.T) {
	r := newRig(t)
	acme := r.grant("org_acme", keystile.Live)
	var first, second service.Page[customer]
	r.call(t, acme, "GET", path+"?limit=2", "", &first)
	if len(first.Items) != 2 || first.NextCursor == nil {
		t.Fatalf("first page %+v", first)
	}
	r.call(t, acme, "GET", path+"?limit=2&cursor="+*first.NextCursor, "", &second)
	got := slices.Concat(first.Items, second.Items)
	want := []customer{
		{Name: "Katherine Johnson", Email: "katherine@example.com"},
		{Name: "Grace Hopper", Email: "grace@example.com"},
		{Name: "Ada Lovelace", Email: "ada@example.com"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(customer{}, "ID")); diff != "" || second.NextCursor != nil {
		t.Errorf("walked (-want +got):\n%s", diff)
	}
}

func TestCustomers_BadInputIsTheClientsFault(t *testing.T) {
	r := newRig(t)
	acme := r.grant("org_acme", keystile.Live)
	for body, want := range map[string]string{
		`{"name":"a"}`:                                                        "missing_field",
		`{"name":"a","email":"nobody"}`:                                       "out_of_range",
		`{"name":"a","email":"A <a@example.com>"}`:                            "out_of_range",
		`{"name":"a","email":"a@b.c\r\nBcc: d@e.f"}`:                          "out_of_range",
		`{"name":"` + strings.Repeat("a", 201) + `","email":"a@example.com"}`: "string_too_long",
		`{"name":"a","email":"a@example.com","id":"1"}`:                       "unknown_field",
	} {
		var p service.Problem
		if status := r.call(t, acme, "POST", path, body, &p); status < 400 || status > 499 || p.Code != want {
			t.Errorf("%.60s: %d %+v; want %s", body, status, p, want)
		}
	}
	for _, method := range []string{"PUT", "POST"} {
		var p service.Problem
		if status := r.call(t, acme, method, path+"/1", "{}", &p); status != 405 {
			t.Errorf("%s: %d; want 405", method, status)
		}
	}
}
