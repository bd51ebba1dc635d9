package localserver

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the user whom a server runs as: ourselves, or, because Postgres
// refuses to be root and no server should be, somebody else.
type account struct {
	name     string
	uid, gid int
	// drop tells that it is not ourselves.
	drop bool
}

// chooseAccount returns ourselves unless we are root; then the owner of the data,
// if there is any (who was chosen the first time), else the first of names that exists.
func chooseAccount(data string, names ...string) (account, error) {
	if os.Geteuid() != 0 {
		self := account{name: strconv.Itoa(os.Geteuid()), uid: os.Geteuid(), gid: os.Getegid()}
		if u, err := user.Current(); err == nil {
			self.name = u.Username
		}
		return self, nil
	}
	if uid, gid, ok := owner(data); ok && uid != 0 {
		a := account{name: strconv.Itoa(uid), uid: uid, gid: gid, drop: true}
		if u, err := user.LookupId(a.name); err == nil {
			a.name = u.Username
		}
		return a, nil
	}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil || uid == 0 {
			continue
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			continue
		}
		return account{name: name, uid: int(uid), gid: int(gid), drop: true}, nil
	}
	return account{}, fmt.Errorf("servers do not run as root, and none of the users %v exists; create one, or run as another user than root", names)
}

// owner returns who owns a file, and false when there is no such file.
func owner(path string) (uid, gid int, ok bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(st.Uid), int(st.Gid), true
}

// attributes let a process run as the account, in a process group of its own that a
// Ctrl-C at the terminal does not reach, and get the signal when its parent ends,
// where the system can do that.
func (a account) attributes(onParentDeath syscall.Signal) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a.drop {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)} //nolint:gosec // ids are 32 bits
	}
	setParentDeath(attr, onParentDeath)
	return attr
}

// environment is all that a server gets of ours. The rest may hold secrets, or
// settings (PGDATA, PGPORT, LANG) that would make it another server.
func (a account) environment() []string {
	env := []string{"LC_ALL=C", "TZ=UTC"}
	for _, name := range []string{"PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// mkdir makes a directory that only the account may enter, if it is not there.
func (a account) mkdir(dir string) error {
	switch err := os.Mkdir(dir, 0o700); {
	case errors.Is(err, os.ErrExist):
		return a.owns(dir)
	case err != nil:
		return fmt.Errorf("make a directory for a server: %w", err)
	}
	return a.give(dir)
}

// give hands a file that we have just made to the account.
func (a account) give(path string) error {
	if !a.drop {
		return nil
	}
	if err := os.Lchown(path, a.uid, a.gid); err != nil {
		return fmt.Errorf("hand %s to user %s: %w", path, a.name, err)
	}
	return nil
}

// owns refuses what somebody else made: in a directory that is open to everyone it
// could be a trap.
func (a account) owns(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at a server's directory: %w", err)
	}
	uid, _, _ := owner(dir)
	if !info.IsDir() || uid != a.uid {
		return fmt.Errorf("%s is not a directory of user %s; remove it, or choose another directory", dir, a.name)
	}
	if info.Mode().Perm() != 0o700 {
		if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory
			return fmt.Errorf("close a server's directory: %w", err)
		}
	}
	return nil
}

// closedParent returns the outermost parent of dir, or dir, that the account may
// not pass, by mode bits; "" when there is none.
func (a account) closedParent(dir string) string {
	closed := ""
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return closed
		}
		uid, gid, _ := owner(dir)
		bit := os.FileMode(0o001)
		switch {
		case uid == a.uid:
			bit = 0o100
		case gid == a.gid:
			bit = 0o010
		}
		if info.Mode()&bit == 0 {
			closed = dir
		}
		if dir == filepath.Dir(dir) {
			return closed
		}
	}
}
