package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// maxShownDifferences bounds the rows of a table; JSON has more.
const maxShownDifferences = 50

// policyDiff returns `policy diff`.
func (c Config) policyDiff() *cobra.Command {
	var wanted admin.PolicyDiffRequest
	var revision, organization, since, until, accept string
	cmd := &cobra.Command{
		Use: "diff [DIR]", Short: "Tell what a policy would decide otherwise, of requests that were recorded",
		Long: `Ask the policy in force, and the one in DIR or of --revision, about each kind of request that was recorded,
with keys and callers as they are now, and print what would change. Limits are compared, not counted.

A file for --accept has a difference a line: its kind (deny_to_allow, allow_to_deny, reasons, limits), the
method and path as they are printed ("- ACTION" for an action alone), and if it is one's alone the
organization's or the key's id. * is any. What stands behind a # is left out. Where there are more
differences than are listed, only "* * *" names all of them.

Exit: 4 when there is a difference that --accept does not name.`,
		Example: "  keystile policy diff ./policies --since 7d\n  keystile policy diff ./policies --accept expected.txt -o json",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&revision, "revision", "", "a policy that was in force before, in place of DIR")
	cmd.Flags().StringVar(&organization, "org", "", "requests of this organization alone, by its id")
	cmd.Flags().StringVar(&since, "since", "7d", "requests from then on: 36h, 7d, 2026-11-24 or 2026-11-24T12:00:00Z")
	cmd.Flags().StringVar(&until, "until", "", "requests until then; now by default")
	cmd.Flags().StringVar(&accept, "accept", "", "a file with the differences that are meant; - is standard input")
	return c.reading(cmd, func(ctx context.Context, s *session, args []string) error {
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
		wanted.Revision, wanted.OrganizationID = optional(s, "revision", revision), optional(s, "org", organization)
		var err error
		if wanted.Since, wanted.Until, err = c.window(since, until); err != nil {
			return err
		}
		meant, err := readAccepted(accept, cmd.InOrStdin())
		if err != nil {
			return err
		}
		bar := s.progress("asking both policies", -1, false)
		told := int64(0)
		diff, err := s.client.DiffPolicy(ctx, wanted, func(asked, of int64) {
			bar.of(of)
			bar.add(int(asked - told))
			told = asked
		})
		bar.finish()
		if err != nil {
			return s.policyUnloadable(err)
		}
		return s.showDiff(diff, meant)
	})
}

// judgedDiff is what would change, and what of it is meant, as -o json and yaml have it.
type judgedDiff struct {
	*admin.PolicyDiff

	// Differences are PolicyDiff's.
	Differences []judgedDifference `json:"differences"`
	// Accepted is how many of them --accept names; AcceptsNothing are its lines that name none.
	Accepted       int          `json:"accepted"`
	AcceptsNothing []acceptLine `json:"accepts_nothing"`
}

type judgedDifference struct {
	admin.PolicyDifference

	// Accepted tells that a line of --accept names it.
	Accepted bool `json:"accepted"`
}

// acceptLine is a line of --accept, by its number from 1.
type acceptLine struct {
	Line int    `json:"line"`
	Text string `json:"text"`
}

// judge finds what of a difference is meant.
func judge(diff *admin.PolicyDiff, meant []acceptedDifference) judgedDiff {
	out := judgedDiff{PolicyDiff: diff, Differences: []judgedDifference{}, AcceptsNothing: []acceptLine{}}
	used := make([]bool, len(meant))
	for _, d := range diff.Differences {
		named := false
		for i, a := range meant {
			if a.is(d) {
				named, used[i] = true, true
			}
		}
		if named {
			out.Accepted++
		}
		out.Differences = append(out.Differences, judgedDifference{d, named})
	}
	for i, a := range meant {
		if !used[i] {
			out.AcceptsNothing = append(out.AcceptsNothing, acceptLine{a.line, strings.Join([]string{a.kind, a.method, a.what, a.whose}, " ")})
		}
	}
	return out
}

