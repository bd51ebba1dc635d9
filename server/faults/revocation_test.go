package faults

import (
	"fmt"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/sdk/admin"
)

const (
	// watchRate is how often each replica is asked for a key that is being revoked.
	watchRate = 333
	// staleBound is how much later than its receipt a replica may deny that the receipt
	// names as silent.
	staleBound = time.Second
)

// revocation is the life of one key: made, checked on every replica, revoked, denied.
type revocation struct {
	key     *key
	created interval
	// asked is when the request to revoke was sent, and when its receipt came.
	asked   interval
	receipt admin.Effective
	checks  answers
}

type interval struct{ call, done time.Time }

// watch makes a key on one replica and asks all of them for it until stop.
type watch struct {
	site     *site
	replicas []*replica
	made     revocation
	loads    []*load

	mu     sync.Mutex
	allows map[*replica]int
	denies map[*replica]int
}

// watchKey makes a key and returns when every replica has allowed it some times.
func (s *site) watchKey(on *replica, replicas []*replica) *watch {
	s.Helper()
	w := &watch{site: s, replicas: replicas, allows: map[*replica]int{}, denies: map[*replica]int{}}
	limit := plenty()
	w.made.created.call = time.Now()
	change, err := s.management(on).CreateKey(s.Context(), s.organization.String(), admin.KeyCreate{
		Name: "watched", Environment: admin.Live, Scopes: []string{"tickets:read"},
		RateLimit: &admin.Rate{Rate: limit.Rate, PeriodSeconds: int(limit.Period.Seconds()), Burst: limit.Burst},
	})
	w.made.created.done = time.Now()
	if err != nil {
		s.Fatal(err)
	}
	k := s.newKey(authz.NewSecret(*change.Secret))
	k.stored = true
	if err := k.id.UnmarshalText([]byte(change.Key.ID)); err != nil {
		s.Fatal(err)
	}
	w.made.key = k
	for _, r := range replicas {
		w.loads = append(w.loads, s.startLoad(plan{
			to: []*replica{r}, keys: []*key{k}, connections: 1, closed: true, rate: either(s.trial, watchRate, 30), seen: w.see,
		}))
	}
	s.eventually("every replica allows a new key", func() bool { return w.all(w.allows, 5) })
	return w
}

func (w *watch) see(a *answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case a.allow:
		w.allows[a.replica]++
	case a.code == "key_revoked":
		w.denies[a.replica]++
	}
}

func (w *watch) all(counts map[*replica]int, least int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.replicas {
		if counts[r] < least {
			return false
		}
	}
	return true
}

// revoke asks one replica to revoke the key. From the receipt on nobody may allow it,
// and whom it names as silent not beyond the time that it names.
func (w *watch) revoke(on *replica) {
	w.site.Helper()
	asked := interval{call: time.Now()}
	change, err := w.site.management(on).RevokeKey(w.site.Context(), w.made.key.id.String())
	asked.done = time.Now()
	if err != nil || change.Effective == nil {
		w.site.Errorf("revoke: %v", err)
		return
	}
	w.made.asked, w.made.receipt = asked, *change.Effective
	denied := asked.done
	for _, silent := range change.Effective.Silent {
		if silent.ServesUntil != nil && silent.ServesUntil.After(denied) {
			denied = *silent.ServesUntil
		}
	}
	w.made.key.denied.Store(&denied)
}

// finish returns when every replica has denied the key some times, and not allowed it again.
func (w *watch) finish() *revocation {
	w.site.Helper()
	w.site.eventually("every replica denies a revoked key", func() bool { return w.all(w.denies, 5) })
	for _, l := range w.loads {
		w.made.checks = append(w.made.checks, l.stop()...)
	}
	return &w.made
}

// took is the time from one moment, such as that of the request, until the last replica
// denied: until the first denial of each had arrived.
func (r *revocation) took(from time.Time) time.Duration {
	first := map[*replica]time.Time{}
	for _, a := range r.checks {
		if at, ok := first[a.replica]; a.code == "key_revoked" && (!ok || a.done.Before(at)) {
			first[a.replica] = a.done
		}
	}
	var last time.Duration
	for _, at := range first {
		last = max(last, at.Sub(from))
	}
	return last
}

// The states of a key, as the register that each replica is for it.
const (
	absent = iota
	active
	revoked
)

// operation is one on a key's register at one replica. outcome is empty for what a check
// could not tell.
type operation struct {
	kind    string // create, revoke, check
	outcome string
}

