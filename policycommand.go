package main

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/authz/policy/origin"
	"github.com/supportstation/keystile/policies"
)

// addPolicyCommands adds to `policy` what needs no running service.
func addPolicyCommands(cmd *cobra.Command) {
	cmd.AddCommand(newPolicyCheckCommand(), newPolicyTestCommand(), newPolicyAnalyzeCommand(), newPolicyExportCommand(), newPolicyRecoverCommand(), newPolicyRoutesCommand(),
		newPolicyBundleCommand(), newPolicyGateCommand())
}

func newPolicyTestCommand() *cobra.Command {
	var against, output string
	var accepted []string
	var floor float64
	cmd := &cobra.Command{
		Use:   "test [DIR]",
		Short: "Try a policy as activating it would",
		Long: `Try the policy in DIR (here by default) as activating it would: compile it in the sandbox, hold it to the
invariants that no policy may break, run its tests, and with --against run the tests of another policy.

Exit: 0 it passes, 3 it does not compile, 4 it does not pass.`,
		Example: "  keystile policy test ./policies\n  keystile policy test ./policies --against ./policies.before -o junit",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&against, "against", "", "folder of the policy that is in force; built-in for the program's own")
	cmd.Flags().StringSliceVar(&accepted, "accept-removed-tests", nil, "tests of --against that may fail, such as data.keystile.check_test.test_x, or data.keystile.check_test.*")
	cmd.Flags().Float64Var(&floor, "coverage-floor", policy.DefaultCoverageFloor, "the least of the policy's lines that its tests must reach, in percent")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "how to print: table, json, junit or sarif")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		write, ok := reportWriters()[output]
		if !ok {
			return usageError(fmt.Errorf("--output is %q; accepted: table, json, junit, sarif", output))
		}
		if floor <= 0 || floor > 100 {
			return usageError(errors.New("--coverage-floor must be above 0 and at most 100"))
		}
		report, err := tryDirectory(cmd.Context(), directoryOf(args), against, accepted, floor)
		if err != nil {
			return err
		}
		if err := write(cmd.OutOrStdout(), report); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return exitOfReport(report)
	}
	return cmd
}

// directoryOf is the folder that is named, or here.
func directoryOf(args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	return "."
}

// tryDirectory tries a folder's policy in a process of its own.
func tryDirectory(ctx context.Context, dir, against string, accepted []string, floor float64) (*authz.PolicyReport, error) {
	trial := policy.Trial{AcceptRemoved: accepted, CoverageFloor: floor}
	var err error
	if trial.Candidate, err = readDirectory(ctx, dir); err != nil {
		return policy.Unreadable(err), nil
	}
	switch against {
	case "":
	case "built-in":
		trial.Active, err = builtInPolicy(ctx)
	default:
		trial.Active, err = readDirectory(ctx, against)
	}
	if err != nil {
		return nil, configError(fmt.Errorf("--against: %w", err))
	}
	gate, err := newGate()
	if err != nil {
		return nil, err
	}
	return gate.Try(ctx, trial) //nolint:wrapcheck // it says what it was doing
}

// readDirectory reads a folder's policy as a service that watches it does.
func readDirectory(ctx context.Context, dir string) (*policy.Source, error) {
	v := origin.NewDirectory(dir).Read(ctx)
	return v.Source, v.Err
}

// exitOfReport tells how a report ends the program: everything has been said already.
func exitOfReport(r *authz.PolicyReport) error {
	if r.Passed() {
		return nil
	}
	for _, p := range r.Problems {
		if p.Stage == authz.StageLoad {
			return configError(errors.New("the policy is refused"))
		}
	}
	return exitWith(exitFindings, errors.New("the policy is refused"))
}

// reportWriters are the forms of a report.
func reportWriters() map[string]func(io.Writer, *authz.PolicyReport) error {
	return map[string]func(io.Writer, *authz.PolicyReport) error{
		"table": writeReportTable, "json": writeReportJSON, "junit": writeReportJUnit, "sarif": writeReportSARIF,
	}
}

