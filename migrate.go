package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/store"
)

func newMigrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database to this version's schema",
		Long: `Bring the database of KEYSTILE_DATABASE_URL to this version's schema.

Several processes may run it at once: they wait for each other. A database that is
already there is left as it is.`,
		Args: cobra.NoArgs,
	}
	load := addConfigFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(cmd, needsDatabase)
		if err != nil {
			return err
		}
		from, to, err := store.Migrate(cmd.Context(), cfg.DatabaseURL)
		if err != nil {
			return dependencyError(err)
		}
		if from == to {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "database is at version %d already\n", to)
		} else {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "database went from version %d to %d\n", from, to)
		}
		if err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return nil
	}
	return cmd
}
