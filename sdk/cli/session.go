package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

const managementHelp = `
The service is read from --url or KEYSTILE_URL, the admin's token from
KEYSTILE_ADMIN_TOKEN, or from the file that KEYSTILE_ADMIN_TOKEN_FILE names.

Exit: 0 done, 2 usage or values that are refused, 3 the token is refused, 4
findings, 5 denied, 7 the service is not available, 1 anything else.`

// session is one run of a management command.
type session struct {
	config Config
	cmd    *cobra.Command
	client *admin.Client
	output format
	// dryRun and ifVersion are set by flags that only changes have.
	dryRun    bool
	ifVersion int
}

// work is what a management command does once it is connected.
type work func(ctx context.Context, s *session, args []string) error

// group returns a command that only holds others.
func group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long + "\n" + managementHelp,
		Args: usageArgs(cobra.NoArgs), SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	cmd.AddCommand(commands...)
	return cmd
}

// reading completes a command that changes nothing.
func (c Config) reading(cmd *cobra.Command, do work) *cobra.Command {
	return c.connected(cmd, &session{config: c, output: table}, do)
}

// changing completes a command that changes something.
func (c Config) changing(cmd *cobra.Command, do work) *cobra.Command {
	s := &session{config: c, output: table}
	cmd.Flags().BoolVar(&s.dryRun, "dry-run", false, "say what would be done, and change nothing")
	return c.connected(cmd, s, do)
}

// updating completes a command that changes something which has a version.
func (c Config) updating(cmd *cobra.Command, do work) *cobra.Command {
	s := &session{config: c, output: table}
	cmd.Flags().BoolVar(&s.dryRun, "dry-run", false, "say what would be done, and change nothing")
	cmd.Flags().IntVar(&s.ifVersion, "if-version", 0, "change nothing unless this is still its version")
	return c.connected(cmd, s, func(ctx context.Context, s *session, args []string) error {
		if cmd.Flags().Changed("if-version") && s.ifVersion < 1 {
			return usage(errors.New("--if-version must be at least 1; get prints the version"))
		}
		return do(ctx, s, args)
	})
}

