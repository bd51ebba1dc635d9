package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/supportstation/keystile/authz/policy"
)

// Read reads a bundle: a gzipped tar with a policy's files, a .manifest and a
// .signatures.json, as OPA has them. It must be signed by one of the keys, which the
// signature names; its manifest must have a version, and the revision of exactly these files;
// and there must be no others. However large it says to be, no more is unpacked than a policy
// may have.
//
// What is signed is therefore every byte of it. OPA alone signs what data means, so that two
// texts could have one signature, and be read differently.
func Read(archive []byte, keys Keys) (*Policy, error) {
	files, err := unpack(archive)
	if err != nil {
		return nil, err
	}
	signed, keyID, err := verify(files[signaturesFile], keys)
	if err != nil {
		return nil, err
	}
	p := &Policy{KeyID: keyID}
	revision, err := p.readManifest(files[manifestFile], signed)
	if err != nil {
		return nil, err
	}
	delete(files, signaturesFile)
	delete(files, manifestFile)
	texts := make(map[string]string, len(files))
	for name, content := range files {
		texts[name] = string(content)
	}
	if p.Source, err = policy.SourceOf(texts); err != nil {
		return nil, err //nolint:wrapcheck // it says file and line
	}
	if p.Source.Revision() != revision {
		return nil, fmt.Errorf("the bundle's files are not those that were signed: they are %s, its manifest says %q", p.Source.Revision(), short(revision))
	}
	// Only now is data parsed, which the hashes that OPA signs ask for.
	for name, content := range files {
		if err := opabundle.VerifyBundleFile(name, *bytes.NewBuffer(content), signed); err != nil {
			return nil, fmt.Errorf("the bundle's files are not those that were signed: %w", err)
		}
	}
	for name := range signed {
		return nil, fmt.Errorf("the bundle lacks %q, which was signed with it", short(name))
	}
	return p, nil
}

// unpack reads the entries of an archive by their paths. Nothing is a link, and nothing is
// there twice: another reader could take the other one.
func unpack(archive []byte) (map[string][]byte, error) {
	if len(archive) > MaxArchive {
		return nil, fmt.Errorf("the bundle has more than %d bytes", MaxArchive)
	}
	zipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, fmt.Errorf("the bundle is not gzipped: %w", err)
	}
	limited := &io.LimitedReader{R: zipped, N: maxUnpacked}
	packed := tar.NewReader(limited)
	files := map[string][]byte{}
	size := 0
	for {
		header, err := packed.Next()
		if err == nil && header.Typeflag == tar.TypeDir {
			continue
		}
		var name string
		if err == nil {
			name = path.Clean(strings.TrimPrefix(header.Name, "/"))
			files[name], err = readEntry(packed, header, name, files)
			size += len(files[name]) // the holes of a sparse file are not in the archive
		}
		switch {
		case limited.N <= 0, size > maxUnpacked:
			return nil, errUnpacked()
		case errors.Is(err, io.EOF):
			// To the end, where the checksum is: what was cut off is not whole.
			if _, err := io.Copy(io.Discard, limited); err != nil {
				return nil, fmt.Errorf("the bundle is not whole: %w", err)
			}
			if limited.N > 0 {
				return files, nil
			}
			return nil, errUnpacked()
		case err != nil:
			return nil, fmt.Errorf("the bundle cannot be read: %w", err)
		}
	}
}

func errUnpacked() error {
	return fmt.Errorf("the bundle has more than %d bytes when it is unpacked", maxUnpacked)
}

func readEntry(packed io.Reader, header *tar.Header, name string, files map[string][]byte) ([]byte, error) {
	if header.Typeflag != tar.TypeReg {
		return nil, fmt.Errorf("%q is not a regular file", short(name))
	}
	if _, ok := files[name]; ok {
		return nil, fmt.Errorf("%q is there twice", short(name))
	}
	if len(files) >= policy.MaxFiles+2 {
		return nil, fmt.Errorf("it has more than %d files", policy.MaxFiles)
	}
	most := int64(policy.MaxBytes)
	switch name {
	case manifestFile:
		most = maxManifest
	case signaturesFile:
		most = maxSignatures
	}
	content, err := io.ReadAll(io.LimitReader(packed, most+1))
	if err == nil && int64(len(content)) > most {
		err = fmt.Errorf("%q has more than %d bytes", short(name), most)
	}
	return content, err
}

