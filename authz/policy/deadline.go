package policy

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/topdown"
)

// What ends an evaluation from outside.
var (
	errOverBudget = errors.New("the evaluation took longer than its budget")
	errLaneBusy   = errors.New("a large call of another evaluation was still running")
	errNoDeadline = errors.New("a large call without a deadline")
)

const (
	// freeSteps is how many steps an evaluation may take however late it is. An
	// ordinary check takes a few hundred, so one that merely waited for a
	// processor is not denied for it.
	freeSteps = 4_096
	// stepsBetweenLooks is how many steps pass between two looks at the clock.
	stepsBetweenLooks = 64
)

var _ topdown.Cancel = (*deadline)(nil)

// deadline ends one evaluation. OPA asks it at each step, on the one goroutine
// that evaluates; no timer runs and nobody else is woken.
type deadline struct {
	ctx   context.Context //nolint:containedctx // OPA's interface hands none in; it lives as long as one call
	at    time.Time
	steps int
	over  bool
	// abandoned is the call that was left running, or nil.
	abandoned *call
	cancelled atomic.Bool
}

func newDeadline(ctx context.Context, budget time.Duration) *deadline {
	return &deadline{ctx: ctx, at: time.Now().Add(budget)}
}

// Cancel implements topdown.Cancel.
func (d *deadline) Cancel() { d.cancelled.Store(true) }

// Cancelled implements topdown.Cancel.
func (d *deadline) Cancelled() bool {
	d.steps++
	if d.steps%stepsBetweenLooks == 0 && d.steps >= freeSteps && !d.over {
		d.over = !time.Now().Before(d.at) || d.ctx.Err() != nil
	}
	return d.over || d.cancelled.Load()
}

// err says what ended the evaluation, when it was this deadline.
func (d *deadline) err(cause error) error {
	if d.over {
		return errors.Join(errOverBudget, cause)
	}
	return cause
}
