package policy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// strikesToHold is how many overruns of one organization's checks hold it back.
	strikesToHold = 2
	// strikeWindow is the time within which they count together.
	strikeWindow = 10 * time.Second
	// firstHold is how long it is held back then, at least; each further overrun doubles
	// it. A call that was left running counts holdPerCall times: held back from its end
	// on, it takes less than a thirtieth of one processor.
	firstHold   = time.Second
	holdPerCall = 32
	// longestHold is the most.
	longestHold = time.Minute
	// maxHeld is how many keys and organizations are remembered.
	maxHeld = 1_024
)

// holding remembers whose checks overran their budget, so that one tenant's data
// under an unlucky policy does not take the processors from all others. What is
// held back is denied unevaluated. It is safe for concurrent use, and costs one
// atomic load while nothing overruns.
type holding struct {
	now   func() time.Time
	count atomic.Int64

	mu            sync.Mutex
	keys          map[authz.KeyID]*call // those that left a call running
	organizations map[authz.OrganizationID]*strikes
}

type strikes struct {
	n     int
	last  time.Time
	hold  time.Duration
	until time.Time
	// left is the call that its last overrun left running, until it is known to have ended.
	left *call
}

// held tells whether checks are held back at now.
func (s *strikes) held(now time.Time) bool {
	if s.left != nil && !s.left.running() {
		if s.hold > 0 {
			s.hold = min(max(s.hold, holdPerCall*s.left.took), longestHold)
			s.until = s.left.ended.Add(s.hold)
		}
		s.last, s.left = s.left.ended, nil
	}
	return s.hold > 0 && s.left != nil || now.Before(s.until)
}

// over tells that they count no longer.
func (s *strikes) over(now time.Time) bool {
	return s.left == nil && now.Sub(s.last) > max(strikeWindow, 2*s.hold)
}

func newHolding(now func() time.Time) *holding {
	return &holding{
		now:           now,
		keys:          make(map[authz.KeyID]*call),
		organizations: make(map[authz.OrganizationID]*strikes),
	}
}

// holds tells whether a key's checks are denied unevaluated.
func (h *holding) holds(k *authz.Key) bool {
	if h.count.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.keys[k.ID]; c != nil {
		if c.running() {
			return true
		}
		delete(h.keys, k.ID)
	}
	held := false
	if s := h.organizations[k.Organization.ID]; s != nil {
		now := h.now()
		held = s.held(now)
		if !held && s.over(now) {
			delete(h.organizations, k.Organization.ID)
		}
	}
	h.recount()
	return held
}

// overran notes that a check of k used up its budget, and the call that it left
// running, or nil.
func (h *holding) overran(k *authz.Key, left *call) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if left != nil && len(h.keys) < maxHeld {
		h.keys[k.ID] = left
	}
	s := h.organizations[k.Organization.ID]
	if s == nil {
		if len(h.organizations) >= maxHeld {
			h.forgetOldest()
		}
		s = &strikes{}
		h.organizations[k.Organization.ID] = s
	}
	if s.n > 0 && s.over(now) {
		*s = strikes{}
	}
	s.n++
	s.last = now
	if left != nil {
		s.left = left
	}
	if s.n >= strikesToHold {
		s.hold = min(max(2*s.hold, firstHold), longestHold)
		s.until = now.Add(s.hold)
	}
	h.recount()
}

// forget forgets everything, for a new policy.
func (h *holding) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.keys)
	clear(h.organizations)
	h.recount()
}

func (h *holding) forgetOldest() {
	var oldest authz.OrganizationID
	var at time.Time
	for id, s := range h.organizations {
		if at.IsZero() || s.last.Before(at) {
			oldest, at = id, s.last
		}
	}
	delete(h.organizations, oldest)
}

func (h *holding) recount() { h.count.Store(int64(len(h.keys) + len(h.organizations))) }

func (c *call) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}
