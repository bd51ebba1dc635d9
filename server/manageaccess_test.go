package server

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// accessRow is who may do one operation: the status for each role, of organization A
// to which all ids belong, and of another one. Platform admins may do everything,
// and whoever is no admin nothing.
type accessRow struct {
	operation string
	// path and body are valid, with acme's ids; what is dry_run keeps nothing.
	path, body string
	media      string
	// own and foreign are for owner, developer, auditor.
	own, foreign [3]int
	ok           int
	// readOnly operations have no dry_run.
	readOnly bool
}

func accessRows(w *world) []accessRow {
	o, admin := "/v1/organizations/"+w.acme.id, "/v1/admins/"+w.acme.target
	inOrg, alone := o+"/keys/"+w.acme.key, "/v1/keys/"+w.acme.key
	caller := "/v1/callers/" + w.caller
	const rename, grace = `{"name":"renamed"}`, `{"grace_seconds":60}`
	const newKey = `{"name":"new","environment":"live","scopes":["tickets:read"]}`
	const row = `{"name":"old","environment":"live","scopes":["tickets:read"],"sha256":"` +
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + `"}`
	newAdmin := `{"name":"x","role":"auditor","expires_in_days":1,"organization_id":"` + w.acme.id + `"}`
	all, none, gone := [3]int{200, 200, 200}, [3]int{403, 403, 403}, [3]int{404, 404, 404}
	writes := [3]int{200, 200, 403}
	rows := []accessRow{
		{operation: "listOrganizations", path: "/v1/organizations", own: all, foreign: all, readOnly: true},
		{operation: "createOrganization", path: "/v1/organizations", body: `{"name":"new","plan":"standard"}`, own: none, foreign: none, ok: 201},
		{operation: "getOrganization", path: o, own: all, foreign: gone, readOnly: true},
		{operation: "updateOrganization", path: o, body: rename, own: [3]int{200, 403, 403}, foreign: gone},
		{operation: "updateOrganization", path: o, body: `{"plan":"standard"}`, own: none, foreign: gone},
		{operation: "updateOrganization", path: o, body: `{"suspended":true}`, own: none, foreign: gone},
		{operation: "updateOrganization", path: o, body: `{"suspended":false}`, own: none, foreign: gone},
		{operation: "updateOrganization", path: o, body: `{"external_id":"mine"}`, own: none, foreign: gone},
		{operation: "updateOrganization", path: o, body: `{"external_id":null}`, own: none, foreign: gone},
		{operation: "updateOrganization", path: o, body: `{"metadata":{}}`, own: none, foreign: gone},
		{operation: "deleteOrganization", path: o, own: none, foreign: gone},

		{operation: "listKeys", path: o + "/keys", own: all, foreign: gone, readOnly: true},
		{operation: "createKey", path: o + "/keys", body: newKey, own: [3]int{201, 201, 403}, foreign: gone, ok: 201},
		{
			operation: "importKeys", path: o + "/keys/import?format_prefix=old_&format_length=32&format_alphabet=hex",
			body: row, media: "application/x-ndjson", own: none, foreign: gone,
		},
		{operation: "getOrganizationKey", path: inOrg, own: all, foreign: gone, readOnly: true},
		{operation: "updateOrganizationKey", path: inOrg, body: rename, own: writes, foreign: gone},
		{operation: "rotateOrganizationKey", path: inOrg + "/rotate", body: grace, own: writes, foreign: gone},
		{operation: "revokeOrganizationKey", path: inOrg + "/revoke", own: writes, foreign: gone},
		{operation: "revokeOrganizationKeySecret", path: inOrg + "/secrets/" + w.acme.keySecretID + "/revoke", own: writes, foreign: gone},
		{operation: "getKey", path: alone, own: all, foreign: gone, readOnly: true},
		{operation: "updateKey", path: alone, body: rename, own: writes, foreign: gone},
		{operation: "rotateKey", path: alone + "/rotate", body: grace, own: writes, foreign: gone},
		{operation: "revokeKey", path: alone + "/revoke", own: writes, foreign: gone},
		{operation: "revokeKeySecret", path: alone + "/secrets/" + w.acme.keySecretID + "/revoke", own: writes, foreign: gone},

		{operation: "listFindings", path: "/v1/findings", own: none, foreign: none, readOnly: true},
		{operation: "listOrganizationFindings", path: o + "/findings", own: all, foreign: gone, readOnly: true},
		// Nothing is proposed for a new key, and nothing was taken from it.
		{operation: "applyOrganizationKeyFindings", path: inOrg + "/findings/apply", body: `{}`, own: [3]int{409, 409, 403}, foreign: gone, ok: 409},
		{operation: "applyKeyFindings", path: alone + "/findings/apply", body: `{}`, own: [3]int{409, 409, 403}, foreign: gone, ok: 409},
		{operation: "undoOrganizationKeyFindings", path: inOrg + "/findings/undo", own: [3]int{409, 409, 403}, foreign: gone, ok: 409},
		{operation: "undoKeyFindings", path: alone + "/findings/undo", own: [3]int{409, 409, 403}, foreign: gone, ok: 409},

		{operation: "listOrganizationAuditLog", path: o + "/audit-log", own: [3]int{200, 403, 200}, foreign: gone, readOnly: true},
		{operation: "verifyOrganizationAuditLog", path: o + "/audit-log/verify", body: `{}`, own: [3]int{200, 403, 200}, foreign: gone, readOnly: true},
		{operation: "listAuditLog", path: "/v1/audit-log", own: none, foreign: none, readOnly: true},
		{operation: "verifyAuditLog", path: "/v1/audit-log/verify", body: `{}`, own: none, foreign: none, readOnly: true},

		{operation: "listCallers", path: "/v1/callers", own: none, foreign: none, readOnly: true},
		{operation: "createCaller", path: "/v1/callers", body: `{"name":"new","environments":["live"]}`, own: none, foreign: none, ok: 201},
		{operation: "getCaller", path: caller, own: none, foreign: none, readOnly: true},
		{operation: "rotateCaller", path: caller + "/rotate", body: grace, own: none, foreign: none},
		{operation: "deleteCaller", path: caller, own: none, foreign: none},

		{operation: "listAdmins", path: "/v1/admins", own: [3]int{200, 403, 200}, foreign: [3]int{200, 403, 200}, readOnly: true},
		{operation: "createAdmin", path: "/v1/admins", body: newAdmin, own: none, foreign: none, ok: 201},
		{operation: "createAdmin", path: "/v1/admins", body: `{"name":"x","role":"platform_admin","expires_in_days":1}`, own: none, foreign: none, ok: 201},
		{operation: "getAdmin", path: admin, own: [3]int{200, 403, 200}, foreign: gone, readOnly: true},
		{operation: "rotateAdmin", path: admin + "/rotate", body: `{"expires_in_days":1}`, own: none, foreign: gone},
		{operation: "deleteAdmin", path: admin, own: [3]int{200, 403, 403}, foreign: gone},

		{operation: "listScopes", path: "/v1/scopes", own: all, foreign: all, readOnly: true},
		{operation: "getDecision", path: "/v1/decisions/" + w.keptDecision(w.acme), own: all, foreign: gone, readOnly: true},
		{operation: "getOrganizationUsage", path: o + "/usage", own: all, foreign: gone, readOnly: true},
		{operation: "getOrganizationKeyUsage", path: inOrg + "/usage", own: all, foreign: gone, readOnly: true},
		{operation: "getKeyUsage", path: alone + "/usage", own: all, foreign: gone, readOnly: true},
		{operation: "listReplicas", path: "/v1/replicas", own: none, foreign: none, readOnly: true},

		{operation: "getPolicy", path: "/v1/policy", own: none, foreign: none, readOnly: true},
		{operation: "analyzePolicy", path: "/v1/policy/analyze", own: none, foreign: none, readOnly: true},
		{operation: "listPolicyHistory", path: "/v1/policy/history", own: none, foreign: none, readOnly: true},
		{operation: "diffPolicy", path: "/v1/policy/diff", body: `{"files":{"a.rego":"package a"}}`, own: none, foreign: none, readOnly: true},
		{operation: "testPolicy", path: "/v1/policy/test", body: `{"files":{"a.rego":"package a"}}`, own: none, foreign: none, readOnly: true},
		{operation: "activatePolicy", path: "/v1/policy/activate", body: `{"files":{"a.rego":"package a"}}`, own: none, foreign: none},
		{operation: "startPolicyShadow", path: "/v1/policy/shadow", body: `{"files":{"a.rego":"package a"}}`, own: none, foreign: none},
		{operation: "getPolicyShadow", path: "/v1/policy/shadow", own: none, foreign: none, readOnly: true, ok: 404}, // none was started
		{operation: "stopPolicyShadow", path: "/v1/policy/shadow", own: none, foreign: none, ok: 404},
		{operation: "rollBackPolicy", path: "/v1/policy/rollback", body: `{}`, own: none, foreign: none, ok: 409}, // there is nothing to take back
	}
	for i := range rows {
		if rows[i].ok == 0 {
			rows[i].ok = 200
		}
	}
	return rows
}

