// Package localserver runs private Postgres and Redis servers from the binaries of
// this machine: for `keystile dev`, and for tests that want the real thing.
//
// A server listens on loopback, asks for its password even there, keeps everything
// in one directory, and ends with the process that started it: by Stop, and where
// that process was killed, by the kernel (Linux) or at the next start with the same
// directory. A server, or any other process, that was not started from that
// directory is never touched.
package localserver
