// Package policies holds the built-in policy: Rego and its data. There is no
// logic here in Go; the file only carries the folder into the binary.
package policies

import "embed"

// FS is the built-in policy with its tests, as it stands in this folder. It is
// read-only and safe for concurrent use.
//
//go:embed .manifest keystile system
var FS embed.FS
