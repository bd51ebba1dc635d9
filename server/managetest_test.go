package server

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/audit"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/policies"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// world is the management API on a real Postgres with the shipped policy, and what
// two organizations have in it.
type world struct {
	*Server

	t     testing.TB
	store *store.Store
	db    *sqlx.DB
	// log is everything that was logged at debug level.
	log *strings.Builder
	// platform is a platform admin's token.
	platform string
	acme     *tenant
	globex   *tenant
	// caller and callerToken are a caller's.
	caller, callerToken string
	// secrets are all that were ever shown.
	secrets []string
}

// tenant is an organization with one of everything.
type tenant struct {
	id, name string
	// tokens are by role.
	tokens map[authz.Role]string
	// target is an owner who does nothing, key a key with the secret keySecretID.
	target, key, keySecretID, secret string
}

// allowAll is an admin policy without a rule.
type allowAll struct{ *policy.Engine }

func (allowAll) DecideAdmin(context.Context, authz.AdminQuestion) (authz.AdminVerdict, error) {
	return authz.AdminVerdict{Allow: true}, nil
}

// passing takes every policy for a good one.
type passing struct{ *policy.Engine }

func (p passing) Analyze() (string, []authz.PolicyAnalysis, error) { return p.Revision(), nil, nil }

func (p passing) TryFiles(_ context.Context, files map[string]string, _ []byte, _ []string) (*authz.PolicyReport, []byte, error) {
	source, err := policy.SourceOf(files)
	if err != nil {
		return policy.Unreadable(err), nil, nil
	}
	archive, err := source.Archive()
	return &authz.PolicyReport{Revision: source.Revision(), Against: p.BuiltIn(), Complete: true}, archive, err
}

func (p passing) TryArchive(_ context.Context, archive, _ []byte, _ []string, _ bool) (*authz.PolicyReport, error) {
	source, err := policy.ReadArchive(archive)
	if err != nil {
		return nil, err
	}
	return &authz.PolicyReport{Revision: source.Revision(), Against: p.BuiltIn(), Complete: true}, nil
}

func (p passing) Replay(
	ctx context.Context, files map[string]string, _ []byte, traffic authz.Traffic, told func(int64),
) (*authz.PolicyDiff, error) {
	source, err := policy.SourceOf(files)
	if err != nil {
		return nil, &authz.PolicyRefusedError{Report: policy.Unreadable(err)}
	}
	diff := &authz.PolicyDiff{Active: p.Revision(), Candidate: source.Revision()}
	return diff, traffic(ctx, func(r authz.Recorded) error {
		diff.Requests += r.Requests
		told(diff.Requests)
		return nil
	})
}

func (p passing) Shadowable(_ context.Context, files map[string]string, _ []byte) (string, []byte, error) {
	source, err := policy.SourceOf(files)
	if err != nil {
		return "", nil, &authz.PolicyRefusedError{Report: policy.Unreadable(err)}
	}
	archive, err := source.Archive()
	return source.Revision(), archive, err
}

func (p passing) Narrow(_ context.Context, _ *authz.Key, _ []authz.Scope, traffic []authz.RecordedOfKey) (*authz.Narrowing, error) {
	out := &authz.Narrowing{Policy: p.Revision()}
	for _, rows := range traffic {
		out.Requests = append(out.Requests, authz.NarrowedRequests{
			Outcome: authz.NarrowingKeeps, Method: rows.Shape.Method, Path: rows.Shape.Route, Requests: rows.Requests, Passed: rows.Passed,
		})
	}
	return out, nil
}

func (p passing) State() authz.PolicyState {
	return authz.PolicyState{Revision: p.Revision(), Origin: authz.OriginBuiltIn}
}
func (p passing) BuiltIn() string                   { return p.Revision() }
func (passing) Origin() authz.PolicyOrigin          { return authz.OriginDatabase }
func (passing) Loads(context.Context, []byte) error { return nil }

