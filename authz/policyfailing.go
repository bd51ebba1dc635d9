package authz

import "time"

// PolicyFailure is why a policy did not decide a check.
type PolicyFailure string

// The kinds of failure. FailureHeldBack is of an organization whose checks overran before;
// FailureCrowded is the one that nobody's own check is to blame for.
const (
	FailureError      PolicyFailure = "error"
	FailureTimeout    PolicyFailure = "timeout"
	FailureNoDecision PolicyFailure = "no_decision"
	FailureHeldBack   PolicyFailure = "held_back"
	FailureCrowded    PolicyFailure = "crowded"
)

// PolicyFailing is how the policy in force fails at run time, on one replica. The zero
// PolicyFailing is one that does not.
type PolicyFailing struct {
	// Revision is the policy's.
	Revision string
	// Window is how far back Errors and Organizations go.
	Window time.Duration
	// Errors are checks that it did not decide, of each organization only so many; and of how
	// many organizations.
	Errors, Organizations int
	// NewErrors and NewOrganizations are without those organizations that the policy before it
	// failed as well.
	NewErrors, NewOrganizations int
	// Widespread tells that it is the policy, and neither noise nor one organization's data: so
	// many organizations fail that did not fail before.
	Widespread bool
	// Kind and Where are of the newest one; Where is a place in the policy, "" when it is
	// nowhere in particular. Never a message: that may quote what a client sent.
	Kind  PolicyFailure
	Where string
	// Some are organizations that fail, the newest first.
	Some []OrganizationID
	// Stays says why the policy is not taken back all the same; "" while nobody has looked.
	Stays string
	// Total counts all failures since the program started.
	Total map[PolicyFailure]int64
}
