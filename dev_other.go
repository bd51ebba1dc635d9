//go:build !linux

package main

import "syscall"

// ownGroup puts a program in a process group of its own, which a Ctrl-C at the
// terminal does not reach before us.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
