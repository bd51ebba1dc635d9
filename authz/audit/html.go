package audit

import (
	"bufio"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz"
)

// maxHTMLKeys bounds the keys of a page: it is for people.
const maxHTMLKeys = 2_000

//go:embed report.gohtml
var reportText string

// htmlRenderer collects keys with findings, and writes one page of them.
type htmlRenderer struct {
	w    io.Writer
	keys gravest[*authz.KeyFindings]
	// counts are findings by kind and severity.
	counts map[authz.FindingCode]map[authz.Severity]int64
}

func newHTMLRenderer(w io.Writer) *htmlRenderer {
	return &htmlRenderer{w: w, keys: gravest[*authz.KeyFindings]{most: maxHTMLKeys}, counts: map[authz.FindingCode]map[authz.Severity]int64{}}
}

// Key implements Renderer.
func (r *htmlRenderer) Key(k *authz.KeyFindings) error {
	for i := range k.Findings {
		f := &k.Findings[i]
		if r.counts[f.Code] == nil {
			r.counts[f.Code] = map[authz.Severity]int64{}
		}
		r.counts[f.Code][f.Severity]++
	}
	if len(k.Findings) > 0 {
		r.keys.add(k.Findings[0].Severity, k) // the gravest is the first
	}
	return nil
}

// End implements Renderer.
func (r *htmlRenderer) End(s *authz.AuditSummary) error {
	page, err := template.New("report").Parse(reportText)
	if err != nil {
		return fmt.Errorf("read the page of findings: %w", err)
	}
	w := bufio.NewWriter(r.w)
	if err := page.Execute(w, r.page(s)); err != nil {
		return fmt.Errorf("write the page of findings: %w", err)
	}
	return flush(w)
}

// page is what the template shows. Names are as they came: the template makes them inert.
type page struct {
	Title, Window, Recorded, Policy string
	Tiles                           []tile
	Severities, Keys, Codes         chart
	Organizations                   []*organization
	Listed, LeftOut                 int64
	Clean                           bool
}

type tile struct {
	Label, Value, Class, Note string
}

// chart is bars below each other, in its own units.
type chart struct {
	Height int
	Bars   []bar
}

type bar struct {
	Label, Count string
	Y, TextY     int
	Parts        []part
	End, CountX  float64
}

type part struct {
	X, Width float64
	Class    string
}

type organization struct {
	Name, ID string
	Scopes   []authz.Scope
	Keys     []key
	Counts   []tile
	rank     []int
}

type key struct {
	Name, ID, Hint, Environment, State string
	Coverage                           string
	Findings                           []finding
	Figures                            []tile
	Cells                              []cell
	Proposed                           string
}

type finding struct {
	Title, Severity, Confidence, Message, Recommendation string
}

// cell is one of the matrix of scopes.
type cell struct{ Class, Text, Title string }

func (r *htmlRenderer) page(s *authz.AuditSummary) page {
	keys := r.keys.all()
	p := page{
		Title: "Least-privilege audit", Policy: s.Policy, Listed: int64(len(keys)), LeftOut: r.keys.dropped, Clean: s.Findings == 0,
		Window: fmt.Sprintf("%s to %s", longDate(s.Window.Since), longDate(s.Window.Until)),
	}
	switch {
	case s.Keys == 0:
		p.Window, p.Recorded = "There was no key to look at", ""
	case s.Window.RecordedSince.IsZero():
		p.Recorded = "Nothing was counted in this window, so that nothing can be said of what was used."
	case s.Window.RecordedSince.After(s.Window.Since):
		p.Recorded = "Counts are kept since " + longDate(s.Window.RecordedSince) + "; nothing older is known."
	default:
		p.Recorded = "All of it was counted, " + amount(int64(s.Window.Until.Sub(s.Window.Since)/(24*time.Hour)), "day") + "; nothing older was asked."
	}
	p.Tiles = []tile{
		{Label: "keys looked at", Value: number(s.Keys)},
		{Label: "with findings", Value: number(s.Flagged), Note: share(s.Flagged, s.Keys)},
		{Label: "high", Value: number(s.BySeverity[authz.SeverityHigh]), Class: "high"},
		{Label: "medium", Value: number(s.BySeverity[authz.SeverityMedium]), Class: "medium"},
		{Label: "low", Value: number(s.BySeverity[authz.SeverityLow]), Class: "low"},
		{Label: "not enough evidence", Value: number(s.Undecided), Note: "neither found nor ruled out"},
	}
	p.Severities, p.Keys, p.Codes = r.severityChart(), keyChart(s), r.codeChart()
	p.Organizations = organizationsOf(keys)
	return p
}

