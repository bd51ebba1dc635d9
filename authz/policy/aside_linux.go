package policy

import (
	"fmt"
	"syscall"
)

// stepAside bounds the memory of this process, so that it ends and not the machine, and
// lets the service beside it have the processors first.
func stepAside(bytes uint64) error {
	limit := syscall.Rlimit{Cur: bytes, Max: bytes}
	if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &limit); err != nil {
		return fmt.Errorf("bound the memory of a trial: %w", err)
	}
	// Where that is not allowed, it is tried at the service's own priority.
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 10)
	return nil
}
