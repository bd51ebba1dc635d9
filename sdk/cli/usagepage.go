package cli

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	pretty "github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/supportstation/keystile/sdk/admin"
)

const (
	// sparkWidth and barWidth are the widths of what is drawn, in columns.
	sparkWidth = 60
	barWidth   = 20
)

// art is what is drawn with.
type art struct {
	// levels are those of a line, from the lowest; none stands for nothing asked, unknown
	// for what nothing is known of.
	levels        []string
	none, unknown string
	bar           string
}

//nolint:gochecknoglobals // constants, were structs constant
var (
	blocks   = art{levels: strings.Split("▁▂▃▄▅▆▇█", ""), none: "·", unknown: " ", bar: "█"}
	asciiArt = art{levels: strings.Split(":-=+*#%@", ""), none: ".", unknown: " ", bar: "#"}
)

// artOf is blocks on a terminal that can show them, ASCII anywhere else.
func (c Config) artOf(p *page) art {
	term, _ := c.value("TERM")
	if !isTerminal(p.w) || term == "dumb" || term == "linux" {
		return asciiArt
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale, _ := c.value(name); locale != "" { // the first one decides
			if locale = strings.ToLower(locale); strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8") {
				return blocks
			}
			return asciiArt
		}
	}
	return asciiArt
}

// spark draws values on a scale from zero to the greatest; a negative one is unknown.
func (a art) spark(values []int64) string {
	greatest := int64(1)
	for _, v := range values {
		greatest = max(greatest, v)
	}
	var b strings.Builder
	for _, v := range values {
		switch {
		case v < 0:
			b.WriteString(a.unknown)
		case v == 0:
			b.WriteString(a.none)
		default:
			b.WriteString(a.levels[(v*int64(len(a.levels))-1)/greatest])
		}
	}
	return b.String()
}

// bars draws a share of all.
func (a art) bars(n, of int64) string {
	if of == 0 || n == 0 {
		return ""
	}
	return strings.Repeat(a.bar, int(max(1, (n*barWidth+of/2)/of)))
}

// usagePage writes usage for a person.
type usagePage struct {
	*page

	u   *admin.Usage
	now time.Time
	art art
}

func (p *usagePage) all() {
	p.head()
	if p.u.Totals.Requests > 0 {
		p.line()
		p.denials()
		p.lists()
	}
	p.rotation()
	p.scopes()
}

func (p *usagePage) head() {
	u := p.u
	if k := u.Key; k != nil {
		p.headline("1", shortName(k.Name), " "+k.ID+", "+string(k.Environment))
		p.row("secret", orEmpty(k.Hint))
	} else {
		p.headline("1", "All keys", "of "+u.OrganizationID)
	}
	p.row("window", minute(u.Since)+" to "+minute(u.Until)+", by the "+string(u.Step))
	switch {
	case u.CountedSince == nil:
		p.row("covers", "nothing; nothing was counted yet")
	case u.Covers == nil:
		p.row("covers", "nothing; counted since "+minute(*u.CountedSince))
	default:
		covers := covered(u.Covers) + "; counted since " + minute(*u.CountedSince)
		if u.Covers.Since.After(u.Since) {
			covers += ", and of what was before nothing is known"
		}
		p.row("covers", covers)
	}
	t := u.Totals
	p.row("requests", thousands(t.Requests))
	p.row("allowed", ofAll(t.Allowed, t.Requests))
	p.row("denied", ofAll(t.Denied, t.Requests))
	p.row("rate limited", ofAll(t.Limited, t.Requests))
}

// ofAll is a number with its share; "" for none of none.
func ofAll(n, of int64) string {
	if of == 0 {
		return ""
	}
	return thousands(n) + " (" + percent(float64(n)/float64(of)) + ")"
}

