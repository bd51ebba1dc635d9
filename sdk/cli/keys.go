package cli

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

var errNothingToChange = errors.New("nothing to change; --help lists what can be")

// NewKeysCommand returns `keys`, with what is done to an organization's keys.
func NewKeysCommand(config Config) *cobra.Command {
	secrets := group("secrets", "Manage the secrets of a key", "A key has one secret, and two while it is rotated.", config.keysSecretsRevoke())
	return group("keys", "Manage API keys", `A key is an identity that never changes, with one secret, and two while it is
rotated. Keys are named by their ids (key_…); no secret is ever an argument.`,
		config.keysList(), config.keysGet(), config.keysCreate(), config.keysUpdate(), config.keysDisable(), config.keysEnable(),
		config.keysRotate(), config.keysRevoke(), secrets, config.keysImport())
}

func (c Config) keysList() *cobra.Command {
	var pages paging
	var org, status, environment, scope, externalID string
	var unused bool
	cmd := &cobra.Command{
		Use: "list", Short: "List an organization's keys, newest first",
		Example: "  keystile keys list --org org_… --status active --scope tickets:write",
	}
	orgFlag(cmd, &org)
	pages.flags(cmd)
	cmd.Flags().StringVar(&status, "status", "", "only these: active, disabled, expired or revoked")
	cmd.Flags().StringVar(&environment, "env", "", "only keys of this environment: live or test")
	cmd.Flags().StringVar(&scope, "scope", "", "only keys that have this scope")
	cmd.Flags().StringVar(&externalID, "external-id", "", "only the one with this id of your own")
	cmd.Flags().BoolVar(&unused, "unused", false, "only keys that were never used; --unused=false for those that were")
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		org, err := s.organization(ctx, org)
		if err != nil {
			return err
		}
		filter := admin.ListKeysParams{
			Status:      optional(s, "status", admin.KeyStatus(status)),
			Environment: optional(s, "env", admin.Environment(environment)),
			Scope:       optional(s, "scope", scope),
			ExternalID:  optional(s, "external-id", externalID),
			Unused:      optional(s, "unused", unused),
		}
		found, err := collect(pages, func(cursor *string, limit *int) ([]admin.Key, *string, error) {
			filter.Cursor, filter.Limit = cursor, limit
			page, err := s.client.ListKeys(ctx, org, filter)
			if err != nil {
				return nil, nil, err
			}
			return page.Items, page.NextCursor, nil
		})
		if err != nil {
			return err
		}
		now := c.now()
		return showList(s, "keys", found, []string{"id", "name", "env", "status", "expires", "last used", "scopes"}, func(k admin.Key) []string {
			return []string{
				k.ID, shortName(k.Name), string(k.Environment), string(k.Status),
				date(k.ExpiresAt), lastUse(k.LastUsedAt, now), few(k.Scopes, maxScopesWidth),
			}
		})
	})
}

func orgFlag(cmd *cobra.Command, org *string) {
	cmd.Flags().StringVar(org, "org", "", "the organization's id; not needed when there is only one to see")
}

func (c Config) keysGet() *cobra.Command {
	cmd := &cobra.Command{Use: "get KEY", Short: "Show a key and its secrets' hints", Args: cobra.ExactArgs(1)}
	return c.reading(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("KEY", "key", args[0]); err != nil {
			return err
		}
		k, err := s.client.GetKey(ctx, args[0])
		if err != nil {
			return err
		}
		return s.show(k, func(p *page) { c.key(p, k) })
	})
}

func (c Config) key(p *page, k *admin.Key) {
	now := c.now()
	p.row("key", k.ID)
	p.row("name", k.Name)
	p.row("organization", k.OrganizationID)
	p.row("external id", orEmpty(k.ExternalID))
	p.row("environment", string(k.Environment))
	p.row("status", string(k.Status))
	p.row("scopes", strings.Join(k.Scopes, " "))
	p.row("expires", day(k.ExpiresAt, now))
	p.row("last used", day(k.LastUsedAt, now))
	p.row("addresses", anyAddress(k.AllowedCidrs))
	p.row("limit", limitText(k.RateLimit))
	p.row("metadata", metadataText(k.Metadata))
	p.row("created", moment(k.CreatedAt, now)+" by "+k.CreatedBy)
	p.row("version", number(k.Version))
	for _, secret := range k.Secrets {
		line := secret.ID + "  " + secret.Hint
		if secret.ExpiresAt != nil {
			line += ", ends " + moment(*secret.ExpiresAt, now)
		}
		if secret.LastUsedAt != nil {
			line += ", last used " + relative(secret.LastUsedAt.Sub(now))
		}
		p.row("secret", line)
	}
}

