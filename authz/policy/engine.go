package policy

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

var _ authz.PolicyEvaluator = (*Engine)(nil)

// DefaultBudget is how long one evaluation may take. An ordinary one takes less
// than a thousandth of it.
const DefaultBudget = 50 * time.Millisecond

// Why a check could not be decided. They come wrapped; use errors.Is.
var (
	// ErrNoPolicy means that no policy has been loaded yet.
	ErrNoPolicy = errors.New("there is no policy")
	// ErrHeldBack means that this key or its organization made evaluations overrun
	// their budget before, so that this check was not evaluated.
	ErrHeldBack = errors.New("checks of this organization overran their budget and are held back for a while")

	errNoOrganization = errors.New("the key belongs to no organization")
	errUndefined      = errors.New("the decision is undefined")
	errNoDecision     = errors.New("read the policy's decision")
	// errInput is of a record, whatever the policy.
	errInput = errors.New("make the policy's input")
	// errCrowded means that it took too long while a call was running that another one left behind.
	errCrowded = errors.New("a call that another evaluation left running took the time")
)

// Engine lets the current Snapshot decide. It is safe for concurrent use; the
// zero Engine is not usable.
type Engine struct {
	current atomic.Pointer[Snapshot]
	names   *names
	held    *holding
	// lane has the large calls of checks, explaining those of explanations, judging those of audits.
	lane, explaining, judging *lane
	stacks                    *stacks
	known                     *verdicts
	failed                    *failures
	budget                    time.Duration
	// beside is nil while no policy is asked beside the current one.
	beside atomic.Pointer[beside]
}

// Option sets what an Engine does otherwise by default.
type Option func(*Engine)

// WithBudget sets how long one evaluation may take, in place of DefaultBudget. It
// must be positive.
func WithBudget(d time.Duration) Option { return func(e *Engine) { e.budget = d } }

// NewEngine returns an Engine with its first policy. A nil Snapshot is none:
// nothing can be decided until Swap.
func NewEngine(s *Snapshot, options ...Option) *Engine {
	e := &Engine{
		names: newNames(), held: newHolding(time.Now), lane: newLane(), explaining: newLane(), judging: newLane(), stacks: newStacks(), known: newVerdicts(),
		failed: newFailures(time.Now), budget: DefaultBudget,
	}
	for _, option := range options {
		option(e)
	}
	e.Swap(s)
	return e
}

// Swap puts another policy in place of the current one, at once and for every
// check that begins afterwards; those that have begun keep theirs.
func (e *Engine) Swap(s *Snapshot) {
	if s != nil {
		s = s.in(e.lane)
	}
	e.current.Store(s)
	e.held.forget()
	e.known.forget()
	e.failed.begin(s)
}

// Failing tells how the policy in force fails at run time.
func (e *Engine) Failing() authz.PolicyFailing { return e.failed.tell() }

// Revision implements authz.PolicyEvaluator.
func (e *Engine) Revision() string {
	if s := e.current.Load(); s != nil {
		return s.revision
	}
	return ""
}

// Evaluate implements authz.PolicyEvaluator. It returns within the budget and a
// few milliseconds, and stackPatience more where thousands ask at once. Nothing but a complete decision whose allow is the boolean
// true allows: undefined, another type, a conflict, an error of a builtin, a
// timeout and a panic are errors.
//
// What was asked twice in a row is remembered: see verdicts. Where there are thousands of goroutines, it runs on one of a few. Of what policies call, only a builtin with
// large operands can outlive the budget; at most one such call is left running at
// a time, and the key that caused it is held back (ErrHeldBack) until it ends.
//
// While a Shadow runs, some questions and their answers are handed on to it.
func (e *Engine) Evaluate(ctx context.Context, k *authz.Key, c *authz.Check) (authz.Verdict, error) {
	b := e.beside.Load()
	if b == nil || !b.picks() {
		v, _, err := e.decide(ctx, k, c)
		return v, err
	}
	started := time.Now()
	v, remembered, err := e.decide(ctx, k, c)
	took := time.Since(started)
	if remembered {
		took = 0
	}
	b.hand(k, c, v, err, took)
	return v, err
}

// decide is Evaluate for one snapshot; it also tells whether the answer is from memory.
func (e *Engine) decide(ctx context.Context, k *authz.Key, c *authz.Check) (v authz.Verdict, remembered bool, err error) {
	s := e.current.Load()
	if s == nil {
		return v, false, ErrNoPolicy
	}
	switch {
	case k.Organization == nil:
		return authz.Verdict{Revision: s.revision}, false, errNoOrganization
	case e.held.holds(k):
		e.failed.note(s, k.Organization.ID, ErrHeldBack)
		return authz.Verdict{Revision: s.revision}, false, ErrHeldBack
	}
	a := askedOf(s, k, c)
	known, ok, hash := e.known.find(&a, c.Segments)
	if ok {
		return known, true, nil
	}
	v, err = e.stacks.evaluate(ctx, e, s, k, c)
	v.Revision = s.revision
	why := err
	if why == nil {
		if why = v.Undecided(); why != nil {
			why = fmt.Errorf("%w: %w", errNoDecision, why)
		}
	}
	switch {
	case why == nil:
		e.known.keep(&a, c.Segments, hash, v)
	case !errors.Is(why, errInput):
		e.failed.note(s, k.Organization.ID, why)
	}
	return v, false, err
}

func (e *Engine) evaluate(ctx context.Context, s *Snapshot, k *authz.Key, c *authz.Check) (v authz.Verdict, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("evaluate the policy: panic: %v", r)
		}
	}()
	input, err := e.names.input(k, c)
	if err != nil {
		return v, fmt.Errorf("%w: %w", errInput, err)
	}
	d := newDeadline(ctx, e.budget)
	result, err := s.run(ctx, s.check, input, d)
	if d.over {
		e.held.overran(k, d.abandoned)
		if d.abandoned == nil && e.lane.busy() {
			err = errors.Join(errCrowded, err)
		}
		return v, fmt.Errorf("evaluate the policy: %w", d.err(err))
	}
	if err != nil {
		return v, fmt.Errorf("evaluate the policy: %w", err)
	}
	if result == nil {
		return v, errUndefined
	}
	if v, err = decisionOf(result, k, c); err != nil {
		return v, err
	}
	v.Cataloged = s.templates[v.Route]
	return v, nil
}
