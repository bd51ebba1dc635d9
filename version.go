package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// versionInfo tells what a binary is made of.
type versionInfo struct {
	Version string `json:"version" yaml:"version"`
	Commit  string `json:"commit"  yaml:"commit"`
	Dirty   bool   `json:"dirty"   yaml:"dirty"`
	Go      string `json:"go"      yaml:"go"`
	OPA     string `json:"opa"     yaml:"opa"`
}

func readVersion() versionInfo {
	v := versionInfo{Version: "(devel)", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Dirty = s.Value == "true"
		}
	}
	for _, dep := range info.Deps {
		if dep.Path == "github.com/open-policy-agent/opa" {
			v.OPA = dep.Version
		}
	}
	return v
}

func newVersionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "version", Short: "Print what this binary is", Args: cobra.NoArgs}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v, w := readVersion(), cmd.OutOrStdout()
		var err error
		switch output {
		case "json":
			err = json.NewEncoder(w).Encode(v)
		case "yaml":
			err = yaml.NewEncoder(w).Encode(v)
		case "table":
			_, err = fmt.Fprintf(w, "keystile %s\ncommit   %s\nGo       %s\nOPA      %s\n", v.Version, v.Commit, v.Go, v.OPA)
		default:
			return usageError(fmt.Errorf("--output is %q; accepted: table, json, yaml", output))
		}
		if err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return nil
	}
	return cmd
}
