package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/supportstation/keystile/sdk/admin"
)

// rowWriter prints rejected rows as they come, so that no number of them fills
// the memory. Its JSON and YAML are one document all the same.
type rowWriter struct {
	w      io.Writer
	output format
	count  int
}

func newRowWriter(s *session) *rowWriter { return &rowWriter{w: s.cmd.OutOrStdout(), output: s.output} }

func (r *rowWriter) write(row admin.RejectedRow) error {
	var text string
	switch r.output {
	case jsonText:
		var one bytes.Buffer
		if err := writeJSON(&one, row); err != nil {
			return printed(err)
		}
		text = "{\n  \"rejected\": ["
		if r.count > 0 {
			text = ","
		}
		text += "\n    " + strings.ReplaceAll(strings.TrimSpace(one.String()), "\n", "\n    ")
	case yamlText:
		var one bytes.Buffer
		if err := writeYAML(&one, []admin.RejectedRow{row}); err != nil {
			return printed(err)
		}
		if r.count == 0 {
			text = "rejected:\n"
		}
		text += one.String()
	default:
		message := row.Message
		if row.Pointer != nil && *row.Pointer != "" {
			message = *row.Pointer + " " + message
		}
		text = fmt.Sprintf("line %-7d %-12s %s\n", row.Line, printable(string(row.Code)), printable(message))
	}
	r.count++
	_, err := io.WriteString(r.w, text)
	return printed(err)
}

// close ends the document.
func (r *rowWriter) close(imported, rejected int, dryRun bool) error {
	var text string
	switch r.output {
	case jsonText:
		text = "{\n  \"rejected\": []"
		if r.count > 0 {
			text = "\n  ]"
		}
		text += fmt.Sprintf(",\n  \"imported\": %d,\n  \"dry_run\": %t\n}\n", imported, dryRun)
	case yamlText:
		if r.count == 0 {
			text = "rejected: []\n"
		}
		text += fmt.Sprintf("imported: %d\ndry_run: %t\n", imported, dryRun)
	default:
		text = fmt.Sprintf("imported %d, rejected %d\n", imported, rejected)
	}
	_, err := io.WriteString(r.w, text)
	return printed(err)
}
