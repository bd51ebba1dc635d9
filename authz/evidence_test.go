package authz_test

import (
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

func TestEvidence_CoversWhatWasAskedCountedAndThere(t *testing.T) {
	until := time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)
	ago := func(days int) time.Time { return until.AddDate(0, 0, -days) }
	for name, tt := range map[string]struct {
		since, recorded, created, usable time.Time
		want                             int
	}{
		"all of it":             {ago(92), ago(200), ago(300), time.Time{}, 92},
		"since counting began":  {ago(92), ago(20), ago(300), ago(40), 20},
		"since there is a key":  {ago(92), ago(200), ago(10), time.Time{}, 10},
		"whole days alone":      {ago(92), ago(200), ago(10).Add(time.Second), time.Time{}, 9},
		"nothing was counted":   {ago(92), time.Time{}, ago(300), time.Time{}, 0},
		"counting begins later": {ago(92), ago(-5), ago(300), time.Time{}, 0},
		"a key of later":        {ago(92), ago(200), ago(-1), time.Time{}, 0},
		"since it can be used":  {ago(92), ago(200), ago(300), ago(7), 7},
	} {
		e := authz.Evidence{CreatedAt: tt.created, UsableSince: tt.usable, Window: authz.Window{Since: tt.since, Until: until, RecordedSince: tt.recorded}}
		if got := e.CoveredDays(); got != tt.want {
			t.Errorf("%s: %d days, not %d", name, got, tt.want)
		}
	}
}

func TestFacts_RoundDownToTheirSteps(t *testing.T) {
	var steps authz.EvidenceSteps
	steps.Key[authz.FigureNetworks] = []int64{1, 20, 50}
	steps.Scope[authz.ScopeDaysUsed] = []int64{3}
	for n, want := range map[int64]int64{0: 0, 1: 1, 19: 1, 20: 20, 49: 20, 50: 50, 1 << 40: 50} {
		f := authz.Facts{Scopes: make([]authz.ScopeFacts, 1)}
		f.Figures[authz.FigureNetworks], f.Figures[authz.FigureDaysUsed], f.Scopes[0].Figures[authz.ScopeDaysUsed] = n, n, n
		f.Round(&steps)
		if f.Figures[authz.FigureNetworks] != want || f.Figures[authz.FigureDaysUsed] != 0 || f.Scopes[0].Figures[authz.ScopeDaysUsed] != 3*min(n/3, 1) {
			t.Errorf("%d comes to %v, %v", n, f.Figures, f.Scopes)
		}
	}
}

func TestFinding_TextsHaveExactFigures(t *testing.T) {
	at := time.Date(2026, 9, 30, 23, 0, 0, 0, time.UTC)
	e := authz.Evidence{
		Environment: "live", Networks: 1_234_567, DaysUsed: 1, LastUsedAt: at, Limited: authz.Counted{Requests: 5}, Allowed: authz.Counted{Requests: 95},
		Scopes: []authz.ScopeEvidence{{Scope: "a:read", DaysUsed: 2, LastUsedAt: at}, {Scope: "b:read"}},
	}
	facts := e.Facts()
	for text, want := range map[string]string{
		"{days_used day}, {networks network}":   "1 day, 1,234,567 networks",
		"{networks}":                            "1,234,567",
		"{limited_percent}%":                    "5%",
		"{last_used_on}, {created_on}":          "2026-09-30, never",
		"{scope} {scope_days_used day}":         "a:read 2 days",
		"{scope_last_used_on} in {environment}": "2026-09-30 in live",
		"{scopes}: nothing to put in":           "a:read: nothing to put in",
		"{network network}":                     "!there is no placeholder {network}",
		"{last_used_on day}":                    "!no number",
		"{days_used":                            "!not closed",
		"{scope_nothing}":                       "!no placeholder",
		"{}":                                    "!no placeholder",
	} {
		f := authz.Finding{Scopes: []authz.Scope{"a:read"}, Message: text, Recommendation: text}
		err := e.FillFinding(&facts, &f)
		if wrong, is := strings.CutPrefix(want, "!"); is {
			if err == nil || !strings.Contains(err.Error(), wrong) || f.CheckText() == nil {
				t.Errorf("%q: %v", text, err)
			}
			continue
		}
		if err != nil || f.Message != want || f.Recommendation != want || (&authz.Finding{Scopes: f.Scopes, Message: text}).CheckText() != nil {
			t.Errorf("%q becomes %q: %v", text, f.Message, err)
		}
	}
	several := authz.Finding{Scopes: []authz.Scope{"a:read", "b:read", "c:read"}, Message: "{scopes}"}
	if err := e.FillFinding(&facts, &several); err != nil || several.Message != "a:read, b:read and c:read" {
		t.Errorf("%q: %v", several.Message, err)
	}
	for _, text := range []string{"{scope}", "{scope_days_used}"} {
		several.Message = text
		if several.CheckText() == nil {
			t.Errorf("%s is of one scope alone", text)
		}
	}
}

func TestFinding_WordsAreKnown(t *testing.T) {
	if authz.SeverityHigh.Rank() <= authz.SeverityMedium.Rank() || authz.SeverityMedium.Rank() <= authz.SeverityLow.Rank() || authz.Severity("").Valid() {
		t.Error("severities are not ordered")
	}
	if authz.Confidence("").Valid() || authz.FindingRemedy("").Valid() || !authz.ConfidenceLow.Valid() || !authz.RemedyReview.Valid() {
		t.Error("nothing is a word")
	}
	for f := range authz.Figures {
		if f.String() == "" {
			t.Errorf("figure %d has no name", int(f))
		}
	}
	for f := range authz.ScopeFigures {
		if f.String() == "" {
			t.Errorf("figure %d of scopes has no name", int(f))
		}
	}
}
