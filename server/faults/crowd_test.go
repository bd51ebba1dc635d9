package faults

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// manyConnections has a crowd connect and stay, each client asking now and then.
func manyConnections(t *trial) {
	size := either(t, 5000, 300)
	s := newSite(t)
	keys := s.addKeys(50, plenty())
	r := s.start(1)[0]
	s.warm(s.replicas, keys)
	l := s.startLoad(plan{to: s.replicas, keys: keys, rate: either(t, 300, 50), connections: 16})
	before := s.worn(r, keys)
	stopWatching := s.watchMemory(r)
	var crowd answers
	all := s.takeTurns(either(t, 2, 1), 3*time.Second, either(t, time.Second, 0), func() {
		crowd = append(crowd, s.crowd(r, keys, size, either(t, crowdStays, 2*time.Second))...)
	})
	memory, served := stopWatching(), l.stop()
	bad := crowd.where(func(a *answer) bool { return a.err != nil || a.status != 200 })
	t.exact(len(bad) == 0 && len(crowd) >= size, "%d at once, %d times, each with checks now and then: %v", size, len(all.calm), crowd)
	t.timed(true, "of whom p99 %s, max %s", ms(crowd.percentile(.99)), ms(crowd.percentile(1)))
	s.mu.Lock()
	s.answers = append(s.answers, crowd...)
	s.mu.Unlock()
	s.judgeRatio("those who were there", served, all, 3)
	t.timed(len(served.except("allowed")) == 0, "those who were there: %v", served)
	s.judgeMemory(before, memory, 200)
}

var errNotConnected = errors.New("no connection")

// crowdStays is how long each of a crowd is there: half of that they take to arrive.
const crowdStays = 6 * time.Second

// crowd has so many clients arrive in half the time. Each asks as soon as it is connected
// and once more later, and stays until the end.
func (s *site) crowd(r *replica, keys []*key, size int, lasts time.Duration) (all answers) {
	var mu sync.Mutex
	var clients sync.WaitGroup
	ask := func(c *connection, k *key, due time.Time) {
		a := &answer{replica: r, key: k, due: due}
		if c != nil {
			c.ask(k.request, a)
		} else {
			a.sent, a.done, a.err = due, time.Now(), errNotConnected
		}
		s.judgeAllow(a)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, a)
	}
	end := time.Now().Add(lasts)
	for i := range size {
		clients.Go(func() {
			k := keys[i%len(keys)]
			pause(lasts / 2 * time.Duration(i) / time.Duration(size))
			due := time.Now()
			c, err := dial(r)
			if err != nil {
				ask(nil, k, due)
				return
			}
			defer func() { _ = c.Close() }()
			ask(c, k, due)
			pause(time.Duration(rand.Int64N(max(1, int64(time.Until(end))))))
			ask(c, k, time.Now())
			pause(time.Until(end))
		})
	}
	clients.Wait()
	return all
}
