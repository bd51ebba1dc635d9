package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// NewAdminsCommand returns `admins`, with what is done to the people and machines
// that manage. The binary's root adds `bootstrap`, which needs the database.
func NewAdminsCommand(config Config) *cobra.Command {
	return group("admins", "Manage admins: the people and machines that manage", `An admin is a person or machine that manages, with a token (ksa_…) that always
expires. Platform admins manage all; owners, developers and auditors belong to an
organization, and rotate their own token.`,
		config.adminsList(), config.adminsGet(), config.adminsCreate(), config.adminsRotate(), config.adminsDelete())
}

func (c Config) adminsList() *cobra.Command {
	var pages paging
	var org, status string
	cmd := &cobra.Command{Use: "list", Short: "List admins, newest first"}
	pages.flags(cmd)
	cmd.Flags().StringVar(&org, "org", "", "only admins of the organization with this id")
	cmd.Flags().StringVar(&status, "status", "", "only these: active, expired or revoked")
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		if s.changed("org") {
			if err := checkID("--org", "org", org); err != nil {
				return err
			}
		}
		filter := admin.ListAdminsParams{OrganizationID: optional(s, "org", org), Status: optional(s, "status", admin.AdminStatus(status))}
		found, err := collect(pages, func(cursor *string, limit *int) ([]admin.Admin, *string, error) {
			filter.Cursor, filter.Limit = cursor, limit
			page, err := s.client.ListAdmins(ctx, filter)
			if err != nil {
				return nil, nil, err
			}
			return page.Items, page.NextCursor, nil
		})
		if err != nil {
			return err
		}
		now := c.now()
		return showList(s, "admins", found, []string{"id", "name", "role", "status", "expires"}, func(a admin.Admin) []string {
			return []string{a.ID, shortName(a.Name), string(a.Role), string(a.Status), day(&a.ExpiresAt, now)}
		})
	})
}

func (c Config) adminsGet() *cobra.Command {
	cmd := &cobra.Command{Use: "get ADMIN", Short: "Show an admin and its tokens' hints", Args: cobra.ExactArgs(1)}
	return c.reading(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("ADMIN", "admin", args[0]); err != nil {
			return err
		}
		a, err := s.client.GetAdmin(ctx, args[0])
		if err != nil {
			return err
		}
		return s.show(a, func(p *page) { c.admin(p, a) })
	})
}

func (c Config) admin(p *page, a *admin.Admin) {
	now := c.now()
	p.row("admin", a.ID)
	p.row("name", a.Name)
	p.row("role", string(a.Role))
	p.row("organization", orEmpty(a.OrganizationID))
	p.row("status", string(a.Status))
	p.row("expires", day(&a.ExpiresAt, now))
	p.row("created", moment(a.CreatedAt, now)+" by "+a.CreatedBy)
	p.tokens(a.Tokens, now)
}

func (c Config) adminsCreate() *cobra.Command {
	var wanted admin.AdminCreate
	var role, org string
	var expiresIn span
	var sink secretSink
	cmd := &cobra.Command{
		Use: "create", Short: "Create an admin", Long: "Create an admin (platform admins)." + tokenLong,
		Example: `  keystile admins create --name ada --role owner --org org_… --expires-in 30d
  keystile admins create --name terraform --role platform_admin --expires-in 90d --secret-file tf.token`,
	}
	cmd.Flags().StringVar(&wanted.Name, "name", "", "what people call it")
	cmd.Flags().StringVar(&role, "role", "", "platform_admin, owner, developer or auditor")
	cmd.Flags().StringVar(&org, "org", "", "the organization's id, for every role but platform_admin")
	cmd.Flags().Var(&expiresIn, "expires-in", "how long it lives, at most 90d")
	sink.flags(cmd)
	return c.changing(cmd, func(ctx context.Context, s *session, _ []string) error {
		if err := s.needs("--name NAME", "--role ROLE", "--expires-in 30d"); err != nil {
			return err
		}
		wanted.Role = admin.Role(role)
		if err := s.belongs(&wanted, org); err != nil {
			return err
		}
		days, err := expiresIn.days()
		if err != nil {
			return err
		}
		wanted.ExpiresInDays = *days
		if err := sink.open(s); err != nil {
			return err
		}
		defer sink.close()
		change, err := s.client.CreateAdmin(ctx, wanted, s.options()...)
		if err != nil {
			return err
		}
		s.did("create", "created", "admin "+change.Admin.ID)
		if err := s.handOverAdmin(&sink, change); err != nil {
			return err
		}
		s.next("to manage with it", "set KEYSTILE_ADMIN_TOKEN (or KEYSTILE_ADMIN_TOKEN_FILE)")
		s.next("before it expires", "keystile admins rotate "+change.Admin.ID+" --expires-in 30d")
		return nil
	})
}

