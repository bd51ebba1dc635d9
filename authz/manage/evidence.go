package manage

import (
	"time"

	"github.com/supportstation/keystile/authz"
)

// EvidenceFilter picks keys, and the days in which their use is looked at.
type EvidenceFilter struct {
	// Organization is zero for all, Key for all of those.
	Organization authz.OrganizationID
	Key          authz.KeyID
	// Since begins with its UTC day. Until is not included; its own day is, as far as it goes.
	Since, Until time.Time
}
