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
	"path"
	"strings"
)

// Bounds of a policy. Beyond them Load refuses.
const (
	// MaxFiles is how many .rego and data.yaml files a policy may have.
	MaxFiles = 2_000
	// MaxBytes is how large they may be together.
	MaxBytes = 8 << 20
)

// file is one file of a policy, by its slash-separated path.
type file struct {
	path    string
	content []byte
}

func (f file) isTest() bool { return strings.HasSuffix(f.path, "_test.rego") }
func (f file) isRego() bool { return strings.HasSuffix(f.path, ".rego") }

// readSource reads the files of a policy, sorted by path. Folders and files whose
// names start with a dot are not part of it, nor is anything but .rego and
// data.yaml; other data files are refused, because the stock `opa test` would load
// them and the service would not.
func readSource(ctx context.Context, fsys fs.FS) ([]file, error) {
	var files []file
	total := 0
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		base := path.Base(name)
		if name != "." && strings.HasPrefix(base, ".") {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.IsDir() {
			return nil
		}
		switch ext := path.Ext(base); {
		case ext == ".rego" || base == "data.yaml":
		case ext == ".yaml" || ext == ".yml" || ext == ".json":
			return fmt.Errorf("%s: data of a policy stands in files named data.yaml", name)
		default:
			return nil
		}
		if len(files) == MaxFiles {
			return fmt.Errorf("a policy has at most %d files", MaxFiles)
		}
		content, err := readFile(fsys, name, MaxBytes-total)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		total += len(content)
		files = append(files, file{name, content})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, errors.New("there is no .rego file")
	}
	return files, nil
}

func readFile(fsys fs.FS, name string, limit int) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(content) > limit {
		return nil, fmt.Errorf("a policy has at most %d bytes", MaxBytes)
	}
	return content, nil
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
