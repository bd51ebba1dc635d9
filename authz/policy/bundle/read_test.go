package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
)

// withSignature is a bundle whose signatures say something else.
func withSignature(t *testing.T, archive []byte, tokens ...string) []byte {
	t.Helper()
	files := entries(t, archive)
	raw, err := json.Marshal(opabundle.SignaturesConfig{Signatures: tokens})
	if err != nil {
		t.Fatal(err)
	}
	files[signaturesFile] = raw
	return repacked(t, files)
}

func tokenOf(t *testing.T, archive []byte) string {
	t.Helper()
	var all opabundle.SignaturesConfig
	if err := json.Unmarshal(entries(t, archive)[signaturesFile], &all); err != nil {
		t.Fatal(err)
	}
	return all.Signatures[0]
}

// retold is a token with another header, signed by what sign does with the rest.
func retold(token string, header map[string]any, sign func(text string) []byte) string {
	raw, _ := json.Marshal(header)
	parts := strings.Split(token, ".")
	text := base64.RawURLEncoding.EncodeToString(raw) + "." + parts[1]
	if sign == nil {
		return text + "." + parts[2]
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sign(text))
}

// signText signs as RFC 7518, 3.4 has it for ES256.
func (s *Signer) signText(t *testing.T) func(text string) []byte {
	t.Helper()
	return func(text string) []byte {
		key, err := parsePrivate([]byte(s.pem))
		if err != nil {
			t.Fatal(err)
		}
		own, ok := key.(*ecdsa.PrivateKey)
		if !ok {
			t.Fatalf("%T", key)
		}
		sum := sha256.Sum256([]byte(text))
		r, n, err := ecdsa.Sign(rand.Reader, own, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), n.FillBytes(make([]byte, 32))...)
	}
}

func TestRead_WhatIsNotSignedByAKnownKeyIsRefused(t *testing.T) {
	s, other, rs := newSigner(t, "k", ES256), newSigner(t, "other", ES256), newSigner(t, "rs", RS256)
	keys, err := ParseKeys(keysText(s, rs))
	if err != nil {
		t.Fatal(err)
	}
	good := packed(t, contents(t, 7), s)
	if _, err := Read(good, keys); err != nil {
		t.Fatal(err)
	}
	token := tokenOf(t, good)
	// As the stock opa writes both: the key's id is a claim, and its own way to sign has a name.
	stock := func(id string) []byte {
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		var claims map[string]any
		if err == nil {
			err = json.Unmarshal(payload, &claims)
		}
		if err != nil {
			t.Fatal(err)
		}
		claims["keyid"] = id
		if payload, err = json.Marshal(claims); err != nil {
			t.Fatal(err)
		}
		files := entries(t, good)
		text := retold("."+base64.RawURLEncoding.EncodeToString(payload)+".", map[string]any{"alg": "ES256"}, s.signText(t))
		files[signaturesFile] = []byte(`{"signatures":["` + text + `"],"plugin":"_default"}`)
		return repacked(t, files)
	}
	if p, err := Read(stock("k"), keys); err != nil || p.KeyID != "k" {
		t.Errorf("as the stock opa signs: %v, %v", p, err)
	}
	forger, err := NewSigner(newKey(t, ES256), "k", ES256)
	if err != nil {
		t.Fatal(err)
	}
	// The public key as the secret of HMAC: what verifies by the header's algorithm takes it.
	confused := retold(token, map[string]any{"alg": "HS256", "kid": "k"}, func(text string) []byte {
		mac := hmac.New(sha256.New, []byte(s.public.pem))
		mac.Write([]byte(text))
		return mac.Sum(nil)
	})
	unsigned := entries(t, good)
	delete(unsigned, signaturesFile)
	plugin := entries(t, good)
	plugin[signaturesFile] = []byte(`{"signatures":["` + token + `"],"plugin":"theirs"}`)
	for name, c := range map[string]struct {
		archive []byte
		keys    Keys
		says    string
	}{
		"unsigned":                  {repacked(t, unsigned), keys, "not signed"},
		"no signature in the file":  {withSignature(t, good), keys, "exactly one"},
		"two signatures":            {withSignature(t, good, token, token), keys, "exactly one"},
		"a plugin of its own":       {repacked(t, plugin), keys, "no plugin"},
		"an unknown key":            {packed(t, contents(t, 7), other), keys, `"other"; known are k, rs`},
		"another key by that id":    {packed(t, contents(t, 7), forger), keys, "does not hold"},
		"no keys at all":            {good, Keys{}, "known are"},
		"HS256 with the public key": {withSignature(t, good, confused), keys, `"HS256"; accepted`},
		"none":                      {withSignature(t, good, retold(token, map[string]any{"alg": "none", "kid": "k"}, func(string) []byte { return nil })), keys, `"none"; accepted`},
		"the other algorithm":       {withSignature(t, good, retold(token, map[string]any{"alg": "RS256", "kid": "k"}, nil)), keys, "is one for ES256"},
		"the other key's id":        {withSignature(t, good, retold(token, map[string]any{"alg": "RS256", "kid": "rs"}, nil)), keys, "does not hold"},
		"no key id":                 {stock(""), keys, "does not name its key"},
		"an unknown key's claim":    {stock("x"), keys, `"x"; known are k, rs`},
		"another key's claim":       {stock("rs"), keys, "is one for RS256"},
		"critical headers":          {withSignature(t, good, retold(token, map[string]any{"alg": "ES256", "kid": "k", "crit": []string{"b64"}}, nil)), keys, "critical"},
		"another header":            {withSignature(t, good, retold(token, map[string]any{"alg": "ES256", "kid": "k", "typ": "x"}, nil)), keys, "does not hold"},
		"no token":                  {withSignature(t, good, "x"), keys, "JSON Web Token"},
	} {
		p, err := Read(c.archive, c.keys)
		if err == nil || p != nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v; want it to say %q", name, p, err, c.says)
		}
	}
}

