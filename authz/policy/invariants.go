package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxInvariantRequests bounds how many of the catalogue's routes and scopes are asked.
	maxInvariantRequests = 2_000
	// invariantBudget is how long each answer may take while a policy is tried: longer
	// than in service, because many are tried on a busy machine.
	invariantBudget = 250 * time.Millisecond
	// maxInvariantProblems is after how many no more are looked for.
	maxInvariantProblems = 5
)

// invariants asks a policy what no policy may get wrong, whatever its tests say: a
// revoked, suspended, fenced or scope-less key is never allowed, every allow has a limit
// and needs nothing that the key lacks, every answer is a decision. The questions are made
// of the catalogue's own routes, scopes and plans. It returns how many were asked, and
// whether an answer took so long that the policy's tests need not be tried.
func invariants(ctx context.Context, s *Snapshot, data map[string]any) (asked int, problems []authz.PolicyProblem, endless bool) {
	x := &examiner{s: s.in(newLane()), names: newNames(), routes: routesOf(data)}
	x.examine(ctx)
	return x.asked, x.problems, x.endless
}

// examiner asks one policy.
type examiner struct {
	s      *Snapshot
	names  *names
	routes []exampleRequest
	// setting is that of the questions that are asked just now.
	setting  setting
	asked    int
	problems []authz.PolicyProblem
	// endless tells that an answer took longer than its budget: nothing more is asked.
	endless bool
}

// exampleRequest is a request of the catalogue: a route with its variables filled in, or
// an action alone.
type exampleRequest struct{ method, path, action string }

func (r exampleRequest) String() string {
	if r.action != "" {
		return "action " + r.action
	}
	return r.method + " " + r.path
}

// routesOf reads the routes of data.keystile.catalog: method, number of segments, template.
// A policy that keeps them elsewhere has none here, and is asked by its scopes.
func routesOf(data map[string]any) []exampleRequest {
	var found []exampleRequest
	eachTemplate(data, func(method, template string) {
		found = append(found, exampleRequest{method: method, path: filled(template)})
	})
	slices.SortFunc(found, func(a, b exampleRequest) int { return strings.Compare(a.method+" "+a.path, b.method+" "+b.path) })
	return found
}

// filled is a path that a template matches.
func filled(template string) string {
	segments := strings.Split(template, "/")
	for i, s := range segments {
		if strings.HasPrefix(s, "{") {
			segments[i] = "invariant-1"
		}
	}
	return strings.Join(segments, "/")
}

// setting is what else may be true of a request: a guarantee holds in all of them.
type setting struct {
	name string
	of   func(*authz.Key, *authz.Check)
}

func settings() []setting {
	return []setting{
		{"", func(*authz.Key, *authz.Check) {}},
		{" while Postgres does not answer", func(_ *authz.Key, c *authz.Check) { c.Stale = true }},
		{" of a resource", func(_ *authz.Key, c *authz.Check) { c.Resource.Type, c.Resource.ID = "ticket", "invariant-1" }},
		{" from an IPv6 address", func(_ *authz.Key, c *authz.Check) { c.ClientIP = netip.MustParseAddr("2001:db8::7") }},
		{" with a key that has metadata", func(k *authz.Key, _ *authz.Check) { k.Metadata = `{"invariant":true}` }},
		{" from a browser", func(_ *authz.Key, c *authz.Check) { c.Browser = true }},
		{" with a restricted key", func(k *authz.Key, _ *authz.Check) { k.Restricted = true }},
		{" without a client's address", func(_ *authz.Key, c *authz.Check) { c.ClientIP = netip.Addr{} }},
	}
}

