package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/supportstation/keystile/authz"
)

// What tells a policy that fails from noise, and from one organization's data.
const (
	// failureWindow is how far back failures count together.
	failureWindow = 30 * time.Second
	// failuresOfOne is how many of one organization count: more of them say nothing new.
	failuresOfOne = 8
	// widespreadErrors of widespreadOrganizations that did not fail under the policy before are
	// widespread.
	widespreadErrors        = 20
	widespreadOrganizations = 3
	// failedBefore is how long ago an organization may have failed under the policy before.
	failedBefore = 10 * time.Minute
	// maxFailing is how many organizations are remembered. Beyond it nothing is compared.
	maxFailing = 1_024
	// someFailing is how many are named.
	someFailing = 5
)

// failures remembers whose checks the policy in force did not decide. It is safe for concurrent
// use, and costs nothing while all are decided.
type failures struct {
	now    func() time.Time
	totals [len(failureKinds)]atomic.Int64

	mu sync.Mutex
	// of is the policy in force; what another one did is not its failure.
	of            *Snapshot
	organizations map[authz.OrganizationID]*failing
	// before are those that the policy before it failed; compared tells that there was one
	// and that all of them are known.
	before         map[authz.OrganizationID]bool
	compared, full bool
	cleared        time.Time
	// kind and where are of the newest one.
	kind  authz.PolicyFailure
	where string
}

// failureKinds are all kinds, in the order of totals.
var failureKinds = [...]authz.PolicyFailure{ //nolint:gochecknoglobals // never changed
	authz.FailureError, authz.FailureTimeout, authz.FailureNoDecision, authz.FailureHeldBack, authz.FailureCrowded,
}

// failing has when an organization's checks failed last.
type failing struct {
	at   [failuresOfOne]time.Time
	next int
}

func (f *failing) last() time.Time { return f.at[(f.next+failuresOfOne-1)%failuresOfOne] }

func newFailures(now func() time.Time) *failures {
	return &failures{now: now, organizations: make(map[authz.OrganizationID]*failing), before: make(map[authz.OrganizationID]bool)}
}

// begin forgets what failed, but for whom: a new policy is in force. nil is none.
func (f *failures) begin(s *Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.compared = f.of != nil && !f.full
	clear(f.before)
	for id, o := range f.organizations {
		if f.now().Sub(o.last()) <= failedBefore {
			f.before[id] = true
		}
	}
	clear(f.organizations)
	f.of, f.full, f.kind, f.where = s, false, "", ""
}

// note takes down that a check of an organization was not decided under a policy.
func (f *failures) note(s *Snapshot, id authz.OrganizationID, cause error) {
	kind := failureOf(cause)
	f.totals[slices.Index(failureKinds[:], kind)].Add(1)
	if kind == authz.FailureCrowded {
		return // by somebody else's call: else one organization alone could look like several
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s != f.of {
		return
	}
	now := f.now()
	o := f.organizations[id]
	if o == nil {
		if len(f.organizations) >= maxFailing && !f.clear(now) {
			f.full = true
			return
		}
		o = &failing{}
		f.organizations[id] = o
	}
	o.at[o.next] = now
	o.next = (o.next + 1) % failuresOfOne
	if kind != authz.FailureHeldBack { // which says nothing of the policy
		f.kind, f.where = kind, placeOf(cause)
	}
}

// clear makes room, of those that failed too long ago to count for anything; once a second,
// because it looks at all of them.
func (f *failures) clear(now time.Time) bool {
	if now.Sub(f.cleared) < time.Second {
		return false
	}
	f.cleared = now
	for id, o := range f.organizations {
		if now.Sub(o.last()) > failedBefore {
			delete(f.organizations, id)
		}
	}
	return len(f.organizations) < maxFailing
}

// tell sums up.
func (f *failures) tell() authz.PolicyFailing {
	out := authz.PolicyFailing{Window: failureWindow, Total: make(map[authz.PolicyFailure]int64, len(failureKinds))}
	for i, kind := range failureKinds {
		out.Total[kind] = f.totals[i].Load()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of != nil {
		out.Revision = f.of.revision
	}
	now := f.now()
	type one struct {
		id   authz.OrganizationID
		last time.Time
	}
	var all []one
	for id, o := range f.organizations {
		n := 0
		for _, at := range o.at {
			if !at.IsZero() && now.Sub(at) <= failureWindow {
				n++
			}
		}
		if n == 0 {
			continue
		}
		out.Errors, out.Organizations = out.Errors+n, out.Organizations+1
		if !f.before[id] {
			out.NewErrors, out.NewOrganizations = out.NewErrors+n, out.NewOrganizations+1
		}
		all = append(all, one{id, o.last()})
	}
	if out.Errors == 0 {
		return out
	}
	slices.SortFunc(all, func(a, b one) int { return cmp.Or(b.last.Compare(a.last), cmp.Compare(a.id.String(), b.id.String())) })
	for _, o := range all[:min(len(all), someFailing)] {
		out.Some = append(out.Some, o.id)
	}
	out.Kind, out.Where = cmp.Or(f.kind, authz.FailureHeldBack), f.where
	out.Widespread = f.compared && out.NewErrors >= widespreadErrors && out.NewOrganizations >= widespreadOrganizations
	return out
}

// failureOf is what kind of failure an error of Evaluate is.
func failureOf(cause error) authz.PolicyFailure {
	switch {
	case errors.Is(cause, ErrHeldBack):
		return authz.FailureHeldBack
	case errors.Is(cause, errLaneBusy), errors.Is(cause, errCrowded):
		return authz.FailureCrowded
	case errors.Is(cause, errOverBudget):
		return authz.FailureTimeout
	case errors.Is(cause, errUndefined), errors.Is(cause, errNoDecision):
		return authz.FailureNoDecision
	}
	return authz.FailureError
}

// placeOf is where in the policy an error came of, without what it says.
func placeOf(cause error) string {
	var inside *topdown.Error
	if !errors.As(cause, &inside) {
		return ""
	}
	return placeIn(inside.Location)
}

// placeIn is file:line, "" for nowhere in particular.
func placeIn(l *ast.Location) string {
	if l == nil || l.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", l.File, l.Row)
}
