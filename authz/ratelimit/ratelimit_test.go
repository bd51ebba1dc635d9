package ratelimit

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store/localserver"
)

// shared are the servers of this package's tests. A test that harms one starts its own.
type shared struct {
	once    sync.Once
	dir     string
	redis   *localserver.Redis
	cluster *localserver.RedisCluster
	err     error
}

var servers shared

func TestMain(m *testing.M) {
	code := m.Run()
	servers.stop()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func (s *shared) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if s.redis != nil {
		_ = s.redis.Stop(ctx)
	}
	if s.cluster != nil {
		_ = s.cluster.Stop(ctx)
	}
	_ = os.RemoveAll(s.dir)
}

func (s *shared) start(t testing.TB) *shared {
	t.Helper()
	s.once.Do(func() {
		ctx := context.Background()
		if s.dir, s.err = passableDir(); s.err != nil {
			return
		}
		if s.redis, s.err = localserver.StartRedis(ctx, localserver.RedisOptions{Dir: s.dir + "/redis"}); s.err != nil {
			return
		}
		s.cluster, s.err = localserver.StartRedisCluster(ctx, localserver.RedisOptions{Dir: s.dir + "/cluster"})
	})
	if s.err != nil {
		t.Fatalf("start servers for tests: %v", s.err)
	}
	return s
}

// passableDir makes a directory that the user whom the servers run as can pass.
func passableDir() (string, error) {
	dir, err := os.MkdirTemp("", "ks-")
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	return dir, err
}

func ownRedis(t *testing.T, o localserver.RedisOptions) *localserver.Redis {
	t.Helper()
	if o.Dir == "" {
		dir, err := passableDir()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		o.Dir = dir
	}
	o.Password = "tests"
	r, err := localserver.StartRedis(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// fakeClock is an authz.Clock that a test moves.
type fakeClock struct{ ns atomic.Int64 }

func newFakeClock() *fakeClock {
	c := new(fakeClock)
	c.ns.Store(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *fakeClock) Now() time.Time          { return time.Unix(0, c.ns.Load()).UTC() }
func (c *fakeClock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// logged collects what the limiter logs.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newLimiter(t testing.TB, o Options) *Limiter {
	t.Helper()
	if o.Clock == nil {
		o.Clock = newFakeClock()
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func newKey() *authz.Key {
	return &authz.Key{
		ID:           authz.NewKeyID(time.Now()),
		Organization: &authz.Organization{ID: authz.NewOrganizationID(time.Now())},
		Environment:  authz.EnvironmentLive,
	}
}

func perMinute(n int) authz.Limit {
	return authz.Limit{Name: "key", Cost: 1, Rate: authz.Rate{Rate: n, Period: time.Minute, Burst: n}}
}

// perHour refills so slowly that nothing trickles in while a test runs.
func perHour(n int) authz.Limit {
	return authz.Limit{Name: "key", Cost: 1, Rate: authz.Rate{Rate: 1, Period: time.Hour, Burst: n}}
}

func charge(t testing.TB, l *Limiter, k *authz.Key, limit authz.Limit) authz.Charge {
	t.Helper()
	c, err := l.Charge(context.Background(), k, limit, limit.Cost)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually repeats until ok, and fails after a long while. Each round waits for
// its own answer, so it is no busy loop.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited 20 s for %s", what)
		case <-tick.C:
		}
	}
}