func (x *examiner) examine(ctx context.Context) {
	requests := x.requests()
	plans, all := plansOf(x.s.catalogue), settings()
	for i, r := range requests {
		for j, environment := range []authz.Environment{authz.EnvironmentLive, authz.EnvironmentTest} {
			if x.done(ctx) {
				return
			}
			// Every plan and every setting with some requests, every request with some; what is
			// denied in its setting is asked about without, too.
			plan := plans[i%len(plans)]
			if x.setting = all[(i+j)%len(all)]; !x.request(ctx, r, environment, plan) && x.setting.name != "" && !x.done(ctx) {
				x.setting = all[0]
				x.request(ctx, r, environment, plan)
			}
		}
	}
	for i := range max(len(plans), len(all)) {
		if x.done(ctx) {
			return
		}
		x.setting = all[i%len(all)]
		x.request(ctx, requests[0], authz.EnvironmentLive, plans[i%len(plans)])
	}
	x.setting = all[0]
	x.incomplete(ctx, requests[0])
	x.states(ctx, requests)
	x.admin(ctx)
	x.findings(ctx)
}

// requests are a route that there is not, the scopes as actions, and the routes; of more than are
// asked, routes at even distances.
func (x *examiner) requests() []exampleRequest {
	routes := x.routes
	others := []exampleRequest{{method: "GET", path: "/"}}
	for _, s := range x.s.catalogue.Scopes {
		others = append(others, exampleRequest{action: string(s.Scope)})
	}
	others = others[:min(len(others), maxInvariantRequests/2)]
	if places := maxInvariantRequests - len(others); len(routes) > places {
		spread := make([]exampleRequest, places)
		for i := range spread {
			spread[i] = routes[i*len(routes)/places]
		}
		routes = spread
	}
	return slices.Concat(routes, others)
}

// done tells that enough is known.
func (x *examiner) done(ctx context.Context) bool {
	return x.endless || len(x.problems) >= maxInvariantProblems || ctx.Err() != nil
}

// invariantTime is when the examples were made: nothing here reads the clock.
func invariantTime() time.Time { return time.Unix(1_800_000_000, 0) }

// key is a key that has every scope of the catalogue.
func (x *examiner) key(environment authz.Environment, plan string) *authz.Key {
	k := &authz.Key{
		ID: authz.NewKeyID(invariantTime()), Environment: environment,
		Organization: &authz.Organization{ID: authz.NewOrganizationID(invariantTime()), ExternalID: "invariant", Name: "Invariant", Plan: plan},
	}
	for _, s := range x.s.catalogue.Scopes {
		k.Scopes = append(k.Scopes, s.Scope)
	}
	return k
}

func (r exampleRequest) check(k *authz.Key) *authz.Check {
	c := &authz.Check{
		Caller: &authz.Caller{
			ID: authz.NewCallerID(invariantTime()), Name: "invariants",
			Environments: []authz.Environment{authz.EnvironmentLive, authz.EnvironmentTest},
		},
		Action: r.action, ClientIP: netip.MustParseAddr("203.0.113.7"), Cost: 1,
		Resource: authz.Resource{Organization: k.Organization.ID.String()},
	}
	if r.method != "" {
		c.SetRequest(r.method, r.path)
	}
	return c
}

