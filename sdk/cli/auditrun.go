package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// maxShownKeys bounds the keys of a table, the gravest first; the other forms have all.
const maxShownKeys = 500

// findingsForm is a value of audit run's -o flag.
type findingsForm string

const tableForm findingsForm = "table"

// String returns the form's name.
func (f *findingsForm) String() string { return string(*f) }

// Set takes one of the forms.
func (f *findingsForm) Set(s string) error {
	switch s {
	case "table", "json", "csv", "sarif", "html":
		*f = findingsForm(s)
		return nil
	}
	return errors.New("must be table, json, csv, sarif or html")
}

// Type names the accepted forms in help texts.
func (*findingsForm) Type() string { return "table|json|csv|sarif|html" }

// formOfFile is the form that a file's name asks for; a table when it asks for none.
func formOfFile(name string) findingsForm {
	switch form := strings.ToLower(strings.TrimPrefix(filepath.Ext(name), ".")); form {
	case "json", "csv", "sarif", "html":
		return findingsForm(form)
	}
	return tableForm
}

// auditFlags are those of `audit run`.
type auditFlags struct {
	org, key, since, code, severity, failOn, out string
	form                                         findingsForm
}

func sinceFlag(cmd *cobra.Command, since *string) {
	cmd.Flags().StringVar(since, "since", "", "the begin of the evidence: 90d, 2026-11-24 or 2026-11-24T12:00:00Z (default: 90d)")
}

func (c Config) auditRun() *cobra.Command {
	f := auditFlags{form: tableForm}
	cmd := &cobra.Command{
		Use: "run", Short: "Find keys that may do more than they need, or are used as they should not be",
		Long: `Judge how each key was used, and print what is found: of all organizations, or of
those that the admin sees. Too little evidence is said to be that, and is never a
finding.

Exit: 4 when there are findings at or above --fail-on.`,
		Example: "  keystile audit run --org org_… --since 90d\n  keystile audit run --fail-on high --out findings.sarif\n  keystile audit run --out audit.html",
	}
	cmd.Flags().StringVar(&f.org, "org", "", "this organization alone, by its id")
	cmd.Flags().StringVar(&f.key, "key", "", "this key alone, by its id")
	sinceFlag(cmd, &f.since)
	cmd.Flags().StringVar(&f.code, "code", "", "only findings of this kind, such as unused_scope")
	cmd.Flags().StringVar(&f.severity, "severity", "", "only findings that are at least so grave: low, medium or high")
	cmd.Flags().StringVar(&f.failOn, "fail-on", "", "exit with 4 when a finding is at least so grave: low, medium or high")
	cmd.Flags().StringVar(&f.out, "out", "", "write to this file in place of standard output; .json, .csv, .sarif and .html say the form, too")
	cmd.Flags().VarP(&f.form, "output", "o", "the form; without it that of the name of --out")
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		if !s.changed("output") {
			f.form = formOfFile(f.out)
		}
		wanted, err := s.findingsWanted(&f)
		if err != nil {
			return err
		}
		org := f.org
		if org == "" {
			if org, err = s.onlyOrganization(ctx); err != nil {
				return err
			}
		}
		var summary *admin.FindingsSummary
		err = s.writeTo(f.out, func(w io.Writer) error {
			summary, err = s.runAudit(ctx, org, wanted, f.form, w)
			return err
		})
		if err != nil {
			return err
		}
		return failOn(summary, f.failOn)
	})
}

// findingsWanted checks what was asked for.
func (s *session) findingsWanted(f *auditFlags) (admin.ListFindingsParams, error) {
	wanted := admin.ListFindingsParams{Key: optional(s, "key", f.key), Code: optional(s, "code", f.code), Severity: optional(s, "severity", admin.Severity(f.severity))}
	if f.org != "" {
		if err := checkID("--org", "org", f.org); err != nil {
			return wanted, err
		}
	}
	if f.key != "" {
		if err := checkID("--key", "key", f.key); err != nil {
			return wanted, err
		}
	}
	for _, flag := range []struct{ name, value string }{{"severity", f.severity}, {"fail-on", f.failOn}} {
		if s.changed(flag.name) && severityRank(admin.Severity(flag.value)) == 0 {
			return wanted, usage(fmt.Errorf("--%s must be low, medium or high", flag.name))
		}
	}
	if f.since != "" {
		at, err := pointInTime(f.since, s.config.now())
		if err != nil {
			return wanted, usage(fmt.Errorf("--since: %w", err))
		}
		wanted.Since = &at
	}
	if f.form != tableForm {
		document := admin.ListFindingsParamsDocument(f.form)
		wanted.Document = &document
	}
	return wanted, nil
}

