package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	keystile "github.com/supportstation/keystile/sdk"
)

// asking makes a command that asks about METHOD and PATH with the key that is presented.
// Whatever a question may have has a flag.
func (c Config) asking(
	cmd *cobra.Command, printed string, ask func(context.Context, *keystile.Client, keystile.Question, format) error,
) {
	var question keystile.Question
	var keyFile, url, environment string
	var resource keystile.Resource
	output := table
	cmd.Args = usageArgs(cobra.ExactArgs(2))
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		question.Method, question.Path = args[0], args[1]
		question.Environment = keystile.Environment(environment)
		if resource != (keystile.Resource{}) {
			question.Resource = &resource
		}
		if cmd.Flags().Changed("cost") && question.Cost == 0 {
			return usage(errors.New("--cost must be 1 to 10000")) // zero is not sent, which would mean 1
		}
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
	flags.StringVar(&question.ClientIP, "client-ip", "", "the address of the end client, which a key with allowed_cidrs must have")
	flags.BoolVar(&question.Browser, "browser", false, "the request comes from a web page")
	flags.IntVar(&question.Cost, "cost", 0, "what the request takes from the rate limit, 1 to 10000 (default: 1)")
	flags.StringVar(&resource.Type, "resource-type", "", "what the request is about, for policies that ask, such as ticket")
	flags.StringVar(&resource.ID, "resource-id", "", "its id")
	flags.StringVar(&resource.Organization, "resource-org", "", "the organization that it belongs to; the key must be of it")
	flags.StringVar(&keyFile, "key-file", "", "the file that holds the key; - is standard input")
	flags.StringVar(&url, "url", "", "the service (default: KEYSTILE_URL)")
	flags.VarP(&output, "output", "o", "how to print "+printed)
}
