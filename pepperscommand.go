package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
)

func newPeppersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "peppers", Short: "Look at the peppers, on the database", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPeppersStatusCommand(), newAuditKeysCommand())
	return cmd
}

// shownPepper is one pepper as `peppers status` prints it.
type shownPepper struct {
	ID         string `json:"id"          yaml:"id"`
	Configured bool   `json:"configured"  yaml:"configured"`
	KeySecrets int    `json:"key_secrets" yaml:"key_secrets"`
	Callers    int    `json:"callers"     yaml:"callers"`
	Admins     int    `json:"admins"      yaml:"admins"`
	AuditRows  int    `json:"audit_rows"  yaml:"audit_rows"`
	// State is new_secrets, in_use, audit_log, removable, unused, missing or different.
	State string `json:"state" yaml:"state"`
}

func newPeppersStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell which peppers stored secrets are under, and which can be removed",
		Long: `Tell which peppers the secrets in the database of KEYSTILE_DATABASE_URL are under.

To change the pepper: give the new one as the second to every replica, then as the
first. Each secret that is used moves to the first one by itself. What is never used
stays; rotate or revoke it, or keep the old pepper. A pepper can be taken out of
KEYSTILE_PEPPERS when its state is removable. In state audit_log only rows of the
audit log need it, whose keys are made of the peppers unless KEYSTILE_AUDIT_KEYS
says otherwise: set that to what "keystile peppers audit-keys" prints. With a pepper
go the digests of secrets that were revoked under it: they are unknown then, and an
import that brings one could not be told apart from a new one. Exit status 3
when a pepper is missing or has other bytes: serve would refuse to start.`,
		Args: cobra.NoArgs,
	}
	output := cmd.Flags().StringP("output", "o", "table", "table, json or yaml")
	load := addConfigFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(cmd, needsPeppers)
		if err != nil {
			return err
		}
		uses, err := store.PepperStatus(cmd.Context(), cfg.DatabaseURL, cfg.Peppers)
		if err != nil {
			return dependencyError(err)
		}
		shown := make([]shownPepper, 0, len(uses))
		var wrong store.PepperError
		for _, u := range uses {
			if kept(cfg, u.ID) {
				u.AuditRows = 0
			}
			row := shownPepper{u.ID, u.Configured, u.KeySecrets, u.CallerTokens, u.AdminTokens, u.AuditRows, pepperState(u)}
			shown = append(shown, row)
			switch row.State {
			case "missing":
				wrong.Missing = append(wrong.Missing, u.ID)
			case "different":
				wrong.Different = append(wrong.Different, u.ID)
			}
		}
		if err := printPeppers(cmd.OutOrStdout(), *output, shown); err != nil {
			return err
		}
		if len(wrong.Missing)+len(wrong.Different) > 0 {
			return configError(&wrong)
		}
		return nil
	}
	return cmd
}

// kept tells whether the audit log can do without a pepper: its key is in
// KEYSTILE_AUDIT_KEYS, and the one that is made of the pepper is no other.
func kept(cfg Config, id string) bool {
	probe := []byte("the same key")
	own, err := cfg.AuditKeys.MAC(id, probe)
	if err != nil {
		return false
	}
	derived, err := manage.AuditKeys(authz.Peppers{}, cfg.Peppers).MAC(id, probe)
	return err != nil || own == derived
}

func newAuditKeysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit-keys",
		Short: "Print the audit log's keys, for KEYSTILE_AUDIT_KEYS",
		Long: `Print the keys that seal the audit log, in the form of KEYSTILE_AUDIT_KEYS: a secret,
for a file or a secret manager. Without that setting they are made of
KEYSTILE_PEPPERS, and with it peppers can be removed without losing the keys.`,
		Example: "  keystile peppers audit-keys >audit-keys.txt",
		Args:    cobra.NoArgs,
	}
	load := addConfigFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(cmd, needsPeppers)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), manage.AuditKeys(cfg.AuditKeys, cfg.Peppers).Reveal()); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return nil
	}
	return cmd
}

func pepperState(u store.PepperUse) string {
	inUse := u.KeySecrets+u.CallerTokens+u.AdminTokens > 0
	switch {
	case u.Configured && !u.Matches:
		return "different"
	case u.First:
		return "new_secrets"
	case inUse && !u.Configured:
		return "missing"
	case inUse:
		return "in_use"
	case u.AuditRows > 0:
		return "audit_log"
	case u.Configured:
		return "removable"
	}
	return "unused"
}

func printPeppers(w io.Writer, output string, shown []shownPepper) error {
	return printData(w, output, shown, func(table io.Writer) {
		_, _ = fmt.Fprintln(table, "PEPPER\tCONFIGURED\tKEY SECRETS\tCALLERS\tADMINS\tAUDIT ROWS\tSTATE")
		for _, p := range shown {
			_, _ = fmt.Fprintf(table, "%s\t%t\t%d\t%d\t%d\t%d\t%s\n", p.ID, p.Configured, p.KeySecrets, p.Callers, p.Admins, p.AuditRows, p.State)
		}
	})
}
