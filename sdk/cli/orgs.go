package cli

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// NewOrgsCommand returns `orgs`, with what is done to organizations. Organization
// roles see and change their own.
func NewOrgsCommand(config Config) *cobra.Command {
	return group("orgs", "Manage organizations", `Organizations own keys. Suspending one denies all its keys until it is resumed;
deleting one revokes them for ever, and keeps the trail.`,
		config.orgsList(), config.orgsGet(), config.orgsCreate(), config.orgsUpdate(),
		config.orgsSuspend(), config.orgsResume(), config.orgsDelete())
}

func (c Config) orgsList() *cobra.Command {
	var pages paging
	var status, externalID string
	cmd := &cobra.Command{Use: "list", Short: "List organizations, newest first", Example: "  keystile orgs list --status suspended"}
	pages.flags(cmd)
	cmd.Flags().StringVar(&status, "status", "", "only these: active, suspended or deleted; deleted ones are listed only so")
	cmd.Flags().StringVar(&externalID, "external-id", "", "only the one with this id of your own")
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		filter := admin.ListOrganizationsParams{
			Status:     optional(s, "status", admin.OrganizationStatus(status)),
			ExternalID: optional(s, "external-id", externalID),
		}
		found, err := collect(pages, func(cursor *string, limit *int) ([]admin.Organization, *string, error) {
			filter.Cursor, filter.Limit = cursor, limit
			page, err := s.client.ListOrganizations(ctx, filter)
			if err != nil {
				return nil, nil, err
			}
			return page.Items, page.NextCursor, nil
		})
		if err != nil {
			return err
		}
		now := c.now()
		return showList(s, "organizations", found, []string{"id", "name", "plan", "status", "created"}, func(o admin.Organization) []string {
			return []string{o.ID, shortName(o.Name), o.Plan, string(o.Status), day(&o.CreatedAt, now)}
		})
	})
}

func (c Config) orgsGet() *cobra.Command {
	cmd := &cobra.Command{Use: "get ORG", Short: "Show an organization", Args: cobra.ExactArgs(1)}
	return c.reading(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("ORG", "org", args[0]); err != nil {
			return err
		}
		o, err := s.client.GetOrganization(ctx, args[0])
		if err != nil {
			return err
		}
		return s.show(o, func(p *page) { c.organization(p, o) })
	})
}

func (c Config) organization(p *page, o *admin.Organization) {
	p.row("organization", o.ID)
	p.row("name", o.Name)
	p.row("external id", orEmpty(o.ExternalID))
	p.row("plan", o.Plan)
	p.row("status", string(o.Status))
	p.row("metadata", metadataText(o.Metadata))
	p.row("created", moment(o.CreatedAt, c.now()))
	p.row("version", number(o.Version))
}

func (c Config) orgsCreate() *cobra.Command {
	var wanted admin.OrganizationCreate
	var externalID, document string
	var pairs []string
	cmd := &cobra.Command{
		Use: "create", Short: "Create an organization",
		Example: "  keystile orgs create --name Acme --plan standard --external-id crm-4711",
	}
	cmd.Flags().StringVar(&wanted.Name, "name", "", "what people call it")
	cmd.Flags().StringVar(&wanted.Plan, "plan", "", "one of the policy's plans, such as standard (`keystile scopes` lists them)")
	cmd.Flags().StringVar(&externalID, "external-id", "", "its id in a system of your own")
	metadataFlags(cmd, &pairs, &document)
	return c.changing(cmd, func(ctx context.Context, s *session, _ []string) error {
		if err := s.needs("--name NAME", "--plan PLAN"); err != nil {
			return err
		}
		var err error
		if wanted.Metadata, err = s.metadata(pairs, document); err != nil {
			return err
		}
		wanted.ExternalID = optional(s, "external-id", externalID)
		change, err := s.client.CreateOrganization(ctx, wanted, s.options()...)
		if err != nil {
			return err
		}
		if err := s.organizationChanged(change, ""); err != nil {
			return err
		}
		s.did("create", "created", "organization "+change.Organization.ID)
		s.next("give it a key", "keystile keys create --org "+change.Organization.ID+" --name NAME --env test --scope SCOPE")
		return nil
	})
}

func (s *session) organizationChanged(change *admin.OrganizationChange, verb string) error {
	s.warnOfSilence(change.Effective)
	return s.show(change, func(p *page) {
		s.config.organization(p, &change.Organization)
		p.receipt(change.Effective, verb, s.config.now())
	})
}

