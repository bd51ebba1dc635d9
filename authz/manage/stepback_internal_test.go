package manage

import (
	"errors"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

func TestAutomaticStep_OnlyUndoesWhatWasJustDoneAndNoSecurityFix(t *testing.T) {
	for name, c := range map[string]struct {
		history []authz.PolicyActivation
		want    string
		refused string
	}{
		"to the one before":                              {history("a", "b"), "a", ""},
		"to the built-in one":                            {history("a"), "", ""},
		"nothing was activated":                          {history(), "", "policy_changed"},
		"a security fix":                                 {history("a", "b!"), "", "past_security_fix"},
		"the first one is a security fix":                {history("a!"), "", "past_security_fix"},
		"back to a security fix":                         {history("a", "b!", "c"), "b", ""},
		"back to one after a security fix":               {history("a!", "b", "c"), "b", ""},
		"one that once was a security fix":               {history("a!", "b", "a"), "", "past_security_fix"},
		"to one that a fix replaced, and somebody undid": {history("a", "b!", "<a", "c"), "", "past_security_fix"},
		"to the built-in one that a fix replaced":        {history("a!", "<-", "b"), "", "past_security_fix"},
		"the built-in one by its name":                   {history("a!", "built", "b"), "", "past_security_fix"},
		"to a fix that another one replaced":             {history("a!", "b!", "<a", "c"), "", "past_security_fix"},
		"to a fix that was activated twice":              {history("a!", "a!", "b"), "a", ""},
		"what was rolled back to":                        {history("a", "b", "<a"), "", "no_step_back"},
		"what was stepped back to":                       {history("a", "b", "c", "<b"), "", "no_step_back"},
		"recovered on the database":                      {history("a", "<-"), "", "no_step_back"},
		"the same content twice":                         {history("a", "a"), "", "no_step_back"},
		"the built-in one's content":                     {history("built"), "", "no_step_back"},
		"after it was rolled back to another":            {history("a", "b", "<a", "c"), "a", ""},
	} {
		change, now := int64(0), time.Unix(1_795_000_000, 0)
		if len(c.history) > 0 {
			change = c.history[0].Change
			c.history[0].At = now.Add(-StepBackWithin)
		}
		check := func(name string, change int64, now time.Time, want, refused string) {
			t.Helper()
			got, err := automaticStep(c.history, "built", change, now)
			var known *authz.Error
			code := ""
			if errors.As(err, &known) {
				code = known.Code
			}
			if got != want || code != refused || (err != nil && known == nil) {
				t.Errorf("%s: %q, %q (%v); wanted %q, %q", name, got, code, err, want, refused)
			}
		}
		check(name, change, now, c.want, c.refused)
		if c.refused == "" {
			check(name+", but too late", change, now.Add(time.Microsecond), "", "no_step_back")
			check(name+", but another one came", change-1, now, "", "policy_changed")
		}
	}
	long := make([]authz.PolicyActivation, maxActivations)
	long[0] = authz.PolicyActivation{Change: maxActivations, Revision: "b", At: time.Now()}
	if _, err := automaticStep(long, "built", maxActivations, time.Now()); err == nil {
		t.Error("stepped back without knowing the whole history")
	}
}