func (c Config) connected(cmd *cobra.Command, s *session, do work) *cobra.Command {
	var url string
	if cmd.Args == nil {
		cmd.Args = cobra.NoArgs
	}
	cmd.Args = usageArgs(cmd.Args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	cmd.Flags().StringVar(&url, "url", "", "the service (default: KEYSTILE_URL)")
	if cmd.Flags().Lookup("output") == nil { // whose data has other forms has a flag of its own
		cmd.Flags().VarP(&s.output, "output", "o", "how to print data")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := c.adminClient(url)
		if err != nil {
			return err
		}
		defer client.CloseIdleConnections()
		s.cmd, s.client = cmd, client
		return exitOfManagement(do(cmd.Context(), s, args), placeOf(cmd))
	}
	return cmd
}

// place is where a person can look when a command fails.
type place struct {
	// group is the command's, such as keys.
	group string
	// list is the command that lists what the group is about, such as `keys list`, and
	// named the one that lists the id that was given.
	list, named string
	// limited tells that the command takes --limit.
	limited bool
}

func placeOf(cmd *cobra.Command) place {
	top := cmd
	for top.HasParent() && top.Parent().HasParent() {
		top = top.Parent()
	}
	list := listOf(top)
	at := place{group: top.Name(), list: list, named: list, limited: cmd.Flags().Lookup("limit") != nil}
	if top.Name() == "audit" || top.Name() == "usage" { // what they are about is keys
		at.group, at.list, at.named = "keys", "keys list", "keys list"
	}
	if org := cmd.Flags().Lookup("org"); org != nil && org.Changed {
		at.named = "orgs list"
	}
	return at
}

// listOf is the command that lists what a group is about: its own when it has no others.
func listOf(group *cobra.Command) string {
	for _, cmd := range group.Commands() {
		if name := cmd.Name(); name == "list" || name == "history" {
			return group.Name() + " " + name
		}
	}
	return group.Name()
}

// options are those of the flags that every change has.
func (s *session) options() []admin.RequestEditorFn {
	var opts []admin.RequestEditorFn
	if s.dryRun {
		opts = append(opts, admin.WithDryRun())
	}
	if s.ifVersion > 0 {
		opts = append(opts, admin.WithIfMatch(s.ifVersion))
	}
	return opts
}

// needs makes flags required; examples are what to give, such as "--name ci".
func (s *session) needs(flags ...string) error {
	var missing []string
	for _, example := range flags {
		name, _, _ := strings.Cut(strings.TrimPrefix(example, "--"), " ")
		if !s.changed(name) {
			missing = append(missing, example)
		}
	}
	if len(missing) > 0 {
		return usage(fmt.Errorf("give %s", strings.Join(missing, " and ")))
	}
	return nil
}

func (s *session) changed(flag string) bool { return s.cmd.Flags().Changed(flag) }

// optional is the value of a flag, or nil when it was not given.
func optional[T any](s *session, flag string, value T) *T {
	if !s.changed(flag) {
		return nil
	}
	return &value
}

// exclusive refuses flags that contradict each other.
func (s *session) exclusive(flags ...string) error {
	var given []string
	for _, name := range flags {
		if s.changed(name) {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 1 {
		return usage(fmt.Errorf("%s exclude each other; give one", strings.Join(given, " and ")))
	}
	return nil
}

// show writes document as JSON or YAML, or what page writes for a person.
func (s *session) show(document any, write func(*page)) error {
	w := s.cmd.OutOrStdout()
	var err error
	switch s.output {
	case jsonText:
		err = writeJSON(w, document)
	case yamlText:
		err = writeYAML(w, document)
	default:
		p := s.config.newPage(w)
		write(p)
		err = p.err
	}
	return printed(err)
}

func printed(err error) error {
	if err == nil {
		return nil
	}
	return &ExitError{Code: ExitUnexpected, Err: fmt.Errorf("write the answer: %w", err)}
}

// say talks to the person, on standard error.
func (s *session) say(form string, args ...any) {
	_, _ = io.WriteString(s.cmd.ErrOrStderr(), printable(fmt.Sprintf(form, args...))+"\n")
}

// did says what was done, or would have been, such as "create", "created", "key
// key_…".
func (s *session) did(would, done, what string) {
	if s.dryRun {
		s.say("would %s %s; nothing has changed", would, what)
		return
	}
	s.say("%s %s", done, what)
}

// next suggests a command, after a change that was made.
func (s *session) next(why, command string) {
	if !s.dryRun {
		s.say("%s: %s", why, command)
	}
}

// organization is the one that --org names, or the only one that the admin sees.
func (s *session) organization(ctx context.Context, flag string) (string, error) {
	if flag != "" {
		return flag, checkID("--org", "org", flag)
	}
	two := 2
	list, err := s.client.ListOrganizations(ctx, admin.ListOrganizationsParams{Limit: &two})
	switch {
	case err != nil:
		return "", err
	case len(list.Items) == 0:
		return "", usage(errors.New("there is no organization yet; make one with `keystile orgs create`, and give its id with --org"))
	case len(list.Items) > 1:
		return "", usage(errors.New("there is more than one organization; give one's id with --org: `keystile orgs list` shows them"))
	}
	return list.Items[0].ID, nil
}

// checkID keeps what is no id, a secret above all, from getting into a URL.
func checkID(what, prefix, value string) error {
	rest, ok := strings.CutPrefix(value, prefix+"_")
	if ok && rest != "" && strings.Trim(rest, "0123456789abcdefghijklmnopqrstuvwxyz") == "" {
		return nil
	}
	return usage(fmt.Errorf("%s must be an id, %s_ and 26 characters; names and secrets are not sent", what, prefix))
}
