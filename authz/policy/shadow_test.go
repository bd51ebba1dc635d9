package policy

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

type testClock struct{}

func (testClock) Now() time.Time { return time.Now() }

// shadowOf is a shadow beside the shipped policy, which runs until the test ends; ended has why
// it did before.
func shadowOf(t *testing.T, candidate *Source, perSecond int) (e *Engine, s *Shadow, ended chan error) {
	t.Helper()
	e = NewEngine(mustLoad(t, shipped()))
	s = NewShadow(ShadowOptions{Engine: e, Gate: newTestGate(t, 0), Candidate: candidate, Share: 1, PerSecond: perSecond, Clock: testClock{}})
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	select {
	case <-s.Begun():
	case err := <-ended:
		t.Fatalf("it has not begun: %v", err)
	}
	return e, s, ended
}

// shadowedKey is one key, whose differences are one.
var shadowedKey = exampleKey()

// askMany asks checks, each of another address, so that nothing is from memory.
func askMany(t *testing.T, e *Engine, n int, method, path string) {
	t.Helper()
	for i := range n {
		c := exampleCheck(method, path)
		c.ClientIP = authz.NormalizeAddr(fmt.Sprintf("203.0.113.%d", i%250))
		if _, err := evaluate(t, e, shadowedKey, c); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitCounts waits for what the candidate has still to answer.
func awaitCounts(t *testing.T, s *Shadow, is func(authz.PolicyShadowCounts) bool) authz.PolicyShadowCounts {
	t.Helper()
	for deadline := time.Now().Add(patience); ; <-time.After(5 * time.Millisecond) {
		c := s.Counts()
		if is(c) {
			return c
		} else if time.Now().After(deadline) {
			t.Fatalf("not in time: %+v", c)
		}
	}
}

// Every difference is counted where it is, and nothing else is; the row names no id and no address.
func TestShadow_WhatTheCandidateSaysOtherwiseIsCountedExactly(t *testing.T) {
	source := light(t, map[string]string{
		ruleRego: ruleOf(`input.request.segments[3] == "13"`),
		"keystile/catalog/data.yaml": edited(t, "keystile/catalog/data.yaml", "  DELETE:\n",
			"  PUT:\n    \"4\":\n      /api/v1/tickets/{id}: {scopes: [tickets:read]}\n  DELETE:\n"),
	})
	e, s, _ := shadowOf(t, source, 10_000)
	for n := range 40 {
		askMany(t, e, 1, "GET", fmt.Sprintf("/api/v1/tickets/%d", n%20)) // twice 13
		askMany(t, e, 1, "PUT", fmt.Sprintf("/api/v1/tickets/%d", n%20)) // a new route, but for 13
	}
	counts := awaitCounts(t, s, func(c authz.PolicyShadowCounts) bool { return c.Asked+c.Dropped == 80 })
	if counts.Seen != 80 || counts.Asked != 80 || counts.Failed+counts.Dropped+counts.Undecided != 0 {
		t.Errorf("%+v", counts)
	}
	if counts.Totals[authz.AllowToDeny] != 2 || counts.Totals[authz.DenyToAllow] != 38 || counts.Totals[authz.OtherReasons] != 2 || len(counts.Totals) != 3 {
		t.Errorf("%v", counts.Totals)
	}
	if p99 := counts.Took.Quantile(0.99); p99 <= 0 || counts.ActiveTook.Quantile(0.5) <= 0 {
		t.Errorf("p99 is %v, of the active one %v", p99, counts.ActiveTook.Quantile(0.5))
	}
	_, differences, written := s.Report()
	if len(differences) != 3 {
		t.Fatalf("%d differences: %+v", len(differences), differences[0])
	}
	for _, d := range differences {
		if d.Path != "/api/v1/tickets/{id}" || d.Key != shadowedKey.ID || d.Active != e.Revision() || d.FirstSeen.IsZero() || d.LastSeen.Before(d.FirstSeen) {
			t.Errorf("%+v", d)
		}
		if text := fmt.Sprintf("%+v", d); strings.Contains(text, "203.0.113") || strings.Contains(text, "tickets/13") {
			t.Errorf("it names what is one request's: %s", text)
		}
	}
	written()
	if _, again, _ := s.Report(); len(again) != 0 {
		t.Errorf("what is written comes again: %+v", again)
	}
}

// What the candidate does not decide is counted as such, with the place of the error.
func TestShadow_ErrorsOfTheCandidateAreToldWithTheirPlace(t *testing.T) {
	e, s, _ := shadowOf(t, light(t, map[string]string{ruleRego: ruleOf(`net.cidr_contains("10.0.0.0/8", input.request.method)`)}), 10_000)
	askMany(t, e, 3, "GET", "/api/v1/tickets")
	counts := awaitCounts(t, s, func(c authz.PolicyShadowCounts) bool { return c.Asked == 3 })
	_, differences, _ := s.Report()
	if counts.Failed != 3 || counts.Totals[authz.CandidateFails] != 3 || len(differences) != 1 {
		t.Fatalf("%+v, %+v", counts, differences)
	}
	if d := differences[0]; d.Where != ruleRego+":7" || d.Failure != authz.FailureError || d.After.Code != authz.CodeUnavailable {
		t.Errorf("%+v", d)
	}
}

// Whatever a candidate does, checks are decided as before, and it is told why it is not asked
// any more.
func TestShadow_ACandidateThatTakesTooMuchEndsAlone(t *testing.T) {
	thousand := "numbers.range(1, 3000)"
	doubled := "s0 := \"" + strings.Repeat("x", 1<<10) + "\""
	for n := range 20 { // to a gigabyte
		doubled += fmt.Sprintf("; s%d := concat(\"\", [s%d, s%d])", n+1, n, n)
	}
	doubled += `; s20 == "x"`
	for name, c := range map[string]struct{ condition, why string }{
		"steps":  {"count([1 | some a in " + thousand + "; some b in " + thousand + "; a * b == 0]) == 1", "it takes longer than checks have, 8 times in a row"},
		"call":   {`count(net.cidr_expand("::/0")) == 0`, "cannot be ended"},
		"memory": {doubled, ""}, // whichever comes first
	} {
		t.Run(name, func(t *testing.T) {
			e, s, ended := shadowOf(t, light(t, map[string]string{ruleRego: ruleOf(c.condition)}), 10_000)
			quit := make(chan struct{})
			defer close(quit)
			for stop := false; !stop; {
				askMany(t, e, 5, "GET", "/api/v1/tickets")
				select {
				case err := <-ended:
					var failed *ShadowFailedError
					if !errors.As(err, &failed) || !strings.Contains(failed.Why, c.why) {
						t.Errorf("it ended with %v", err)
					} else if !strings.HasPrefix(failed.Error(), ruleRego+":7: ") {
						t.Errorf("no place is told: %v", failed)
					}
					t.Log(err)
					stop = true
				case <-time.After(20 * time.Millisecond):
				}
			}
			if e.beside.Load() != nil {
				t.Error("checks still hand questions over")
			}
			counts := s.Counts()
			if b := s.beside; counts.Asked+counts.Dropped+counts.Undecided != b.picked.Load() || counts.Failed == 0 {
				t.Errorf("of %d picked: %+v", b.picked.Load(), counts)
			}
			_, differences, _ := s.Report()
			for _, d := range differences {
				if d.Kind != authz.CandidateFails {
					t.Errorf("%+v", d)
				}
			}
		})
	}
}

// A process that takes too much memory says so, and where it was, before it ends.
func TestShadowServer_TooMuchMemoryIsTheEnd(t *testing.T) {
	var out bytes.Buffer
	s := &shadowServer{where: new(whereabouts), out: gob.NewEncoder(&out)}
	s.where.at.Store(&ast.Location{File: ruleRego, Row: 7})
	much := make([]byte, shadowHeap)
	if err := s.watch(patience, make(chan struct{}), make(chan error)); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(much)
	var a shadowAnswer
	if err := gob.NewDecoder(&out).Decode(&a); err != nil || a.Fatal != "it takes more than 256 MiB of memory" || a.Where != ruleRego+":7" {
		t.Errorf("%+v, %v", a, err)
	}
}

// A question for which there is no room is dropped, and each is counted.
func TestBeside_WhatFindsNoPlaceIsDroppedAndCounted(t *testing.T) {
	e := NewEngine(mustLoad(t, shipped()))
	b := newBeside("sha256:other", 1, 100_000)
	e.beside.Store(b)
	askMany(t, e, maxShadowWaiting+77, "GET", "/api/v1/tickets")
	if b.dropped.Load() != 77 || len(b.queue) != maxShadowWaiting || b.picked.Load() != maxShadowWaiting+77 {
		t.Errorf("%d dropped, %d wait, %d picked", b.dropped.Load(), len(b.queue), b.picked.Load())
	}
	if got := len(b.take(t.Context())); got != maxShadowBatch {
		t.Errorf("%d are asked at a time", got)
	}
	large := exampleCheck("GET", "/"+strings.Repeat("x", 60<<10))
	b = newBeside("sha256:other", 1, 100_000)
	e.beside.Store(b)
	for range maxShadowWaiting {
		if _, err := evaluate(t, e, shadowedKey, large); err != nil {
			t.Fatal(err)
		}
	}
	if b.bytes.Load() > maxShadowBytes+128<<10 || b.dropped.Load()+int64(len(b.queue)) != maxShadowWaiting || b.dropped.Load() == 0 {
		t.Errorf("%d bytes wait in %d, %d dropped", b.bytes.Load(), len(b.queue), b.dropped.Load())
	}
}

// What a policy said takes room as well, and its messages are not kept.
func TestBeside_TheVerdictTakesRoomAsWell(t *testing.T) {
	b := newBeside("sha256:other", 1, 100_000)
	v := authz.Verdict{
		Revision: "sha256:this", Reasons: []authz.Reason{{Code: authz.CodePolicyDenied, Message: strings.Repeat("m", 1<<20)}, {Code: "x"}},
		Missing: []authz.Scope{authz.Scope(strings.Repeat("s", 1<<20))},
	}
	for range 100 {
		b.hand(shadowedKey, exampleCheck("GET", "/"), v, nil, 0)
	}
	if n := len(b.queue); n != 16 || b.dropped.Load() != int64(100-n) {
		t.Errorf("%d of a megabyte each wait, %d dropped", n, b.dropped.Load())
	}
	for range len(b.queue) {
		q := <-b.queue
		if q.verdict.Reasons[0].Message != "-" || q.verdict.Reasons[1].Message != "" {
			t.Fatalf("the first message is %.20q", q.verdict.Reasons[0].Message)
		}
		b.bytes.Add(-q.size)
	}
	if n := b.bytes.Load(); n != 0 {
		t.Errorf("%d bytes wait in nothing", n)
	}
}

// No more are picked than are to be a second, and of a share that share.
func TestBeside_NoMoreArePickedThanAreWanted(t *testing.T) {
	picked := func(b *beside, of int) (n int) {
		for range of {
			if b.picks() {
				n++
			}
		}
		return n
	}
	b := newBeside("", 1, 500)
	if n := picked(b, 1000); n != 50 {
		t.Errorf("%d of 500 a second at once", n)
	}
	if n := picked(newBeside("", 0.25, 1_000_000), 10_000); n < 2200 || n > 2800 {
		t.Errorf("%d of a quarter of 10,000", n)
	}
	if b.seen.Load() != 1000 {
		t.Errorf("%d seen", b.seen.Load())
	}
}

// A difference is one between what was decided and what the candidate says: not one between it
// and a policy that came into force meanwhile, nor between a policy and itself.
func TestShadow_ASwapOfTheActivePolicyIsNoDifference(t *testing.T) {
	other := mustLoad(t, with(t, map[string]string{ruleRego: ruleOf(`input.request.method == "GET"`)}))
	e, s, _ := shadowOf(t, mustRead(t, with(t, map[string]string{ruleRego: ruleOf(`input.request.method == "GET"`)})), 10_000)
	first := e.Revision()
	askMany(t, e, 10, "GET", "/api/v1/tickets")
	e.Swap(other) // while these wait
	askMany(t, e, 10, "GET", "/api/v1/tickets")
	counts := awaitCounts(t, s, func(c authz.PolicyShadowCounts) bool { return c.Asked == 10 })
	if counts.Totals[authz.AllowToDeny] != 10 || counts.Undecided != 10 {
		t.Errorf("%+v", counts)
	}
	if _, differences, _ := s.Report(); len(differences) != 1 || differences[0].Active != first {
		t.Errorf("%+v", differences)
	}
}

// Nothing is handed over, nor allocated for it, while there is no shadow.
func TestEvaluate_CostsNothingMoreWithoutAShadow(t *testing.T) {
	e, k, c := NewEngine(mustLoad(t, shipped())), exampleKey(), exampleCheck("GET", "/api/v1/tickets")
	for range 3 {
		if _, err := evaluate(t, e, k, c); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = e.Evaluate(t.Context(), k, c) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	e.beside.Store(newBeside("", 0, 1))
	if n := testing.AllocsPerRun(100, func() { _, _ = e.Evaluate(t.Context(), k, c) }); n != 0 {
		t.Errorf("%v allocations for a check that is not picked", n)
	}
}
