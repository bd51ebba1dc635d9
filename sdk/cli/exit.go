// Package cli holds the client commands of keystile, built on the SDK alone.
// Data goes to the command's output, talk to its error output. Commands return
// an [*ExitError]; they do not end the process and print no error themselves.
package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/admin"
)

// Exit codes of all commands.
const (
	ExitOK          = 0 // done, or allowed
	ExitUnexpected  = 1
	ExitUsage       = 2
	ExitInvalid     = 3 // the configuration is refused, such as a token
	ExitFindings    = 4 // a verification found something, an import rejected rows
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

// exitOfManagement tells how a management call that failed ends the process. To
// what the service says it adds what to do.
func exitOfManagement(err error, at place) error {
	var exit *ExitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	code, advice := adviseOn(err, at)
	text := err.Error()
	if advice != "" {
		text += "; " + advice
	}
	return &ExitError{Code: code, Err: &toldError{text: printable(text), cause: err}}
}

func adviseOn(err error, at place) (int, string) {
	var silence *admin.TransportError
	var refusal *admin.Error
	switch {
	case errors.As(err, &silence):
		return adviseOnSilence(silence, at)
	case !errors.As(err, &refusal):
		return ExitUnexpected, ""
	}
	switch refusal.Status {
	case 400, 413, 415, 422:
		return ExitUsage, ""
	case 401:
		return ExitInvalid, "set KEYSTILE_ADMIN_TOKEN to the token of an admin that has neither expired nor been removed"
	case 403:
		return ExitDenied, ""
	case 404:
		return ExitUnexpected, "compare the id with `keystile " + at.named + "`: nothing has it, or nothing that this admin may see"
	case 409:
		return ExitUnexpected, adviseOnConflict(refusal.Code, at)
	case 412:
		return ExitUnexpected, "somebody has changed it meanwhile: read it again with `keystile " + at.group + " get`, and repeat with its version"
	case 429, 502, 503, 504:
		return ExitUnavailable, "try again in a moment"
	}
	return ExitUnexpected, ""
}

// adviseOnConflict tells what ends a conflict; keysrotate.go has the word for
// rotation_in_progress, which is about its flags.
func adviseOnConflict(code string, at place) string {
	switch code {
	case "key_revoked", "caller_revoked", "admin_revoked":
		kind := strings.TrimSuffix(code, "_revoked")
		return "make another " + kind + " with `keystile " + kind + "s create`"
	case "organization_deleted":
		return "name one that is active: `keystile orgs list` shows them"
	case "quota_exceeded":
		return "end keys with `keystile keys revoke KEY`, or have a platform admin choose a larger plan with `keystile orgs update ORG --plan PLAN`"
	case "unknown_plan":
		return "choose one of the plans of `keystile scopes` with `keystile orgs update ORG --plan PLAN`"
	case "external_id_taken":
		return "see with `keystile " + at.list + " --external-id ID` what has it, and give another --external-id"
	case "name_taken":
		return "see with `keystile " + at.list + "` what has it, and give another --name"
	case "last_platform_admin":
		return "make another one with `keystile admins create --role platform_admin`, and repeat"
	case "nothing_to_apply":
		return "ask about more time with --since once more is recorded; `keystile audit run --key KEY` has the evidence"
	case "nothing_left":
		return "end it with `keystile keys revoke KEY`, or keep some with --keep"
	case "scopes_changed", "scopes_gone", "traffic_too_varied", "key_unreadable":
		return "change its scopes with `keystile keys update KEY --scope SCOPE`"
	case "nothing_to_undo":
		return "see with `keystile audit-log list --target KEY` what was changed"
	case "key_changed", "policy_changed":
		return "repeat the command"
	case "policy_without_findings":
		return "activate one that has findings: `keystile policy export DIR` writes the built-in one"
	case "too_many_formats":
		return "import under a format that is known already; see with `keystile audit-log list` which imports there were"
	}
	return "see with `keystile " + at.list + "` what stands in the way, change that, and repeat"
}

func adviseOnSilence(silence *admin.TransportError, at place) (int, string) {
	var dial *net.OpError
	done := "what was asked for may have been done: see with `keystile " + at.list + "`"
	switch {
	case errors.Is(silence, admin.ErrAnswerTooLong) && at.limited:
		return ExitUnexpected, "ask for fewer at once with --limit, and go on with --cursor"
	case errors.Is(silence, admin.ErrAnswerTooLong):
		return ExitUnexpected, done
	case errors.Is(silence, context.Canceled):
		return ExitUnexpected, done
	case errors.As(silence, &dial) && dial.Op == "dial":
		return ExitUnavailable, "see that the service runs, and that --url or KEYSTILE_URL names it"
	}
	return ExitUnavailable, done + " before you repeat it"
}

// toldError is an error in words for a person.
type toldError struct {
	text  string
	cause error
}

func (e *toldError) Error() string { return e.text }
func (e *toldError) Unwrap() error { return e.cause }
