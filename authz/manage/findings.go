package manage

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz"
)

// The actions on findings.
const (
	actionFindingsList  = "findings.list"
	actionFindingsApply = "findings.apply"
	actionFindingsUndo  = "findings.undo"
)

const (
	// DefaultAuditWindow is how much of what was recorded an audit looks at unless told
	// otherwise, and maxAuditWindow bounds it.
	DefaultAuditWindow = 90 * 24 * time.Hour
	maxAuditWindow     = 400 * 24 * time.Hour
	// maxAuditTime bounds one audit: whoever reads it slowly keeps a snapshot of the database.
	maxAuditTime = 10 * time.Minute
)

// Auditor judges evidence by the policy in force. It is implemented by authz/audit.
type Auditor interface {
	// Audit judges all evidence of a stream by one policy, and hands out what is found of each
	// key, those without findings too; what each is given is its own. Called concurrently.
	Audit(ctx context.Context, evidence authz.EvidenceStream, each func(*authz.KeyFindings) error) (authz.AuditSummary, error)
	// Kinds are the kinds of findings of the policy in force, sorted.
	Kinds() ([]authz.FindingCode, error)
}

// FindingsInput is what to audit, and which findings are wanted.
type FindingsInput struct {
	// Organization is zero for all, Key for all of them.
	Organization authz.OrganizationID
	Key          authz.KeyID
	// Since is DefaultAuditWindow ago when it is zero.
	Since time.Time
	// Code is "" for all, Severity for all; else findings that are at least so grave.
	Code     authz.FindingCode
	Severity authz.Severity
}

// MayListFindings refuses whoever may not audit an organization, zero being all of them.
func (s *Service) MayListFindings(ctx context.Context, r Request, org authz.OrganizationID) error {
	return s.read(ctx, func(ctx context.Context, re Reader) error {
		return s.auditable(ctx, re, r, org)
	})
}

// auditable tells whether an organization may be audited; zero is all of them, which is the
// platform's.
func (s *Service) auditable(ctx context.Context, re Reader, r Request, org authz.OrganizationID) error {
	if org.IsZero() {
		return s.may(ctx, r, operation{action: actionFindingsList}, nil, nil)
	}
	o, err := organization(ctx, re, r, org)
	if err != nil {
		return err
	}
	return s.may(ctx, r, operation{actionFindingsList, readers()}, o, nil)
}

// Findings audits keys, and hands out what is found of each, as it comes. Where findings are
// picked, keys without such are left out, of the summary's figures, too. told hears how many of
// how many keys were judged; it may be nil.
func (s *Service) Findings(
	ctx context.Context, r Request, in FindingsInput, told func(judged, of int64), each func(*authz.KeyFindings) error,
) (*authz.AuditSummary, error) {
	if s.auditor == nil {
		return nil, errNoAuditor()
	}
	if told == nil {
		told = func(int64, int64) {}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxAuditTime, errAuditTime)
	defer cancel()
	out := newWantedFindings(in)
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		f, err := s.evidenceFilter(ctx, re, r, in)
		if err != nil {
			return err
		}
		of, err := re.EvidenceKeys(ctx, TenantOf(r.Actor), f)
		if err != nil {
			return err //nolint:wrapcheck // read does
		}
		told(0, of)
		judged := int64(0)
		out.AuditSummary, err = s.audit(ctx, re, r, f, func(k *authz.KeyFindings) error {
			judged++
			told(judged, of)
			if !out.pick(k) {
				return nil
			}
			return each(k)
		})
		return err
	})
	if errors.Is(context.Cause(ctx), errAuditTime) {
		return nil, authz.Unavailable("the audit took longer than 10 minutes; ask about one organization, or about less time", err)
	}
	if err != nil {
		return nil, err
	}
	return out.summary(), nil
}

// wantedFindings picks findings, and counts them anew.
type wantedFindings struct {
	authz.AuditSummary

	in     FindingsInput
	picked authz.AuditSummary
}

