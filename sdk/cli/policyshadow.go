package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// followEvery is how often a shadow is asked for that is followed.
const followEvery = 2 * time.Second

// policyShadow returns `policy shadow`.
func (c Config) policyShadow() *cobra.Command {
	var wanted admin.PolicyShadowStart
	var revision, note string
	var runs time.Duration
	var perSecond int
	var share float64
	cmd := &cobra.Command{
		Use: "shadow [DIR]", Short: "Ask a policy beside the one in force, about checks as they come",
		Long: `Have every replica ask the policy in DIR, or of --revision, beside the one in force, and tell what it would decide
otherwise. It decides nothing, and no check waits for it: where it takes too long, checks are not asked about and
counted as dropped. It must load in the sandbox; its tests may fail.

It ends after --for, by "policy shadow stop", when it comes into force itself, and when it takes too long or too much
memory; another one takes its place. Without DIR and --revision, "policy shadow status" is meant.`,
		Example: "  keystile policy shadow ./policies --for 1h\n  keystile policy shadow status --follow\n  keystile policy shadow status --fail-on-difference -o json",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&revision, "revision", "", "a policy that was in force before, in place of DIR")
	cmd.Flags().DurationVar(&runs, "for", 15*time.Minute, "how long, at most 24h")
	cmd.Flags().IntVar(&perSecond, "per-second", 100, "how many checks a second at most, on each replica")
	cmd.Flags().Float64Var(&share, "share", 1, "of how many checks: 0.1 is a tenth")
	cmd.Flags().StringVar(&note, "note", "", "what to say about it")
	c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		switch {
		case len(args) == 0 && revision == "":
			for _, name := range []string{"revision", "for", "per-second", "share", "note"} {
				if s.changed(name) {
					return usage(fmt.Errorf("--%s is for starting one: give the policy's folder or --revision", name))
				}
			}
			return s.shadowStatus(ctx, false, false)
		case len(args) == 1 && revision != "":
			return usage(errors.New("give the policy's folder or --revision, not both"))
		case runs < time.Second || runs%time.Second != 0:
			return usage(errors.New("--for must be whole seconds, such as 15m or 1h"))
		case len(args) == 1:
			files, err := readPolicy(args[0])
			if err != nil {
				return &ExitError{Code: ExitInvalid, Err: err}
			}
			sent := admin.PolicyFiles(files)
			wanted.Files = &sent
		}
		seconds := int(runs.Seconds())
		wanted.Revision, wanted.DurationSeconds = optional(s, "revision", revision), optional(s, "for", seconds)
		wanted.PerSecond, wanted.Share, wanted.Note = optional(s, "per-second", perSecond), optional(s, "share", share), optional(s, "note", note)
		change, err := s.client.StartPolicyShadow(ctx, wanted, s.options()...)
		if err != nil {
			return s.policyUnloadable(err)
		}
		s.warnOfSilence(change.Effective)
		err = s.show(change, func(p *page) {
			p.row("candidate", change.Shadow.Candidate)
			p.row("asked", shadowSample(change.Shadow))
			p.row("ends", moment(change.Shadow.EndsAt, c.now()))
			p.receipt(change.Effective, "knows of it", c.now())
		})
		if err != nil {
			return err
		}
		s.did("ask", "asking", "policy "+shortRevision(&change.Shadow.Candidate)+" beside the one in force")
		s.next("see what it decides otherwise", "keystile policy shadow status")
		return nil
	})
	cmd.AddCommand(c.policyShadowStatus(), c.policyShadowStop())
	return cmd
}

func (c Config) policyShadowStatus() *cobra.Command {
	var follow, fail bool
	cmd := &cobra.Command{
		Use: "status", Short: "Tell what the policy beside the one in force decides otherwise",
		Long: `Tell what the policy that is asked beside the one in force, or was last, decides otherwise, on all replicas together.

Exit: 0; with --fail-on-difference 4 when there is a difference, it failed, or it was not asked about any check.`,
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "print it again each time that it has changed, until it ends")
	cmd.Flags().BoolVar(&fail, "fail-on-difference", false, "exit 4 when there is a difference, it failed, or it was not asked")
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error { return s.shadowStatus(ctx, follow, fail) })
}

func (c Config) policyShadowStop() *cobra.Command {
	cmd := &cobra.Command{Use: "stop", Short: "Ask it no more"}
	return c.changing(cmd, func(ctx context.Context, s *session, _ []string) error {
		change, err := s.client.StopPolicyShadow(ctx, s.options()...)
		if err != nil {
			return err
		}
		if err := s.show(change, func(p *page) { p.shadow(&change.Shadow, c.now()) }); err != nil {
			return err
		}
		s.did("stop asking", "asking no more:", "policy "+shortRevision(&change.Shadow.Candidate))
		return nil
	})
}

// shadowStatus prints what came of it, once or until it ends.
func (s *session) shadowStatus(ctx context.Context, follow, fail bool) error {
	var last *admin.PolicyShadow
	for {
		found, err := s.client.PolicyShadow(ctx)
		if err != nil {
			return err
		}
		if last == nil || last.Asked != found.Asked || last.Dropped != found.Dropped || last.State != found.State {
			if last != nil && s.output == table {
				if _, err := io.WriteString(s.cmd.OutOrStdout(), "\n"); err != nil {
					return printed(err)
				}
			}
			if err := s.show(found, func(p *page) { p.shadow(found, s.config.now()) }); err != nil {
				return err
			}
		}
		if last = found; !follow || found.State == admin.ShadowEnded {
			break
		}
		select {
		case <-ctx.Done():
			return nil // it was stopped by whoever followed
		case <-time.After(followEvery):
		}
	}
	return s.judgeShadow(last, fail)
}

