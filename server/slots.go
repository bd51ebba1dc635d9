package server

import (
	"sync"

	"github.com/supportstation/keystile/authz"
)

// Imports and verifications each hold a whole body in memory, so few run at once.
const (
	// maxLongPlatform bounds those of platform admins: nobody else has these slots.
	maxLongPlatform = 2
	// maxLongOrganizations bounds the verifications of all organizations' admins, and
	// maxLongEach those of one: no low role keeps another organization waiting alone.
	maxLongOrganizations = 2
	maxLongEach          = 1
)

// slots counts long requests. The zero slots is ready. Safe for concurrent use.
type slots struct {
	mu            sync.Mutex
	platform      int
	organizations int
	running       map[authz.OrganizationID]int
}

// take takes a slot for an admin, if there is one.
func (s *slots) take(a *authz.Admin) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.Role == authz.RolePlatformAdmin {
		if s.platform >= maxLongPlatform {
			return false
		}
		s.platform++
		return true
	}
	if s.organizations >= maxLongOrganizations || s.running[a.Organization] >= maxLongEach {
		return false
	}
	if s.running == nil {
		s.running = make(map[authz.OrganizationID]int)
	}
	s.running[a.Organization]++
	s.organizations++
	return true
}

// give gives back the slot that an admin has taken.
func (s *slots) give(a *authz.Admin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.Role == authz.RolePlatformAdmin {
		s.platform--
		return
	}
	s.organizations--
	if s.running[a.Organization]--; s.running[a.Organization] == 0 {
		delete(s.running, a.Organization)
	}
}
