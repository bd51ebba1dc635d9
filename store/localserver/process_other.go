//go:build !linux

package localserver

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// setParentDeath does nothing: no such thing here. What outlives its parent is
// stopped at the next start with the same directory.
func setParentDeath(*syscall.SysProcAttr, syscall.Signal) {}

// isServer tells whether a process is a server of ours: its command line has the
// program's name and the mark (data directory or address) that only ours has.
func isServer(pid int, program, _, mark string) bool {
	out, err := exec.CommandContext(context.Background(), "ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output() //nolint:gosec // a number
	return err == nil && strings.Contains(string(out), program) && strings.Contains(string(out), mark)
}

// isAlive tells whether a process exists.
func isAlive(pid int) bool { return syscall.Kill(pid, 0) == nil }
