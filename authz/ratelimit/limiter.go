// Package ratelimit counts with redis_rate, within a budget, and stands in by
// itself when Redis does not answer.
package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	// Replicas returns how many live replicas share the limits, this one included:
	// each stands in for its part of a limit. Nil, or a result below 1, means 1, and
	// more than 100 count as 100. It may change at any time. Called with each charge,
	// concurrently; it must not block. Without a Redis it is not used.
	Replicas func() int
	// Clock tells how old an answer of Redis is, and times the stand-in; Redis' own
	// time stays inside redis_rate. It should be monotonic; a step back of it is
	// found out and costs no more than one burst. Required.
	Clock authz.Clock
	// Logger gets changes of state; nil discards them.
	Logger *slog.Logger
}

// Limiter implements authz.Limiter. Safe for concurrent use.
type Limiter struct {
	client   redis.UniversalClient // nil without a Redis
	rate     *redis_rate.Limiter
	local    *local
	mode     authz.LimiterMode
	breaker  *breaker
	bulkhead bulkhead
	keeper   keeper
	log      *slog.Logger

	// lastStoodIn is how long after made a charge was last stood in for; 0 is never.
	made        time.Time
	lastStoodIn atomic.Int64
	// lateUntil is until when, after made, late answers are expected.
	lateUntil atomic.Int64
	// lastFailed is the bucket whose charge failed last.
	lastFailed atomic.Pointer[string]

	exact, denied, stoodIn, failed, crowded, steps, resets, settled, restored atomic.Int64
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
	stand, err := newLocal(o.Clock, o.Replicas, o.URL == "")
	if err != nil {
		return nil, err
	}
	l := &Limiter{local: stand, mode: o.OnOutage, breaker: new(breaker), log: o.Logger, made: time.Now()}
	if o.URL == "" {
		return l, nil
	}
	places := poolSize()
	// The keeper has its own: it must not wait behind those for whom it works.
	if l.client, err = newClient(o.URL, places+keeperCalls); err != nil {
		return nil, err
	}
	l.rate, l.bulkhead = redis_rate.NewLimiter(l.client), newBulkhead(places)
	return l, nil
}

// Close stops what runs in the background, waits for it, and disconnects from Redis.
// What Redis has not been told yet of an outage is dropped.
func (l *Limiter) Close() error {
	if l.client == nil {
		return nil
	}
	l.keeper.close()
	if err := l.client.Close(); err != nil {
		return fmt.Errorf("disconnect from Redis: %w", err)
	}
	l.bulkhead.close()
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
	if l.client == nil || !l.breaker.allow() {
		return l.standIn(bucketName(k, limit), limit.Rate, cost), nil
	}
	asked, m := l.local.now(), findMemo(k, limit)
	if m != nil {
		v, refused := m.judge(asked, cost)
		switch v {
		case refuse:
			l.denied.Add(1)
			return refused, nil
		case askAlone:
			defer m.release()
		case ask:
		}
	}
	bucket := bucketName(k, limit)
	c, late, err := l.ask(ctx, bucket, limit.Rate, cost)
	if err != nil {
		if l.tell(err, bucket) && m != nil {
			m.forget() // what stands in decides
		}
		return l.standInFor(late, bucket, limit.Rate, cost), nil
	}
	l.breaker.success()
	l.exact.Add(1)
	if l.mode == authz.LimiterLocal {
		l.local.note(asked, bucket, limit.Rate, asked+int64(c.ResetAfter))
	}
	if m == nil && isExhausted(limit.Rate, cost, c) {
		m = addMemo(k, limit)
	}
	if m != nil {
		m.learn(asked, cost, c)
	}
	return c, nil
}

// askRate charges once. A bucket that holds something else than redis_rate's own
// number, or a time that only a stepped clock explains, is reset and asked again.
func (l *Limiter) askRate(ctx context.Context, bucket string, r authz.Rate, cost int) (authz.Charge, error) {
	limit := rateOf(r)
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

// tell notes why Redis did not answer, and tells whether that was Redis' doing.
func (l *Limiter) tell(err error, bucket string) bool {
	if isOurs(err, budget) {
		l.crowded.Add(1)
		return false
	}
	l.failed.Add(1)
	l.lastFailed.Store(&bucket)
	if l.breaker.failure() {
		l.log.Warn("Redis does not answer; limits are stood in for",
			slog.String("mode", string(l.mode)), slog.Any("error", err))
		l.wake() // it alone finds out when Redis is back
	}
	return true
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

func rateOf(r authz.Rate) redis_rate.Limit {
	return redis_rate.Limit{Rate: r.Rate, Burst: r.Burst, Period: r.Period}
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
	return r.ResetAfter > time.Duration(spanOf(rate, rate.Burst))+clockSlack
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

// standIn answers in the declared mode, and owes Redis what is admitted.
func (l *Limiter) standIn(bucket string, r authz.Rate, cost int) authz.Charge {
	return l.standInFor(nil, bucket, r, cost)
}

// standInFor stands in for a call to Redis that is late, if any: what is admitted then is
// owed only when it is known that the call has not charged it.
func (l *Limiter) standInFor(late *call, bucket string, r authz.Rate, cost int) (c authz.Charge) {
	l.stoodIn.Add(1)
	l.lastStoodIn.Store(l.sinceMade())
	defer func() { late.standIn(c.Allowed) }()
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
	c = l.local.take(bucket, r, cost, late == nil)
	if l.client != nil {
		l.wake() // somebody must tell Redis
	}
	return c
}
