package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy"
)

func newPolicyCheckCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "check [DIR]",
		Short: "Compile a policy in the sandbox, and run nothing of it",
		Long: `Compile the policy in DIR (here by default), tests included, as activating it would: strictly, with the schemas
of the inputs and nothing callable but what the sandbox has. Nothing of it is run; keystile policy test does that.

Exit: 0 it compiles, 3 it does not.`,
		Example: "  keystile policy check ./policies\n  keystile policy check ./policies -o sarif",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "how to print: table, json or sarif")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		write, ok := reportWriters()[output]
		if !ok || output == "junit" { // which is for tests
			return usageError(fmt.Errorf("--output is %q; accepted: table, json, sarif", output))
		}
		report, err := compileAlone(cmd.Context(), directoryOf(args))
		if err != nil {
			return err
		}
		if err := write(cmd.OutOrStdout(), report); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		if len(report.Problems) > 0 {
			return configError(errors.New("the policy is refused"))
		}
		if output == "table" {
			_, err = io.WriteString(cmd.OutOrStdout(), "It compiles.\n")
		}
		return err
	}
	return cmd
}

// compileAlone compiles a folder's policy in a process of its own.
func compileAlone(ctx context.Context, dir string) (*authz.PolicyReport, error) {
	source, err := readDirectory(ctx, dir)
	if err != nil {
		return policy.Unreadable(err), nil
	}
	gate, err := newGate()
	if err != nil {
		return nil, err
	}
	err = gate.Loads(ctx, source)
	var refused *authz.PolicyRefusedError
	switch {
	case errors.As(err, &refused):
		return refused.Report, nil
	case err != nil:
		return nil, err //nolint:wrapcheck // it says what it was doing
	}
	return &authz.PolicyReport{Revision: source.Revision(), Problems: []authz.PolicyProblem{}, Tests: []authz.PolicyTest{}}, nil
}
