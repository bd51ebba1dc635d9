// Package policy lets Rego decide. It reads a policy, refuses what is outside of
// the sandbox, compiles it once into an immutable Snapshot, and evaluates it for
// every check within a time budget.
//
// Whatever goes wrong denies: only a complete decision whose allow is the boolean
// true is an allow, and everything else is an error.
package policy