// request asks one request with a key that may have it, and then with keys and callers
// that must not. It tells whether the first was allowed.
func (x *examiner) request(ctx context.Context, r exampleRequest, environment authz.Environment, plan string) (allowed bool) {
	k := x.key(environment, plan)
	c := r.check(k)
	x.setting.of(k, c)
	v, ok := x.ask(ctx, r.String()+x.setting.name, k, c)
	if !ok || !v.Allow {
		x.denied(ctx, r, k, "a key with no scope at all is never allowed", func(k *authz.Key, _ *authz.Check) { k.Scopes = nil })
		return false
	}
	x.sound(r, k, v)
	for _, scope := range v.Required {
		x.denied(ctx, r, k, "a key that lacks the required scope "+string(scope)+" is never allowed", func(k *authz.Key, _ *authz.Check) {
			k.Scopes = slices.DeleteFunc(slices.Clone(k.Scopes), func(s authz.Scope) bool { return s == scope })
		})
	}
	x.denied(ctx, r, k, "a key with no scope at all is never allowed", func(k *authz.Key, _ *authz.Check) { k.Scopes = nil })
	other := authz.EnvironmentLive
	if environment == other {
		other = authz.EnvironmentTest
	}
	x.denied(ctx, r, k, "a key of an environment that the caller does not serve is never allowed", func(_ *authz.Key, c *authz.Check) {
		c.Caller.Environments = []authz.Environment{other}
	})
	x.denied(ctx, r, k, "a caller that serves no environment is never answered with an allow", func(_ *authz.Key, c *authz.Check) {
		c.Caller.Environments = nil
	})
	x.denied(ctx, r, k, "a key of another environment than the one asked for is never allowed", func(_ *authz.Key, c *authz.Check) {
		c.Environment = other
	})
	x.denied(ctx, r, k, "a key is never allowed what belongs to another organization", func(_ *authz.Key, c *authz.Check) {
		c.Resource.Organization = authz.NewOrganizationID(invariantTime()).String()
	})
	fence := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	x.denied(ctx, r, k, "a key that is fenced by address is never allowed from outside", func(k *authz.Key, _ *authz.Check) {
		k.AllowedCIDRs = fence
	})
	x.denied(ctx, r, k, "a key that is fenced by address is never allowed from an unknown address", func(k *authz.Key, c *authz.Check) {
		k.AllowedCIDRs, c.ClientIP = fence, netip.Addr{}
	})
	if r.action == "" {
		x.denied(ctx, r, k, "a path that can be read in two ways is never allowed", func(_ *authz.Key, c *authz.Check) {
			c.Path, c.Segments, c.Ambiguous = c.Path+"/../x", nil, true
		})
		x.denied(ctx, r, k, "an action that is no scope of the catalogue is never allowed", func(_ *authz.Key, c *authz.Check) {
			c.Action = "invariant:unknown"
		})
		return true
	}
	x.denied(ctx, r, k, "a route that the catalogue does not have is never allowed", func(_ *authz.Key, c *authz.Check) {
		c.SetRequest("GET", "/invariant/unknown/route")
	})
	return true
}

// sound holds an allow to what every allow has.
func (x *examiner) sound(r exampleRequest, k *authz.Key, v authz.Verdict) {
	if len(v.Limits) == 0 {
		x.broken("%s of plan %q was allowed without a limit; every allow has a limit, or says that there is none", r, k.Organization.Plan)
	}
	if len(v.Required) == 0 {
		x.broken("%s was allowed without a required scope", r)
	}
	for _, scope := range v.Required {
		if !slices.Contains(k.Scopes, scope) {
			x.broken("%s was allowed; it requires %s, which the key lacks", r, scope)
		}
	}
}

// denied asks again with a change that must turn the answer into a denial.
func (x *examiner) denied(ctx context.Context, r exampleRequest, k *authz.Key, guarantee string, change func(*authz.Key, *authz.Check)) {
	if x.endless {
		return
	}
	other := k.Copy()
	c := r.check(other)
	x.setting.of(other, c)
	change(other, c)
	what := r.String() + x.setting.name
	if v, ok := x.ask(ctx, what, other, c); ok && v.Allow {
		x.broken("%s; %s was allowed", guarantee, what)
	}
}

// ask evaluates one check. What is not answered with a decision is a problem.
func (x *examiner) ask(ctx context.Context, what string, k *authz.Key, c *authz.Check) (authz.Verdict, bool) {
	x.asked++
	input, err := x.names.input(k, c)
	if err != nil {
		x.problem(checkEntrypoint, fmt.Errorf("make the input of %s: %w", what, err))
		return authz.Verdict{}, false
	}
	value, err := x.evaluate(ctx, x.s.check, input)
	if err == nil && value == nil {
		err = errUndefined
	}
	var v authz.Verdict
	if err == nil {
		v, err = verdict(value)
	}
	if err != nil {
		x.problem(checkEntrypoint, about(what, err))
		return authz.Verdict{}, false
	}
	return v, true
}

