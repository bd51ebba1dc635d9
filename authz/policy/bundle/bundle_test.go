package bundle

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"

	"github.com/supportstation/keystile/authz/policy"
)

// newKey is a private key in PEM form.
func newKey(t testing.TB, algorithm Algorithm) []byte {
	t.Helper()
	var key any
	var err error
	if algorithm == RS256 {
		key, err = rsa.GenerateKey(rand.Reader, minRSA)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func newSigner(t testing.TB, id string, algorithm Algorithm) *Signer {
	t.Helper()
	s, err := NewSigner(newKey(t, algorithm), id, algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// contents are a small policy.
func contents(t testing.TB, version int64) Contents {
	t.Helper()
	source, err := policy.SourceOf(map[string]string{
		"keystile/a.rego":      "package keystile.a\n\nx := data.keystile.b.y\n",
		"keystile/a_test.rego": "package keystile.a_test\n\ntest_x if data.keystile.a.x == 1\n",
		"keystile/b/data.yaml": "# one\ny: 1\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	return Contents{Source: source, Version: version, AcceptRemoved: []string{"data.keystile.a_test.test_x"}}
}

func packed(t testing.TB, c Contents, s *Signer) []byte {
	t.Helper()
	archive, err := c.Pack(s)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// entries are those of an archive that was packed here.
func entries(t testing.TB, archive []byte) map[string][]byte {
	t.Helper()
	files, err := unpack(archive)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func repacked(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	archive, err := packFiles(files)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// keysText is how keys are configured.
func keysText(signers ...*Signer) string {
	var text strings.Builder
	for _, s := range signers {
		fmt.Fprintf(&text, "%s:%s", s.id, s.public.pem)
	}
	return text.String()
}

func TestRead_ABundleIsWhatWasPacked(t *testing.T) {
	for _, algorithm := range []Algorithm{ES256, RS256} {
		s := newSigner(t, "security-2026.b", algorithm)
		c := contents(t, 7)
		p, err := Read(packed(t, c, s), s.Keys())
		if err != nil {
			t.Fatal(err)
		}
		if p.Version != 7 || p.KeyID != "security-2026.b" || !slices.Equal(p.AcceptRemoved, c.AcceptRemoved) ||
			p.Source.Revision() != c.Source.Revision() || !maps.Equal(p.Source.Files(), c.Source.Files()) {
			t.Errorf("%s: %+v", algorithm, p)
		}
	}
}

// The stock opa reads it, verifies its signature, and finds what it verifies changed as we do.
func TestPack_StockOPATakesIt(t *testing.T) {
	s := newSigner(t, "k", ES256)
	c := contents(t, 7)
	c.Manifest = []byte(`{"roots": ["keystile"], "rego_version": 1, "metadata": {"team": "security"}}`)
	archive := packed(t, c, s)
	stock := func(archive []byte) (opabundle.Bundle, error) {
		return opabundle.NewReader(bytes.NewReader(archive)).WithBundleVerificationConfig(opabundle.NewVerificationConfig(
			map[string]*opabundle.KeyConfig{"k": {Key: s.public.pem, Algorithm: "ES256"}}, "", "", nil)).Read()
	}
	b, err := stock(archive)
	if err != nil {
		t.Fatal(err)
	}
	if b.Manifest.Revision != c.Source.Revision() || !slices.Equal(*b.Manifest.Roots, []string{"keystile"}) ||
		b.Manifest.Metadata["team"] != "security" || len(b.Modules) != 2 {
		t.Errorf("%+v", b.Manifest)
	}
	files := entries(t, archive)
	files["keystile/a.rego"] = []byte("package keystile.a\n\nx := 2\n")
	if _, err := stock(repacked(t, files)); err == nil {
		t.Error("stock opa does not verify, so this test says nothing")
	}
}

func TestPack_AnUnsignedOneCanBeSignedElsewhere(t *testing.T) {
	s := newSigner(t, "k", ES256)
	files := entries(t, packed(t, contents(t, 3), nil))
	var err error
	if files[signaturesFile], err = s.sign(files); err != nil {
		t.Fatal(err)
	}
	if p, err := Read(repacked(t, files), s.Keys()); err != nil || p.Version != 3 {
		t.Errorf("%v, %v", p, err)
	}
}

func TestPack_RefusesWhatCannotBePublished(t *testing.T) {
	for _, version := range []int64{0, -1, MaxVersion + 1} {
		c := contents(t, version)
		if _, err := c.Pack(nil); err == nil {
			t.Errorf("version %d is packed", version)
		}
	}
	for _, manifest := range []string{"", "[]", "null", `{"metadata": 1}`, "roots: []"} {
		c := contents(t, 1)
		c.Manifest = []byte(manifest)
		if _, err := c.Pack(nil); err == nil {
			t.Errorf("with the manifest %q it is packed", manifest)
		}
	}
}

func TestCheckStock_TellsWhatStockOPAWouldSay(t *testing.T) {
	c := contents(t, 1)
	if err := CheckStock(packed(t, c, nil)); err != nil {
		t.Error(err)
	}
	c.Manifest = []byte(`{"roots": ["elsewhere"]}`)
	if err := CheckStock(packed(t, c, nil)); err == nil || !strings.Contains(err.Error(), "roots") {
		t.Error(err)
	}
}

func TestKeys_ManyFormsAreRead(t *testing.T) {
	a, b := newSigner(t, "a", ES256), newSigner(t, "b", RS256)
	line := func(s *Signer) string {
		block, _ := pem.Decode([]byte(s.public.pem))
		return strings.Join(strings.Split(strings.TrimSpace(string(pem.EncodeToMemory(block))), "\n")[1:], "")
	}
	short := func(s *Signer) string { return strings.TrimSuffix(line(s), "-----END PUBLIC KEY-----") }
	for name, text := range map[string]string{
		"PEM, one below the other": keysText(a, b),
		"PEM with commas":          "a:" + strings.TrimSpace(a.public.pem) + ",b:" + b.public.pem,
		"PEM in one line":          strings.ReplaceAll(keysText(a, b), "\n", `\n`),
		"PEM with CRLF":            strings.ReplaceAll(keysText(a, b), "\n", "\r\n"),
		"PEM on its own line":      "a:\n" + a.public.pem + "\nb:\n" + b.public.pem,
		"base64":                   "a:" + short(a) + ",b:" + short(b),
		"base64 in lines":          "a:" + short(a) + "\n  b:" + short(b) + "\n",
		"mixed":                    "a:" + short(a) + "\nb:" + b.public.pem,
	} {
		keys, err := ParseKeys(text)
		if err != nil || !slices.Equal(keys.IDs(), []string{"a", "b"}) || keys.byID["a"] != a.public || keys.byID["b"] != b.public {
			t.Errorf("%s: %v, %v", name, keys.IDs(), err)
		}
	}
}

func TestKeys_WhatIsNoPublicKeyForOneAlgorithmIsRefused(t *testing.T) {
	a := newSigner(t, "a", ES256)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := func(key any) string {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	headless, _, _ := strings.Cut(a.public.pem, "-----END")
	for name, c := range map[string]struct{ text, says string }{
		"nothing":                {" \n", "no key"},
		"no id":                  {a.public.pem, "id"},
		"a bad id":               {"a b:" + a.public.pem, "id"},
		"an empty id":            {":" + a.public.pem, "id"},
		"twice":                  {keysText(a, a), "twice"},
		"a private key":          {"a:" + a.pem, "private"},
		"a small RSA key":        {"a:" + public(&small.PublicKey), "accepted"},
		"another curve":          {"a:" + public(&other.PublicKey), "accepted"},
		"a shared secret":        {"a:c2VjcmV0", "public key"},
		"text":                   {"a:secret!", "base64"},
		"half of one":            {"a:" + headless, "broken"},
		"half of one, and other": {"a:" + headless + "\nb:" + a.public.pem, "broken"},
		"a certificate":          {"a:" + strings.ReplaceAll(a.public.pem, "PUBLIC KEY", "CERTIFICATE"), "no PUBLIC KEY"},
		"too many":               {keysText(a) + strings.Repeat("x:y,", maxKeys), "base64"},
	} {
		keys, err := ParseKeys(c.text)
		if err == nil || !strings.Contains(err.Error(), c.says) || len(keys.IDs()) != 0 {
			t.Errorf("%s: %v, %v; want it to say %q", name, keys.IDs(), err, c.says)
		}
		if err != nil && (strings.Contains(err.Error(), "secret!") || strings.Contains(err.Error(), "MIG")) {
			t.Errorf("%s: the error repeats what was given: %v", name, err)
		}
	}
}

func TestSigner_TakesWhatOpensslWritesAndShowsNothing(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 1, 1}}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...)
	s, err := NewSigner(text, "k", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Read(packed(t, contents(t, 1), s), s.Keys()); err != nil {
		t.Error(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if shown := fmt.Sprintf(verb, s); shown != "Signer[REDACTED]" {
			t.Errorf("%s prints %s", verb, shown)
		}
	}
	for name, c := range map[string]struct {
		text      []byte
		id        string
		algorithm Algorithm
	}{
		"another algorithm": {text, "k", RS256},
		"none":              {text, "k", "none"},
		"HS256":             {text, "k", "HS256"},
		"no id":             {text, "", ES256},
		"a public key":      {[]byte(s.public.pem), "k", ES256},
		"nothing":           {nil, "k", ES256},
	} {
		if _, err := NewSigner(c.text, c.id, c.algorithm); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