func TestManagement_EveryRouteIsClosedToWhomItMust(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]worldOption{
		"shipped policy": nil,
		"a policy that allows everything": {func(_ *Options, o *manage.Options) {
			o.Policy = allowAll{shippedPolicy(t)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options...)
			testAccess(t, w)
			testCeilings(t, w)
		})
	}
}

// actor is somebody who asks, with what every operation answers unless its row says.
type actor struct {
	name, token string
	status      func(accessRow) int
}

func actors(t *testing.T, w *world) []actor {
	t.Helper()
	fixed := func(status int) func(accessRow) int { return func(accessRow) int { return status } }
	expiredID, expired := w.newAdmin("platform_admin", "")
	_, staleToken := w.newAdmin("owner", w.acme.id)
	revokedID, revoked := w.newAdmin("platform_admin", "")
	w.must(200, w.platform, "DELETE", "/v1/admins/"+revokedID, "")
	w.exec(`UPDATE admins SET expires_at = now() - interval '1 second' WHERE id = $1`, mustID[authz.AdminID](t, expiredID))
	w.exec(`UPDATE admin_tokens SET expires_at = now() - interval '1 second' WHERE hint = $1`, authz.AdminTokens().Hint(authz.NewSecret(staleToken)))
	list := []actor{
		{"nobody", "", fixed(401)},
		{"a caller", w.callerToken, fixed(401)},
		{"an API key", w.acme.secret, fixed(401)},
		{"an unknown token", authz.AdminTokens().Generate().Reveal(), fixed(401)},
		{"a malformed token", "ksa_x", fixed(401)},
		{"an expired admin", expired, fixed(401)},
		{"an expired token", staleToken, fixed(401)},
		{"a revoked admin", revoked, fixed(401)},
		{"a platform admin", w.platform, func(r accessRow) int { return r.ok }},
	}
	for i, role := range []authz.Role{authz.RoleOwner, authz.RoleDeveloper, authz.RoleAuditor} {
		list = append(list,
			actor{"own " + string(role), w.acme.tokens[role], func(r accessRow) int { return r.own[i] }},
			actor{"foreign " + string(role), w.globex.tokens[role], func(r accessRow) int { return r.foreign[i] }})
	}
	return list
}

