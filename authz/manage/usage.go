package manage

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

// actionUsageGet reads the usage of an organization, or of a key.
const actionUsageGet = "usage.get"

// UsageStep is what usage is added up by.
type UsageStep string

// The steps; "" is by the hour for as much as that is readable, else by the day.
const (
	UsageHourly UsageStep = "hour"
	UsageDaily  UsageStep = "day"
)

const (
	// DefaultUsageWindow is how much is told unless asked otherwise.
	DefaultUsageWindow = 7 * 24 * time.Hour
	// maxHourlyWindow and maxDailyWindow bound it, hourlyUnasked how much is told by the hour
	// without being asked to.
	maxHourlyWindow = 31 * 24 * time.Hour
	maxDailyWindow  = 1100 * 24 * time.Hour
	hourlyUnasked   = 8 * 24 * time.Hour
	// defaultUsageTop bounds each list.
	defaultUsageTop = 10
)

// UsageInput is what is asked of usage.
type UsageInput struct {
	// Since and Until are DefaultUsageWindow ago and now when they are zero. The hour, or the
	// day (UTC), of either is told whole.
	Since, Until time.Time
	Step         UsageStep
	// Top is how many rows each list has at most; 0 is ten.
	Top int
}

// UsageFilter picks usage, by full steps.
type UsageFilter struct {
	Organization authz.OrganizationID
	// Key is zero for all of the organization's.
	Key authz.KeyID
	// Since is included, Until is not.
	Since, Until time.Time
	Step         UsageStep
	Top          int
	// Recent is since when Usage.Secrets tell what is recent.
	Recent time.Time
}

// Usage is what was asked of a key, or of an organization's keys, in a window.
type Usage struct {
	UsageFilter

	// Subject is the key; nil for an organization.
	Subject *Key
	// At is as of when.
	At time.Time
	// CountedSince is the first moment that is known of, zero while nothing was counted. What is
	// before it was not asked, or is forgotten.
	CountedSince time.Time
	UsageCounts
	// Codes are by reason, the most frequent first; among them allowed.
	Codes []UsageCode
	// Series has a point for each step, also where nothing was asked.
	Series   []UsagePoint
	Routes   UsageTop[UsageRoute]
	Callers  UsageTop[UsageCaller]
	Networks UsageTop[UsageNetwork]
	// Keys are an organization's.
	Keys UsageTop[UsageKey]
	// Secrets are a key's that work, newest first, as far as it has more than one: while it rotates.
	Secrets []UsageSecret
	// Scopes are a key's: those that it has, and those that it used.
	Scopes []UsageScope
}

// UsageCounts are requests.
type UsageCounts struct{ Requests, Allowed, Limited int64 }

// Denied is how many were denied, limited ones among them.
func (c UsageCounts) Denied() int64 { return c.Requests - c.Allowed }

// UsageCode is how many requests were decided so.
type UsageCode struct {
	Code     authz.Code
	Requests int64
}

// UsagePoint is one step.
type UsagePoint struct {
	At time.Time
	UsageCounts
}

// UsageTop is the greater part of a list, the most frequent first.
type UsageTop[T any] struct {
	Items []T
	// Rest is how many more there are, RestRequests how many requests are not Items'.
	Rest         int
	RestRequests int64
}

// UsageRoute is a route by its template; Method and Route are "" for an action alone.
type UsageRoute struct {
	Method, Route, Action string
	UsageCounts
}

// UsageCaller is a caller; Name is "" for one that is not there any more.
type UsageCaller struct {
	ID   authz.CallerID
	Name string
	UsageCounts
}

// UsageNetwork is a network of end clients, of full days: the zero Prefix is of addresses
// that were not told. It has no count of what was limited.
type UsageNetwork struct {
	Network netip.Prefix
	UsageCounts
}

// UsageKey is a key of an organization.
type UsageKey struct {
	ID          authz.KeyID
	Name        string
	Environment authz.Environment
	UsageCounts
}

// LastUse is who used something last; the zero LastUse is nobody.
type LastUse struct {
	// First is zero where it is not known.
	First, Last time.Time
	Caller      authz.CallerID
	CallerName  string
	// Network is the zero Prefix where it is not known.
	Network netip.Prefix
}

// UsageSecret is one of the secrets of a key that is rotated.
type UsageSecret struct {
	KeySecret

	// Requests are the window's, Recent those since UsageFilter.Recent.
	Requests, Recent int64
	Use              LastUse
}

// UsageScope is a scope of a key.
type UsageScope struct {
	Scope   authz.Scope
	Granted bool
	// Requests are the allowed ones of the window that needed it.
	Requests int64
	Use      LastUse
}

// OrganizationUsage tells what was asked of an organization's keys.
func (s *Service) OrganizationUsage(ctx context.Context, r Request, org authz.OrganizationID, in UsageInput) (*Usage, error) {
	var out *Usage
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		o, err := organization(ctx, re, r, org)
		if err != nil {
			return err
		}
		if err := s.may(ctx, r, operation{actionUsageGet, readers()}, o, nil); err != nil {
			return err
		}
		f, err := in.filter(re.Now())
		if err != nil {
			return err
		}
		f.Organization = o.ID
		out, err = re.Usage(ctx, TenantOf(r.Actor), f)
		out.complete(re.Now(), o.CreatedAt, nil)
		return err //nolint:wrapcheck // read does
	})
	return out, err
}

