package policy

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

// capabilitiesJSON is what policies may call, in the form of `opa --capabilities`.
//
//go:embed capabilities.json
var capabilitiesJSON []byte

// checkSchemaJSON is the JSON Schema of a check's input.
//
//go:embed schemas/check.json
var checkSchemaJSON []byte

// adminSchemaJSON is the JSON Schema of a management decision's input.
//
//go:embed schemas/admin.json
var adminSchemaJSON []byte

// findingsSchemaJSON is the JSON Schema of evidence.
//
//go:embed schemas/findings.json
var findingsSchemaJSON []byte

// toolFiles are what stock tools need beside a policy.
//
//go:embed capabilities.json schemas
var toolFiles embed.FS

// ToolFiles are the capabilities and the schemas of the inputs, for stock tools such as opa.
func ToolFiles() fs.FS { return toolFiles }

// sandbox returns what a policy may call. A policy is code from elsewhere: it
// reaches no network, no clock, no randomness, no environment and no files, so
// that its answer follows from its input alone. It is read once, for all: nobody may change it.
var sandbox = sync.OnceValues(func() (*ast.Capabilities, error) { //nolint:gochecknoglobals // a constant
	caps, err := ast.LoadCapabilitiesJSON(bytes.NewReader(capabilitiesJSON))
	if err != nil {
		return nil, fmt.Errorf("read the capabilities: %w", err)
	}
	return caps, nil
})

// inputSchemas returns the schemas that policies name in their annotations, so
// that a misspelt field of the input is found when the policy is compiled. They are read
// once, too.
var inputSchemas = sync.OnceValues(func() (*ast.SchemaSet, error) { //nolint:gochecknoglobals // a constant
	set := ast.NewSchemaSet()
	for path, text := range map[string][]byte{"check": checkSchemaJSON, "admin": adminSchemaJSON, "findings": findingsSchemaJSON} {
		var schema any
		if err := json.Unmarshal(text, &schema); err != nil {
			return nil, fmt.Errorf("read the schema %s: %w", path, err)
		}
		set.Put(ast.MustParseRef("schema."+path), schema)
	}
	return set, nil
})
