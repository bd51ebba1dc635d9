package policy

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxShadowWaiting bounds the questions that wait for a candidate, and maxShadowBytes about
	// what they take; what finds no place is dropped, and counted.
	maxShadowWaiting = 1024
	maxShadowBytes   = 16 << 20
	// besideRefills is in how many parts the questions of a second are handed out.
	besideRefills = 10
	// wholeShare is a share of all.
	wholeShare = 1 << 32
)

// beside is where checks hand questions over that a candidate is asked as well. Nothing in it
// waits. Safe for concurrent use.
type beside struct {
	// candidate is not compared with itself.
	candidate string
	// share is of wholeShare, perRefill how many questions there are in each part of a second.
	share     uint64
	perRefill float64

	places atomic.Int64
	queue  chan shadowed
	bytes  atomic.Int64
	closed atomic.Bool

	seen, picked, dropped, undecided atomic.Int64
}

// shadowed is a question that was decided. Nothing of it changes any more, and it holds nothing
// that was presented.
type shadowed struct {
	key     *authz.Key
	check   authz.Check
	verdict authz.Verdict
	err     error
	// took is how long the policy took; 0 when the answer was from memory.
	took time.Duration
	size int64
}

func newBeside(candidate string, share float64, perSecond int) *beside {
	b := &beside{
		candidate: candidate, share: uint64(share * wholeShare), perRefill: float64(perSecond) / besideRefills,
		queue: make(chan shadowed, maxShadowWaiting),
	}
	b.places.Store(b.most())
	return b
}

// most is how many questions may come at once.
func (b *beside) most() int64 { return max(int64(b.perRefill), 1) }

// refill hands out the questions of each second until ctx ends.
func (b *beside) refill(ctx context.Context) {
	tick := time.NewTicker(time.Second / besideRefills)
	defer tick.Stop()
	for earned := 0.0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		earned += b.perRefill
		whole := int64(earned)
		earned -= float64(whole)
		// A check that takes one between these two lines has it for nothing: there are a few more.
		left := max(b.places.Load(), 0)
		b.places.Store(min(left+whole, b.most()))
	}
}

// picks tells whether the check that is about to be decided is handed over.
func (b *beside) picks() bool {
	b.seen.Add(1)
	if b.share < wholeShare && uint64(rand.Uint32()) >= b.share { //nolint:gosec // a sample, no secret
		return false
	}
	return b.places.Load() > 0 && b.places.Add(-1) >= 0
}

// hand hands over a check that was picked.
func (b *beside) hand(k *authz.Key, c *authz.Check, v authz.Verdict, err error, took time.Duration) {
	b.picked.Add(1)
	switch {
	case v.Revision == "", v.Revision == b.candidate, k.Organization == nil, isNoTime(err):
		b.undecided.Add(1)
		return
	case b.closed.Load(), len(b.queue) == cap(b.queue), b.bytes.Load() >= maxShadowBytes:
		b.dropped.Add(1)
		return
	}
	q := shadowed{key: k, check: c.Copy(), verdict: copyVerdict(v), err: err, took: took}
	q.size = sizeOf(&q.check) + sizeOfVerdict(&q.verdict)
	b.bytes.Add(q.size)
	select {
	case b.queue <- q:
	default:
		b.bytes.Add(-q.size)
		b.dropped.Add(1)
	}
}

// isNoTime tells of an error that says nothing of the policy: it had no time, or was not asked.
func isNoTime(err error) bool {
	return errors.Is(err, ErrHeldBack) || errors.Is(err, errOverBudget) || errors.Is(err, errLaneBusy) || errors.Is(err, errCrowded)
}

// copyVerdict has texts of its own: a policy's may be parts of a question's body, which holds
// the secret that was presented. Messages are not kept: nobody compares them, only whether there is one.
func copyVerdict(v authz.Verdict) authz.Verdict {
	v.Route = strings.Clone(v.Route)
	v.Reasons = slices.Clone(v.Reasons)
	for i, r := range v.Reasons {
		if v.Reasons[i].Code = authz.Code(strings.Clone(string(r.Code))); r.Message != "" {
			v.Reasons[i].Message = "-"
		}
	}
	v.Required, v.Missing = copyScopes(v.Required), copyScopes(v.Missing)
	v.Limits = slices.Clone(v.Limits)
	for i, l := range v.Limits {
		v.Limits[i].Name = strings.Clone(l.Name)
	}
	return v
}

func copyScopes(in []authz.Scope) []authz.Scope {
	out := slices.Clone(in)
	for i, s := range out {
		out[i] = authz.Scope(strings.Clone(string(s)))
	}
	return out
}

// sizeOf is about what a question takes in memory, in bytes.
func sizeOf(c *authz.Check) int64 {
	size := 1<<10 + 2*len(c.Path) + len(c.Method) + len(c.Action) + 16*len(c.Segments)
	return int64(size + len(c.Resource.Type) + len(c.Resource.ID) + len(c.Resource.Organization))
}

// elementSize is about what an element of a verdict takes besides its text, in bytes.
const elementSize = 64

// sizeOfVerdict is about what a copied verdict takes in memory: a policy may say as much as it likes.
func sizeOfVerdict(v *authz.Verdict) int64 {
	size := len(v.Route) + elementSize*(len(v.Reasons)+len(v.Required)+len(v.Missing)+len(v.Limits))
	for _, r := range v.Reasons {
		size += len(r.Code)
	}
	for _, s := range v.Required {
		size += len(s)
	}
	for _, s := range v.Missing {
		size += len(s)
	}
	for _, l := range v.Limits {
		size += len(l.Name)
	}
	return int64(size)
}

// take waits for questions and returns as many as are asked at a time; none when ctx ends.
func (b *beside) take(ctx context.Context) []shadowed {
	var batch []shadowed
	select {
	case q := <-b.queue:
		batch = append(batch, q)
	case <-ctx.Done():
		return nil
	}
	for len(batch) < maxShadowBatch {
		select {
		case q := <-b.queue:
			batch = append(batch, q)
			continue
		default:
		}
		break
	}
	for _, q := range batch {
		b.bytes.Add(-q.size)
	}
	return batch
}