// belongs holds role and organization together.
func (s *session) belongs(wanted *admin.AdminCreate, org string) error {
	platform := wanted.Role == admin.PlatformAdmin
	switch {
	case platform && s.changed("org"):
		return usage(errors.New("a platform_admin belongs to no organization; leave --org out"))
	case platform:
		return nil
	case !s.changed("org"):
		return usage(errors.New("give --org: every role but platform_admin belongs to an organization; `keystile orgs list` shows them"))
	}
	wanted.OrganizationID = &org
	return checkID("--org", "org", org)
}

func (s *session) handOverAdmin(sink *secretSink, change *admin.AdminChange) error {
	return s.handOver(sink, issued{
		secret: &change.Secret, alreadyShown: change.SecretAlreadyShown,
		noun: "token", rotate: "keystile admins rotate " + change.Admin.ID + " --expires-in 30d",
	}, change, func(p *page) { s.config.admin(p, &change.Admin) })
}

func (c Config) adminsRotate() *cobra.Command {
	var grace, expiresIn span
	var sink secretSink
	cmd := &cobra.Command{
		Use: "rotate ADMIN", Short: "Give an admin a new token and a new life", Args: cobra.ExactArgs(1),
		Long: `Give an admin a new token and a new life. The old token ends at once, unless
--grace lets it work on.
` + tokenLong,
		Example: "  keystile admins rotate admin_… --expires-in 30d --grace 1h --secret-file new.token",
	}
	cmd.Flags().Var(&expiresIn, "expires-in", "how long it lives from now on, at most 90d")
	cmd.Flags().Var(&grace, "grace", "how long the old token works on, at most 24h")
	sink.flags(cmd)
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("ADMIN", "admin", args[0]); err != nil {
			return err
		}
		if err := s.needs("--expires-in 30d"); err != nil {
			return err
		}
		days, err := expiresIn.days()
		if err != nil {
			return err
		}
		wanted := admin.AdminRotate{ExpiresInDays: *days}
		if grace.set {
			seconds, err := grace.seconds("--grace")
			if err != nil {
				return err
			}
			wanted.GraceSeconds = &seconds
		}
		if err := sink.open(s); err != nil {
			return err
		}
		defer sink.close()
		change, err := s.client.RotateAdmin(ctx, args[0], wanted, s.options()...)
		if err != nil {
			return err
		}
		s.did("rotate", "rotated", "admin "+args[0])
		if err := s.handOverAdmin(&sink, change); err != nil {
			return err
		}
		s.next("where the old token was", "set KEYSTILE_ADMIN_TOKEN (or KEYSTILE_ADMIN_TOKEN_FILE) to the new one")
		return nil
	})
}

func (c Config) adminsDelete() *cobra.Command {
	cmd := &cobra.Command{Use: "delete ADMIN", Short: "Remove an admin, at once", Args: cobra.ExactArgs(1)}
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("ADMIN", "admin", args[0]); err != nil {
			return err
		}
		change, err := s.client.DeleteAdmin(ctx, args[0], s.options()...)
		if err != nil {
			return err
		}
		if err := s.show(change, func(p *page) { c.admin(p, &change.Admin) }); err != nil {
			return err
		}
		s.did("delete", "deleted", "admin "+args[0])
		s.next("what is left", "keystile admins list --status active")
		return nil
	})
}
