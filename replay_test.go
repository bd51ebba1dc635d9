package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// replayEdits is how many policies are edited at random, replayRequests of how much traffic.
const (
	replayEdits    = 20
	replayRequests = 400
)

// admitting is a limiter that admits everything: what policy says about limits is compared,
// not what is left of them.
type admitting struct{}

func (admitting) Charge(_ context.Context, _ *authz.Key, l authz.Limit, _ int) (authz.Charge, error) {
	return authz.Charge{Allowed: true, Mode: authz.LimiterExact, ResetAfter: l.Period / time.Duration(l.Rate.Rate)}, nil
}

// What policy diff predicts of an edited policy is what happens when it is in force and the
// same traffic comes again.
func TestReplay_WhatIsPredictedHappens(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 11))
	builtIn, err := builtInPolicy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := builtIn.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	engine := policy.NewEngine(snapshot)
	s := storetest.Open(t, storetest.Migrated(t), storetest.Peppers(t, "p1"))
	options := authz.CheckerOptions{Keys: s, Policy: engine, Limiter: admitting{}, Clock: s.Clock()}
	quiet, err := authz.NewChecker(options)
	if err != nil {
		t.Fatal(err)
	}
	options.Decisions = []authz.DecisionRecorder{s}
	counting, err := authz.NewChecker(options)
	if err != nil {
		t.Fatal(err)
	}
	traffic := randomTraffic(t, s, random)
	before := decideAll(t, counting, traffic)
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(50 * time.Millisecond) {
		if h := s.Health(); h.StoredUsage == h.CountedUsage && h.CountedUsage == replayRequests {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("usage is not stored: %+v", h)
		}
	}
	gate, err := newGate()
	if err != nil {
		t.Fatal(err)
	}
	kinds, exact := map[authz.PolicyDifferenceKind]int64{}, 0
	edits := replayEdits
	if raceEnabled {
		edits /= 5 // all of them without the detector, in make test-policies
	}
	for n := range edits {
		candidate, edit := editedPolicy(t, builtIn, random)
		diff, err := gate.Replay(t.Context(), policy.Replay{
			Active: builtIn, Candidate: candidate, BuiltIn: builtIn,
			Traffic: func(ctx context.Context, each func(authz.Recorded) error) error {
				return s.Read(ctx, func(ctx context.Context, r manage.Reader) error {
					everyone := manage.TenantOf(&authz.Admin{Role: authz.RolePlatformAdmin})
					return r.Recorded(ctx, everyone, manage.RecordedFilter{Since: r.Now().Add(-2 * time.Hour), Until: r.Now().Add(time.Hour)}, each)
				})
			},
		})
		if err != nil {
			t.Fatalf("%s: %v", edit, err)
		}
		loaded, err := candidate.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		engine.Swap(loaded)
		after := decideAll(t, quiet, traffic)
		engine.Swap(snapshot)
		want := map[string]int64{}
		for i := range traffic {
			if kind := before[i].Difference(after[i]); kind != "" {
				want[string(kind)+" "+traffic[i].key.String()]++
				kinds[kind]++
			}
		}
		got := map[string]int64{}
		for _, d := range diff.Differences {
			got[string(d.Kind)+" "+d.Key.String()] += d.Requests
		}
		if diff.Exact() {
			exact++
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("edit %d (%s): predicted %v, happened %v", n, edit, got, want)
			}
		}
		t.Logf("%s: exact %v, %v", edit, diff.Exact(), diff.Totals)
	}
	t.Logf("%d of %d edits are exact; what happened: %v", exact, edits, kinds)
	if exact < edits*3/4 {
		t.Errorf("only %d of %d predictions are exact", exact, edits)
	}
	if !raceEnabled && len(kinds) < 4 {
		t.Errorf("only %v happened", kinds)
	}
}

// request is one of the traffic: the key that is presented, and the rest of the question.
type request struct {
	key  authz.KeyID
	hash authz.SecretHash
	ask  authz.Check
}

