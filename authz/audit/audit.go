// Package audit finds keys that may do more than they need, or are used as they should not be:
// evidence comes in, policy judges it, findings go out, to be read by people and by programs.
package audit

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxClasses bounds the judgements in memory; then they are asked for anew.
	maxClasses = 1 << 16
	// maxTexts bounds the different texts that they have.
	maxTexts = 1 << 12
)

// Auditor judges evidence by the policy in force. Safe for concurrent use.
type Auditor struct{ policies authz.FindingsPolicies }

// New returns an Auditor that asks for the policy in force at the beginning of every audit.
func New(policies authz.FindingsPolicies) *Auditor { return &Auditor{policies} }

// Kinds are the kinds of findings of the policy in force, sorted.
func (a *Auditor) Kinds() ([]authz.FindingCode, error) {
	policy, err := a.policies.Findings()
	if err != nil {
		return nil, err //nolint:wrapcheck // it is said as it should be
	}
	return policy.Kinds(), nil
}

// Audit judges all evidence of a stream by one policy, whatever is in force meanwhile, and hands
// out what is found of each key, those without findings too, until each fails. Memory does not
// grow with the number of keys. What each is given is its own.
//
// Policy is asked once for each class of evidence: facts that are the same when they are rounded
// down to the policy's steps. An error of KindConflict tells that the policy judges nothing.
func (a *Auditor) Audit(ctx context.Context, evidence authz.EvidenceStream, each func(*authz.KeyFindings) error) (authz.AuditSummary, error) {
	policy, err := a.policies.Findings()
	if err != nil {
		return authz.AuditSummary{}, err //nolint:wrapcheck // it is said as it should be
	}
	started := time.Now()
	j := newJudge(policy)
	s := authz.AuditSummary{
		Policy: policy.Revision(), ByCode: map[authz.FindingCode]int64{}, BySeverity: map[authz.Severity]int64{},
	}
	err = evidence(ctx, func(e *authz.Evidence) error {
		k, err := j.judge(ctx, e)
		if err != nil {
			return fmt.Errorf("judge key %s: %w", e.Key, err)
		}
		count(&s, k)
		return each(k)
	})
	s.Classes, s.Seconds = j.asked, time.Since(started).Seconds()
	return s, err
}

func count(s *authz.AuditSummary, k *authz.KeyFindings) {
	s.Keys++
	s.Window = k.Evidence.Window
	if len(k.Findings) > 0 {
		s.Flagged++
	}
	if len(k.Undecided) > 0 {
		s.Undecided++
	}
	s.Findings += int64(len(k.Findings))
	for i := range k.Findings {
		s.ByCode[k.Findings[i].Code]++
		s.BySeverity[k.Findings[i].Severity]++
	}
}

// judge is of one audit, for one goroutine.
type judge struct {
	policy  authz.FindingsPolicy
	known   map[string]authz.Ruling
	texts   map[string]string
	asked   int64
	class   []byte
	rounded authz.Facts
	scopes  []authz.ScopeFacts
}

func newJudge(policy authz.FindingsPolicy) *judge {
	return &judge{policy: policy, known: map[string]authz.Ruling{}, texts: map[string]string{}}
}

// judge is what policy says of a key, with exact figures.
func (j *judge) judge(ctx context.Context, e *authz.Evidence) (*authz.KeyFindings, error) {
	facts := e.Facts()
	ruling, err := j.ruling(ctx, &facts)
	if err != nil {
		return nil, err
	}
	k := &authz.KeyFindings{
		Evidence: *e, Findings: make([]authz.Finding, len(ruling.Findings)), Undecided: slices.Clone(ruling.Undecided), Coverage: coverage(e),
	}
	k.Evidence.Scopes = slices.Clone(e.Scopes)
	if k.Undecided == nil {
		k.Undecided = []authz.FindingCode{}
	}
	for i, f := range ruling.Findings {
		f.Scopes, f.RemoveScopes = slices.Clone(f.Scopes), slices.Clone(f.RemoveScopes)
		if err := e.FillFinding(&facts, &f); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Code, err)
		}
		k.Findings[i] = f
	}
	slices.SortStableFunc(k.Findings, func(a, b authz.Finding) int {
		if by := b.Severity.Rank() - a.Severity.Rank(); by != 0 {
			return by
		}
		return strings.Compare(string(a.Code), string(b.Code))
	})
	k.ProposedScopes = proposed(k)
	return k, nil
}

