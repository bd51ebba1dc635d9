package audit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/supportstation/keystile/authz"
)

// Format is a form that findings are written in.
type Format string

// The formats.
const (
	JSON Format = "json"
	// JSONLines has a key a line, and the summary in the last one.
	JSONLines Format = "jsonl"
	// CSV has a finding a line (RFC 4180).
	CSV Format = "csv"
	// SARIF is version 2.1.0, for the tools that collect what others find.
	SARIF Format = "sarif"
	// HTML is one page that needs nothing else, to be read and printed.
	HTML Format = "html"
)

// MediaType is the format's, "" for none.
func (f Format) MediaType() string {
	switch f {
	case JSON:
		return "application/json"
	case JSONLines:
		return "application/x-ndjson"
	case CSV:
		return "text/csv; charset=utf-8"
	case SARIF:
		return "application/sarif+json"
	case HTML:
		return "text/html; charset=utf-8"
	}
	return ""
}

// Renderer writes what an audit finds.
type Renderer interface {
	// Key writes what is found of one key.
	Key(k *authz.KeyFindings) error
	// End writes the rest. An audit that failed has none: what was written is not whole.
	End(s *authz.AuditSummary) error
}

// NewRenderer writes to w in a format. SARIF and HTML hold what they list until the end, a
// bounded part of it, the gravest first; the others write as they go.
func NewRenderer(f Format, w io.Writer) (Renderer, error) {
	switch f {
	case JSON:
		return &jsonRenderer{w: bufio.NewWriter(w)}, nil
	case JSONLines:
		return &linesRenderer{w: bufio.NewWriter(w)}, nil
	case CSV:
		return &csvRenderer{w: bufio.NewWriter(w)}, nil
	case SARIF:
		return newSARIFRenderer(w), nil
	case HTML:
		return newHTMLRenderer(w), nil
	}
	return nil, fmt.Errorf("there is no format %q; there are json, jsonl, csv, sarif and html", f)
}

// worthTelling tells whether there is anything to say of a key.
func worthTelling(k *authz.KeyFindings) bool { return len(k.Findings) > 0 || len(k.Undecided) > 0 }

// jsonRenderer writes {"keys":[…],"summary":{…}}, with the keys that there is something to say of.
type jsonRenderer struct {
	w    *bufio.Writer
	keys int
}

// Key implements Renderer.
func (r *jsonRenderer) Key(k *authz.KeyFindings) error {
	if !worthTelling(k) {
		return nil
	}
	before := ",\n"
	if r.keys == 0 {
		before = `{"keys":[` + "\n"
	}
	r.keys++
	return writeJSON(r.w, before, k, "")
}

// End implements Renderer.
func (r *jsonRenderer) End(s *authz.AuditSummary) error {
	before := "\n],\n\"summary\":"
	if r.keys == 0 {
		before = `{"keys":[],` + "\n\"summary\":"
	}
	if err := writeJSON(r.w, before, s, "}\n"); err != nil {
		return err
	}
	return flush(r.w)
}

// linesRenderer writes a key a line, and {"summary":{…}}.
type linesRenderer struct{ w *bufio.Writer }

// Key implements Renderer.
func (r *linesRenderer) Key(k *authz.KeyFindings) error {
	if !worthTelling(k) {
		return nil
	}
	return writeJSON(r.w, "", k, "\n")
}

// End implements Renderer.
func (r *linesRenderer) End(s *authz.AuditSummary) error {
	if err := writeJSON(r.w, `{"summary":`, s, "}\n"); err != nil {
		return err
	}
	return flush(r.w)
}

func writeJSON(w *bufio.Writer, before string, value any, after string) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	_, _ = w.WriteString(before) // bufio keeps its first error, and says it at last
	_, _ = w.Write(raw)
	if _, err = w.WriteString(after); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	return nil
}

func flush(w *bufio.Writer) error {
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	return nil
}

// gravest keeps so many things, the gravest of them, in the order in which they came.
type gravest[T any] struct {
	most int
	by   [4][]T
	// dropped is how many are not kept.
	dropped int64
}

func (g *gravest[T]) add(severity authz.Severity, what T) {
	rank := severity.Rank()
	g.by[rank] = append(g.by[rank], what)
	kept := 0
	for i := range g.by {
		kept += len(g.by[i])
	}
	if kept <= g.most {
		return
	}
	g.dropped++
	for i := range g.by {
		if n := len(g.by[i]); n > 0 {
			g.by[i] = g.by[i][:n-1]
			return
		}
	}
}

// all are those that are kept, the gravest first.
func (g *gravest[T]) all() []T {
	var all []T
	for i := len(g.by) - 1; i >= 0; i-- {
		all = append(all, g.by[i]...)
	}
	return all
}
