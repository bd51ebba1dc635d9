package manage

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/supportstation/keystile/authz"
)

// Decision is a decision that is kept. It holds nothing that was presented, no path and no
// whole address.
type Decision struct {
	ID authz.DecisionID
	At time.Time
	// Organization, Key and Secret are zero while the key was unknown.
	Organization authz.OrganizationID
	Key          authz.KeyID
	Secret       authz.SecretID
	Caller       authz.CallerID
	// Environment is the key's, or else the one asked for; "" is neither.
	Environment authz.Environment
	// Method, Route and Action are "" where there were none. Route is the template.
	Method, Route, Action string
	Code                  authz.Code
	Status                int
	// Reasons are their codes.
	Reasons           []authz.Code
	Required, Missing []authz.Scope
	PolicyRevision    string
	// Network is the client's; the zero Prefix is unknown, or not kept.
	Network netip.Prefix
	// Degraded names the parts that were stood in for.
	Degraded []string
	Browser  bool
}

// DecisionsKept is what is said of a decision that is not there.
type DecisionsKept struct {
	// For is how long decisions are kept; 0 is not at all.
	For time.Duration
	// Sample: of allows one in so many is kept, 0 none.
	Sample int
}

// actionDecisionGet reads one decision.
const actionDecisionGet = "decisions.get"

// Decision returns one that is kept. Of what is not there it is told, as far as the id alone
// tells it, why: foreign and unknown ones are one.
func (s *Service) Decision(ctx context.Context, r Request, id authz.DecisionID) (*Decision, error) {
	var out *Decision
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		d, err := re.Decision(ctx, TenantOf(r.Actor), id)
		if errors.Is(err, ErrNotFound) {
			return s.decisions.missing(id, re.Now())
		}
		if err != nil {
			return err //nolint:wrapcheck // read does
		}
		var o *Organization
		if !d.Organization.IsZero() {
			if o, err = organization(ctx, re, r, d.Organization); err != nil {
				return err
			}
		}
		out = d
		return s.may(ctx, r, operation{actionDecisionGet, readers()}, o, nil)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// missing says why a decision is not there.
func (k DecisionsKept) missing(id authz.DecisionID, now time.Time) error {
	message := "no decision with this id is kept"
	switch age := now.Sub(id.Time()); {
	case k.For <= 0:
		message += ": this service keeps none"
	case age > k.For:
		message = fmt.Sprintf("this decision is of %s, and decisions are kept for %s", id.Time().Format(time.RFC3339), days(k.For))
	case age < -time.Minute:
		message = "there is no such decision: its id is of a time to come"
	case age < 2*time.Second:
		message += " yet: they are written within two seconds"
	case !id.OneIn(k.Sample):
		message += ": " + k.allows() + " and this is none of them, and of a flood of denials only a part is kept"
	default:
		message += ": there was none, or it was one of a flood of which only a part is kept"
	}
	return &authz.Error{Kind: authz.KindNotFound, Code: "not_found", Message: message}
}

func (k DecisionsKept) allows() string {
	if k.Sample == 0 {
		return "allows are not kept,"
	}
	return fmt.Sprintf("of allows one in %d is kept,", k.Sample)
}

func days(d time.Duration) string {
	const day = 24 * time.Hour
	if d%day == 0 && d > day {
		return fmt.Sprintf("%d days", d/day)
	}
	return d.String()
}
