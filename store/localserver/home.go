package localserver

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// home is the directory of one server, locked while a process uses it:
//
//	lock        held by whoever runs the server; has that process' id
//	server.log  what the server said since its last start
//	data/       the server's own
//	sockets/    its Unix socket, unless the path is too long
//
// The directory itself stays ours also when the server is another user's, so that
// the server cannot put a link in the way of what we write.
type home struct {
	dir  string
	lock *os.File
}

const (
	lockName = "lock"
	logName  = "server.log"
	dataName = "data"
)

// openHome makes and locks a server's directory. One that has something else in it
// is refused.
func openHome(dir string) (*home, error) {
	if dir == "" {
		return nil, errors.New("a local server needs a directory")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("a server's directory: %w", err)
	}
	if err := os.MkdirAll(dir, passMode()); err != nil {
		return nil, fmt.Errorf("make a server's directory: %w", err)
	}
	if err := isOurs(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, lockName)
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the caller's choice
	if err != nil {
		return nil, fmt.Errorf("lock a server's directory: %w", err)
	}
	// Ends with the process, however that ends.
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		text, _ := os.ReadFile(path) //nolint:gosec // as above; without it the process is unknown
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		_ = lock.Close()
		return nil, &InUseError{Dir: dir, PID: pid}
	}
	h := &home{dir, lock}
	if err := h.sign(); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func isOurs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look into a server's directory: %w", err)
	}
	if len(entries) == 0 {
		return nil
	}
	for _, e := range entries {
		switch e.Name() {
		case lockName, logName, dataName:
			return nil
		}
	}
	return fmt.Errorf("%s is not empty and not a directory of keystile's servers; choose another", dir)
}

// sign writes who has the lock, and lets a server of another user pass through to
// what is its own. Everything in the directory is closed to everyone else.
func (h *home) sign() error {
	if err := h.lock.Truncate(0); err != nil {
		return fmt.Errorf("sign a server's directory: %w", err)
	}
	if _, err := h.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("sign a server's directory: %w", err)
	}
	if err := os.Chmod(h.dir, passMode()); err != nil {
		return fmt.Errorf("open a server's directory to its user: %w", err)
	}
	return nil
}

// passMode is the mode of directories around a server's own: as root we run it as
// somebody else, who must be able to pass.
func passMode() os.FileMode {
	if os.Geteuid() == 0 {
		return 0o711
	}
	return 0o700
}

func (h *home) path(name string) string { return filepath.Join(h.dir, name) }

// close gives the directory free.
func (h *home) close() { _ = h.lock.Close() }

// maxSocketPath is what every system takes: sun_path has 104 bytes on macOS.
const maxSocketPath = 100

// socketDir makes the directory of a server's Unix socket, in which a socket of
// this name fits: sockets, or, where that is too long, a short one of the account's.
func (h *home) socketDir(as account, socket string) (string, error) {
	dir := h.path("sockets")
	if len(dir)+1+len(socket) > maxSocketPath {
		dir = h.outside()
	}
	return dir, as.mkdir(dir)
}

// outside is a short path that belongs to this directory, always the same. It is in
// /tmp, where anybody could have made it before us: account.mkdir finds that out.
func (h *home) outside() string {
	sum := sha256.Sum256([]byte(h.dir))
	return filepath.Join("/tmp", "keystile-"+hex.EncodeToString(sum[:8]))
}

// removeSocketDir removes it once it is empty; one that is not is found again at the next start.
func removeSocketDir(dir string) { _ = os.Remove(dir) }

// writeNew writes a file that was not there, by rename: it is whole or absent.
func writeNew(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
