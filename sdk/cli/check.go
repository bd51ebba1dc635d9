package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	keystile "github.com/supportstation/keystile/sdk"
)

const checkLong = `Ask the service whether the key may do METHOD on PATH, as an application would.
The check counts against the key's rate limit.

The key is read from --key-file (- is standard input) or from KEYSTILE_KEY; the
service from --url or KEYSTILE_URL; the caller's token from KEYSTILE_TOKEN. Each
variable's value can also stand in a file that the variable with _FILE names.
Only the key's SHA-256 is sent.

Exit: 0 allowed, 5 denied, 6 rate limited, 7 the service is not available,
2 usage, 3 the caller's token is refused, 1 anything else.`

const checkExample = `  keystile check GET /api/v1/tickets --key-file key.txt
  keystile check POST /api/v1/tickets --action tickets:write -o json <key.txt --key-file -
  keystile check GET /api/v1/tickets/42 --client-ip 203.0.113.7 --resource-org org_…`

// NewCheckCommand returns `check METHOD PATH`. It writes the decision to the
// command's output and ends with an [*ExitError]: nil when allowed.
func NewCheckCommand(config Config) *cobra.Command {
	cmd := &cobra.Command{Use: "check METHOD PATH", Short: "Ask whether a key may do something", Long: checkLong, Example: checkExample}
	config.asking(cmd, "the decision", func(ctx context.Context, client *keystile.Client, q keystile.Question, output format) error {
		d, err := client.Check(ctx, q)
		if err != nil {
			return exitOfError(err)
		}
		if err := config.writeDecision(cmd.OutOrStdout(), output, d); err != nil {
			return &ExitError{Code: ExitUnexpected, Err: fmt.Errorf("write the decision: %w", err)}
		}
		return exitOf(d)
	})
	return cmd
}

func validate(q keystile.Question) error {
	switch {
	case q.Method == "":
		return errors.New("METHOD is empty; give one such as GET")
	case !strings.HasPrefix(q.Path, "/"):
		return errors.New("PATH must start with a slash, such as /api/v1/tickets")
	case strings.ContainsAny(q.Path, "?#"):
		return errors.New("PATH must not have a query or a fragment; they take no part in a check")
	case q.Environment != "" && q.Environment != keystile.Live && q.Environment != keystile.Test:
		return errors.New("--environment must be live or test")
	case q.Cost < 0 || q.Cost > 10_000:
		return errors.New("--cost must be 1 to 10000")
	}
	return validateClientIP(q.ClientIP)
}

// validateClientIP refuses what the service would take for an address that is not known.
func validateClientIP(ip string) error {
	_, alone := netip.ParseAddr(ip)
	_, withPort := netip.ParseAddrPort(ip)
	if ip != "" && alone != nil && withPort != nil {
		return errors.New("--client-ip must be an address, such as 203.0.113.7")
	}
	return nil
}

func (c Config) writeDecision(w io.Writer, f format, d *keystile.Decision) error {
	switch f {
	case jsonText:
		return writeJSON(w, d)
	case yamlText:
		return writeYAML(w, d)
	default:
		p := c.newPage(w)
		writePage(p, d)
		return p.err
	}
}

func writePage(p *page, d *keystile.Decision) {
	if d.Allowed() {
		p.headline("32", "ALLOW", fmt.Sprintf("%s (%d)", d.Code, d.Status))
	} else {
		p.headline("31", "DENY", fmt.Sprintf("%s (%d): %s", d.Code, d.Status, why(d)))
	}
	for i, reason := range d.Reasons {
		if i > 0 {
			p.row("also", string(reason.Code)+": "+reason.Message)
		}
	}
	if o := d.Organization; o != nil {
		p.row("organization", fmt.Sprintf("%s (%s), plan %s", o.Name, o.ID, o.Plan))
	}
	if k := d.Key; k != nil {
		p.row("key", fmt.Sprintf("%s (%s), %s, %s", k.Name, k.ID, k.Environment, k.Hint))
	}
	p.row("scopes", strings.Join(d.Scopes, " "))
	p.row("required", strings.Join(d.RequiredScopes, " "))
	p.row("missing", strings.Join(d.MissingScopes, " "))
	p.row("route", d.Route)
	p.row("limit", limitLine(d.RateLimit))
	for _, warning := range d.Warnings {
		p.row("warning", string(warning.Code)+": "+warning.Message)
	}
	p.row("degraded", strings.Join(d.Degraded, " "))
	p.row("decision", d.ID)
	p.row("policy", d.PolicyRevision)
	p.row("fix", fix(d))
}