// showDiff prints what would change, and fails when some of it is not meant.
func (s *session) showDiff(diff *admin.PolicyDiff, meant []acceptedDifference) error {
	judged := judge(diff, meant)
	unexpected := []admin.PolicyDifference{}
	for _, d := range judged.Differences {
		if !d.Accepted {
			unexpected = append(unexpected, d.PolicyDifference)
		}
	}
	if err := s.show(judged, func(p *page) { p.diff(diff, unexpected, judged.Accepted) }); err != nil {
		return err
	}
	for _, a := range judged.AcceptsNothing {
		s.say("--accept: line %d names no difference that there is", a.Line)
	}
	if diff.Requests == 0 {
		s.say("nothing was recorded in that time, so nothing is known of what would change")
	}
	unlisted := diff.Unlisted
	if slices.ContainsFunc(meant, acceptedDifference.all) {
		unlisted = 0
	}
	if n := int64(len(unexpected)) + unlisted; n > 0 {
		return &ExitError{Code: ExitFindings, Err: fmt.Errorf("%s in what is decided", plural(n, "difference"))}
	}
	return nil
}

func (p *page) diff(diff *admin.PolicyDiff, shown []admin.PolicyDifference, accepted int) {
	p.row("in force", shortRevision(&diff.Active))
	p.row("other", shortRevision(&diff.Candidate))
	p.row("asked", fmt.Sprintf("%s of %s to %s, %s", plural(diff.Requests, "request"), stamp(diff.Since), stamp(diff.Until),
		plural(int64(diff.Questions), "different question")))
	if n := diff.Skipped.Gone; n > 0 {
		p.row("not asked", plural(n, "request")+" of keys or callers that are revoked, expired, disabled or suspended by now")
	}
	if n := diff.Skipped.Collapsed; n > 0 {
		p.row("not asked", plural(n, "request")+" of so many kinds that theirs were not kept")
	}
	switch {
	case diff.Requests == 0:
	case diff.Exact:
		p.row("exact", "the same requests would be decided as told here")
	case diff.Approximate == 0:
		p.row("exact", "but for those that were not asked")
	default:
		p.row("approximate", plural(diff.Approximate, "request")+" may come out otherwise:")
		p.problems(diff.ApproximateReasons)
	}
	for _, total := range []struct {
		name string
		n    int64
	}{
		{"deny_to_allow", diff.Totals.DenyToAllow},
		{"allow_to_deny", diff.Totals.AllowToDeny},
		{"reasons", diff.Totals.Reasons},
		{"limits", diff.Totals.Limits},
	} {
		p.row(total.name, plural(total.n, "request"))
	}
	if accepted > 0 {
		p.row("accepted", plural(int64(accepted), "difference")+" that --accept names")
	}
	if len(shown) == 0 {
		return
	}
	p.write("\n")
	rows := make([][]string, 0, len(shown))
	for _, d := range shown[:min(len(shown), maxShownDifferences)] {
		before, after := answers(d)
		rows = append(rows, []string{
			string(d.Kind), strconv.FormatInt(d.Requests, 10), shortName(cmp.Or(orEmpty(d.OrganizationName), "several")),
			shortName(cmp.Or(orEmpty(d.KeyName), orEmpty(d.KeyID), "several")), differenceRequest(d), before, after,
		})
	}
	p.table([]string{"change", "requests", "organization", "key", "request", "now", "then"}, rows)
	if n := int64(len(shown)-len(rows)) + diff.Unlisted; n > 0 {
		p.write(fmt.Sprintf("and %d more; -o json has up to a thousand\n", n))
	}
}

// differenceRequest is a request as --accept names it, with an action that goes with a path.
func differenceRequest(d admin.PolicyDifference) string {
	method, what := requestOf(d)
	if d.Path != "" && d.Action != "" {
		what += " (" + d.Action + ")"
	}
	return method + " " + what
}

