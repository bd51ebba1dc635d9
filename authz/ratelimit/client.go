package ratelimit

import (
	"context"
	"errors"
	"net/url"
	"runtime"
	"sync"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// minPoolSize is the least number of connections; go-redis' ten a core would wait
// too long for each other on a small machine.
const minPoolSize = 32

// resp2 is the protocol to speak: RESP3's push notifications are of no use here, and
// go-redis looks for them before each answer.
const resp2 = 2

// poolSize is how many calls of clients may be in flight, and the connections for them.
func poolSize() int { return max(minPoolSize, 10*runtime.GOMAXPROCS(0)) }

// quiet keeps go-redis from writing to standard error by itself: what it says of
// connections is told once, when the breaker opens.
type quiet struct{}

// Printf implements go-redis' logger.
func (quiet) Printf(context.Context, string, ...any) {}

//nolint:gochecknoglobals // go-redis has one logger for the process
var silence = sync.OnceFunc(func() { redis.SetLogger(quiet{}) })

// newClient returns a client whose every wait is within the budget but that for an
// answer, which is its context's, and which never retries: the stand-in is sooner. An error never repeats the URL, which may
// hold a password.
func newClient(text string, poolSize int) (redis.UniversalClient, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "redis" && u.Scheme != "rediss" && u.Scheme != "unix" {
		return nil, errors.New("Redis URL must start with redis://, rediss:// or unix://") //nolint:staticcheck // a name
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil { // net/url would leave out what it cannot read
		return nil, errors.New("Redis URL has a query that is not well-formed") //nolint:staticcheck // a name
	}
	silence()
	unmaintained := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if query.Has("addr") {
		o, err := redis.ParseClusterURL(text)
		if err != nil {
			return nil, errors.New("Redis Cluster URL has a part that go-redis does not accept") //nolint:staticcheck // a name
		}
		o.ReadTimeout, o.WriteTimeout, o.DialTimeout, o.PoolTimeout = lateFor, budget, budget, budget
		o.MaxRetries, o.DialerRetries, o.MaxRedirects = -1, 1, 3
		o.ContextTimeoutEnabled, o.DisableIdentity = true, true
		o.MaintNotificationsConfig, o.Protocol = unmaintained, resp2
		o.PoolSize = poolSize
		return redis.NewClusterClient(o), nil
	}
	o, err := redis.ParseURL(text)
	if err != nil {
		return nil, errors.New("Redis URL has a part that go-redis does not accept") //nolint:staticcheck // a name
	}
	o.ReadTimeout, o.WriteTimeout, o.DialTimeout, o.PoolTimeout = lateFor, budget, budget, budget
	o.MaxRetries, o.DialerRetries = -1, 1
	o.ContextTimeoutEnabled, o.DisableIdentity = true, true
	o.MaintNotificationsConfig, o.Protocol = unmaintained, resp2
	o.PoolSize = poolSize
	return redis.NewClient(o), nil
}
