package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
)

// newPolicyRecoverCommand makes `policy recover`, which works on the database because the
// policy in force lets nobody in who could be asked.
func newPolicyRecoverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Put the built-in policy in force, on the database, when nobody can roll back",
		Long: `Put the policy in force that this program is built with, straight in the database of
KEYSTILE_DATABASE_URL. It is for a policy that a new version of the program cannot load, after
which nothing is decided and nobody can be asked to roll back; "keystile doctor" tells. Otherwise
use "keystile policy rollback". It is in the audit log. KEYSTILE_PEPPERS must be those that serve uses.`,
		Args: cobra.NoArgs,
	}
	note := cmd.Flags().String("note", "recovered on the database", "what to say about it in the history")
	load := addConfigFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(cmd, needsPeppers)
		if err != nil {
			return err
		}
		builtIn, err := builtInPolicy(cmd.Context())
		if err != nil {
			return err
		}
		s, err := store.Open(cmd.Context(), store.Options{URL: cfg.DatabaseURL, Peppers: cfg.Peppers, Deployment: cfg.Deployment})
		if err != nil {
			return dependencyError(err)
		}
		_, err = manage.RecoverPolicy(cmd.Context(), s, manage.AuditKeys(cfg.AuditKeys, cfg.Peppers), builtIn.Revision(), *note)
		if err := errors.Join(err, s.Close()); err != nil {
			return dependencyError(err)
		}
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "the built-in policy is in force: %s\n", builtIn.Revision())
		return err
	}
	return cmd
}
