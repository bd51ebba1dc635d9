package faults

import (
	"math"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// lateAnswer is how long checks take at p99 while Redis is paused or slow.
	lateAnswer = 100 * time.Millisecond
	// redisPool is how many calls of a replica's checks may be in flight to Redis, on
	// a machine of up to three cores.
	redisPool = 32
	// slowBy is how much later a slow Redis answers: far beyond what a check waits.
	slowBy = 200 * time.Millisecond
)

// unrefilled is a limit whose bucket is after a minute what it was before.
func unrefilled() authz.Rate { return authz.Rate{Rate: 10, Period: time.Hour, Burst: 5000} }

// redisLate has Redis not answer, and then answer too late. What it was asked for until
// replicas noticed it charges when it comes to it, though nobody waits any more.
func redisLate(t *trial) {
	s := newSite(t)
	limit := unrefilled()
	known, paused, slow := s.addKeys(1, plenty())[0], s.addKeys(20, &limit), s.addKeys(20, &limit)
	p := s.newProxy("redis", s.redis.Port())
	behind, err := url.Parse(s.redis.URL())
	if err != nil {
		t.Fatal(err)
	}
	behind.Host = p.Listen
	direct, proxied := s.start(1)[0], s.start(1, map[string]string{"KEYSTILE_REDIS_URL": behind.String()})[0]
	s.lateUnderLoad(direct, paused, known, redisFault{
		"paused", func() { s.signal(s.redis.PID(), syscall.SIGSTOP) }, func() { s.signal(s.redis.PID(), syscall.SIGCONT) },
	})
	s.lateUnderLoad(proxied, slow, known, redisFault{"200 ms late", func() { p.delay(slowBy) }, func() { p.delay(0) }})
}

// lateUnderLoad has more clients ask at the same time than calls may be in flight. Only
// the load asks for its keys, so that what it was admitted is all that their buckets owe.
func (s *site) lateUnderLoad(r *replica, keys []*key, known *key, f redisFault) {
	s.Helper()
	exact := func() bool { return s.ask(r, known).mode == "exact" }
	s.eventually("limits are exact", exact)
	s.warm([]*replica{r}, keys)
	before := s.used(keys)
	l := s.startLoad(plan{to: []*replica{r}, keys: keys, rate: either(s.trial, 1000, 200), connections: either(s.trial, 160, 64)})
	pause(either(s.trial, 2*time.Second, 500*time.Millisecond))
	began := time.Now()
	f.begin()
	s.note("%s", f.name)
	pause(200 * time.Millisecond) // the first calls find it out
	s.outage(r, "limiter", known)
	pause(time.Until(began.Add(either(s.trial, 4*time.Second, time.Second))))
	f.end()
	ended := time.Now()
	s.note("%s no more", f.name)
	s.eventually("limits are exact again", exact)
	pause(either(s.trial, time.Second, 0))
	all := l.stop()
	during, calm := all.between(began, ended), all.where(func(a *answer) bool { return a.done.Before(began) })
	s.timed(len(during) > 0 && during.percentile(.99) <= lateAnswer, "%s: p99 of %d checks %s, max %s (≤ 100 ms); before p99 %s",
		f.name, len(during), ms(during.percentile(.99)), ms(during.percentile(1)), ms(calm.percentile(.99)))
	s.timed(len(all.except("allowed")) == 0, "%s: %v", f.name, all)
	s.judgeLateCharges(r, f.name, keys, all, before)
}

// judgeLateCharges compares what buckets say with what was admitted: all of it, when what
// was admitted without Redis has been settled.
func (s *site) judgeLateCharges(r *replica, name string, keys []*key, all answers, before int) {
	s.Helper()
	local := all.where(func(a *answer) bool { return a.mode == "local" }).allowed()
	var used int
	within(5*time.Second, func() bool { // the rest is settled a moment after
		used = s.used(keys) - before
		return used >= all.allowed()
	})
	s.exact(used >= all.allowed(), "%s: the buckets say %d, of %d admitted, %d of them without Redis", name, used, all.allowed(), local)
	raw, err := os.ReadFile(r.log)
	if err != nil {
		s.Fatal(err)
	}
	// On a busy machine there are more outages than the row's one, each with its own.
	s.timed(used-all.allowed() <= redisPool, "%s: charged too much %d (≤ %d), in %d outages", name, used-all.allowed(), redisPool,
		strings.Count(string(raw), "Redis does not answer"))
	s.timed(local > 0, "%s: admitted without Redis %d", name, local)
}

// used is how many units are missing in all buckets of keys, as Redis says.
func (s *site) used(keys []*key) (units int) {
	s.Helper()
	// A name that does not begin with a number is a probe's, which charges nobody.
	const script = `local names = redis.call('KEYS', ARGV[1])
		if #names ~= 1 then return #names .. ' buckets' end
		local now = redis.call('TIME')
		return tostring(redis.call('GET', names[1]) - (now[1] - 1483228800 + now[2] / 1000000))`
	for _, k := range keys {
		said, err := s.redis.Do(s.Context(), "EVAL", script, "0", "rate:[0-9]*"+k.id.String()+"*")
		if err != nil {
			s.Fatal(err)
		}
		full, err := strconv.ParseFloat(said, 64) // seconds until the bucket is full
		if err != nil {
			s.Fatalf("the bucket of a key: Redis says %q", said)
		}
		units += int(math.Round(full / unrefilled().EmissionInterval()))
	}
	return units
}
