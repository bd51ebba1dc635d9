package store

import (
	"testing"

	"github.com/supportstation/keystile/authz"
)

// A database that was put back knows an older activation: a fix that was in force stays so.
func TestPolicies_AnOlderActivationReplacesNoNewerOne(t *testing.T) {
	s := &Store{policyChanged: make(chan struct{}, 1)}
	of := func(change int64, revision string) *Policy {
		return &Policy{Activation: &authz.PolicyActivation{Change: change, Revision: revision}}
	}
	told := func() bool {
		select {
		case <-s.policyChanged:
			return true
		default:
			return false
		}
	}
	s.learnPolicy(&Policy{})
	if s.Policy() == nil || !told() {
		t.Fatal("that there is none is not known")
	}
	s.learnPolicy(of(7, "new"))
	if s.Policy().change() != 7 || !told() {
		t.Fatal("an activation is not known")
	}
	for _, older := range []*Policy{of(3, "old"), {}} {
		s.learnPolicy(older)
		if s.Policy().Activation == nil || s.Policy().Activation.Revision != "new" || told() {
			t.Errorf("an older one is in force: %+v", s.Policy().Activation)
		}
	}
	s.learnPolicy(of(9, "newer"))
	if s.Policy().Activation.Revision != "newer" || !told() {
		t.Error("a newer one is not in force")
	}
}
