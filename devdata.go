package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
)

// demoAdminLifetime is how long the demonstration's admin token is good for.
const demoAdminLifetime = 90 * 24 * time.Hour

// devSecrets is DIR/secrets.json: everything that a further start with the same
// directory must know, made at the first.
type devSecrets struct {
	Peppers          string            `json:"peppers"`
	DatabasePassword string            `json:"database_password"`
	ExamplesPassword string            `json:"examples_password"`
	RedisPassword    string            `json:"redis_password"`
	AdminToken       string            `json:"admin_token"`
	Callers          map[string]string `json:"callers"`
	Keys             map[string]string `json:"keys"`
}

// demoKey is one key of the demonstration.
type demoKey struct {
	name         string
	organization string
	environment  authz.Environment
	scopes       []authz.Scope
}

func demoKeys() []demoKey {
	read := []authz.Scope{"customers:read", "tickets:read"}
	all := []authz.Scope{"customers:read", "customers:write", "tickets:read", "tickets:write"}
	return []demoKey{
		{"acme_live", "acme", authz.EnvironmentLive, all},
		{"acme_read", "acme", authz.EnvironmentLive, read},
		{"acme_test", "acme", authz.EnvironmentTest, all},
		{"globex_live", "globex", authz.EnvironmentLive, all},
	}
}

func demoOrganizations() map[string]string {
	return map[string]string{"acme": "Acme", "globex": "Globex"}
}

func demoCallers() []string { return []string{"customers", "tickets"} }

// loadDevSecrets reads DIR/secrets.json, or makes it.
func loadDevSecrets(dir string, format authz.KeyFormat) (devSecrets, error) {
	path := filepath.Join(dir, "secrets.json")
	var s devSecrets
	raw, err := os.ReadFile(path) //nolint:gosec // the directory is the user's own choice
	switch {
	case err == nil:
		if err := json.Unmarshal(raw, &s); err != nil || s.Peppers == "" || len(s.Keys) == 0 {
			return devSecrets{}, fmt.Errorf("%s cannot be read; remove %s to start afresh", path, dir)
		}
		return s, nil
	case !errors.Is(err, os.ErrNotExist):
		return devSecrets{}, fmt.Errorf("read the demonstration's secrets: %w", err)
	}
	s = devSecrets{
		Peppers: authz.NewPepper("dev"), DatabasePassword: newPassword(), ExamplesPassword: newPassword(),
		RedisPassword: newPassword(), AdminToken: authz.AdminTokens().Generate().Reveal(),
		Callers: make(map[string]string), Keys: make(map[string]string),
	}
	for _, name := range demoCallers() {
		s.Callers[name] = authz.CallerTokens().Generate().Reveal()
	}
	for _, k := range demoKeys() {
		s.Keys[k.name] = format.Generate(k.environment).Reveal()
	}
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return devSecrets{}, fmt.Errorf("write the demonstration's secrets: %w", err)
	}
	return s, writeByRename(path, append(out, '\n'))
}

