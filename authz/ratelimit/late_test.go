package ratelimit

import (
	"bytes"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store/localserver"
)

// everyOtherLate is the address of a Redis that does all at once, and whose every other
// answer to a charge comes later than it is waited for.
func everyOtherLate(t *testing.T, r *localserver.Redis) string {
	t.Helper()
	u, err := url.Parse(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	to := u.Host
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	var answers atomic.Int64
	pipe := func(to, from net.Conn, late func(text []byte) bool) {
		defer func() { _, _ = to.Close(), from.Close() }()
		buffer := make([]byte, 64<<10)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			if late(buffer[:n]) {
				<-time.After(budget + 30*time.Millisecond)
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				_ = client.Close()
				continue
			}
			var charge atomic.Bool // and not what gives back, nor what the keeper tells
			go pipe(server, client, func(command []byte) bool {
				charge.Store(bytes.HasSuffix(command, []byte("\r\n$1\r\n1\r\n")))
				return false
			})
			go pipe(client, server, func(answer []byte) bool {
				return charge.Load() && bytes.HasPrefix(answer, []byte("*4\r\n")) && answers.Add(1)%2 == 0
			})
		}
	}()
	u.Host = listener.Addr().String()
	return u.String()
}

// Redis charges for a call though its answer be late. The breaker never opens: an answer in
// time comes between. Whether the stand-in then admits or denies, each unit is charged once.
func TestCharge_LateAnswersAreNotChargedTwice(t *testing.T) {
	t.Parallel()
	limit := authz.Limit{Name: "key", Cost: 1, Rate: authz.Rate{Rate: 10, Period: time.Hour, Burst: 5000}}
	for name, replicas := range map[string]int{"the stand-in admits": 1, "and it denies": 100} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := ownRedis(t, localserver.RedisOptions{})
			direct := newLimiter(t, Options{URL: r.URL(), Clock: wallClock{}})
			l := newLimiter(t, Options{URL: everyOtherLate(t, r), Clock: wallClock{}, Replicas: func() int { return replicas }})
			k, admitted, late := newKey(), 0, 0
			for range 150 {
				c := charge(t, l, k, limit)
				if c.Allowed {
					admitted++
				}
				if c.Mode != authz.LimiterExact {
					late++
				}
			}
			eventually(t, "the end of the late calls", func() bool { return len(l.bulkhead) == 0 && l.Health().Pending == 0 })
			c := charge(t, direct, k.Copy(), limit)
			charged := limit.Burst - limit.Remaining(c.ResetAfter) - 1
			t.Logf("%d admitted, %d of 150 late, %d charged", admitted, late, charged)
			if late < 20 {
				t.Fatalf("only %d calls were late; the test tests nothing", late)
			}
			if tooMuch := charged - admitted; tooMuch > 5 || tooMuch < -5 { // on a busy machine a call may fail
				t.Errorf("%d are admitted, %d are charged", admitted, charged)
			}
		})
	}
}

// What is admitted for a call whose answer never comes is owed: Redis may have been killed.
func TestCharge_WhatRedisNeverAnsweredIsOwed(t *testing.T) {
	l := newLimiter(t, Options{URL: "redis://127.0.0.1:1"})
	l.keeper.running.Store(true) // no goroutine settles
	for name, c := range map[string]struct {
		charged, admitted bool
		err               error
		owed              int
	}{
		"it charged late":        {charged: true, admitted: true},
		"it denied late":         {admitted: true, owed: 3},
		"it never answered":      {admitted: true, err: errLate, owed: 3},
		"and nobody is admitted": {err: errLate},
	} {
		bucket, rate := name, perMinute(100).Rate
		l.reconcile(t.Context(), &call{charge: authz.Charge{Allowed: c.charged}, err: c.err}, c.admitted, bucket, rate, 3)
		now := l.local.now()
		if owed := l.local.bucket(bucket, rate).takeDebt(now, 1); owed != c.owed {
			t.Errorf("%s: %d units are owed", name, owed)
		}
	}
}
