package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxShadowBatch bounds what a candidate is asked at a time. After each time it rests
	// shadowRest times as long as that took, however long: a slow candidate takes no larger part of
	// a processor than a fast one.
	maxShadowBatch = 32
	shadowRest     = 3
	// maxShadowGroups bounds the differences that are told apart on a replica; the rest of a
	// kind stands together.
	maxShadowGroups = 500
	// maxShadowOverruns in a row end a shadow, and so do as many processes as maxShadowProcesses
	// that end. One that has answered shadowProven questions is no failure.
	maxShadowOverruns  = 8
	maxShadowProcesses = 4
	shadowProven       = 1000
	// shadowBackoff is how long is waited for a second process, twice as long for each further.
	shadowBackoff = 250 * time.Millisecond
)

// Shadow asks a candidate what checks have asked, in a process of its own, and gathers what it
// says otherwise than the policy that decided. Checks hand their questions over and wait for
// nothing. Safe for concurrent use.
type Shadow struct {
	engine    *Engine
	gate      *Gate
	candidate *Source
	beside    *beside
	clock     authz.Clock
	began     sync.Once
	begun     chan struct{}

	mu     sync.Mutex
	counts authz.PolicyShadowCounts
	groups map[shadowGroup]*gathered
}

// ShadowOptions are what a Shadow needs.
type ShadowOptions struct {
	Engine *Engine
	Gate   *Gate
	// Candidate is the policy that is asked.
	Candidate *Source
	// Share and PerSecond are authz.PolicyShadow's.
	Share     float64
	PerSecond int
	// Clock tells when differences are seen.
	Clock authz.Clock
}

// NewShadow returns a Shadow that asks nothing before it is Run.
func NewShadow(o ShadowOptions) *Shadow {
	return &Shadow{
		engine: o.Engine, gate: o.Gate, candidate: o.Candidate, clock: o.Clock,
		beside: newBeside(o.Candidate.revision, o.Share, o.PerSecond), begun: make(chan struct{}), groups: make(map[shadowGroup]*gathered),
		counts: authz.PolicyShadowCounts{Totals: make(map[authz.PolicyDifferenceKind]int64)},
	}
}

// ShadowFailedError says why a candidate is not asked any more.
type ShadowFailedError struct {
	Why string
	// Where is a place in the policy, "" when it is nowhere in particular.
	Where string
	// final tells that another process would do no better, refused why it does not load.
	final   bool
	refused *authz.PolicyReport
}

// Error is file:line: message.
func (e *ShadowFailedError) Error() string {
	if e.Where == "" {
		return e.Why
	}
	return e.Where + ": " + e.Why
}

// Begun is closed once checks hand their questions over.
func (s *Shadow) Begun() <-chan struct{} { return s.begun }

// Run asks until ctx ends, which is nil, or until the candidate takes so long or so much that it
// is not asked any more, a *ShadowFailedError. It is called once.
func (s *Shadow) Run(ctx context.Context) error {
	defer s.close()
	var waiting []shadowed
	for failures := 0; ; {
		answered, err := s.ask(ctx, &waiting, failures > 0)
		if ctx.Err() != nil {
			return nil // whatever it was, it was the end
		}
		if answered >= shadowProven {
			failures = 0
		}
		var failed *ShadowFailedError
		if !errors.As(err, &failed) {
			failed = &ShadowFailedError{Why: oneLine(err.Error())}
		}
		if failures++; failed.final || failures >= maxShadowProcesses {
			return failed
		}
		s.mu.Lock()
		s.counts.Restarts++
		s.mu.Unlock()
		if !pause(ctx, shadowBackoff<<(failures-1)) {
			return nil
		}
	}
}

// pause waits, and tells whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask asks one process for as long as it answers, first what waits. What it was asked last and
// did not answer is what it ended of; the rest goes on waiting.
func (s *Shadow) ask(ctx context.Context, waiting *[]shadowed, traced bool) (answered int, err error) {
	p, err := s.gate.shadow(ctx, s.candidate, traced)
	if err != nil {
		return 0, err
	}
	defer p.end()
	s.open(ctx)
	for overruns := 0; ; {
		if len(*waiting) == 0 {
			if *waiting = s.beside.take(ctx); len(*waiting) == 0 {
				return answered, nil
			}
		}
		started := time.Now()
		if err := p.send(*waiting); err != nil {
			return answered, err
		}
		for len(*waiting) > 0 {
			q := (*waiting)[0]
			a, err := p.answer()
			if ctx.Err() != nil {
				return answered, nil // it was ended
			}
			if err != nil {
				a = shadowAnswer{Answer: authz.AnswerOf(authz.Verdict{}, err), Failure: authz.FailureError, Where: err.Where}
			}
			s.note(q, a)
			*waiting = (*waiting)[1:]
			if err != nil {
				return answered, err
			}
			answered++
			if overruns++; a.Failure != authz.FailureTimeout {
				overruns = 0
			}
			switch {
			case overruns >= maxShadowOverruns:
				return answered, &ShadowFailedError{
					Why: fmt.Sprintf("it takes longer than checks have, %d times in a row", overruns), Where: a.Where, final: true,
				}
			case a.Abandoned:
				return answered, &ShadowFailedError{Why: "a call of a builtin takes longer than checks have, and cannot be ended", Where: a.Where}
			}
		}
		if !pause(ctx, shadowRest*time.Since(started)) {
			return answered, nil
		}
	}
}

