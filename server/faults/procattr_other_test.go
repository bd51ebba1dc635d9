//go:build !linux

package faults

import "syscall"

// dieWithParent ends a replica with this process where the system can do that: not here.
func dieWithParent() *syscall.SysProcAttr { return nil }
