// Package cli holds the client commands of keystile, built on the SDK alone.
// Data goes to the command's output, talk to its error output. Commands return
// an [*ExitError]; they do not end the process and print no error themselves.
package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	keystile "github.com/supportstation/keystile/sdk"
)

// Exit codes of all commands.
const (
	ExitOK          = 0 // done, or allowed
	ExitUnexpected  = 1
	ExitUsage       = 2
	ExitInvalid     = 3 // the configuration is refused, such as a caller token
	ExitDenied      = 5
	ExitRateLimited = 6
	ExitUnavailable = 7 // the service, or what it depends on, is not available
)

// ExitError carries the code that the process should end with.
type ExitError struct {
	// Code is one of the Exit constants.
	Code int
	// Err is what to tell, without any secret. Nil when the command has said
	// all there is, as for a denial.
	Err error
}

// Error returns Err's text, or the code.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns Err.
func (e *ExitError) Unwrap() error { return e.Err }

func usage(err error) error { return &ExitError{Code: ExitUsage, Err: err} }

// usageArgs makes wrong arguments a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usage(fmt.Errorf("%w; usage: %s", err, cmd.UseLine()))
		}
		return nil
	}
}

// exitOf tells how a decision ends the process; nil when it allows.
func exitOf(d *keystile.Decision) error {
	switch {
	case d.Allowed():
		return nil
	case d.Code == keystile.CodeRateLimited:
		return &ExitError{Code: ExitRateLimited}
	case d.Code == keystile.CodeUnavailable:
		return &ExitError{Code: ExitUnavailable}
	}
	return &ExitError{Code: ExitDenied}
}

// exitOfError tells how a question that was not decided ends the process.
func exitOfError(err error) error {
	var fault *keystile.Error
	if !errors.As(err, &fault) {
		return &ExitError{Code: ExitUnexpected, Err: err}
	}
	code := ExitUnexpected
	switch {
	case fault.Unavailable(), fault.Code == "caller_throttled":
		code = ExitUnavailable
	case fault.Code == "caller_unauthorized", fault.Code == "caller_forbidden":
		code = ExitInvalid
	case fault.Status == 400, fault.Status == 413, fault.Status == 422, fault.Code == keystile.CodeInvalidUTF8:
		code = ExitUsage
	}
	return &ExitError{Code: code, Err: err}
}
