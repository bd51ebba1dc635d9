package faults

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/supportstation/keystile/store/localserver"
)

// redisDown kills Redis, which loses all that it knew, and starts it again.
func redisDown(t *trial) {
	s := newSite(t)
	known, keys := s.addKeys(30, plenty()), s.addLimited()
	replicas := s.start(3)
	s.warm(replicas, known)
	o := s.outageUnderAttack(redisFault{"killed", func() { s.killRedis() }, s.startRedis},
		either(t, 5*time.Second, time.Second), replicas, keys, known)
	o.judge(s)
}

// redisRefuses has Redis, and then a Redis Cluster, answer and not write.
func redisRefuses(t *trial) {
	s := newSite(t)
	known := s.addKeys(30, plenty())
	do := func(args ...string) func() {
		return func() {
			if _, err := s.redis.Do(t.Context(), args...); err != nil {
				t.Fatal(err)
			}
		}
	}
	faults := []redisFault{
		{"READONLY", do("REPLICAOF", "127.0.0.1", "1"), do("REPLICAOF", "NO", "ONE")},
		{"OOM", do("CONFIG", "SET", "maxmemory", "1"), do("CONFIG", "SET", "maxmemory", "0")},
		{"NOREPLICAS", do("CONFIG", "SET", "min-replicas-to-write", "1"), do("CONFIG", "SET", "min-replicas-to-write", "0")},
	}
	var keys [][]limitedKey
	for range len(faults) + 1 {
		keys = append(keys, s.addLimited())
	}
	lasts := either(t, 2500*time.Millisecond, time.Second)
	replicas := s.start(3)
	s.warm(replicas, known)
	for i, f := range faults {
		s.outageUnderAttack(f, lasts, replicas, keys[i], known).judge(s)
	}
	for _, r := range replicas { // else they would have a part of the others' limits
		if err := r.terminate(); err != nil {
			t.Error(err)
		}
	}
	c := s.startCluster()
	replicas = s.start(3, map[string]string{"KEYSTILE_REDIS_URL": c.URL()})
	s.warm(replicas, known)
	s.outageUnderAttack(s.uncovered(c), lasts, replicas, keys[len(faults)], known).judge(s)
}

func (s *site) startCluster() *localserver.RedisCluster {
	s.Helper()
	c, err := localserver.StartRedisCluster(s.Context(), localserver.RedisOptions{Dir: s.dir + "/cluster", Password: password})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			s.Error(err)
		}
	})
	return c
}

// uncovered takes one slot away from whoever serves it: a cluster that does not serve
// all slots serves none.
func (s *site) uncovered(c *localserver.RedisCluster) redisFault {
	const slot = "0" // the first node's
	do := func(node *localserver.Redis, args ...string) string {
		reply, err := node.Do(s.Context(), args...)
		if err != nil {
			s.Fatal(err)
		}
		return reply
	}
	await := func(state string) {
		for _, node := range c.Nodes() {
			s.eventually("every node says "+state, func() bool {
				return strings.Contains(do(node, "CLUSTER", "INFO"), "cluster_state:"+state)
			})
		}
	}
	begin := func() {
		for _, node := range c.Nodes() {
			do(node, "CLUSTER", "DELSLOTS", slot)
		}
		await("fail")
	}
	return redisFault{"CLUSTERDOWN", begin, func() {
		do(c.Nodes()[0], "CLUSTER", "ADDSLOTS", slot)
		await("ok")
	}}
}

// redisForgets has Redis lose all that it knew: by a command, and by a death after which
// an empty one is there at once.
func redisForgets(t *trial) {
	s := newSite(t)
	known := s.addKeys(30, plenty())
	faults := []redisFault{
		{name: "FLUSHALL", begin: func() {
			if _, err := s.redis.Do(t.Context(), "FLUSHALL"); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "failover", begin: func() {
			s.killRedis()
			s.startRedis()
		}},
	}
	var keys [][]limitedKey
	for range faults {
		keys = append(keys, s.addLimited())
	}
	replicas := s.start(3)
	s.warm(replicas, known)
	for i, f := range faults {
		s.remember(replicas, keysOf(keys[i]))
		spent := s.exhaust(replicas[0], keys[i])
		steady := s.startLoad(plan{to: replicas, keys: known, rate: either(t, 300, 40), connections: 24})
		pause(either(t, time.Second, 300*time.Millisecond))
		// Not sooner: the other replicas would learn what is exhausted.
		attack := s.startLoad(plan{to: replicas, keys: keysOf(keys[i]), rate: either(t, 800, 200), connections: 24})
		f.begin()
		s.note("%s", f.name)
		pause(either(t, 5*time.Second, 2*time.Second))
		s.judgeForgotten(f.name, append(spent, attack.stop()...), steady.stop(), keys[i])
	}
}

// judgeForgotten holds answers to row 10.
func (s *site) judgeForgotten(name string, attack, steady answers, keys []limitedKey) {
	s.Helper()
	// One more in the quick form: a busy machine can cause an outage beside.
	bound := either(s.trial, 1.0, 1.25)
	most, text := math.Inf(-1), ""
	for _, k := range keys {
		a := attack.admission(k)
		if extra := (float64(a.admitted) - a.may) / float64(k.rate.Burst); extra > most {
			most, text = extra, fmt.Sprintf("%d of burst + rate·T = %.0f, burst %d", a.admitted, a.may, k.rate.Burst)
		}
		if k.exhausted && float64(a.asked) < a.may+2*float64(k.rate.Burst) { // who asks for less proves nothing
			s.timed(false, "%s: a key with a burst of %d was asked for %d times alone", name, k.rate.Burst, a.asked)
		}
	}
	s.exact(most <= bound, "%s: at most %.2f extra bursts of a key (%s)", name, most, text)
	all := slices.Concat(attack, steady)
	failed := all.where(func(a *answer) bool { return a.err != nil || a.status != 200 })
	s.exact(len(failed) == 0, "%s: errors: %d of %d", name, len(failed), len(all))
	s.timed(len(attack.except("allowed", "rate_limited")) == 0 && len(steady.except("allowed")) == 0,
		"%s: limited keys: %v; others: %v", name, attack, steady)
}
