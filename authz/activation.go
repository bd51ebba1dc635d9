package authz

import (
	"strings"
	"time"
)

// PolicyActivation is one time that a policy was put in force for all replicas.
type PolicyActivation struct {
	// Change is the revision of the change that did it: a later one has a greater number.
	Change int64
	// Revision is the policy's; "" is the built-in one.
	Revision string
	At       time.Time
	// By is who did it: an admin's id, ByDatabase for who had the database at hand, or ByReplica.
	By string
	// Note is what they said about it.
	Note string
	// SecurityFix tells that nothing goes back past it without being told to.
	SecurityFix bool
	// RolledBack tells that it took another back.
	RolledBack bool
	// Accepted are the tests of the policy before it that failed, and might.
	Accepted []string
}

// ByDatabase is PolicyActivation.By of what was done straight on the database.
const ByDatabase = "database"

// byReplica begins PolicyActivation.By of what a replica did by itself. No admin's id does.
const byReplica = "replica "

// ByReplica is PolicyActivation.By of what a replica did by itself.
func ByReplica(name string) string { return byReplica + name }

// ByItself tells that a replica did it, because the policy before failed at run time.
func (a PolicyActivation) ByItself() bool { return strings.HasPrefix(a.By, byReplica) }
