package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
)

// freePorts returns two different addresses that were free a moment ago.
func freePorts(t *testing.T) (first, second string) {
	t.Helper()
	open := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	one, other := open(), open() // both are held until both are chosen
	defer func() { _, _ = one.Close(), other.Close() }()
	return one.Addr().String(), other.Addr().String()
}

// demonstration is dev with both example apps.
type demonstration struct {
	info               devInfo
	tickets, customers string
}

func startDemonstration(t *testing.T) *demonstration {
	t.Helper()
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./sdk/examples/tickets", "./sdk/examples/customers")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the example apps: %v: %s", err, out)
	}
	d := &demonstration{}
	d.tickets, d.customers = freePorts(t)
	_, d.info = startDev(t, devDir(t), "--examples", bin, "--tickets-listen", d.tickets, "--customers-listen", d.customers)
	return d
}

// call asks an example app as a customer's integration would; headers are pairs.
func (d *demonstration) call(t *testing.T, method, url, key, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+d.info.Keys[key])
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := testClient().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(raw)
}

// eventually waits until a query of the service's database is true.
func (d *demonstration) eventually(t *testing.T, query string) {
	t.Helper()
	db, err := sqlx.ConnectContext(t.Context(), "postgres", d.info.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(50 * time.Millisecond) {
		var yes bool
		if err := db.GetContext(t.Context(), &yes, query); err != nil {
			t.Fatal(err)
		}
		if yes {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it is not so: %s", query)
		}
	}
}

// The promises of the authentication guide, kept by the example apps.
func TestE2E_TheGuidesPromisesHold(t *testing.T) {
	d := startDemonstration(t)
	tickets := "http://" + d.tickets + "/api/v1/tickets"
	customers := "http://" + d.customers + "/api/v1/customers"

	t.Run("a key is limited to 100 a minute and is told so", func(t *testing.T) {
		for _, want := range []string{"99", "98"} {
			r, body := d.call(t, http.MethodGet, tickets, "acme_live", "")
			var list struct{ Items []map[string]any }
			if err := json.Unmarshal([]byte(body), &list); err != nil || r.StatusCode != 200 || len(list.Items) != 3 {
				t.Fatalf("%d %s %v", r.StatusCode, body, err)
			}
			if limit, left := r.Header.Get("X-RateLimit-Limit"), r.Header.Get("X-RateLimit-Remaining"); limit != "100" || left != want {
				t.Errorf("limit %s, remaining %s, want %s", limit, left, want)
			}
		}
	})
	t.Run("a missing scope is named", func(t *testing.T) {
		r, body := d.call(t, http.MethodPost, tickets, "acme_read", `{"subject":"a","body":"b"}`)
		if r.StatusCode != 403 || !strings.Contains(body, "tickets:write") || r.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%d %s", r.StatusCode, body)
		}
	})
	t.Run("no key is 401", func(t *testing.T) {
		if r, body := d.call(t, http.MethodGet, tickets, "", ""); r.StatusCode != 401 || r.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%d %s", r.StatusCode, body)
		}
	})
	t.Run("organizations and environments are kept apart", func(t *testing.T) {
		r, body := d.call(t, http.MethodPost, tickets, "acme_live", `{"subject":"only acme's live","body":"b"}`)
		var made struct{ ID string }
		if err := json.Unmarshal([]byte(body), &made); err != nil || r.StatusCode != 201 || made.ID == "" {
			t.Fatalf("%d %s %v", r.StatusCode, body, err)
		}
		for key, want := range map[string]int{"acme_live": 200, "acme_read": 200, "acme_test": 404, "globex_live": 404} {
			if r, body := d.call(t, http.MethodGet, tickets+"/"+made.ID, key, ""); r.StatusCode != want {
				t.Errorf("%s: %d, want %d: %s", key, r.StatusCode, want, body)
			}
			if _, body := d.call(t, http.MethodGet, tickets, key, ""); strings.Contains(body, "only acme's live") != (want == 200) {
				t.Errorf("%s lists %s", key, body)
			}
		}
		if r, _ := d.call(t, http.MethodPatch, tickets+"/"+made.ID, "globex_live", `{"status":"closed"}`); r.StatusCode != 404 {
			t.Errorf("another organization changes the ticket: %d", r.StatusCode)
		}
	})
	t.Run("the customers app is decided by its own scopes", func(t *testing.T) {
		if r, body := d.call(t, http.MethodGet, customers, "acme_read", ""); r.StatusCode != 200 {
			t.Errorf("%d %s", r.StatusCode, body)
		}
		if r, body := d.call(t, http.MethodPost, customers, "acme_read", `{"name":"a","email":"a@example.com"}`); r.StatusCode != 403 || !strings.Contains(body, "customers:write") {
			t.Errorf("%d %s", r.StatusCode, body)
		}
	})
	t.Run("a key in a web page leaves evidence", func(t *testing.T) {
		if r, body := d.call(t, http.MethodGet, customers, "globex_live", "", "Sec-Fetch-Site", "cross-site", "Origin", "https://shop.example"); r.StatusCode != 200 {
			t.Fatalf("%d %s", r.StatusCode, body)
		}
		d.eventually(t, `SELECT EXISTS (SELECT FROM usage_hours u JOIN usage_shapes s ON s.id = u.shape_id JOIN api_keys k ON k.id = u.key_id
			JOIN organizations o ON o.id = k.organization_id WHERE s.browser AND s.route = '/api/v1/customers' AND o.name ILIKE 'globex%')`)
		if r, body := d.call(t, http.MethodGet, tickets, "globex_live", "", "Origin", "https://shop.example"); r.StatusCode != 200 {
			t.Fatalf("%d %s", r.StatusCode, body)
		}
		d.eventually(t, `SELECT count(*) FILTER (WHERE s.browser) = 0 AND count(*) > 0 FROM usage_hours u JOIN usage_shapes s ON s.id = u.shape_id
			JOIN api_keys k ON k.id = u.key_id JOIN organizations o ON o.id = k.organization_id
			WHERE s.method = 'GET' AND s.route = '/api/v1/tickets' AND o.name ILIKE 'globex%'`)
	})
	t.Run("of 110 requests 100 pass and the rest is told when to retry", func(t *testing.T) {
		allowed, limited := 0, 0
		for range 110 {
			switch r, _ := d.call(t, http.MethodGet, tickets, "acme_test", ""); {
			case r.StatusCode == 200 && r.Header.Get("Retry-After") == "":
				allowed++
			case r.StatusCode == 429 && r.Header.Get("Retry-After") == "1" && r.Header.Get("X-RateLimit-Remaining") == "0":
				limited++
			default:
				t.Fatalf("%d, Retry-After %q", r.StatusCode, r.Header.Get("Retry-After"))
			}
		}
		// acme_test has asked twice above, and a unit comes back each 600 ms.
		if allowed < 98 || allowed > 103 {
			t.Errorf("%d passed, %d were limited", allowed, limited)
		}
	})
}

// Whatever a client sends to an app, a denied request does not reach the app's rows.
func TestE2E_OddRequestsAreNotServed(t *testing.T) {
	d := startDemonstration(t)
	base := "http://" + d.tickets
	for path, want := range map[string]int{
		"/api/v1/tickets/": 403, "/api/v1//tickets": 403, "/api/v1/tickets/%2e%2e/customers": 403, "/api/v1/tickets%2f1": 403,
		"/api/v1/invoices": 403, "/": 403,
	} {
		if r, body := d.call(t, http.MethodGet, base+path, "acme_live", ""); r.StatusCode != want {
			t.Errorf("%s: %d, want %d: %s", path, r.StatusCode, want, body)
		}
	}
	if r, _ := d.call(t, http.MethodDelete, base+"/api/v1/tickets/1001", "acme_live", ""); r.StatusCode != 403 {
		t.Errorf("a ticket is deleted: %d", r.StatusCode)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/api/v1/tickets", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+d.info.Keys["acme_live"])
	r.Header.Set("X-HTTP-Method-Override", "DELETE")
	response, err := testClient().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != 400 {
		t.Errorf("a method override: %d", response.StatusCode)
	}
}
