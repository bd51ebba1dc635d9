package server

import (
	"sync"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxLongRequests bounds the imports and verifications that run at once: each
	// holds its whole body in memory.
	maxLongRequests = 4
	// maxLongEach bounds those of one organization, or of the platform: nobody alone
	// keeps the others waiting.
	maxLongEach = 2
)

// slots counts long requests. The zero slots is ready. Safe for concurrent use.
type slots struct {
	mu      sync.Mutex
	running map[authz.OrganizationID]int
	total   int
}

// take takes a slot for an organization, zero for the platform, if there is one.
func (s *slots) take(organization authz.OrganizationID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= maxLongRequests || s.running[organization] >= maxLongEach {
		return false
	}
	if s.running == nil {
		s.running = make(map[authz.OrganizationID]int)
	}
	s.running[organization]++
	s.total++
	return true
}

// give gives a taken slot back.
func (s *slots) give(organization authz.OrganizationID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.running[organization]--; s.running[organization] == 0 {
		delete(s.running, organization)
	}
}
