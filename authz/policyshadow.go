package authz

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

// PolicyShadow is a policy that is asked beside the one in force, on every replica, and decides
// nothing.
type PolicyShadow struct {
	// Change is the number of the change that began it: a later one has a greater number.
	Change int64 `json:"change"`
	// Candidate is the policy's revision.
	Candidate string    `json:"candidate"`
	StartedAt time.Time `json:"started_at"`
	EndsAt    time.Time `json:"ends_at"`
	// StartedBy is an admin's id, Note what they said about it.
	StartedBy string `json:"started_by"`
	Note      string `json:"note"`
	// Share is of how many checks it is asked at most, from above 0 to 1; PerSecond bounds how
	// many that are on each replica.
	Share     float64 `json:"share"`
	PerSecond int     `json:"per_second"`
	// EndedAt is zero while nothing has ended it before its time. EndedBy is an admin's id, or
	// ByReplica.
	EndedAt time.Time       `json:"ended_at"`
	EndedBy string          `json:"ended_by"`
	Reason  PolicyShadowEnd `json:"reason"`
	// Why says more of ShadowFailed, with the place in the policy where there is one.
	Why string `json:"why"`
}

// PolicyShadowEnd is why a shadow has ended; "" is not.
type PolicyShadowEnd string

// The reasons.
const (
	// ShadowOver is of one whose time is over.
	ShadowOver PolicyShadowEnd = "over"
	// ShadowStopped is of one that somebody stopped.
	ShadowStopped PolicyShadowEnd = "stopped"
	// ShadowInForce is of one that has come into force itself.
	ShadowInForce PolicyShadowEnd = "in_force"
	// ShadowFailed is of one that cannot be asked: it takes too long or too much.
	ShadowFailed PolicyShadowEnd = "failed"
)

// End is why it has ended by now, "" while it runs. A nil PolicyShadow is over.
func (s *PolicyShadow) End(now time.Time) PolicyShadowEnd {
	switch {
	case s == nil:
		return ShadowOver
	case !s.EndedAt.IsZero():
		return s.Reason
	case !now.Before(s.EndsAt):
		return ShadowOver
	}
	return ""
}

// PolicyShadowCounts is what came of a shadow, on one replica or on all of them. Each check for
// which it was picked is one of Asked, Dropped and Undecided, or still waits.
type PolicyShadowCounts struct {
	// Seen is how many checks policy decided meanwhile.
	Seen int64
	// Asked is how many of them the candidate was asked about, Failed how many of these it did
	// not decide.
	Asked, Failed int64
	// Dropped is for how many it was picked and then had no time.
	Dropped int64
	// Undecided is for how many it was picked, and there is nothing to compare with: the policy
	// in force had no time either, or was the candidate itself.
	Undecided int64
	// Restarts is how often its process ended and was started again.
	Restarts int64
	// Totals are checks by the kind of difference.
	Totals map[PolicyDifferenceKind]int64
	// Took is how long its answers took, ActiveTook those of the policy in force, but for what
	// that one had from memory.
	Took, ActiveTook DurationCounts
}

// Add adds what came of it elsewhere.
func (c *PolicyShadowCounts) Add(other PolicyShadowCounts) {
	c.Seen, c.Asked, c.Failed = c.Seen+other.Seen, c.Asked+other.Asked, c.Failed+other.Failed
	c.Dropped, c.Undecided, c.Restarts = c.Dropped+other.Dropped, c.Undecided+other.Undecided, c.Restarts+other.Restarts
	if c.Totals == nil {
		c.Totals = make(map[PolicyDifferenceKind]int64, len(PolicyDifferenceKinds()))
	}
	for kind, n := range other.Totals {
		c.Totals[kind] += n
	}
	for i := range c.Took {
		c.Took[i] += other.Took[i]
		c.ActiveTook[i] += other.ActiveTook[i]
	}
}

