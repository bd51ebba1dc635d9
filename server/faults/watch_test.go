package faults

import (
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// What is promised in every row.
const (
	// answerWithin is how long any answer may take.
	answerWithin = 200 * time.Millisecond
	// answerShare is the share of answers that is held to it: replicas, servers and load
	// share the machine's few cores, so that one in a thousand may wait for a core.
	answerShare = 0.999
	// minFragment is how much of a secret nothing shows: hints have eight characters.
	minFragment = 20
)

// standstill is a time in which this machine did not run what was due.
type standstill struct{ from, to time.Time }

// stallWatch finds out when the machine itself stood still: whoever only wants to wake up
// every few milliseconds gets a core at once, however busy replicas are.
type stallWatch struct {
	quit chan struct{}
	done chan struct{}

	mu     sync.Mutex
	stalls []standstill
}

// worthTelling is how late a wake-up is a standstill.
const worthTelling = 25 * time.Millisecond

func watchStalls() *stallWatch {
	w := &stallWatch{quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		tick := time.NewTimer(glance)
		defer tick.Stop()
		for from := time.Now(); ; from = time.Now() {
			tick.Reset(glance)
			select {
			case <-w.quit:
				return
			case <-tick.C:
			}
			if to := time.Now(); to.Sub(from) > glance+worthTelling {
				w.mu.Lock()
				w.stalls = append(w.stalls, standstill{from, to})
				w.mu.Unlock()
			}
		}
	}()
	return w
}

func (w *stallWatch) stop() []standstill {
	close(w.quit)
	<-w.done
	return w.soFar()
}

func (w *stallWatch) soFar() []standstill {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.stalls)
}

// heldUp tells whether the machine stood still while this was answered.
func heldUp(a *answer, stalls []standstill) bool {
	return slices.ContainsFunc(stalls, func(x standstill) bool { return a.due.Before(x.to) && a.done.After(x.from) })
}

// fair leaves out what the machine itself held up, unless that was more than half: then who
// knows whose doing it was.
func (s *site) fair(all answers) answers {
	stalls := s.stalls.soFar()
	judged := all.where(func(a *answer) bool { return !heldUp(a, stalls) })
	if len(judged) < len(all)/2 {
		return all
	}
	return judged
}

// judgeServed states that all were allowed. On a busy machine one in twenty may be late.
func (s *site) judgeServed(what string, served answers) {
	s.Helper()
	most := either(s.trial, 0, len(served)/20)
	s.exact(len(served) > 0 && len(served)-served.allowed() <= most, "%s: %v", what, served)
}

// wrongAllows are answers that must never be given, by what is wrong with them.
type wrongAllows map[string]struct {
	count int
	worst time.Duration
}

