package faults

import (
	"fmt"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// standInShare is how much of a limit replicas may admit together around an outage.
	standInShare = 1.25
	// busyShare allows for one outage more, which a busy machine can cause.
	busyShare = 1.5
	// exactWithin is how long after Redis' return limits are exact again.
	exactWithin = 2 * time.Second
	// firstCall and laterCall are how much longer than before a check takes: while it is
	// found out that Redis is away, and after that.
	firstCall, laterCall = 60 * time.Millisecond, time.Millisecond
	// findingOut is the time in which the first calls are made.
	findingOut = 200 * time.Millisecond
)

// limitedKey is a key whose admissions are counted.
type limitedKey struct {
	*key

	rate authz.Rate
	// exhausted through one replica before the fault: the others do not know.
	exhausted bool
}

// standard is the shipped plan's limit.
func standard() authz.Rate { return authz.Rate{Rate: 100, Period: time.Minute, Burst: 100} }

// addLimited stores keys of the plan, and in the full form of a larger limit of their
// own: of each one to exhaust and one to leave fresh.
func (s *site) addLimited() []limitedKey {
	s.Helper()
	plan := s.addKeys(2, nil)
	keys := []limitedKey{{plan[0], standard(), true}, {plan[1], standard(), false}}
	if s.full {
		larger := authz.Rate{Rate: 300, Period: time.Minute, Burst: 300}
		own := s.addKeys(2, &larger)
		keys = append(keys, limitedKey{own[0], larger, true}, limitedKey{own[1], larger, false})
	}
	return keys
}

func keysOf(limited []limitedKey) []*key {
	keys := make([]*key, len(limited))
	for i := range limited {
		keys[i] = limited[i].key
	}
	return keys
}

// remember has each replica look keys up without a charge: a fence denies before it.
func (s *site) remember(replicas []*replica, keys []*key) {
	s.Helper()
	for _, r := range replicas {
		c, err := dial(r)
		if err != nil {
			s.Fatal(err)
		}
		for _, k := range keys {
			question := s.checkWith(fmt.Appendf(nil, `{"key_sha256":"%x","method":"GET","path":%q,"environment":"test"}`, k.secret.Hash(), path))
			s.eventually("a replica knows a key", func() bool {
				a := &answer{replica: r, key: k}
				c.ask(question, a)
				return a.code == "environment_mismatch"
			})
		}
		_ = c.Close()
	}
}

// exhaust empties the buckets of those that are to be exhausted, through one replica.
func (s *site) exhaust(r *replica, keys []limitedKey) answers {
	s.Helper()
	var all answers
	for _, k := range keys {
		if k.exhausted {
			all = append(all, s.run(plan{to: []*replica{r}, keys: []*key{k.key}, rate: 1500, connections: 8, rounds: k.rate.Burst + 20})...)
		}
	}
	return all
}

// admission is how much of a key's limit was admitted.
type admission struct {
	admitted, asked int
	// may is burst + rate·T, over the whole time from the first question on.
	may float64
	// worst is the greatest share of the limit that was admitted in any part of the time.
	worst float64
}

func (a admission) share() float64 { return float64(a.admitted) / max(a.may, 1) }

func (a admission) String() string {
	return fmt.Sprintf("%.2f × (%d of %.0f; %.2f × in the worst part of the time; %d asked)", a.share(), a.admitted, a.may, a.worst, a.asked)
}

// admission counts a key's, in answers from its first question on. Of times those are
// taken that make them longest: a replica is never blamed for the time on the way.
func (all answers) admission(k limitedKey) admission {
	mine := all.where(func(a *answer) bool { return a.key == k.key && a.err == nil })
	if len(mine) == 0 {
		return admission{may: 1}
	}
	may := func(from, to time.Time) float64 {
		return float64(k.rate.Burst) + to.Sub(from).Seconds()/k.rate.EmissionInterval()
	}
	first, last := mine[0].sent, mine[0].done
	for _, a := range mine {
		if a.sent.Before(first) {
			first = a.sent
		}
		if a.done.After(last) {
			last = a.done
		}
	}
	got := mine.where(func(a *answer) bool { return a.allow })
	slices.SortFunc(got, func(a, b *answer) int { return a.done.Compare(b.done) })
	n := admission{admitted: len(got), asked: len(mine), may: may(first, last)}
	for i := range got {
		for j := i; j < len(got); j++ {
			n.worst = max(n.worst, float64(j-i+1)/may(got[i].sent, got[j].done))
		}
	}
	return n
}

// worstOf is the admission of the key, of those wanted, that got the most of its limit.
func (all answers) worstOf(keys []limitedKey, exhausted bool) (worst admission) {
	for _, k := range keys {
		if a := all.admission(k); k.exhausted == exhausted && (a.share() > worst.share() || worst.may == 0) {
			worst = a
		}
	}
	return worst
}

// redisFault takes a Redis away, or what it knows, and brings it back.
type redisFault struct {
	name       string
	begin, end func()
}

// redisOutage is an outage, and what was answered around it.
type redisOutage struct {
	fault redisFault
	keys  []limitedKey
	// attack is asked for the limited keys: to exhaust some before, and from the
	// beginning of the outage on as much as each replica lets through.
	attack answers
	// steady is what everyone else asks, before, in and after the outage.
	steady      answers
	began, back time.Time
}

