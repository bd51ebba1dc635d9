package authz

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// expiresSoon is how long before its end a key's decisions warn of it.
const expiresSoon = 14 * 24 * time.Hour

// Decision is the answer to a Check. The zero Decision denies. It is made for one
// check and belongs to whoever asked.
type Decision struct {
	Allow bool
	Code  Code
	// Status is the HTTP status for the end client; 200 for an allow.
	Status int
	// Key and Secret are nil while unknown. They are shared and must not be changed.
	Key    *Key
	Secret *KeySecret
	// Required and Missing are the scopes that the request needs, and those of them that the key lacks.
	Required []Scope
	Missing  []Scope
	// Route is the template that the path matched, or "".
	Route    string
	Reasons  []Reason
	Warnings []Reason
	// RateLimit is nil when no limit was asked.
	RateLimit *RateLimit
	// Headers are what the app sends on, in this order and spelling.
	Headers []Header
	// Problem is what the app sends as its body on a deny; nil on an allow.
	Problem        *Problem
	ID             DecisionID
	PolicyRevision string
	Degraded       Degraded
	// Cause tells the log why it could not be decided; nil otherwise.
	Cause error

	at time.Time
	// asked tells that policy was asked, cataloged is Verdict's.
	asked, cataloged bool
}

// Shape is what policy saw of q; the zero Shape when it was not asked.
func (d *Decision) Shape(q *Check) Shape {
	if !d.asked {
		return Shape{}
	}
	return ShapeOf(d.Key, q, &Verdict{Route: d.Route, Cataloged: d.cataloged, Required: d.Required, Revision: d.PolicyRevision})
}

// Degraded tells which parts did not answer and were stood in for.
type Degraded struct{ Limiter, Store bool }

// Header is one HTTP header in exactly the spelling that goes out.
type Header struct{ Name, Value string }

// Problem is a problem document (RFC 9457) for the end client.
type Problem struct {
	Type   string
	Title  string
	Status int
	Code   Code
	Detail string
	// Required and Missing are set for insufficient_scope alone.
	Required, Missing []Scope
	// RetryAfter is in seconds, and set for rate_limited alone, with Policies.
	RetryAfter int
	// Policies are the names of the limits that were exceeded
	// (draft-ietf-httpapi-ratelimit-headers, "violated-policies").
	Policies []string
}

// RateLimit reports one limit: the one that refused, else the one with the least remaining.
type RateLimit struct {
	Limit
	// Remaining is in units.
	Remaining int
	// ResetSeconds is when the bucket is full again, in seconds from now, rounded up.
	ResetSeconds int
	// RetryAfterSeconds is 0 for an allow.
	RetryAfterSeconds int
	Mode              LimiterMode

	resetUnix int64
	nextUnit  int
}

func newRateLimit(l Limit, c Charge, now time.Time) *RateLimit {
	r := &RateLimit{
		Limit:        l,
		Remaining:    l.Remaining(c.ResetAfter),
		ResetSeconds: CeilSeconds(c.ResetAfter),
		Mode:         c.Mode,
		nextUnit:     l.NextUnit(c.ResetAfter),
	}
	full := now.Add(c.ResetAfter)
	r.resetUnix = full.Unix()
	if full.Nanosecond() > 0 {
		r.resetUnix++
	}
	if !c.Allowed {
		r.RetryAfterSeconds = max(CeilSeconds(c.RetryAfter), 1)
	}
	return r
}

func (d *Decision) deny(code Code, message string) {
	d.Allow, d.Code, d.Status = false, code, code.Status()
	d.Reasons = append([]Reason{{Code: code, Message: message}}, d.Reasons...)
}

// undecided is for what could not be decided, which denies.
func (d *Decision) undecided(message string, cause error) {
	d.Cause = cause
	d.deny(CodeUnavailable, message)
}

func (d *Decision) limited(r *RateLimit) {
	d.deny(CodeRateLimited, fmt.Sprintf("The limit of %d per %d seconds is used up; retry in %d s.",
		r.Rate.Rate, int(r.Period/time.Second), r.RetryAfterSeconds))
}

func (d *Decision) warnOfExpiry(now time.Time) {
	end, what := d.Key.ExpiresAt, "key"
	if s := d.Secret.ExpiresAt; !s.IsZero() && (end.IsZero() || s.Before(end)) {
		end, what = s, "secret"
	}
	if !end.IsZero() && end.Sub(now) <= expiresSoon {
		d.Warnings = append(d.Warnings, Reason{
			Code:    "expires_soon",
			Message: "This " + what + " expires at " + timestamp(end) + ".",
		})
	}
}