// Every byte counts: also what OPA's own hash of data leaves out.
func TestRead_WhatWasChangedAfterItWasSignedIsRefused(t *testing.T) {
	s := newSigner(t, "k", ES256)
	good := packed(t, contents(t, 7), s)
	later := entries(t, packed(t, contents(t, 8), s))
	for name, c := range map[string]struct {
		change func(map[string][]byte)
		says   string
	}{
		"a rule":            {func(f map[string][]byte) { f["keystile/a.rego"] = append(f["keystile/a.rego"], '\n') }, "not those that were signed"},
		"a test":            {func(f map[string][]byte) { f["keystile/a_test.rego"] = []byte("package keystile.a_test\n") }, "not those that were signed"},
		"data":              {func(f map[string][]byte) { f["keystile/b/data.yaml"] = []byte("y: 2\n") }, "not those that were signed"},
		"a comment in data": {func(f map[string][]byte) { f["keystile/b/data.yaml"] = []byte("# two\ny: 1\n") }, "not those that were signed"},
		"one more file":     {func(f map[string][]byte) { f["keystile/c.rego"] = []byte("package keystile.c\n") }, "not those that were signed"},
		"one file less":     {func(f map[string][]byte) { delete(f, "keystile/a_test.rego") }, "not those that were signed"},
		"a renamed file":    {func(f map[string][]byte) { f["z.rego"] = f["keystile/a.rego"]; delete(f, "keystile/a.rego") }, "not those that were signed"},
		"its version": {func(f map[string][]byte) {
			f[manifestFile] = bytes.Replace(f[manifestFile], []byte(`"version": 7`), []byte(`"version": 9`), 1)
		}, "not the one that was signed"},
		"another's manifest":  {func(f map[string][]byte) { f[manifestFile] = later[manifestFile] }, "not the one that was signed"},
		"another's signature": {func(f map[string][]byte) { f[signaturesFile] = later[signaturesFile] }, "not the one that was signed"},
		"no manifest":         {func(f map[string][]byte) { delete(f, manifestFile) }, "no .manifest"},
	} {
		files := entries(t, good)
		before := maps.Clone(files)
		c.change(files)
		if maps.EqualFunc(files, before, bytes.Equal) {
			t.Fatalf("%s changes nothing", name)
		}
		p, err := Read(repacked(t, files), s.Keys())
		if err == nil || p != nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v; want it to say %q", name, p, err, c.says)
		}
	}
}

