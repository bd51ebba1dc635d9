package ratelimit

import (
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// Reasons of ours for which Redis was not asked. They say nothing of Redis.
var (
	errNoTime  = errors.New("too little is left of the check's time to ask Redis")
	errCrowded = errors.New("as many calls to Redis as there may be are under way")
)

// leastShare is the least time in which asking Redis makes sense.
const leastShare = time.Millisecond

// bulkhead bounds the calls that are in flight to Redis, so that a Redis which hangs
// holds up, and is charged late by, no more of them. Safe for concurrent use.
type bulkhead chan struct{}

func newBulkhead(places int) bulkhead { return make(bulkhead, places) }

// enter waits for a place, for half of the share at most: the other half is Redis',
// lest our own crowd makes it look late. It returns what is left of the share.
func (b bulkhead) enter(share time.Duration) (left time.Duration, err error) {
	if share < leastShare {
		return 0, errNoTime
	}
	select {
	case b <- struct{}{}:
		return share, nil
	default:
	}
	start := time.Now()
	wait := time.NewTimer(share / 2)
	defer wait.Stop()
	select {
	case b <- struct{}{}:
	case <-wait.C:
		return 0, errCrowded
	}
	if left = share - time.Since(start); left < leastShare {
		b.leave()
		return 0, errNoTime
	}
	return left, nil
}

func (b bulkhead) leave() { <-b }

// close waits for whoever is in, and lets nobody in any more.
func (b bulkhead) close() {
	for range cap(b) {
		b <- struct{}{}
	}
}

// isOurs tells that a call failed for want of something on our side, or of the time
// that Redis is entitled to. An overload of ours must not look like an outage.
func isOurs(err error, given time.Duration) bool {
	if errors.Is(err, errNoTime) || errors.Is(err, errCrowded) ||
		errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted) {
		return true
	}
	var late net.Error
	return given < budget/2 && errors.As(err, &late) && late.Timeout()
}
