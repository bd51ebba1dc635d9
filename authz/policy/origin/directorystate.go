package origin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/supportstation/keystile/authz/policy"
)

// Kept is the last good policy of a directory, kept for the next start: what the running
// service refused must not come into force because it was started again. Not safe for
// concurrent use.
type Kept struct {
	path string
	// revision is that of the policy in the file, "" for none that is known.
	revision string
}

// Keep returns where a directory's policy is kept: in the folder stateDir, which is made when
// there is something to keep. Each directory has a file of its own there.
func (d *Directory) Keep(stateDir string) *Kept {
	whole, err := filepath.Abs(d.path)
	if err != nil {
		whole = d.path
	}
	sum := sha256.Sum256([]byte(whole))
	return &Kept{path: filepath.Join(stateDir, "policy-directory-"+hex.EncodeToString(sum[:8])+".tar.gz")}
}

// Path is the file.
func (k *Kept) Path() string { return k.path }

// Load reads the policy that was kept, nil when none was.
func (k *Kept) Load() (*policy.Source, error) {
	archive, err := readRegular(k.path, maxKept)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing was kept
	}
	if err == nil && len(archive) > maxKept {
		err = errors.New("it is too large")
	}
	var source *policy.Source
	if err == nil {
		source, err = policy.ReadArchive(archive)
	}
	if err != nil {
		return nil, fmt.Errorf("read the last good policy from %s: %w", k.path, err)
	}
	k.revision = source.Revision()
	return source, nil
}

// maxKept bounds what is read of a file that something else may have written.
const maxKept = 64 << 20

// Store keeps a policy, unless it is the one that is kept.
func (k *Kept) Store(source *policy.Source) error {
	if source.Revision() == k.revision {
		return nil
	}
	archive, err := source.Archive()
	if err == nil {
		err = os.MkdirAll(filepath.Dir(k.path), 0o700)
	}
	if err == nil {
		err = replaceFile(k.path, archive)
	}
	if err != nil {
		return fmt.Errorf("keep the policy in force for the next start: %w", err)
	}
	k.revision = source.Revision()
	return nil
}
