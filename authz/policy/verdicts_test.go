package policy

import (
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
)

// asksAgain evaluates until the verdict would come from memory.
func asksAgain(t *testing.T, e *Engine, k *authz.Key, c *authz.Check) authz.Verdict {
	t.Helper()
	var v authz.Verdict
	for range 4 {
		var err error
		if v, err = e.Evaluate(t.Context(), k, c); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// A verdict is remembered for all that it follows from: whoever differs in one thing is
// evaluated. A new field of a check fails here until it is looked at.
func TestVerdicts_OneDifferenceIsAnotherQuestion(t *testing.T) {
	differ := map[string]func(*authz.Check){
		"Caller":      func(c *authz.Check) { c.Caller = &authz.Caller{} },
		"Method":      func(c *authz.Check) { c.Method = "DELETE" },
		"Path":        func(c *authz.Check) { c.Path = "/other" },
		"Segments":    func(c *authz.Check) { c.Segments = []string{"other"} },
		"Ambiguous":   func(c *authz.Check) { c.Ambiguous = true },
		"Action":      func(c *authz.Check) { c.Action = "tickets:write" },
		"Environment": func(c *authz.Check) { c.Environment = authz.EnvironmentTest },
		"Resource":    func(c *authz.Check) { c.Resource.Organization = "other" },
		"ClientIP":    func(c *authz.Check) { c.ClientIP = netip.MustParseAddr("203.0.113.9") },
		"Browser":     func(c *authz.Check) { c.Browser = true },
		"Stale":       func(c *authz.Check) { c.Stale = true },
	}
	unseen := []string{"Presented", "Cost"} // by policies
	m, s, k := newVerdicts(), &Snapshot{}, exampleKey()
	question := exampleCheck("GET", "/api/v1/tickets")
	kept := askedOf(s, k, question)
	for range 2 {
		m.keep(&kept, question.Segments, m.hash(&kept), authz.Verdict{Allow: true})
	}
	entry := m.slots[m.hash(&kept)%maxVerdicts].Load()
	if entry == nil {
		t.Fatal("what was asked twice is not remembered")
	}
	known := func(s *Snapshot, k *authz.Key, c *authz.Check) bool {
		a := askedOf(s, k, c)
		m.slots[m.hash(&a)%maxVerdicts].Store(entry) // as if their hashes were the same
		_, ok, _ := m.find(&a, c.Segments)
		return ok
	}
	for field := range reflect.TypeFor[authz.Check]().Fields() {
		change := differ[field.Name]
		if change == nil {
			if !slices.Contains(unseen, field.Name) {
				t.Errorf("does a verdict follow from %s?", field.Name)
			}
			continue
		}
		other := *question
		change(&other)
		if known(s, k, &other) {
			t.Errorf("another %s has the same verdict", field.Name)
		}
	}
	if known(&Snapshot{}, k, question) {
		t.Error("another policy has the same verdict")
	}
	if known(s, exampleKey(), question) {
		t.Error("another record has the same verdict")
	}
	if !known(s, k, question) {
		t.Error("the same question is not known any more")
	}
}

// What is remembered is what would be decided.
func TestEngine_RememberedVerdictsAreThoseOfThePolicy(t *testing.T) {
	e := NewEngine(mustLoad(t, shipped()))
	for _, path := range []string{"/api/v1/tickets", "/api/v1/tickets/42", "/nowhere", "/api/../v1"} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			k, c := exampleKey(), exampleCheck(method, path)
			again := asksAgain(t, e, k, c)
			fresh, err := NewEngine(mustLoad(t, shipped())).Evaluate(t.Context(), k, c)
			if err != nil || !reflect.DeepEqual(again, fresh) {
				t.Errorf("%s %s: %+v, then %+v, %v", method, path, fresh, again, err)
			}
		}
	}
}

// A policy that replaces another decides at once, also what was asked before.
func TestEngine_ANewPolicyRemembersNothingOfTheOld(t *testing.T) {
	e := NewEngine(mustLoad(t, minimal("decision := "+allowing("true")+"\n")))
	k, c := keyOf(nil, true), exampleCheck("GET", "/")
	if !asksAgain(t, e, k, c).Allow {
		t.Fatal("denied")
	}
	e.Swap(mustLoad(t, minimal("decision := "+allowing("false")+"\n")))
	if asksAgain(t, e, k, c).Allow {
		t.Error("the old policy's verdict is still given")
	}
	for i := range e.known.slots {
		if r := e.known.slots[i].Load(); r != nil && r.asked.snapshot != e.current.Load() {
			t.Error("the old policy is kept in memory")
		}
	}
}

// What was not decided is not remembered, and who is held back is denied although known.
func TestEngine_OnlyDecisionsAreRemembered(t *testing.T) {
	e := NewEngine(mustLoad(t, minimal("decision := "+allowing("true")+"\n")))
	k, c := keyOf(nil, true), exampleCheck("GET", "/")
	asksAgain(t, e, k, c)
	e.held.overran(k, nil)
	e.held.overran(k, nil)
	if v, err := e.Evaluate(t.Context(), k, c); err == nil || v.Allow {
		t.Errorf("held back, and yet %+v", v)
	}
	e = NewEngine(mustLoad(t, minimal("decision := 7\n")))
	for range 4 {
		if _, err := e.Evaluate(t.Context(), k, c); err == nil {
			t.Error("no decision is one")
		}
	}
}

// The memory is bounded by bytes, whatever paths a client makes up.
func TestVerdicts_LongQuestionsTakeNoMoreThanTheirBound(t *testing.T) {
	for name, segments := range map[string]int{"as long as may be": 4000, "just remembered": 100} {
		m, s, k := newVerdicts(), &Snapshot{}, exampleKey()
		question := func(i int) *authz.Check {
			c := exampleCheck("GET", fmt.Sprintf("/%04d", i)+strings.Repeat("/a", segments))
			c.Segments = strings.Split(c.Path[1:], "/")
			return c
		}
		before := heapNow()
		for i := range 4 * maxVerdicts {
			c := question(i)
			a := askedOf(s, k, c)
			for range 2 {
				m.keep(&a, c.Segments, m.hash(&a), authz.Verdict{Allow: true})
			}
		}
		if took := heapNow() - before; took > maxVerdicts*(maxVerdictBytes+1024) {
			t.Errorf("%s: %d bytes are kept", name, took)
		}
		kept := 0
		for i := range m.slots {
			if m.slots[i].Load() != nil {
				kept++
			}
		}
		if short := segments == 100; short != (kept > maxVerdicts/2) {
			t.Errorf("%s: %d verdicts are remembered", name, kept)
		}
		runtime.KeepAlive(m)
	}
}
