package origin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy/bundle"
)

// keptName is what the files about the last good bundle from a URL begin with: another URL begins anew.
func keptName(shown string) string {
	sum := sha256.Sum256([]byte(shown))
	return "policy-bundle-" + hex.EncodeToString(sum[:8])
}

const (
	// halfWritten are the files that become the kept one; leftFor is how old one is that a
	// process has left behind.
	halfWritten = ".policy-half-*"
	leftFor     = time.Hour
)

// openState makes the folder in which bundles are kept, and finds out whether one could be.
func (b *Bundle) openState() error {
	if err := os.MkdirAll(b.o.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the folder in which the last good policy bundle is kept: %w", err)
	}
	left, _ := filepath.Glob(filepath.Join(b.o.StateDir, halfWritten))
	for _, path := range left {
		if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > leftFor {
			_ = os.Remove(path)
		}
	}
	probe, err := os.CreateTemp(b.o.StateDir, halfWritten)
	if err != nil {
		return fmt.Errorf("the last good policy bundle could not be kept: %w", err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// takeKept hands over the bundle that was kept. It has its signature, which is verified again,
// and its version, so that nothing older is taken after a restart either.
func (b *Bundle) takeKept(ctx context.Context) {
	version, revision := b.readMark()
	b.version, b.revision = version, revision
	c, err := b.readKept()
	switch {
	case errors.Is(err, fs.ErrNotExist) && b.version == 0:
		b.o.Logger.Info("no policy bundle is kept here yet; without its server nothing is in force", slog.String("file", b.keptAt))
	case err != nil:
		b.storage(fmt.Errorf("the policy bundle that was kept in %s cannot be used; the highest version that was in force is %s: %w",
			b.keptAt, shownVersion(b.version), err))
	case c.policy.Version < b.o.MinVersion:
		b.storage(fmt.Errorf("the policy bundle that was kept in %s is not taken: %w", b.keptAt, b.tooLow(c.policy)))
	default:
		if c.policy.Version >= b.version {
			b.raise(c)
		}
		b.archive = c.archive                                   // which is in force until there is a better one
		b.kept = version == b.version && revision == b.revision // else its version is kept with it
		b.offer(ctx, c)
	}
}

func shownVersion(n int64) string {
	if n == 0 {
		return "not known"
	}
	return strconv.FormatInt(n, 10)
}

// readMark reads which version was the highest that was in force, and its revision; 0 when
// that is not known. It does without keys, and is short: a bundle whose key has gone, or that
// is torn, is still known to have been there.
func (b *Bundle) readMark() (version int64, revision string) {
	raw, err := os.ReadFile(b.markAt)
	if err != nil || len(raw) > maxMark {
		return 0, ""
	}
	if n, err := fmt.Sscanf(string(raw), "%d %s", &version, &revision); n != 2 || err != nil || version < 1 {
		return 0, ""
	}
	return version, revision
}

const maxMark = 1 << 10

// mark writes what readMark reads, unless a higher one is there.
func (b *Bundle) mark() error {
	if version, revision := b.readMark(); version > b.version || version == b.version && revision == b.revision {
		return nil
	}
	return replaceFile(b.markAt, fmt.Appendf(nil, "%d %s\n", b.version, b.revision))
}

// readKept reads and verifies what was kept; fs.ErrNotExist when nothing was.
func (b *Bundle) readKept() (*candidate, error) {
	archive, err := readRegular(b.keptAt, bundle.MaxArchive)
	if err != nil {
		return nil, err
	}
	p, err := bundle.Read(archive, b.o.Keys)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what is wrong
	}
	return &candidate{p, archive}, nil
}

// readRegular reads a file and no link, pipe or device, and at most one byte more than there
// may be: whoever takes the content says what is wrong with that.
func readRegular(path string, most int64) ([]byte, error) {
	switch info, err := os.Lstat(path); {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	}
	file, err := os.Open(path) //nolint:gosec // the operator's own folder
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(file, most+1))
	return content, errors.Join(err, file.Close())
}

// keep keeps the bundle that is in force, if that is not done. What could not be kept is
// tried again at the next poll; meanwhile this replica alone knows its version.
func (b *Bundle) keep() {
	if b.kept || b.archive == nil {
		return
	}
	if err := b.mark(); err != nil {
		b.storage(fmt.Errorf("the version of the policy bundle in force cannot be kept in %s, and a restart would not know it: %w", b.markAt, err))
		return
	}
	// Replicas on one machine may share the folder, and another one may be ahead.
	if c, err := b.readKept(); err != nil || c.policy.Version <= b.version {
		if err := replaceFile(b.keptAt, b.archive); err != nil {
			b.storage(fmt.Errorf("the policy bundle in force cannot be kept in %s, and a restart would not know it: %w", b.keptAt, err))
			return
		}
	}
	b.kept = true
	b.update(func(s *authz.PolicyBundle) { s.StorageError = "" })
}

// storage tells what is wrong with what is kept, once.
func (b *Bundle) storage(err error) {
	if b.State().StorageError == err.Error() {
		return
	}
	b.update(func(s *authz.PolicyBundle) { s.StorageError = err.Error() })
	b.o.Logger.Error("the state on disk is not what it should be", slog.Any("error", err))
}

// replaceFile has a file be the old or the new one, also when the machine stops meanwhile. It
// is this user's alone.
func replaceFile(path string, content []byte) error {
	folder := filepath.Dir(path)
	next, err := os.CreateTemp(folder, halfWritten)
	if err != nil {
		return err
	}
	_, err = next.Write(content)
	if err == nil {
		err = next.Sync()
	}
	if err = errors.Join(err, next.Close()); err == nil {
		err = os.Rename(next.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next.Name()))
	}
	opened, err := os.Open(folder) //nolint:gosec // the operator's own folder
	if err != nil {
		return err
	}
	return errors.Join(opened.Sync(), opened.Close())
}