// why is the deciding reason for a person.
func why(d *keystile.Decision) string {
	switch {
	case len(d.Reasons) > 0:
		return d.Reasons[0].Message
	case d.Problem != nil && d.Problem.Detail != "":
		return d.Problem.Detail
	case d.Problem != nil:
		return d.Problem.Title
	}
	return "no reason is given"
}

func limitLine(l *keystile.RateLimit) string {
	switch {
	case l == nil:
		return ""
	case l.Limit == 0:
		return "none"
	}
	line := fmt.Sprintf("%s: %d of %d left in %d s, full in %d s (%s)", l.Name, l.Remaining, l.Limit, l.PeriodSeconds, l.ResetSeconds, l.Mode)
	if l.RetryAfterSeconds > 0 {
		line += fmt.Sprintf(", retry in %d s", l.RetryAfterSeconds)
	}
	return line
}

// fix says what would turn the denial into an allow; "" for an allow.
func fix(d *keystile.Decision) string {
	switch d.Code {
	case keystile.CodeKeyMissing:
		return "Send the key as Authorization: Bearer …"
	case keystile.CodeKeyMalformed, keystile.CodeKeyUnknown:
		return "Compare the key with the one that was shown when it was made; it must be whole, and of this service."
	case keystile.CodeKeyRevoked, keystile.CodeKeyExpired:
		// The service knows whether the key has ended or only this secret of it.
		if p := d.Problem; p != nil && len(d.Reasons) > 0 {
			if told, ok := strings.CutPrefix(p.Detail, d.Reasons[0].Message+" "); ok && told != "" {
				return told
			}
		}
		return "Use another key of the organization, or create one."
	case keystile.CodeKeyDisabled:
		return "Have an owner or developer of the organization enable the key."
	case keystile.CodeOrganizationSuspended:
		return "Have the organization's suspension lifted by the service's operator."
	case keystile.CodeEnvironmentMismatch:
		return "Use a key of the environment that is asked for, and a caller that may ask for it."
	case keystile.CodeOrganizationMismatch:
		return "Use a key of the organization that owns the resource."
	case keystile.CodeIPNotAllowed:
		return "Call from an address in the key's allowed_cidrs, or have that list changed."
	case keystile.CodeAmbiguousPath:
		return "Send the path in its plain form: no //, dot segments, trailing slash, or encoded slash, dot or percent."
	case keystile.CodeUnknownRoute:
		return "Check method and path; no route of the policy has them."
	case keystile.CodeBrowserUse:
		return "Call from a server. A key in a web page is in everybody's hands; rotate it."
	case keystile.CodeInsufficientScope:
		return "Use a key that has " + strings.Join(d.MissingScopes, " and ") + ", or have the scope added to this one."
	case keystile.CodeRateLimited:
		if d.RateLimit != nil && d.RateLimit.RetryAfterSeconds > 0 {
			return fmt.Sprintf("Wait %d s, then go on more slowly.", d.RateLimit.RetryAfterSeconds)
		}
		return "Wait, then go on more slowly."
	case keystile.CodeUnavailable:
		return "Try again; the service's readiness page tells what is wrong."
	case keystile.CodePolicyDenied:
		return "See the reasons; a rule of the policy has to change, or the request."
	default:
		return ""
	}
}
