package manage

import (
	"errors"
	"testing"

	"github.com/supportstation/keystile/authz"
)

// history is newest first: "a" is activated, "<a" rolled back to, "a!" a security fix, "-" the built-in one.
func history(words ...string) []authz.PolicyActivation {
	var all []authz.PolicyActivation
	for i := len(words) - 1; i >= 0; i-- {
		w := words[i]
		a := authz.PolicyActivation{Change: int64(i + 1)}
		if w[0] == '<' {
			a.RolledBack, w = true, w[1:]
		}
		if w[len(w)-1] == '!' {
			a.SecurityFix, w = true, w[:len(w)-1]
		}
		if w != "-" {
			a.Revision = w
		}
		all = append(all, a)
	}
	return all
}

func TestStepBack_GoesFurtherBackEachTimeAndNeverPastASecurityFix(t *testing.T) {
	for name, c := range map[string]struct {
		history []authz.PolicyActivation
		in      PolicyRollback
		want    string
		refused string
	}{
		"nothing was activated":         {history(), PolicyRollback{}, "", "nothing_to_roll_back"},
		"to the built-in one":           {history("a"), PolicyRollback{}, "", ""},
		"to the one before":             {history("a", "b"), PolicyRollback{}, "a", ""},
		"again, and further":            {history("a", "b", "c", "<b"), PolicyRollback{}, "a", ""},
		"again, to the built-in one":    {history("a", "b", "<a"), PolicyRollback{}, "", ""},
		"all the way, and no further":   {history("a", "<-"), PolicyRollback{}, "", "nothing_to_roll_back"},
		"after a new one":               {history("a", "b", "<a", "c"), PolicyRollback{}, "a", ""},
		"the same content twice":        {history("a", "b", "a"), PolicyRollback{}, "b", ""},
		"to one by its revision":        {history("a", "b", "c"), PolicyRollback{Revision: "a"}, "a", ""},
		"to the built-in by revision":   {history("a", "b"), PolicyRollback{Revision: "built"}, "", ""},
		"to one that never was":         {history("a", "b"), PolicyRollback{Revision: "x"}, "", "not_found"},
		"to the one that is in force":   {history("a", "b"), PolicyRollback{Revision: "b"}, "", "not_found"},
		"past a security fix":           {history("a", "b!"), PolicyRollback{}, "", "past_security_fix"},
		"past one further down":         {history("a", "b!", "c"), PolicyRollback{Revision: "a"}, "", "past_security_fix"},
		"past one that came again":      {history("a", "b!", "<a", "b"), PolicyRollback{}, "", "past_security_fix"},
		"to a security fix":             {history("a", "b!", "c"), PolicyRollback{}, "b", ""},
		"past a security fix, and told": {history("a", "b!"), PolicyRollback{PastSecurityFix: true}, "a", ""},
	} {
		got, err := stepBack(c.history, "built", c.in)
		var known *authz.Error
		code := ""
		if errors.As(err, &known) {
			code = known.Code
		}
		if got != c.want || code != c.refused {
			t.Errorf("%s: %q, %q; wanted %q, %q", name, got, code, c.want, c.refused)
		}
	}
}

func TestActivatePolicy_WhatASecurityFixReplacedComesBackByNoOtherDoor(t *testing.T) {
	for name, c := range map[string]struct {
		history  []authz.PolicyActivation
		revision string
		want     bool
	}{
		"the one before the fix":            {history("a", "b!"), "a", true},
		"one before the one before":         {history("a", "b!", "c"), "a", true},
		"the fix that came again":           {history("a", "b!", "<a", "b"), "a", true},
		"the built-in one, at first":        {history("b!"), "built", true},
		"the built-in one, gone back to":    {history("b!", "<-", "c"), "built", false},
		"the fix itself":                    {history("a", "b!", "c"), "b", false},
		"what is in force":                  {history("a", "b!"), "b", false},
		"what never was in force":           {history("a", "b!"), "c", false},
		"one that came after the fix":       {history("a", "b!", "c", "d"), "c", false},
		"the one before, when nobody fixed": {history("a", "b"), "a", false},
		"the built-in one, without a fix":   {history("a"), "built", false},
	} {
		if got := takesBackFix(c.history, c.revision, "built"); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
