package authz

import "time"

// Facts are evidence as policy sees it: words, and whole numbers in the place of times and
// counts. There is no name and no id in them, so that keys with the same facts are judged once.
type Facts struct {
	Environment Environment
	State       KeyState
	// Expires tells that the key, or its newest secret, has an end; Rotated that it had another
	// secret before.
	Expires, Rotated bool
	Figures          [Figures]int64
	Scopes           []ScopeFacts
}

// ScopeFacts are those of one scope.
type ScopeFacts struct {
	Scope   Scope
	Granted bool
	Figures [ScopeFigures]int64
}

// Figure is a number of a key's facts.
type Figure int

// The figures of a key. Days are whole ones up to the end of the window.
const (
	FigureCoveredDays Figure = iota
	FigureAgeDays
	FigureSecretAgeDays
	// FigureUsedForDays is since the first use, FigureIdleDays since the last one; a key that
	// was never used is idle since there was one.
	FigureUsedForDays
	FigureIdleDays
	FigureDaysUsed
	FigureAllowed
	FigureDenied
	FigureNetworks
	// FigureNetworkedDays is since the first day from which a network of the key is known.
	FigureNetworkedDays
	FigureLimitedDays
	// FigureLimitedPercent is how many of the allowed and the limited requests were limited.
	FigureLimitedPercent
	FigureExpiredRequests
	FigureExpiredDays
	FigureRevokedRequests
	FigureRevokedDays
	FigureMismatchedRequests
	FigureMismatchedDays
	FigureBrowserRequests
	FigureBrowserDays
	// Figures is how many there are.
	Figures
)

// ScopeFigure is a number of a scope's facts.
type ScopeFigure int

// The figures of a scope.
const (
	ScopeRequests ScopeFigure = iota
	ScopeDaysUsed
	ScopeIdleDays
	// ScopeUsedForDays is since the first use.
	ScopeUsedForDays
	ScopeNetworks
	// ScopeNetworkAgeDays is since the key was first used from the oldest of the scope's networks.
	ScopeNetworkAgeDays
	// ScopeFigures is how many there are.
	ScopeFigures
)

// String is the name in the input of a policy, in its steps and in its texts.
func (f Figure) String() string {
	return [...]string{
		"covered_days", "age_days", "secret_age_days", "used_for_days", "idle_days", "days_used", "allowed_requests", "denied_requests",
		"networks", "networked_days", "limited_days", "limited_percent", "expired_requests", "expired_days", "revoked_requests", "revoked_days",
		"mismatched_requests", "mismatched_days", "browser_requests", "browser_days",
	}[f]
}

// String is the name in the input of a policy; in its steps and texts it is scope_ before that.
func (f ScopeFigure) String() string {
	return [...]string{"requests", "days_used", "idle_days", "used_for_days", "networks", "network_age_days"}[f]
}

// ScopePrefix stands before the name of a ScopeFigure where one of a key could be meant.
const ScopePrefix = "scope_"

// Facts are the evidence's, exactly.
func (e *Evidence) Facts() Facts {
	until := e.Window.Until
	f := Facts{
		Environment: e.Environment, State: e.State, Expires: !e.ExpiresAt.IsZero(), Rotated: !e.RotatedAt.IsZero(),
		Scopes: make([]ScopeFacts, len(e.Scopes)),
	}
	secretSince := e.CreatedAt
	if f.Rotated {
		secretSince = e.RotatedAt
	}
	f.Figures = [Figures]int64{
		FigureCoveredDays: int64(e.CoveredDays()), FigureAgeDays: days(e.CreatedAt, until), FigureSecretAgeDays: days(secretSince, until),
		FigureUsedForDays: days(e.FirstUsedAt, until), FigureIdleDays: idle(e.LastUsedAt, e.CreatedAt, until),
		FigureDaysUsed: int64(e.DaysUsed), FigureAllowed: e.Allowed.Requests, FigureDenied: e.Denied.Requests,
		FigureNetworks: int64(e.Networks), FigureNetworkedDays: days(e.NetworksSince, until),
		FigureLimitedDays: int64(e.Limited.Days), FigureLimitedPercent: percent(e.Limited.Requests, e.Allowed.Requests),
		FigureExpiredRequests: e.Expired.Requests, FigureExpiredDays: int64(e.Expired.Days),
		FigureRevokedRequests: e.Revoked.Requests, FigureRevokedDays: int64(e.Revoked.Days),
		FigureMismatchedRequests: e.Mismatched.Requests, FigureMismatchedDays: int64(e.Mismatched.Days),
		FigureBrowserRequests: e.Browser.Requests, FigureBrowserDays: int64(e.Browser.Days),
	}
	for i := range e.Scopes {
		s := &e.Scopes[i]
		f.Scopes[i] = ScopeFacts{Scope: s.Scope, Granted: s.Granted, Figures: [ScopeFigures]int64{
			ScopeRequests: s.Requests, ScopeDaysUsed: int64(s.DaysUsed), ScopeIdleDays: idle(s.LastUsedAt, e.CreatedAt, until),
			ScopeUsedForDays: days(s.FirstUsedAt, until), ScopeNetworks: int64(s.Networks), ScopeNetworkAgeDays: days(s.NetworkSince, until),
		}}
	}
	return f
}

// days are whole ones; 0 since no time at all.
func days(since, until time.Time) int64 {
	if since.IsZero() {
		return 0
	}
	return int64(wholeDays(since, until))
}

func idle(last, created, until time.Time) int64 {
	if last.IsZero() {
		last = created
	}
	return days(last, until)
}

func percent(part, rest int64) int64 {
	if part == 0 {
		return 0
	}
	return 100 * part / (part + rest)
}

// EvidenceSteps are the values that figures are rounded down to before policy sees them: the
// policy's own, each list from its lowest to its highest, above 0. A figure without any is
// seen as 0.
type EvidenceSteps struct {
	Key   [Figures][]int64
	Scope [ScopeFigures][]int64
}

// MaxSteps bounds the steps of one figure.
const MaxSteps = 64

// Round rounds the facts down to the steps, in place.
func (f *Facts) Round(s *EvidenceSteps) {
	for i := range f.Figures {
		f.Figures[i] = floor(f.Figures[i], s.Key[i])
	}
	for n := range f.Scopes {
		scope := &f.Scopes[n]
		for i := range scope.Figures {
			scope.Figures[i] = floor(scope.Figures[i], s.Scope[i])
		}
	}
}

func floor(n int64, steps []int64) int64 {
	at := int64(0)
	for _, step := range steps {
		if step > n {
			break
		}
		at = step
	}
	return at
}
