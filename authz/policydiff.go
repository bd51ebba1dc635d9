package authz

import (
	"context"
	"slices"
	"time"
)

// Recorded are requests of one key and shape, through one caller.
type Recorded struct {
	// Key and Caller are as they are now; both are nil when policy would not be asked now,
	// because one of them is gone.
	Key    *Key
	Caller *Caller
	Shape  Shape
	// Requests is how many there were.
	Requests int64
}

// Traffic hands out recorded requests, those of one key together, until the function that it
// is given fails.
type Traffic func(context.Context, func(Recorded) error) error

// PolicyDiff is what would be decided otherwise if another policy were in force: both were
// asked about recorded requests, with keys and callers as they are now. Limits are compared,
// not counted.
type PolicyDiff struct {
	// Active is the policy in force, Candidate the other one.
	Active    string    `json:"active"`
	Candidate string    `json:"candidate"`
	Since     time.Time `json:"since"`
	Until     time.Time `json:"until"`
	// Requests is how many were asked about, Questions by how many different ones.
	Requests  int64 `json:"requests"`
	Questions int   `json:"questions"`
	// Skipped are requests that were not: see PolicyDiffSkipped.
	Skipped PolicyDiffSkipped `json:"skipped"`
	// Approximate is how many of Requests may come out otherwise than told here, because not
	// all that a policy looks at was recorded; Reasons say why.
	Approximate int64           `json:"approximate"`
	Reasons     []PolicyProblem `json:"approximate_reasons"`
	// Totals are requests by the kind of difference.
	Totals map[PolicyDifferenceKind]int64 `json:"totals"`
	// Differences are the most frequent first. Where there are too many to list each, those
	// of several keys or organizations stand together, without a name.
	Differences []PolicyDifference `json:"differences"`
	// Unlisted is how many more there are.
	Unlisted int64   `json:"unlisted"`
	Seconds  float64 `json:"seconds"`
}

// Exact tells that what is told is what would happen to the same requests.
func (d *PolicyDiff) Exact() bool { return d.Approximate == 0 && d.Skipped.Collapsed == 0 }

// PolicyDiffSkipped counts recorded requests that no policy was asked about.
type PolicyDiffSkipped struct {
	// Gone are of keys that policy is not asked about any more (revoked, expired, disabled, of
	// an organization that is suspended, or unreadable), or through callers that are gone.
	Gone int64 `json:"gone"`
	// Collapsed were of so many kinds that theirs were not kept.
	Collapsed int64 `json:"collapsed"`
}

// PolicyDifferenceKind tells what is decided otherwise.
type PolicyDifferenceKind string

// The kinds, the gravest first: a difference is of the first that fits.
const (
	DenyToAllow  PolicyDifferenceKind = "deny_to_allow"
	AllowToDeny  PolicyDifferenceKind = "allow_to_deny"
	OtherReasons PolicyDifferenceKind = "reasons"
	OtherLimits  PolicyDifferenceKind = "limits"
	// CandidateFails is of a candidate that did not decide what was decided, in a shadow.
	CandidateFails PolicyDifferenceKind = "unavailable"
)

// PolicyDifference is one difference, of requests of one key to one route.
type PolicyDifference struct {
	Kind PolicyDifferenceKind `json:"kind"`
	// Organization and Key are zero for differences of several.
	Organization     OrganizationID `json:"organization"`
	OrganizationName string         `json:"organization_name"`
	Key              KeyID          `json:"key"`
	KeyName          string         `json:"key_name"`
	Method           string         `json:"method"`
	// Path is the route's template, or the path with "_" for what was not recorded.
	Path   string       `json:"path"`
	Action string       `json:"action"`
	Before PolicyAnswer `json:"before"`
	After  PolicyAnswer `json:"after"`
	// Requests is how many, Approximate how many of them may come out otherwise.
	Requests    int64 `json:"requests"`
	Approximate int64 `json:"approximate"`
}

// PolicyAnswer is what a policy says, as a check would tell it before its limits are counted.
type PolicyAnswer struct {
	Allow bool `json:"allow"`
	Code  Code `json:"code"`
	// Status is the HTTP status for the end client.
	Status int `json:"status"`
	// Reasons are the codes of all reasons, Missing the scopes that the key lacks.
	Reasons []Code  `json:"reasons"`
	Missing []Scope `json:"missing_scopes"`
	Limits  []Limit `json:"limits"`
}

// AnswerOf is what a verdict comes to; an error, and what is no decision, is unavailable.
func AnswerOf(v Verdict, err error) PolicyAnswer {
	d := &Decision{}
	if err == nil {
		err = v.Undecided()
	}
	if err == nil {
		err = d.take(v)
	}
	if err != nil {
		return PolicyAnswer{Code: CodeUnavailable, Status: CodeUnavailable.Status(), Reasons: []Code{CodeUnavailable}}
	}
	a := PolicyAnswer{Allow: d.Allow, Code: d.Code, Status: d.Status, Missing: d.Missing, Limits: v.Limits}
	if d.Code.fence() {
		a.Limits = nil // nothing is charged
	}
	for _, r := range d.Reasons {
		a.Reasons = append(a.Reasons, r.Code)
	}
	return a
}

// Difference is the kind of difference between two answers, "" for none.
func (a PolicyAnswer) Difference(after PolicyAnswer) PolicyDifferenceKind {
	switch {
	case !a.Allow && after.Allow:
		return DenyToAllow
	case a.Allow && !after.Allow:
		return AllowToDeny
	case a.Code != after.Code || a.Status != after.Status || !slices.Equal(a.Reasons, after.Reasons) || !slices.Equal(a.Missing, after.Missing):
		return OtherReasons
	case !slices.Equal(a.Limits, after.Limits):
		return OtherLimits
	}
	return ""
}
