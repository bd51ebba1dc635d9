package server

import (
	"strconv"
	"unicode/utf8"

	"github.com/supportstation/keystile/authz"
)

// appendDecision appends a decision's JSON document, every field always present.
// It is written by hand because it is the hot path; a test holds it to the
// contract's document and to encoding/json.
func appendDecision(b []byte, d *authz.Decision) []byte {
	b = append(b, `{"allow":`...)
	b = strconv.AppendBool(b, d.Allow)
	b = append(b, `,"code":`...)
	b = appendString(b, string(d.Code))
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(d.Status), 10)
	b = appendOwner(b, d)
	b = append(b, `,"required_scopes":`...)
	b = appendScopes(b, d.Required)
	b = append(b, `,"missing_scopes":`...)
	b = appendScopes(b, d.Missing)
	b = append(b, `,"route":`...)
	b = appendOptional(b, d.Route)
	b = append(b, `,"reasons":`...)
	b = appendReasons(b, d.Reasons)
	b = append(b, `,"warnings":`...)
	b = appendReasons(b, d.Warnings)
	b = append(b, `,"rate_limit":`...)
	b = appendRateLimit(b, d.RateLimit)
	b = append(b, `,"headers":{`...)
	for i, h := range d.Headers {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, h.Name)
		b = append(b, ':')
		b = appendString(b, h.Value)
	}
	b = append(b, `},"problem":`...)
	b = appendProblem(b, d)
	b = append(b, `,"decision_id":"`...)
	b = d.ID.AppendTo(b)
	b = append(b, `","policy_revision":`...)
	b = appendOptional(b, d.PolicyRevision)
	b = append(b, `,"degraded":`...)
	switch d.Degraded {
	case authz.Degraded{Limiter: true, Store: true}:
		b = append(b, `["limiter","store"]`...)
	case authz.Degraded{Limiter: true}:
		b = append(b, `["limiter"]`...)
	case authz.Degraded{Store: true}:
		b = append(b, `["store"]`...)
	default:
		b = append(b, `[]`...)
	}
	return append(b, '}', '\n')
}

// appendOwner appends organization, key and scopes, null while unknown.
func appendOwner(b []byte, d *authz.Decision) []byte {
	if d.Key == nil || d.Key.Organization == nil || d.Secret == nil {
		return append(b, `,"organization":null,"key":null,"scopes":[]`...)
	}
	k, o := d.Key, d.Key.Organization
	b = append(b, `,"organization":{"id":"`...)
	b = o.ID.AppendTo(b)
	b = append(b, `","external_id":`...)
	b = appendOptional(b, o.ExternalID)
	b = append(b, `,"name":`...)
	b = appendString(b, o.Name)
	b = append(b, `,"plan":`...)
	b = appendString(b, o.Plan)
	b = append(b, `},"key":{"id":"`...)
	b = k.ID.AppendTo(b)
	b = append(b, `","secret_id":"`...)
	b = d.Secret.ID.AppendTo(b)
	b = append(b, `","name":`...)
	b = appendString(b, k.Name)
	b = append(b, `,"hint":`...)
	b = appendString(b, d.Secret.Hint)
	b = append(b, `,"environment":`...)
	b = appendString(b, string(k.Environment))
	b = append(b, `,"metadata":`...)
	b = append(b, k.Metadata.JSON()...)
	b = append(b, `},"scopes":`...)
	return appendScopes(b, k.Scopes)
}

func appendRateLimit(b []byte, r *authz.RateLimit) []byte {
	if r == nil {
		return append(b, "null"...)
	}
	b = append(b, `{"name":`...)
	b = appendString(b, r.Name)
	b = append(b, `,"limit":`...)
	b = strconv.AppendInt(b, int64(r.Burst), 10)
	b = append(b, `,"remaining":`...)
	b = strconv.AppendInt(b, int64(r.Remaining), 10)
	b = append(b, `,"period_seconds":`...)
	b = strconv.AppendInt(b, int64(r.Window()), 10)
	b = append(b, `,"reset_seconds":`...)
	b = strconv.AppendInt(b, int64(r.ResetSeconds), 10)
	b = append(b, `,"retry_after_seconds":`...)
	b = strconv.AppendInt(b, int64(r.RetryAfterSeconds), 10)
	b = append(b, `,"mode":`...)
	b = appendString(b, string(r.Mode))
	return append(b, '}')
}

// appendProblem appends the end client's problem, null for an allow.
func appendProblem(b []byte, d *authz.Decision) []byte {
	p := d.Problem
	if p == nil {
		return append(b, "null"...)
	}
	b = append(b, `{"type":`...)
	b = appendString(b, p.Type)
	b = append(b, `,"title":`...)
	b = appendString(b, p.Title)
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(p.Status), 10)
	b = append(b, `,"code":`...)
	b = appendString(b, string(p.Code))
	b = append(b, `,"detail":`...)
	b = appendString(b, p.Detail)
	if len(p.Required) > 0 {
		b = append(b, `,"required_scopes":`...)
		b = appendScopes(b, p.Required)
		b = append(b, `,"missing_scopes":`...)
		b = appendScopes(b, p.Missing)
	}
	if len(p.Policies) > 0 {
		b = append(b, `,"retry_after_seconds":`...)
		b = strconv.AppendInt(b, int64(p.RetryAfter), 10)
		b = append(b, `,"violated-policies":[`...)
		for i, name := range p.Policies {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, name)
		}
		b = append(b, ']')
	}
	b = append(b, `,"decision_id":"`...)
	b = d.ID.AppendTo(b)
	return append(b, '"', '}')
}

func appendReasons(b []byte, reasons []authz.Reason) []byte {
	b = append(b, '[')
	for i, r := range reasons {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"code":`...)
		b = appendString(b, string(r.Code))
		b = append(b, `,"message":`...)
		b = appendString(b, r.Message)
		b = append(b, '}')
	}
	return append(b, ']')
}

func appendScopes(b []byte, scopes []authz.Scope) []byte {
	b = append(b, '[')
	for i, s := range scopes {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, string(s))
	}
	return append(b, ']')
}

// appendOptional appends a string, or null for the empty one.
func appendOptional(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	return appendString(b, s)
}

// appendString appends a JSON string (RFC 8259 §7). Like encoding/json it escapes
// <, > and &, so that an answer pasted into a page stays inert, and replaces what
// is not UTF-8.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 || r == '\u2028' || r == '\u2029' {
			b = append(b, s[start:i]...)
			b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
			start = i + size
		}
		i += size
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
