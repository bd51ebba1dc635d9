package faults

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/sdk/admin"
)

const (
	// overBudget is how much later than its budget an evaluation is denied.
	overBudget = 25 * time.Millisecond
	// unevaluated is within what a check is answered that waits for nothing: far less than a budget.
	unevaluated = 25 * time.Millisecond
	// manyNumbers take a product some two seconds that nothing can stop.
	manyNumbers = 3000
)

// endlessFor is a policy that works out a product of large numbers for one organization,
// and for all others nothing more than what is shipped.
func endlessFor(id authz.OrganizationID) policyFiles {
	return policyFiles{
		"keystile/rules/endless/endless.rego": fmt.Sprintf(`package keystile.rules.endless

deny contains {"code": "endless", "message": "Never said."} if {
	input.organization.id == %q
	product(data.keystile.rules.endless.many) == 7
}
`, id),
		"keystile/rules/endless/data.yaml": "many: [" + strings.Repeat("7e299, ", manyNumbers) + "1]\n",
	}
}

// abandoned counts the goroutines that work out a large call.
func (r *replica) abandoned(ctx context.Context) (n int, err error) {
	_, page, err := fetch(ctx, r.opsURL+"/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0, err
	}
	for _, stack := range strings.Split(page, "\n\n") {
		if strings.Contains(stack, "authz/policy.(*lane).run.func") {
			count, _, _ := strings.Cut(strings.TrimSpace(stack), " @")
			one, err := strconv.Atoi(count[strings.LastIndexByte(count, '\n')+1:])
			if err != nil {
				return 0, fmt.Errorf("a profile of goroutines says %q", count)
			}
			n += one
		}
	}
	return n, nil
}

// abandoned is what a replica works out and nobody waits for.
func (s *site) abandoned(r *replica) int {
	s.Helper()
	n, err := r.abandoned(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return n
}

// watchAbandoned finds out, until stop, how many are left running at a time and how many
// goroutines there are, at most. It looks in calm times as well: a profile takes time of the
// replica, which is not what others are to wait for.
func (s *site) watchAbandoned(r *replica) (stop func() (left int, goroutines float64)) {
	quit, done := make(chan struct{}), make(chan struct{})
	left, goroutines := 0, 0.0
	go func() {
		defer close(done)
		tick := time.NewTicker(300 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			n, err := r.abandoned(s.Context())
			if err != nil {
				s.Errorf("look at goroutines: %v", err)
			}
			all, err := r.sample(s.Context(), "go_goroutines")
			if err != nil {
				s.Errorf("count goroutines: %v", err)
			}
			left, goroutines = max(left, n), max(goroutines, all)
		}
	}()
	end := sync.OnceFunc(func() {
		close(quit)
		<-done
	})
	s.Cleanup(end)
	return func() (int, float64) {
		end()
		return left, goroutines
	}
}

// endlessPolicy asks for the keys of an organization for which the policy does not come
// to an end, beside those of another.
func endlessPolicy(t *trial) {
	s := newSite(t)
	keys := s.addKeys(50, plenty())
	id, cause := s.elsewhere(5, "Endless")
	r := s.start(1, map[string]string{"KEYSTILE_PPROF": "true"})[0]
	// Activated a moment ago, so that a step back by itself were possible.
	files := s.activationPolicy(s.policyDir("endless", endlessFor(id)))
	if _, err := s.management(r).ActivatePolicy(s.Context(), admin.PolicyActivate{Files: &files}); err != nil {
		s.Fatalf("activate an endless policy: %v", err)
	}
	s.warm(s.replicas, keys)
	revision := s.revisions(s.replicas)
	l := s.startLoad(plan{to: s.replicas, keys: keys, rate: either(t, 500, 50)})
	pause(either(t, time.Second, 100*time.Millisecond))

	goroutines := r.metric(t, "go_goroutines")
	again := s.overrunTwice(r, cause)
	quick := again.where(func(a *answer) bool { return a.done.Sub(a.sent) <= unevaluated })
	t.timed(len(quick) > len(again)*9/10, "what caused it is denied unevaluated: %d of %d within %s, p50 %s", len(quick), len(again),
		ms(unevaluated), ms(again.percentile(.5)))

	const ours = 4
	var asked answers
	stopWatching := s.watchAbandoned(r)
	took := s.takeTurns(either(t, 7, 1), either(t, 2*time.Second, 200*time.Millisecond), 0, func() {
		c := s.startLoad(plan{to: s.replicas, keys: cause, rate: either(t, 60, 20), connections: ours})
		pause(either(t, 4*time.Second, 1500*time.Millisecond))
		asked = append(asked, c.stop()...)
		s.eventually("what was left running ends", func() bool { return s.abandoned(r) == 0 })
	})
	most, mostGoroutines := stopWatching()
	others := l.stop()
	s.judgeEndless(append(asked, again...))
	t.exact(most <= 1, "left running at a time: at most %d (1)", most)
	// Each connection has two, and whoever looks at them some.
	t.timed(mostGoroutines <= goroutines+float64(4*ours), "goroutines %.0f, then at most %.0f", goroutines, mostGoroutines)
	s.judgeServed("other organizations", others)
	s.judgeRatio("other organizations", others, took, 2)
	t.exact(s.revisions(s.replicas) == revision, "the policy in force is the same: no step back by itself")
	code, word := r.readiness(t)
	t.exact(code == 200, "/readyz %d %s", code, word)
}

// overrunTwice has the policy overrun its budget twice, and returns what was answered
// afterwards to the one who caused it.
func (s *site) overrunTwice(r *replica, cause []*key) answers {
	s.Helper()
	var first, again answers
	for _, k := range cause[:2] {
		a := s.ask(r, k)
		s.exact(a.code == "unavailable", "the first check of a key that has no end: %s after %s", a.outcome(), ms(a.done.Sub(a.sent)))
		first = append(first, a)
		s.exact(s.abandoned(r) == 1, "and its evaluation is left running")
		again = append(again, s.run(plan{to: s.replicas, keys: []*key{k}, rate: 50, rounds: 10, connections: 1})...)
		s.eventually("what was left running ends", func() bool { return s.abandoned(r) == 0 })
	}
	s.judgeEndless(first)
	// By now the organization has overrun twice, and waits a second for the next.
	return again
}

// judgeEndless states how those were answered for whom there is no end.
func (s *site) judgeEndless(all answers) {
	s.Helper()
	times := make([]time.Duration, len(all))
	for i, a := range all {
		times[i] = a.done.Sub(a.sent)
	}
	s.exact(len(all) > 0 && len(all.except("unavailable")) == 0, "checks without an end: %v", all)
	s.timed(percentile(times, .99) <= policy.DefaultBudget+overBudget, "denied after p50 %s, p99 %s, max %s (≤ %s + %s)", ms(percentile(times, .5)),
		ms(percentile(times, .99)), ms(percentile(times, 1)), ms(policy.DefaultBudget), ms(overBudget))
}
