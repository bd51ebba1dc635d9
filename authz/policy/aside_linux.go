package policy

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// apart starts a process in a session of its own, which Ctrl-C does not reach.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// mappedData is what RLIMIT_DATA counts, in bytes; 0 when it cannot be found out.
func mappedData() uint64 {
	raw, err := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(raw))
	if err != nil || len(fields) < 6 {
		return 0
	}
	pages, err := strconv.ParseUint(fields[5], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize()) //nolint:gosec // a page has a size
}

// stepAside bounds the memory of this process, so that it ends and not the machine, nor the
// service beside it.
func stepAside(bytes uint64) error {
	// A race detector has taken terabytes of addresses by now, and could take no more.
	if mappedData() < bytes {
		limit := syscall.Rlimit{Cur: bytes, Max: bytes}
		if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &limit); err != nil {
			return fmt.Errorf("bound the memory of a trial: %w", err)
		}
	}
	// Where this is not allowed, it is as dear to the kernel as the service is.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0o600)
	return nil
}

// stepBehind lets others have the processors first: the service, and also a database beside
// it. The whole group, because a process' priority is that of one thread alone; and the session,
// because where a kernel shares processors among sessions that priority only counts within one
// (sched(7), autogroup). Where it is not allowed, nothing changes.
func stepBehind(niceness int) {
	_ = syscall.Setpriority(syscall.PRIO_PGRP, 0, niceness)
	_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(niceness)), 0o600)
}

// processorTime is how long this process has had a processor.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
