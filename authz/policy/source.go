package policy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// Bounds of a policy. Beyond them it is refused.
const (
	// MaxFiles is how many .rego and data.yaml files a policy may have.
	MaxFiles = 2_000
	// MaxBytes is how large they may be together.
	MaxBytes = 6 << 20
	// MaxDataBytes is how large its data.yaml files may be together: all of it is in memory,
	// several times while it is read.
	MaxDataBytes = 4 << 20
)

// Source is what a policy is made of: its files. It is immutable and safe for concurrent
// use.
type Source struct {
	// files are sorted by path.
	files    []file
	revision string
}

// file is one file of a policy, by its slash-separated path.
type file struct {
	path    string
	content []byte
}

func (f file) isTest() bool { return strings.HasSuffix(f.path, "_test.rego") }
func (f file) isRego() bool { return strings.HasSuffix(f.path, ".rego") }

// ReadSource reads the files of a policy. Folders and files whose names start with a dot
// are not part of it, nor is anything but .rego and data.yaml; other data files are
// refused, because the stock `opa test` would load them and the service would not.
func ReadSource(ctx context.Context, fsys fs.FS) (*Source, error) {
	var c collector
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if name != "." && strings.HasPrefix(path.Base(name), ".") {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.IsDir() {
			return nil
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			if info, err := fs.Stat(fsys, name); err == nil && info.IsDir() {
				return at(name, 0, errors.New("it is a link to a folder, whose files would be left out; put the folder in its place"))
			}
		}
		switch taken, err := c.takes(name); {
		case err != nil:
			return err
		case !taken:
			return nil
		}
		content, err := readFile(fsys, name)
		if err != nil {
			return at(name, 0, err)
		}
		return c.add(name, content)
	})
	if err != nil {
		return nil, err
	}
	return c.source()
}

// SourceOf makes a policy of files by their slash-separated paths. Anything that would be
// no part of a policy in a folder is refused.
func SourceOf(files map[string]string) (*Source, error) {
	var c collector
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := c.addNamed(name, []byte(files[name])); err != nil {
			return nil, err
		}
	}
	return c.source()
}

// Files returns the policy's files by their slash-separated paths.
func (s *Source) Files() map[string]string {
	all := make(map[string]string, len(s.files))
	for _, f := range s.files {
		all[f.path] = string(f.content)
	}
	return all
}

// Revision returns "sha256:" and the hex of a hash of the policy's content, tests
// included. It does not depend on where the files come from.
func (s *Source) Revision() string { return s.revision }

// collector gathers files within the bounds.
type collector struct {
	files       []file
	bytes, data int
}

// takes tells whether a file is part of a policy.
func (c *collector) takes(name string) (bool, error) {
	base := path.Base(name)
	switch ext := path.Ext(base); {
	case ext == ".rego" || base == "data.yaml":
		return true, nil
	case ext == ".yaml" || ext == ".yml" || ext == ".json":
		return false, at(name, 0, errors.New("data of a policy stands in files named data.yaml"))
	}
	return false, nil
}

// addNamed adds a file that somebody has named: it must be part of a policy.
func (c *collector) addNamed(name string, content []byte) error {
	if !fs.ValidPath(name) || strings.HasPrefix(name, ".") || strings.Contains(name, "/.") || strings.ContainsFunc(name, func(r rune) bool { return r == '\\' || r < ' ' }) {
		return fmt.Errorf("%q is not the path of a policy's file: they are relative, with slashes, and no part starts with a dot", name)
	}
	switch taken, err := c.takes(name); {
	case err != nil:
		return err
	case !taken:
		return at(name, 0, errors.New("a policy has .rego and data.yaml files, and no others"))
	}
	return c.add(name, content)
}

func (c *collector) add(name string, content []byte) error {
	if len(c.files) == MaxFiles {
		return at(name, 0, fmt.Errorf("a policy has at most %d files", MaxFiles))
	}
	if c.bytes += len(content); c.bytes > MaxBytes {
		return at(name, 0, fmt.Errorf("a policy has at most %d bytes, all files together", MaxBytes))
	}
	f := file{name, content}
	if !f.isRego() {
		if c.data += len(content); c.data > MaxDataBytes {
			return at(name, 0, fmt.Errorf("a policy's data has at most %d bytes, all data.yaml files together", MaxDataBytes))
		}
	}
	c.files = append(c.files, f)
	return nil
}

func (c *collector) source() (*Source, error) {
	if !slices.ContainsFunc(c.files, file.isRego) {
		return nil, errors.New("there is no .rego file")
	}
	slices.SortFunc(c.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	for i := range c.files {
		if i > 0 && c.files[i].path == c.files[i-1].path {
			return nil, at(c.files[i].path, 0, errors.New("it is there twice"))
		}
	}
	return &Source{files: c.files, revision: revisionOf(c.files)}, nil
}

// readFile reads a byte more than a policy may have, at most: then it is too large. A pipe
// or a device, which may never end, is not opened.
func readFile(fsys fs.FS, name string) ([]byte, error) {
	switch info, err := fs.Stat(fsys, name); {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	return content, errors.Join(err, f.Close())
}

// revisionOf names a policy by its content: SHA-256 over the number of files and
// then each path and content, every one preceded by its length, so that no two
// policies run together to the same bytes.
func revisionOf(files []file) string {
	h := sha256.New()
	var length [8]byte
	write := func(b []byte) {
		binary.BigEndian.PutUint64(length[:], uint64(len(b)))
		h.Write(length[:])
		h.Write(b)
	}
	h.Write([]byte("keystile policy 1\n"))
	binary.BigEndian.PutUint64(length[:], uint64(len(files)))
	h.Write(length[:])
	for _, f := range files {
		write([]byte(f.path))
		write(f.content)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}