// severities are all, the gravest first.
func severities() []authz.Severity {
	return []authz.Severity{authz.SeverityHigh, authz.SeverityMedium, authz.SeverityLow}
}

// The charts' own units: barHeight is of a bar with the space below it, bars begin at
// barsBegin, and the longest is barsWide.
const (
	barHeight = 26
	barsBegin = 170
	barsWide  = 200
)

func (r *htmlRenderer) severityChart() chart {
	var bars []bar
	for _, severity := range severities() {
		n := int64(0)
		for _, by := range r.counts {
			n += by[severity]
		}
		bars = append(bars, barOf(string(severity), map[authz.Severity]int64{severity: n}))
	}
	return chartOf(bars)
}

// keyChart is how many keys there is what to say of.
func keyChart(s *authz.AuditSummary) chart {
	var bars []bar
	for _, group := range []struct {
		label, class string
		n            int64
	}{
		{"with findings", string(authz.SeverityHigh), s.Flagged},
		{"not enough evidence", "unknown", s.Undecided},
		{"looked at", "all", s.Keys},
	} {
		b := bar{Label: group.label, Count: number(group.n), End: float64(group.n)}
		b.Parts = []part{{Width: b.End, Class: group.class}}
		bars = append(bars, b)
	}
	return chartOf(bars)
}

func (r *htmlRenderer) codeChart() chart {
	codes := slices.SortedFunc(maps.Keys(r.counts), func(a, b authz.FindingCode) int {
		if by := cmp.Compare(total(r.counts[b]), total(r.counts[a])); by != 0 {
			return by
		}
		return strings.Compare(string(a), string(b))
	})
	var bars []bar
	for _, code := range codes {
		bars = append(bars, barOf(titleOf(code), r.counts[code]))
	}
	return chartOf(bars)
}

func total(by map[authz.Severity]int64) (n int64) {
	for _, count := range by {
		n += count
	}
	return n
}

func barOf(label string, by map[authz.Severity]int64) bar {
	b := bar{Label: label, Count: number(total(by))}
	for _, severity := range severities() {
		if n := float64(by[severity]); n > 0 {
			b.Parts = append(b.Parts, part{X: b.End, Width: n, Class: string(severity)})
			b.End += n
		}
	}
	return b
}

// chartOf gives bars their places.
func chartOf(bars []bar) chart {
	most := 1.0
	for _, b := range bars {
		most = max(most, b.End)
	}
	for i := range bars {
		b := &bars[i]
		b.Y, b.TextY = i*barHeight, i*barHeight+13
		b.CountX = barsBegin + b.End*barsWide/most + 8
		for n := range b.Parts {
			b.Parts[n].X = barsBegin + b.Parts[n].X*barsWide/most
			b.Parts[n].Width *= barsWide / most
		}
	}
	return chart{Height: len(bars)*barHeight - 8, Bars: bars}
}

