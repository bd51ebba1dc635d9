package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// devDirectory returns the absolute directory of the demonstration, made if need be.
func devDirectory(dir string) (string, error) {
	if dir == "" {
		base := os.Getenv("XDG_DATA_HOME")
		switch home, err := os.UserHomeDir(); {
		case os.Geteuid() == 0:
			// Postgres refuses to be root, and whoever it runs as instead must be able
			// to reach its data: root's home is usually closed to everyone else.
			base = "/var/lib"
		case base != "":
		case err != nil:
			return "", usageError(errors.New("there is no home directory; say where to keep data with --data DIR"))
		default:
			base = filepath.Join(home, ".local", "share")
		}
		dir = filepath.Join(base, "keystile-dev")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	// Others may pass through, as Postgres' user must; every file inside is closed to them.
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // see above
		return "", usageError(fmt.Errorf("cannot make the data directory: %w; choose another with --data DIR", err))
	}
	return dir, nil
}

// lockDirectory makes sure that one dev at a time uses a directory. The lock ends
// with the process, however that ends.
func lockDirectory(dir string) (unlock func() error, err error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the directory is the user's own choice
	if err != nil {
		return nil, usageError(fmt.Errorf("cannot write into the data directory: %w; choose another with --data DIR", err))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := os.ReadFile(path) //nolint:gosec // as above
		return nil, errors.Join(dependencyError(fmt.Errorf(
			"another keystile dev (pid %s) uses %s; stop it, or choose another directory with --data DIR",
			strings.TrimSpace(string(owner)), dir)), f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	if _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	return f.Close, nil
}

// loopback tells whether an address of the form host:port is this machine's alone.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