// shippedSnapshot is loaded once: nothing of it changes.
var shippedSnapshot = sync.OnceValues(func() (*policy.Snapshot, error) { return policy.Load(context.Background(), policies.FS) })

func shippedPolicy(t testing.TB) *policy.Engine {
	t.Helper()
	snapshot, err := shippedSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	return policy.NewEngine(snapshot)
}

// worldOption changes what a server is made with.
type worldOption func(*Options, *manage.Options)

func newWorld(t testing.TB, options ...worldOption) *world {
	t.Helper()
	at, peppers := storetest.Migrated(t), storetest.Peppers(t, "p1")
	w := &world{t: t, store: storetest.Open(t, at, peppers), log: &strings.Builder{}}
	var err error
	if w.db, err = sqlx.ConnectContext(t.Context(), "postgres", at); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.db.Close() })
	engine, p := shippedPolicy(t), newParts()
	checker, err := authz.NewChecker(authz.CheckerOptions{Keys: w.store, Policy: engine, Limiter: p, Clock: w.store.Clock(), Decisions: []authz.DecisionRecorder{w.store}})
	if err != nil {
		t.Fatal(err)
	}
	mo := manage.Options{Store: w.store, Policy: engine, Policies: passing{engine}, Auditor: audit.New(engine), Format: testFormat(t), AuditKeys: manage.AuditKeys(authz.Peppers{}, peppers)}
	o := Options{
		Checker: checker, Callers: authz.NewCallers(w.store, w.store.Clock()), Format: testFormat(t),
		AcceptsForeign: w.store.AcceptsForeign, Admins: authz.NewAdmins(w.store, w.store.Clock()),
		Ready:  func() Readiness { return Readiness{Ready: true} },
		Logger: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, change := range options {
		change(&o, &mo)
	}
	if o.Management, err = manage.New(mo); err != nil {
		t.Fatal(err)
	}
	if w.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	first, err := manage.Bootstrap(t.Context(), w.store, mo.AuditKeys, "root", 30)
	if err != nil {
		t.Fatal(err)
	}
	w.platform = first.Secret.Reveal()
	w.acme, w.globex = w.newTenant("acme"), w.newTenant("globex")
	made := w.must(http.StatusCreated, w.platform, "POST", "/v1/callers", `{"name":"tickets","environments":["live","test"]}`)
	w.caller, w.callerToken = made.str("caller", "id"), w.shown(made)
	return w
}

func (w *world) newTenant(name string) *tenant {
	w.t.Helper()
	out := &tenant{name: name, tokens: make(map[authz.Role]string)}
	out.id = w.must(201, w.platform, "POST", "/v1/organizations", `{"name":"`+name+`","plan":"standard"}`).str("organization", "id")
	for _, role := range []authz.Role{authz.RoleOwner, authz.RoleDeveloper, authz.RoleAuditor} {
		_, out.tokens[role] = w.newAdmin(string(role), out.id)
	}
	out.target, _ = w.newAdmin("owner", out.id)
	key := w.newKey(out)
	out.key, out.keySecretID, out.secret = key.str("key", "id"), key.str("key", "secrets", "0", "id"), w.shown(key)
	return out
}

func (w *world) newAdmin(role, organization string) (id, token string) {
	w.t.Helper()
	body := `{"name":"` + role + `","role":"` + role + `","expires_in_days":30`
	if organization != "" {
		body += `,"organization_id":"` + organization + `"`
	}
	made := w.must(201, w.platform, "POST", "/v1/admins", body+"}")
	return made.str("admin", "id"), w.shown(made)
}

func (w *world) newKey(o *tenant) answer {
	w.t.Helper()
	return w.must(201, w.platform, "POST", "/v1/organizations/"+o.id+"/keys",
		`{"name":"ci","environment":"live","scopes":["tickets:read"]}`)
}

// shown returns the secret of an answer, and remembers that it was shown.
func (w *world) shown(a answer) string {
	w.t.Helper()
	secret := a.str("secret")
	if secret == "" {
		w.t.Fatalf("no secret: %s", a.Body)
	}
	w.secrets = append(w.secrets, secret)
	return secret
}

