package policy

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/supportstation/keystile/authz"
)

var _ authz.PolicyExplainer = (*Engine)(nil)

const (
	// explainBudget is how long an explanation may take: a trace costs seven times an
	// evaluation, and remedies are evaluations.
	explainBudget = 500 * time.Millisecond
	// maxExplainedRules bounds the rules of an explanation.
	maxExplainedRules = 500
	// maxRemedies bounds the remedies, maxRemedyChanges the changes of one.
	maxRemedies      = 5
	maxRemedyChanges = 3
)

// Explain implements authz.PolicyExplainer. It notes nobody as having overrun, and
// remembers nothing. Safe for concurrent use.
func (e *Engine) Explain(ctx context.Context, k *authz.Key, c *authz.Check) (out authz.PolicyExplanation, err error) {
	defer func() {
		if r := recover(); r != nil {
			out.Verdict = authz.Verdict{Revision: out.Verdict.Revision}
			err = fmt.Errorf("explain: panic: %v", r)
		}
	}()
	s := e.current.Load()
	if s == nil {
		return out, ErrNoPolicy
	}
	out.Verdict.Revision = s.revision
	switch {
	case k.Organization == nil:
		return out, errNoOrganization
	case e.held.holds(k):
		return out, ErrHeldBack
	}
	// On a lane of its own: a large call of a check does not wait for an explanation's.
	x := &explainer{s: s.in(e.explaining), names: e.names, until: newDeadline(ctx, explainBudget)}
	seen := &ruleTrace{fired: make(map[*ast.Rule]bool)}
	v, err := x.ask(ctx, k, c, seen)
	out.Rules = seen.rules(s.compiler)
	v.Revision = s.revision
	if err != nil {
		return out, fmt.Errorf("explain: %w", err)
	}
	out.Verdict = v
	if !v.Allow {
		out.Remedies = x.remedies(ctx, k, c, v)
	}
	return out, nil
}

// explainer asks one snapshot again and again, until its time is over.
type explainer struct {
	s     *Snapshot
	names *names
	until *deadline
}

func (x *explainer) ask(ctx context.Context, k *authz.Key, c *authz.Check, tracer topdown.QueryTracer) (authz.Verdict, error) {
	input, err := x.names.input(k, c)
	if err != nil {
		return authz.Verdict{}, fmt.Errorf("make the policy's input: %w", err)
	}
	value, err := x.s.runTraced(ctx, x.s.check, input, x.until, tracer)
	switch {
	case x.until.over:
		return authz.Verdict{}, x.until.err(err)
	case err != nil:
		return authz.Verdict{}, err
	case value == nil:
		return authz.Verdict{}, errUndefined
	}
	return decisionOf(value, k, c)
}

// ruleTrace notes which rules were looked at, and which of them held.
type ruleTrace struct{ fired map[*ast.Rule]bool }

// Enabled implements topdown.QueryTracer.
func (*ruleTrace) Enabled() bool { return true }

// Config implements topdown.QueryTracer.
func (*ruleTrace) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent implements topdown.QueryTracer.
func (t *ruleTrace) TraceEvent(e topdown.Event) {
	rule, ok := e.Node.(*ast.Rule)
	if !ok || e.Op != topdown.EnterOp && e.Op != topdown.ExitOp {
		return
	}
	if fired, known := t.fired[rule]; known || len(t.fired) < maxExplainedRules {
		t.fired[rule] = fired || e.Op == topdown.ExitOp
	}
}

// rules are those that were looked at, by file and line.
func (t *ruleTrace) rules(compiler *ast.Compiler) []authz.PolicyRule {
	annotations := compiler.GetAnnotationSet()
	found := make([]authz.PolicyRule, 0, len(t.fired))
	for rule, fired := range t.fired {
		if rule.Location == nil || rule.Location.File == "" || rule.Module == nil {
			continue
		}
		found = append(found, authz.PolicyRule{
			Name: rule.Ref().GroundPrefix().String(), Title: titleOf(annotations, rule),
			File: rule.Location.File, Line: rule.Location.Row, Fired: fired,
		})
	}
	slices.SortFunc(found, func(a, b authz.PolicyRule) int {
		if a.File != b.File {
			return strings.Compare(a.File, b.File)
		}
		return a.Line - b.Line
	})
	return slices.Compact(found)
}

// titleOf is the title in the METADATA of a rule, or of all rules of its name.
func titleOf(set *ast.AnnotationSet, rule *ast.Rule) string {
	if set == nil {
		return ""
	}
	for _, ref := range set.Chain(rule) {
		if a := ref.Annotations; a != nil && a.Title != "" && (a.Scope == "rule" || a.Scope == "document") {
			return a.Title
		}
	}
	return ""
}