// What is signed must still say what it is.
func TestRead_AManifestHasVersionAndRevision(t *testing.T) {
	s := newSigner(t, "k", ES256)
	resigned := func(change func(map[string][]byte)) []byte {
		files := entries(t, packed(t, contents(t, 7), nil))
		change(files)
		var err error
		if files[signaturesFile], err = s.sign(files); err != nil {
			t.Fatal(err)
		}
		return repacked(t, files)
	}
	manifest := func(text string) []byte {
		return resigned(func(f map[string][]byte) {
			f[manifestFile] = []byte(strings.ReplaceAll(text, "REVISION", contents(t, 1).Source.Revision()))
		})
	}
	if _, err := Read(manifest(`{"revision":"REVISION","metadata":{"keystile":{"version":7}}}`), s.Keys()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		archive []byte
		says    string
	}{
		"no version":            {manifest(`{"revision":"REVISION"}`), "version"},
		"version 0":             {manifest(`{"revision":"REVISION","metadata":{"keystile":{"version":0}}}`), "version"},
		"a version in quotes":   {manifest(`{"revision":"REVISION","metadata":{"keystile":{"version":"7"}}}`), "version"},
		"a fraction":            {manifest(`{"revision":"REVISION","metadata":{"keystile":{"version":7.5}}}`), "version"},
		"too high a version":    {manifest(`{"revision":"REVISION","metadata":{"keystile":{"version":9007199254740992}}}`), "version"},
		"other spelling":        {manifest(`{"revision":"REVISION","metadata":{"keystile":{"Version":7}}}`), "version"},
		"no revision":           {manifest(`{"metadata":{"keystile":{"version":7}}}`), "not those that were signed"},
		"another revision":      {manifest(`{"revision":"sha256:1","metadata":{"keystile":{"version":7}}}`), "not those that were signed"},
		"accepted tests as one": {manifest(`{"revision":"REVISION","metadata":{"keystile":{"version":7,"accept_removed_tests":"x"}}}`), "accept_removed_tests"},
		"an accepted number":    {manifest(`{"revision":"REVISION","metadata":{"keystile":{"version":7,"accept_removed_tests":[1]}}}`), "accept_removed_tests"},
		"a list":                {manifest(`[]`), "no JSON object"},
		"YAML":                  {manifest("revision: REVISION\n"), "no JSON"},
		"a file of another kind": {resigned(func(f map[string][]byte) {
			f["data.json"] = []byte(`{}`)
		}), "data.json"},
		"a hidden file": {resigned(func(f map[string][]byte) { f[".x.rego"] = []byte("package x\n") }), "path"},
		"a way out":     {resigned(func(f map[string][]byte) { f["../x.rego"] = []byte("package x\n") }), "path"},
	} {
		p, err := Read(c.archive, s.Keys())
		if err == nil || p != nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v; want it to say %q", name, p, err, c.says)
		}
	}
	// What was signed and is not there.
	files := entries(t, packed(t, contents(t, 7), nil))
	more := maps.Clone(files)
	more["README.md"] = []byte("x")
	var err error
	if files[signaturesFile], err = s.sign(more); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(repacked(t, files), s.Keys()); err == nil || !strings.Contains(err.Error(), "README.md") {
		t.Errorf("a signed file is missing: %v", err)
	}
}