// outageUnderAttack takes Redis away from replicas whom somebody attacks who knows it.
func (s *site) outageUnderAttack(f redisFault, lasts time.Duration, replicas []*replica, keys []limitedKey, known []*key) *redisOutage {
	s.Helper()
	s.remember(replicas, keysOf(keys))
	o := &redisOutage{fault: f, keys: keys, attack: s.exhaust(replicas[0], keys)}
	steady := s.startLoad(plan{to: replicas, keys: known, rate: either(s.trial, 300, 40), connections: 24})
	attacking := plan{to: replicas, keys: known, rate: either(s.trial, 800, 200), connections: 24}
	calm := s.startLoad(attacking) // so that the machine has as much to do before as in the outage
	pause(either(s.trial, 1500*time.Millisecond, 300*time.Millisecond))
	o.began = time.Now()
	f.begin()
	s.note("%s began", f.name)
	calm.stop()
	attacking.keys = keysOf(keys)
	attack := s.startLoad(attacking)
	s.outage(replicas[0], "limiter", known[0])
	pause(time.Until(o.began.Add(lasts)))
	f.end()
	o.back = time.Now()
	s.note("%s ended", f.name)
	for _, r := range replicas {
		s.eventually("limits are exact again", func() bool { return s.ask(r, known[0]).mode == "exact" })
	}
	pause(time.Until(o.back.Add(either(s.trial, 3*time.Second, 2*time.Second))))
	o.attack, o.steady = append(o.attack, attack.stop()...), steady.stop()
	return o
}

// judge holds an outage to what row 7 promises.
func (o *redisOutage) judge(s *site) {
	t := s.trial
	t.Helper()
	name, bound := o.fault.name, either(t, standInShare, busyShare)
	exhausted, fresh := o.attack.worstOf(o.keys, true), o.attack.worstOf(o.keys, false)
	t.exact(exhausted.share() <= bound, "%s: 3 replicas together admitted of an exhausted key at most %v", name, exhausted)
	t.exact(fresh.share() <= bound, "%s: of a fresh key at most %v", name, fresh)
	for _, k := range o.keys { // who asks for less proves nothing
		a := o.attack.admission(k)
		if float64(a.asked) < bound*a.may {
			t.timed(false, "%s: a key with a burst of %d was asked for %d times alone", name, k.rate.Burst, a.asked)
		}
	}
	all := slices.Concat(o.attack, o.steady)
	odd := all.where(func(a *answer) bool { return a.err == nil && (a.mode == "local") != a.limiter })
	t.exact(len(odd) == 0, "%s: decisions whose mode is not told as degraded: %d", name, len(odd))
	t.timed(len(o.attack.except("allowed", "rate_limited")) == 0 && len(o.steady.except("allowed")) == 0,
		"%s: limited keys: %v; others: %v", name, o.attack, o.steady)
	stoodIn := o.attack.between(o.began, o.back).where(func(a *answer) bool { return a.allow && a.mode == "local" })
	t.timed(len(stoodIn) > 0, "%s: of these the stand-ins admitted %d", name, len(stoodIn))
	o.judgeTimes(s)
}

func (o *redisOutage) judgeTimes(s *site) {
	t := s.trial
	t.Helper()
	before := o.steady.where(func(a *answer) bool { return a.done.Before(o.began) }).percentile(.5)
	first := s.fair(o.steady.between(o.began, o.began.Add(findingOut)))
	later := o.steady.between(o.began.Add(findingOut), o.back)
	t.timed(len(first) > 0 && first.percentile(.99)-before <= firstCall, "%s: p50 before %s; the first calls p99 %+.1f ms (≤ +60)",
		o.fault.name, ms(before), (first.percentile(.99)-before).Seconds()*1000)
	t.timed(len(later) > 0 && later.percentile(.5)-before <= laterCall, "%s: then p50 %+.2f ms (≤ +1)",
		o.fault.name, (later.percentile(.5)-before).Seconds()*1000)
	exact, again := o.exactAgain()
	t.timed(exact <= exactWithin, "%s: all exact again %.2f s after the return (≤ 2)", o.fault.name, exact.Seconds())
	t.timed(again == 0, "%s: and stood in for again after that: %d checks", o.fault.name, again)
}

// exactAgain tells when the last replica was exact again, after the return, and how many
// checks replicas stood in for after that.
func (o *redisOutage) exactAgain() (last time.Duration, again int) {
	after := slices.Concat(o.attack, o.steady).where(func(a *answer) bool { return a.sent.After(o.back) })
	slices.SortFunc(after, func(a, b *answer) int { return a.sent.Compare(b.sent) })
	exact := map[*replica]time.Time{}
	for _, a := range after {
		from, is := exact[a.replica]
		switch {
		case a.mode == "exact" && a.allow && !is: // a denial may be from memory
			exact[a.replica], last = a.done, max(last, a.done.Sub(o.back))
		case a.mode == "local" && is && a.sent.After(from):
			again++
		}
	}
	return last, again
}
