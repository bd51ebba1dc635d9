package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// NewPolicyCommand returns `policy`, with what is asked of a running service about its
// policy. What needs no service is added by the program.
func NewPolicyCommand(config Config) *cobra.Command {
	return group("policy", "Try policies, put them in force, take them back", `A policy is a folder of Rego and data. It goes into force only when it compiles in the
sandbox, holds the invariants that no policy may break, and passes its own tests and those of
the policy that is in force; else what is in force stays.`,
		config.policyShow(), config.policyHistory(), config.policyActivate(), config.policyRollback(), config.policyExplain(), config.policyDiff(),
		config.policyShadow(), config.policyWhy())
}

func (c Config) policyShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show", Short: "Show which policy is in force, and which was refused and why"}
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		found, err := s.client.Policy(ctx)
		if err != nil {
			return err
		}
		return s.show(found, func(p *page) {
			now := c.now()
			p.row("policy", orEmpty(found.Revision))
			p.row("from", string(found.Origin))
			if found.Since != nil {
				p.row("in force", "since "+moment(*found.Since, now))
			}
			if a := found.Activation; a != nil {
				p.row("activated", moment(a.ActivatedAt, now)+" by "+a.ActivatedBy)
				p.row("note", a.Note)
				if a.SecurityFix {
					p.row("security fix", "nothing goes back past it unless it is told to")
				}
			}
			p.bundle(found.Bundle, now)
			if f := found.RuntimeErrors; f != nil {
				p.row("failing", runtimeErrors(f))
				p.row("stays", orEmpty(f.Stays))
			}
			if r := found.Refused; r != nil {
				p.row("refused", fmt.Sprintf("%s from %s, %s", cmp.Or(orEmpty(r.Revision), "a policy that cannot be read"), r.Origin, moment(r.At, now)))
				p.problems(r.Problems)
			}
		})
	})
}

func runtimeErrors(f *admin.PolicyRuntimeErrors) string {
	text := fmt.Sprintf("%s of %s not decided in %d s (%s", plural(int64(f.Errors), "check"), plural(int64(f.Organizations), "organization"), f.WindowSeconds, f.Kind)
	if f.Where != nil {
		text += ", " + *f.Where
	}
	return text + ")"
}

// bundle tells how it stands with the server that publishes policies.
func (p *page) bundle(b *admin.PolicyBundle, now time.Time) {
	if b == nil {
		return
	}
	if b.Version != nil {
		p.row("version", fmt.Sprint(*b.Version))
	}
	p.row("bundle", b.URL)
	if b.ContactAt != nil {
		p.row("bundle server", "answered "+moment(*b.ContactAt, now))
	}
	if b.Error != nil && b.FailingSince != nil {
		p.row("unreachable", "since "+moment(*b.FailingSince, now)+": "+*b.Error)
	}
	p.row("storage", orEmpty(b.StorageError))
}

// problems writes one a line, as editors read them.
func (p *page) problems(all []admin.PolicyProblem) {
	for _, problem := range all {
		p.write("    " + printable(problemText(problem)) + "\n")
	}
}

func problemText(p admin.PolicyProblem) string {
	switch {
	case p.File == nil:
		return p.Message
	case p.Line == nil:
		return *p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d: %s", *p.File, *p.Line, p.Message)
}

func (c Config) policyHistory() *cobra.Command {
	var pages paging
	cmd := &cobra.Command{Use: "history", Short: "List how policies came into force, newest first"}
	pages.flags(cmd)
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		found, err := collect(pages, func(cursor *string, limit *int) ([]admin.PolicyActivation, *string, error) {
			page, err := s.client.ListPolicyHistory(ctx, admin.ListPolicyHistoryParams{Cursor: cursor, Limit: limit})
			if err != nil {
				return nil, nil, err
			}
			return page.Items, page.NextCursor, nil
		})
		if err != nil {
			return err
		}
		now := c.now()
		return showList(s, "activations", found, []string{"activated", "revision", "by", "what", "note"}, func(a admin.PolicyActivation) []string {
			return []string{moment(a.ActivatedAt, now), shortRevision(a.Revision), a.ActivatedBy, activationKind(a), shortName(a.Note)}
		})
	})
}

// shortRevision is enough of a revision to tell it from others; the whole is in JSON.
func shortRevision(revision *string) string {
	if revision == nil {
		return "built-in"
	}
	return (*revision)[:min(len(*revision), len("sha256:")+12)]
}

func activationKind(a admin.PolicyActivation) string {
	var words []string
	switch {
	case strings.HasPrefix(a.ActivatedBy, "replica "):
		words = append(words, "stepped back by itself")
	case a.RolledBack:
		words = append(words, "rolled back")
	}
	if a.SecurityFix {
		words = append(words, "security fix")
	}
	if n := len(a.AcceptedTests); n > 0 {
		words = append(words, plural(int64(n), "removed test"))
	}
	return strings.Join(words, ", ")
}

