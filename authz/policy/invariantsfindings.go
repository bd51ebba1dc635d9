package policy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"

	"github.com/supportstation/keystile/authz"
)

const (
	// invariantFacts is for how many keys' facts an answer to exact figures is compared with
	// the one to rounded ones.
	invariantFacts = 300
	// invariantScopes bounds the scopes of such a key.
	invariantScopes = 6
)

// findings asks what a policy finds: every answer is one, and is the same whether figures are
// rounded down to the policy's own steps or not. Else keys would be judged by what others did.
func (x *examiner) findings(ctx context.Context) {
	if x.s.findings == nil {
		return
	}
	judge := x.s.Findings(invariantBudget)
	// The same for every policy: what is refused once is refused again.
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // examples, not secrets
	for range invariantFacts {
		if x.done(ctx) {
			return
		}
		exact := randomFacts(random, judge.Steps(), x.s.catalogue)
		rounded := exact
		rounded.Scopes = append([]authz.ScopeFacts(nil), exact.Scopes...)
		rounded.Round(judge.Steps())
		x.asked += 2
		ruled, err := judge.Judge(ctx, &exact)
		if err != nil {
			x.problem(findingsEntrypoint, about("evidence", err))
			return
		}
		other, err := judge.Judge(ctx, &rounded)
		if err != nil {
			x.problem(findingsEntrypoint, about("evidence", err))
			return
		}
		if !reflect.DeepEqual(ruled, other) {
			x.brokenAt(findingsEntrypoint, "figures are rounded down to the steps of data, and that changes what is found%s; "+
				"compare figures with >= and < alone, and with values that are among the steps of that figure", x.culprit(ctx, judge, &exact, ruled))
			return
		}
	}
}

// culprit names the first figure whose rounding by itself changes what is found.
func (x *examiner) culprit(ctx context.Context, judge *Findings, exact *authz.Facts, ruled authz.Ruling) string {
	rounded := *exact
	rounded.Scopes = append([]authz.ScopeFacts(nil), exact.Scopes...)
	rounded.Round(judge.Steps())
	try := func(name string, at *int64, value int64) string {
		was := *at
		defer func() { *at = was }()
		*at = value
		if other, err := judge.Judge(ctx, exact); err != nil || reflect.DeepEqual(ruled, other) {
			return ""
		}
		return fmt.Sprintf(": %s was %d, and became %d", name, was, value)
	}
	for i := range exact.Figures {
		if told := try(authz.Figure(i).String(), &exact.Figures[i], rounded.Figures[i]); told != "" {
			return told
		}
	}
	for n := range exact.Scopes {
		for i := range exact.Scopes[n].Figures {
			if told := try(authz.ScopePrefix+authz.ScopeFigure(i).String(), &exact.Scopes[n].Figures[i], rounded.Scopes[n].Figures[i]); told != "" {
				return told
			}
		}
	}
	return ""
}

// randomFacts are facts about the steps of their figures, where rounding matters.
func randomFacts(random *rand.Rand, steps *authz.EvidenceSteps, c authz.Catalogue) authz.Facts {
	one := func(steps []int64) int64 {
		at := []int64{0, 1, 2, 3, random.Int64N(20), random.Int64N(1000)}
		for _, s := range steps {
			at = append(at, s-1, s, s, s+1, s+random.Int64N(s+1))
		}
		return at[random.IntN(len(at))]
	}
	states := []authz.KeyState{authz.KeyActive, authz.KeyActive, authz.KeyActive, authz.KeyActive, authz.KeyRevoked, authz.KeyExpired, authz.KeyDisabled, authz.KeySuspended}
	f := authz.Facts{
		Environment: authz.EnvironmentLive, State: states[random.IntN(len(states))],
		Expires: random.IntN(2) == 0, Rotated: random.IntN(2) == 0,
	}
	if random.IntN(2) == 0 {
		f.Environment = authz.EnvironmentTest
	}
	for i := range f.Figures {
		f.Figures[i] = one(steps.Key[i])
	}
	for _, s := range c.Scopes {
		if len(f.Scopes) == invariantScopes || random.IntN(5) == 0 {
			continue
		}
		scope := authz.ScopeFacts{Scope: s.Scope, Granted: random.IntN(4) > 0}
		for i := range scope.Figures {
			scope.Figures[i] = one(steps.Scope[i])
		}
		f.Scopes = append(f.Scopes, scope)
	}
	return f
}