// answer is one response.
type answer struct {
	*httptest.ResponseRecorder

	t testing.TB
}

// ask sends a management request. A body that is "" is none. headers are pairs.
func (w *world) ask(token, method, target, body string, headers ...string) answer {
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, target, reader)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Content-Type" {
			r.Header.Del(headers[i])
		}
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	recorder := httptest.NewRecorder()
	w.Handler().ServeHTTP(recorder, r)
	return answer{recorder, w.t}
}

// must is ask with the status that it must have.
func (w *world) must(status int, token, method, target, body string, headers ...string) answer {
	w.t.Helper()
	a := w.ask(token, method, target, body, headers...)
	if a.Code != status {
		w.t.Fatalf("%s %s: %d, want %d: %s", method, target, a.Code, status, a.Body)
	}
	return a
}

// at walks into the answer's JSON; a number is an index.
func (a answer) at(path ...string) any {
	a.t.Helper()
	var value any
	if err := json.Unmarshal(a.Body.Bytes(), &value); err != nil {
		a.t.Fatalf("not JSON: %v: %s", err, a.Body)
	}
	for _, name := range path {
		switch v := value.(type) {
		case map[string]any:
			got, ok := v[name]
			if !ok {
				a.t.Fatalf("there is no %s in %s", name, a.Body)
			}
			value = got
		case []any:
			i := int(name[0] - '0')
			if i >= len(v) {
				a.t.Fatalf("there is no item %d in %s", i, a.Body)
			}
			value = v[i]
		default:
			a.t.Fatalf("there is no %v in %s", path, a.Body)
		}
	}
	return value
}

// str is at for strings; null is "".
func (a answer) str(path ...string) string {
	a.t.Helper()
	text, _ := a.at(path...).(string)
	return text
}

// code is a problem's.
func (a answer) code() string {
	a.t.Helper()
	return a.str("code")
}

// dump hashes every row of every table, but for what changes by itself.
func (w *world) dump() string {
	w.t.Helper()
	var tables []string
	if err := w.db.Select(&tables, `SELECT quote_ident(relname) FROM pg_class WHERE relnamespace = current_schema()::regnamespace
		AND relkind IN ('r', 'p') AND NOT relispartition AND relname NOT IN ('revision', 'revision_marks', 'replicas') ORDER BY 1`); err != nil {
		w.t.Fatal(err)
	}
	if len(tables) < 8 {
		w.t.Fatalf("only the tables %v were found", tables)
	}
	parts := make([]string, len(tables))
	for i, table := range tables {
		parts[i] = `(SELECT coalesce(md5(string_agg(r::text, '|' ORDER BY r::text)), '') FROM ` + table + ` r)`
	}
	var sum string
	if err := w.db.Get(&sum, "SELECT concat_ws(',', "+strings.Join(parts, ", ")+")"); err != nil {
		w.t.Fatal(err)
	}
	return sum
}

// keptDecision is the id of a denial of a tenant's key that is kept.
func (w *world) keptDecision(o *tenant) string {
	w.t.Helper()
	id := authz.NewDecisionID(time.Now().Add(-time.Minute))
	w.exec(`INSERT INTO decisions (id, at, organization_id, key_id, environment, method, route, action, code, status, reasons, required,
		missing, policy_revision, network, degraded, browser) SELECT $1, now(), organization_id, id, 'live', 'POST', '/api/v1/tickets', '',
		'insufficient_scope', 403, '{insufficient_scope}', '{tickets:write}', '{tickets:write}', 'sha256:x', '203.0.113.0/24', '{limiter}', false
		FROM api_keys WHERE organization_id = $2 LIMIT 1`, id, mustID[authz.OrganizationID](w.t, o.id))
	return id.String()
}

// exec runs a statement, as someone else would.
func (w *world) exec(statement string, args ...any) {
	w.t.Helper()
	result, err := w.db.Exec(statement, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		w.t.Fatalf("%s: %d rows, %v", statement, n, err)
	}
}