// finish makes headers and problem from what was decided.
func (c *Checker) finish(d *Decision) {
	if d.PolicyRevision == "" {
		d.PolicyRevision = c.policy.Revision()
	}
	d.Headers = make([]Header, 0, 7)
	if r := d.RateLimit; r != nil && r.Mode != LimiterClosed {
		d.Headers = r.appendHeaders(d.Headers)
	}
	if d.Code == CodeRateLimited {
		d.Headers = append(d.Headers, Header{"Retry-After", strconv.Itoa(d.RateLimit.RetryAfterSeconds)})
	}
	if d.Allow {
		return
	}
	if challenge := c.challenge(d); challenge != "" {
		d.Headers = append(d.Headers, Header{"WWW-Authenticate", challenge})
	}
	d.Problem = c.problem(d)
}

func (r *RateLimit) appendHeaders(h []Header) []Header {
	burst := strconv.Itoa(r.Burst)
	remaining := strconv.Itoa(r.Remaining)
	state := `"` + r.Name + `";r=` + remaining
	if r.nextUnit > 0 {
		state += ";t=" + strconv.Itoa(r.nextUnit)
	}
	return append(h,
		Header{"X-RateLimit-Limit", burst},
		Header{"X-RateLimit-Remaining", remaining},
		Header{"X-RateLimit-Reset", strconv.FormatInt(r.resetUnix, 10)},
		Header{"RateLimit-Policy", `"` + r.Name + `";q=` + burst + ";w=" + strconv.Itoa(r.Window())},
		Header{"RateLimit", state},
	)
}

// challenge follows RFC 6750 §3: no error code when no key was presented.
func (c *Checker) challenge(d *Decision) string {
	base := `Bearer realm="` + c.realm + `"`
	switch {
	case d.Status == 401 && d.Code == CodeKeyMissing && !c.opaque401:
		return base
	case d.Status == 401:
		return base + `, error="invalid_token"`
	case d.Code == CodeInsufficientScope:
		return base + `, error="insufficient_scope", scope="` + joinScopes(d.Required) + `"`
	}
	return ""
}

func joinScopes(scopes []Scope) string {
	var b strings.Builder
	for i, s := range scopes {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(string(s))
	}
	return b.String()
}

// problemType is the prefix of our problem types. It names, it does not locate
// (RFC 9457 §3.1.1).
const problemType = "urn:keystile:problem:"

// quotaExceeded is the registered type of draft-ietf-httpapi-ratelimit-headers.
const quotaExceeded = "https://iana.org/assignments/http-problem-types#quota-exceeded"

func (c *Checker) problem(d *Decision) *Problem {
	code := d.Code
	if code == CodeKeyUnknown || code == CodeKeyMalformed || c.opaque401 && d.Status == 401 {
		code = codeInvalidKey
	}
	p := &Problem{Type: problemType + string(code), Title: code.Title(), Status: d.Status, Code: code}
	switch code {
	case CodeKeyMissing:
		p.Detail = "Send your API key in the Authorization header as a Bearer token."
	case codeInvalidKey:
		p.Detail = "The API key is not accepted. Check that it was copied whole and is meant for this API."
	case CodeKeyRevoked, CodeKeyExpired:
		p.Detail = d.Reasons[0].Message + " Use another key of your organization, or create one."
		if d.secretEnded() {
			p.Detail = d.Reasons[0].Message + " Use the newest secret of the same key; if nobody has it, have the key rotated."
		}
	case CodeKeyDisabled:
		p.Detail = "The API key is disabled. An administrator of your organization can enable it."
	case CodeOrganizationSuspended:
		p.Detail = "The organization that owns this API key is suspended."
	case CodeInsufficientScope:
		p.Detail = d.Reasons[0].Message
		p.Required, p.Missing = d.Required, d.Missing
	case CodeRateLimited:
		p.Type = quotaExceeded
		p.Detail = d.Reasons[0].Message
		p.RetryAfter = d.RateLimit.RetryAfterSeconds
		p.Policies = []string{d.RateLimit.Name}
	case CodeUnavailable:
		p.Detail = "It could not be decided whether this request is allowed. Try again."
	default:
		p.Detail = d.Reasons[0].Message
	}
	return p
}