func testAccess(t *testing.T, w *world) {
	t.Helper()
	rows := accessRows(w)
	covered := make(map[string]bool)
	methods := make(map[string]string)
	for route, op := range w.management.document.operations {
		methods[op.id], _, _ = strings.Cut(route, " ")
	}
	list := actors(t, w)
	before := w.dump()
	for _, row := range rows {
		covered[row.operation] = true
		method, ok := methods[row.operation]
		if !ok {
			t.Errorf("%s is not in the document", row.operation)
			continue
		}
		for _, a := range list {
			want := a.status(row)
			target := row.path
			if !row.readOnly && want < 300 {
				target += separator(target) + "dry_run=true" // what is allowed must not change the next case
			}
			var headers []string
			if row.media != "" {
				headers = []string{"Content-Type", row.media}
			}
			got := w.ask(a.token, method, target, row.body, headers...)
			if got.Code != want {
				t.Errorf("%s by %s: %d, want %d: %s", row.operation, a.name, got.Code, want, got.Body)
			}
			foreign := strings.HasPrefix(a.name, "foreign") && got.Code == 200
			if foreign && (strings.Contains(got.Body.String(), w.acme.id) || strings.Contains(got.Body.String(), w.acme.target)) {
				t.Errorf("%s tells %s of acme: %s", row.operation, a.name, got.Body)
			}
			if challenge := got.Header()["WWW-Authenticate"]; want == 401 && !slices.Equal(challenge, []string{`Bearer realm="keystile"`}) {
				t.Errorf("%s by %s: no challenge", row.operation, a.name)
			}
			if after := w.dump(); after != before {
				t.Fatalf("%s by %s changed the database", row.operation, a.name)
			}
		}
	}
	var missing []string
	for id := range methods {
		if !covered[id] && id != "check" && id != "explainCheck" { // those are for callers
			missing = append(missing, id)
		}
	}
	sort.Strings(missing)
	if len(missing) > 0 {
		t.Errorf("who may do %v? Add a row each", missing)
	}
}

