package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	keystile "github.com/supportstation/keystile/sdk"
)

// policyExplain returns `policy explain METHOD PATH`.
func (c Config) policyExplain() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "explain METHOD PATH",
		Short: "Explain what a check would decide, and what would change it",
		Long: `Explain what a check of the key would decide: the rules that fired, by file and line, and for a denial the
smallest change that would allow it. Nothing is charged, and nobody is let in.

The key is read from --key-file (- is standard input) or from KEYSTILE_KEY; the service from --url or
KEYSTILE_URL; the token from KEYSTILE_TOKEN, of a caller that has the permission explain.

Exit: 0 it would allow, 5 it would deny, 7 the service is not available, 2 usage, 3 the caller's token is
refused, 1 anything else.`,
		Example: "  keystile policy explain POST /api/v1/tickets --key-file key.txt",
	}
	c.asking(cmd, "it", func(ctx context.Context, client *keystile.Client, q keystile.Question, output format) error {
		e, err := client.Explain(ctx, q)
		if err != nil {
			return exitOfError(err)
		}
		if err := c.writeExplanation(cmd.OutOrStdout(), output, e, all); err != nil {
			return &ExitError{Code: ExitUnexpected, Err: fmt.Errorf("write the explanation: %w", err)}
		}
		return exitOfExplanation(e)
	})
	cmd.Flags().BoolVar(&all, "all", false, "show the rules that were looked at and did not fire as well")
	return cmd
}

func (c Config) writeExplanation(w io.Writer, f format, e *keystile.Explanation, all bool) error {
	switch f {
	case jsonText:
		return writeJSON(w, e)
	case yamlText:
		return writeYAML(w, e)
	default:
		p := c.newPage(w)
		explanationPage(p, e, all)
		return p.err
	}
}

func exitOfExplanation(e *keystile.Explanation) error {
	switch {
	case e.WouldAllow:
		return nil
	case e.Code == keystile.CodeUnavailable:
		return &ExitError{Code: ExitUnavailable}
	}
	return &ExitError{Code: ExitDenied}
}

func explanationPage(p *page, e *keystile.Explanation, all bool) {
	if e.WouldAllow {
		p.headline("32", "WOULD ALLOW", fmt.Sprintf("%s (%d)", e.Code, e.Status))
	} else {
		p.headline("31", "WOULD DENY", fmt.Sprintf("%s (%d)", e.Code, e.Status))
	}
	for _, r := range e.Reasons {
		p.row("because", string(r.Code)+": "+r.Message)
	}
	for i, remedy := range e.Remedies {
		messages := make([]string, len(remedy.Changes))
		for j, change := range remedy.Changes {
			messages[j] = change.Message
		}
		name := "to allow it"
		if i > 0 {
			name = "or"
		}
		text := strings.Join(messages, " ")
		if remedy.Tried {
			text += " (the policy allows it then)"
		}
		p.row(name, text)
	}
	if k := e.Key; k != nil {
		p.row("key", fmt.Sprintf("%s, %s, %s", k.ID, k.Environment, k.Hint))
	}
	p.row("scopes", strings.Join(e.Scopes, " "))
	p.row("required", strings.Join(e.RequiredScopes, " "))
	p.row("route", e.Route)
	for _, l := range e.Limits {
		line := "none"
		if l.Rate > 0 {
			line = fmt.Sprintf("%s: %d per %d s, burst %d, cost %d", l.Name, l.Rate, l.PeriodSeconds, l.Burst, l.Cost)
		}
		p.row("limit", line)
	}
	var rows [][]string
	for _, r := range e.Rules {
		if !r.Fired && !all {
			continue
		}
		mark := "fired"
		if !r.Fired {
			mark = "no"
		}
		rows = append(rows, []string{fmt.Sprintf("%s:%d", r.File, r.Line), mark, strings.TrimPrefix(r.Name, "data."), r.Title})
	}
	if len(rows) > 0 {
		p.write("\n")
		p.table([]string{"rule at", "fired", "name", "title"}, rows)
	}
}
