package ratelimit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-redis/redis_rate/v10"

	"github.com/supportstation/keystile/authz"
)

// The times of a return, from the moment when Redis is found back. Other replicas
// find it up to probeEvery and a budget later; none is exact before all have told
// Redis what they had admitted.
const (
	// probeEvery is how often Redis is asked whether it is back, and how soon it is
	// told of what was stood in for while it was not away.
	probeEvery = 200 * time.Millisecond
	// restoreFor is how long what Redis has lost may be restored.
	restoreFor = 250 * time.Millisecond
	// settleAt is when Redis is told first: when all replicas have restored.
	settleAt = 350 * time.Millisecond
	// settleFor is how long that may take; what is left then follows later.
	settleFor = 450 * time.Millisecond
	// holdUntil is when Redis is told of what was admitted meanwhile, and is exact again.
	holdUntil = 1100 * time.Millisecond
	// lastFor is how long that may take.
	lastFor = 250 * time.Millisecond
)

// keeper is the one goroutine that looks after Redis, while there is something to
// look after: it is away, or is to be told of something. Its owner is the Limiter,
// which closes it. The zero value is ready.
type keeper struct {
	running atomic.Bool
	back    time.Time // when Redis was found back; the goroutine's own
	settles int       // how often Redis was told since; the goroutine's own

	mu     sync.Mutex
	closed bool
	stop   context.CancelFunc
	wait   sync.WaitGroup
}

// wake starts the keeper unless it runs.
func (l *Limiter) wake() {
	k := &l.keeper
	if k.running.Load() {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || !k.running.CompareAndSwap(false, true) {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	k.stop = cancel
	k.wait.Go(func() {
		defer cancel()
		l.keep(ctx)
	})
}

// close stops the keeper for good and waits for it.
func (k *keeper) close() {
	k.mu.Lock()
	k.closed = true
	if k.stop != nil {
		k.stop()
	}
	k.mu.Unlock()
	k.wait.Wait()
}

func (l *Limiter) keep(ctx context.Context) {
	timer := time.NewTimer(probeEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		next := l.step(ctx)
		if ctx.Err() != nil {
			return
		}
		if l.breaker.allow() && l.local.touched.size() == 0 {
			// Whoever adds something from here on finds it stopped, or is seen.
			l.keeper.running.Store(false)
			if l.breaker.allow() && l.local.touched.size() == 0 || !l.keeper.running.CompareAndSwap(false, true) {
				return
			}
		}
		timer.Reset(next)
	}
}

// step does what is due and returns when the next is.
func (l *Limiter) step(ctx context.Context) time.Duration {
	k := &l.keeper
	var ok bool
	var next time.Duration // since Redis was found back
	switch {
	case l.breaker.allow(): // a few calls were stood in for while Redis is not away
		l.settle(ctx, settleFor)
		return probeEvery
	case l.breaker.isOpen():
		if !l.isBack(ctx) {
			return probeEvery
		}
		k.back, k.settles = time.Now(), 0
		l.local.epoch.Add(1)
		l.breaker.settle()
		if l.mode != authz.LimiterLocal {
			l.exactAgain()
			return probeEvery
		}
		ok, next = l.restore(ctx, restoreFor), settleAt
	case k.settles == 0:
		k.settles++
		ok, next = l.settle(ctx, settleFor), holdUntil
	default:
		if ok = l.settle(ctx, lastFor); ok {
			l.exactAgain()
			return probeEvery
		}
	}
	if !ok { // it went away again
		l.breaker.reopen()
		return probeEvery
	}
	return max(next-time.Since(k.back), 0)
}

// exactAgain lets clients' calls through.
func (l *Limiter) exactAgain() {
	l.local.epoch.Add(1)
	l.breaker.close()
	l.log.Warn("Redis answers again; limits are exact")
}

// isBack asks Redis for a small write: a PING, or a charge that is denied, succeeds on
// a Redis that does not write. On a cluster it asks the node whose call failed.
func (l *Limiter) isBack(ctx context.Context) bool {
	name := "probe"
	if b := l.lastFailed.Load(); b != nil {
		name += "{rate:" + *b + "}" // the hash tag is the name of redis_rate's key
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	result, err := l.rate.AllowN(ctx, name, redis_rate.PerSecond(authz.MaxRatePerSecond), 1)
	return err == nil && result.Allowed > 0
}
