package manage

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/supportstation/keystile/authz"
)

// The quotas of one key or organization.
const (
	maxName          = 100
	maxExternalID    = 128
	maxMetadataBytes = 4096
	maxMetadataDepth = 5
	maxScopes        = 50
	maxCIDRs         = 64
	// maxLifetimeDays bounds every expiry.
	maxLifetimeDays = 36_500
	day             = 24 * time.Hour
)

// checkName refuses what people could not tell apart or see.
func checkName(name string) error {
	n := utf8.RuneCountInString(name)
	if n < 1 || n > maxName || !utf8.ValidString(name) {
		return outOfRange("/name", "must have 1 to 100 characters")
	}
	if strings.TrimSpace(name) != name {
		return outOfRange("/name", "must not begin or end with white space")
	}
	for _, r := range name {
		// Format characters turn the direction of text or cannot be seen, and neither
		// can the fillers of Hangul and the empty cell of Braille, which are letters.
		if !unicode.IsPrint(r) || strings.ContainsRune("\u115f\u1160\u3164\uffa0\u2800", r) {
			return outOfRange("/name", "must not contain control or invisible characters")
		}
	}
	return notSecret("/name", name)
}

// notSecret refuses a token where none belongs; secrets of keys are refused by
// Service.notKey, which knows their form.
func notSecret(pointer, text string) error {
	if authz.CallerTokens().Within(text) || authz.AdminTokens().Within(text) {
		return outOfRange(pointer, "must not hold a secret")
	}
	return nil
}

// notKey refuses a key's secret where none belongs.
func (s *Service) notKey(pointer, text string) error {
	if s.format.Within(text) || s.foreign != nil && s.foreign(text) {
		return outOfRange(pointer, "must not be a secret")
	}
	return nil
}

func checkExternalID(id string) error {
	if len(id) > maxExternalID {
		return outOfRange("/external_id", "must have at most 128 characters")
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return outOfRange("/external_id", "must be printable ASCII without spaces")
		}
	}
	return notSecret("/external_id", id)
}

// checkOrganizationExternalID refuses what is an organization's id, too: a check may name the owner
// of a resource by either, and who took another's id would be taken for the other.
func checkOrganizationExternalID(id string) error {
	if authz.IsOrganizationID(id) {
		return outOfRange("/external_id", "must not have the form of an organization's id, such as org_ and 26 characters")
	}
	return checkExternalID(id)
}

// checkMetadata takes a JSON object and returns it compact. nil is {}.
func checkMetadata(raw []byte) (authz.Metadata, error) {
	if len(raw) == 0 {
		return "", nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil || compact.Bytes()[0] != '{' {
		return "", outOfRange("/metadata", "must be a JSON object")
	}
	if compact.Len() > maxMetadataBytes {
		return "", outOfRange("/metadata", "must have at most 4096 bytes as JSON")
	}
	depth := 0
	decoder := json.NewDecoder(bytes.NewReader(compact.Bytes()))
	decoder.UseNumber()
	for {
		token, err := decoder.Token()
		if err != nil {
			break
		}
		switch t := token.(type) {
		case json.Delim:
			if t == '{' || t == '[' {
				depth++
			} else {
				depth--
			}
		case string:
			if strings.ContainsRune(t, 0) {
				return "", outOfRange("/metadata", "must not contain NUL characters")
			}
		case json.Number:
			if !plainNumber(string(t)) {
				return "", outOfRange("/metadata", "must not contain numbers of more than 40 characters, or with exponents beyond 300; send them as strings")
			}
		}
		if depth > maxMetadataDepth {
			return "", outOfRange("/metadata", "must be at most 5 levels deep")
		}
	}
	if compact.String() == "{}" {
		return "", nil
	}
	return authz.Metadata(compact.String()), nil
}

// plainNumber tells whether a JSON number can be written out: policy computes with it.
func plainNumber(text string) bool {
	if len(text) > 40 {
		return false
	}
	i := strings.IndexAny(text, "eE")
	if i < 0 {
		return true
	}
	exponent, err := strconv.Atoi(strings.TrimPrefix(text[i+1:], "+"))
	return err == nil && exponent >= -300 && exponent <= 300
}

// checkScopes takes a subset of the catalogue and returns it sorted.
func checkScopes(c authz.Catalogue, scopes []authz.Scope) ([]authz.Scope, error) {
	if len(scopes) == 0 {
		return nil, outOfRange("/scopes", "must name at least one scope; none is preselected")
	}
	if len(scopes) > maxScopes {
		return nil, outOfRange("/scopes", "must name at most 50 scopes")
	}
	sorted := slices.Clone(scopes)
	slices.Sort(sorted)
	if len(slices.Compact(slices.Clone(sorted))) != len(sorted) {
		return nil, outOfRange("/scopes", "must name each scope once")
	}
	for _, s := range sorted {
		if !c.Has(s) {
			return nil, outOfRange("/scopes", "must be of the catalogue; GET /v1/scopes lists it")
		}
	}
	return sorted, nil
}

// ParseCIDRs reads networks of either family, or single addresses.
func ParseCIDRs(texts []string) ([]netip.Prefix, error) {
	if len(texts) > maxCIDRs {
		return nil, outOfRange("/allowed_cidrs", "must name at most 64 networks")
	}
	const form = "must be networks like 203.0.113.0/24 or 2001:db8::/32, or single addresses"
	out := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil || addr.Zone() != "" {
				return nil, outOfRange("/allowed_cidrs", form)
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		switch {
		case prefix.Addr().Is4In6():
			return nil, outOfRange("/allowed_cidrs", "must name IPv4 networks in their own form, not mapped into IPv6")
		case prefix.Masked() != prefix:
			return nil, outOfRange("/allowed_cidrs", "must not have bits behind the length of its prefix, as 10.0.0.1/8 has")
		}
		out = append(out, prefix)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}

// checkRate bounds a key's own limit; organization roles stay within the plan.
func checkRate(a *authz.Admin, plan authz.Plan, rate *authz.Rate) error {
	if rate == nil {
		return nil
	}
	if err := rate.Validate(); err != nil {
		return outOfRange("/rate_limit", "must have a rate of at most 10,000 a second, whole seconds and a burst that refills within 366 days")
	}
	if a.Role == authz.RolePlatformAdmin {
		return nil
	}
	// rate/period ≤ plan.rate/plan.period, without rounding
	if int64(rate.Rate)*int64(plan.Rate.Period/time.Second) > int64(plan.Rate.Rate)*int64(rate.Period/time.Second) ||
		rate.Burst > plan.Rate.Burst {
		return &authz.Error{
			Kind: authz.KindForbidden, Code: "exceeds_plan", Pointer: "/rate_limit",
			Message: "the plan's rate and burst bound those of its keys; GET /v1/scopes lists the plans",
		}
	}
	return nil
}

// checkExpiry takes a moment to come.
func checkExpiry(now, at time.Time) error {
	if !at.After(now) {
		return outOfRange("/expires_at", "must be in the future")
	}
	if at.Sub(now) > maxLifetimeDays*day {
		return outOfRange("/expires_at", "must be within 100 years")
	}
	return nil
}

// lifetime returns days as a duration; 0 days is none.
func lifetime(days, maxDays int) (time.Duration, error) {
	if days < 0 || days > maxDays {
		return 0, outOfRange("/expires_in_days", "must be a number of days within the bounds of the documentation")
	}
	return time.Duration(days) * day, nil
}
