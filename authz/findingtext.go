package authz

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Texts of findings have placeholders for what policy must not know, so that it says the same
// of many keys: {name} is a figure (of the finding's scope: {scope_name}), a date, or a list
// of scopes; {name noun} is a figure with its noun, such as "1 day" or "92 days".

// FillFinding puts a key's evidence, of which f are the facts, into the texts of a finding.
func (e *Evidence) FillFinding(f *Facts, finding *Finding) error {
	of := subject{e, f, finding.Scopes}
	var err error
	if finding.Message, err = fillText(finding.Message, of.value); err != nil {
		return err
	}
	finding.Recommendation, err = fillText(finding.Recommendation, of.value)
	return err
}

// CheckText tells what is wrong with the placeholders of a finding's texts.
func (f *Finding) CheckText() error {
	e := Evidence{Scopes: make([]ScopeEvidence, len(f.Scopes))}
	for i, s := range f.Scopes {
		e.Scopes[i].Scope = s
	}
	facts := e.Facts()
	copied := *f
	return e.FillFinding(&facts, &copied)
}

// fillText replaces placeholders. number tells that a noun may follow.
func fillText(text string, value func(name string) (word string, number int64, isNumber, ok bool)) (string, error) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		inside, after, closed := strings.Cut(rest, "}")
		if !closed {
			return "", fmt.Errorf("a placeholder is not closed: {%s", inside)
		}
		text = after
		name, noun, _ := strings.Cut(inside, " ")
		word, n, isNumber, ok := value(name)
		switch {
		case !ok:
			return "", fmt.Errorf("there is no placeholder {%s} here", name)
		case noun != "" && !isNumber:
			return "", fmt.Errorf("{%s} is no number, so that no noun follows", name)
		case !isNumber:
			b.WriteString(word)
			continue
		}
		b.WriteString(grouped(n))
		if noun != "" {
			b.WriteString(" " + noun)
			if n != 1 {
				b.WriteByte('s')
			}
		}
	}
}

// subject is what texts are about.
type subject struct {
	evidence *Evidence
	facts    *Facts
	scopes   []Scope
}

func (s subject) value(name string) (word string, number int64, isNumber, ok bool) {
	if word, ok = s.word(name); ok {
		return word, 0, false, true
	}
	for f := range Figures {
		if f.String() == name {
			return "", s.facts.Figures[f], true, true
		}
	}
	bare, of := strings.CutPrefix(name, ScopePrefix)
	if !of || len(s.scopes) != 1 {
		return "", 0, false, false
	}
	for f := range ScopeFigures {
		if f.String() != bare {
			continue
		}
		for i := range s.facts.Scopes {
			if s.facts.Scopes[i].Scope == s.scopes[0] {
				return "", s.facts.Scopes[i].Figures[f], true, true
			}
		}
	}
	return "", 0, false, false
}

func (s subject) word(name string) (string, bool) {
	e := s.evidence
	switch name {
	case "scope", "scopes":
		if len(s.scopes) == 0 || name == "scope" && len(s.scopes) != 1 {
			return "", false
		}
		return listed(s.scopes), true
	case "environment":
		return string(e.Environment), true
	case "created_on":
		return date(e.CreatedAt), true
	case "expires_on":
		return date(e.ExpiresAt), true
	case "revoked_on":
		return date(e.RevokedAt), true
	case "rotated_on":
		return date(e.RotatedAt), true
	case "first_used_on":
		return date(e.FirstUsedAt), true
	case "last_used_on":
		return date(e.LastUsedAt), true
	case "expired_last_on":
		return date(e.Expired.LastOn), true
	case "revoked_last_on":
		return date(e.Revoked.LastOn), true
	case "mismatched_last_on":
		return date(e.Mismatched.LastOn), true
	case "browser_last_on":
		return date(e.Browser.LastOn), true
	case "limited_last_on":
		return date(e.Limited.LastOn), true
	}
	if len(s.scopes) != 1 {
		return "", false
	}
	for i := range e.Scopes {
		if e.Scopes[i].Scope != s.scopes[0] {
			continue
		}
		switch name {
		case "scope_first_used_on":
			return date(e.Scopes[i].FirstUsedAt), true
		case "scope_last_used_on":
			return date(e.Scopes[i].LastUsedAt), true
		}
	}
	return "", false
}

// date is a UTC day, "never" for none.
func date(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.DateOnly)
}

// listed is a list in a sentence.
func listed(scopes []Scope) string {
	var b strings.Builder
	for i, s := range scopes {
		switch {
		case i > 0 && i == len(scopes)-1:
			b.WriteString(" and ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(string(s))
	}
	return b.String()
}

// grouped is a number with a comma at each thousand.
func grouped(n int64) string {
	digits := strconv.FormatInt(n, 10)
	for at := len(digits) - 3; at > 0 && digits[at-1] != '-'; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}
