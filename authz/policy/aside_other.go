//go:build !linux

package policy

import (
	"syscall"
	"time"
)

// apart is as every other process here.
func apart() *syscall.SysProcAttr { return nil }

// stepAside bounds nothing here: GOMEMLIMIT alone keeps the garbage small.
func stepAside(uint64) error { return nil }

// stepBehind leaves priorities as they are here.
func stepBehind(int) {}

// processorTime is not known here.
func processorTime() time.Duration { return 0 }