func (c Config) orgsUpdate() *cobra.Command {
	var name, plan, externalID, document string
	var noExternalID bool
	var pairs []string
	cmd := &cobra.Command{
		Use: "update ORG", Short: "Change an organization's name, plan, external id or metadata", Args: cobra.ExactArgs(1),
		Example: "  keystile orgs update org_… --plan standard --if-version 3",
	}
	cmd.Flags().StringVar(&name, "name", "", "what people call it")
	cmd.Flags().StringVar(&plan, "plan", "", "one of the policy's plans")
	cmd.Flags().StringVar(&externalID, "external-id", "", "its id in a system of your own")
	cmd.Flags().BoolVar(&noExternalID, "no-external-id", false, "take that id away")
	metadataFlags(cmd, &pairs, &document)
	return c.updating(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := s.exclusive("external-id", "no-external-id"); err != nil {
			return err
		}
		metadata, err := s.metadata(pairs, document)
		if err != nil {
			return err
		}
		wanted := admin.OrganizationUpdate{Name: optional(s, "name", name), Plan: optional(s, "plan", plan), Metadata: metadata}
		switch {
		case noExternalID:
			wanted.ExternalID = admin.Null[string]()
		case s.changed("external-id"):
			wanted.ExternalID = admin.Set(externalID)
		}
		if err := somethingToChange(wanted); err != nil {
			return err
		}
		return s.updateOrganization(ctx, args[0], wanted, "applied", "update", "updated")
	})
}

func (c Config) orgsSuspend() *cobra.Command {
	cmd := &cobra.Command{Use: "suspend ORG", Short: "Deny all keys of an organization, until it is resumed", Args: cobra.ExactArgs(1)}
	return c.updating(cmd, func(ctx context.Context, s *session, args []string) error {
		suspended := true
		err := s.updateOrganization(ctx, args[0], admin.OrganizationUpdate{Suspended: &suspended}, "denied", "suspend", "suspended")
		if err == nil {
			s.next("to lift it", "keystile orgs resume "+args[0])
		}
		return err
	})
}

func (c Config) orgsResume() *cobra.Command {
	cmd := &cobra.Command{Use: "resume ORG", Short: "Lift the suspension of an organization", Args: cobra.ExactArgs(1)}
	return c.updating(cmd, func(ctx context.Context, s *session, args []string) error {
		suspended := false
		err := s.updateOrganization(ctx, args[0], admin.OrganizationUpdate{Suspended: &suspended}, "applied", "resume", "resumed")
		if err == nil {
			s.next("its keys are as they were", "keystile keys list --org "+args[0])
		}
		return err
	})
}

func (s *session) updateOrganization(ctx context.Context, org string, wanted admin.OrganizationUpdate, verb, would, done string) error {
	if err := checkID("ORG", "org", org); err != nil {
		return err
	}
	change, err := s.client.UpdateOrganization(ctx, org, wanted, s.options()...)
	if err != nil {
		return err
	}
	if err := s.organizationChanged(change, verb); err != nil {
		return err
	}
	s.did(would, done, "organization "+org)
	return nil
}

func (c Config) orgsDelete() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete ORG", Short: "Delete an organization: its keys and admins are revoked for ever", Args: cobra.ExactArgs(1),
		Long: `Delete an organization: its keys and admins are revoked for ever, and its trail is kept.

Where standard input is a terminal, the organization's name or id is asked for first; --yes leaves that out.`,
		Example: "  keystile orgs delete org_… --dry-run",
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "ask nothing, also on a terminal")
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("ORG", "org", args[0]); err != nil {
			return err
		}
		if !yes && !s.dryRun && asksAPerson(s.cmd.InOrStdin()) {
			if err := s.confirmDeletion(ctx, args[0]); err != nil {
				return err
			}
		}
		change, err := s.client.DeleteOrganization(ctx, args[0], s.options()...)
		if err != nil {
			return err
		}
		if err := s.organizationChanged(change, "denied"); err != nil {
			return err
		}
		s.did("delete", "deleted", "organization "+args[0])
		s.next("its trail is kept", "keystile audit-log list --org "+args[0])
		return nil
	})
}

// confirmDeletion has the person type which organization is meant.
func (s *session) confirmDeletion(ctx context.Context, org string) error {
	o, err := s.client.GetOrganization(ctx, org)
	if err != nil {
		return err
	}
	s.say("Deleting the organization %s (%s) revokes all its keys and admins for ever.", o.Name, o.ID)
	typed, err := s.ask(ctx, "Type its name or id to go on: ")
	if err != nil {
		return err
	}
	if typed != o.Name && typed != o.ID {
		return usage(errors.New("that is neither its name nor its id; nothing was deleted"))
	}
	return nil
}

func metadataFlags(cmd *cobra.Command, pairs *[]string, document *string) {
	cmd.Flags().StringArrayVar(pairs, "metadata", nil, "a name and a text, such as team=billing; repeat it for more")
	cmd.Flags().StringVar(document, "metadata-json", "", "metadata as one JSON object")
}

// somethingToChange refuses an update without a field.
func somethingToChange(update any) error {
	text, err := json.Marshal(update)
	if err == nil && string(text) == "{}" {
		return usage(errNothingToChange)
	}
	return err
}