// judgeAllow holds each single answer to what is known of its key. It is told at the end
// of the row, and breaks it. Safe for concurrent use.
func (s *site) judgeAllow(a *answer) {
	if !a.allow {
		return
	}
	denied := a.key.denied.Load()
	var wrong string
	var by time.Duration
	switch {
	case a.code != "allowed" || a.status != 200:
		wrong = "the answer says " + a.outcome()
	case !a.key.stored:
		wrong = "nobody has stored the key"
	case denied != nil && a.sent.After(*denied):
		wrong, by = "the key had to be denied everywhere", a.sent.Sub(*denied)
	default:
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.wrong[wrong]
	w.count, w.worst = w.count+1, max(w.worst, by)
	s.wrong[wrong] = w
}

// inspect is the end of a row: what is promised in every one.
func (s *site) inspect() {
	s.Helper()
	s.note("everything has ended")
	s.mu.Lock()
	all, wrong := slices.Clone(s.answers), maps.Clone(s.wrong)
	s.mu.Unlock()
	for _, why := range slices.Sorted(maps.Keys(wrong)) {
		s.exact(false, "WRONG ALLOW: %d, the worst %s late: %s", wrong[why].count, ms(wrong[why].worst), why)
	}
	slices.SortFunc(all, func(a, b *answer) int { return a.due.Compare(b.due) })
	s.judgeTimes(all.where(func(a *answer) bool { return a.err == nil }))
	for _, r := range s.replicas {
		raw, err := os.ReadFile(r.log)
		if err != nil {
			s.Error(err)
		}
		s.inspectLog(r, string(raw))
	}
	if !s.logJudged {
		s.judgePostgresLog()
	}
}

// judgePostgresLog finds secrets in what Postgres logs. It must have ended.
func (s *site) judgePostgresLog() {
	s.Helper()
	s.logJudged = true
	if found := s.secretsIn(s.postgresLog()); len(found) > 0 {
		s.exact(false, "secrets in the log of Postgres: %v", found)
	}
}

// judgeTimes holds all answers to the promised time, but for those that the machine itself
// held up.
func (s *site) judgeTimes(all answers) {
	s.Helper()
	stalls := s.stalls.stop()
	var still time.Duration
	for _, x := range stalls {
		still += x.to.Sub(x.from)
		s.Logf("the machine stood still for %s in second %d", ms(x.to.Sub(x.from)), int(x.from.Sub(s.began).Seconds()))
	}
	judged := all.where(func(a *answer) bool { return !heldUp(a, stalls) })
	late := judged.where(func(a *answer) bool { return a.took() > answerWithin })
	s.tellLate(s.began, late)
	text := fmt.Sprintf("every answer: p99.9 %s, max %s, %d of %d beyond 200 ms", ms(judged.percentile(answerShare)),
		ms(judged.percentile(1)), len(late), len(judged))
	if len(stalls) > 0 {
		text += fmt.Sprintf("; %d more, max %s, while the machine stood still (%d times, %s in all)", len(all)-len(judged),
			ms(all.percentile(1)), len(stalls), ms(still))
	}
	s.exact(len(all) > 0, "%d answers are judged", len(all))
	s.timed(judged.percentile(answerShare) <= answerWithin && len(judged) >= len(all)*9/10, "%s", text)
}

// tellLate logs when it was that answers came late.
func (s *site) tellLate(began time.Time, late answers) {
	s.Helper()
	seconds := map[int]answers{}
	for _, a := range late {
		second := int(a.due.Sub(began).Seconds())
		seconds[second] = append(seconds[second], a)
	}
	for _, second := range slices.Sorted(maps.Keys(seconds)) {
		s.Logf("late in second %d: max %s, %v", second, ms(seconds[second].percentile(1)), seconds[second])
	}
}

func (s *site) inspectLog(r *replica, log string) {
	s.Helper()
	for line := range strings.Lines(log) {
		for _, sign := range []string{"level=ERROR msg=panic", "panic:", "fatal error:", "WARNING: DATA RACE"} {
			if strings.Contains(line, sign) {
				s.exact(false, "replica %d: %s", r.pid, strings.TrimSpace(line))
			}
		}
	}
	if found := s.secretsIn(log); len(found) > 0 {
		s.exact(false, "secrets in the log of replica %d: %v", r.pid, found)
	}
}

// secretsIn tells what of all secrets that there are is in a text.
func (s *site) secretsIn(log string) (found []string) {
	for _, secret := range s.secrets {
		text := secret.Reveal()
		// What comes before and after the middle is in hints.
		if middle := text[len(text)-minFragment-6 : len(text)-6]; strings.Contains(log, middle) || strings.Contains(log, fmt.Sprintf("%x", secret.Hash())) {
			found = append(found, text[:4])
		}
	}
	_, pepper, _ := strings.Cut(s.env["KEYSTILE_PEPPERS"], ":")
	if raw, err := base64.StdEncoding.DecodeString(pepper); err != nil || strings.Contains(log, pepper) || strings.Contains(log, fmt.Sprintf("%x", raw)) {
		found = append(found, "pepper")
	}
	if strings.Contains(log, ":"+password+"@") {
		found = append(found, "password")
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// outage waits until a replica shows in all three places that a part is stood in for: in
// its decisions, in the metric, and in /readyz, which stays 200.
func (s *site) outage(r *replica, part string, k *key) {
	s.Helper()
	sample := fmt.Sprintf("keystile_degraded_decisions_total{part=%q}", part)
	before := r.metric(s.trial, sample)
	var a *answer
	shown := within(10*time.Second, func() bool {
		a = s.ask(r, k)
		return part == "store" && a.store || part == "limiter" && a.limiter
	})
	code, word := r.readiness(s.trial)
	counted := r.metric(s.trial, sample) > before
	if kept := shown && counted && code == 200 && word == "degraded"; kept {
		s.exact(true, "%s shown degraded in decision, metric, /readyz 200", part)
	} else {
		s.exact(false, "%s away: shown in the decision %t, in the metric %t; /readyz %d %s", part, shown, counted, code, word)
	}
}