// KeyUsage tells what was asked of a key, of an organization or of any when it is zero.
func (s *Service) KeyUsage(ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID, in UsageInput) (*Usage, error) {
	var out *Usage
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		k, o, err := s.key(ctx, re, r, org, id)
		if err != nil {
			return err
		}
		if err := s.may(ctx, r, operation{actionUsageGet, readers()}, o, k.document(re.Now())); err != nil {
			return err
		}
		f, err := in.filter(re.Now())
		if err != nil {
			return err
		}
		f.Organization, f.Key = o.ID, k.ID
		out, err = re.Usage(ctx, TenantOf(r.Actor), f)
		out.complete(re.Now(), k.CreatedAt, k)
		return err //nolint:wrapcheck // read does
	})
	return out, err
}

// filter is what is told, in full steps.
func (in UsageInput) filter(now time.Time) (UsageFilter, error) {
	f := UsageFilter{Since: in.Since.UTC(), Until: in.Until.UTC(), Step: in.Step, Top: in.Top, Recent: now.UTC().Truncate(time.Hour).Add(-time.Hour)}
	if in.Until.IsZero() {
		f.Until = now.UTC()
	}
	if in.Since.IsZero() {
		f.Since = f.Until.Add(-DefaultUsageWindow)
	}
	if f.Top == 0 {
		f.Top = defaultUsageTop
	}
	window := f.Until.Sub(f.Since)
	if f.Step == "" {
		f.Step = UsageDaily
		if window <= hourlyUnasked {
			f.Step = UsageHourly
		}
	}
	switch {
	case window <= 0:
		return f, invalid("out_of_range", "/since", "must be before until")
	case f.Step == UsageHourly && window > maxHourlyWindow:
		return f, invalid("out_of_range", "/since", "must be at most 31 days before until by the hour; ask by the day")
	case window > maxDailyWindow:
		return f, invalid("out_of_range", "/since", "must be at most 1100 days before until")
	}
	f.Since = f.Since.Truncate(f.Step.length())
	if whole := f.Until.Truncate(f.Step.length()); !whole.Equal(f.Until) {
		f.Until = whole.Add(f.Step.length())
	}
	return f, nil
}

func (s UsageStep) length() time.Duration {
	if s == UsageHourly {
		return time.Hour
	}
	return 24 * time.Hour
}

// complete adds what follows from what was read: of a subject that is there since created.
func (u *Usage) complete(now, created time.Time, k *Key) {
	if u == nil {
		return
	}
	u.At, u.Subject = now.UTC(), k
	if !u.CountedSince.IsZero() && created.After(u.CountedSince) {
		u.CountedSince = created.UTC()
	}
	counts := make(map[time.Time]UsageCounts, len(u.Series))
	for _, p := range u.Series {
		counts[p.At] = p.UsageCounts
	}
	u.Series = u.Series[:0]
	for at := u.Since; at.Before(u.Until); at = at.Add(u.Step.length()) {
		u.Series = append(u.Series, UsagePoint{at, counts[at]})
	}
	if k == nil {
		return
	}
	for _, scope := range k.Scopes {
		i := slices.IndexFunc(u.Scopes, func(s UsageScope) bool { return s.Scope == scope })
		if i < 0 {
			u.Scopes = append(u.Scopes, UsageScope{Scope: scope, Granted: true})
			continue
		}
		u.Scopes[i].Granted = true
	}
	slices.SortFunc(u.Scopes, func(a, b UsageScope) int {
		if a.Granted == b.Granted {
			return cmp.Compare(a.Scope, b.Scope)
		}
		if a.Granted {
			return -1
		}
		return 1
	})
	u.rotation(now)
}

// rotation keeps the secrets that work, of a key that has more than one.
func (u *Usage) rotation(now time.Time) {
	live := u.Subject.LiveSecrets(now)
	known := u.Secrets
	u.Secrets = nil
	if len(live) < 2 {
		return
	}
	for _, secret := range live {
		one := UsageSecret{KeySecret: secret}
		for _, k := range known {
			if k.ID == secret.ID {
				one.Requests, one.Recent, one.Use = k.Requests, k.Recent, k.Use
			}
		}
		u.Secrets = append(u.Secrets, one)
	}
}

// Covers is the part of the window that is known of; both are zero for none.
func (u *Usage) Covers() (since, until time.Time) {
	since, until = u.Since, u.Until
	if u.CountedSince.After(since) {
		since = u.CountedSince
	}
	if u.At.Before(until) {
		until = u.At
	}
	if u.CountedSince.IsZero() || !since.Before(until) {
		return time.Time{}, time.Time{}
	}
	return since, until
}

// UnusedScopes are those that the key has and did not use in the window.
func (u *Usage) UnusedScopes() []authz.Scope {
	var unused []authz.Scope
	for _, s := range u.Scopes {
		if s.Granted && s.Requests == 0 {
			unused = append(unused, s.Scope)
		}
	}
	return unused
}