// evaluate runs an entry point; what takes too long is looked for.
func (x *examiner) evaluate(ctx context.Context, body ast.Body, input *ast.Term) (ast.Value, error) {
	d := newDeadline(ctx, invariantBudget)
	value, err := x.s.run(ctx, body, input, d)
	if !d.over {
		return value, err
	}
	x.endless = true
	var where whereabouts
	_, _ = x.s.runTraced(ctx, body, input, newDeadline(ctx, invariantBudget), &where)
	return nil, atLocation(where.at.Load(), errOverBudget)
}

// incomplete asks with parts of the input missing: nothing of it may be an allow. An error
// is a denial, too.
func (x *examiner) incomplete(ctx context.Context, r exampleRequest) {
	k := x.key(authz.EnvironmentLive, plansOf(x.s.catalogue)[0])
	whole, err := x.names.input(k, r.check(k))
	if err != nil {
		x.problem(checkEntrypoint, err)
		return
	}
	object, _ := whole.Value.(ast.Object)
	without := func(names ...string) *ast.Term {
		left := ast.NewObject()
		object.Foreach(func(name, value *ast.Term) {
			text, _ := name.Value.(ast.String)
			if !slices.Contains(names, string(text)) {
				left.Insert(name, value)
			}
		})
		return ast.NewTerm(left)
	}
	for _, missing := range [][]string{{"key"}, {"caller"}, {"request"}, {"organization"}, {"key", "organization"}, {"key", "caller", "request", "organization", "stale"}} {
		x.asked++
		value, err := x.evaluate(ctx, x.s.check, without(missing...))
		if x.endless {
			x.problem(checkEntrypoint, about("an input without "+strings.Join(missing, ", "), err))
			return
		}
		if err != nil || value == nil {
			continue
		}
		if v, err := verdict(value); err == nil && v.Allow {
			x.broken("an input without %s was allowed", strings.Join(missing, ", "))
		}
	}
}

// plansOf are the names of the catalogue's plans, or one that it does not have.
func plansOf(c authz.Catalogue) []string {
	names := make([]string, 0, len(c.Plans))
	for _, p := range c.Plans {
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return []string{""}
	}
	return names
}

// states asks a whole check, as the service does: what no policy decides must not depend on
// it either.
func (x *examiner) states(ctx context.Context, requests []exampleRequest) {
	engine := NewEngine(x.s, WithBudget(invariantBudget))
	long, r := invariantTime().Add(-time.Hour), requests[0]
	for what, change := range map[string]func(*authz.Key, *authz.KeySecret){
		"a revoked key":                     func(k *authz.Key, _ *authz.KeySecret) { k.RevokedAt = long },
		"a revoked secret":                  func(_ *authz.Key, s *authz.KeySecret) { s.RevokedAt = long },
		"an expired key":                    func(k *authz.Key, _ *authz.KeySecret) { k.ExpiresAt = long },
		"an expired secret":                 func(_ *authz.Key, s *authz.KeySecret) { s.ExpiresAt = long },
		"a disabled key":                    func(k *authz.Key, _ *authz.KeySecret) { k.Disabled = true },
		"a key of a suspended organization": func(k *authz.Key, _ *authz.KeySecret) { k.Organization.Suspended = true },
		"a key of no organization":          func(k *authz.Key, _ *authz.KeySecret) { k.Organization = nil },
	} {
		x.asked++
		k := x.key(authz.EnvironmentLive, plansOf(x.s.catalogue)[0])
		c := r.check(k)
		secret := &authz.KeySecret{ID: authz.NewSecretID(invariantTime())}
		change(k, secret)
		c.Presented = authz.PresentHash(authz.SecretHash{1})
		checker, err := authz.NewChecker(authz.CheckerOptions{
			Keys: oneKey{authz.FoundKey{Key: k, Secret: secret}}, Policy: engine, Limiter: admitAll{}, Clock: stoppedClock{},
		})
		if err != nil {
			x.problem(checkEntrypoint, err)
			return
		}
		if d, err := checker.Check(ctx, c); err == nil && d.Allow {
			x.broken("%s is never allowed; %s was", what, r)
		}
	}
}

// oneKey finds one key, whoever asks for which.
type oneKey struct{ found authz.FoundKey }

