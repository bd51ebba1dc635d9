package authz

import (
	"context"
	"time"
)

// DefaultCheckBudget is the one deadline of a check, everything included.
const DefaultCheckBudget = 150 * time.Millisecond

// budgetKey finds a check's deadline in its context.
type budgetKey struct{}

// checkContext is the context of one check. It is never cancelled: a client that leaves
// must not cost a connection. Its deadline is asked for by Remaining, so that a check
// which waits for nothing pays for no timer. Values are its parent's.
type checkContext struct {
	context.Context

	until time.Time
}

// withBudget starts a check's time.
func withBudget(parent context.Context, budget time.Duration) context.Context {
	return &checkContext{parent, time.Now().Add(budget)}
}

// Deadline implements context.Context: none, see checkContext.
func (*checkContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (*checkContext) Done() <-chan struct{} { return nil }

// Err implements context.Context.
func (*checkContext) Err() error { return nil }

// Value implements context.Context.
func (c *checkContext) Value(key any) any {
	if _, ok := key.(budgetKey); ok {
		return c
	}
	return c.Context.Value(key)
}

// Remaining is how much of its share a part may still use: the share, or what is left
// of the check's time when that is less; not positive when nothing is left. Outside of
// a check it is the share.
func Remaining(ctx context.Context, share time.Duration) time.Duration {
	c, ok := ctx.Value(budgetKey{}).(*checkContext)
	if !ok {
		return share
	}
	return min(share, time.Until(c.until))
}
