package store

import (
	"math"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/supportstation/keystile/authz"
)

// organizationState is what all records of one organization's keys share: when it has
// changed, all of them are out of date at once, without anyone looking for them.
type organizationState struct {
	id authz.OrganizationID
	// floor is the revision of the last change: what was read before it is not believed.
	floor atomic.Int64
	// current is the newest record that was read, for the next keys to share.
	current atomic.Pointer[authz.Organization]
}

// organizationCache finds the states that records in memory hold: no longer than they
// do. Safe for concurrent use.
type organizationCache struct {
	mu     sync.Mutex
	states map[authz.OrganizationID]weak.Pointer[organizationState]
	// sweepAt is the size at which states that nobody holds are cleared away.
	sweepAt int
}

const minOrganizationSweep = 1024

func newOrganizationCache() *organizationCache {
	return &organizationCache{
		states: make(map[authz.OrganizationID]weak.Pointer[organizationState]), sweepAt: minOrganizationSweep,
	}
}

// organization hands out the one state of an organization.
func (c *organizationCache) organization(id authz.OrganizationID) *organizationState {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.states[id].Value(); s != nil {
		return s
	}
	if len(c.states) >= c.sweepAt {
		for other, s := range c.states {
			if s.Value() == nil {
				delete(c.states, other)
			}
		}
		c.sweepAt = max(2*len(c.states), minOrganizationSweep)
	}
	s := &organizationState{id: id}
	c.states[id] = weak.Make(s)
	return s
}

// changed puts what was read of an organization before revision n out of date.
func (c *organizationCache) changed(id authz.OrganizationID, n int64) {
	c.mu.Lock()
	s := c.states[id].Value()
	c.mu.Unlock()
	if s != nil {
		s.floor.Store(n)
	}
}

// reset forgets all states: revisions mean something else from now on.
func (c *organizationCache) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.states {
		if s := w.Value(); s != nil {
			s.floor.Store(math.MaxInt64) // a look-up under way may hold it: it is read again
		}
	}
	clear(c.states)
}

// record returns the organization as of this revision of its row: the one that others
// share already, or what build returns.
func (s *organizationState) record(revision int64, build func() (*authz.Organization, error)) (*authz.Organization, error) {
	shared := s.current.Load()
	if shared != nil && shared.Revision == revision {
		return shared, nil
	}
	made, err := build()
	if err != nil {
		return nil, err
	}
	if shared == nil || shared.Revision < revision {
		s.current.Store(made)
	}
	return made, nil
}