// PolicyShadowDifference is one difference between what was decided and what the candidate
// says, of checks of one key for one route.
type PolicyShadowDifference struct {
	Kind PolicyDifferenceKind `json:"kind"`
	// Active is the revision that decided.
	Active string `json:"active"`
	// Organization and Key are zero for differences of several.
	Organization     OrganizationID `json:"organization"`
	OrganizationName string         `json:"organization_name"`
	Key              KeyID          `json:"key"`
	KeyName          string         `json:"key_name"`
	Method           string         `json:"method"`
	// Path is the route's template, or the path with "_" for what may tell one request from the next.
	Path   string       `json:"path"`
	Action string       `json:"action"`
	Before PolicyAnswer `json:"before"`
	After  PolicyAnswer `json:"after"`
	// Failure is why the candidate did not decide, "" when it did; Where is the place in it, ""
	// when that is nowhere in particular. Never a message: that may quote what a client sent.
	Failure PolicyFailure `json:"failure"`
	Where   string        `json:"where"`

	Requests  int64     `json:"requests"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
}

// PolicyShadowReport is a shadow with what came of it on all replicas.
type PolicyShadowReport struct {
	Shadow PolicyShadow
	Counts PolicyShadowCounts
	// Replicas is how many have asked it.
	Replicas int
	// Differences are the gravest and then the most frequent first, Unlisted how many more
	// there are.
	Differences []PolicyShadowDifference
	Unlisted    int64
}

// PolicyDifferenceKinds are all kinds, the gravest first. CandidateFails is of a shadow alone:
// a replay takes it for what it comes to.
func PolicyDifferenceKinds() []PolicyDifferenceKind {
	return []PolicyDifferenceKind{DenyToAllow, AllowToDeny, CandidateFails, OtherReasons, OtherLimits}
}

// Copy is a question that may be kept when the check is over: without what was presented, and
// with texts of its own. Its Caller is the shared record.
func (c *Check) Copy() Check {
	k := *c
	k.Presented = Presented{}
	k.Method, k.Path, k.Action = strings.Clone(c.Method), strings.Clone(c.Path), strings.Clone(c.Action)
	k.Environment = Environment(strings.Clone(string(c.Environment)))
	k.Resource = Resource{
		Type: strings.Clone(c.Resource.Type), ID: strings.Clone(c.Resource.ID), Organization: strings.Clone(c.Resource.Organization),
	}
	k.Segments = cloned(c.Segments)
	return k
}

// Listed is an answer as it may be listed. A policy makes its texts up, and may make them of
// what a client sent: what does not look like a code, a scope or a limit's name is not told.
func (a PolicyAnswer) Listed() PolicyAnswer {
	a.Code = a.Code.Plain()
	reasons := make([]Code, len(a.Reasons))
	for i, r := range a.Reasons {
		reasons[i] = r.Plain()
	}
	a.Reasons = reasons
	a.Missing = slices.DeleteFunc(slices.Clone(a.Missing), func(s Scope) bool { return !s.Valid() })
	limits := slices.Clone(a.Limits)
	for i, l := range limits {
		if !plainWord(l.Name) {
			limits[i].Name = Blank
		}
	}
	a.Limits = limits
	return a
}

// maxPlainCode bounds a code that is kept, in bytes.
const maxPlainCode = 64

// Plain is a code of the form that codes have, as a text of its own, or policy_denied.
func (c Code) Plain() Code {
	if c == "" || len(c) > maxPlainCode || strings.Trim(string(c), "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return CodePolicyDenied
	}
	return Code(strings.Clone(string(c)))
}

// durationSteps is how many DurationCounts there are: each is half as long again as the one
// before, from a microsecond to some ten seconds.
const durationSteps = 42

// DurationCounts counts durations by how long they were, so that those of several replicas can
// be added. The zero value has counted none.
type DurationCounts [durationSteps]int64

// Note counts one.
func (c *DurationCounts) Note(d time.Duration) {
	step := 0
	if d > time.Microsecond {
		step = int(math.Ceil(math.Log(float64(d)/float64(time.Microsecond)) / math.Log(durationRatio)))
	}
	c[min(step, durationSteps-1)]++
}

// durationRatio is by how much a quantile may be too long.
const durationRatio = 1.5

// Quantile is what a share of those counted did not exceed, too long by at most a half; 0 of none.
func (c *DurationCounts) Quantile(share float64) time.Duration {
	var all, sum int64
	for _, n := range c {
		all += n
	}
	for step, n := range c {
		if sum += n; sum > 0 && float64(sum) >= share*float64(all) {
			return time.Duration(float64(time.Microsecond) * math.Pow(durationRatio, float64(step)))
		}
	}
	return 0
}

// SortShadowDifferences puts the gravest first, of a kind the most frequent.
func SortShadowDifferences(all []PolicyShadowDifference) {
	rank := PolicyDifferenceKinds()
	slices.SortFunc(all, func(a, b PolicyShadowDifference) int {
		return cmp.Or(
			slices.Index(rank, a.Kind)-slices.Index(rank, b.Kind), cmp.Compare(b.Requests, a.Requests),
			strings.Compare(a.OrganizationName, b.OrganizationName), strings.Compare(a.Path, b.Path), strings.Compare(a.Method, b.Method),
			strings.Compare(a.Key.String(), b.Key.String()), strings.Compare(a.Action, b.Action),
		)
	})
}
