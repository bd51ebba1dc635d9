package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/cli"
)

const (
	adminToken = "ksa_for_tests_only"
	newSecret  = "sk_test_for_tests_only"

	orgID    = "org_01jb0000000000000000000000"
	keyID    = "key_01jb0000000000000000000000"
	oldID    = "sec_01jb0000000000000000000000"
	newID    = "sec_01jb0000000000000000000001"
	callerID = "caller_01jb0000000000000000000000"
	adminID  = "admin_01jb0000000000000000000000"
)

var testNow = time.Date(2026, 10, 20, 12, 0, 0, 0, time.UTC)

type obj = map[string]any

// asked is one request that the stand-in got.
type asked struct {
	method, path, query string
	header              http.Header
	body                string
}

// desk stands in for the management API: each route answers what the test says.
type desk struct {
	url string
	mux *http.ServeMux
	env map[string]string

	mu    sync.Mutex
	asked []asked
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{mux: http.NewServeMux()}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		d.mu.Lock()
		d.asked = append(d.asked, asked{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Clone(), string(body)})
		d.mu.Unlock()
		w.Header().Set("X-Request-Id", "req_1")
		if r.Header.Get("Authorization") != "Bearer "+adminToken {
			problem(w, 401, "admin_unauthorized", "send an admin's token")
			return
		}
		d.mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	d.url = server.URL
	d.env = map[string]string{"KEYSTILE_URL": server.URL, "KEYSTILE_ADMIN_TOKEN": adminToken}
	return d
}

func problem(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(obj{"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail, "request_id": "req_1"})
}

func answer(w http.ResponseWriter, document any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(document)
}

// reply has a route, such as "GET /v1/scopes", answer a document.
func (d *desk) reply(route string, document any) {
	d.mux.HandleFunc(route, func(w http.ResponseWriter, _ *http.Request) { answer(w, document) })
}

func (d *desk) refuse(route string, status int, code string) {
	d.mux.HandleFunc(route, func(w http.ResponseWriter, _ *http.Request) { problem(w, status, code, "it is refused") })
}

// requests are those that were asked so far.
func (d *desk) requests() []asked {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]asked(nil), d.asked...)
}

func (d *desk) last(t *testing.T) asked {
	t.Helper()
	all := d.requests()
	if len(all) == 0 {
		t.Fatal("nothing was asked")
	}
	return all[len(all)-1]
}

// outcome is what a command line did.
type outcome struct {
	out, talk string
	code      int
	err       error
}

// run executes a command line as the binary's root does. No secret may be in what
// it says, nor an admin's token anywhere.
func (d *desk) run(t *testing.T, args ...string) outcome {
	t.Helper()
	return d.runWith(t, "", args...)
}

func (d *desk) runWith(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	config := cli.Config{
		LookupEnv: func(name string) (string, bool) {
			value, ok := d.env[name]
			return value, ok
		},
		Now: func() time.Time { return testNow },
	}
	root := &cobra.Command{Use: "keystile", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(
		cli.NewOrgsCommand(config), cli.NewKeysCommand(config), cli.NewCallersCommand(config), cli.NewAdminsCommand(config),
		cli.NewAuditLogCommand(config), cli.NewScopesCommand(config), cli.NewReplicasCommand(config), cli.NewPolicyCommand(config),
		cli.NewUsageCommand(config), cli.NewAuditCommand(config),
	)
	var out, talk bytes.Buffer
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&talk)
	root.SetArgs(args)
	err := root.ExecuteContext(context.WithoutCancel(t.Context()))
	o := outcome{out: out.String(), talk: talk.String(), code: cli.ExitOK, err: err}
	if err != nil {
		var exit *cli.ExitError
		if !errors.As(err, &exit) {
			t.Fatalf("%v is no ExitError", err)
		}
		o.code, o.err = exit.Code, exit.Err
	}
	for _, text := range []string{o.talk, errorText(err)} {
		if strings.Contains(text, newSecret) || strings.Contains(text, adminToken) {
			t.Errorf("a secret is told: %s", text)
		}
		if strings.ContainsAny(text, "\x1b\t") {
			t.Errorf("control characters in %q", text)
		}
	}
	if strings.Contains(o.out, adminToken) || strings.Count(o.out, newSecret) > 1 {
		t.Errorf("a secret is printed where it must not be:\n%s", o.out)
	}
	return o
}

// with returns a document with some fields changed.
func with(document, changes obj) obj {
	changed := obj{}
	for name, value := range document {
		changed[name] = value
	}
	for name, value := range changes {
		changed[name] = value
	}
	return changed
}

func orgDocument() obj {
	return obj{
		"id": orgID, "external_id": nil, "name": "Acme", "plan": "standard", "status": "active", "suspended": false,
		"metadata": obj{}, "created_at": "2026-10-01T12:00:00Z", "version": 1,
	}
}

func keyDocument() obj {
	return obj{
		"id": keyID, "organization_id": orgID, "external_id": nil, "name": "ci", "environment": "test",
		"scopes": []string{"tickets:read"}, "status": "active", "hint": "sk_test_4fGh…9aBc",
		"secrets":    []obj{{"id": newID, "hint": "sk_test_4fGh…9aBc", "created_at": "2026-10-20T12:00:00Z", "expires_at": nil, "last_used_at": nil}},
		"created_at": "2026-10-18T12:00:00Z", "created_by": adminID, "expires_at": "2026-11-01T12:00:00Z", "last_used_at": nil,
		"allowed_cidrs": []string{}, "rate_limit": nil, "metadata": obj{"team": "billing"}, "version": 3,
	}
}

func keyChange(changes obj) obj {
	return with(obj{"key": keyDocument(), "secret": nil, "secret_already_shown": false, "effective": nil, "dry_run": false}, changes)
}

func receipt(replicas, acknowledged int, silent ...obj) obj {
	if silent == nil {
		silent = []obj{}
	}
	return obj{"replicas": replicas, "acknowledged": acknowledged, "within_ms": 41, "silent": silent}
}

func callerDocument() obj {
	return obj{
		"id": callerID, "name": "tickets", "environments": []string{"live", "test"}, "permissions": []string{"check"}, "status": "active",
		"tokens":     []obj{{"id": newID, "hint": "ksc_4fGh…9aBc", "created_at": "2026-10-20T12:00:00Z", "expires_at": nil}},
		"created_at": "2026-10-20T12:00:00Z", "created_by": adminID,
	}
}

func adminDocument() obj {
	return obj{
		"id": adminID, "organization_id": orgID, "name": "ada", "role": "owner", "status": "active",
		"tokens":     []obj{{"id": newID, "hint": "ksa_4fGh…9aBc", "created_at": "2026-10-20T12:00:00Z", "expires_at": "2026-11-19T12:00:00Z"}},
		"created_at": "2026-10-20T12:00:00Z", "created_by": adminID, "expires_at": "2026-11-19T12:00:00Z",
	}
}

func page(items ...any) obj { return obj{"items": items, "next_cursor": nil} }