func anyAddress(cidrs []string) string {
	if len(cidrs) == 0 {
		return "any"
	}
	return strings.Join(cidrs, " ")
}

func number(n int) string { return strconv.Itoa(n) }

func (s *session) keyChanged(change *admin.KeyChange, verb string) error {
	s.warnOfSilence(change.Effective)
	return s.show(change, func(p *page) { s.keyPage(p, change, reached{verb: verb}) })
}

func (s *session) keyPage(p *page, change *admin.KeyChange, what reached) {
	s.config.key(p, &change.Key)
	p.receiptOf(change.Effective, what, s.config.now())
}

func (c Config) keysDisable() *cobra.Command {
	cmd := &cobra.Command{Use: "disable KEY", Short: "Deny a key until it is enabled again", Args: cobra.ExactArgs(1)}
	return c.updating(cmd, func(ctx context.Context, s *session, args []string) error {
		disabled := true
		err := s.updateKey(ctx, args[0], admin.KeyUpdate{Disabled: &disabled}, "denied", "disable", "disabled")
		if err == nil {
			s.next("to lift it", "keystile keys enable "+args[0])
		}
		return err
	})
}

func (c Config) keysEnable() *cobra.Command {
	cmd := &cobra.Command{Use: "enable KEY", Short: "Let a disabled key work again", Args: cobra.ExactArgs(1)}
	return c.updating(cmd, func(ctx context.Context, s *session, args []string) error {
		disabled := false
		err := s.updateKey(ctx, args[0], admin.KeyUpdate{Disabled: &disabled}, "applied", "enable", "enabled")
		if err == nil {
			s.next("to see it", "keystile keys get "+args[0])
		}
		return err
	})
}

func (s *session) updateKey(ctx context.Context, key string, wanted admin.KeyUpdate, verb, would, done string) error {
	if err := checkID("KEY", "key", key); err != nil {
		return err
	}
	change, err := s.client.UpdateKey(ctx, key, wanted, s.options()...)
	if err != nil {
		return err
	}
	if err := s.keyChanged(change, verb); err != nil {
		return err
	}
	s.did(would, done, "key "+key)
	return nil
}

func (c Config) keysRevoke() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke KEY", Short: "Revoke a key with all its secrets, for ever", Args: cobra.ExactArgs(1),
		Long: `Revoke a key with all its secrets, for ever. It answers when every live replica
denies the key, or after a second with those that have not said so, and until
when each may still serve it.`,
	}
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("KEY", "key", args[0]); err != nil {
			return err
		}
		change, err := s.client.RevokeKey(ctx, args[0], s.options()...)
		if err != nil {
			return err
		}
		if err := s.keyChanged(change, "denied"); err != nil {
			return err
		}
		s.did("revoke", "revoked", "key "+args[0])
		s.next("what is left", "keystile keys list --org "+change.Key.OrganizationID+" --status active")
		return nil
	})
}

func (c Config) keysSecretsRevoke() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke KEY SECRET_ID", Short: "Revoke one of a key's secrets, for ever", Args: cobra.ExactArgs(2),
		Long:    "Revoke one of a key's secrets by its id (sec_…), for ever. The key and its other\nsecret go on.",
		Example: "  keystile keys secrets revoke key_… sec_…",
	}
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("KEY", "key", args[0]); err != nil {
			return err
		}
		if err := checkID("SECRET_ID", "sec", args[1]); err != nil {
			return err
		}
		change, err := s.client.RevokeKeySecret(ctx, args[0], args[1], s.options()...)
		if err != nil {
			return err
		}
		if err := s.keyChanged(change, "denied"); err != nil {
			return err
		}
		s.did("revoke", "revoked", "secret "+args[1]+" of key "+args[0])
		s.next("to see the key", "keystile keys get "+args[0])
		return nil
	})
}
