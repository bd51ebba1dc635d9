package authz

import "time"

// Evidence is what is known of one key and of how it was used in a window of time: what the
// audit of least privilege judges by. It holds nothing of a secret but its hint.
type Evidence struct {
	Organization     OrganizationID `json:"organization_id"`
	OrganizationName string         `json:"organization_name"`
	Key              KeyID          `json:"key_id"`
	KeyName          string         `json:"key_name"`
	// Hint is of the newest secret, for example sk_live_4fGh…9aBc.
	Hint        string      `json:"hint"`
	Environment Environment `json:"environment"`
	// State is as of Window.Until.
	State KeyState `json:"state"`
	// Version is that of the key's record, for a change that must not come too late.
	Version int `json:"version"`

	CreatedAt time.Time `json:"created_at"`
	// ScopesSince is when a scope was last given to the key; zero when it has those that it was
	// made with, or fewer.
	ScopesSince time.Time `json:"scopes_since,omitzero"`
	// UsableSince is when the key could be used again that was disabled or expired, or whose
	// organization was suspended; zero when it never was.
	UsableSince time.Time `json:"usable_since,omitzero"`
	// ExpiresAt is the earlier end of the key and of its newest secret; zero for never.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// RevokedAt is zero while the key is not revoked.
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	// RotatedAt is when the newest secret was made; zero for a key that has its first one only.
	RotatedAt time.Time `json:"rotated_at,omitzero"`
	// FirstUsedAt and LastUsedAt are of secrets that worked, whatever policy and limits then
	// said, as far back as it was noted; zero for never.
	FirstUsedAt time.Time `json:"first_used_at,omitzero"`
	LastUsedAt  time.Time `json:"last_used_at,omitzero"`

	// Window is what was asked about.
	Window Window `json:"window"`
	// DaysUsed is the number of UTC days with at least one allowed check.
	DaysUsed int `json:"days_used"`
	// Allowed and Denied are requests; Limited are those of Denied that were rate limited.
	Allowed Counted `json:"allowed"`
	Denied  Counted `json:"denied"`
	Limited Counted `json:"limited"`
	// Expired and Revoked were made with one secret that had ended, of several the one with the
	// most days: that each is called for a day more is nobody's habit. Mismatched are from
	// where the other environment is served, Browser from a browser, whatever was decided.
	Expired    Counted `json:"expired"`
	Revoked    Counted `json:"revoked"`
	Mismatched Counted `json:"mismatched"`
	Browser    Counted `json:"browser"`
	// Networks is from how many networks of end clients allowed checks came. NetworksCapped
	// tells that on some day there were too many to tell apart. NetworksSince is the first day
	// from which one is known, in the window or before; zero for none.
	Networks       int       `json:"networks"`
	NetworksCapped bool      `json:"networks_capped,omitempty"`
	NetworksSince  time.Time `json:"networks_since,omitzero"`
	// Scopes are those granted and those exercised, sorted by name.
	Scopes []ScopeEvidence `json:"scopes"`
}

// KeyState is how a key stands. The zero value is none.
type KeyState string

// The states, of which the first that is so counts.
const (
	KeyRevoked   KeyState = "revoked"
	KeyExpired   KeyState = "expired"
	KeyDisabled  KeyState = "disabled"
	KeySuspended KeyState = "suspended" // its organization is
	KeyActive    KeyState = "active"
)

// Counted is how often something happened, and on how many UTC days.
type Counted struct {
	Requests int64 `json:"requests"`
	Days     int   `json:"days"`
	// LastOn is the last of those days, zero for none.
	LastOn time.Time `json:"last_on,omitzero"`
}

// ScopeEvidence is how one scope of a key was used in the window: by allowed checks that
// required it.
type ScopeEvidence struct {
	Scope Scope `json:"scope"`
	// Granted tells that the key has it now.
	Granted bool `json:"granted"`
	// Requests and DaysUsed are of the window.
	Requests int64 `json:"requests"`
	DaysUsed int   `json:"days_used"`
	// FirstUsedAt and LastUsedAt are as far back as it was noted; zero for never.
	FirstUsedAt time.Time `json:"first_used_at,omitzero"`
	LastUsedAt  time.Time `json:"last_used_at,omitzero"`
	// Networks is from how many networks it was used in the window, NetworkSince when the key
	// was first used, for whatever scope, from the oldest of them; zero when that is not known.
	Networks     int       `json:"networks"`
	NetworkSince time.Time `json:"network_since,omitzero"`
}

// Window is a span of time that was asked about, and how much of it was counted.
type Window struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	// RecordedSince is when counting began, or the oldest that is kept; zero when nothing is.
	RecordedSince time.Time `json:"recorded_since,omitzero"`
}

// day is a UTC day: UTC has no others.
const day = 24 * time.Hour

// CoveredSince is from when on the window tells about the key: not before counting began, not
// before there was a key that could be used, and not before it had its scopes: what was given
// yesterday is not unused.
func (e *Evidence) CoveredSince() time.Time {
	since := e.Window.Since
	if e.Window.RecordedSince.IsZero() {
		return e.Window.Until
	}
	for _, at := range []time.Time{e.Window.RecordedSince, e.CreatedAt, e.ScopesSince, e.UsableSince} {
		if at.After(since) {
			since = at
		}
	}
	if since.After(e.Window.Until) {
		return e.Window.Until
	}
	return since
}

// CoveredDays is how many whole days that is.
func (e *Evidence) CoveredDays() int { return wholeDays(e.CoveredSince(), e.Window.Until) }

// wholeDays is from one time to a later one; 0 for an earlier one.
func wholeDays(from, to time.Time) int {
	if !from.Before(to) {
		return 0
	}
	return int(to.Sub(from) / day)
}
