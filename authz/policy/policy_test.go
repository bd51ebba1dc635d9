package policy

import (
	"context"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/supportstation/keystile/authz"
)

// shipped is the policy that the service is built with.
func shipped() fs.FS { return os.DirFS("../../policies") }

// minimal is a policy that allows what its check says.
func minimal(check string, more ...string) fstest.MapFS {
	files := fstest.MapFS{
		"keystile/check/check.rego": {Data: []byte("package keystile.check\n\n" + check)},
		"keystile/admin/admin.rego": {Data: []byte("package keystile.admin\n\ndefault decision := {\"allow\": false, \"reasons\": []}\n")},
	}
	for i := 0; i+1 < len(more); i += 2 {
		files[more[i]] = &fstest.MapFile{Data: []byte(more[i+1])}
	}
	return files
}

// allowing is a decision that allows, with allow as given.
func allowing(allow string) string {
	return `{"allow": ` + allow + `, "reasons": [], "required_scopes": ["tickets:read"], "missing_scopes": [], "route": null, "limits": []}`
}

func mustLoad(t testing.TB, fsys fs.FS) *Snapshot {
	t.Helper()
	s, err := Load(context.Background(), fsys)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func loadError(t *testing.T, fsys fs.FS) string {
	t.Helper()
	s, err := Load(context.Background(), fsys)
	if err == nil || s != nil {
		t.Fatal("the policy was taken")
	}
	return err.Error()
}

func exampleKey() *authz.Key {
	now := time.Unix(1_795_000_000, 0)
	return &authz.Key{
		ID:          authz.NewKeyID(now),
		Environment: authz.EnvironmentLive,
		Scopes:      []authz.Scope{"customers:read", "customers:write", "tickets:read", "tickets:write"},
		Organization: &authz.Organization{
			ID: authz.NewOrganizationID(now), ExternalID: "acme-1", Name: "Acme", Plan: "standard",
			Metadata: `{"tier":"gold"}`,
		},
		Metadata: `{"team":"billing"}`,
	}
}

func exampleCheck(method, path string) *authz.Check {
	c := &authz.Check{
		Caller: &authz.Caller{
			ID: authz.NewCallerID(time.Unix(1_795_000_000, 0)), Name: "tickets",
			Environments: []authz.Environment{authz.EnvironmentLive, authz.EnvironmentTest},
		},
		ClientIP: netip.MustParseAddr("203.0.113.7"),
		Cost:     1,
	}
	if method != "" {
		c.SetRequest(method, path)
	}
	return c
}

func evaluate(t testing.TB, e *Engine, k *authz.Key, c *authz.Check) (authz.Verdict, error) {
	t.Helper()
	return e.Evaluate(context.Background(), k, c)
}

// with returns the shipped policy with files changed: an empty text leaves one out.
func with(t *testing.T, changes map[string]string) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	err := fs.WalkDir(shipped(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(name, ".go") {
			return err
		}
		data, err := fs.ReadFile(shipped(), name)
		files[name] = &fstest.MapFile{Data: data}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range changes {
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	maps.DeleteFunc(files, func(_ string, f *fstest.MapFile) bool { return len(f.Data) == 0 })
	return files
}
