// Package ratelimit counts with redis_rate, within a budget, and stands in by
// itself when Redis does not answer.
package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/supportstation/keystile/authz"
)

const (
	// budget bounds one answer of Redis, everything included.
	budget = 50 * time.Millisecond
	// clockSlack is how far beyond a full refill Redis may say a bucket is full
	// again before its clock is taken to have stepped.
	clockSlack = time.Second
)

// Options are what a Limiter needs.
type Options struct {
	// URL is redis://, rediss:// or unix://; with addr= parameters a Redis Cluster.
	// Empty means that there is no Redis: everything is counted in this process.
	URL string
	// OnOutage is what stands in while Redis does not answer: authz.LimiterLocal
	// (default), LimiterClosed or LimiterOpen.
	OnOutage authz.LimiterMode
	// Clock is used by the stand-in alone; Redis' own time stays inside redis_rate.
	// It should be monotonic; a step back of it is found out and costs no more than
	// one burst. Required.
	Clock authz.Clock
	// Logger gets changes of state; nil discards them.
	Logger *slog.Logger
}

// Limiter implements authz.Limiter. Safe for concurrent use.
type Limiter struct {
	client  redis.UniversalClient // nil without a Redis
	rate    *redis_rate.Limiter
	local   *local
	mode    authz.LimiterMode
	breaker *breaker
	log     *slog.Logger

	exact, stoodIn, failed, steps, resets atomic.Int64
}

var _ authz.Limiter = (*Limiter)(nil)

// New returns a Limiter. It does not connect: a Redis that is away at the start is
// stood in for like one that goes away later. Close it.
func New(o Options) (*Limiter, error) {
	switch o.OnOutage {
	case "":
		o.OnOutage = authz.LimiterLocal
	case authz.LimiterLocal, authz.LimiterClosed, authz.LimiterOpen:
	default:
		return nil, errors.New("what stands in for Redis must be local, closed or open")
	}
	if o.Clock == nil {
		return nil, errors.New("a limiter needs a clock")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	stand, err := newLocal(o.Clock)
	if err != nil {
		return nil, err
	}
	l := &Limiter{local: stand, mode: o.OnOutage, breaker: newBreaker(), log: o.Logger}
	if o.URL == "" {
		return l, nil
	}
	if l.client, err = newClient(o.URL); err != nil {
		return nil, err
	}
	l.rate = redis_rate.NewLimiter(l.client)
	return l, nil
}

// Close disconnects from Redis.
func (l *Limiter) Close() error {
	if l.client == nil {
		return nil
	}
	if err := l.client.Close(); err != nil {
		return fmt.Errorf("disconnect from Redis: %w", err)
	}
	return nil
}

// Charge implements authz.Limiter.
func (l *Limiter) Charge(ctx context.Context, k *authz.Key, limit authz.Limit, cost int) (authz.Charge, error) {
	if err := limit.Validate(); err != nil {
		return authz.Charge{}, fmt.Errorf("charge: %w", err)
	}
	if cost < 1 || cost > limit.Burst {
		return authz.Charge{}, fmt.Errorf("charge: cost %d is not between 1 and the burst, %d", cost, limit.Burst)
	}
	if k == nil || k.Organization == nil {
		return authz.Charge{}, errors.New("charge: no key, or a key without its organization")
	}
	bucket := bucketName(k, limit)
	if l.client == nil || !l.breaker.allow() {
		return l.standIn(bucket, limit.Rate, cost), nil
	}
	c, err := l.ask(ctx, bucket, limit.Rate, cost)
	if err != nil {
		l.failed.Add(1)
		if l.breaker.failure() {
			l.log.Warn("Redis does not answer; limits are stood in for",
				slog.String("mode", string(l.mode)), slog.Any("error", err))
		}
		return l.standIn(bucket, limit.Rate, cost), nil
	}
	if l.breaker.success() {
		l.log.Warn("Redis answers again; limits are exact")
	}
	l.exact.Add(1)
	return c, nil
}

// ask charges in Redis. A bucket that holds something else than redis_rate's own
// number, or a time that only a stepped clock explains, is reset and asked once more.
//
// A client that goes away does not end the question: the charge may have been taken
// already, a connection would be lost with it, and many such clients would look like
// a Redis that does not answer.
func (l *Limiter) ask(ctx context.Context, bucket string, r authz.Rate, cost int) (authz.Charge, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), budget)
	defer cancel()
	limit := redis_rate.Limit{Rate: r.Rate, Burst: r.Burst, Period: r.Period}
	result, err := l.rate.AllowN(ctx, bucket, limit, cost)
	switch {
	case isBadBucket(err):
	case err != nil:
		return authz.Charge{}, fmt.Errorf("ask Redis: %w", err)
	case steppedBack(result, r):
		l.steps.Add(1)
	default:
		return chargeOf(result), nil
	}
	if err := l.rate.Reset(ctx, bucket); err != nil {
		return authz.Charge{}, fmt.Errorf("reset a bucket in Redis: %w", err)
	}
	l.resets.Add(1)
	if result, err = l.rate.AllowN(ctx, bucket, limit, cost); err != nil {
		return authz.Charge{}, fmt.Errorf("ask Redis again: %w", err)
	}
	return chargeOf(result), nil
}

