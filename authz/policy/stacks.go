package policy

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxStacks is how many goroutines evaluate. Few more than there are processors could
	// do with; the rest is for those that wait for a large call.
	maxStacks = 64
	// manyGoroutines is from how many on evaluations are handed over, which takes some ten
	// microseconds: the stacks of fewer are no matter.
	manyGoroutines = 512
	// stackPatience is how long a check waits for one of them before it evaluates on its
	// own goroutine: longer than ordinary ones take together.
	stackPatience = 20 * time.Millisecond
	// stackIdle is how long one lasts without work.
	stackIdle = time.Minute
)

// stacks has evaluations run on a few goroutines that last, where there are thousands of
// connections: OPA takes tens of kilobytes of stack, which would stay with the goroutine
// of each. Safe for concurrent use.
type stacks struct {
	tasks chan *task
	count atomic.Int64
	pool  sync.Pool
}

// task is one evaluation.
type task struct {
	e    *Engine
	s    *Snapshot
	ctx  context.Context //nolint:containedctx // of a call, which waits for it
	k    *authz.Key
	c    *authz.Check
	v    authz.Verdict
	err  error
	done chan struct{}
}

func newStacks() *stacks {
	return &stacks{
		tasks: make(chan *task),
		pool:  sync.Pool{New: func() any { return &task{done: make(chan struct{}, 1)} }},
	}
}

// evaluate is e.evaluate, on one of the goroutines when there are many others.
func (p *stacks) evaluate(ctx context.Context, e *Engine, s *Snapshot, k *authz.Key, c *authz.Check) (authz.Verdict, error) {
	if runtime.NumGoroutine() < manyGoroutines {
		return e.evaluate(ctx, s, k, c)
	}
	t := p.pool.Get().(*task) //nolint:forcetypeassert,errcheck // nothing else is put there
	t.e, t.s, t.ctx, t.k, t.c = e, s, ctx, k, c
	if !p.hand(t) {
		return e.evaluate(ctx, s, k, c)
	}
	<-t.done
	v, err := t.v, t.err
	*t = task{done: t.done}
	p.pool.Put(t)
	return v, err
}

// hand gives a task to a goroutine, or tells that none had time for it.
func (p *stacks) hand(t *task) bool {
	select {
	case p.tasks <- t:
		return true
	default:
	}
	if p.count.Add(1) <= maxStacks {
		go p.work(t)
		return true
	}
	p.count.Add(-1)
	patience := time.NewTimer(stackPatience)
	defer patience.Stop()
	select {
	case p.tasks <- t:
		return true
	case <-patience.C:
		return false
	}
}

// work evaluates until there was nothing to do for a while.
func (p *stacks) work(t *task) {
	defer p.count.Add(-1)
	idle := time.NewTimer(stackIdle)
	defer idle.Stop()
	for {
		t.v, t.err = t.e.evaluate(t.ctx, t.s, t.k, t.c)
		t.done <- struct{}{}
		idle.Reset(stackIdle)
		select {
		case t = <-p.tasks:
		case <-idle.C:
			return
		}
	}
}
