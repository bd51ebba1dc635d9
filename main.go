// Keystile decides whether an API key may do a request. See README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/cli"
)

func main() {
	time.Local = time.UTC // a policy can ask for it, and must decide the same on every host
	// The first signal ends kindly; the second, by default, at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit code. It prints what went
// wrong, and nothing when the command has said all there is.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd() // it takes the output that is set by now
	asUsage(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if text := errorText(err); text != "" {
		_, _ = fmt.Fprintln(stderr, "keystile:", text)
	}
	return exitCode(err)
}

func errorText(err error) string {
	var clients *cli.ExitError
	if errors.As(err, &clients) && clients.Err == nil {
		return ""
	}
	lines := strings.Split(strings.TrimPrefix(err.Error(), "keystile: "), "\n") // the SDK says so as well
	if len(lines) > 1 {
		return fmt.Sprintf("%d problems:\n  %s", len(lines), strings.Join(lines, "\n  "))
	}
	return lines[0]
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "keystile",
		Short: "Policy-driven authorization for APIs",
		Long: `Keystile decides whether an API key may do a request: it resolves the key, lets
Rego policies decide, counts the rate limit, and answers allow or deny with the
headers to pass along.

Start with "keystile dev": everything on this machine, with demonstration data.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run the service:"},
		&cobra.Group{ID: groupUse, Title: "Ask and manage it, over its API:"},
		&cobra.Group{ID: groupSelf, Title: "About this program:"},
	)
	root.SetHelpCommandGroupID(groupSelf)
	root.SetCompletionCommandGroupID(groupSelf)
	var surroundings cli.Config
	admins := cli.NewAdminsCommand(surroundings)
	admins.AddCommand(newBootstrapCommand())
	policies := cli.NewPolicyCommand(surroundings)
	addPolicyCommands(policies)
	addTo(root, groupRun, newServeCommand(), newDevCommand(), newMigrateCommand(), newPeppersCommand(), newConfigCommand(), newDoctorCommand())
	addTo(root, groupUse,
		cli.NewCheckCommand(surroundings), cli.NewOrgsCommand(surroundings), cli.NewKeysCommand(surroundings),
		cli.NewCallersCommand(surroundings), admins, policies, cli.NewAuditCommand(surroundings), cli.NewAuditLogCommand(surroundings),
		cli.NewUsageCommand(surroundings),
		cli.NewScopesCommand(surroundings), cli.NewReplicasCommand(surroundings),
	)
	addTo(root, groupSelf, newOPACommand(), newVersionCommand())
	return root
}

// The groups of `keystile --help`.
const (
	groupRun  = "run"
	groupUse  = "use"
	groupSelf = "self"
)

func addTo(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, cmd := range commands {
		cmd.GroupID = group
		root.AddCommand(cmd)
	}
}

// asUsage makes wrong flags and arguments of every command end with the exit code of
// wrong usage, and say where help is.
func asUsage(cmd *cobra.Command) {
	hint := func(err error) error {
		return usageError(fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath()))
	}
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			if err := args(cmd, given); err != nil {
				return hint(err)
			}
			return nil
		}
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return hint(err) })
	for _, sub := range cmd.Commands() {
		asUsage(sub)
	}
}