// rawArchive has entries as they come.
func rawArchive(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	packed := tar.NewWriter(zipped)
	for _, h := range headers {
		if err := packed.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(packed, zeros{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sparseArchive has so many files that are said to be large and are nothing but a hole.
func sparseArchive(t *testing.T, files int) []byte {
	t.Helper()
	var out bytes.Buffer
	packed := tar.NewWriter(&out)
	for i := range files {
		// The library writes no such records, so they get their name afterwards.
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d.rego", i), Mode: 0o600, Size: 512,
			PAXRecords: map[string]string{"not.sparse.major": "1", "not.sparse.minor": "0", "not.sparse.realsize": "6291456"},
		}
		if err := packed.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := packed.Write(append([]byte("0\n"), make([]byte, 510)...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	if _, err := zipped.Write(bytes.ReplaceAll(out.Bytes(), []byte("not.sparse"), []byte("GNU.sparse"))); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestRead_AnArchiveIsBoundedWholeAndPlain(t *testing.T) {
	s := newSigner(t, "k", ES256)
	good := packed(t, contents(t, 7), s)
	regular := func(name string, size int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: size}
	}
	var many []tar.Header
	for i := range 2100 {
		many = append(many, regular(fmt.Sprintf("%d.rego", i), 0))
	}
	for name, c := range map[string]struct {
		archive []byte
		says    string
	}{
		"nothing":               {nil, "not gzipped"},
		"a page of HTML":        {[]byte("<html>"), "not gzipped"},
		"half of it":            {good[:len(good)/2], "unexpected EOF"},
		"without its end":       {good[:len(good)-1], "not whole"},
		"with something behind": {append(bytes.Clone(good), "more"...), "not whole"},
		"too large":             {make([]byte, MaxArchive+1), "more than"},
		"too large a file":      {rawArchive(t, regular("a.rego", 7<<20)), "more than"},
		"too large a manifest":  {rawArchive(t, regular(manifestFile, maxManifest+1)), "more than"},
		"much of nothing":       {rawArchive(t, regular("a.rego", 6<<20), regular("b.rego", 6<<20), regular("c.rego", 6<<20), regular("d.rego", 6<<20), regular("e.rego", 6<<20)), "more than"},
		"holes":                 {sparseArchive(t, 5), "more than 25165824 bytes when"},
		"too many files":        {rawArchive(t, many...), "more than"},
		"a file twice":          {rawArchive(t, regular("a.rego", 1), regular("a.rego", 2)), "twice"},
		"twice by two names":    {rawArchive(t, regular("a.rego", 1), regular("./x/../a.rego", 2)), "twice"},
		"a link":                {rawArchive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "a.rego", Linkname: "/etc/passwd"}), "not a regular file"},
		"a device":              {rawArchive(t, tar.Header{Typeflag: tar.TypeChar, Name: "a.rego"}), "not a regular file"},
	} {
		p, err := Read(c.archive, s.Keys())
		if err == nil || p != nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v; want it to say %q", name, p, err, c.says)
		}
	}
}

// FuzzRead: whatever is accepted has the version and the files that were signed.
func FuzzRead(f *testing.F) {
	s := newSigner(f, "k", ES256)
	good := packed(f, contents(f, 7), s)
	files, err := unpack(good)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(files[manifestFile], files[signaturesFile], files["keystile/b/data.yaml"], "x.rego")
	f.Add([]byte("{}"), []byte(`{"signatures":["a.b.c"]}`), []byte("&a [*a]"), "../x")
	f.Add([]byte(`{"revision":1}`), files[signaturesFile], []byte("{"), ".manifest")
	wanted := contents(f, 7).Source.Revision()
	f.Fuzz(func(t *testing.T, manifest, signatures, data []byte, name string) {
		changed := maps.Clone(files)
		changed[manifestFile], changed[signaturesFile], changed["keystile/b/data.yaml"] = manifest, signatures, data
		if name != "" {
			changed[name] = data
		}
		archive, err := packFiles(changed)
		if err != nil {
			return
		}
		if p, err := Read(archive, s.Keys()); err == nil && (p.Version != 7 || p.Source.Revision() != wanted) {
			t.Errorf("accepted: version %d, %s", p.Version, p.Source.Revision())
		}
	})
}