// FindKey implements authz.KeyReader.
func (o oneKey) FindKey(context.Context, authz.CallerID, authz.SecretHash) (authz.FoundKey, error) {
	return o.found, nil
}

// admitAll admits whatever is charged.
type admitAll struct{}

// Charge implements authz.Limiter.
func (admitAll) Charge(context.Context, *authz.Key, authz.Limit, int) (authz.Charge, error) {
	return authz.Charge{Allowed: true, Mode: authz.LimiterExact}, nil
}

// stoppedClock is always at invariantTime.
type stoppedClock struct{}

// Now implements authz.Clock.
func (stoppedClock) Now() time.Time { return invariantTime() }

// admin asks who may manage: nobody without a role, nobody in a foreign organization; and a
// platform admin may always take a policy back, so that no policy locks everyone out.
func (x *examiner) admin(ctx context.Context) {
	engine := NewEngine(x.s, WithBudget(invariantBudget))
	own, foreign := authz.NewOrganizationID(invariantTime()), authz.NewOrganizationID(invariantTime())
	described := func(id authz.OrganizationID) map[string]any {
		return map[string]any{
			"id": id.String(), "external_id": nil, "name": "Invariant", "plan": plansOf(x.s.catalogue)[0], "status": "active",
			"suspended": false, "metadata": map[string]any{}, "version": 1,
		}
	}
	ask := func(role authz.Role, home authz.OrganizationID, action string, organization map[string]any) (authz.AdminVerdict, bool) {
		x.asked++
		v, err := engine.DecideAdmin(ctx, authz.AdminQuestion{
			Actor:  &authz.Admin{ID: authz.NewAdminID(invariantTime()), Name: "invariant", Role: role, Organization: home},
			Action: action, Organization: organization,
		})
		if err != nil {
			x.problem(adminEntrypoint, about(fmt.Sprintf("%s as %q", action, role), err))
		}
		return v, err == nil
	}
	for _, action := range []string{"keys.create", "keys.list", "keys.revoke", "organizations.update", "admins.create", "audit_log.list", "policy.activate"} {
		if x.done(ctx) {
			return
		}
		for _, role := range []authz.Role{"", "invariant"} {
			if v, ok := ask(role, own, action, described(own)); ok && v.Allow {
				x.brokenAt(adminEntrypoint, "an admin of the role %q, which is none, may never do anything; %s was allowed", role, action)
			}
		}
		for _, role := range []authz.Role{authz.RoleOwner, authz.RoleDeveloper, authz.RoleAuditor} {
			if v, ok := ask(role, own, action, described(foreign)); ok && v.Allow {
				x.brokenAt(adminEntrypoint, "an admin of an organization may never do anything in another; %s as %s was allowed", action, role)
			}
			_, _ = ask(role, own, action, described(own))
		}
	}
	for _, action := range []string{"policy.activate", "policy.rollback"} {
		if v, ok := ask(authz.RolePlatformAdmin, authz.OrganizationID{}, action, nil); ok && !v.Allow {
			x.brokenAt(adminEntrypoint, "a platform admin may always do %s, or nobody could take this policy back; it was denied", action)
		}
	}
}

// broken states a guarantee about checks that does not hold.
func (x *examiner) broken(format string, args ...any) { x.brokenAt(checkEntrypoint, format, args...) }

func (x *examiner) brokenAt(entrypoint, format string, args ...any) {
	x.problem(entrypoint, fmt.Errorf(format, args...))
}

// problem notes what is wrong once, at its own place or else at the entry point's.
func (x *examiner) problem(entrypoint string, err error) {
	for _, p := range problemsOf(authz.StageInvariants, err) {
		if rules := x.s.compiler.GetRulesExact(ast.MustParseRef(entrypoint)); p.File == "" && len(rules) > 0 {
			p.File, p.Line = rules[0].Location.File, rules[0].Location.Row
		}
		if !slices.Contains(x.problems, p) {
			x.problems = append(x.problems, p)
		}
	}
}