// line draws the requests, and the denied ones, over time.
func (p *usagePage) line() {
	series, u := p.u.Series, p.u
	each := (len(series) + sparkWidth - 1) / sparkWidth
	wide := max(1, sparkWidth/len(series))
	step := time.Hour
	if u.Step == admin.UsageByDay {
		step = wholeDay
	}
	var requests, denied []int64
	for i := 0; i < len(series); i += each {
		column := series[i:min(i+each, len(series))]
		end := column[len(column)-1].At.Add(step)
		if u.Covers == nil || !end.After(u.Covers.Since) || !column[0].At.Before(u.Covers.Until) {
			requests, denied = append(requests, -1), append(denied, -1)
			continue
		}
		var all, no int64
		for _, point := range column {
			all, no = all+point.Requests, no+point.Denied
		}
		requests, denied = append(requests, all), append(denied, no)
	}
	requests, denied = widened(requests, wide), widened(denied, wide)
	p.write("\n")
	p.spark("requests", requests, time.Duration(each)*step, "36")
	if u.Totals.Denied > 0 {
		p.spark("denied", denied, time.Duration(each)*step, "31")
	}
	from, to := u.Since.UTC().Format("Jan 02 15:04"), u.Until.UTC().Format("Jan 02 15:04")
	p.write("  " + strings.Repeat(" ", 14) + from + strings.Repeat(" ", max(1, len(requests)-len(from)-len(to))) + to + "\n")
}

// widened has each value several times.
func widened(values []int64, times int) []int64 {
	out := make([]int64, 0, len(values)*times)
	for _, v := range values {
		for range times {
			out = append(out, v)
		}
	}
	return out
}

func (p *usagePage) spark(name string, values []int64, each time.Duration, sgr string) {
	greatest := int64(0)
	for _, v := range values {
		greatest = max(greatest, v)
	}
	drawn := p.art.spark(values)
	if p.colour {
		drawn = "\x1b[" + sgr + "m" + drawn + "\x1b[0m"
	}
	p.write(fmt.Sprintf("  %-13s %s  up to %s in %s\n", name, drawn, thousands(greatest), lengthOf(each)))
}

func (p *usagePage) denials() {
	var rows []usageRow
	for _, d := range p.u.Denied {
		rows = append(rows, usageRow{name: d.Code, requests: d.Requests, denied: -1})
	}
	p.top("DENIED BECAUSE", rows, 0, 0, p.u.Totals.Denied)
}

// usageRow is a row of a list; denied is negative where that says nothing.
type usageRow struct {
	name             string
	requests, denied int64
}

func (p *usagePage) lists() {
	u := p.u
	var rows []usageRow
	if u.Keys != nil {
		for _, k := range u.Keys.Items {
			name := k.ID
			if k.Name != nil {
				name = shortName(*k.Name) + "  " + k.ID
			}
			rows = append(rows, usageRow{strings.TrimSuffix(name+", "+orEmpty(k.Environment), ", "), k.Requests, k.Denied})
		}
		p.top("KEY", rows, u.Keys.Rest.Rows, u.Keys.Rest.Requests, u.Totals.Requests)
	}
	rows = nil
	for _, r := range u.Routes.Items {
		name := strings.TrimSpace(orEmpty(r.Method) + " " + orEmpty(r.Route))
		if r.Route == nil {
			name = "action " + cmp.Or(orEmpty(r.Action), "unknown")
		}
		rows = append(rows, usageRow{name, r.Requests, r.Denied})
	}
	p.top("ROUTE", rows, u.Routes.Rest.Rows, u.Routes.Rest.Requests, u.Totals.Requests)
	rows = nil
	for _, c := range u.Callers.Items {
		rows = append(rows, usageRow{shortName(cmp.Or(orEmpty(c.Name), orEmpty(c.ID), "not known")), c.Requests, c.Denied})
	}
	p.top("CALLER", rows, u.Callers.Rest.Rows, u.Callers.Rest.Requests, u.Totals.Requests)
	rows = nil
	all := u.Networks.Rest.Requests
	for _, n := range u.Networks.Items {
		rows = append(rows, usageRow{cmp.Or(orEmpty(n.Network), "not told"), n.Requests, n.Denied})
		all += n.Requests
	}
	p.top("CLIENTS' NETWORK", rows, u.Networks.Rest.Rows, u.Networks.Rest.Requests, all)
}

