package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	opa "github.com/open-policy-agent/opa/cmd"
	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz/policy"
)

// newOPACommand mounts the stock opa, in the version that this service evaluates with.
func newOPACommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "opa",
		Short: "The stock opa, in the version that this service evaluates with",
		Long: `The stock opa, in the version that this service evaluates with. Where a command takes --capabilities or
--schema and none is given, it gets the service's own: what passes here is within the sandbox, and a
misspelt field of the input is found.`,
		Example: "  keystile opa test ./policies\n  keystile opa check --strict ./policies\n  keystile opa fmt --write ./policies",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return giveTools(cmd) }
	return opa.Command(root, "OPA")
}

// giveTools sets the flags that a command has and nobody gave.
func giveTools(cmd *cobra.Command) error {
	capabilities, schema := cmd.Flags().Lookup("capabilities"), cmd.Flags().Lookup("schema")
	if cmd.Name() == "fmt" || capabilities == nil && schema == nil {
		return nil
	}
	dir, err := writeTools()
	if err != nil {
		return err
	}
	if capabilities != nil && !capabilities.Changed {
		err = cmd.Flags().Set("capabilities", filepath.Join(dir, "capabilities.json"))
	}
	if schema != nil && !schema.Changed {
		err = errors.Join(err, cmd.Flags().Set("schema", filepath.Join(dir, "schemas")))
	}
	return err
}

// writeTools writes capabilities and schemas where a stock opa can read them, once for each
// version of them.
func writeTools() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	hash := sha256.New()
	files := map[string][]byte{}
	err = fs.WalkDir(policy.ToolFiles(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files[path], err = fs.ReadFile(policy.ToolFiles(), path)
		_, _ = fmt.Fprintf(hash, "%s %d\n", path, len(files[path]))
		hash.Write(files[path])
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read capabilities and schemas: %w", err)
	}
	dir := filepath.Join(cache, "keystile", "opa-"+hex.EncodeToString(hash.Sum(nil)[:8]))
	for path, content := range files {
		at := filepath.Join(dir, path)
		if held, err := os.ReadFile(at); err == nil && bytes.Equal(held, content) { //nolint:gosec // a file of our own
			continue
		}
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			return "", fmt.Errorf("write capabilities and schemas: %w", err)
		}
		// By a name of its own and then renamed: two commands may do it at once.
		half := fmt.Sprintf("%s.%d", at, os.Getpid())
		if err := errors.Join(os.WriteFile(half, content, 0o600), os.Rename(half, at)); err != nil {
			return "", fmt.Errorf("write capabilities and schemas: %w", err)
		}
	}
	return dir, nil
}