// organizationsOf groups keys, the organizations with the gravest findings first.
func organizationsOf(keys []*authz.KeyFindings) []*organization {
	by := map[authz.OrganizationID]*organization{}
	var all []*organization
	members := map[*organization][]*authz.KeyFindings{}
	for _, k := range keys {
		o := by[k.Evidence.Organization]
		if o == nil {
			o = &organization{Name: k.Evidence.OrganizationName, ID: k.Evidence.Organization.String(), rank: make([]int, 4)}
			by[k.Evidence.Organization] = o
			all = append(all, o)
		}
		members[o] = append(members[o], k)
		for i := range k.Findings {
			o.rank[k.Findings[i].Severity.Rank()]++
		}
	}
	for _, o := range all {
		o.fill(members[o])
	}
	slices.SortStableFunc(all, func(a, b *organization) int {
		for _, severity := range severities() {
			if by := b.rank[severity.Rank()] - a.rank[severity.Rank()]; by != 0 {
				return by
			}
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all
}

func (o *organization) fill(keys []*authz.KeyFindings) {
	for _, severity := range severities() {
		if n := o.rank[severity.Rank()]; n > 0 {
			o.Counts = append(o.Counts, tile{Label: string(severity), Value: strconv.Itoa(n), Class: string(severity)})
		}
	}
	for _, k := range keys {
		for i := range k.Evidence.Scopes {
			if s := k.Evidence.Scopes[i].Scope; !slices.Contains(o.Scopes, s) {
				o.Scopes = append(o.Scopes, s)
			}
		}
	}
	slices.Sort(o.Scopes)
	for _, k := range keys {
		o.Keys = append(o.Keys, keyOf(k, o.Scopes))
	}
}

func keyOf(k *authz.KeyFindings, scopes []authz.Scope) key {
	e := &k.Evidence
	shown := key{
		Name: e.KeyName, ID: e.Key.String(), Hint: e.Hint, Environment: string(e.Environment), State: string(e.State), Coverage: k.Coverage,
	}
	for i := range k.Findings {
		f := &k.Findings[i]
		shown.Findings = append(shown.Findings, finding{titleOf(f.Code), string(f.Severity), string(f.Confidence), f.Message, f.Recommendation})
	}
	networks := strconv.Itoa(e.Networks)
	if e.NetworksCapped {
		networks = "more than " + networks
	}
	shown.Figures = []tile{
		{Label: "days used", Value: fmt.Sprintf("%d of %d", e.DaysUsed, e.CoveredDays())},
		{Label: "allowed", Value: number(e.Allowed.Requests)},
		{Label: "denied", Value: number(e.Denied.Requests)},
		{Label: "networks", Value: networks},
		{Label: "last used", Value: shortDate(e.LastUsedAt)},
		{Label: "made", Value: shortDate(e.CreatedAt)},
		{Label: "rotated", Value: shortDate(e.RotatedAt)},
		{Label: "expires", Value: shortDate(e.ExpiresAt)},
	}
	granted := 0
	for _, scope := range scopes {
		shown.Cells = append(shown.Cells, cellOf(e, scope))
	}
	for i := range e.Scopes {
		if e.Scopes[i].Granted {
			granted++
		}
	}
	if len(k.ProposedScopes) < granted {
		shown.Proposed = "no scope at all"
		if len(k.ProposedScopes) > 0 {
			shown.Proposed = strings.ReplaceAll(spaced(k.ProposedScopes), " ", ", ")
		}
	}
	return shown
}

func cellOf(e *authz.Evidence, scope authz.Scope) cell {
	at := slices.IndexFunc(e.Scopes, func(s authz.ScopeEvidence) bool { return s.Scope == scope })
	if at < 0 {
		return cell{"none", "", "not granted"}
	}
	s := &e.Scopes[at]
	days := strconv.Itoa(s.DaysUsed) + " d"
	switch {
	case s.Granted && s.DaysUsed > 0:
		return cell{"used", days, fmt.Sprintf("granted, exercised on %s by %s, last on %s", amount(int64(s.DaysUsed), "day"), amount(s.Requests, "request"), shortDate(s.LastUsedAt))}
	case s.Granted:
		return cell{"unused", "unused", "granted, not exercised; the last use that was noted: " + shortDate(s.LastUsedAt)}
	case s.DaysUsed > 0:
		return cell{"gone", days, "exercised in the window, and not granted any more"}
	}
	return cell{"none", "", "not granted"}
}

func longDate(t time.Time) string { return t.UTC().Format("2 January 2006") }

func shortDate(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.DateOnly)
}

func share(part, whole int64) string {
	if whole == 0 {
		return ""
	}
	return strconv.FormatFloat(100*float64(part)/float64(whole), 'f', 1, 64) + " %"
}

// number has a thin space at each thousand.
func number(n int64) string {
	digits := strconv.FormatInt(n, 10)
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "\u202f" + digits[at:]
	}
	return digits
}

// amount is a number of something.
func amount(n int64, name string) string {
	if n != 1 {
		name += "s"
	}
	return number(n) + " " + name
}
