package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Archive returns the policy as a gzipped tar, in the layout of an OPA bundle, so that
// `opa test` and `opa inspect` read it as it is. The same policy gives the same bytes.
func (s *Source) Archive() ([]byte, error) {
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	packed := tar.NewWriter(zipped)
	for _, f := range s.files {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: 0o644, Size: int64(len(f.content)), Format: tar.FormatPAX}
		if err := packed.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.path, err)
		}
		if _, err := packed.Write(f.content); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.path, err)
		}
	}
	if err := errors.Join(packed.Close(), zipped.Close()); err != nil {
		return nil, fmt.Errorf("pack the policy: %w", err)
	}
	return out.Bytes(), nil
}

// ReadArchive reads what Archive has made, or an OPA bundle: an archive's own
// bookkeeping (.manifest, .signatures.json) is no part of the policy. However large it
// says to be, no more is read than a policy may have.
func ReadArchive(archive []byte) (*Source, error) {
	zipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, fmt.Errorf("the policy's archive is not gzipped: %w", err)
	}
	// Headers of files that are left out count as well: an archive of them must end too.
	limited := &io.LimitedReader{R: zipped, N: 4 * MaxBytes}
	packed := tar.NewReader(limited)
	var c collector
	for {
		header, err := packed.Next()
		if limited.N <= 0 {
			return nil, fmt.Errorf("the policy's archive has more than %d bytes", 4*MaxBytes)
		}
		if errors.Is(err, io.EOF) {
			return c.source()
		}
		if err != nil {
			return nil, fmt.Errorf("the policy's archive cannot be read: %w", err)
		}
		name := path.Clean(strings.TrimPrefix(header.Name, "/"))
		if header.Typeflag != tar.TypeReg || strings.HasPrefix(path.Base(name), ".") {
			continue
		}
		if taken, err := c.takes(name); err == nil && !taken {
			continue
		}
		content, err := io.ReadAll(io.LimitReader(packed, MaxBytes+1))
		if err != nil {
			return nil, fmt.Errorf("the policy's archive cannot be read: %w", err)
		}
		if err := c.addNamed(name, content); err != nil {
			return nil, err
		}
	}
}
