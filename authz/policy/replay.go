package policy

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxReplayAnswers bounds the answers that a replay remembers; then it forgets them all.
	maxReplayAnswers = 200_000
	// maxReplayClasses bounds the kinds of keys and callers that it tells apart at a time.
	maxReplayClasses = 100_000
	// maxReplayGroups bounds the differences that are told apart by key, and again by
	// organization; maxDifferences those that are told.
	maxReplayGroups = 20_000
	maxDifferences  = 1_000
	// maxReplayReasons bounds the reasons why a replay is approximate.
	maxReplayReasons = 20
)

// replay asks two policies about recorded requests, and gathers what differs. What neither
// policy can tell apart is asked once: analysis tells what they read. Not safe for
// concurrent use.
type replay struct {
	active, candidate *replayed
	names             *names
	// reads is what either looks at of a key, its organization and a caller.
	reads  projections
	doubts *doubts
	// classes number what cannot be told apart, from first on.
	classes map[string]int32
	first   int32
	// keyOf is the class of key, the last one, and callers has theirs: rows come key by key.
	key     *authz.Key
	keyOf   int32
	callers map[authz.CallerID]int32
	answers map[replayQuestion]replayAnswer
	groups  map[replayGroup]*authz.PolicyDifference
	diff    *authz.PolicyDiff
}

// replayQuestion is what no two policies in question can tell apart.
type replayQuestion struct {
	key, caller int32
	shape       authz.Shape
	faithful    bool
}

// replayAnswer is what both say, and whether it may be otherwise.
type replayAnswer struct {
	before, after authz.PolicyAnswer
	kind          authz.PolicyDifferenceKind
	approximate   bool
	// text tells it apart from others.
	text string
}

// replayGroup is what is told as one difference.
type replayGroup struct {
	kind         authz.PolicyDifferenceKind
	organization authz.OrganizationID
	key          authz.KeyID
	method, path string
	action       string
	answer       string
}

// newReplay prepares a replay of two policies and what is loaded of them. builtIn is the policy
// whose rules look no further into a request than a shape keeps it.
func newReplay(active, candidate, builtIn *Source, before, after *Snapshot) (*replay, error) {
	r := &replay{
		classes: make(map[string]int32), callers: make(map[authz.CallerID]int32), answers: make(map[replayQuestion]replayAnswer),
		groups: make(map[replayGroup]*authz.PolicyDifference),
		diff: &authz.PolicyDiff{
			Active: active.revision, Candidate: candidate.revision, Totals: map[authz.PolicyDifferenceKind]int64{},
			Differences: []authz.PolicyDifference{}, Reasons: []authz.PolicyProblem{},
		},
	}
	r.names = newNames()
	r.active, r.candidate = newReplayed(before, r.names), newReplayed(after, r.names)
	r.reads = projectionsOf(before, after)
	var err error
	if r.doubts, err = doubtsOf(builtIn, active, candidate, before, after); err != nil {
		return nil, err
	}
	r.diff.Reasons = append(r.diff.Reasons, r.doubts.reasons...)
	return r, nil
}

// add asks about requests.
func (r *replay) add(ctx context.Context, rows authz.Recorded) {
	if rows.Shape.Collapsed {
		r.diff.Skipped.Collapsed += rows.Requests
		return
	}
	question, faithful := rows.Shape.Check(rows.Key, rows.Caller)
	if question == nil {
		return
	}
	r.diff.Requests += rows.Requests
	asked := replayQuestion{key: r.classOfKey(rows.Key), caller: r.classOfCaller(rows.Caller), shape: rows.Shape}
	asked.faithful = faithful
	answer, known := r.answers[asked]
	if !known {
		answer = r.ask(ctx, rows.Key, question, rows.Shape, faithful)
		if len(r.answers) >= maxReplayAnswers {
			clear(r.answers)
		}
		r.answers[asked] = answer
	}
	if answer.approximate {
		r.diff.Approximate += rows.Requests
	}
	if answer.kind != "" {
		r.note(rows, answer)
	}
}

func (r *replay) ask(ctx context.Context, k *authz.Key, q *authz.Check, shape authz.Shape, faithful bool) replayAnswer {
	r.diff.Questions++
	before, slowBefore := r.active.ask(ctx, k, q)
	after, slowAfter := r.candidate.ask(ctx, k, q)
	approximate := r.doubts.about(shape, faithful, r.diff)
	if slowBefore || slowAfter {
		approximate = true
		r.doubts.tooSlow(r.diff, DefaultBudget)
	}
	return replayAnswer{before, after, before.Difference(after), approximate, textOf(before) + textOf(after)}
}

// replayBudget is how long one answer of a replay may take: more than one of a check, so that a
// busy machine is not taken for a slow policy.
const replayBudget = time.Second

// replayed is a policy that is asked again and again. What it has overrun is not held against
// anyone: a week goes by in seconds.
type replayed struct {
	snapshot *Snapshot
	names    *names
}

func newReplayed(s *Snapshot, n *names) *replayed { return &replayed{s.in(newLane()), n} }

// ask also tells whether the answer took longer than a check has.
func (p *replayed) ask(ctx context.Context, k *authz.Key, c *authz.Check) (a authz.PolicyAnswer, slow bool) {
	started := time.Now()
	defer func() {
		if r := recover(); r != nil {
			a = authz.AnswerOf(authz.Verdict{}, fmt.Errorf("replay: panic: %v", r))
		}
		slow = time.Since(started) > DefaultBudget
	}()
	x := &explainer{s: p.snapshot, names: p.names, until: newDeadline(ctx, replayBudget)}
	return authz.AnswerOf(x.ask(ctx, k, c, nil)), false
}