func (c Config) policyActivate() *cobra.Command {
	var wanted admin.PolicyActivate
	var accepted []string
	var note, revision string
	var fix bool
	cmd := &cobra.Command{
		Use: "activate [DIR]", Short: "Put a policy in force on every replica, once it has passed",
		Long: `Put the policy in DIR in force on every replica, or with --revision one that was in force before.

It must compile in the sandbox, hold the invariants, pass its own tests, and pass the tests of the
policy that is in force: where one of those is meant to fail, name it in --accept-removed-tests.`,
		Example: "  keystile policy activate ./policies --note 'invoices'\n  keystile policy activate ./policies --dry-run",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringSliceVar(&accepted, "accept-removed-tests", nil, "tests of the policy in force that may fail, such as data.keystile.check_test.test_x, or data.keystile.check_test.*")
	cmd.Flags().StringVar(&revision, "revision", "", "a policy that was in force before, as in `keystile policy history -o json`")
	cmd.Flags().StringVar(&note, "note", "", "what to say about it in the history")
	cmd.Flags().BoolVar(&fix, "security-fix", false, "nothing goes back past it unless it is told to")
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if (len(args) == 0) == (revision == "") {
			return usage(errors.New("give the policy's folder, or --revision"))
		}
		if len(args) == 1 {
			files, err := readPolicy(args[0])
			if err != nil {
				return &ExitError{Code: ExitInvalid, Err: err}
			}
			sent := admin.PolicyFiles(files)
			wanted.Files = &sent
		}
		wanted.Revision = optional(s, "revision", revision)
		wanted.Note, wanted.SecurityFix = optional(s, "note", note), optional(s, "security-fix", fix)
		if len(accepted) > 0 {
			wanted.AcceptRemovedTests = &accepted
		}
		change, err := s.client.ActivatePolicy(ctx, wanted, s.options()...)
		if err != nil {
			return s.policyRefused(err)
		}
		return s.policyChanged(change, "activate", "activated")
	})
}

func (c Config) policyRollback() *cobra.Command {
	var note, revision string
	var past bool
	cmd := &cobra.Command{
		Use: "rollback", Short: "Put the policy in force again that was before",
		Example: "  keystile policy rollback --note 'denied too much'",
	}
	cmd.Flags().StringVar(&revision, "to", "", "an earlier policy than the one before, by its revision")
	cmd.Flags().StringVar(&note, "note", "", "what to say about it in the history")
	cmd.Flags().BoolVar(&past, "past-security-fix", false, "go back although a security fix is taken back with it")
	return c.changing(cmd, func(ctx context.Context, s *session, _ []string) error {
		change, err := s.client.RollBackPolicy(ctx, admin.PolicyRollback{
			Revision: optional(s, "to", revision), Note: optional(s, "note", note), PastSecurityFix: optional(s, "past-security-fix", past),
		}, s.options()...)
		if err != nil {
			return s.policyRefused(err)
		}
		return s.policyChanged(change, "roll back to", "rolled back to")
	})
}

func (s *session) policyChanged(change *admin.PolicyChange, would, done string) error {
	s.warnOfSilence(change.Effective)
	err := s.show(change, func(p *page) {
		p.row("policy", cmp.Or(orEmpty(change.Activation.Revision), "built-in"))
		if r := change.Report; r != nil {
			p.row("tests", fmt.Sprintf("%s passed, %.1f %% of the policy's lines covered", plural(int64(len(r.Tests)), "test"), r.CoveragePercent))
			if n := len(r.ActiveTests); n > 0 {
				p.row("tests before", fmt.Sprintf("%s of the policy before it, %d of them fail and are accepted", plural(int64(n), "test"), len(r.AcceptedTests)))
			}
			p.row("invariants", fmt.Sprintf("%d questions", r.InvariantQuestions))
		}
		p.receipt(change.Effective, "decides", s.config.now())
	})
	if err != nil {
		return err
	}
	s.did(would, done, "policy "+shortRevision(change.Activation.Revision))
	return nil
}

// policyRefused prints what is wrong with a policy, one a line.
func (s *session) policyRefused(err error) error {
	var refusal *admin.Error
	if !errors.As(err, &refusal) || refusal.Code != "policy_refused" {
		return err
	}
	code := ExitInvalid
	for _, reason := range refusal.Reasons {
		s.say("%s", reason.Message)
		if reason.Code != "load" {
			code = ExitFindings
		}
	}
	return &ExitError{Code: code, Err: errors.New("the policy is refused; what is in force stays")}
}
