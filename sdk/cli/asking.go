package cli

import (
	"context"

	"github.com/spf13/cobra"

	keystile "github.com/supportstation/keystile/sdk"
)

// asking makes a command that asks about METHOD and PATH with the key that is presented.
// Flags that fill in more of the question are for the caller to add.
func (c Config) asking(
	cmd *cobra.Command, printed string, ask func(context.Context, *keystile.Client, keystile.Question, format) error,
) *keystile.Question {
	var question keystile.Question
	var keyFile, url, environment string
	output := table
	cmd.Args = usageArgs(cobra.ExactArgs(2))
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		question.Method, question.Path = args[0], args[1]
		question.Environment = keystile.Environment(environment)
		if err := validate(question); err != nil {
			return usage(err)
		}
		client, err := c.client(url)
		if err != nil {
			return err
		}
		defer client.CloseIdleConnections()
		if question.Key, err = c.presentedKey(keyFile, cmd.InOrStdin()); err != nil {
			return err
		}
		return ask(cmd.Context(), client, question, output)
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	flags := cmd.Flags()
	flags.StringVar(&question.Action, "action", "", "a scope that the key must have as well, such as tickets:read")
	flags.StringVar(&environment, "environment", "", "accept keys of this environment only: live or test")
	flags.StringVar(&keyFile, "key-file", "", "the file that holds the key; - is standard input")
	flags.StringVar(&url, "url", "", "the service (default: KEYSTILE_URL)")
	flags.VarP(&output, "output", "o", "how to print "+printed)
	return &question
}
