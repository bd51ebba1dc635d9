package manage

import (
	"time"

	"github.com/supportstation/keystile/authz"
)

// UndoneFor is for how long scopes that were taken by a finding can be given back.
const UndoneFor = 400 * 24 * time.Hour

// KeyNarrowing is that scopes were taken from a key because nothing recorded needed them.
type KeyNarrowing struct {
	Key          authz.KeyID
	Organization authz.OrganizationID
	// Revision is that of the change.
	Revision int64
	At       time.Time
	// By is the admin's id.
	By string
	// Before and After are the key's scopes, sorted.
	Before, After []authz.Scope
	// Version is the key's after the change.
	Version int
	// Evidence is a JSON object: why.
	Evidence []byte
	// Widened tells that the key was given scopes since, though it may not have them any more.
	Widened bool `json:"-"`
	// UndoneAt is zero while it was not.
	UndoneAt time.Time
	UndoneBy string
}

// KeyTrafficFilter picks recorded requests of one key by full days, UTC.
type KeyTrafficFilter struct {
	Organization authz.OrganizationID
	Key          authz.KeyID
	// The days of Since and of Until are included.
	Since, Until time.Time
	// Limit bounds the kinds of requests that are read.
	Limit int
}

// KeyTraffic is what was recorded of a key.
type KeyTraffic struct {
	// Key is the record that checks share; nil when it cannot be read.
	Key *authz.Key
	// Recorded are its requests, the most frequent first.
	Recorded []authz.RecordedOfKey
	// More tells that there were more kinds than the limit.
	More bool
}
