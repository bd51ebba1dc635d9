package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy/routes"
)

// catalogueFile is where a policy has its routes.
const catalogueFile = "keystile/catalog/data.yaml"

func newPolicyRoutesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "routes", Short: "Protect routes: enter them into a policy's catalogue", Args: cobra.NoArgs}
	cmd.AddCommand(newRoutesImportCommand())
	return cmd
}

func newRoutesImportCommand() *cobra.Command {
	var dir, base, fallback string
	var mapped map[string]string
	var skip []string
	var write, dryRun bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Enter the operations of an OpenAPI document",
		Long: `Enter the operations of an OpenAPI 3.0 or 3.1 document into the catalogue of the policy in --dir, each with the scopes that it
needs: those of its security, or of ` + routes.ExtensionScopes + ` in their place (a scope or a list of them). What the catalogue has stays as it is, with
comments and order; a test that holds it to the document is written beside it. Nothing is guessed: an operation without a scope, one
that the catalogue says something else of, and a path that could be mistaken for another are named, and nothing is entered then.

It prints what would change, as a diff, and writes with --write. Doing it again changes nothing. Routes that a document no longer
has stay until somebody takes them out.

Exit: 0 done, 3 the document or the catalogue cannot be read, or do not agree.`,
		Example: "  keystile policy routes import openapi.yaml --dir policies\n" +
			"  keystile policy routes import openapi.yaml --dir policies --skip 'GET /healthz' --scope-map read_tickets=tickets:read --write",
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "folder of the policy")
	cmd.Flags().BoolVar(&write, "write", false, "write what is otherwise printed as a diff")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would change, as it does without --write")
	cmd.Flags().StringVar(&base, "base-path", "", "what stands before every path, in place of the paths of the servers' URLs")
	cmd.Flags().StringVar(&fallback, "default-scope", "", "scope of operations that name none")
	cmd.Flags().StringToStringVar(&mapped, "scope-map", nil, "a scope of the document = the catalogue's, such as read_tickets=tickets:read")
	cmd.Flags().StringArrayVar(&skip, "skip", nil, "an operation to leave out, such as 'GET /healthz'; may be repeated")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		options := routes.Options{Skip: skip, DefaultScope: authz.Scope(fallback), ScopeMap: map[string]authz.Scope{}}
		if write && dryRun {
			return usageError(errors.New("give --write or --dry-run, not both"))
		}
		if cmd.Flags().Changed("base-path") {
			options.BasePath = &base
		}
		if fallback != "" && !options.DefaultScope.Valid() {
			return usageError(fmt.Errorf("--default-scope is %q; a scope has the form resource:verb", fallback))
		}
		for from, to := range mapped {
			if options.ScopeMap[from] = authz.Scope(to); !authz.Scope(to).Valid() {
				return usageError(fmt.Errorf("--scope-map %s=%s: a scope has the form resource:verb", from, to))
			}
		}
		return importRoutes(cmd, args[0], dir, options, write)
	}
	return cmd
}

// importRoutes enters a document into a policy's catalogue, or prints what that would change.
func importRoutes(cmd *cobra.Command, file, dir string, options routes.Options, write bool) error {
	raw, err := readBounded(file, routes.MaxDocument)
	if err != nil {
		return configError(err)
	}
	document, err := routes.Read(file, raw, options)
	if err != nil {
		return configError(err)
	}
	at := filepath.Join(dir, filepath.FromSlash(catalogueFile))
	catalogue, err := readBounded(at, routes.MaxCatalogue)
	if errors.Is(err, fs.ErrNotExist) {
		return configError(fmt.Errorf("%s is not there: name the policy's folder with --dir (keystile policy export writes one)", at))
	} else if err != nil {
		return configError(err)
	}
	entered, err := routes.Enter(at, catalogue, document)
	if err != nil {
		return configError(err)
	}
	test, err := routes.Test(file, entered.All)
	if err != nil {
		return err
	}
	testAt := filepath.Join(filepath.Dir(at), routes.TestFile(file))
	before, err := readBounded(testAt, routes.MaxCatalogue)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return configError(err)
	}
	lost := routes.Lost(before, test)
	changed := false
	for _, f := range []edit{{at, catalogue, entered.Catalogue}, {testAt, before, test}} {
		if bytes.Equal(f.before, f.after) {
			continue
		}
		changed = true
		if err := f.apply(cmd.OutOrStdout(), write); err != nil {
			return err
		}
	}
	summary := importSummary(document, entered, dir, changed, write)
	if lost > 0 {
		summary = fmt.Sprintf("%s held %d routes that %s does not have, or not so; it no longer would. Was it of another document? Then give this one another name.\n",
			testAt, lost, file) + summary
	}
	_, err = io.WriteString(cmd.ErrOrStderr(), summary)
	return err
}

func importSummary(d *routes.Document, entered *routes.Entered, dir string, changed, written bool) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%d routes, %d of them new", len(entered.All), len(entered.Added))
	if n := len(d.Skipped); n > 0 {
		fmt.Fprintf(&text, "; %d operations left out", n)
	}
	switch {
	case !changed:
		text.WriteString("; nothing changes\n")
	case written:
		fmt.Fprintf(&text, "\ntry it: keystile policy test %s\n", dir)
	default:
		text.WriteString("\nnothing is written; write it with --write\n")
	}
	return text.String()
}

// edit is a file before and after; nil before is one that is not there.
type edit struct {
	name          string
	before, after []byte
}

// apply writes the file, whole or not at all, or prints what would change.
func (e edit) apply(w io.Writer, write bool) error {
	if !write {
		from := e.name
		if e.before == nil {
			from = os.DevNull
		}
		_, err := w.Write(diff.Diff(from, e.before, e.name, e.after))
		return err
	}
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(e.name); err == nil {
		mode = info.Mode().Perm()
	}
	// Names that begin with a dot are no part of a policy, for whoever watches the folder.
	file, err := os.CreateTemp(filepath.Dir(e.name), ".import-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", e.name, err)
	}
	defer func() { _ = os.Remove(file.Name()) }() // after the renaming it is not there
	_, err = file.Write(e.after)
	if err := errors.Join(err, file.Chmod(mode), file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", e.name, err)
	}
	if err := os.Rename(file.Name(), e.name); err != nil {
		return fmt.Errorf("write %s: %w", e.name, err)
	}
	return nil
}

// readBounded reads a file of at most so many bytes.
func readBounded(name string, most int) ([]byte, error) {
	file, err := os.Open(name) //nolint:gosec // the person at the shell names it
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	raw, err := io.ReadAll(io.LimitReader(file, int64(most)+1))
	if err == nil && len(raw) > most {
		err = fmt.Errorf("%s has more than %d MiB", name, most>>20)
	}
	return raw, err
}
