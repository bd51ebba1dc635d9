// Package bundle has the form in which policies are published: OPA bundles that are signed and
// numbered. See read.go for what makes one acceptable, and pack.go for how they are made.
package bundle

import "github.com/supportstation/keystile/authz/policy"

const (
	// MaxArchive is how many bytes a bundle may have as it is sent, compressed.
	MaxArchive = 8 << 20
	// MaxVersion is the highest version: any reader of JSON knows whole numbers up to it.
	MaxVersion = 1<<53 - 1
	// maxUnpacked is how large all entries may be together with their headers.
	maxUnpacked = 4 * policy.MaxBytes
	// maxManifest and maxSignatures bound an archive's own bookkeeping, in bytes. The second
	// names every file with its hash.
	maxManifest   = 256 << 10
	maxSignatures = 2 << 20
)

const (
	manifestFile   = ".manifest"
	signaturesFile = ".signatures.json"
	// metadataName is our own part of the manifest's metadata.
	metadataName = "keystile"
	// noPlugin is what the stock opa calls its own way to sign.
	noPlugin = "_default"
)

// Algorithm is how a bundle is signed (RFC 7518, 3.1).
type Algorithm string

// The algorithms: what else a signature says to be, it is refused.
const (
	// ES256 is ECDSA on P-256 with SHA-256.
	ES256 Algorithm = "ES256"
	// RS256 is RSASSA-PKCS1-v1_5 with SHA-256.
	RS256 Algorithm = "RS256"
)

// Policy is a policy whose signature holds, as it was published.
type Policy struct {
	Source *policy.Source
	// Version grows with every change: what has a lower one than another is older.
	Version int64
	// AcceptRemoved are the tests of the policy in force that may fail.
	AcceptRemoved []string
	// KeyID is the key that signed it.
	KeyID string
}