// Ping asks Redis whether it answers, within the budget, and changes nothing. It is
// for a doctor; Health tells the same from what the charges have met. Without a
// Redis it is nil.
func (l *Limiter) Ping(ctx context.Context) error {
	if l.client == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	if err := l.client.Ping(ctx).Err(); err != nil {
		return authz.Unavailable("Redis does not answer", err)
	}
	return nil
}

func chargeOf(r *redis_rate.Result) authz.Charge {
	c := authz.Charge{Allowed: r.Allowed > 0, ResetAfter: max(r.ResetAfter, 0), Mode: authz.LimiterExact}
	if !c.Allowed {
		c.RetryAfter = max(r.RetryAfter, 0) // −1 ns means none
	}
	return c
}

// steppedBack tells that a bucket is said to be full only after longer than filling
// it takes: Redis' clock has gone back since, and would deny for as long.
func steppedBack(r *redis_rate.Result, rate authz.Rate) bool {
	full := time.Duration(float64(rate.Burst) * rate.EmissionInterval() * float64(time.Second))
	return r.ResetAfter > full+clockSlack
}

// isBadBucket tells that Redis has answered, and what it holds for this bucket is
// not a number: that would fail for ever.
func isBadBucket(err error) bool {
	var answered redis.Error
	if !errors.As(err, &answered) {
		return false
	}
	text := answered.Error()
	return strings.Contains(text, "WRONGTYPE") || strings.Contains(text, "user_script") && strings.Contains(text, "bad argument")
}

// standIn answers in the declared mode.
func (l *Limiter) standIn(bucket string, r authz.Rate, cost int) authz.Charge {
	l.stoodIn.Add(1)
	mode := l.mode
	if l.client == nil {
		mode = authz.LimiterLocal // there is nothing that could be away
	}
	switch mode {
	case authz.LimiterOpen:
		return authz.Charge{Allowed: true, Mode: authz.LimiterOpen}
	case authz.LimiterClosed:
		return authz.Charge{Mode: authz.LimiterClosed}
	}
	return l.local.charge(bucket, r, cost)
}

// bucketName names a bucket: everything that it belongs to, each part with its
// length before it, so that no two different buckets ever share a name. The same
// name with another period would be a free burst, so the limit is a part too.
func bucketName(k *authz.Key, l authz.Limit) string {
	b := make([]byte, 0, 160)
	b = appendPart(b, "1") // the version of this form
	b = appendPart(b, l.Name)
	var id [64]byte
	b = appendPart(b, k.Organization.ID.AppendTo(id[:0]))
	b = appendPart(b, string(k.Environment))
	b = appendPart(b, k.ID.AppendTo(id[:0]))
	for _, n := range []int{l.Rate.Rate, l.Burst, int(l.Period / time.Second)} {
		b = appendPart(b, strconv.AppendInt(id[:0], int64(n), 10))
	}
	return string(b)
}

func appendPart[T string | []byte](b []byte, part T) []byte {
	b = strconv.AppendInt(b, int64(len(part)), 10)
	b = append(b, ':')
	return append(b, part...)
}

// Health tells how the limiter is. Its fields are figures for operators.
type Health struct {
	// Mode is how the next charge would be counted.
	Mode authz.LimiterMode `json:"mode"`
	// Degraded tells that Redis is stood in for.
	Degraded bool `json:"degraded"`
	// Exact and StoodIn count charges since the start, Failed those that Redis was
	// asked for in vain, Resets the buckets that were reset because nothing sensible
	// was in them, of which ClockSteps because Redis' clock had stepped back.
	Exact      int64 `json:"exact"`
	StoodIn    int64 `json:"stood_in"`
	Failed     int64 `json:"failed"`
	Resets     int64 `json:"resets"`
	ClockSteps int64 `json:"clock_steps"`
}

// Health returns the limiter's health as of now; it asks nobody.
func (l *Limiter) Health() Health {
	h := Health{
		Mode: authz.LimiterExact, Exact: l.exact.Load(), StoodIn: l.stoodIn.Load(), Failed: l.failed.Load(),
		Resets: l.resets.Load(), ClockSteps: l.steps.Load(),
	}
	switch {
	case l.client == nil:
		h.Mode, h.Degraded = authz.LimiterLocal, true
	case l.breaker.isOpen():
		h.Mode, h.Degraded = l.mode, true
	}
	return h
}
