// Package api has the API's document, and the types and routes that are generated
// from it.
package api

import _ "embed"

//go:embed openapi.yaml
var document []byte

// Document returns a copy of the API's document, OpenAPI 3.1 as YAML.
func Document() []byte { return append([]byte(nil), document...) }