// top writes a list with the share of all, and what is not listed in one row.
func (p *usagePage) top(title string, rows []usageRow, rest int, restRequests, of int64) {
	if len(rows) == 0 {
		return
	}
	if restRequests > 0 {
		name := "all others"
		if rest > 0 {
			name = fmt.Sprintf("all others (%s more)", thousands(int64(rest)))
		}
		rows = append(rows, usageRow{name, restRequests, -1})
	}
	t := newPlainTable()
	t.SetColumnConfigs([]pretty.ColumnConfig{
		{Number: 1, WidthMax: maxUsageName, WidthMaxEnforcer: func(s string, width int) string { return text.Snip(s, width, p.art.snip()) }},
		{Number: 2, Align: text.AlignRight},
		{Number: 3, Align: text.AlignRight},
		{Number: 5, Align: text.AlignRight},
	})
	header := pretty.Row{title, "requests", "", ""}
	told := rows[0].denied >= 0
	if told {
		header = append(header, "denied")
	}
	t.AppendHeader(header)
	for _, r := range rows {
		row := pretty.Row{printable(r.name), thousands(r.requests), percent(float64(r.requests) / float64(max(of, 1))), fmt.Sprintf("%-*s", barWidth, p.art.bars(r.requests, of))}
		switch {
		case told && r.denied > 0:
			row = append(row, thousands(r.denied))
		case told:
			row = append(row, "")
		}
		t.AppendRow(row)
	}
	p.write("\n" + t.Render() + "\n")
}

// maxUsageName bounds the first column.
const maxUsageName = 56

func (a art) snip() string {
	if a.bar == asciiArt.bar {
		return "..."
	}
	return "…"
}

// rotation tells who uses which secret of a key that has two.
func (p *usagePage) rotation() {
	r := p.u.Rotation
	if r == nil {
		return
	}
	p.write("\nROTATION, since " + minute(r.RecentSince) + "\n")
	for i, s := range r.Secrets {
		name := "new secret"
		if i > 0 {
			name = "old secret"
		}
		share := "no requests"
		if s.RecentShare != nil {
			share = percent(*s.RecentShare)
		}
		line := share + " (" + percentOr(s.Share, "none") + " of the window), " + p.lastUsed(s.LastUse)
		if s.ExpiresAt != nil {
			line += "; ends " + relative(s.ExpiresAt.Sub(p.now))
		}
		p.row(name, s.Hint+"  "+line)
	}
}

func (p *usagePage) lastUsed(use *admin.UsageLastUse) string {
	if use == nil {
		return "never used"
	}
	text := "last used " + relative(use.At.Sub(p.now))
	if by := cmp.Or(orEmpty(use.CallerName), orEmpty(use.CallerID)); by != "" {
		text += " by " + shortName(by)
	}
	if use.Network != nil {
		text += " from " + *use.Network
	}
	return text
}

// scopes tells which a key has and used.
func (p *usagePage) scopes() {
	if len(p.u.Scopes) == 0 {
		return
	}
	t := newPlainTable()
	t.SetColumnConfigs([]pretty.ColumnConfig{{Number: 2, Align: text.AlignRight}})
	t.AppendHeader(pretty.Row{"SCOPE", "allowed requests", "last use", ""})
	for _, s := range p.u.Scopes {
		note := ""
		switch {
		case !s.Granted:
			note = "not granted any more"
		case s.Requests == 0 && p.u.Covers != nil:
			note = "not used in " + covered(p.u.Covers)
		}
		t.AppendRow(pretty.Row{printable(s.Scope), thousands(s.Requests), printable(strings.TrimPrefix(p.lastUsed(s.LastUse), "last used ")), note})
	}
	p.write("\n" + t.Render() + "\n")
}

// minute is a time as windows have them.
func minute(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

// covered is how much is known of, in words.
func covered(c *admin.UsageCover) string {
	if c.Days >= 2 {
		return decimal(c.Days) + " days"
	}
	return strings.TrimPrefix(relative(c.Until.Sub(c.Since)), "in ")
}

// lengthOf is a step in words.
func lengthOf(d time.Duration) string {
	if d%wholeDay == 0 {
		return plural(int64(d/wholeDay), "day")
	}
	return plural(int64(d/time.Hour), "hour")
}

// thousands is a number in groups of three.
func thousands(n int64) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// decimal has one decimal, unless it is zero.
func decimal(f float64) string { return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") }

func percentOr(share *float64, none string) string {
	if share == nil {
		return none
	}
	return percent(*share)
}

// percent is a share, never rounded to all or nothing.
func percent(share float64) string {
	p := share * 100
	switch {
	case p == 0:
		return "0 %"
	case p < 0.1:
		return "<0.1 %"
	case p < 10:
		return decimal(p) + " %"
	case p > 99 && p < 100:
		return fmt.Sprintf("%.1f %%", min(p, 99.9))
	}
	return fmt.Sprintf("%.0f %%", p)
}