// change is one thing that could be otherwise: in a copy of the key and of the check.
type change struct {
	authz.RemedyChange

	apply func(*authz.Key, *authz.Check)
}

// remedies finds the smallest sets of changes with which policy allows.
func (x *explainer) remedies(ctx context.Context, k *authz.Key, c *authz.Check, v authz.Verdict) []authz.Remedy {
	possible := changesFor(k, c, v)
	var found []authz.Remedy
	for size := 1; size <= min(maxRemedyChanges, len(possible)) && len(found) == 0; size++ {
		subsets(len(possible), size, func(chosen []int) bool {
			key, check := k.Copy(), *c
			remedy := authz.Remedy{Tried: true}
			for _, i := range chosen {
				possible[i].apply(key, &check)
				remedy.Changes = append(remedy.Changes, possible[i].RemedyChange)
			}
			if v, err := x.ask(ctx, key, &check, nil); err == nil && v.Allow {
				found = append(found, remedy)
			}
			return len(found) < maxRemedies && !x.until.over
		})
	}
	if len(found) > 0 {
		return found
	}
	for _, r := range v.Reasons {
		if r.Code == authz.CodeUnknownRoute {
			return []authz.Remedy{{Changes: []authz.RemedyChange{{
				Kind: "add_route", Message: "No route of the catalogue is like this; add it to the policy's catalogue if it is meant to exist.",
			}}}}
		}
	}
	return nil
}

// changesFor are the changes that could matter to a denial.
func changesFor(k *authz.Key, c *authz.Check, v authz.Verdict) []change {
	var all []change
	add := func(kind, message string, apply func(*authz.Key, *authz.Check)) {
		all = append(all, change{authz.RemedyChange{Kind: kind, Message: message}, apply})
	}
	for _, scope := range v.Missing {
		all = append(all, change{
			authz.RemedyChange{Kind: "grant_scope", Message: "Grant " + string(scope) + " to the key.", Scope: scope},
			func(k *authz.Key, _ *authz.Check) { k.Scopes = append(k.Scopes, scope) },
		})
	}
	if c.Caller != nil {
		for _, environment := range c.Caller.Environments {
			if environment != k.Environment {
				add("use_environment", "Use a "+string(environment)+" key.", func(k *authz.Key, _ *authz.Check) { k.Environment = environment })
			}
		}
	}
	if c.Environment != "" && c.Environment != k.Environment {
		add("ask_environment", "Ask for the key's own environment, "+string(k.Environment)+", or for none.", func(_ *authz.Key, c *authz.Check) { c.Environment = "" })
	}
	if own := k.Organization.ID.String(); c.Resource.Organization != "" && c.Resource.Organization != own {
		add("use_own_resource", "Ask for a resource of the key's own organization.", func(_ *authz.Key, c *authz.Check) { c.Resource.Organization = own })
	}
	if len(k.AllowedCIDRs) > 0 {
		inside := k.AllowedCIDRs[0].Addr()
		if !slices.ContainsFunc(k.AllowedCIDRs, func(p netip.Prefix) bool { return p.Contains(c.ClientIP) }) {
			add("call_from_allowed_address", "Call from an address that the key allows.", func(_ *authz.Key, c *authz.Check) { c.ClientIP = inside })
		}
	}
	if c.Browser {
		add("call_from_server", "Call from a server, not from a browser.", func(_ *authz.Key, c *authz.Check) { c.Browser = false })
	}
	if c.Stale {
		add("wait", "Wait until the key can be confirmed again; Postgres does not answer.", func(_ *authz.Key, c *authz.Check) { c.Stale = false })
	}
	if c.Ambiguous {
		if plain := path.Clean("/" + c.Path); plain != c.Path {
			add("spell_path", "Spell the path without empty, dot or encoded segments.", func(_ *authz.Key, c *authz.Check) { c.SetRequest(c.Method, plain) })
		}
	}
	if c.Method != "" {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			if method != c.Method && v.Route == "" && !c.Ambiguous {
				add("use_method", "Use the method "+method+".", func(_ *authz.Key, c *authz.Check) { c.SetRequest(method, c.Path) })
			}
		}
	}
	if c.Action != "" && c.Method != "" {
		add("drop_action", "Ask for the method and path without an action.", func(_ *authz.Key, c *authz.Check) { c.Action = "" })
	}
	return all
}

// subsets calls yield with every choice of size of n things, until it returns false.
func subsets(n, size int, yield func([]int) bool) {
	chosen := make([]int, size)
	var choose func(from, at int) bool
	choose = func(from, at int) bool {
		if at == size {
			return yield(chosen)
		}
		for i := from; i <= n-(size-at); i++ {
			chosen[at] = i
			if !choose(i+1, at+1) {
				return false
			}
		}
		return true
	}
	choose(0, 0)
}
