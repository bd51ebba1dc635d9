package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"
)

// printData prints v as -o says: JSON, YAML, or the table that rows writes, with tabs
// between its columns.
func printData(w io.Writer, output string, v any, rows func(io.Writer)) error {
	var err error
	switch output {
	case "json":
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(v)
	case "yaml":
		err = yaml.NewEncoder(w).Encode(v)
	case "table":
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		rows(table)
		err = table.Flush()
	default:
		return usageError(fmt.Errorf("--output is %q; accepted: table, json, yaml", output))
	}
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