func newWantedFindings(in FindingsInput) *wantedFindings {
	return &wantedFindings{in: in, picked: authz.AuditSummary{ByCode: map[authz.FindingCode]int64{}, BySeverity: map[authz.Severity]int64{}}}
}

// all tells that nothing is picked.
func (w *wantedFindings) all() bool { return w.in.Code == "" && w.in.Severity == "" }

// pick leaves a key only the findings that are wanted, and tells whether to hand it out.
func (w *wantedFindings) pick(k *authz.KeyFindings) bool {
	if w.all() {
		return true
	}
	k.Findings = slices.DeleteFunc(k.Findings, func(f authz.Finding) bool {
		return w.in.Code != "" && f.Code != w.in.Code || f.Severity.Rank() < w.in.Severity.Rank()
	})
	if len(k.Findings) == 0 {
		return false
	}
	w.picked.Flagged++
	w.picked.Findings += int64(len(k.Findings))
	for _, f := range k.Findings {
		w.picked.ByCode[f.Code]++
		w.picked.BySeverity[f.Severity]++
	}
	return true
}

func (w *wantedFindings) summary() *authz.AuditSummary {
	s := w.AuditSummary
	if !w.all() {
		s.Flagged, s.Findings, s.ByCode, s.BySeverity = w.picked.Flagged, w.picked.Findings, w.picked.ByCode, w.picked.BySeverity
	}
	return &s
}

var errAuditTime = errors.New("an audit may not take longer")

// evidenceFilter is what is to be audited, for an actor who may.
func (s *Service) evidenceFilter(ctx context.Context, re Reader, r Request, in FindingsInput) (EvidenceFilter, error) {
	f := EvidenceFilter{Organization: in.Organization, Key: in.Key}
	if err := s.auditable(ctx, re, r, in.Organization); err != nil {
		return f, err
	}
	if !in.Key.IsZero() {
		k, _, err := s.key(ctx, re, r, in.Organization, in.Key)
		if err != nil {
			return f, err
		}
		f.Organization = k.OrganizationID
	}
	if in.Severity != "" && !in.Severity.Valid() {
		return f, outOfRange("", "query parameter severity must be low, medium or high")
	}
	if err := s.checkKind(in.Code); err != nil {
		return f, err
	}
	var err error
	f.Since, f.Until, err = auditWindow(re.Now(), in.Since)
	return f, err
}

// checkKind takes a kind of findings that the policy in force knows, and "" for all: of a word
// that is misspelled nothing is ever found.
func (s *Service) checkKind(code authz.FindingCode) error {
	if code == "" {
		return nil
	}
	kinds, err := s.auditor.Kinds()
	if err != nil || slices.Contains(kinds, code) {
		return err //nolint:wrapcheck // it says what the policy lacks
	}
	words := make([]string, len(kinds))
	for i, kind := range kinds {
		words[i] = string(kind)
	}
	return outOfRange("", "query parameter code must be a kind of finding of the policy in force: "+strings.Join(words, ", ")+
		"; kinds are listed under severities in keystile/findings/data.yaml")
}

// auditWindow is the time that is looked at, up to now.
func auditWindow(now, since time.Time) (from, until time.Time, err error) {
	if since.IsZero() {
		since = now.Add(-DefaultAuditWindow)
	}
	since = since.UTC()
	switch {
	case !since.Before(now):
		return since, now, outOfRange("/since", "must be in the past")
	case now.Sub(since) > maxAuditWindow:
		return since, now, outOfRange("/since", "must be at most 400 days ago")
	}
	return since, now, nil
}

// audit judges the evidence of a snapshot.
func (s *Service) audit(
	ctx context.Context, re Reader, r Request, f EvidenceFilter, found func(*authz.KeyFindings) error,
) (authz.AuditSummary, error) {
	return s.auditor.Audit(ctx, func(ctx context.Context, each func(*authz.Evidence) error) error { //nolint:wrapcheck // read does
		return re.Evidence(ctx, TenantOf(r.Actor), f, each) //nolint:wrapcheck // read does
	}, found)
}

func errNoAuditor() error {
	return conflict("audit_unavailable", "keys cannot be audited here")
}
