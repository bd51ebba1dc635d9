package cli

import (
	"context"
	"errors"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// NewAuditLogCommand returns `audit-log`, the trail of management changes.
func NewAuditLogCommand(config Config) *cobra.Command {
	return group("audit-log", "Read and verify the trail of management changes", `Every management change is in a chain: its organization's, or the platform's. Each
event holds the MAC of the one before, so that an edited or missing one shows.
Without --org it is the platform's chain, or that of the admin's organization.`,
		config.auditLogList(), config.auditLogExport(), config.auditLogVerify())
}

// chain names whose chain is meant, in the call's own words: it asks for the
// platform's, and when that is refused for the one organization's that the admin
// sees.
func (s *session) chain(ctx context.Context, flag string, ask func(org string) error) error {
	if flag != "" {
		if err := checkID("--org", "org", flag); err != nil {
			return err
		}
		return ask(flag)
	}
	err := ask("")
	var refusal *admin.Error
	if !errors.As(err, &refusal) || refusal.Status != 403 {
		return err
	}
	org, failed := s.organization(ctx, "")
	if failed != nil {
		return failed
	}
	return ask(org)
}

// auditFilter holds the flags of list and export.
type auditFilter struct{ org, action, target string }

func (f *auditFilter) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.org, "org", "", "the id of the organization whose chain it is")
	cmd.Flags().StringVar(&f.action, "action", "", "only this action, such as keys.revoke")
	cmd.Flags().StringVar(&f.target, "target", "", "only changes of the thing with this id")
}

func (f *auditFilter) params(s *session, order admin.ListAuditLogParamsOrder) admin.ListAuditLogParams {
	return admin.ListAuditLogParams{Order: &order, Action: optional(s, "action", f.action), Target: optional(s, "target", f.target)}
}

func (c Config) auditLogList() *cobra.Command {
	var pages paging
	var f auditFilter
	var oldest bool
	cmd := &cobra.Command{
		Use: "list", Short: "List events, newest first",
		Example: "  keystile audit-log list --org org_… --action keys.revoke\n  keystile audit-log list --target key_…",
	}
	f.flags(cmd)
	pages.flags(cmd)
	cmd.Flags().BoolVar(&oldest, "oldest", false, "list the oldest first, as in the chain")
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		order := admin.ListAuditLogParamsOrderNewest
		if oldest {
			order = admin.ListAuditLogParamsOrderOldest
		}
		filter := f.params(s, order)
		var found list[admin.AuditEvent]
		err := s.chain(ctx, f.org, func(org string) (err error) {
			found, err = collect(pages, func(cursor *string, limit *int) ([]admin.AuditEvent, *string, error) {
				filter.Cursor, filter.Limit = cursor, limit
				page, err := s.client.ListAuditLog(ctx, org, filter)
				if err != nil {
					return nil, nil, err
				}
				return page.Items, page.NextCursor, nil
			})
			return err
		})
		if err != nil {
			return err
		}
		return showList(s, "events", found, []string{"#", "at", "action", "target", "actor"}, func(e admin.AuditEvent) []string {
			return []string{strconv.FormatInt(e.Sequence, 10), stamp(e.At), e.Action, e.Target, actor(e.Actor)}
		})
	})
}

// actor is an id, which names its own type, or both.
func actor(a admin.Actor) string {
	if a.ID == "" {
		return a.Type
	}
	return a.ID
}
