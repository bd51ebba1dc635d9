package audit

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/supportstation/keystile/authz"
)

// csvColumns are the names of what csvRow writes.
const csvColumns = "severity,code,confidence,organization_id,organization,key_id,key,hint,environment,state,scopes,message,recommendation,remedy," +
	"remove_scopes,proposed_scopes,covered_days,days_used,allowed,denied,networks,created_at,expires_at,rotated_at,last_used_at,since,until,recorded_since"

// csvRenderer writes a finding a line.
type csvRenderer struct {
	w     *bufio.Writer
	begun bool
}

func (r *csvRenderer) begin() {
	if !r.begun {
		r.begun = true
		r.row(strings.Split(csvColumns, ","))
	}
}

// Key implements Renderer.
func (r *csvRenderer) Key(k *authz.KeyFindings) error {
	r.begin()
	for i := range k.Findings {
		r.row(csvRow(k, &k.Findings[i]))
	}
	if _, err := r.w.Write(nil); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	return nil
}

// End implements Renderer.
func (r *csvRenderer) End(*authz.AuditSummary) error {
	r.begin()
	return flush(r.w)
}

func csvRow(k *authz.KeyFindings, f *authz.Finding) []string {
	e := &k.Evidence
	return []string{
		string(f.Severity), string(f.Code), string(f.Confidence), e.Organization.String(), e.OrganizationName, e.Key.String(), e.KeyName, e.Hint,
		string(e.Environment), string(e.State), spaced(f.Scopes), f.Message, f.Recommendation, string(f.Remedy),
		spaced(f.RemoveScopes), spaced(k.ProposedScopes), strconv.Itoa(e.CoveredDays()), strconv.Itoa(e.DaysUsed),
		strconv.FormatInt(e.Allowed.Requests, 10), strconv.FormatInt(e.Denied.Requests, 10), strconv.Itoa(e.Networks),
		stamp(e.CreatedAt), stamp(e.ExpiresAt), stamp(e.RotatedAt), stamp(e.LastUsedAt),
		stamp(e.Window.Since), stamp(e.Window.Until), stamp(e.Window.RecordedSince),
	}
}

// row writes every cell in quotes (RFC 4180, 2.5): a spreadsheet that separates by something
// else must not find a cell that begins inside of one of ours.
func (r *csvRenderer) row(cells []string) {
	for i, cell := range cells {
		if i > 0 {
			_ = r.w.WriteByte(',')
		}
		_ = r.w.WriteByte('"')
		_, _ = r.w.WriteString(strings.ReplaceAll(defused(cell), `"`, `""`))
		_ = r.w.WriteByte('"')
	}
	_, _ = r.w.WriteString("\r\n")
}

// defused is a cell that no spreadsheet takes for a formula, whatever a key is called: one
// that begins like a formula (also with what is the same in full width), or after spaces, gets an
// apostrophe before it (OWASP, CSV injection).
func defused(cell string) string {
	if cell == "" {
		return cell
	}
	switch cell[0] {
	case '\t', '\r', '\n':
		return "'" + cell
	}
	if begins, _ := utf8.DecodeRuneInString(strings.TrimLeft(cell, " \t\r\n\u00a0\ufeff")); strings.ContainsRune("=+-@＝＋－＠", begins) {
		return "'" + cell
	}
	return cell
}

func spaced(scopes []authz.Scope) string {
	words := make([]string, len(scopes))
	for i, s := range scopes {
		words[i] = string(s)
	}
	return strings.Join(words, " ")
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
