package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// keyFlags are those that a key is created and updated with.
type keyFlags struct {
	name      string
	scopes    []string
	cidrs     []string
	expiresIn span
	expiresAt instant
	rate      rate
	burst     int
	pairs     []string
	document  string
}

func (f *keyFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.name, "name", "", "what people call it")
	cmd.Flags().StringSliceVar(&f.scopes, "scope", nil, "what it may do, such as tickets:read; repeat it for more")
	cmd.Flags().StringSliceVar(&f.cidrs, "cidr", nil, "from where it may be used, such as 203.0.113.0/24; repeat it for more")
	cmd.Flags().Var(&f.expiresIn, "expires-in", "how long it lives, such as 90d")
	cmd.Flags().Var(&f.expiresAt, "expires-at", "when it ends (RFC 3339)")
	cmd.Flags().Var(&f.rate, "rate", "a limit of its own, such as 50/60s")
	cmd.Flags().IntVar(&f.burst, "burst", 0, "how much of it may come at once (default: the rate's units)")
	metadataFlags(cmd, &f.pairs, &f.document)
}

// expiry is when the key shall end, for a span that is not whole days as well.
func (f *keyFlags) expiry(now time.Time) *time.Time {
	switch {
	case f.expiresAt.set:
		return &f.expiresAt.at
	case f.expiresIn.set:
		at := now.Add(f.expiresIn.duration).UTC().Truncate(time.Second)
		return &at
	}
	return nil
}

const keysCreateLong = `Create a key. Its secret is printed once, last, on a line of its own; with
--secret-file it is written to a new file instead.`

const keysCreateExample = `  keystile keys create --org org_… --name ci --env test --scope tickets:read --expires-in 90d
  keystile keys create --org org_… --name billing --env live --scope tickets:read --scope customers:read \
      --cidr 203.0.113.0/24 --rate 50/60s --burst 50 --metadata team=billing --secret-file billing.key`

func (c Config) keysCreate() *cobra.Command {
	var f keyFlags
	var sink secretSink
	var org, environment, externalID string
	cmd := &cobra.Command{Use: "create", Short: "Create a key", Long: keysCreateLong, Example: keysCreateExample}
	orgFlag(cmd, &org)
	f.flags(cmd)
	sink.flags(cmd)
	cmd.Flags().StringVar(&environment, "env", "", "live or test")
	cmd.Flags().StringVar(&externalID, "external-id", "", "its id in a system of your own")
	return c.changing(cmd, func(ctx context.Context, s *session, _ []string) error {
		if err := s.needs("--name NAME", "--env live or --env test", "--scope SCOPE"); err != nil {
			return err
		}
		wanted, err := s.keyWanted(&f)
		if err != nil {
			return err
		}
		wanted.Environment = admin.Environment(environment)
		wanted.ExternalID = optional(s, "external-id", externalID)
		org, err := s.organization(ctx, org)
		if err != nil {
			return err
		}
		if err := sink.open(s); err != nil {
			return err
		}
		defer sink.close()
		change, err := s.client.CreateKey(ctx, org, wanted, s.options()...)
		if err != nil {
			return err
		}
		s.did("create", "created", "key "+change.Key.ID)
		if err := s.handOverKey(&sink, change, func(*admin.Key) reached { return reached{} }); err != nil {
			return err
		}
		s.next("try it", "keystile check GET /PATH --key-file FILE")
		s.next("renew its secret without downtime", "keystile keys rotate "+change.Key.ID+" --grace 24h")
		return nil
	})
}

func (s *session) keyWanted(f *keyFlags) (admin.KeyCreate, error) {
	wanted := admin.KeyCreate{Name: f.name, Scopes: f.scopes}
	if err := s.exclusive("expires-in", "expires-at"); err != nil {
		return wanted, err
	}
	var err error
	if wanted.RateLimit, err = s.limit(&f.rate, f.burst); err != nil {
		return wanted, err
	}
	if wanted.Metadata, err = s.metadata(f.pairs, f.document); err != nil {
		return wanted, err
	}
	if days, err := f.expiresIn.days(); err == nil {
		wanted.ExpiresInDays = days // by the service's clock, not by ours
	}
	if wanted.ExpiresInDays == nil {
		wanted.ExpiresAt = f.expiry(s.config.now())
	}
	wanted.AllowedCidrs = optional(s, "cidr", f.cidrs)
	return wanted, nil
}

func (s *session) handOverKey(sink *secretSink, change *admin.KeyChange, what func(*admin.Key) reached) error {
	s.warnOfSilence(change.Effective)
	return s.handOver(sink, issued{
		secret: &change.Secret, alreadyShown: change.SecretAlreadyShown,
		noun: "secret", rotate: "keystile keys rotate " + change.Key.ID + " --grace 0",
	}, change, func(p *page) { s.keyPage(p, change, what(&change.Key)) })
}
