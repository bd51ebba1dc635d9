package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"go.yaml.in/yaml/v3"
)

// format is a value of the -o flag.
type format string

const (
	table    format = "table"
	jsonText format = "json"
	yamlText format = "yaml"
)

// String returns the format's name.
func (f *format) String() string { return string(*f) }

// Set takes one of the formats.
func (f *format) Set(s string) error {
	switch wanted := format(s); wanted {
	case table, jsonText, yamlText:
		*f = wanted
		return nil
	}
	return errors.New("must be table, json or yaml")
}

// Type names the accepted forms in help texts.
func (f *format) Type() string { return "table|json|yaml" }

// writeJSON writes v as one indented document.
func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// writeYAML writes what writeJSON would, in the same order.
func writeYAML(w io.Writer, v any) error {
	var text bytes.Buffer
	if err := writeJSON(&text, v); err != nil {
		return err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text.Bytes(), &document); err != nil {
		return err
	}
	plainStyle(&document)
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(&document); err != nil {
		return err
	}
	return encoder.Close()
}

// plainStyle drops JSON's braces and quotes; the encoder quotes where YAML
// would read something else than a string.
func plainStyle(node *yaml.Node) {
	node.Style = 0
	for _, child := range node.Content {
		plainStyle(child)
	}
}
