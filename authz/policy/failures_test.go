package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// someOrganizations are that many.
func someOrganizations(n int) []authz.OrganizationID {
	all := make([]authz.OrganizationID, n)
	for i := range all {
		all[i] = authz.NewOrganizationID(time.Unix(1_795_000_000, 0))
	}
	return all
}

func TestFailures_WidespreadIsWhatSeveralOrganizationsHaveAndHadNotBefore(t *testing.T) {
	all := someOrganizations(widespreadOrganizations)
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		// before each organization of failedBefore fails under the policy before; noted is
		// whose checks fail afterwards, each of them times times, and every so long; once whose
		// checks fail once.
		failedBefore []authz.OrganizationID
		ago          time.Duration
		noted, once  []authz.OrganizationID
		times        int
		every        time.Duration
		cause        error
		first        bool
		want         bool
	}{
		"several":                         {noted: all, times: 7, want: true},
		"several, slowly":                 {noted: all, times: 8, every: time.Second, want: true},
		"several, too slowly":             {noted: all, times: 8, every: 5 * time.Second},
		"several, a few times":            {noted: all, times: 6},
		"one alone, however often":        {noted: all[:1], times: 10_000},
		"two":                             {noted: all[:2], times: 10_000},
		"one often, and others once":      {noted: all[:1], times: 10_000, once: all[1:]},
		"several of which one did before": {failedBefore: all[:1], noted: all, times: 100},
		"of which one did long before":    {failedBefore: all[:1], ago: failedBefore + time.Second, noted: all, times: 100, want: true},
		"by somebody else's large call":   {noted: all, times: 100, cause: errLaneBusy},
		"held back":                       {noted: all, times: 100, cause: ErrHeldBack, want: true},
		"under the first policy here":     {first: true, noted: all, times: 100},
	} {
		now := time.Unix(1_795_000_000, 0)
		f := newFailures(func() time.Time { return now })
		before, s := &Snapshot{revision: "before"}, &Snapshot{revision: "now"}
		if !c.first {
			f.begin(before)
		}
		for _, id := range c.failedBefore {
			f.note(before, id, broken)
		}
		now = now.Add(c.ago)
		f.begin(s)
		if c.cause == nil {
			c.cause = broken
		}
		for _, id := range c.once {
			f.note(s, id, c.cause)
		}
		for range c.times {
			for _, id := range c.noted {
				f.note(s, id, c.cause)
				f.note(before, id, c.cause) // what began before
			}
			now = now.Add(c.every)
		}
		if got := f.tell(); got.Widespread != c.want || got.Revision != "now" {
			t.Errorf("%s: %+v", name, got)
		}
		now = now.Add(failureWindow + time.Second)
		if got := f.tell(); got.Errors != 0 || got.Widespread {
			t.Errorf("%s: a while later it still fails: %+v", name, got)
		}
	}
}

// Where not everything is known of the policy before, nothing is said about it.
func TestFailures_WhatIsRememberedIsBoundedAndDoubtComparesNothing(t *testing.T) {
	now := time.Unix(1_795_000_000, 0)
	f := newFailures(func() time.Time { return now })
	before, s, later := &Snapshot{}, &Snapshot{}, &Snapshot{}
	f.begin(before)
	f.begin(s)
	for range 10 {
		for _, id := range someOrganizations(maxFailing / 4) {
			f.note(s, id, errors.New("broken"))
		}
	}
	if got := f.tell(); len(f.organizations) != maxFailing || got.Organizations != maxFailing || len(got.Some) != someFailing || !got.Widespread {
		t.Errorf("%d are remembered: %+v", len(f.organizations), got)
	}
	f.begin(later)
	for _, id := range someOrganizations(widespreadErrors) {
		f.note(later, id, errors.New("broken"))
	}
	if got := f.tell(); got.NewErrors != widespreadErrors || got.Widespread {
		t.Errorf("compared with what is not known: %+v", got)
	}
	// Who failed long ago makes room.
	now = now.Add(failedBefore + time.Second)
	for range 5 {
		for _, id := range someOrganizations(maxFailing / 4) {
			f.note(later, id, errors.New("broken"))
		}
	}
	if n := len(f.organizations); n != maxFailing {
		t.Errorf("%d are remembered", n)
	}
}

