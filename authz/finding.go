package authz

import "context"

// FindingCode is the stable name of a kind of finding. A policy can make kinds of its own.
type FindingCode string

// The kinds that the built-in policy finds.
const (
	FindingUnusedScope      FindingCode = "unused_scope"
	FindingRarelyUsedScope  FindingCode = "rarely_used_scope"
	FindingUnusedKey        FindingCode = "unused_key"
	FindingWriteNeverUsed   FindingCode = "write_never_used"
	FindingNeverRotated     FindingCode = "never_rotated"
	FindingNoExpiry         FindingCode = "no_expiry"
	FindingExpiredButCalled FindingCode = "expired_but_called"
	FindingRevokedButCalled FindingCode = "revoked_but_called"
	FindingTestKeyInLiveApp FindingCode = "test_key_in_live_app"
	FindingLiveKeyInBrowser FindingCode = "live_key_in_browser"
	FindingSharedKey        FindingCode = "shared_key"
	FindingOverLimitHabit   FindingCode = "over_limit_habit"
)

// Severity is how much a finding matters. The zero value is none.
type Severity string

// The severities.
const (
	SeverityLow    Severity = "low"
	SeverityMedium Severity = "medium"
	SeverityHigh   Severity = "high"
)

// Rank orders severities, the gravest last; it is 0 for what is none.
func (s Severity) Rank() int {
	switch s {
	case SeverityLow:
		return 1
	case SeverityMedium:
		return 2
	case SeverityHigh:
		return 3
	}
	return 0
}

// Valid tells whether it is one of the severities.
func (s Severity) Valid() bool { return s.Rank() > 0 }

// Confidence is how much the evidence carries. The zero value is none.
type Confidence string

// The confidences. What the evidence does not carry is no finding: see KeyFindings.Undecided.
const (
	ConfidenceLow    Confidence = "low"
	ConfidenceMedium Confidence = "medium"
	ConfidenceHigh   Confidence = "high"
)

// Valid tells whether it is one of the confidences.
func (c Confidence) Valid() bool {
	return c == ConfidenceLow || c == ConfidenceMedium || c == ConfidenceHigh
}

// FindingRemedy is what would mend what was found.
type FindingRemedy string

// The remedies.
const (
	// RemedyNarrow takes Finding.RemoveScopes from the key.
	RemedyNarrow FindingRemedy = "narrow_scopes"
	RemedyRevoke FindingRemedy = "revoke_key"
	RemedyRotate FindingRemedy = "rotate_key"
	// RemedyExpiry gives the key an end.
	RemedyExpiry FindingRemedy = "set_expiry"
	// RemedyClient is a change where the key is used, and none of the key.
	RemedyClient FindingRemedy = "change_client"
	// RemedySplit gives each client a key of its own.
	RemedySplit FindingRemedy = "split_key"
	// RemedyReview is for somebody to look at.
	RemedyReview FindingRemedy = "review"
)

// Valid tells whether it is one of the remedies.
func (r FindingRemedy) Valid() bool {
	switch r {
	case RemedyNarrow, RemedyRevoke, RemedyRotate, RemedyExpiry, RemedyClient, RemedySplit, RemedyReview:
		return true
	}
	return false
}

// Finding is one thing that is wrong with a key, as policy sees it.
type Finding struct {
	Code       FindingCode `json:"code"`
	Severity   Severity    `json:"severity"`
	Confidence Confidence  `json:"confidence"`
	// Scopes are what the finding is about; empty when it is about the key.
	Scopes []Scope `json:"scopes"`
	// Message says what was seen, with figures; Recommendation what to do.
	Message        string        `json:"message"`
	Recommendation string        `json:"recommendation"`
	Remedy         FindingRemedy `json:"remedy"`
	// RemoveScopes are those of the key's that it would do without; for RemedyNarrow alone.
	RemoveScopes []Scope `json:"remove_scopes"`
}

// KeyFindings is what the audit says of one key.
type KeyFindings struct {
	Evidence Evidence `json:"evidence"`
	// Findings are the gravest first.
	Findings []Finding `json:"findings"`
	// Undecided are the kinds for which there is not enough evidence: neither found nor ruled out.
	Undecided []FindingCode `json:"not_enough_evidence"`
	// Coverage says in a sentence how much the evidence covers.
	Coverage string `json:"coverage"`
	// ProposedScopes are the granted ones without all that findings would remove, sorted. They
	// are all granted ones when nothing would be.
	ProposedScopes []Scope `json:"proposed_scopes"`
}

// Ruling is what policy says of facts: findings whose texts have placeholders for exact
// figures (see Evidence.FillFinding), and the kinds that the facts do not carry.
type Ruling struct {
	Findings  []Finding
	Undecided []FindingCode
}

// FindingsPolicy is one policy that judges evidence, whatever is in force meanwhile. Safe for
// concurrent use.
type FindingsPolicy interface {
	// Revision is the policy's.
	Revision() string
	// Steps are what facts are rounded down to before they are judged.
	Steps() *EvidenceSteps
	// Kinds are the kinds of findings that it says how much they matter, sorted.
	Kinds() []FindingCode
	// Judge asks the policy about facts. An error means that it could not be decided.
	Judge(ctx context.Context, f *Facts) (Ruling, error)
}

// FindingsPolicies are asked for the policy in force. They are implemented by authz/policy.
type FindingsPolicies interface {
	// Findings is the policy in force; an error of KindInvalid says what it lacks.
	Findings() (FindingsPolicy, error)
}

// EvidenceStream hands out evidence, a key at a time, until the function that it is given
// fails. The Evidence is that function's only while it runs.
type EvidenceStream func(context.Context, func(*Evidence) error) error

// AuditSummary is what an audit comes to.
type AuditSummary struct {
	// Policy is the revision that judged.
	Policy string `json:"policy_revision"`
	Window Window `json:"window"`
	// Keys is how many were judged, Flagged how many of them have findings, Undecided of how
	// many something could not be told.
	Keys      int64 `json:"keys"`
	Flagged   int64 `json:"keys_with_findings"`
	Undecided int64 `json:"keys_not_enough_evidence"`
	// Findings is how many there are.
	Findings   int64                 `json:"findings"`
	ByCode     map[FindingCode]int64 `json:"by_code"`
	BySeverity map[Severity]int64    `json:"by_severity"`
	// Classes is how many different facts there were: for how many policy was asked.
	Classes int64   `json:"evidence_classes"`
	Seconds float64 `json:"seconds"`
}
