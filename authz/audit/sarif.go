package audit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxSARIF bounds the results of a file: more than that, those who read them refuse.
	maxSARIF = 25_000
	// informationURI tells people what made the file.
	informationURI = "https://github.com/supportstation/keystile"
)

// sarifRenderer collects results, and writes one run with them.
type sarifRenderer struct {
	w       io.Writer
	results gravest[*sarif.Result]
	rules   map[authz.FindingCode]bool
}

func newSARIFRenderer(w io.Writer) *sarifRenderer {
	return &sarifRenderer{w: w, results: gravest[*sarif.Result]{most: maxSARIF}, rules: map[authz.FindingCode]bool{}}
}

// Key implements Renderer.
func (r *sarifRenderer) Key(k *authz.KeyFindings) error {
	for i := range k.Findings {
		r.results.add(k.Findings[i].Severity, sarifResult(k, &k.Findings[i]))
	}
	return nil
}

func sarifResult(k *authz.KeyFindings, f *authz.Finding) *sarif.Result {
	e := &k.Evidence
	where := sarif.NewLogicalLocation().WithKind("resource").WithName(e.KeyName).
		WithFullyQualifiedName("organizations/" + e.Organization.String() + "/keys/" + e.Key.String())
	bag := sarif.NewPropertyBag().
		Add("severity", f.Severity).Add("confidence", f.Confidence).Add("recommendation", f.Recommendation).Add("remedy", f.Remedy).
		Add("scopes", f.Scopes).Add("remove_scopes", f.RemoveScopes).Add("proposed_scopes", k.ProposedScopes).
		Add("coverage", k.Coverage).Add("evidence", e)
	return sarif.NewResult().WithRuleID(string(f.Code)).WithKind("fail").WithLevel(levelOf(f.Severity)).
		WithMessage(sarif.NewTextMessage(f.Message + " " + f.Recommendation)).
		AddLocation(sarif.NewLocation().AddLogicalLocation(where)).
		// The same finding of the next audit, whatever its figures are by then.
		WithPartialFingerprints(map[string]string{"keystile/v1": e.Key.String() + "/" + string(f.Code) + "/" + spaced(f.Scopes)}).
		WithProperties(bag)
}

func levelOf(s authz.Severity) string {
	switch s {
	case authz.SeverityHigh:
		return "error"
	case authz.SeverityMedium:
		return "warning"
	}
	return "note"
}

// End implements Renderer.
func (r *sarifRenderer) End(s *authz.AuditSummary) error {
	report := sarifReport(r.results.all(), r.results.dropped, s)
	w := bufio.NewWriter(r.w)
	encoder := json.NewEncoder(w)
	if err := encoder.Encode(report); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	return flush(w)
}

func sarifReport(results []*sarif.Result, dropped int64, s *authz.AuditSummary) *sarif.Report {
	run := sarif.NewRunWithInformationURI("Keystile", informationURI)
	indexes := map[string]int{}
	for _, result := range results {
		code := *result.RuleID
		at, known := indexes[code]
		if !known {
			at = len(indexes)
			indexes[code] = at
			title := titleOf(authz.FindingCode(code))
			run.AddRule(code).WithName(code).WithShortDescription(sarif.NewMultiformatMessageString().WithText(title))
		}
		run.AddResult(result.WithRuleIndex(at))
	}
	if len(results) == 0 {
		run.WithResults([]*sarif.Result{})
	}
	bag := sarif.NewPropertyBag().Add("summary", s)
	if dropped > 0 {
		bag.Add("results_left_out", dropped)
	}
	run.WithProperties(bag)
	report := sarif.NewReport()
	report.AddRun(run)
	return report
}

// titleOf is what a kind is called in a report.
func titleOf(code authz.FindingCode) string {
	switch code {
	case authz.FindingUnusedScope:
		return "Unused scope"
	case authz.FindingRarelyUsedScope:
		return "Rarely used scope"
	case authz.FindingUnusedKey:
		return "Unused key"
	case authz.FindingWriteNeverUsed:
		return "Write never used"
	case authz.FindingNeverRotated:
		return "Not rotated"
	case authz.FindingNoExpiry:
		return "No expiry"
	case authz.FindingExpiredButCalled:
		return "Expired but called"
	case authz.FindingRevokedButCalled:
		return "Revoked but called"
	case authz.FindingTestKeyInLiveApp:
		return "Test key in a live app"
	case authz.FindingLiveKeyInBrowser:
		return "Live key in a browser"
	case authz.FindingSharedKey:
		return "Shared key"
	case authz.FindingOverLimitHabit:
		return "Over the limit by habit"
	}
	return string(code)
}