// onlyOrganization is the one that the admin sees, "" when there are more: then it is to be
// asked about all, which a platform admin may.
func (s *session) onlyOrganization(ctx context.Context) (string, error) {
	two := 2
	list, err := s.client.ListOrganizations(ctx, admin.ListOrganizationsParams{Limit: &two})
	if err != nil || len(list.Items) != 1 {
		return "", err
	}
	return list.Items[0].ID, nil
}

func (s *session) runAudit(
	ctx context.Context, org string, wanted admin.ListFindingsParams, form findingsForm, w io.Writer,
) (*admin.FindingsSummary, error) {
	bar := s.progress("judging keys", -1, false)
	told := int64(0)
	report := &findingsTable{}
	summary, err := s.client.Findings(ctx, org, wanted, admin.FindingsReader{
		Progress: func(judged, of int64) {
			bar.of(of)
			bar.add(int(judged - told))
			told = judged
		},
		Key: func(k *admin.KeyFindings) error {
			report.add(k)
			return nil
		},
		Text: func(text string) error {
			_, err := io.WriteString(w, text)
			return printed(err)
		},
	})
	bar.finish()
	if err != nil || form != tableForm {
		return summary, err
	}
	p := s.config.newPage(w)
	report.write(p, summary)
	if wanted.Code != nil || wanted.Severity != nil {
		only := []string{}
		if wanted.Code != nil {
			only = append(only, "--code "+*wanted.Code)
		}
		if wanted.Severity != nil {
			only = append(only, "--severity "+string(*wanted.Severity))
		}
		p.row("only", strings.Join(only, " ")+"; what else was found is left out")
	}
	return summary, printed(p.err)
}

// writeTo writes to a file that is there whole or not at all, or to standard output. A link is
// followed, and a pipe or a device is written to as it is.
func (s *session) writeTo(name string, write func(io.Writer) error) error {
	if name == "" {
		return write(s.cmd.OutOrStdout())
	}
	at, flag, mode := name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(0o666)
	if target, err := filepath.EvalSymlinks(name); err == nil {
		at = target
	}
	half := filepath.Join(filepath.Dir(at), fmt.Sprintf(".%s-%d", filepath.Base(at), os.Getpid()))
	switch info, err := os.Stat(at); {
	case err == nil && info.Mode().IsRegular():
		mode = info.Mode().Perm()
	case err == nil:
		half, flag = at, os.O_WRONLY
	}
	file, err := os.OpenFile(half, flag, mode) //nolint:gosec // the user names the file
	if err != nil {
		return usage(fmt.Errorf("--out: %w", err))
	}
	err = errors.Join(write(file), file.Close())
	if half != at {
		if err == nil {
			if err = os.Rename(half, at); err != nil {
				err = usage(fmt.Errorf("--out: %w", err))
			}
		}
		_ = os.Remove(half) // unless it has its name by then
	}
	if err == nil {
		s.say("written to %s", name)
	}
	return err
}

// failOn fails when there are findings that are at least so grave; "" never does.
func failOn(summary *admin.FindingsSummary, severity string) error {
	if severity == "" {
		return nil
	}
	var n int64
	for of, count := range summary.BySeverity {
		if severityRank(admin.Severity(of)) >= severityRank(admin.Severity(severity)) {
			n += count
		}
	}
	if n == 0 {
		return nil
	}
	return &ExitError{Code: ExitFindings, Err: fmt.Errorf("%s at or above %s", plural(n, "finding"), severity)}
}

// severityRank orders severities, the gravest last; it is 0 for what is none.
func severityRank(s admin.Severity) int {
	return 1 + slices.Index([]admin.Severity{admin.SeverityLow, admin.SeverityMedium, admin.SeverityHigh}, s)
}

// findingsTable is what is found for a person: by organization, the gravest keys first.
type findingsTable struct {
	keys []*admin.KeyFindings
	// unshown is how many keys with findings there was no room for.
	unshown int
}

func (t *findingsTable) add(k *admin.KeyFindings) {
	if len(k.Findings) == 0 {
		return // the summary counts what there is too little evidence for
	}
	t.keys = append(t.keys, k)
	if len(t.keys) >= 2*maxShownKeys {
		t.cut()
	}
}