// verify reads a bundle's one signature, and returns what it says to be signed, by path, and
// by which key.
func verify(raw []byte, keys Keys) (signed map[string]opabundle.FileInfo, keyID string, err error) {
	if raw == nil {
		return nil, "", errors.New("the bundle is not signed: it has no " + signaturesFile)
	}
	var all opabundle.SignaturesConfig
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, "", fmt.Errorf("the bundle's %s is no JSON of signatures", signaturesFile)
	}
	if len(all.Signatures) != 1 || all.Plugin != "" && all.Plugin != noPlugin {
		return nil, "", fmt.Errorf("the bundle's %s must have exactly one signature, and no plugin", signaturesFile)
	}
	keyID, key, err := keys.keyOf(all.Signatures[0])
	if err != nil {
		return nil, "", err
	}
	// The key and its algorithm are said, not taken from what is signed.
	all.Plugin = ""
	signed, err = opabundle.VerifyBundleSignature(all, opabundle.NewVerificationConfig(map[string]*opabundle.KeyConfig{
		keyID: {Key: key.pem, Algorithm: string(key.algorithm)},
	}, keyID, "", nil))
	if err != nil {
		return nil, "", fmt.Errorf("the bundle's signature does not hold for the key %q: %w", keyID, err)
	}
	for name, file := range signed {
		if !slices.Contains([]string{"SHA-256", "SHA-384", "SHA-512"}, file.Algorithm) {
			return nil, "", fmt.Errorf("the bundle's signature has a %q of %q; accepted are SHA-256, SHA-384 and SHA-512", short(file.Algorithm), short(name))
		}
	}
	return signed, keyID, nil
}

// keyOf is the key that a signature (RFC 7515, compact) names; it says its algorithm as well.
// The stock `opa sign` names it in a claim, keyid, in place of the header.
func (k Keys) keyOf(token string) (id string, key publicKey, err error) {
	first, rest, _ := strings.Cut(token, ".")
	var header struct {
		Algorithm Algorithm       `json:"alg"`
		KeyID     string          `json:"kid"`
		Critical  json.RawMessage `json:"crit"`
	}
	err = readPart(first, &header)
	if err == nil && header.KeyID == "" {
		second, _, _ := strings.Cut(rest, ".")
		var claims struct {
			KeyID string `json:"keyid"`
		}
		err = readPart(second, &claims)
		header.KeyID = claims.KeyID
	}
	if err != nil {
		return "", key, errors.New("the bundle's signature is no JSON Web Token")
	}
	key, known := k.byID[header.KeyID]
	switch {
	case header.Algorithm != ES256 && header.Algorithm != RS256:
		return "", key, fmt.Errorf("the bundle is signed with %q; accepted are ES256 and RS256", short(string(header.Algorithm)))
	case header.Critical != nil:
		return "", key, errors.New("the bundle's signature has critical headers, and none is understood")
	case header.KeyID == "":
		return "", key, errors.New("the bundle's signature does not name its key (kid, or the claim keyid)")
	case !known:
		return "", key, fmt.Errorf("the bundle is signed by the key %q; known are %s", short(header.KeyID), strings.Join(k.IDs(), ", "))
	case key.algorithm != header.Algorithm:
		return "", key, fmt.Errorf("the bundle is signed with %s, and the key %q is one for %s", header.Algorithm, header.KeyID, key.algorithm)
	}
	return header.KeyID, key, nil
}

// readPart reads a part of a token.
func readPart(text string, into any) error {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// readManifest reads what the manifest says, once it is known to be what was signed, and
// returns the revision of the files that belong to it.
func (p *Policy) readManifest(raw []byte, signed map[string]opabundle.FileInfo) (revision string, err error) {
	if raw == nil {
		return "", errors.New("the bundle has no " + manifestFile + "; keystile policy bundle build writes one")
	}
	if !json.Valid(raw) {
		return "", fmt.Errorf("the bundle's %s is no JSON", manifestFile)
	}
	if err := opabundle.VerifyBundleFile(manifestFile, *bytes.NewBuffer(raw), signed); err != nil {
		return "", fmt.Errorf("the bundle's manifest is not the one that was signed: %w", err)
	}
	// As it was hashed, so that there is no second way to read it.
	var manifest map[string]any
	if err := util.UnmarshalJSON(raw, &manifest); err != nil {
		return "", fmt.Errorf("the bundle's %s is no JSON object", manifestFile)
	}
	revision, _ = manifest["revision"].(string)
	metadata, _ := manifest["metadata"].(map[string]any)
	own, _ := metadata[metadataName].(map[string]any)
	number, _ := own["version"].(json.Number)
	p.Version, err = number.Int64()
	if err != nil || p.Version < 1 || p.Version > MaxVersion {
		return "", fmt.Errorf("the bundle's manifest has no metadata.%s.version from 1 to %d", metadataName, int64(MaxVersion))
	}
	accepted, ok := own["accept_removed_tests"].([]any)
	if !ok && own["accept_removed_tests"] != nil {
		return "", errAccepted()
	}
	for _, name := range accepted {
		text, ok := name.(string)
		if !ok {
			return "", errAccepted()
		}
		p.AcceptRemoved = append(p.AcceptRemoved, text)
	}
	return revision, nil
}

func errAccepted() error {
	return fmt.Errorf("the bundle's metadata.%s.accept_removed_tests is no list of names", metadataName)
}

// short bounds what somebody else has written, for a message.
func short(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
