package faults

import "time"

// manyConnections has a crowd arrive and stay, each client asking now and then. It is a
// process of its own: that it is busy is not what those wait for who were there.
func manyConnections(t *trial) {
	size, arrive := either(t, 5000, 300), either(t, 5*time.Second, time.Second)
	s := newSite(t)
	keys := s.addKeys(50, plenty())
	r := s.start(1)[0]
	s.warm(s.replicas, keys)
	l := s.startLoad(plan{to: s.replicas, keys: keys, rate: either(t, 300, 50), connections: 64})
	before := s.worn(r, keys)
	stopWatching := s.watchMemory(r)
	f := s.prepareFlood(r, floodOrder{Connections: size, Arrive: arrive, Every: either(t, 8*time.Second, time.Second)}, keys...)
	all := s.takeTurns(either(t, 5, 1), 2*time.Second, either(t, time.Second, 0), func() {
		f.begin()
		pause(arrive + either(t, 3*time.Second, time.Second))
		s.eventually("all have connected", func() bool { return int(r.metric(t, "process_open_fds")) >= size })
		crowd := f.end()
		t.exact(crowd.Broken == 0 && crowd.Denied == 0 && crowd.Answered >= int64(size), "%d at once, each with checks now and then: %v; the slowest %s, from what this machine had left",
			size, crowd, ms(crowd.Slowest))
	})
	memory, served := stopWatching(), l.stop()
	s.judgeRatio("those who were there", served, all, 3)
	s.judgeServed("those who were there", served)
	s.judgeMemory(before, memory, 200)
}
