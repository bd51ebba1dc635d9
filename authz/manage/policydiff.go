package manage

import (
	"context"
	"errors"
	"time"

	"github.com/supportstation/keystile/authz"
)

// actionPolicyDiff is asking what another policy would change.
const actionPolicyDiff = "policy.diff"

const (
	// DefaultDiffWindow is how much of what was recorded is asked about unless told otherwise.
	DefaultDiffWindow = 7 * 24 * time.Hour
	// maxDiffWindow bounds it.
	maxDiffWindow = 400 * 24 * time.Hour
)

// RecordedFilter picks recorded requests, by full hours.
type RecordedFilter struct {
	// Organization is zero for all.
	Organization authz.OrganizationID
	// Since is included, Until is not.
	Since, Until time.Time
}

// PolicyDiffInput is another policy, Files or the Revision of one that was activated before,
// and what to ask it.
type PolicyDiffInput struct {
	Files    map[string]string
	Revision string
	// Organization is zero for all.
	Organization authz.OrganizationID
	// Since and Until are DefaultDiffWindow ago and now when they are zero. Requests are
	// recorded by the hour: the hour of either is asked about whole.
	Since, Until time.Time
}

// DiffPolicy asks the policy that is in force here, and another one, about recorded
// requests, and tells what would change. told hears how many of how many were asked about;
// it may be nil. Platform admins alone.
func (s *Service) DiffPolicy(ctx context.Context, r Request, in PolicyDiffInput, told func(asked, of int64)) (*authz.PolicyDiff, error) {
	if err := s.may(ctx, r, operation{action: actionPolicyDiff}, nil, nil); err != nil {
		return nil, err
	}
	switch {
	case s.policies == nil:
		return nil, errNoPolicies()
	case (in.Revision == "") == (in.Files == nil):
		return nil, invalid("missing_field", "/files", "send either files, or the revision of a policy that was activated before")
	}
	var archive []byte // nil with a revision is the built-in one
	if in.Revision != "" && in.Revision != s.policies.BuiltIn() {
		var err error
		if archive, err = s.keptPolicy(ctx, r, in.Revision); err != nil {
			return nil, err
		}
	}
	if told == nil {
		told = func(int64, int64) {}
	}
	var f RecordedFilter
	var of int64
	// A transaction is open no longer than it is read from.
	traffic := func(ctx context.Context, each func(authz.Recorded) error) error {
		return s.read(ctx, func(ctx context.Context, re Reader) (err error) {
			if f, err = in.window(re.Now()); err != nil {
				return err
			}
			if !in.Organization.IsZero() {
				if _, err := re.Organization(ctx, TenantOf(r.Actor), in.Organization); err != nil {
					return err //nolint:wrapcheck // read does
				}
			}
			if of, err = re.RecordedRequests(ctx, TenantOf(r.Actor), f); err != nil {
				return err //nolint:wrapcheck // read does
			}
			told(0, of)
			return re.Recorded(ctx, TenantOf(r.Actor), f, each) //nolint:wrapcheck // read does
		})
	}
	diff, err := s.policies.Replay(ctx, in.Files, archive, traffic, func(asked int64) { told(asked, of) })
	var unfit *authz.PolicyRefusedError
	if errors.As(err, &unfit) {
		return nil, unloadable(unfit.Report)
	}
	if err != nil {
		return nil, translate(err)
	}
	diff.Since, diff.Until = f.Since, f.Until
	return diff, nil
}

// window is what is asked about, in full hours.
func (in PolicyDiffInput) window(now time.Time) (RecordedFilter, error) {
	f := RecordedFilter{Organization: in.Organization, Since: in.Since.UTC(), Until: in.Until.UTC()}
	if in.Until.IsZero() {
		f.Until = now
	}
	if in.Since.IsZero() {
		f.Since = f.Until.Add(-DefaultDiffWindow)
	}
	f.Since = f.Since.Truncate(time.Hour)
	if whole := f.Until.Truncate(time.Hour); !whole.Equal(f.Until) {
		f.Until = whole.Add(time.Hour)
	}
	switch {
	case !f.Since.Before(f.Until):
		return f, invalid("out_of_range", "/since", "must be before until")
	case f.Until.Sub(f.Since) > maxDiffWindow:
		return f, invalid("out_of_range", "/since", "must be at most 400 days before until")
	}
	return f, nil
}
