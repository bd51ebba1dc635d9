package faults

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// defaultConnections bound what a load asks at the same time.
const defaultConnections = 48

// plan is a load: an open loop, which asks when it is time, whether or not it was
// answered before.
type plan struct {
	to   []*replica
	keys []*key
	// rate is how many checks are asked a second, by all connections together.
	rate int
	// closed has each client wait for its answer and then for its turn: for watching one
	// thing closely, where the load itself is not measured.
	closed bool
	// connections are spread evenly over the replicas; 0 means defaultConnections.
	connections int
	// rounds ends the load when each key was asked for so often; 0 goes on until stop.
	rounds int
	// seen is told of every answer, by several goroutines; nil for nobody.
	seen func(*answer)
}

// load is a running plan. Its methods are safe for concurrent use.
type load struct {
	plan

	site    *site
	started time.Time
	next    atomic.Int64
	quit    chan struct{}
	stopped sync.Once
	workers sync.WaitGroup

	mu      sync.Mutex
	members []*replica
	answers answers
}

// startLoad starts a load, which ends with the row at the latest.
func (s *site) startLoad(p plan) *load {
	if p.connections == 0 {
		p.connections = defaultConnections
	}
	l := &load{
		plan: p, site: s, started: time.Now(), quit: make(chan struct{}), members: slices.Clone(p.to),
	}
	for i := range p.connections {
		l.workers.Go(func() { l.work(i) })
	}
	s.Cleanup(func() { l.stop() })
	return l
}

// run asks for everything once a round, and returns the answers.
func (s *site) run(p plan) answers {
	p.rounds = max(p.rounds, 1)
	l := s.startLoad(p)
	l.workers.Wait()
	return l.stop()
}

// stop ends the load and returns all answers, in the order in which they were due.
func (l *load) stop() answers {
	l.stopped.Do(func() {
		close(l.quit)
		l.workers.Wait()
		l.site.mu.Lock()
		defer l.site.mu.Unlock()
		l.site.answers = append(l.site.answers, l.answers...)
	})
	return l.soFar()
}

// keepAnswer has an answer that no load asked for be judged at the end of the row.
func (s *site) keepAnswer(a *answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = append(s.answers, a)
}

// soFar returns the answers until now, in the order in which they were due.
func (l *load) soFar() answers {
	l.mu.Lock()
	all := slices.Clone(l.answers)
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b *answer) int { return a.due.Compare(b.due) })
	return all
}

// leave takes a replica out, as whoever balances load does: no new connection goes there.
func (l *load) leave(r *replica) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members = slices.DeleteFunc(l.members, func(m *replica) bool { return m == r })
}

// join takes a replica in.
func (l *load) join(r *replica) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members = append(l.members, r)
}

// member is whom a client connects to, nil when nobody is left.
func (l *load) member(client int) *replica {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.members) == 0 {
		return nil
	}
	return l.members[client%len(l.members)]
}

// work is one client: it keeps a connection to one replica until that closes it.
func (l *load) work(client int) {
	var c *connection
	var to *replica
	closeConnection := func() {
		if c != nil {
			_ = c.Close()
		}
		c = nil
	}
	defer closeConnection()
	gap := float64(time.Second) / float64(l.rate)
	for {
		n := l.next.Add(1) - 1
		if l.rounds > 0 && n >= int64(l.rounds*len(l.keys)) {
			return
		}
		due := l.started.Add(time.Duration(gap * float64(n)))
		if l.closed {
			due = time.Now().Add(time.Duration(gap) * time.Duration(l.connections))
		}
		waited, goOn := l.await(due)
		if !goOn {
			return
		}
		if waited {
			due = time.Now() // this client was free: that its timer was late is not the service's
		}
		a := &answer{due: due, key: l.keys[n%int64(len(l.keys))]}
		if c == nil {
			if to = l.member(client); to == nil {
				return
			}
			c, a.err = dial(to)
		}
		a.replica = to
		if c != nil {
			c.ask(a.key.request, a)
		} else {
			a.sent, a.done = due, time.Now()
		}
		if a.connectionCloses {
			l.leave(to) // it drains: the next connection goes elsewhere
		}
		if a.err != nil || a.connectionCloses {
			closeConnection()
		}
		l.mu.Lock()
		l.answers = append(l.answers, a)
		l.mu.Unlock()
		l.site.judgeAllow(a)
		if l.seen != nil {
			l.seen(a)
		}
	}
}

// await waits until it is time, and tells whether it had to and whether to go on.
func (l *load) await(due time.Time) (waited, goOn bool) {
	timer := time.NewTimer(max(time.Until(due), 0))
	defer timer.Stop()
	waited = time.Until(due) > 0
	select {
	case <-l.quit:
		return waited, false
	case <-timer.C:
		return waited, true
	}
}

// answers are what a load, or a part of it, was answered.
type answers []*answer

// where keeps those that are wanted.
func (all answers) where(wanted func(*answer) bool) answers {
	var some answers
	for _, a := range all {
		if wanted(a) {
			some = append(some, a)
		}
	}
	return some
}

// between keeps those that were due from one time to another.
func (all answers) between(from, to time.Time) answers {
	return all.where(func(a *answer) bool { return !a.due.Before(from) && a.due.Before(to) })
}

// to keeps those of these replicas.
func (all answers) to(replicas ...*replica) answers {
	return all.where(func(a *answer) bool { return slices.Contains(replicas, a.replica) })
}

// except keeps those with another outcome.
func (all answers) except(outcomes ...string) answers {
	return all.where(func(a *answer) bool { return !slices.Contains(outcomes, a.outcome()) })
}

// allowed counts.
func (all answers) allowed() int {
	return len(all.where(func(a *answer) bool { return a.allow }))
}

// lastSent is when the last of them was sent, long ago when there is none.
func (all answers) lastSent() (last time.Time) {
	for _, a := range all {
		if a.sent.After(last) {
			last = a.sent
		}
	}
	return last
}

// percentile is what a share of clients, from 0 to 1, waited at most; 1 is the maximum.
func (all answers) percentile(share float64) time.Duration {
	times := make([]time.Duration, len(all))
	for i, a := range all {
		times[i] = a.took()
	}
	return percentile(times, share)
}

func percentile(times []time.Duration, share float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)]
}

// String tells how many there are of each outcome.
func (all answers) String() string {
	counts := map[string]int{}
	for _, a := range all {
		counts[a.outcome()]++
	}
	parts := []string{}
	for _, outcome := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[outcome], outcome))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// ms writes a time as the table has it.
func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.0f ms", d.Seconds()*1000)
}
