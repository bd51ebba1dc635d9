package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/supportstation/keystile/authz/policy"
)

// Contents are what a bundle is made of.
type Contents struct {
	Source *policy.Source
	// Version is from 1 to MaxVersion, and higher than that of what was published before.
	Version int64
	// AcceptRemoved are the tests of the policy in force that may fail.
	AcceptRemoved []string
	// Manifest is the .manifest that the policy has by itself, for stock OPA: its roots and
	// whatever else it says stay. Nil means the root of everything.
	Manifest []byte
}

// Pack returns the bundle, signed; a nil signer leaves that to somebody else (opa sign). The
// same contents give the same files.
func (c Contents) Pack(signer *Signer) ([]byte, error) {
	if c.Version < 1 || c.Version > MaxVersion {
		return nil, fmt.Errorf("a bundle's version is from 1 to %d", int64(MaxVersion))
	}
	manifest, err := c.manifest()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{manifestFile: manifest}
	for name, text := range c.Source.Files() {
		files[name] = []byte(text)
	}
	if signer != nil {
		if files[signaturesFile], err = signer.sign(files); err != nil {
			return nil, err
		}
	}
	return packFiles(files)
}

// CheckStock tells why stock OPA would not load a bundle that services may take all the same,
// for example because the roots of its manifest do not reach all of it; nil when it would.
func CheckStock(archive []byte) error {
	if _, err := opabundle.NewReader(bytes.NewReader(archive)).WithSkipBundleVerification(true).Read(); err != nil {
		return fmt.Errorf("stock OPA would not load the bundle: %w", err)
	}
	return nil
}

func (c Contents) manifest() ([]byte, error) {
	manifest := map[string]any{"roots": []string{""}, "rego_version": 1}
	if c.Manifest != nil {
		manifest = nil
		if err := util.UnmarshalJSON(c.Manifest, &manifest); err != nil || manifest == nil {
			return nil, fmt.Errorf("the policy's %s is no JSON object", manifestFile)
		}
	}
	metadata, ok := manifest["metadata"].(map[string]any)
	if !ok {
		if manifest["metadata"] != nil {
			return nil, fmt.Errorf("the metadata of the policy's %s is no JSON object", manifestFile)
		}
		metadata = map[string]any{}
	}
	own := map[string]any{"version": c.Version}
	if len(c.AcceptRemoved) > 0 {
		own["accept_removed_tests"] = c.AcceptRemoved
	}
	metadata[metadataName] = own
	manifest["metadata"], manifest["revision"] = metadata, c.Source.Revision()
	raw, err := json.MarshalIndent(manifest, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the bundle's manifest: %w", err)
	}
	return append(raw, '\n'), nil
}

func packFiles(files map[string][]byte) ([]byte, error) {
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	packed := tar.NewWriter(zipped)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name])), Format: tar.FormatPAX}
		if err := packed.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("pack %s: %w", name, err)
		}
		if _, err := packed.Write(files[name]); err != nil {
			return nil, fmt.Errorf("pack %s: %w", name, err)
		}
	}
	if err := errors.Join(packed.Close(), zipped.Close()); err != nil {
		return nil, fmt.Errorf("pack the bundle: %w", err)
	}
	if out.Len() > MaxArchive {
		return nil, fmt.Errorf("the bundle has %d bytes; at most %d are accepted", out.Len(), MaxArchive)
	}
	return out.Bytes(), nil
}

// Signer signs bundles with a private key. It prints as its name alone.
type Signer struct {
	id        string
	algorithm Algorithm
	public    publicKey
	pem       string
}

// Format implements fmt.Formatter, so that no verb reaches the key.
func (*Signer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "Signer[REDACTED]") }

// NewSigner takes a private key in PEM form (PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY)
// with the id by which those who verify know it. The algorithm is the key's; when one is
// given, it must be that one.
func NewSigner(private []byte, id string, algorithm Algorithm) (*Signer, error) {
	if !validKeyID(id) {
		return nil, errors.New("a key's id has 1 to 64 characters a-z A-Z 0-9 . _ -")
	}
	key, err := parsePrivate(private)
	if err != nil {
		return nil, err
	}
	s := &Signer{id: id}
	if s.algorithm, err = algorithmOf(key.Public()); err != nil {
		return nil, err
	}
	if algorithm != "" && algorithm != s.algorithm {
		return nil, fmt.Errorf("the key is one for %s, not for %q", s.algorithm, algorithm)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err == nil {
		s.public, err = parsePublic("PUBLIC KEY", public)
	}
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write the private key: %w", err)
	}
	s.pem = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return s, nil
}

// Keys are the one key that verifies what the signer signs.
func (s *Signer) Keys() Keys { return Keys{byID: map[string]publicKey{s.id: s.public}} }

// parsePrivate reads the first private key; openssl writes the parameters of a curve before it.
func parsePrivate(text []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch {
		case block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted; decrypt it first (openssl pkey)")
		case block.Type == "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case block.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case block.Type == "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			continue
		}
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, errors.New("the private key cannot be read")
		}
		return signer, nil
	}
	return nil, errors.New("there is no private key in PEM form")
}

// sign returns a .signatures.json of files by their paths.
func (s *Signer) sign(files map[string][]byte) ([]byte, error) {
	hasher, err := opabundle.NewSignatureHasher(opabundle.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign the bundle: %w", err)
	}
	var all []opabundle.FileInfo
	for _, name := range slices.Sorted(maps.Keys(files)) {
		var value any = files[name]
		if opabundle.IsStructuredDoc(name) {
			value = nil
			if err := util.Unmarshal(files[name], &value); err != nil {
				return nil, fmt.Errorf("hash %s: %w", name, err)
			}
		}
		sum, err := hasher.HashFile(value)
		if err != nil {
			return nil, fmt.Errorf("hash %s: %w", name, err)
		}
		all = append(all, opabundle.NewFile(name, hex.EncodeToString(sum), opabundle.SHA256.String()))
	}
	token, err := opabundle.GenerateSignedToken(all, opabundle.NewSigningConfig(s.pem, string(s.algorithm), ""), s.id)
	if err != nil {
		return nil, fmt.Errorf("sign the bundle: %w", err)
	}
	raw, err := json.Marshal(opabundle.SignaturesConfig{Signatures: []string{token}})
	if err != nil {
		return nil, fmt.Errorf("write the bundle's signature: %w", err)
	}
	return raw, nil
}