func writeReportJSON(w io.Writer, r *authz.PolicyReport) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(r)
}

// writeReportTable is for a person: what is wrong first, a summary last.
func writeReportTable(w io.Writer, r *authz.PolicyReport) error {
	var text strings.Builder
	for _, p := range r.Problems {
		fmt.Fprintf(&text, "%s\n", p)
	}
	if len(r.Problems) > 0 {
		text.WriteString("\n")
	}
	passed, failed, skipped := r.Counts()
	if len(r.Tests) > 0 {
		fmt.Fprintf(&text, "tests       %d passed, %d failed", passed, failed)
		if skipped > 0 {
			fmt.Fprintf(&text, ", %d skipped", skipped)
		}
		fmt.Fprintf(&text, "; they reach %.1f %% of the policy's lines\n", r.Coverage)
	}
	if r.Against != "" {
		broken := 0
		for _, t := range r.ActiveTests {
			if t.Failed() {
				broken++
			}
		}
		fmt.Fprintf(&text, "in force    %d of its tests are changed or missing here, %d of them fail, %d of these are accepted\n",
			len(r.ActiveTests), broken, len(r.Accepted))
	}
	if r.Questions > 0 {
		fmt.Fprintf(&text, "invariants  asked with %d questions\n", r.Questions)
	}
	if r.Revision != "" {
		fmt.Fprintf(&text, "revision    %s\n", r.Revision)
	}
	if r.Passed() {
		fmt.Fprintf(&text, "It would go into force. (%.1f s)\n", r.Seconds)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// junit is what continuous integration reads.
type junitSuite struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     string      `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string       `xml:"classname,attr"`
	Name    string       `xml:"name,attr"`
	File    string       `xml:"file,attr,omitempty"`
	Line    int          `xml:"line,attr,omitempty"`
	Time    string       `xml:"time,attr"`
	Failure *junitReason `xml:"failure"`
	Error   *junitReason `xml:"error"`
	Skipped *struct{}    `xml:"skipped"`
}

type junitReason struct {
	Message string `xml:"message,attr"`
}

func writeReportJUnit(w io.Writer, r *authz.PolicyReport) error {
	suite := junitSuite{Name: "policy", Time: seconds(r.Seconds)}
	add := func(c junitCase, outcome authz.PolicyOutcome, message string) {
		suite.Tests++
		switch outcome {
		case authz.TestFails:
			suite.Failures++
			c.Failure = &junitReason{message}
		case authz.TestErrs:
			suite.Errors++
			c.Error = &junitReason{message}
		case authz.TestSkips:
			suite.Skipped++
			c.Skipped = &struct{}{}
		case authz.TestPasses:
		}
		suite.Cases = append(suite.Cases, c)
	}
	for _, t := range r.Tests {
		dot := strings.LastIndexByte(t.Name, '.')
		add(junitCase{Class: t.Name[:max(dot, 0)], Name: t.Name[dot+1:], File: t.File, Line: t.Line, Time: seconds(t.Seconds)}, t.Outcome, t.Message)
	}
	for _, p := range r.Problems {
		if p.Stage == authz.StageTests {
			continue // its test has said so
		}
		add(junitCase{Class: "policy." + string(p.Stage), Name: cmp.Or(p.Test, p.File, string(p.Stage)), File: p.File, Line: p.Line, Time: "0"},
			authz.TestErrs, p.String())
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	encoder := xml.NewEncoder(w)
	encoder.Indent("", "  ")
	if err := encoder.Encode(suite); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func seconds(s float64) string { return fmt.Sprintf("%.3f", s) }

// writeReportSARIF writes the problems in the Static Analysis Results Interchange Format
// 2.1.0, as code hosts read it.
func writeReportSARIF(w io.Writer, r *authz.PolicyReport) error {
	type object = map[string]any
	results := []object{}
	for _, p := range r.Problems {
		result := object{"ruleId": string(p.Stage), "level": "error", "message": object{"text": p.Message}}
		if p.File != "" {
			place := object{"artifactLocation": object{"uri": p.File}}
			if p.Line > 0 {
				place["region"] = object{"startLine": p.Line}
			}
			result["locations"] = []object{{"physicalLocation": place}}
		}
		results = append(results, result)
	}
	rules := []object{}
	for _, stage := range []authz.PolicyStage{
		authz.StageLoad, authz.StageInvariants, authz.StageTests, authz.StageCoverage, authz.StageActiveTests, authz.StageProcess,
	} {
		rules = append(rules, object{"id": string(stage)})
	}
	return json.NewEncoder(w).Encode(object{
		"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0",
		"runs": []object{{"tool": object{"driver": object{"name": "keystile policy", "rules": rules}}, "results": results}},
	})
}

func newPolicyAnalyzeCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "analyze [DIR]",
		Short: "Tell what a policy's answers can depend on",
		Long: `Tell, of the policy in DIR (the built-in one by default), what its answers can depend on: the parts of the input that it
reads, the builtins that it may call, and whether an answer follows from these alone.`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "how to print: table, json or yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		source, err := builtInPolicy(cmd.Context())
		if len(args) == 1 {
			source, err = readDirectory(cmd.Context(), args[0])
		}
		if err != nil {
			return configError(err)
		}
		snapshot, err := source.Load(cmd.Context())
		if err != nil {
			return configError(err)
		}
		all := snapshot.Analyze()
		return printData(cmd.OutOrStdout(), output, all, func(w io.Writer) {
			for _, a := range all {
				_, _ = fmt.Fprintf(w, "%s\t%d rules\n", a.Entrypoint, a.Rules)
				_, _ = fmt.Fprintf(w, "  deterministic\t%t\n", a.Deterministic())
				_, _ = fmt.Fprintf(w, "  reads\t%s\n", strings.Join(a.Reads, " "))
				_, _ = fmt.Fprintf(w, "  data\t%s\n", strings.Join(a.Data, " "))
				_, _ = fmt.Fprintf(w, "  builtins\t%s\n", strings.Join(a.Builtins, " "))
			}
		})
	}
	return cmd
}

func newPolicyExportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export DIR",
		Short: "Write the built-in policy into a folder, with what stock opa needs beside it",
		Long: `Write the policy that this program is built with into DIR/policies, to begin with, and beside it what
the stock opa needs to hold it to the same sandbox:

  opa check --strict --schema DIR/schemas --capabilities DIR/capabilities.json DIR/policies`,
		Args: cobra.ExactArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := exportPolicies(args[0]); err != nil {
			return err
		}
		_, err := fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s, %s and %s\n", filepath.Join(args[0], "policies"),
			filepath.Join(args[0], "schemas"), filepath.Join(args[0], "capabilities.json"))
		return err
	}
	return cmd
}

func exportPolicies(dir string) error {
	to := filepath.Join(dir, "policies")
	if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
		return usageError(fmt.Errorf("%s is there already; name another folder", to))
	}
	for name, from := range map[string]fs.FS{"policies": policies.FS, ".": policy.ToolFiles()} {
		err := fs.WalkDir(from, ".", func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			at := filepath.Join(dir, name, path)
			if entry.IsDir() {
				return os.MkdirAll(at, 0o755) //nolint:gosec // a policy is no secret
			}
			content, err := fs.ReadFile(from, path)
			if err != nil {
				return err
			}
			return os.WriteFile(at, content, 0o644) //nolint:gosec // a policy is no secret
		})
		if err != nil {
			return fmt.Errorf("export the policy: %w", err)
		}
	}
	return nil
}

// newPolicyGateCommand is what newGate starts.
func newPolicyGateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "gate", Short: "Try one policy that comes on standard input", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Whoever started it ends it: a signal to the whole service must not cut a trial short.
			return policy.ServeGate(context.WithoutCancel(cmd.Context()), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}
