package ratelimit

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

// lateFor is how long an answer is waited for in all, on nobody's time: after the budget
// the stand-in has answered, but what Redis has done decides what it is still to be told.
const lateFor = time.Second

// errLate is a context's, so that it is a timeout like any other.
var errLate = fmt.Errorf("ask Redis: no answer yet: %w", context.DeadlineExceeded)

// call is one charge under way. Whoever asked waits for it, or leaves it when the time is
// over; then one of two knows what Redis did, and the other what the client was told.
//
// A call that was sent and timed out may have charged, now or when a paused Redis goes on,
// or never, when Redis was killed. To owe it always charges twice for each late answer,
// without end if every other is late. To owe it never lets a Redis that denies late, or
// loses what it is sent, admit up to twice the rate. So its answer decides:
//
//	Redis          the stand-in admitted     the stand-in denied
//	has charged    nothing: it is paid       give it back
//	has denied     owe                       nothing
//	never answers  owe                       nothing
//
// That costs each call some microseconds, and is done only while answers are late: the first
// of them are owed whatever Redis did, see askPlainly. Beyond those only what is in the last line
// can be charged twice, by a Redis that was paused for longer than lateFor. A call keeps its place in the bulkhead until its answer is there or is given
// up, so these are no more than there are places; and three of them open the breaker.
type call struct {
	charge authz.Charge
	err    error
	done   chan struct{}
	// left is who was first: the answer, or who asked when its time was over.
	left atomic.Bool
	// admitted is told by who has left.
	admitted chan bool
}

// standIn tells what the stand-in has answered for a call that was left.
func (c *call) standIn(admitted bool) {
	if c != nil {
		c.admitted <- admitted
	}
}

// ask charges in Redis. A client that goes away does not end the question: the charge
// may have been taken already, a connection would be lost with it, and many such
// clients would look like a Redis that does not answer. With a call that is late the
// caller must tell it what stood in.
func (l *Limiter) ask(ctx context.Context, bucket string, r authz.Rate, cost int) (_ authz.Charge, late *call, _ error) {
	left, err := l.bulkhead.enter(authz.Remaining(ctx, budget))
	if err != nil {
		return authz.Charge{}, nil, err
	}
	if l.sinceMade() >= l.lateUntil.Load() {
		c, err := l.askPlainly(ctx, left, bucket, r, cost)
		return c, nil, err
	}
	c := &call{done: make(chan struct{}), admitted: make(chan bool, 1)}
	go l.carryOut(context.WithoutCancel(ctx), c, bucket, r, cost) // Close waits for its place
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		if c.left.CompareAndSwap(false, true) {
			l.expectLate()
			late, err = c, errLate
			break
		}
		<-c.done
	}
	if late == nil {
		err = c.err
	}
	if err != nil {
		return authz.Charge{}, late, crowded(err, left)
	}
	return c.charge, nil, nil
}

// lateAgain is for how long after a late answer more of them are expected.
const lateAgain = 10 * time.Second

// expectLate has calls be carried out beside those who ask, for a while.
func (l *Limiter) expectLate() { l.lateUntil.Store(l.sinceMade() + int64(lateAgain)) }

func (l *Limiter) sinceMade() int64 { return int64(time.Since(l.made)) }

// askPlainly charges while no answer is late. The first ones that are late, no more than there are
// places, are owed whatever Redis did: what is charged too much is bounded by that.
func (l *Limiter) askPlainly(ctx context.Context, left time.Duration, bucket string, r authz.Rate, cost int) (authz.Charge, error) {
	defer l.bulkhead.leave()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), left)
	defer cancel()
	c, err := l.askRate(ctx, bucket, r, cost)
	if err == nil {
		return c, nil
	}
	l.expectLate()
	return authz.Charge{}, crowded(err, left)
}

// crowded tells of a failure whether it was ours, in a call that was given so much time.
func crowded(err error, left time.Duration) error {
	if isOurs(err, left) {
		return fmt.Errorf("%w: %w", errCrowded, err)
	}
	return err
}

// carryOut charges, and brings the books in order when nobody has waited for it.
func (l *Limiter) carryOut(ctx context.Context, c *call, bucket string, r authz.Rate, cost int) {
	defer l.bulkhead.leave()
	ctx, cancel := context.WithTimeout(ctx, lateFor)
	defer cancel()
	c.charge, c.err = l.askRate(ctx, bucket, r, cost)
	if c.left.CompareAndSwap(false, true) {
		close(c.done)
		return
	}
	l.reconcile(context.WithoutCancel(ctx), c, <-c.admitted, bucket, r, cost)
}

// reconcile does what the table above says.
func (l *Limiter) reconcile(ctx context.Context, c *call, admitted bool, bucket string, r authz.Rate, cost int) {
	switch charged := c.err == nil && c.charge.Allowed; {
	case admitted && !charged && l.mode == authz.LimiterLocal:
		l.local.oweLate(bucket, r, cost)
		l.wake()
	case charged && !admitted:
		ctx, cancel := context.WithTimeout(ctx, budget)
		defer cancel()
		// A negative cost gives back, and no more than was taken.
		_, _ = l.rate.AllowN(ctx, bucket, rateOf(r), -cost)
	}
}

// oweLate owes what was admitted for a call that turns out not to have charged it.
func (l *local) oweLate(name string, r authz.Rate, cost int) {
	now := l.now()
	b := l.bucket(name, r)
	b.oweAgain(now, l.share(now), cost)
	l.touched.add(b)
}