func separator(target string) string {
	if strings.Contains(target, "?") {
		return "&"
	}
	return "?"
}

// testCeilings is what roles may not do with operations that they have.
func testCeilings(t *testing.T, w *world) {
	t.Helper()
	owner, keys := w.acme.tokens[authz.RoleOwner], "/v1/organizations/"+w.acme.id+"/keys"
	before := w.dump()
	for name, c := range map[string]struct {
		token, method, path, body string
		status                    int
		code                      string
	}{
		"a key above the plan's rate": {
			owner, "POST", keys, `{"name":"n","environment":"live","scopes":["tickets:read"],"rate_limit":{"rate":101,"period_seconds":60,"burst":1}}`,
			403, "exceeds_plan",
		},
		"a key above the plan's burst": {
			owner, "PATCH", "/v1/keys/" + w.acme.key, `{"rate_limit":{"rate":1,"period_seconds":60,"burst":101}}`, 403, "exceeds_plan",
		},
		"another's key through one's own organization": {
			w.globex.tokens[authz.RoleOwner], "POST", "/v1/organizations/" + w.globex.id + "/keys/" + w.acme.key + "/revoke", "", 404, "not_found",
		},
		"a key through the wrong organization, by a platform admin": {
			w.platform, "GET", "/v1/organizations/" + w.globex.id + "/keys/" + w.acme.key, "", 404, "not_found",
		},
		"a secret of another's key": {
			owner, "POST", "/v1/keys/" + w.acme.key + "/secrets/" + w.globex.keySecretID + "/revoke", "", 404, "not_found",
		},
		"admins of another organization": {
			w.globex.tokens[authz.RoleOwner], "DELETE", "/v1/admins/" + w.acme.target, "", 404, "not_found",
		},
	} {
		got := w.ask(c.token, c.method, c.path, c.body)
		if got.Code != c.status || got.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", name, got.Code, got.Body, c.status, c.code)
		}
	}
	if got := w.must(200, w.globex.tokens[authz.RoleOwner], "GET", "/v1/admins?organization_id="+w.acme.id, ""); len(got.at("items").([]any)) != 0 {
		t.Errorf("a filter opens another organization: %s", got.Body)
	}
	if w.dump() != before {
		t.Error("a refused change changed the database")
	}
}

