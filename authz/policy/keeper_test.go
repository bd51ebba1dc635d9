package policy

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
)

func newTestKeeper(t *testing.T, log *bytes.Buffer) (*Keeper, *Engine) {
	t.Helper()
	e := NewEngine(nil)
	return NewKeeper(KeeperOptions{
		Engine: e, Gate: newTestGate(t, 0), BuiltIn: candidate(t, nil), Origin: authz.OriginDirectory,
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}), e
}

func TestKeeper_ARefusedPolicyLeavesTheLastGoodOneAndSaysWhy(t *testing.T) {
	var log bytes.Buffer
	k, e := newTestKeeper(t, &log)
	good := candidate(t, map[string]string{ruleRego: ruleOf("input.stale"), ruleTest: testedRule})
	if err := k.Offer(t.Context(), Offer{Source: good, Origin: authz.OriginDirectory}); err != nil {
		t.Fatal(err)
	}
	if s := k.State(); s.Revision != good.revision || e.Revision() != good.revision || s.Since.IsZero() || s.Refused != nil || k.Active() != good {
		t.Fatalf("%+v, the engine has %s", s, e.Revision())
	}
	bad := candidate(t, map[string]string{ruleRego: ruleOf("input.reqest == 1")})
	for range 2 {
		err := k.Offer(t.Context(), Offer{Source: bad, Origin: authz.OriginDirectory})
		var refused *authz.PolicyRefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "keystile/rules/bad/bad.rego:7") {
			t.Fatalf("refused with %v", err)
		}
	}
	s := k.State()
	if s.Revision != good.revision || e.Revision() != good.revision || s.Refused == nil || s.Refused.Revision != bad.revision || s.Refused.Problems[0].Line != 7 {
		t.Errorf("%+v", s)
	}
	if n := strings.Count(log.String(), "a policy is refused"); n != 1 {
		t.Errorf("the same refusal is logged %d times:\n%s", n, log.String())
	}
	// A rule that is gone with its test is refused, and accepted when it is named.
	without := Offer{Source: candidate(t, nil), Origin: authz.OriginDirectory}
	if err := k.Offer(t.Context(), without); err == nil {
		t.Error("a rule went with its test")
	}
	without.AcceptRemoved = []string{"data.keystile.rules.bad_test.*"}
	if err := k.Offer(t.Context(), without); err != nil || k.State().Refused != nil || e.Revision() != without.Source.revision {
		t.Errorf("%v, %+v", err, k.State())
	}
}

func TestKeeper_OfferingWhatIsInForceForgetsARefusal(t *testing.T) {
	var log bytes.Buffer
	k, _ := newTestKeeper(t, &log)
	good := candidate(t, nil)
	offer := Offer{Source: good, Origin: authz.OriginDirectory, Proved: true}
	if err := k.Offer(t.Context(), offer); err != nil {
		t.Fatal(err)
	}
	since := k.State().Since
	if err := k.Refuse("", authz.OriginDirectory, errors.New("half written")); err == nil || k.State().Refused == nil {
		t.Fatal("it was not refused")
	}
	if err := k.Offer(t.Context(), offer); err != nil || k.State().Refused != nil || k.State().Since != since {
		t.Errorf("%v, %+v", err, k.State())
	}
}

// What has become another one while it was tried is neither in force nor refused.
func TestKeeper_WhatMovedMeanwhileIsNothing(t *testing.T) {
	var log bytes.Buffer
	k, e := newTestKeeper(t, &log)
	for what, source := range map[string]*Source{
		"good": candidate(t, nil), "bad": candidate(t, map[string]string{ruleRego: ruleOf("input.reqest == 1")}),
	} {
		err := k.Offer(t.Context(), Offer{Source: source, Origin: authz.OriginDirectory, Still: func() bool { return false }})
		if !errors.Is(err, ErrMoved) || e.Revision() != "" || k.State().Refused != nil {
			t.Errorf("%s: %v, the engine has %q, refused %+v", what, err, e.Revision(), k.State().Refused)
		}
	}
}

// What was proved when it was activated is loaded all the same: what cannot be is refused.
func TestKeeper_AProvedPolicyMustStillLoad(t *testing.T) {
	var log bytes.Buffer
	k, e := newTestKeeper(t, &log)
	bad := candidate(t, map[string]string{ruleRego: ruleOf("input.reqest == 1")})
	if err := k.Offer(t.Context(), Offer{Source: bad, Origin: authz.OriginDatabase, Proved: true}); err == nil || e.Revision() != "" {
		t.Errorf("%v, the engine has %s", err, e.Revision())
	}
}

func TestKeeper_StateTellsHowTheBundleServerIs(t *testing.T) {
	var log bytes.Buffer
	k, _ := newTestKeeper(t, &log)
	if k.State().Bundle != nil {
		t.Error("there is no bundle server")
	}
	k.bundle = func() authz.PolicyBundle { return authz.PolicyBundle{Version: 7} }
	if err := k.Offer(t.Context(), Offer{Source: candidate(t, nil), Origin: authz.OriginDirectory, Proved: true}); err != nil {
		t.Fatal(err)
	}
	_ = k.Refuse("", authz.OriginDirectory, errors.New("half written"))
	if s := k.State(); s.Bundle == nil || s.Bundle.Version != 7 || s.Refused == nil {
		t.Errorf("%+v", s)
	}
}
