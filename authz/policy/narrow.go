package policy

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

//nolint:gochecknoglobals // a constant, were these constant
var keyScopes = ast.MustParseRef("input.key.scopes")

// Narrow asks the policy in force about recorded requests of a key, and of the same key with
// other scopes. Whatever was not recorded well enough to know is doubtful when it passed.
// Safe for concurrent use.
func (k *Keeper) Narrow(
	ctx context.Context, key *authz.Key, scopes []authz.Scope, traffic []authz.RecordedOfKey,
) (*authz.Narrowing, error) {
	active, snapshot := k.active.Load(), k.engine.current.Load()
	if active == nil || snapshot == nil || active.revision != snapshot.revision {
		return nil, authz.Unavailable("another policy comes into force just now; try again", nil)
	}
	if key.Organization == nil {
		return nil, errNoOrganization
	}
	n, err := newNarrowing(active, k.builtIn, snapshot)
	if err != nil {
		return nil, fmt.Errorf("narrow a key: %w", err)
	}
	return n.about(ctx, key, scopes, traffic)
}

// narrowing asks one policy about a key and its narrower copy.
type narrowing struct {
	policy *replayed
	doubts *doubts
	// plain tells that scopes decide nothing but whether one that is required is missing: what
	// blurs the rest of a request does not blur that.
	plain bool
}

func newNarrowing(active, builtIn *Source, snapshot *Snapshot) (*narrowing, error) {
	n := &narrowing{policy: newReplayed(snapshot, newNames())}
	var err error
	if n.doubts, err = doubtsOf(builtIn, active, active, snapshot, snapshot); err != nil {
		return nil, err
	}
	n.plain, err = scopesArePlain(builtIn, active, snapshot)
	return n, err
}

// scopesArePlain tells whether a policy asks for scopes as the built-in one does, and no rule
// of its own looks at them.
func scopesArePlain(builtIn, active *Source, s *Snapshot) (bool, error) {
	d := &doubts{}
	theirs, err := builtIn.core()
	if err != nil {
		return false, err
	}
	own, err := active.core()
	if err != nil {
		return false, err
	}
	d.compareCore(theirs, own)
	data, err := parseData(active.files)
	if err != nil {
		return false, err
	}
	d.judgeData(data)
	if len(d.reasons) > 0 {
		return false, nil
	}
	for _, rule := range s.reached() {
		if path := rule.Ref(); len(path) <= len(ownRules) || !path.HasPrefix(ownRules) {
			continue
		}
		w := newWalk(s)
		w.look(rule)
		for _, ref := range w.reads {
			if overlaps(ref, keyScopes) {
				return false, nil
			}
		}
		for dependency := range s.compiler.Graph.Dependencies(rule) {
			if next, ok := dependency.(*ast.Rule); ok && !next.Ref().HasPrefix(ownRules) {
				return false, nil
			}
		}
	}
	return true, nil
}

func (n *narrowing) about(
	ctx context.Context, key *authz.Key, scopes []authz.Scope, traffic []authz.RecordedOfKey,
) (*authz.Narrowing, error) {
	narrow := key.Copy()
	narrow.Scopes = slices.Clone(scopes)
	out := &authz.Narrowing{Policy: n.policy.snapshot.revision, Requests: make([]authz.NarrowedRequests, 0, len(traffic))}
	for _, rows := range traffic {
		if err := ctx.Err(); err != nil {
			return nil, err //nolint:wrapcheck // nothing was found out
		}
		if rows.Shape == (authz.Shape{}) {
			continue // policy was not asked about it
		}
		out.Requests = append(out.Requests, n.ask(ctx, key, narrow, rows))
	}
	slices.SortStableFunc(out.Requests, func(a, b authz.NarrowedRequests) int {
		return cmp.Or(
			a.Outcome.Rank()-b.Outcome.Rank(), cmp.Compare(b.Requests, a.Requests), strings.Compare(a.Path, b.Path),
			strings.Compare(a.Method, b.Method), strings.Compare(a.Action, b.Action), strings.Compare(a.Caller, b.Caller),
		)
	})
	return out, nil
}

func (n *narrowing) ask(ctx context.Context, key, narrow *authz.Key, rows authz.RecordedOfKey) authz.NarrowedRequests {
	shape := rows.Shape
	out := authz.NarrowedRequests{
		Method: shape.Method, Path: cmp.Or(shape.Route, shape.Template()), Action: shape.Action, Requests: rows.Requests, Passed: rows.Passed,
	}
	if rows.Caller == nil {
		out.Outcome = authz.NarrowingGone
		return out
	}
	out.Caller = rows.Caller.Name
	question, faithful := shape.Check(key, rows.Caller)
	if question == nil {
		out.Outcome, out.Why = unknown(rows, "they were of so many kinds that theirs was not kept")
		return out
	}
	before, slowBefore := n.policy.ask(ctx, key, question)
	after, slowAfter := n.policy.ask(ctx, narrow, question)
	out.Before, out.After, out.Missing = before.Code, after.Code, after.Missing
	why := n.why(shape, faithful)
	if slowBefore || slowAfter {
		why = fmt.Sprintf("the policy took longer than the %v that a check has", DefaultBudget)
	}
	switch {
	case before.Allow && !after.Allow:
		out.Outcome = authz.NarrowingDenies
	case before.Allow && before.Difference(after) == authz.OtherLimits:
		out.Outcome, out.Why = authz.NarrowingDoubtful, "their limits would be others"
	case why != "":
		out.Outcome, out.Why = unknown(rows, why)
	case lacksMore(before, after) && rows.Passed > 0:
		// Something else denies what stands in for them; them it did not deny.
		out.Outcome, out.Why = authz.NarrowingDoubtful, "they passed before, and they need what would be taken"
	case before.Allow:
		out.Outcome = authz.NarrowingKeeps
	default:
		out.Outcome = authz.NarrowingSpares
	}
	return out
}

// unknown is the outcome for requests of which it cannot be known.
func unknown(rows authz.RecordedOfKey, why string) (authz.NarrowingOutcome, string) {
	if rows.Passed == 0 {
		return authz.NarrowingSpares, ""
	}
	return authz.NarrowingDoubtful, why
}

// why tells why an answer about a shape may not be the one about each of its requests, as far
// as scopes could matter; "" is that it is.
func (n *narrowing) why(shape authz.Shape, faithful bool) string {
	if n.plain {
		return n.doubts.whyRequired(shape)
	}
	return n.doubts.why(shape, faithful)
}

// lacksMore tells whether fewer scopes lack something that was not lacking before.
func lacksMore(before, after authz.PolicyAnswer) bool {
	return slices.ContainsFunc(after.Missing, func(s authz.Scope) bool { return !slices.Contains(before.Missing, s) })
}
