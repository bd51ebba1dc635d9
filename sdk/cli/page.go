package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
)

// page writes lines for a person, coloured on a terminal.
type page struct {
	w      io.Writer
	colour bool
	err    error
}

func (c Config) newPage(w io.Writer) *page {
	noColour, _ := c.value("NO_COLOR")
	return &page{w: w, colour: noColour == "" && isTerminal(w)}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (p *page) write(text string) {
	if p.err == nil {
		_, p.err = io.WriteString(p.w, text)
	}
}

// headline writes word in the colour (an SGR code), then rest.
func (p *page) headline(sgr, word, rest string) {
	if p.colour {
		word = "\x1b[" + sgr + "m" + word + "\x1b[0m"
	}
	p.write(word + " " + printable(rest) + "\n")
}

// row writes a named value; an empty one is left out.
func (p *page) row(name, value string) {
	if value != "" {
		p.write(fmt.Sprintf("  %-13s %s\n", name, printable(value)))
	}
}

// printable keeps a name that somebody chose from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
