package store

import (
	"context"
	"time"
)

const (
	// flushEvery is how often what is noted is written: a replica that is killed loses no
	// more than a second of it. It does not fall in with pollInterval, and so replicas that
	// were started together do not do all of their work at the same moments.
	flushEvery = 797 * time.Millisecond
	// lastFlushLimit bounds the last writing of a store that is closed.
	lastFlushLimit = 2 * time.Second
)

// record writes what is noted behind the answers until ctx ends, and with last what is left
// then. The first failure in a row is told.
func record(ctx context.Context, every time.Duration, flush func(context.Context) error, tell func(error), last func(context.Context)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			last(ctx)
			return
		}
		err := flush(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			tell(err)
		}
		failing = err != nil
	}
}

// flushLast writes what a store that is closed has left, within a limit, and tells a failure.
func flushLast(ctx context.Context, limit time.Duration, flush func(context.Context) error, tell func(error)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if err := flush(ctx); err != nil {
		tell(err)
	}
}
