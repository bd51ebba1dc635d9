package main

import (
	"errors"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/sdk/cli"
	"github.com/supportstation/keystile/store"
)

// The exit codes of the program.
const (
	exitUnexpected = 1
	exitUsage      = 2
	exitInvalid    = 3 // policy or configuration
	exitFindings   = 4 // findings or differences
	exitDependency = 7 // a dependency is not available
)

// exitError is an error with the exit code that it ends the program with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func exitWith(code int, err error) error { return &exitError{code, err} }

func usageError(err error) error  { return exitWith(exitUsage, err) }
func configError(err error) error { return exitWith(exitInvalid, err) }

// dependencyError sorts what a database or server said: one that does not fit the
// configuration is invalid, one that does not answer is not available.
func dependencyError(err error) error {
	var schema *store.SchemaError
	var deployment *store.DeploymentError
	var pepper *store.PepperError
	if errors.As(err, &schema) || errors.As(err, &deployment) || errors.As(err, &pepper) || errors.Is(err, authz.ErrNoPepper) {
		return configError(err)
	}
	return exitWith(exitDependency, err)
}

// exitCode is the one place that maps errors to exit codes.
func exitCode(err error) int {
	var ours *exitError
	var clients *cli.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ours):
		return ours.code
	case errors.As(err, &clients):
		return clients.Code
	}
	return exitUnexpected
}