// ruling is what policy says of the class of facts.
func (j *judge) ruling(ctx context.Context, exact *authz.Facts) (authz.Ruling, error) {
	j.scopes = append(j.scopes[:0], exact.Scopes...)
	j.rounded = *exact
	j.rounded.Scopes = j.scopes
	j.rounded.Round(j.policy.Steps())
	j.class = appendClass(j.class[:0], &j.rounded)
	if known, ok := j.known[string(j.class)]; ok {
		return known, nil
	}
	ruling, err := j.policy.Judge(ctx, &j.rounded)
	if err != nil {
		return authz.Ruling{}, err //nolint:wrapcheck // judge's caller does
	}
	for i := range ruling.Findings {
		f := &ruling.Findings[i]
		f.Message, f.Recommendation = j.text(f.Message), j.text(f.Recommendation)
		if f.Scopes == nil {
			f.Scopes = []authz.Scope{}
		}
		if f.RemoveScopes == nil {
			f.RemoveScopes = []authz.Scope{}
		}
	}
	j.asked++
	if len(j.known) >= maxClasses {
		clear(j.known)
	}
	j.known[string(j.class)] = ruling
	return ruling, nil
}

// text is the same text, kept once.
func (j *judge) text(s string) string {
	if known, ok := j.texts[s]; ok {
		return known
	}
	if len(j.texts) >= maxTexts {
		clear(j.texts)
	}
	j.texts[s] = s
	return s
}

// appendClass writes facts down so that different ones are different.
func appendClass(b []byte, f *authz.Facts) []byte {
	b = appendWord(b, string(f.Environment))
	b = appendWord(b, string(f.State))
	b = appendFlag(b, f.Expires)
	b = appendFlag(b, f.Rotated)
	for _, n := range f.Figures {
		b = appendNumber(b, n)
	}
	for i := range f.Scopes {
		s := &f.Scopes[i]
		b = appendWord(b, string(s.Scope))
		b = appendFlag(b, s.Granted)
		for _, n := range s.Figures {
			b = appendNumber(b, n)
		}
	}
	return b
}

func appendWord(b []byte, s string) []byte { return append(appendNumber(b, int64(len(s))), s...) }

func appendFlag(b []byte, yes bool) []byte {
	if yes {
		return append(b, 1)
	}
	return append(b, 0)
}

// appendNumber is a varint, of which none is the beginning of another.
func appendNumber(b []byte, n int64) []byte { return binary.AppendVarint(b, n) }

// proposed are the granted scopes without those that findings would remove.
func proposed(k *authz.KeyFindings) []authz.Scope {
	left := []authz.Scope{}
	for i := range k.Evidence.Scopes {
		s := &k.Evidence.Scopes[i]
		removed := slices.ContainsFunc(k.Findings, func(f authz.Finding) bool { return slices.Contains(f.RemoveScopes, s.Scope) })
		if s.Granted && !removed {
			left = append(left, s.Scope)
		}
	}
	return left
}

// coverage says in a sentence how much the evidence covers.
func coverage(e *authz.Evidence) string {
	since, n := e.CoveredSince(), e.CoveredDays()
	days := "days"
	if n == 1 {
		days = "day"
	}
	covers := fmt.Sprintf("Covers %d %s", n, days)
	switch {
	case e.Window.RecordedSince.IsZero():
		return covers + ": nothing was counted."
	case since.Equal(e.Window.Since):
		return fmt.Sprintf("%s, from %s to %s; nothing older was asked.", covers, since.UTC().Format(time.DateOnly), e.Window.Until.UTC().Format(time.DateOnly))
	case since.Equal(e.CreatedAt):
		return fmt.Sprintf("%s: the key was made on %s.", covers, since.UTC().Format(time.DateOnly))
	case since.Equal(e.ScopesSince):
		return fmt.Sprintf("%s: the key was given a scope on %s.", covers, since.UTC().Format(time.DateOnly))
	case since.Equal(e.UsableSince):
		return fmt.Sprintf("%s: the key could not be used before %s.", covers, since.UTC().Format(time.DateOnly))
	}
	return fmt.Sprintf("%s: counts are kept since %s; nothing older is known.", covers, since.UTC().Format(time.DateOnly))
}