// judgeShadow says what the figures do not, and fails when that is wanted.
func (s *session) judgeShadow(found *admin.PolicyShadow, fail bool) error {
	if found.Asked == 0 && !fail {
		s.say("it was not asked about any check yet, so nothing is known of what it would decide")
	}
	t := found.Totals
	n := t.DenyToAllow + t.AllowToDeny + t.Unavailable + t.Reasons + t.Limits
	failed := found.EndReason != nil && *found.EndReason == admin.ShadowFailed
	switch {
	case !fail:
		return nil
	case n > 0:
		return &ExitError{Code: ExitFindings, Err: fmt.Errorf("%s decided otherwise", plural(n, "check"))}
	case failed:
		return &ExitError{Code: ExitFindings, Err: errors.New("the candidate failed: " + orEmpty(found.EndMessage))}
	case found.Asked == 0: // no difference was found because none was looked for
		return &ExitError{Code: ExitFindings, Err: errors.New("it was not asked about any check")}
	}
	return nil
}

func shadowSample(f admin.PolicyShadow) string {
	text := fmt.Sprintf("about %d checks a second at most, on each replica", f.PerSecond)
	if f.Share < 1 {
		text += fmt.Sprintf(", and about a share of %g", f.Share)
	}
	return text
}

func (p *page) shadow(f *admin.PolicyShadow, now time.Time) {
	p.row("candidate", f.Candidate)
	p.row("note", f.Note)
	p.row("started", moment(f.StartedAt, now)+" by "+f.StartedBy)
	switch {
	case f.EndReason == nil:
		p.row("running", "until "+moment(f.EndsAt, now))
	case f.EndedAt != nil:
		why := map[admin.PolicyShadowEnd]string{
			admin.ShadowOver: "its time was over", admin.ShadowStopped: "stopped by " + orEmpty(f.EndedBy), admin.ShadowInForce: "it is in force",
			admin.ShadowFailed: "it failed: " + orEmpty(f.EndMessage),
		}[*f.EndReason]
		p.row("ended", moment(*f.EndedAt, now)+", "+why)
	}
	p.row("asked", fmt.Sprintf("about %d of %s, by %s", f.Asked, plural(f.Seen, "check"), plural(int64(f.Replicas), "replica")))
	for _, r := range []struct {
		name, what string
		n          int64
	}{
		{"dropped", "for which there was no time", f.Dropped},
		{"undecided", "with nothing to compare with", f.Undecided},
	} {
		if r.n > 0 {
			p.row(r.name, plural(r.n, "check")+" "+r.what)
		}
	}
	if f.Restarts > 0 {
		p.row("restarts", strconv.FormatInt(f.Restarts, 10))
	}
	if c, a := f.CandidateSeconds, f.ActiveSeconds; c.P50 != nil && c.P99 != nil {
		text := fmt.Sprintf("p50 %s, p99 %s", shortSeconds(*c.P50), shortSeconds(*c.P99))
		if a.P50 != nil && a.P99 != nil {
			text += fmt.Sprintf("; in force p50 %s, p99 %s", shortSeconds(*a.P50), shortSeconds(*a.P99))
		}
		p.row("answers take", text)
	}
	for _, total := range []struct {
		name string
		n    int64
	}{
		{"deny_to_allow", f.Totals.DenyToAllow},
		{"allow_to_deny", f.Totals.AllowToDeny},
		{"unavailable", f.Totals.Unavailable},
		{"reasons", f.Totals.Reasons},
		{"limits", f.Totals.Limits},
	} {
		p.row(total.name, plural(total.n, "check"))
	}
	p.shadowDifferences(f, now)
}

func (p *page) shadowDifferences(f *admin.PolicyShadow, now time.Time) {
	if len(f.Differences) == 0 {
		return
	}
	p.write("\n")
	rows := make([][]string, 0, len(f.Differences))
	for _, d := range f.Differences[:min(len(f.Differences), maxShownDifferences)] {
		like := admin.PolicyDifference{Method: d.Method, Path: d.Path, Action: d.Action, Before: d.Before, After: d.After}
		if d.Kind == admin.ShadowOtherLimits {
			like.Kind = admin.OtherLimits
		}
		before, after := answers(like)
		if d.Failure != nil {
			after = string(*d.Failure)
			if d.Where != nil {
				after += " at " + *d.Where
			}
		}
		rows = append(rows, []string{
			string(d.Kind), strconv.FormatInt(d.Requests, 10), shortName(cmp.Or(orEmpty(d.OrganizationName), "several")),
			shortName(cmp.Or(orEmpty(d.KeyName), orEmpty(d.KeyID), "several")), differenceRequest(like), before, after, relative(d.LastSeen.Sub(now)),
		})
	}
	p.table([]string{"change", "checks", "organization", "key", "request", "now", "then", "last seen"}, rows)
	if n := int64(len(f.Differences)-len(rows)) + f.Unlisted; n > 0 {
		p.write(fmt.Sprintf("and %d more; -o json has up to a thousand\n", n))
	}
}

// shortSeconds is a duration of two digits or three.
func shortSeconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}
