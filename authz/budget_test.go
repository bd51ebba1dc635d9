package authz

import (
	"context"
	"testing"
	"time"
)

func TestRemaining_IsTheLesserOfShareAndBudget(t *testing.T) {
	type name struct{}
	parent, cancel := context.WithCancel(context.WithValue(t.Context(), name{}, "x"))
	cancel()
	if got := Remaining(parent, time.Second); got != time.Second {
		t.Errorf("outside of a check: %v", got)
	}
	ctx := withBudget(parent, time.Minute)
	if got := Remaining(ctx, time.Second); got != time.Second {
		t.Errorf("a share that fits: %v", got)
	}
	child, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	if got := Remaining(child, time.Hour); got > time.Minute || got < 50*time.Second {
		t.Errorf("a share that does not fit: %v", got)
	}
	if got := Remaining(withBudget(parent, -time.Second), time.Second); got > 0 {
		t.Errorf("of a check that is late: %v", got)
	}
	if ctx.Err() != nil || ctx.Done() != nil || ctx.Value(name{}) != "x" {
		t.Error("a client that left ends its check, or its values are lost")
	}
}
