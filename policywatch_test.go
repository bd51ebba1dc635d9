package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// watched is a watch of which all is played.
type watched struct {
	*policyWatch
	now    time.Time
	log    *lockedBuffer
	state  authz.PolicyFailing
	newest *authz.PolicyActivation
	// asked are the attempts, each answered with answer.
	asked  []manage.StepBack
	answer error
	stays  string
}

func newWatched() *watched {
	w := &watched{
		now: time.Unix(1_795_000_000, 0), log: &lockedBuffer{},
		state:  authz.PolicyFailing{Revision: "sha256:b", Errors: 24, Organizations: 3, NewErrors: 24, NewOrganizations: 3, Widespread: true},
		newest: &authz.PolicyActivation{Change: 7, Revision: "sha256:b"},
	}
	w.policyWatch = &policyWatch{
		failing:    func() authz.PolicyFailing { return w.state },
		activation: func() *authz.PolicyActivation { return w.newest },
		stepBack: func(_ context.Context, in manage.StepBack) (*manage.PolicyChange, error) {
			w.asked = append(w.asked, in)
			if w.answer != nil {
				return nil, w.answer
			}
			return &manage.PolicyChange{Effective: &manage.Effective{}}, nil
		},
		stay: func(_, why string) { w.stays = why }, replica: "one", now: func() time.Time { return w.now },
		log: newLogger(Config{}, w.log),
	}
	return w
}

func (w *watched) looks(t *testing.T, n int) {
	t.Helper()
	for range n {
		w.look(t.Context())
		w.now = w.now.Add(watchEvery)
	}
}

func TestPolicyWatch_AsksOnceForAnActivation(t *testing.T) {
	for name, answer := range map[string]error{
		"taken back":         nil,
		"somebody was first": &authz.Error{Kind: authz.KindConflict, Code: "policy_changed"},
		"refused":            &authz.Error{Kind: authz.KindConflict, Code: "past_security_fix", Message: "no"},
	} {
		w := newWatched()
		w.answer = answer
		w.looks(t, 100)
		if len(w.asked) != 1 || w.asked[0].Change != 7 || w.asked[0].Replica != "one" || w.asked[0].Failing.NewErrors != 24 {
			t.Errorf("%s: %+v", name, w.asked)
		}
		if stays := name == "refused"; (w.stays == "no") != stays || (w.steppedBack.Load() == 1) != (answer == nil) {
			t.Errorf("%s: stays %q, stepped back %d", name, w.stays, w.steppedBack.Load())
		}
		// The next one is another matter.
		w.newest = &authz.PolicyActivation{Change: 9, Revision: "sha256:b"}
		w.looks(t, 10)
		if len(w.asked) != 2 || w.asked[1].Change != 9 {
			t.Errorf("%s, and the next: %+v", name, w.asked)
		}
	}
}

func TestPolicyWatch_AsksAgainWhileTheDatabaseDoesNotAnswer(t *testing.T) {
	w := newWatched()
	w.answer = authz.Unavailable("postgres", errors.New("away"))
	w.looks(t, 11)
	if len(w.asked) != 3 || w.stays != "" { // at once, after 5 seconds, after 10
		t.Errorf("asked %d times, stays %q", len(w.asked), w.stays)
	}
	w.answer = nil
	w.looks(t, 10)
	if len(w.asked) != 4 || w.steppedBack.Load() != 1 {
		t.Errorf("asked %d times, stepped back %d", len(w.asked), w.steppedBack.Load())
	}
}

func TestPolicyWatch_AsksForNothingElse(t *testing.T) {
	for name, change := range map[string]func(*watched){
		"nothing fails":             func(w *watched) { w.state = authz.PolicyFailing{Revision: "sha256:b"} },
		"few fail":                  func(w *watched) { w.state.Widespread = false },
		"nothing was activated":     func(w *watched) { w.newest = nil },
		"another one was activated": func(w *watched) { w.newest.Revision = "sha256:c" },
		"it is a directory's":       func(w *watched) { w.stepBack = nil },
	} {
		w := newWatched()
		change(w)
		w.looks(t, 10)
		if len(w.asked) != 0 {
			t.Errorf("%s: asked for %+v", name, w.asked)
		}
		if alarms := strings.Count(w.log.String(), "fails at run time"); (alarms == 1) != (w.state.Errors > 0) {
			t.Errorf("%s: %d alarms", name, alarms)
		}
	}
}

// The alarm is given at once, when it gets worse, and else each minute.
func TestPolicyWatch_TheAlarmIsGivenOnceAMinute(t *testing.T) {
	w := newWatched()
	w.stepBack = nil
	w.state.Widespread = false
	w.looks(t, 10)
	w.state.Widespread = true
	w.looks(t, 10)
	if n := strings.Count(w.log.String(), "fails at run time"); n != 2 {
		t.Errorf("%d alarms, want 2", n)
	}
	w.looks(t, 120)
	if n := strings.Count(w.log.String(), "fails at run time"); n != 4 {
		t.Errorf("%d alarms, want 4", n)
	}
	if w.stays == "" {
		t.Error("nobody is told why it stays")
	}
}
