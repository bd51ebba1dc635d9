package cli

import (
	"fmt"
	"strings"

	pretty "github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Columns are narrow, for ids are long; the whole is in get, and in JSON.
const (
	maxNameWidth   = 24
	maxScopesWidth = 28
)

// table writes rows under a header, in columns two spaces apart.
func (p *page) table(header []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	t := newPlainTable()
	t.AppendHeader(tableRow(header))
	for _, row := range rows {
		t.AppendRow(tableRow(row))
	}
	p.write(t.Render() + "\n")
}

func newPlainTable() pretty.Writer {
	t := pretty.NewWriter()
	style := pretty.StyleDefault
	style.Options = pretty.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	return t
}

func tableRow(cells []string) pretty.Row {
	row := make(pretty.Row, len(cells))
	for i, cell := range cells {
		row[i] = printable(cell)
	}
	return row
}

// shortName keeps a column narrow.
func shortName(s string) string { return text.Snip(printable(s), maxNameWidth, "…") }

// few lists as many words as a column takes, and counts the others.
func few(words []string, width int) string {
	all := strings.Join(words, " ")
	if len(all) <= width || len(words) < 2 {
		return all
	}
	for n := len(words) - 1; n > 1; n-- {
		if some := fmt.Sprintf("%s +%d", strings.Join(words[:n], " "), len(words)-n); len(some) <= width {
			return some
		}
	}
	return fmt.Sprintf("%s +%d", words[0], len(words)-1)
}
