package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// somebody is an admin of a role, in an organization of its own.
func (w *world) somebody(role authz.Role) *authz.Admin {
	a := &authz.Admin{Role: role}
	if role != authz.RolePlatformAdmin {
		a.Organization = authz.NewOrganizationID(w.store.Clock().Now())
	}
	return a
}

func TestManagement_TooManyLongRequestsAreToldToWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range maxLongPlatform {
		if !w.management.long.take(w.somebody(authz.RolePlatformAdmin)) {
			t.Fatal("no slot for the first")
		}
	}
	verify := func(status int) answer { return w.must(status, w.platform, "POST", "/v1/audit-log/verify", "{}") }
	got := verify(503)
	if got.Header().Get("Retry-After") != "1" || got.code() != "unavailable" {
		t.Errorf("%v %s", got.Header(), got.Body)
	}
	own := "/v1/organizations/" + w.acme.id + "/audit-log/verify"
	w.must(200, w.acme.tokens[authz.RoleOwner], "POST", own, "{}") // those of the platform do not stop it
	w.management.long.give(w.somebody(authz.RolePlatformAdmin))
	verify(200)
	verify(200)
}

func TestSlots_OrganizationsLeaveThePlatformItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range maxLongOrganizations {
		if !w.management.long.take(w.somebody(authz.RoleDeveloper)) {
			t.Fatal("no slot for the first organizations")
		}
	}
	if w.management.long.take(w.somebody(authz.RoleOwner)) {
		t.Error("organizations have more than their slots")
	}
	own := "/v1/organizations/" + w.acme.id + "/audit-log/verify"
	w.must(503, w.acme.tokens[authz.RoleAuditor], "POST", own, "{}")
	w.must(200, w.platform, "POST", own, "{}")
	for range maxLongPlatform {
		if !w.management.long.take(w.somebody(authz.RolePlatformAdmin)) {
			t.Error("organizations hold the platform's slots")
		}
	}
}

func TestSlots_OneOrganizationLeavesTheOthersOne(t *testing.T) {
	t.Parallel()
	var long slots
	acme, globex := authz.NewOrganizationID(time.Now()), authz.NewOrganizationID(time.Now())
	dev, auditor := &authz.Admin{Role: authz.RoleDeveloper, Organization: acme}, &authz.Admin{Role: authz.RoleAuditor, Organization: acme}
	if !long.take(dev) || long.take(auditor) || !long.take(&authz.Admin{Role: authz.RoleOwner, Organization: globex}) {
		t.Error("one organization keeps another waiting")
	}
	long.give(dev)
	if !long.take(auditor) {
		t.Error("a slot that was given back is lost")
	}
}

// untouchable is a body that must not be read.
type untouchable struct{ t *testing.T }

func (u untouchable) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

func TestImport_WhoMayNotIsToldBeforeSlotAndBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := func(org string) string {
		return "/v1/organizations/" + org + "/keys/import?format_prefix=old_&format_length=32&format_alphabet=hex"
	}
	ask := func(token, org string) answer {
		r := httptest.NewRequest(http.MethodPost, path(org), untouchable{t})
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", mediaRows)
		recorder := httptest.NewRecorder()
		w.Handler().ServeHTTP(recorder, r)
		return answer{recorder, t}
	}
	for range maxLongOrganizations {
		w.management.long.take(w.somebody(authz.RoleOwner))
	}
	for range maxLongPlatform {
		w.management.long.take(w.somebody(authz.RolePlatformAdmin))
	}
	unknown := authz.NewOrganizationID(w.store.Clock().Now()).String()
	for role, token := range w.acme.tokens {
		for org, want := range map[string]struct {
			status int
			code   string
		}{
			w.acme.id: {403, "role_forbidden"}, w.globex.id: {404, "not_found"}, unknown: {404, "not_found"}, "hunter2": {404, "not_found"},
		} {
			if got := ask(token, org); got.Code != want.status || got.code() != want.code {
				t.Errorf("%s, %s: %d %s", role, org, got.Code, got.Body)
			}
		}
	}
	if got := ask(w.platform, w.acme.id); got.Code != 503 {
		t.Errorf("a platform admin without a slot: %d %s", got.Code, got.Body)
	}
}

// A body that trickles holds its slot for a bounded time: progress renews nothing.
func TestSlots_ATricklingBodyIsGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.management.bodyTime = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l, done := listenLocal(t), make(chan error, 1)
	go func() { done <- w.Serve(ctx, l, nil, nil) }()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = io.WriteString(conn, "POST /v1/audit-log/verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+w.platform+
		"\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	trickling, stop := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for trickling.Err() == nil {
			if _, err := io.WriteString(conn, " "); err != nil {
				return
			}
			<-tick.C
		}
	}()
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("no answer while the body trickles: %v", err)
	}
	body, _ := io.ReadAll(response.Body)
	_ = response.Body.Close()
	stop()
	<-stopped
	if response.StatusCode != 400 || !strings.Contains(string(body), "too slowly") {
		t.Errorf("%d %s", response.StatusCode, body)
	}
	for range maxLongPlatform {
		if !w.management.long.take(w.somebody(authz.RolePlatformAdmin)) {
			t.Error("the slot is still held")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
