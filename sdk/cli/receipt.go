package cli

import (
	"fmt"
	"time"

	"github.com/supportstation/keystile/sdk/admin"
)

// receipt tells how far a change that takes rights away has got, such as "denied
// on 3 of 3 replicas after 41 ms"; nothing when there is none.
func (p *page) receipt(e *admin.Effective, verb string, now time.Time) {
	p.receiptOf(e, reached{verb: verb}, now)
}

// reached is what a receipt says of the replicas that have applied a change, and what else is
// true from then on, "" for nothing.
type reached struct{ verb, besides string }

func (p *page) receiptOf(e *admin.Effective, what reached, now time.Time) {
	if e == nil {
		return
	}
	line := fmt.Sprintf("%s on %d of %s after %d ms", what.verb, e.Acknowledged, plural(int64(e.Replicas), "replica"), e.WithinMs)
	if what.besides != "" {
		line += "; " + what.besides
	}
	if e.Replicas == 0 {
		line = "no replica is live"
	}
	p.row("effective", line)
	for _, silent := range e.Silent {
		line := silent.Replica + " has not said so"
		if silent.ServesUntil != nil {
			line = fmt.Sprintf("%s may still serve what it knew until %s", silent.Replica, moment(*silent.ServesUntil, now))
		}
		p.row("silent", line)
	}
}

// warnOfSilence says on standard error what a script might not read.
func (s *session) warnOfSilence(e *admin.Effective) {
	if e != nil && len(e.Silent) > 0 {
		s.say("%s did not answer; `keystile replicas` shows what they have applied", plural(int64(len(e.Silent)), "replica"))
	}
}