// note gathers a difference. Where there are too many, keys and then organizations are told
// apart no more.
func (r *replay) note(rows authz.Recorded, a replayAnswer) {
	r.diff.Totals[a.kind] += rows.Requests
	organization := rows.Key.Organization
	g := replayGroup{
		kind: a.kind, organization: organization.ID, key: rows.Key.ID, method: rows.Shape.Method, path: cmp.Or(rows.Shape.Route, rows.Shape.Template()),
		action: rows.Shape.Action, answer: a.text,
	}
	d := r.groups[g]
	if d == nil && len(r.groups) >= maxReplayGroups {
		g.key = authz.KeyID{}
		if d = r.groups[g]; d == nil && len(r.groups) >= 2*maxReplayGroups {
			g.organization, g.path, g.action, g.answer = authz.OrganizationID{}, "", "", ""
			d = r.groups[g]
		}
	}
	if d == nil {
		d = &authz.PolicyDifference{
			Kind: a.kind, Organization: g.organization, Key: g.key, Method: g.method, Path: g.path, Action: g.action,
			Before: a.before, After: a.after,
		}
		if !g.key.IsZero() {
			d.KeyName = rows.Key.Name
		}
		if !g.organization.IsZero() {
			d.OrganizationName = organization.Name
		}
		r.groups[g] = d
	}
	d.Requests += rows.Requests
	if a.approximate {
		d.Approximate += rows.Requests
	}
}

// textOf tells answers apart.
func textOf(a authz.PolicyAnswer) string {
	return fmt.Sprintf("%s %d %q %q %v", a.Code, a.Status, a.Reasons, a.Missing, a.Limits)
}

// end is what came of it.
func (r *replay) end() *authz.PolicyDiff {
	all := make([]authz.PolicyDifference, 0, len(r.groups))
	for _, d := range r.groups {
		all = append(all, *d)
	}
	rank := map[authz.PolicyDifferenceKind]int{authz.DenyToAllow: 0, authz.AllowToDeny: 1, authz.OtherReasons: 2, authz.OtherLimits: 3}
	slices.SortFunc(all, func(a, b authz.PolicyDifference) int {
		return cmp.Or(
			rank[a.Kind]-rank[b.Kind], cmp.Compare(b.Requests, a.Requests), strings.Compare(a.OrganizationName, b.OrganizationName),
			strings.Compare(a.Path, b.Path), strings.Compare(a.Method, b.Method), strings.Compare(a.Key.String(), b.Key.String()),
			strings.Compare(a.Action, b.Action), strings.Compare(textOf(a.After), textOf(b.After)),
		)
	})
	r.diff.Differences = all[:min(len(all), maxDifferences)]
	r.diff.Unlisted = int64(len(all) - len(r.diff.Differences))
	return r.diff
}

// projections are what policies read of the parts of the input that are records.
type projections struct{ key, organization, caller []ast.Ref }

// projectionsOf finds them, of the entry point for checks.
func projectionsOf(snapshots ...*Snapshot) projections {
	var p projections
	for _, s := range snapshots {
		for _, ref := range s.reads() {
			for _, part := range []struct {
				name string
				of   *[]ast.Ref
			}{{"key", &p.key}, {"organization", &p.organization}, {"caller", &p.caller}} {
				switch {
				case len(ref) == 1: // all of the input
					*part.of = append(*part.of, ast.Ref{})
				case ref[1].Value.Compare(ast.String(part.name)) == 0:
					*part.of = append(*part.of, ref[2:])
				}
			}
		}
	}
	return p
}

// reads are the parts of the input that the entry point for checks looks at.
func (s *Snapshot) reads() []ast.Ref {
	w := newWalk(s)
	w.entrypoint(checkEntrypoint)
	return slices.Collect(maps.Values(w.reads))
}

func (r *replay) classOfKey(k *authz.Key) int32 {
	if r.key == k {
		return r.keyOf
	}
	var b strings.Builder
	input, err := r.names.input(k, &authz.Check{})
	if err != nil {
		b.WriteString(k.ID.String()) // whatever is wrong with it is its own
	} else {
		project(&b, input.Get(r.names.key), r.reads.key)
		project(&b, input.Get(r.names.organization), r.reads.organization)
	}
	r.key, r.keyOf = k, r.class(b.String())
	return r.keyOf
}

func (r *replay) classOfCaller(c *authz.Caller) int32 {
	class, ok := r.callers[c.ID]
	if !ok {
		var b strings.Builder
		project(&b, r.names.newCallerTerm(c), r.reads.caller)
		class = r.class(b.String())
		r.callers[c.ID] = class
	}
	return class
}

// class numbers texts.
func (r *replay) class(text string) int32 {
	n, ok := r.classes[text]
	if !ok {
		if len(r.classes) >= maxReplayClasses { // what was asked of them is asked again
			clear(r.classes)
			clear(r.callers)
			clear(r.answers)
			r.key, r.first = nil, r.first+maxReplayClasses
		}
		n = r.first + int32(len(r.classes)) //nolint:gosec // there are not that many
		r.classes[text] = n
	}
	return n
}

// project writes what the references find in a document, each behind a byte that no
// document has.
func project(b *strings.Builder, document *ast.Term, refs []ast.Ref) {
	for _, ref := range refs {
		b.WriteByte(0)
		if value, err := document.Value.Find(ref); err == nil {
			b.WriteString(value.String())
		}
	}
	b.WriteByte(0)
}
