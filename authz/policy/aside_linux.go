package policy

import (
	"fmt"
	"os"
	"syscall"
)

// apart starts a process in a group of its own, which Ctrl-C does not reach.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// stepAside bounds the memory of this process, so that it ends and not the machine, and lets
// the service beside it have processors and memory first.
func stepAside(bytes uint64) error {
	limit := syscall.Rlimit{Cur: bytes, Max: bytes}
	if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &limit); err != nil {
		return fmt.Errorf("bound the memory of a trial: %w", err)
	}
	// Where these are not allowed, it is tried as an equal of the service's. The group, because
	// a process' priority is that of one thread alone.
	_ = syscall.Setpriority(syscall.PRIO_PGRP, 0, 10)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0o600)
	return nil
}