// open has checks hand their questions over, from the first process on.
func (s *Shadow) open(ctx context.Context) {
	s.began.Do(func() {
		go s.beside.refill(ctx)
		s.engine.beside.Store(s.beside)
		close(s.begun)
	})
}

// close ends that. What still waits is not asked any more.
func (s *Shadow) close() {
	s.engine.beside.CompareAndSwap(s.beside, nil)
	s.beside.closed.Store(true)
}

// shadowGroup is what is told as one difference.
type shadowGroup struct {
	kind         authz.PolicyDifferenceKind
	active       string
	organization authz.OrganizationID
	key          authz.KeyID
	method, path string
	action       string
	failure      authz.PolicyFailure
	where        string
	answers      string
}

// gathered is a difference, and how many of its requests are written.
type gathered struct {
	authz.PolicyShadowDifference

	written int64
}

// note gathers an answer.
func (s *Shadow) note(q shadowed, a shadowAnswer) {
	now := s.clock.Now()
	before := authz.AnswerOf(q.verdict, q.err)
	kind := before.Difference(a.Answer)
	if a.Failure != "" && before.Code != authz.CodeUnavailable {
		kind = authz.CandidateFails
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Asked++
	if a.Failure != "" {
		s.counts.Failed++
	}
	if a.Took > 0 {
		s.counts.Took.Note(a.Took)
	}
	if q.took > 0 {
		s.counts.ActiveTook.Note(q.took)
	}
	if kind == "" {
		return
	}
	s.counts.Totals[kind]++
	d := s.gather(q, a, kind, before)
	if d.Requests++; d.FirstSeen.IsZero() {
		d.FirstSeen = now
	}
	d.LastSeen = now
}

// gather finds where a difference is counted, or makes it. Where there are too many, those of a
// kind stand together.
func (s *Shadow) gather(q shadowed, a shadowAnswer, kind authz.PolicyDifferenceKind, before authz.PolicyAnswer) *gathered {
	shape := authz.ShapeOf(q.key, &q.check, &q.verdict)
	before, after := before.Listed(), a.Answer.Listed()
	path := shape.Route
	if path == "" {
		path = a.Route
	}
	if path == "" {
		path = shape.Template()
	}
	g := shadowGroup{
		kind: kind, active: q.verdict.Revision, organization: q.key.Organization.ID, key: q.key.ID, method: shape.Method, path: path,
		action: shape.Action, failure: a.Failure, where: a.Where, answers: textOf(before) + textOf(after),
	}
	d := s.groups[g]
	if d == nil && len(s.groups) >= maxShadowGroups {
		g = shadowGroup{kind: kind, active: g.active}
		before, after = authz.PolicyAnswer{}, authz.PolicyAnswer{}
		d = s.groups[g]
	}
	if d == nil {
		d = &gathered{PolicyShadowDifference: authz.PolicyShadowDifference{
			Kind: kind, Active: g.active, Organization: g.organization, Key: g.key, Method: g.method, Path: g.path, Action: g.action,
			Before: before, After: after, Failure: g.failure, Where: g.where,
		}}
		s.groups[g] = d
	}
	return d
}

// Counts tells what came of it so far.
func (s *Shadow) Counts() authz.PolicyShadowCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, b := s.counts, s.beside
	c.Totals = maps.Clone(c.Totals)
	c.Dropped, c.Undecided = b.dropped.Load(), b.undecided.Load()
	if b.closed.Load() { // nobody is asked about what was left
		c.Dropped = b.picked.Load() - c.Asked - c.Undecided
	}
	c.Seen = b.seen.Load()
	return c
}

// Report tells what came of it so far, with the differences that have changed since they were
// last written; written is called once these are.
func (s *Shadow) Report() (counts authz.PolicyShadowCounts, changed []authz.PolicyShadowDifference, written func()) {
	counts = s.Counts()
	s.mu.Lock()
	defer s.mu.Unlock()
	var of []*gathered
	for _, d := range s.groups {
		if d.Requests > d.written {
			of, changed = append(of, d), append(changed, d.PolicyShadowDifference)
		}
	}
	return counts, changed, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, d := range of {
			d.written = changed[i].Requests
		}
	}
}
