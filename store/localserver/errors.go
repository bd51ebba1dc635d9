package localserver

import (
	"fmt"
	"strings"
)

// MissingError says that a server's binaries are not on this machine, and what to install.
type MissingError struct {
	// Program is what was looked for, for example "PostgreSQL 14 or newer".
	Program string
	// Install names the command for each kind of system.
	Install []Install
	// Found tells what was there and why it did not do; may be empty.
	Found []string
}

// Install is a command that installs a server on one kind of system.
type Install struct{ System, Command string }

// Error implements error.
func (e *MissingError) Error() string {
	var b strings.Builder
	b.WriteString(e.Program + " is not installed")
	if len(e.Found) > 0 {
		b.WriteString(" (" + strings.Join(e.Found, "; ") + ")")
	}
	for i, in := range e.Install {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		b.WriteString(sep + in.System + ": " + in.Command)
	}
	return b.String()
}

// PortInUseError says that something else listens on the port that was asked for.
type PortInUseError struct {
	Server string
	Port   int
}

// Error implements error.
func (e *PortInUseError) Error() string {
	return fmt.Sprintf("%s cannot listen on 127.0.0.1:%d: something else does; stop it, or choose another port (0 takes a free one)", e.Server, e.Port)
}

// InUseError says that a living process holds the directory.
type InUseError struct {
	Dir string
	// PID is the process that holds it, 0 when unknown.
	PID int
}

// Error implements error.
func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is used by another process; stop it, or choose another directory", e.Dir)
	}
	return fmt.Sprintf("%s is used by process %d; stop it, or choose another directory", e.Dir, e.PID)
}

// UnreachableError says that the user whom a server runs as cannot reach its directory.
type UnreachableError struct {
	Dir, User string
	// Closed is the parent that lets the user not pass, or empty when unknown.
	Closed string
}

// Error implements error.
func (e *UnreachableError) Error() string {
	why := ""
	if e.Closed != "" {
		why = " because " + e.Closed + " is closed to others"
	}
	return fmt.Sprintf("the servers refuse to run as root, and user %s, whom they run as instead, cannot reach %s%s; "+
		"choose a directory elsewhere, such as /var/lib/keystile-dev, or run as another user than root", e.User, e.Dir, why)
}

// VersionError says that a directory's data needs another PostgreSQL than is installed.
type VersionError struct {
	Dir string
	// Data is the major version that made the data, Installed are those that are here.
	Data      int
	Installed []int
}

// Error implements error.
func (e *VersionError) Error() string {
	return fmt.Sprintf("the data in %s was made by PostgreSQL %d, and installed is %s; install PostgreSQL %d, "+
		"or remove the directory to begin anew (its data is lost)",
		e.Dir, e.Data, strings.Trim(fmt.Sprint(e.Installed), "[]"), e.Data)
}

// StartError says that a server ended before it was ready, with its own last words.
type StartError struct {
	Server string
	// Log is the file that has all it said.
	Log string
	// Said are its last lines; never a password.
	Said string
}

// Error implements error.
func (e *StartError) Error() string {
	return fmt.Sprintf("%s ended before it was ready (all of it is in %s): %s", e.Server, e.Log, e.Said)
}