func requestOf(d admin.PolicyDifference) (method, what string) {
	return cmp.Or(d.Method, "-"), cmp.Or(d.Path, d.Action, "-")
}

// answers are what is decided now and then, as far as it differs.
func answers(d admin.PolicyDifference) (before, after string) {
	if d.Kind == admin.OtherLimits {
		return limitsText(d.Before.Limits), limitsText(d.After.Limits)
	}
	return answerText(d.Before), answerText(d.After)
}

func answerText(a admin.PolicyAnswer) string {
	if a.Allow {
		return "allowed"
	}
	words := a.Code
	if a.Code == "unknown_route" {
		words += " " + strconv.Itoa(a.Status) // whose status a policy chooses
	}
	for _, reason := range a.Reasons {
		if reason != a.Code {
			words += ", " + reason
		}
	}
	if len(a.MissingScopes) > 0 {
		words += " " + few(a.MissingScopes, maxScopesWidth)
	}
	return words
}

func limitsText(limits []admin.PolicyLimit) string {
	words := make([]string, len(limits))
	for i, l := range limits {
		words[i] = fmt.Sprintf("%s %d/%ds burst %d", l.Name, l.Rate, l.PeriodSeconds, l.Burst)
		if l.Name == "none" {
			words[i] = "none"
		}
		if l.Cost > 1 {
			words[i] += fmt.Sprintf(" cost %d", l.Cost)
		}
	}
	return cmp.Or(strings.Join(words, "; "), "none given")
}

// acceptedDifference is a line of --accept.
type acceptedDifference struct {
	kind, method, what, whose string
	line                      int
}

// all tells that it names every difference.
func (a acceptedDifference) all() bool {
	return a.kind == "*" && a.method == "*" && a.what == "*" && a.whose == "*"
}

func (a acceptedDifference) is(d admin.PolicyDifference) bool {
	method, what := requestOf(d)
	fits := func(pattern, value string) bool { return pattern == "*" || pattern == value }
	return fits(a.kind, string(d.Kind)) && fits(a.method, method) && fits(a.what, what) &&
		(fits(a.whose, orEmpty(d.OrganizationID)) || fits(a.whose, orEmpty(d.KeyID)))
}

// readAccepted reads the file of --accept; "" is none.
func readAccepted(name string, stdin io.Reader) ([]acceptedDifference, error) {
	if name == "" {
		return nil, nil
	}
	in := stdin
	if name != "-" {
		f, err := os.Open(name) //nolint:gosec // whoever calls the command names the file
		if err != nil {
			return nil, usage(fmt.Errorf("--accept: %w", err))
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	var all []acceptedDifference
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		if len(words) == 3 {
			words = append(words, "*")
		}
		kinds := []string{"*", string(admin.DenyToAllow), string(admin.AllowToDeny), string(admin.OtherReasons), string(admin.OtherLimits)}
		if len(words) != 4 || !slices.Contains(kinds, words[0]) || !namesOne(words[3]) {
			return nil, usage(fmt.Errorf("--accept: line %d is not KIND METHOD PATH [ORGANIZATION or KEY], such as deny_to_allow GET /api/v1/reports", n))
		}
		all = append(all, acceptedDifference{words[0], words[1], words[2], words[3], n})
	}
	if err := lines.Err(); err != nil {
		return nil, usage(fmt.Errorf("--accept: %w", err))
	}
	return all, nil
}

// namesOne tells whether a word names an organization, a key, or any.
func namesOne(word string) bool {
	return word == "*" || strings.HasPrefix(word, "org_") || strings.HasPrefix(word, "key_")
}

// policyUnloadable is policyRefused for a policy that nobody wanted in force.
func (s *session) policyUnloadable(err error) error {
	var exit *ExitError
	if err = s.policyRefused(err); errors.As(err, &exit) {
		exit.Err = errors.New("the policy does not load, so it cannot be asked")
	}
	return err
}
