package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// NewScopesCommand returns `scopes`: what keys can be allowed, and the plans.
func NewScopesCommand(config Config) *cobra.Command {
	cmd := &cobra.Command{
		Use: "scopes", Short: "List the scopes that keys can have, and the plans",
		Long: "List the scopes that keys can have, and the plans, of the policy in force.\n" + managementHelp,
	}
	return config.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		catalogue, err := s.client.Catalogue(ctx)
		if err != nil {
			return err
		}
		return s.show(catalogue, func(p *page) { p.catalogue(catalogue) })
	})
}

func (p *page) catalogue(c *admin.Catalogue) {
	scopes := make([][]string, len(c.Scopes))
	for i, scope := range c.Scopes {
		scopes[i] = []string{scope.Name, scope.Description}
	}
	p.table([]string{"scope", "description"}, scopes)
	plans := make([][]string, len(c.Plans))
	for i, plan := range c.Plans {
		keys := "no bound"
		if plan.MaxKeys > 0 {
			keys = number(plan.MaxKeys)
		}
		plans[i] = []string{plan.Name, limitText(&plan.RateLimit), keys}
	}
	p.write("\n")
	p.table([]string{"plan", "limit", "keys"}, plans)
	p.write("\npolicy " + printable(c.PolicyRevision) + "\n")
}

// NewReplicasCommand returns `replicas`: who serves, and what each has applied.
func NewReplicasCommand(config Config) *cobra.Command {
	cmd := &cobra.Command{
		Use: "replicas", Short: "List the replicas, and how far each has applied changes",
		Long: "List the replicas, and how far each has applied changes (platform admins).\n" + managementHelp,
	}
	return config.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		found, err := s.client.Replicas(ctx)
		if err != nil {
			return err
		}
		now := config.now()
		return s.show(found, func(p *page) {
			rows := make([][]string, len(found.Items))
			for i, r := range found.Items {
				rows[i] = []string{
					r.ID, shortName(r.Name), liveText(r.Live), behind(r.AppliedRevision, found.Revision),
					relative(r.HeartbeatAt.Sub(now)), stamp(r.ServesUntil),
				}
			}
			p.table([]string{"id", "name", "state", "changes", "heartbeat", "serves until"}, rows)
		})
	})
}

func liveText(live bool) string {
	if live {
		return "live"
	}
	return "silent"
}

// behind tells how many changes a replica lacks.
func behind(applied, reached int64) string {
	if applied >= reached {
		return "all"
	}
	return fmt.Sprintf("%d behind", reached-applied)
}
