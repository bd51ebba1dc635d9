package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
)

// newBootstrapCommand makes `admins bootstrap`, which works on the database because
// nobody could be asked for a token yet.
func newBootstrapCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bootstrap",
		Short: "Make the very first platform admin, on the database; once in its life",
		Long: `Make the very first platform admin of the database of KEYSTILE_DATABASE_URL, and
print its token, which is not shown again. It works once in a database's life, also
after that admin has been removed; further admins are created with
"keystile admins create". KEYSTILE_PEPPERS must be those that serve uses.`,
		Example: "  keystile admins bootstrap --name \"Ada Lovelace\" >token.txt",
		Args:    cobra.NoArgs,
	}
	name := cmd.Flags().String("name", "first platform admin", "who it is, for the audit log")
	days := cmd.Flags().Int("expires-in-days", manage.MaxAdminDays, "how long its token works, 1 to 90 days")
	load := addConfigFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(cmd, needsPeppers)
		if err != nil {
			return err
		}
		s, err := store.Open(cmd.Context(), store.Options{
			URL: cfg.DatabaseURL, Peppers: cfg.Peppers, Deployment: cfg.Deployment,
		})
		if err != nil {
			return dependencyError(err)
		}
		made, err := manage.Bootstrap(cmd.Context(), s, manage.AuditKeys(cfg.AuditKeys, cfg.Peppers), *name, *days)
		if err := errors.Join(err, s.Close()); err != nil {
			return bootstrapError(err)
		}
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s is a platform admin until %s. This token is not shown again:\n",
			made.Admin.ID, made.Admin.ExpiresAt.UTC().Format("2006-01-02 15:04 UTC"))
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), made.Secret.Reveal()); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "next: export KEYSTILE_ADMIN_TOKEN=…, then keystile orgs create --name NAME --plan standard; "+
			"and keystile admins rotate before it expires")
		return nil
	}
	return cmd
}

func bootstrapError(err error) error {
	var known *authz.Error
	switch {
	case errors.Is(err, manage.ErrBootstrapped):
		return err
	case errors.As(err, &known) && known.Kind == authz.KindInvalid:
		return usageError(errors.New(known.Pointer[1:] + " " + known.Message))
	}
	return dependencyError(err)
}
