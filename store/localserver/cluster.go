package localserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// cluster is Postgres' word for a data directory and who runs it.
type cluster struct {
	bin     postgresBinaries
	home    *home
	as      account
	data    string
	options PostgresOptions
}

// dataVersion returns the major version that has made the data, 0 when there is none.
func dataVersion(data string) (int, error) {
	text, err := os.ReadFile(filepath.Join(data, "PG_VERSION")) //nolint:gosec // the caller's directory
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Lstat(data); err == nil {
			return 0, fmt.Errorf("%s is there and has no PG_VERSION: not Postgres' data; move it away", data)
		}
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for data: %w", err)
	}
	version, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%s holds no version: not Postgres' data; move it away", filepath.Join(data, "PG_VERSION"))
	}
	return version, nil
}

// reach finds out by trying whether a program of the account's can enter a directory.
func reach(ctx context.Context, program, dir string, as account) error {
	if !as.drop {
		return nil
	}
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Dir, cmd.Env, cmd.SysProcAttr = dir, as.environment(), as.attributes(syscall.SIGKILL)
	switch err := cmd.Run(); {
	case errors.Is(err, os.ErrPermission):
		return &UnreachableError{Dir: dir, User: as.name, Closed: as.closedParent(dir)}
	case err != nil:
		return fmt.Errorf("run a server's program as user %s: %w", as.name, err)
	}
	return nil
}

// initialize makes the data: beside its place first, so that it is whole or absent.
// The password goes by a file that only the account can read.
func (c *cluster) initialize(ctx context.Context) error {
	fresh, passwords := c.data+".new", c.home.path("pwfile")
	for _, rest := range []string{fresh, passwords} { // of an earlier start that was killed
		if err := os.RemoveAll(rest); err != nil {
			return fmt.Errorf("remove the rest of an earlier start: %w", err)
		}
	}
	if err := c.as.mkdir(fresh); err != nil {
		return err
	}
	defer func() { _ = os.Remove(passwords) }()
	f, err := os.OpenFile(passwords, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // in our directory
	if err != nil {
		return fmt.Errorf("write a password file: %w", err)
	}
	_, err = f.WriteString(c.options.Password + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write a password file: %w", err)
	}
	if err := c.as.give(passwords); err != nil {
		return err
	}
	args := []string{
		"-D", fresh, "-U", Superuser, "--pwfile", passwords, "--auth=scram-sha-256",
		// The same order of text on every machine.
		"--encoding=UTF8", "--locale=C", "--no-instructions",
	}
	if c.options.FsyncOff {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin.dir, "initdb"), args...) //nolint:gosec // found by this package
	cmd.Dir, cmd.Env, cmd.SysProcAttr = fresh, c.as.environment(), c.as.attributes(syscall.SIGTERM)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it removes what it has made
	cmd.WaitDelay = politeStop
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.RemoveAll(fresh)
		if ctx.Err() != nil {
			return fmt.Errorf("make Postgres' data: %w", ctx.Err())
		}
		return fmt.Errorf("make Postgres' data: %w: %s", err, strings.ReplaceAll(strings.TrimSpace(tail(out, 600)), "\n", " | "))
	}
	if err := os.Rename(fresh, c.data); err != nil {
		return fmt.Errorf("put Postgres' data in its place: %w", err)
	}
	return nil
}

func tail(b []byte, n int) string { return string(b[max(0, len(b)-n):]) }

// The lines of postmaster.pid; see PostgreSQL's src/include/utils/pidfile.h.
const (
	pidLine    = 0
	statusLine = 7
)

func (c *cluster) pidFile() string { return filepath.Join(c.data, "postmaster.pid") }

func (c *cluster) readPIDFile() [][]byte {
	text, err := os.ReadFile(c.pidFile())
	if err != nil {
		return nil // absent: nothing runs, or nothing is ready
	}
	return bytes.Split(text, []byte("\n"))
}

// isReady tells whether this very server has written that it takes connections.
func (c *cluster) isReady(pid int) bool {
	lines := c.readPIDFile()
	return len(lines) > statusLine && string(bytes.TrimSpace(lines[pidLine])) == strconv.Itoa(pid) &&
		string(bytes.TrimSpace(lines[statusLine])) == "ready"
}

// recover ends what a killed process has left: the server, if it still runs. A
// process that merely has its old id is not touched, but Postgres would take it for
// the server and refuse to start, so then the file that says so goes.
func (c *cluster) recover(ctx context.Context) error {
	lines := c.readPIDFile()
	if len(lines) == 0 {
		return nil
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(lines[pidLine])))
	if err != nil {
		return nil //nolint:nilerr // Postgres knows what to do with a broken file of its own, and says it
	}
	if err := stopLeftover(ctx, pid, "postgres", c.data, "-D "+c.data, syscall.SIGINT, syscall.SIGQUIT); err != nil {
		return err
	}
	// We hold the lock, and the server, if there was one, has ended.
	if err := os.Remove(c.pidFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the process id of a server that has ended: %w", err)
	}
	return nil
}
