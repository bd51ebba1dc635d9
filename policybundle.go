package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz/policy/bundle"
	"github.com/supportstation/keystile/authz/policy/origin"
)

// newPolicyBundle is the configured bundle server, which is not asked yet.
func newPolicyBundle(cfg Config, log *slog.Logger) (*origin.Bundle, error) {
	return origin.NewBundle(origin.BundleOptions{ //nolint:wrapcheck // it says what it was doing
		URL: cfg.PolicyBundleURL, Keys: cfg.PolicyBundleKeys, StateDir: stateDir(cfg), Poll: cfg.PolicyBundlePoll,
		MinVersion: cfg.PolicyBundleMinVersion, Plaintext: cfg.InsecurePlaintext, Logger: log,
	})
}

// stateDir is the folder for what a restart needs: as configured, or systemd's, or the user's,
// or else the system's.
func stateDir(cfg Config) string {
	if cfg.StateDir != "" {
		return cfg.StateDir
	}
	if given, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); given != "" {
		return given
	}
	dir := "/var/lib"
	if home := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(home) {
		dir = home
	} else if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		dir = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(dir, "keystile")
}

func newPolicyBundleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "bundle", Short: "Make signed policy bundles, and verify them", Args: cobra.NoArgs,
		Long: `A bundle is a policy as a server publishes it (KEYSTILE_POLICY_BUNDLE_URL): an OPA bundle that is signed, and has a
version that grows. What is not signed by a configured key, or has a lower version than one that was in
force, is refused.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBundleBuildCommand(), newBundleVerifyCommand())
	return cmd
}

// bundleBuild is what is asked of `policy bundle build`.
type bundleBuild struct {
	dir, keyFile, keyID, algorithm, output string
	version                                int64
	accepted                               []string
	sign                                   bool
}

func newBundleBuildCommand() *cobra.Command {
	var b bundleBuild
	cmd := &cobra.Command{
		Use:   "build [DIR]",
		Short: "Pack a policy into a bundle, and sign it",
		Long: `Pack the policy in DIR (here by default) with its tests into a bundle, numbered and signed. Try it before with
keystile policy test. The tests in DIR/.accept-removed-tests may fail in the policy that is in force.

Each change needs a higher --version than what was published before. Without --sign the bundle is not signed, for
somebody who has the key elsewhere; no service takes it so. The stock opa sign names the key by a file that has
{"keyid": "ID"} (--claims-file), and what it writes belongs into the archive beside .manifest.`,
		Example: `  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem
  keystile policy bundle build ./policies --version 7 --sign --key key.pem --key-id security-2026 -o bundle.tar.gz`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().Int64Var(&b.version, "version", 0, "the bundle's version, from 1 on")
	cmd.Flags().BoolVar(&b.sign, "sign", false, "sign it, with --key and --key-id")
	cmd.Flags().StringVar(&b.keyFile, "key", "", "file with the private key in PEM form: ECDSA on P-256, or RSA")
	cmd.Flags().StringVar(&b.keyID, "key-id", "", "the key's id, as in KEYSTILE_POLICY_BUNDLE_KEY")
	cmd.Flags().StringVar(&b.algorithm, "algorithm", "", "ES256 or RS256; the key's own by default")
	cmd.Flags().StringSliceVar(&b.accepted, "accept-removed-tests", nil, "more tests of the policy in force that may fail, such as data.keystile.check_test.*")
	cmd.Flags().StringVarP(&b.output, "output", "o", "bundle.tar.gz", "file to write, - for standard output")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		b.dir = "."
		if len(args) == 1 {
			b.dir = args[0]
		}
		return b.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

func (b bundleBuild) run(ctx context.Context, stdout, stderr io.Writer) error {
	switch {
	case b.version < 1:
		return usageError(errors.New("--version is missing: a number from 1 on, higher than what was published before"))
	case b.sign != (b.keyFile != "") || b.sign != (b.keyID != ""):
		return usageError(errors.New("--sign, --key and --key-id belong together"))
	}
	var signer *bundle.Signer
	if b.sign {
		private, err := readConfigFile(b.keyFile)
		if err == nil {
			signer, err = bundle.NewSigner(private, b.keyID, bundle.Algorithm(b.algorithm))
		}
		if err != nil {
			return configError(fmt.Errorf("--key: %w", err))
		}
	}
	contents, err := b.contents(ctx)
	if err != nil {
		return configError(err)
	}
	archive, err := contents.Pack(signer)
	if err == nil {
		err = bundle.CheckStock(archive)
	}
	if err != nil {
		return configError(err)
	}
	if signer != nil {
		// What a service would not take is not written.
		if _, err := bundle.Read(archive, signer.Keys()); err != nil {
			return configError(err)
		}
	}
	if b.output == "-" {
		if _, err := stdout.Write(archive); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
	} else if err := writeBundle(b.output, archive); err != nil {
		return err
	}
	signed := "not signed"
	if signer != nil {
		signed = "signed by " + b.keyID
	}
	_, err = fmt.Fprintf(stderr, "wrote %s: version %d, %s, revision %s\n", b.output, b.version, signed, contents.Source.Revision())
	return err
}

// contents reads the folder, and compiles its policy: what does not is not worth publishing.
func (b bundleBuild) contents(ctx context.Context) (bundle.Contents, error) {
	v := origin.NewDirectory(b.dir).Read(ctx)
	if v.Err != nil {
		return bundle.Contents{}, v.Err
	}
	if _, err := v.Source.Load(ctx); err != nil {
		return bundle.Contents{}, err //nolint:wrapcheck // it says file and line
	}
	manifest, err := readConfigFile(filepath.Join(b.dir, ".manifest"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return bundle.Contents{}, fmt.Errorf("read the policy's .manifest: %w", err)
	}
	return bundle.Contents{Source: v.Source, Version: b.version, AcceptRemoved: append(v.AcceptRemoved, b.accepted...), Manifest: manifest}, nil
}

// writeBundle writes beside the file and renames: a server that has it already serves the old
// one or the new one.
func writeBundle(path string, archive []byte) error {
	half := fmt.Sprintf("%s.%d", path, os.Getpid())
	err := os.WriteFile(half, archive, 0o644) //nolint:gosec // it is published
	if err == nil {
		err = os.Rename(half, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the bundle: %w", err), os.RemoveAll(half))
	}
	return nil
}

// shownBundle is a bundle as `policy bundle verify` prints it.
type shownBundle struct {
	Version       int64    `json:"version"                yaml:"version"`
	Revision      string   `json:"revision"               yaml:"revision"`
	KeyID         string   `json:"key_id"                 yaml:"key_id"`
	Files         int      `json:"files"                  yaml:"files"`
	AcceptRemoved []string `json:"accept_removed_tests"   yaml:"accept_removed_tests"`
}

func newBundleVerifyCommand() *cobra.Command {
	var keyFile, keyID, output string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify a bundle's signature as a service would",
		Long: `Verify that a bundle is signed by a key that is accepted, that its files are those that were signed, and tell its
