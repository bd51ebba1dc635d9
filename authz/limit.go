package authz

import (
	"context"
	"fmt"
	"time"
)

// Bounds of a limit. Beyond them redis_rate's arithmetic is not trusted.
const (
	// MaxRatePerSecond is the fastest refill, in units a second.
	MaxRatePerSecond = 10_000
	maxLimitUnits    = 1_000_000_000
	maxLimitPeriod   = 366 * 24 * time.Hour
)

// Rate is how fast a bucket refills, Rate units each Period, and how many units it holds, Burst.
// In any time T at most Burst + Rate·T/Period units are admitted.
type Rate struct {
	Rate   int
	Period time.Duration
	Burst  int
}

// Limit is one limit that policy names for a check. The zero Limit is invalid.
type Limit struct {
	// Name tells the client which limit it is, for example "key".
	Name string
	Rate
	// Cost is how many units one check of cost 1 takes.
	Cost int
}

// Unlimited is the name by which policy says that a check has no limit at all.
const Unlimited = "none"

// Validate tells what is wrong with a limit: redis_rate takes a zero rate for an
// error or an allow, a negative cost for a refund, and a cost above the burst for
// something to try again later.
func (l Limit) Validate() error {
	if l.Name == "" || len(l.Name) > 64 || !printableASCII(l.Name) {
		return fmt.Errorf("limit name must be 1 to 64 printable ASCII characters without quotes")
	}
	if l.Cost < 1 || l.Cost > l.Burst {
		return fmt.Errorf("limit %s: cost %d must be between 1 and the burst, %d", l.Name, l.Cost, l.Burst)
	}
	if err := l.Rate.Validate(); err != nil {
		return fmt.Errorf("limit %s: %w", l.Name, err)
	}
	return nil
}

// Validate tells what is wrong with a rate.
func (r Rate) Validate() error {
	switch {
	case r.Rate < 1 || r.Rate > maxLimitUnits:
		return fmt.Errorf("rate %d must be between 1 and %d", r.Rate, maxLimitUnits)
	case r.Burst < 1 || r.Burst > maxLimitUnits:
		return fmt.Errorf("burst %d must be between 1 and %d", r.Burst, maxLimitUnits)
	case r.Period < time.Second || r.Period > maxLimitPeriod || r.Period%time.Second != 0:
		return fmt.Errorf("period %v must be whole seconds between 1s and %v", r.Period, maxLimitPeriod)
	case float64(r.Rate)/r.Period.Seconds() > MaxRatePerSecond:
		return fmt.Errorf("rate %d per %v is more than %d a second", r.Rate, r.Period, MaxRatePerSecond)
	case float64(r.Burst)*r.EmissionInterval() > maxLimitPeriod.Seconds():
		return fmt.Errorf("burst %d takes more than %v to refill", r.Burst, maxLimitPeriod)
	}
	return nil
}

func printableASCII(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return true
}

// EmissionInterval is the time in which one unit comes back, period/rate, in seconds.
func (r Rate) EmissionInterval() float64 { return r.Period.Seconds() / float64(r.Rate) }

// Window is the time in which an empty bucket fills, burst·period/rate, in whole
// seconds rounded up: the `w` of RateLimit-Policy.
func (r Rate) Window() int { return ceilSeconds(float64(r.Burst) * r.EmissionInterval()) }

// microsecond is the slack that keeps float division from losing a whole unit or gaining a second.
const microsecond = 1e-6

// Remaining is how many units are left in a bucket that is full again after
// resetAfter: floor((burst·ei − resetAfter + 1 µs)/ei), never below 0 or above
// the burst. redis_rate's own figure is one too low on the first call.
func (r Rate) Remaining(resetAfter time.Duration) int {
	ei := r.EmissionInterval()
	left := int((float64(r.Burst)*ei - resetAfter.Seconds() + microsecond) / ei)
	return min(max(left, 0), r.Burst)
}

// NextUnit is the time until one more unit is there than Remaining says, in whole
// seconds rounded up, and 0 for a full bucket: the `t` of the RateLimit header.
func (r Rate) NextUnit(resetAfter time.Duration) int {
	left := r.Remaining(resetAfter)
	if left >= r.Burst {
		return 0
	}
	return max(ceilSeconds(resetAfter.Seconds()-float64(r.Burst-left-1)*r.EmissionInterval()), 1)
}

// CeilSeconds rounds a duration up to whole seconds; what is not positive is 0.
func CeilSeconds(d time.Duration) int { return ceilSeconds(d.Seconds()) }

func ceilSeconds(s float64) int {
	if s <= microsecond {
		return 0
	}
	whole := int(s)
	if s-float64(whole) > microsecond {
		whole++
	}
	return whole
}

// LimiterMode tells how a limit was counted.
type LimiterMode string

// The modes: exact by Redis; the others stand in while it does not answer.
const (
	// LimiterExact means that Redis counted.
	LimiterExact LimiterMode = "exact"
	// LimiterLocal means that this replica counted alone, by the same GCRA.
	LimiterLocal LimiterMode = "local"
	// LimiterOpen means that nobody counted, and everything is admitted.
	LimiterOpen LimiterMode = "open"
	// LimiterClosed means that nobody counted, and nothing is admitted.
	LimiterClosed LimiterMode = "closed"
)

// Charge is what became of taking units from a bucket. The zero Charge admits nothing.
type Charge struct {
	// Allowed tells whether the units were there and taken; when not, none were.
	Allowed bool
	// ResetAfter is the time until the bucket is full again.
	ResetAfter time.Duration
	// RetryAfter is the time until the units would be there; 0 when allowed.
	RetryAfter time.Duration
	Mode       LimiterMode
}

// Limiter counts. It is implemented by authz/ratelimit.
type Limiter interface {
	// Charge takes cost units from the bucket of limit l of key k, or takes
	// nothing when fewer are there. The bucket belongs to the limit's name, rate,
	// burst and period, and to the key with its organization and environment.
	//
	// When the counting server does not answer within its budget, the Charge comes
	// from the declared stand-in and says so in its Mode; that is not an error. An
	// error means that it could not be decided: an invalid limit, or a cost that is
	// not between 1 and the burst.
	//
	// Called by Checker alone, concurrently.
	Charge(ctx context.Context, k *Key, l Limit, cost int) (Charge, error)
}
