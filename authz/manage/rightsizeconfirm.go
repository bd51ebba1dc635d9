package manage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

// confirmed is a narrowing that turned out to take what was used meanwhile.
type confirmed struct {
	narrowedAt time.Time
	why        *authz.Error
}

// is refuses to undo another narrowing than this; nil is any.
func (c *confirmed) is(n *KeyNarrowing) error {
	if c != nil && !n.At.Equal(c.narrowedAt) {
		return conflict("scopes_changed", "the key was narrowed again meanwhile")
	}
	return nil
}

// confirmNarrowing asks about what was decided until every replica knew of a narrowing: until
// then the key was used with all that it had. What needs that, or might, gives it back. Only now
// the answer is remembered for the request's Idempotency-Key: nothing else is one.
func (s *Service) confirmNarrowing(ctx context.Context, r Request, plan *narrowingPlan, done *NarrowingChange) error {
	n := &done.Narrowing
	once := r
	once.IdempotencyKey, once.IfVersion = "", 0
	err := s.againstDone(ctx, once, plan, n)
	if err == nil {
		s.rememberNarrowing(ctx, r, done)
		return nil
	}
	why := authz.Unavailable("what the key was used for meanwhile could not be found out", err)
	var known *authz.Error
	if errors.As(err, &known) {
		copied := *known
		why = &copied
	}
	_, undo := s.undoNarrowing(ctx, once, n.Organization, n.Key, &confirmed{n.At, why})
	if undo != nil {
		why.Message = fmt.Sprintf("the key was narrowed and could not be given back what it had (%s); then: %s", scopesText(n.Before), why.Message)
		return errors.Join(why, undo)
	}
	why.Message = "the key was narrowed and has its scopes again: " + why.Message
	return why
}

// rememberNarrowing keeps the answer of a narrowing that was confirmed. It is given though it could
// not be kept: then the same request is a new one, which finds nothing to take.
func (s *Service) rememberNarrowing(ctx context.Context, r Request, done *NarrowingChange) {
	if scope := r.scope(); scope != nil {
		_, _ = s.store.Write(ctx, true, func(ctx context.Context, w Writer) error {
			return remember(ctx, w, *scope, r, outcome{takes: true}, done)
		})
	}
}

// againstDone says why a narrowing that is done should not have been.
func (s *Service) againstDone(ctx context.Context, r Request, plan *narrowingPlan, n *KeyNarrowing) error {
	until, _, err := s.settle(ctx, r)
	if err != nil {
		return err
	}
	var traffic *KeyTraffic
	err = s.read(ctx, func(ctx context.Context, re Reader) error {
		traffic, err = re.KeyTraffic(ctx, TenantOf(r.Actor), KeyTrafficFilter{
			Organization: n.Organization, Key: n.Key, Since: plan.at, Until: until, Limit: maxKeyTraffic,
		})
		return err //nolint:wrapcheck // read does
	})
	if err != nil {
		return err
	}
	traffic.Recorded = slices.DeleteFunc(traffic.Recorded, func(rows authz.RecordedOfKey) bool { return plan.known[kindOf(rows)] })
	if len(traffic.Recorded) == 0 && !traffic.More {
		return nil
	}
	if traffic.Key != nil {
		traffic.Key = traffic.Key.Copy()
		traffic.Key.Scopes = n.Before
	}
	asked, err := s.ask(ctx, traffic, n.After, maxKeyTraffic)
	if err != nil {
		return err
	}
	return againstNarrowing(asked)
}
