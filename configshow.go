package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Look at the configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigShowCommand())
	return cmd
}

// shownSetting is one setting as `config show` prints it.
type shownSetting struct {
	Name   string       `json:"name"   yaml:"name"`
	Value  string       `json:"value"  yaml:"value"`
	Source configSource `json:"source" yaml:"source"`
	Form   string       `json:"form"   yaml:"form"`
}

func newConfigShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print what is in force and where it comes from, secrets redacted",
		Args:  cobra.NoArgs,
	}
	var output string
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	read := addValueFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		values, err := read(cmd)
		if err != nil {
			return err
		}
		for _, w := range values.warnings {
			_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
		}
		if err := printSettings(cmd.OutOrStdout(), output, values); err != nil {
			return err
		}
		// What is in force has been shown; whether serve would take it is told as well.
		_, err = values.check(needsNothing)
		return err
	}
	return cmd
}

func printSettings(w io.Writer, output string, values configValues) error {
	var shown []shownSetting
	for _, s := range settings() {
		row := shownSetting{Name: s.variable(), Value: s.shown(values.text[s.name]), Source: values.source[s.name], Form: s.form}
		shown = append(shown, row)
	}
	return printData(w, output, shown, func(table io.Writer) {
		_, _ = fmt.Fprintln(table, "NAME\tVALUE\tSOURCE\tFORM")
		for _, row := range shown {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", row.Name, cmp.Or(row.Value, "-"), cmp.Or(row.Source, "-"), row.Form)
		}
	})
}