func decideAll(t *testing.T, checker *authz.Checker, traffic []request) []authz.PolicyAnswer {
	t.Helper()
	out := make([]authz.PolicyAnswer, len(traffic))
	for i, r := range traffic {
		q := r.ask
		q.Presented = authz.PresentHash(r.hash)
		d, err := checker.Check(t.Context(), &q)
		if err != nil {
			t.Fatal(err)
		}
		a := authz.PolicyAnswer{Allow: d.Allow, Code: d.Code, Status: d.Status, Missing: d.Missing}
		for _, reason := range d.Reasons {
			a.Reasons = append(a.Reasons, reason.Code)
		}
		if d.RateLimit != nil {
			a.Limits = []authz.Limit{d.RateLimit.Limit}
		}
		out[i] = a
	}
	return out
}

// randomTraffic is of keys of four organizations, through two callers.
func randomTraffic(t *testing.T, s *store.Store, random *rand.Rand) []request {
	t.Helper()
	one := func(all ...string) string { return all[random.IntN(len(all))] }
	format := mustKeyFormat(t, "sk")
	type held struct {
		key    *authz.Key
		secret authz.Secret
	}
	var keys []held
	var callers []*authz.Caller
	_, err := s.Change(t.Context(), func(ctx context.Context, c *store.Change) error {
		for _, name := range []string{"tickets", "customers"} {
			caller := &authz.Caller{
				ID: authz.NewCallerID(c.Now()), Name: name, Environments: []authz.Environment{authz.EnvironmentLive, authz.EnvironmentTest}[:1+len(callers)],
				Permissions: []authz.Permission{authz.PermissionCheck},
			}
			callers = append(callers, caller)
			if err := c.AddCaller(ctx, caller, authz.CallerTokens().Generate()); err != nil {
				return err
			}
		}
		for n := range 4 {
			o := &authz.Organization{ID: authz.NewOrganizationID(c.Now()), ExternalID: fmt.Sprintf("ext-%d", n), Name: fmt.Sprintf("Org %d", n), Plan: "standard"}
			if err := c.AddOrganization(ctx, o); err != nil {
				return err
			}
			for m := range 5 {
				k := &authz.Key{ID: authz.NewKeyID(c.Now()), Organization: o, Name: fmt.Sprintf("key %d", m), Environment: authz.Environment(one("live", "live", "test"))}
				for _, scope := range []authz.Scope{"customers:read", "customers:write", "tickets:read", "tickets:write"} {
					if random.IntN(3) > 0 {
						k.Scopes = append(k.Scopes, scope)
					}
				}
				if random.IntN(4) == 0 {
					k.AllowedCIDRs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")}
				}
				if random.IntN(4) == 0 {
					k.RateLimit = &authz.Rate{Rate: 50, Period: time.Minute, Burst: 50}
				}
				if random.IntN(3) == 0 {
					k.Metadata = `{"team":"billing"}`
				}
				secret := format.Generate(k.Environment)
				keys = append(keys, held{k, secret})
				if err := c.AddKey(ctx, k, "test"); err != nil {
					return err
				}
				if err := c.AddKeySecret(ctx, k.ID, &authz.KeySecret{ID: authz.NewSecretID(c.Now()), Hint: format.Hint(secret)}, secret); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		err = s.Synchronize(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	var traffic []request
	for range replayRequests {
		of := keys[random.IntN(len(keys))]
		r := request{key: of.key.ID, hash: of.secret.Hash(), ask: authz.Check{Caller: callers[random.IntN(len(callers))], Cost: 1}}
		id := fmt.Sprint(random.IntN(1000))
		if random.IntN(8) > 0 {
			r.ask.SetRequest(one("GET", "GET", "POST", "PATCH", "DELETE"), one("/api/v1/tickets", "/api/v1/tickets/"+id, "/api/v1/tickets/"+id+"/messages",
				"/api/v1/customers", "/api/v1/customers/"+id, "/api/v1/reports", "/api/v1/reports/"+id, "/api//tickets", "/wp-login.php"))
		} else {
			r.ask.Action = one("tickets:read", "tickets:write")
		}
		r.ask.Browser = random.IntN(5) == 0
		r.ask.Environment = authz.Environment(one("", "", "live"))
		r.ask.ClientIP = authz.NormalizeAddr(one("", "203.0.113.3", "203.0.113.99", "2001:db8::5"))
		r.ask.Resource = authz.Resource{Type: one("", "ticket"), ID: one("", id), Organization: one("", "", of.key.Organization.ID.String(), of.key.Organization.ExternalID, "else")}
		traffic = append(traffic, r)
	}
	return traffic
}

// editedPolicy is the built-in policy after some of the edits that security teams make.
func editedPolicy(t *testing.T, builtIn *policy.Source, random *rand.Rand) (*policy.Source, string) {
	t.Helper()
	const catalog = "keystile/catalog/data.yaml"
	edits := []struct{ name, from, to string }{
		{"a route needs another scope", "/api/v1/tickets/{id}/messages: {scopes: [tickets:write]}", "/api/v1/tickets/{id}/messages: {scopes: [tickets:read]}"},
		{"a route needs two scopes", "      /api/v1/customers: {scopes: [customers:read]}\n    \"4\"", "      /api/v1/customers: {scopes: [customers:read, tickets:read]}\n    \"4\""},
		{"a route is new", "      /api/v1/customers: {scopes: [customers:read]}\n    \"4\"", "      /api/v1/customers: {scopes: [customers:read]}\n      /api/v1/reports: {scopes: [tickets:read]}\n    \"4\""},
		{"a route with a variable is new", "    \"4\":\n      /api/v1/tickets/{id}: {scopes: [tickets:read]}", "    \"4\":\n      /api/v1/reports/{id}: {scopes: [customers:read]}\n      /api/v1/tickets/{id}: {scopes: [tickets:read]}"},
		{"a route is gone", "  DELETE:\n    \"4\":\n      /api/v1/customers/{id}: {scopes: [customers:write]}\n", ""},
		{"a plan is larger", "standard: {rate: 100, period_seconds: 60, burst: 100", "standard: {rate: 200, period_seconds: 60, burst: 200"},
		{"unknown routes are not found", "unknown_route_status: 403", "unknown_route_status: 404"},
		{"a scope is new", "scopes:\n", "scopes:\n  reports:read: {description: Read reports}\n"},
	}
	conditions := []string{
		`input.request.browser`, `input.key.environment == "test"`, `not "tickets:read" in input.key.scopes`,
		`object.get(input.key.metadata, "team", "") == "billing"`, `input.request.method == "DELETE"`, `input.caller.name == "customers"`,
		`input.key.rate_limit != null`, `input.request.environment == "live"`, `input.organization.external_id == "ext-1"`,
	}
	files, names := builtIn.Files(), []string{}
	for range 1 + random.IntN(3) {
		e := edits[random.IntN(len(edits))]
		changed := strings.Replace(files[catalog], e.from, e.to, 1)
		if changed == files[catalog] {
			continue // another one has been there
		}
		files[catalog], names = changed, append(names, e.name)
	}
	if random.IntN(2) == 0 || len(names) == 0 {
		condition := conditions[random.IntN(len(conditions))]
		files["keystile/rules/edited/edited.rego"] = "# METADATA\n# title: Edited\npackage keystile.rules.edited\n\n" +
			"deny contains {\"code\": \"edited\", \"message\": \"Edited.\"} if " + condition + "\n"
		names = append(names, "denied: "+condition)
	}
	source, err := policy.SourceOf(files)
	if err != nil {
		t.Fatal(err)
	}
	return source, fmt.Sprint(names)
}
