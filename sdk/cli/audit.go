package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// NewAuditCommand returns `audit`, with what finds keys that may do more than they need.
func NewAuditCommand(config Config) *cobra.Command {
	return group("audit", "Find keys that may do more than they need, and narrow them", `An audit judges how each key was used by the policy in force: scopes and keys
that nobody uses, keys that never end, keys in browsers, and more, each with its
evidence.`, config.auditRun(), config.auditApply(), config.auditUndo())
}

const auditApplyLong = `Narrow a key to the scopes that its findings propose. Before, the policy in force
is asked about every kind of request that was recorded of the key, with and
without what goes. When one of them would be denied, or that is not known, the key
stays as it is, and the requests are told. There is no way around that: keep the
scopes with --keep, or change the key with ` + "`keystile keys update`" + `.

For 400 days ` + "`keystile audit undo`" + ` gives back exactly what was taken.`

func (c Config) auditApply() *cobra.Command {
	var since string
	var keep []string
	cmd := &cobra.Command{
		Use: "apply KEY", Short: "Narrow a key to what it uses, if nothing recorded would be denied", Args: cobra.ExactArgs(1),
		Long:    auditApplyLong,
		Example: "  keystile audit apply key_… --dry-run\n  keystile audit apply key_… --keep customers:read",
	}
	sinceFlag(cmd, &since)
	cmd.Flags().StringSliceVar(&keep, "keep", nil, "a scope that stays, whatever is proposed; repeat it for more")
	return c.updating(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("KEY", "key", args[0]); err != nil {
			return err
		}
		wanted := admin.FindingsApply{Keep: optional(s, "keep", keep)}
		if since != "" {
			at, err := pointInTime(since, c.now())
			if err != nil {
				return usage(fmt.Errorf("--since: %w", err))
			}
			wanted.Since = &at
		}
		change, err := s.client.ApplyFindings(ctx, args[0], wanted, s.options()...)
		if err != nil {
			return s.trafficNeeds(err)
		}
		s.warnOfSilence(change.Effective)
		if err := s.show(change, func(p *page) { c.narrowed(p, change) }); err != nil {
			return err
		}
		s.did("narrow", "narrowed", "key "+args[0])
		s.next("to give it back", "keystile audit undo "+args[0])
		return nil
	})
}

// trafficNeeds tells each kind of request that is against a narrowing on a line of its own.
func (s *session) trafficNeeds(err error) error {
	var refusal *admin.Error
	if !errors.As(err, &refusal) || len(refusal.Reasons) == 0 || refusal.Code != "traffic_needs_scopes" && refusal.Code != "usage_not_written" {
		return err
	}
	for _, reason := range refusal.Reasons {
		s.say("%s: %s", strings.ReplaceAll(reason.Code, "_", " "), reason.Message)
	}
	code := ExitFindings
	if refusal.Code == "usage_not_written" {
		code = ExitUnavailable
	}
	return &ExitError{Code: code, Err: errors.New(printable(refusal.Detail))}
}

func (c Config) auditUndo() *cobra.Command {
	cmd := &cobra.Command{
		Use: "undo KEY", Short: "Give a key back the scopes that `audit apply` took last", Args: cobra.ExactArgs(1),
		Long: `Give a key back the scopes that "audit apply" took last, for 400 days: it has then
exactly those that it had. All else of the key stays as it is by now. When its
scopes were changed otherwise since, nothing is done.`,
	}
	return c.updating(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("KEY", "key", args[0]); err != nil {
			return err
		}
		change, err := s.client.UndoFindings(ctx, args[0], s.options()...)
		if err != nil {
			return err
		}
		if err := s.show(change, func(p *page) { c.narrowed(p, change) }); err != nil {
			return err
		}
		s.did("give back the scopes of", "gave back the scopes of", "key "+args[0])
		s.next("to see it", "keystile keys get "+args[0])
		return nil
	})
}

// narrowed tells what a key had and has, and why.
func (c Config) narrowed(p *page, change *admin.FindingsChange) {
	now := c.now()
	p.row("key", change.Key.ID)
	p.row("name", change.Key.Name)
	if change.Undone {
		p.row("scopes", strings.Join(change.Key.Scopes, " "))
		p.row("were", strings.Join(change.ScopesAfter, " "))
		p.row("narrowed", moment(change.NarrowedAt, now)+" by "+change.NarrowedBy)
		return
	}
	p.row("scopes", strings.Join(change.ScopesAfter, " "))
	p.row("were", strings.Join(change.ScopesBefore, " "))
	for _, f := range change.Findings {
		if len(f.RemoveScopes) > 0 {
			p.row("because", f.Message)
		}
	}
	p.row("evidence", orEmpty(change.Coverage))
	if asked := change.Asked; asked != nil {
		line := fmt.Sprintf("the policy about %s, %s of them, since %s", plural(int64(asked.Kinds), "kind")+" of requests", plural(asked.Requests, "request"),
			stamp(asked.Since))
		if asked.Kinds == 0 {
			line = "nothing, for nothing was recorded since " + stamp(asked.Since)
		}
		p.row("asked", line)
		p.row("answer", "nothing that passed would be denied")
	}
	p.receipt(change.Effective, "narrowed", now)
	p.row("undo until", moment(change.UndoableUntil, now))
	if change.Asked != nil && len(change.Asked.Listed) > 0 {
		p.write("\n")
		p.table([]string{"request", "requests", "now", "then"}, eachRow(change.Asked.Listed, askedRow))
		if n := change.Asked.Kinds - len(change.Asked.Listed); n > 0 {
			p.write(fmt.Sprintf("and %d more kinds\n", n))
		}
	}
}

func eachRow[T any](all []T, row func(T) []string) [][]string {
	rows := make([][]string, len(all))
	for i, one := range all {
		rows[i] = row(one)
	}
	return rows
}

func askedRow(r admin.AskedRequests) []string {
	what := strings.TrimSpace(r.Method + " " + r.Path)
	if r.Action != "" {
		what = strings.TrimSpace(what + " (" + r.Action + ")")
	}
	if what == "" {
		what = "kinds that were not kept"
	}
	before, after := r.Before, r.After
	if r.Outcome == "caller_gone" {
		before, after = "caller gone", "caller gone"
	}
	return []string{what, number64(r.Requests), before, after}
}
