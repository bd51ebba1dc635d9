package authz

import (
	"fmt"
	"strings"
	"time"
)

// PolicyStage is where a policy failed on its way to being in force.
type PolicyStage string

// The stages, in their order.
const (
	// StageLoad is reading, parsing and compiling in the sandbox.
	StageLoad PolicyStage = "load"
	// StageInvariants are the guarantees that no policy may break.
	StageInvariants PolicyStage = "invariants"
	// StageTests are the policy's own tests.
	StageTests PolicyStage = "tests"
	// StageCoverage is how much of the policy its own tests reach.
	StageCoverage PolicyStage = "coverage"
	// StageActiveTests are the tests of the policy that is in force.
	StageActiveTests PolicyStage = "active_tests"
	// StageProcess is the process that tries the policy: it had not enough time or memory.
	StageProcess PolicyStage = "process"
)

// PolicyProblem is one thing that keeps a policy from being in force.
type PolicyProblem struct {
	Stage PolicyStage `json:"stage"`
	// File is where it is, "" when it is nowhere in particular; Line is 0 then, and for
	// what concerns all of a file.
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	// Test is the test that fails, such as data.keystile.check_test.test_x.
	Test    string `json:"test,omitempty"`
	Message string `json:"message"`
}

// String is file:line: message, as editors and people read it.
func (p PolicyProblem) String() string {
	switch {
	case p.File == "":
		return p.Message
	case p.Line == 0:
		return p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Message)
}

// PolicyOutcome is what became of a policy's test.
type PolicyOutcome string

// The outcomes of tests. TestFails and TestErrs keep a policy from being in force.
const (
	TestPasses PolicyOutcome = "pass"
	TestFails  PolicyOutcome = "fail"
	TestErrs   PolicyOutcome = "error"
	TestSkips  PolicyOutcome = "skip"
)

// PolicyTest is one test of a policy, as it was run.
type PolicyTest struct {
	// Name is such as data.keystile.check_test.test_x.
	Name    string        `json:"name"`
	File    string        `json:"file"`
	Line    int           `json:"line"`
	Outcome PolicyOutcome `json:"outcome"`
	// Message says why it does not pass.
	Message string `json:"message,omitempty"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds"`
}

// Failed tells whether the test keeps a policy from being in force.
func (t PolicyTest) Failed() bool { return t.Outcome == TestFails || t.Outcome == TestErrs }

// PolicyGap is a part of a policy that none of its tests reaches.
type PolicyGap struct {
	File string `json:"file"`
	// From and To are lines, both included.
	From int `json:"from"`
	To   int `json:"to"`
}

// PolicyReport is what came of trying a policy. The zero PolicyReport has not passed.
type PolicyReport struct {
	// Revision is that of the policy that was tried.
	Revision string `json:"revision"`
	// Problems are why it is refused; none means that it may be in force.
	Problems []PolicyProblem `json:"problems"`
	// Tests are its own, by name.
	Tests []PolicyTest `json:"tests"`
	// Coverage is in percent of the lines of rules; Gaps are the others.
	Coverage float64     `json:"coverage_percent"`
	Gaps     []PolicyGap `json:"gaps,omitempty"`
	// Against is the revision of the policy in force that it was measured by, "" for none;
	// ActiveTests are all of that one's tests, unless this one has their files exactly as they are.
	Against     string       `json:"against,omitempty"`
	ActiveTests []PolicyTest `json:"active_tests,omitempty"`
	// Accepted are those of them that fail and may.
	Accepted []string `json:"accepted,omitempty"`
	// Questions is with how many questions the invariants were asked.
	Questions int `json:"invariant_questions"`
	// Complete tells that everything was tried: what was not has not passed.
	Complete bool `json:"complete"`
	// Seconds is how long it all took.
	Seconds float64 `json:"seconds"`
}

// Passed tells whether the policy may be in force.
func (r *PolicyReport) Passed() bool {
	return r != nil && r.Complete && r.Revision != "" && len(r.Problems) == 0
}

// Counts tells how many of its own tests passed, failed and were skipped.
func (r *PolicyReport) Counts() (passed, failed, skipped int) {
	for _, t := range r.Tests {
		switch {
		case t.Failed():
			failed++
		case t.Outcome == TestSkips:
			skipped++
		default:
			passed++
		}
	}
	return passed, failed, skipped
}

// PolicyRefusedError says why a policy is not in force.
type PolicyRefusedError struct{ Report *PolicyReport }

// Error has a problem a line.
func (e *PolicyRefusedError) Error() string {
	lines := make([]string, len(e.Report.Problems))
	for i, p := range e.Report.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// PolicyOrigin is where a policy comes from.
type PolicyOrigin string

// The origins. One is in force in a service: see the contract's configuration.
const (
	OriginBuiltIn   PolicyOrigin = "built-in"
	OriginDatabase  PolicyOrigin = "database"
	OriginDirectory PolicyOrigin = "directory"
	OriginBundle    PolicyOrigin = "bundle"
)

// PolicyState is which policy is in force, and which is not and why.
type PolicyState struct {
	// Revision is "" before the first.
	Revision string
	Origin   PolicyOrigin
	// Since is when it came into force here.
	Since time.Time
	// Refused is the last candidate that was refused, nil when the last one was taken.
	Refused *PolicyRefusal
	// Bundle is nil where policies do not come from a bundle server.
	Bundle *PolicyBundle
}

// PolicyBundle is how it stands with the server that publishes policies. What is in force stays
// in force while it is away.
type PolicyBundle struct {
	// URL is where it is, without credentials and query.
	URL string
	// Version is of the bundle that is in force, 0 before the first.
	Version int64
	// ContactAt is when the server last sent a bundle, or said that there is none newer; zero
	// before the first time.
	ContactAt time.Time
	// Error is why it has not since FailingSince; "" while it does.
	Error        string
	FailingSince time.Time
	// StorageError is why what is in force could not be kept for a start without the server, or
	// what was kept could not be used; "" while all is well.
	StorageError string
}

// PolicyRefusal is a candidate that is not in force.
type PolicyRefusal struct {
	// Revision is "" for one that could not even be read.
	Revision string
	Origin   PolicyOrigin
	At       time.Time
	Problems []PolicyProblem
}