// An id that is none, in whatever way, is answered as one that nobody has. The zero
// id above all: to manage it would mean any organization, or the platform's chain.
func TestManagement_AMalformedIDIsOneThatNobodyHas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	zero := "00000000000000000000000000"
	for _, path := range []string{
		"/v1/organizations/org_" + zero, "/v1/organizations/org_" + zero + "/keys", "/v1/organizations/org_" + zero + "/keys/" + w.acme.key,
		"/v1/organizations/org_" + zero + "/audit-log", "/v1/organizations/org_" + zero + "/findings", "/v1/organizations/" + w.globex.id + "/findings?key=" + w.acme.key,
		"/v1/findings?key=hunter2", "/v1/findings?key=key_" + zero, "/v1/organizations/hunter2", "/v1/organizations/" + w.acme.key,
		"/v1/organizations/" + strings.ToUpper(w.acme.id), "/v1/organizations/" + w.acme.id + "%00", "/v1/organizations/%6frg_" + w.acme.id[4:],
		"/v1/organizations/" + w.acme.id + "/keys/hunter2", "/v1/keys/hunter2", "/v1/keys/key_" + zero, "/v1/callers/hunter2",
		"/v1/callers/caller_" + zero, "/v1/admins/hunter2", "/v1/admins/admin_" + zero,
		"/v1/decisions/hunter2", "/v1/decisions/dec_" + zero, "/v1/decisions/" + w.acme.key,
	} {
		got := w.ask(w.platform, "GET", path, "")
		if got.Code != http.StatusNotFound || got.code() != "not_found" || strings.Contains(got.Body.String(), "hunter2") {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
	for name, got := range map[string]answer{
		"a list of the zero organization": w.ask(w.platform, "GET", "/v1/admins?organization_id=org_"+zero, ""),
		"an admin of the zero organization": w.ask(w.platform, "POST", "/v1/admins",
			`{"name":"x","role":"owner","expires_in_days":1,"organization_id":"org_`+zero+`"}`),
	} {
		if got.Code != 422 {
			t.Errorf("%s: %d %s", name, got.Code, got.Body)
		}
	}
}

func mustID[ID any, P interface {
	*ID
	UnmarshalText(text []byte) error
}](t testing.TB, text string) ID {
	t.Helper()
	var id ID
	if err := P(&id).UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestManagement_OneCredentialOrNoneIsBelieved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, lines := range map[string][]string{
		"two lines": {"Bearer " + w.platform, "Bearer " + w.platform},
		"a list":    {"Bearer " + w.platform + ", Bearer " + w.platform},
		"Basic":     {"Basic " + w.platform},
		"bare":      {w.platform},
	} {
		headers := []string{}
		for _, line := range lines {
			headers = append(headers, "Authorization", line)
		}
		if got := w.ask("", "GET", "/v1/scopes", "", headers...); got.Code != 401 || got.code() != "admin_unauthorized" {
			t.Errorf("%s: %d %s", name, got.Code, got.Body)
		}
	}
	body := &countingReader{left: 1 << 20}
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "/v1/organizations", body)
	r.Header.Set("Content-Type", "application/json")
	recorder := httptest.NewRecorder()
	w.Handler().ServeHTTP(recorder, r)
	if recorder.Code != 401 || body.read != 0 {
		t.Errorf("%d after %d bytes of a stranger's body", recorder.Code, body.read)
	}
}

func TestManagement_PathsHaveOneSpelling(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, path := range []string{
		"/v1/organizations/", "/v1/Organizations", "/v1//organizations", "/v1/%6frganizations",
		"/v1/keys", "/v1/keys/" + w.acme.key + "/", "/v1/organizations/" + w.acme.id + "/keys/",
	} {
		if got := w.ask(w.platform, "GET", path, ""); got.Code != 404 || got.code() != "not_found" {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
	for path, allow := range map[string]string{
		"/v1/organizations": "GET, POST", "/v1/organizations/" + w.acme.id: "DELETE, GET, PATCH",
		"/v1/keys/" + w.acme.key + "/rotate": "POST", "/v1/check": "POST",
	} {
		got := w.ask(w.platform, "PUT", path, "")
		methods := strings.Split(got.Header().Get("Allow"), ", ")
		sort.Strings(methods)
		if got.Code != 405 || strings.Join(methods, ", ") != allow {
			t.Errorf("%s: %d, Allow %v, want %s", path, got.Code, methods, allow)
		}
	}
	for _, h := range []http.Header{
		w.ask(w.platform, "GET", "/v1/scopes", "").Header(), w.ask("", "GET", "/v1/scopes", "").Header(),
	} {
		if len(h["X-Keystile-Decision"]) != 0 || h.Get("Cache-Control") != "no-store" || h.Get("X-Request-Id") == "" {
			t.Errorf("headers: %v", h)
		}
	}
}