version. The keys are in the file of --key, as in KEYSTILE_POLICY_BUNDLE_KEY or, with --key-id, one public key by itself;
without --key they are those of KEYSTILE_POLICY_BUNDLE_KEY.

Exit: 0 it would be tried, 3 it would be refused.`,
		Example: "  keystile policy bundle verify bundle.tar.gz --key public.pem --key-id security-2026",
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "file with public keys")
	cmd.Flags().StringVar(&keyID, "key-id", "", "the id of the one key in the file")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "how to print: table, json or yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if keyFile == "" && keyID != "" {
			return usageError(errors.New("--key-id names the key of --key, which is missing"))
		}
		keys, err := bundleKeys(keyFile, keyID)
		if err != nil {
			return configError(err)
		}
		p, err := readBundle(args[0], keys)
		if err != nil {
			return configError(err)
		}
		shown := shownBundle{p.Version, p.Source.Revision(), p.KeyID, len(p.Source.Files()), append([]string{}, p.AcceptRemoved...)}
		return printData(cmd.OutOrStdout(), output, shown, func(w io.Writer) {
			_, _ = fmt.Fprintf(w, "version\t%d\n", shown.Version)
			_, _ = fmt.Fprintf(w, "revision\t%s\n", shown.Revision)
			_, _ = fmt.Fprintf(w, "signed by\t%s\n", shown.KeyID)
			_, _ = fmt.Fprintf(w, "files\t%d\n", shown.Files)
			_, _ = fmt.Fprintf(w, "tests that may fail\t%s\n", cmp.Or(strings.Join(shown.AcceptRemoved, " "), "none"))
		})
	}
	return cmd
}

// bundleKeys are the keys in a file, or those that are configured.
func bundleKeys(file, id string) (bundle.Keys, error) {
	if file == "" {
		values, err := configInput{environ: os.Environ(), readFile: readConfigFile}.merge()
		if err != nil {
			return bundle.Keys{}, err
		}
		keys, err := bundle.ParseKeys(values.text["policy_bundle_key"])
		if err != nil {
			return bundle.Keys{}, fmt.Errorf("KEYSTILE_POLICY_BUNDLE_KEY: %w; or give a file with --key", err)
		}
		return keys, nil
	}
	raw, err := readConfigFile(file)
	if err != nil {
		return bundle.Keys{}, fmt.Errorf("--key: %w", err)
	}
	text := string(raw)
	if id != "" {
		text = id + ":" + text
	}
	keys, err := bundle.ParseKeys(text)
	if err != nil {
		return bundle.Keys{}, fmt.Errorf("--key: %w", err)
	}
	return keys, nil
}

func readBundle(path string, keys bundle.Keys) (*bundle.Policy, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	archive, err := io.ReadAll(io.LimitReader(file, bundle.MaxArchive+1))
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	return bundle.Read(archive, keys) //nolint:wrapcheck // it says what is wrong
}