// cut keeps the gravest.
func (t *findingsTable) cut() {
	slices.SortStableFunc(t.keys, func(a, b *admin.KeyFindings) int { return gravity(b) - gravity(a) })
	if n := len(t.keys) - maxShownKeys; n > 0 {
		t.unshown += n
		clear(t.keys[maxShownKeys:])
		t.keys = t.keys[:maxShownKeys]
	}
}

func gravity(k *admin.KeyFindings) int {
	most := 0
	for _, f := range k.Findings {
		most = max(most, severityRank(f.Severity))
	}
	return most
}

func (t *findingsTable) write(p *page, summary *admin.FindingsSummary) {
	t.cut()
	slices.SortStableFunc(t.keys, func(a, b *admin.KeyFindings) int {
		return cmp.Or(strings.Compare(a.Evidence.OrganizationName, b.Evidence.OrganizationName),
			strings.Compare(a.Evidence.OrganizationID, b.Evidence.OrganizationID), gravity(b)-gravity(a), strings.Compare(a.Evidence.KeyName, b.Evidence.KeyName))
	})
	last := ""
	for _, k := range t.keys {
		if e := k.Evidence; e.OrganizationID != last {
			last = e.OrganizationID
			p.headline("1", printable(e.OrganizationName), e.OrganizationID)
		}
		p.keyFindings(k)
	}
	if t.unshown > 0 {
		p.write(fmt.Sprintf("and %s with findings more; the other forms have all, such as -o csv\n\n", plural(int64(t.unshown), "key")))
	}
	p.findingsSummary(summary)
}

func (p *page) keyFindings(k *admin.KeyFindings) {
	e := k.Evidence
	p.write("\n  ")
	p.headline("1", printable(e.KeyName), fmt.Sprintf("%s, %s, %s, %s", e.KeyID, e.Hint, e.Environment, e.State))
	for _, f := range k.Findings {
		p.write("    ")
		p.headline(severityColour(f.Severity), fmt.Sprintf("%-6s", f.Severity), strings.TrimSpace(f.Code+"  "+strings.Join(f.Scopes, " ")))
		p.write("           " + printable(f.Message) + "\n")
		p.write("           " + printable(f.Recommendation) + "\n")
		if command := remedyCommand(k, f); command != "" {
			p.write("           " + printable(command) + "\n")
		}
	}
	p.write("    " + printable(k.Coverage) + "\n")
}

// severityColour is an SGR code: red, yellow, blue.
func severityColour(s admin.Severity) string {
	switch s {
	case admin.SeverityHigh:
		return "31"
	case admin.SeverityMedium:
		return "33"
	}
	return "34"
}

// remedyCommand does what is recommended; "" where there is no command for it.
func remedyCommand(k *admin.KeyFindings, f admin.Finding) string {
	key := k.Evidence.KeyID
	switch f.Remedy {
	case "narrow_scopes":
		return "keystile audit apply " + key
	case "revoke_key":
		if f.Code == "unused_key" { // which can be undone, should somebody need it after all
			return "keystile keys disable " + key + "   # and revoke it once nobody has missed it"
		}
		return "keystile keys revoke " + key
	case "rotate_key":
		if f.Code == "live_key_in_browser" { // others may have read it
			return "keystile keys rotate " + key + " --reason compromised"
		}
		return "keystile keys rotate " + key + " --grace 24h"
	case "set_expiry":
		return "keystile keys update " + key + " --expires-in 90d"
	}
	return ""
}

func (p *page) findingsSummary(s *admin.FindingsSummary) {
	if s.Findings > 0 {
		p.write("\n")
	}
	p.row("judged", fmt.Sprintf("%s of %s to %s", plural(s.Keys, "key"), stamp(s.Window.Since), stamp(s.Window.Until)))
	words := []string{}
	for _, severity := range []admin.Severity{admin.SeverityHigh, admin.SeverityMedium, admin.SeverityLow} {
		if n := s.BySeverity[string(severity)]; n > 0 {
			words = append(words, number64(n)+" "+string(severity))
		}
	}
	found := "none"
	if len(words) > 0 {
		found = strings.Join(words, ", ") + ", of " + plural(s.KeysWithFindings, "key")
	}
	p.row("findings", found)
	if s.KeysNotEnoughEvidence > 0 {
		p.row("not known", plural(s.KeysNotEnoughEvidence, "key")+" with too little evidence for some kinds; -o json names them")
	}
}

func number64(n int64) string { return strconv.FormatInt(n, 10) }