func newPassword() string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // documented never to fail
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// writeByRename writes a file that only its owner reads, whole or not at all.
func writeByRename(path string, content []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600 by definition
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone after the rename
	if _, err := tmp.Write(content); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// seedDemo writes the demonstration's data, once in a database's life, and returns its
// organizations' ids by name. One that was deleted since is left out: it stays deleted.
func seedDemo(ctx context.Context, s *store.Store, secrets devSecrets, format authz.KeyFormat) (map[string]string, error) {
	ids := make(map[string]string)
	for name := range demoOrganizations() {
		id, err := s.OrganizationIDByExternalID(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("read the demonstration's data: %w", err)
		}
		if !id.IsZero() {
			ids[name] = id.String()
		}
	}
	token := authz.NewSecret(secrets.AdminToken)
	found, err := s.FindAdmin(ctx, token.Hash())
	if err != nil {
		return nil, fmt.Errorf("read the demonstration's data: %w", err)
	}
	if len(ids) == 0 && found == nil {
		written := make(map[string]string)
		_, err := s.Change(ctx, func(ctx context.Context, c *store.Change) error {
			return writeDemo(ctx, c, secrets, format, written)
		})
		if err == nil {
			return written, nil
		}
		if authz.KindOf(err) != authz.KindConflict { // else all of it was there, and is deleted
			return nil, fmt.Errorf("write the demonstration's data: %w", err)
		}
	}
	if err := findRenamed(ctx, s, secrets, ids); err != nil {
		return nil, fmt.Errorf("read the demonstration's data: %w", err)
	}
	return ids, renewDemoAdmin(ctx, s, token)
}

// findRenamed finds, by their keys, organizations that have another external id by now.
func findRenamed(ctx context.Context, s *store.Store, secrets devSecrets, ids map[string]string) error {
	for _, k := range demoKeys() {
		if ids[k.organization] != "" {
			continue
		}
		found, err := s.FindKey(ctx, authz.CallerID{}, authz.NewSecret(secrets.Keys[k.name]).Hash())
		if err != nil {
			return err //nolint:wrapcheck // the caller does
		}
		if found.Key != nil && found.Key.RevokedAt.IsZero() && found.Key.Organization != nil {
			ids[k.organization] = found.Key.Organization.ID.String()
		}
	}
	return nil
}

// renewDemoAdmin gives the demonstration's admin, whose token no one else can renew,
// its whole life again when it has come near its end. One that was removed stays so.
func renewDemoAdmin(ctx context.Context, s *store.Store, token authz.Secret) error {
	found, err := s.FindAdmin(ctx, token.Hash())
	if err != nil || found == nil || s.Clock().Now().Add(demoAdminLifetime/2).Before(found.TokenExpiresAt) {
		return err //nolint:wrapcheck // the caller does
	}
	_, err = s.Write(ctx, true, func(ctx context.Context, w manage.Writer) error {
		everyone := manage.TenantOf(&authz.Admin{Role: authz.RolePlatformAdmin})
		a, err := w.Admin(ctx, everyone, found.ID)
		if err != nil {
			return err //nolint:wrapcheck // the caller does
		}
		a.ExpiresAt = w.Now().Add(demoAdminLifetime)
		for i := range a.Tokens {
			if t := &a.Tokens[i]; t.ID == found.TokenID {
				t.ExpiresAt = a.ExpiresAt
				if err := w.EndAdminToken(ctx, everyone, a, t); err != nil {
					return err //nolint:wrapcheck // the caller does
				}
			}
		}
		return w.UpdateAdmin(ctx, everyone, a) //nolint:wrapcheck // the caller does
	})
	return err //nolint:wrapcheck // the caller does
}

func writeDemo(ctx context.Context, c *store.Change, secrets devSecrets, format authz.KeyFormat, ids map[string]string) error {
	organizations := make(map[string]*authz.Organization)
	for name, title := range demoOrganizations() {
		o := &authz.Organization{ID: authz.NewOrganizationID(c.Now()), ExternalID: name, Name: title, Plan: "standard"}
		if err := c.AddOrganization(ctx, o); err != nil {
			return err //nolint:wrapcheck // the caller does
		}
		organizations[name], ids[name] = o, o.ID.String()
	}
	for _, k := range demoKeys() {
		key := &authz.Key{
			ID: authz.NewKeyID(c.Now()), Organization: organizations[k.organization], Name: k.name,
			Environment: k.environment, Scopes: k.scopes,
		}
		if err := c.AddKey(ctx, key, "keystile dev"); err != nil {
			return err //nolint:wrapcheck // the caller does
		}
		secret := authz.NewSecret(secrets.Keys[k.name])
		hint := &authz.KeySecret{ID: authz.NewSecretID(c.Now()), Hint: format.Hint(secret)}
		if err := c.AddKeySecret(ctx, key.ID, hint, secret); err != nil {
			return err //nolint:wrapcheck // the caller does
		}
	}
	for _, name := range demoCallers() {
		caller := &authz.Caller{
			ID: authz.NewCallerID(c.Now()), Name: name,
			Environments: []authz.Environment{authz.EnvironmentLive, authz.EnvironmentTest},
			Permissions:  []authz.Permission{authz.PermissionCheck, authz.PermissionExplain},
		}
		if err := c.AddCaller(ctx, caller, authz.NewSecret(secrets.Callers[name])); err != nil {
			return err //nolint:wrapcheck // the caller does
		}
	}
	admin := &store.Admin{
		ID: authz.NewAdminID(c.Now()), Name: "dev", Role: authz.RolePlatformAdmin, ExpiresAt: c.Now().Add(demoAdminLifetime),
	}
	return c.AddAdmin(ctx, admin, authz.NewSecret(secrets.AdminToken)) //nolint:wrapcheck // the caller does
}