func TestEngine_FailuresAreToldWithTheirPlaceAndNeverTheirWords(t *testing.T) {
	rule := ruleOf(`10 / input.key.metadata.size > 1`)
	e := NewEngine(mustLoad(t, shipped()))
	e.Swap(mustLoad(t, with(t, map[string]string{ruleRego: rule})))
	above, _, _ := strings.Cut(rule, "10 / ")
	line := 1 + strings.Count(above, "\n")
	check := exampleCheck("GET", "/api/v1/tickets")
	for name, c := range map[string]struct {
		change func(*authz.Key)
		want   authz.PolicyFailing
	}{
		"an error of a builtin": {
			func(k *authz.Key) { k.Metadata = `{"size":0}` },
			authz.PolicyFailing{Kind: authz.FailureError, Where: fmt.Sprintf("%s:%d", ruleRego, line)},
		},
		"no limit": {func(k *authz.Key) { k.Organization.Plan = "gone" }, authz.PolicyFailing{Kind: authz.FailureNoDecision}},
	} {
		e.failed.begin(e.current.Load())
		before := e.Failing()
		k := exampleKey()
		c.change(k)
		for range 3 { // a verdict without a limit is not remembered as one
			if v, err := evaluate(t, e, k, check); err == nil && v.Undecided() == nil {
				t.Fatalf("%s: it was decided", name)
			}
		}
		got := e.Failing()
		if got.Errors != 3 || got.Organizations != 1 || got.Kind != c.want.Kind || got.Where != c.want.Where || got.Some[0] != k.Organization.ID ||
			got.Total[got.Kind]-before.Total[got.Kind] != 3 || got.Revision != e.Revision() {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// A decision is no failure, whatever it is, and nor is a row that nobody can read.
	e.failed.begin(e.current.Load())
	denied, unreadable := exampleKey(), exampleKey()
	denied.Scopes, unreadable.Metadata = nil, "{"
	for _, k := range []*authz.Key{exampleKey(), denied, unreadable} {
		_, _ = evaluate(t, e, k, check)
	}
	if got := e.Failing(); got.Errors != 0 {
		t.Errorf("%+v", got)
	}
}

// An organization for whose data a policy has no end keeps others from large calls: that is its
// failure, and not theirs.
func TestEngine_FailuresAreOfWhoCausesThem(t *testing.T) {
	e, _, release := stuck(t)
	defer release()
	check := exampleCheck("GET", "/")
	cause := keyOf(nil, true)
	mine := 0
	for held := false; !held && mine < 10; mine++ { // over its budget, on a busy machine before the call as well, and then held back
		_, err := evaluate(t, e, cause, check)
		held = errors.Is(err, ErrHeldBack)
	}
	for range widespreadErrors {
		if _, err := evaluate(t, e, keyOf(nil, true), check); !errors.Is(err, errLaneBusy) {
			t.Fatal(err)
		}
	}
	got := e.Failing()
	if got.Organizations != 1 || got.Errors != mine || got.Kind != authz.FailureTimeout || got.Some[0] != cause.Organization.ID ||
		got.Total[authz.FailureCrowded] != widespreadErrors || got.Total[authz.FailureHeldBack] != 1 {
		t.Errorf("%+v", got)
	}
}

// A policy that has no end for anybody is held back from everyone, and that is its failure.
func TestEngine_APolicyWithoutAnEndFailsWhoeverItHoldsBack(t *testing.T) {
	e := NewEngine(mustLoad(t, shipped()), WithBudget(time.Millisecond))
	e.Swap(mustLoad(t, minimal(
		"decision := "+allowing("true")+" if count([1 | some a in data.many; some b in data.many; some c in data.many; a + b == c]) == 0\n",
		"data.yaml", "many: ["+strings.Repeat("1, ", 999)+"1]\n",
	)))
	check := exampleCheck("GET", "/")
	for n, want := range []bool{false, false, true} {
		k := exampleKey()
		for range 10 {
			if _, err := evaluate(t, e, k, check); !errors.Is(err, errOverBudget) && !errors.Is(err, ErrHeldBack) {
				t.Fatal(err)
			}
		}
		if got := e.Failing(); got.Widespread != want || got.Organizations != n+1 || got.Kind != authz.FailureTimeout {
			t.Errorf("with %d organizations: %+v", n+1, got)
		}
	}
}
