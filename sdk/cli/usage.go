package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// NewUsageCommand returns `usage`: what was asked of a key, or of an organization's keys.
func NewUsageCommand(config Config) *cobra.Command {
	var organization, since, until, step string
	var top int
	cmd := &cobra.Command{
		Use: "usage [KEY]", Short: "Tell what was asked of a key, or of an organization's keys",
		Long: `Tell what was asked of a key (key_…), or of all keys of an organization: how much and when, what was denied and
why, the most frequent routes, callers, networks and keys; of a key also when each scope was used last, and while
it rotates who still uses the old secret.

Every decision is counted. Addresses are kept as networks (/24, /48) unless the service is told otherwise. By the
hour a window has at most 31 days; a longer one is told by the day (UTC).
` + managementHelp,
		Example: "  keystile usage --since 24h\n  keystile usage key_01m86xw9v4e8hr0yfh26cafkps\n  keystile usage --org org_01m86xw9v4e8hr0yfh26cafkpr --since 90d --step day -o json",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&organization, "org", "", "the organization's id; the only one by default")
	cmd.Flags().StringVar(&since, "since", "7d", "from then on: 36h, 7d, 2026-11-24 or 2026-11-24T12:00:00Z")
	cmd.Flags().StringVar(&until, "until", "", "until then; now by default")
	cmd.Flags().StringVar(&step, "step", "", "add up by the hour or the day; the hour up to eight days by default")
	cmd.Flags().IntVar(&top, "top", 10, "how many rows each list has at most, up to 100")
	return config.reading(cmd, func(ctx context.Context, s *session, args []string) error {
		wanted := admin.GetOrganizationUsageParams{Step: optional(s, "step", admin.UsageStep(step)), Top: &top}
		var err error
		if wanted.Since, wanted.Until, err = config.window(since, until); err != nil {
			return err
		}
		u, err := s.usage(ctx, organization, args, wanted)
		if err != nil {
			return err
		}
		if err := s.show(u, func(p *page) { (&usagePage{page: p, u: u, now: config.now(), art: config.artOf(p)}).all() }); err != nil {
			return err
		}
		if u.Totals.Requests == 0 {
			s.say("nothing was counted in that time")
		}
		if old := doneRotating(u); old != nil {
			s.next("the old secret was not used for a day; if nothing runs more rarely, end it", "keystile keys secrets revoke "+u.Key.ID+" "+old.ID)
		}
		return nil
	})
}

// usage asks for that of the key in args, or of an organization.
func (s *session) usage(ctx context.Context, organization string, args []string, wanted admin.GetOrganizationUsageParams) (*admin.Usage, error) {
	if len(args) == 0 {
		org, err := s.organization(ctx, organization)
		if err != nil {
			return nil, err
		}
		return s.client.OrganizationUsage(ctx, org, wanted)
	}
	if err := checkID("the key", "key", args[0]); err != nil {
		return nil, err
	}
	if organization != "" {
		if err := checkID("--org", "org", organization); err != nil {
			return nil, err
		}
	}
	return s.client.KeyUsage(ctx, organization, args[0], admin.GetKeyUsageParams(wanted))
}

// aDay without a use is when the old secret of a rotation may be ended.
const aDay = 24 * time.Hour

// doneRotating is the oldest secret of a key that rotates, when others are used and it is not.
func doneRotating(u *admin.Usage) *admin.UsageSecret {
	if u.Rotation == nil {
		return nil
	}
	secrets := u.Rotation.Secrets
	old := &secrets[len(secrets)-1]
	if old.RecentShare == nil || old.RecentRequests > 0 || old.LastUse != nil && old.LastUse.At.After(u.At.Add(-aDay)) {
		return nil
	}
	return old
}
