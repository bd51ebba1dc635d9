package localserver

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// setParentDeath has the kernel send the signal when the parent ends, however it
// does. Go sets it after it has changed the user, which would clear it (prctl(2)).
// "Parent" is the thread that started the process: see runProcess.
func setParentDeath(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

// isServer tells whether a process is a server of ours: it runs such a program, and
// in that directory, which both Postgres and Redis change into. A process id alone
// proves nothing, since ids are used again.
func isServer(pid int, program, dir, _ string) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	exe, err := os.Readlink(filepath.Join(proc, "exe"))
	// A package update while it runs leaves "… (deleted)".
	if err != nil || !strings.Contains(filepath.Base(exe), program) {
		return false
	}
	cwd, err := os.Stat(filepath.Join(proc, "cwd"))
	if err != nil {
		return false
	}
	want, err := os.Stat(dir)
	return err == nil && os.SameFile(cwd, want)
}

// isAlive tells whether a process exists and is not merely waiting to be reaped.
func isAlive(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	// pid (name, which may hold anything) state …
	i := bytes.LastIndexByte(stat, ')')
	return i >= 0 && i+2 < len(stat) && stat[i+2] != 'Z' && stat[i+2] != 'X'
}