// register says what a replica may answer of one key. Between the request to revoke and
// its receipt replicas may differ, so that each is a register of its own, of which the
// receipt says that it has been written.
func register() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return absent },
		Step: func(state, input, _ any) (bool, any) {
			at, op := state.(int), input.(operation)
			switch {
			case op.kind == "create":
				return at == absent, active
			case op.kind == "revoke":
				return at == active, revoked
			case op.outcome == "allowed":
				return at == active, at
			case op.outcome == "key_revoked":
				return at == revoked, at
			case op.outcome == "key_unknown":
				return at == absent, at
			}
			return true, at
		},
		DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
	}
}

// linearizable tells at how many of the replicas a key's history is no register's, and
// how many checks were judged. A receipt that names silent replicas is held to bound later.
func (r *revocation) linearizable(bound time.Duration) (violations, checks int) {
	histories := map[*replica][]porcupine.Operation{}
	at := func(t time.Time) int64 { return int64(t.Sub(r.created.call)) }
	for _, a := range r.checks {
		if a.err == nil {
			checks++
			histories[a.replica] = append(histories[a.replica],
				porcupine.Operation{ClientId: 1, Input: operation{"check", a.outcome()}, Call: at(a.sent), Return: at(a.done)})
		}
	}
	until := r.asked.done
	if len(r.receipt.Silent) > 0 {
		until = until.Add(bound)
	}
	for _, history := range histories {
		history = append(history,
			porcupine.Operation{ClientId: 0, Input: operation{kind: "create"}, Call: at(r.created.call), Return: at(r.created.done)},
			porcupine.Operation{ClientId: 0, Input: operation{kind: "revoke"}, Call: at(r.asked.call), Return: at(until)})
		if !porcupine.CheckOperations(register(), history) {
			violations++
		}
	}
	return violations, checks
}

// judgeOrder states what the histories of all keys say.
func (s *site) judgeOrder(all []*revocation) {
	s.Helper()
	// In the quick form a silent replica has no bound: the machine may be as busy as it likes.
	bound := either(s.trial, staleBound, time.Hour)
	violations, checks, silent := 0, 0, 0
	for _, r := range all {
		v, c := r.linearizable(bound)
		violations, checks = violations+v, checks+c
		if len(r.receipt.Silent) > 0 {
			silent++
		}
	}
	s.exact(violations == 0, "linearizable at the receipt: %d violations in %d checks of %d keys", violations, checks, len(all))
	s.timed(silent == 0, "%d of %d receipts named a silent replica", silent, len(all))
}

// revocations revokes keys one after the other, each on another replica than the one
// before, with a fault around each request that lasts until undo.
func (s *site) revocations(n int, replicas []*replica, fault func(i int) (undo func())) []*revocation {
	s.Helper()
	all := make([]*revocation, n)
	for i := range all {
		w := s.watchKey(replicas[(i+1)%len(replicas)], replicas)
		undo := func() {}
		if fault != nil {
			undo = fault(i)
		}
		w.revoke(replicas[i%len(replicas)])
		all[i] = w.finish()
		undo()
	}
	return all
}

// delays are how long each took until the last replica denied.
func delays(all []*revocation) []time.Duration {
	times := make([]time.Duration, len(all))
	for i, r := range all {
		times[i] = r.took(r.asked.call)
	}
	return times
}

func revocationUnderLoad(t *trial) {
	s := newSite(t)
	keys := s.addKeys(100, plenty())
	replicas := s.start(either(t, 3, 2))
	s.warm(replicas, keys[:1])
	began := time.Now()
	l := s.startLoad(plan{to: replicas, keys: keys, rate: either(t, 2000, 100)})
	pause(either(t, 2*time.Second, 100*time.Millisecond))
	all := s.revocations(either(t, 100, 4), replicas, nil)
	others := l.stop()
	rate := float64(len(others)) / time.Since(began).Seconds()
	times := delays(all)
	receipts := make([]time.Duration, len(all))
	for i, r := range all {
		receipts[i] = time.Duration(r.receipt.WithinMs) * time.Millisecond
	}
	t.timed(percentile(times, .99) <= 250*time.Millisecond && percentile(times, 1) <= time.Second,
		"revoked → denied on %d replicas: p50 %s, p99 %s, max %s of %d", len(replicas), ms(percentile(times, .5)), ms(percentile(times, .99)),
		ms(percentile(times, 1)), len(times))
	t.timed(true, "receipts after the commit: p50 %s, p99 %s, max %s", ms(percentile(receipts, .5)), ms(percentile(receipts, .99)), ms(percentile(receipts, 1)))
	s.judgeOrder(all)
	t.timed(len(others.except("allowed")) == 0, "other keys meanwhile, %.0f checks a second: %v; p99 %s", rate, others, ms(others.percentile(.99)))
}
