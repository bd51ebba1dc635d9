package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

const keysUpdateExample = `  keystile keys update key_… --add-scope tickets:write --remove-scope customers:read
  keystile keys update key_… --cidr 203.0.113.0/24 --if-version 4
  keystile keys update key_… --plan-rate --never-expires`

// keyUpdateFlags are those that only an update has.
type keyUpdateFlags struct {
	keyFlags

	add, remove             []string
	noCIDRs, never, planned bool
}

func (c Config) keysUpdate() *cobra.Command {
	var f keyUpdateFlags
	cmd := &cobra.Command{
		Use: "update KEY", Short: "Change a key; what is not given stays as it is", Args: cobra.ExactArgs(1),
		Long:    "Change a key; what is not given stays as it is. --scope, --cidr and --metadata\nreplace what is there.",
		Example: keysUpdateExample,
	}
	f.flags(cmd)
	cmd.Flags().StringSliceVar(&f.add, "add-scope", nil, "a scope that it gets as well; repeat it for more")
	cmd.Flags().StringSliceVar(&f.remove, "remove-scope", nil, "a scope that it loses; repeat it for more")
	cmd.Flags().BoolVar(&f.noCIDRs, "no-cidrs", false, "let it be used from any address")
	cmd.Flags().BoolVar(&f.never, "never-expires", false, "let it live on without end")
	cmd.Flags().BoolVar(&f.planned, "plan-rate", false, "limit it as its plan says")
	return c.updating(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("KEY", "key", args[0]); err != nil {
			return err
		}
		wanted, err := s.keyUpdate(&f)
		if err != nil {
			return err
		}
		if s.changed("add-scope") || s.changed("remove-scope") {
			if err := s.rescope(ctx, args[0], &f, &wanted); err != nil {
				return err
			}
		}
		if err := somethingToChange(wanted); err != nil {
			return err
		}
		if err := s.updateKey(ctx, args[0], wanted, "applied", "update", "updated"); err != nil {
			return err
		}
		s.next("who changed what", "keystile audit-log list --target "+args[0])
		return nil
	})
}

func (s *session) keyUpdate(f *keyUpdateFlags) (admin.KeyUpdate, error) {
	wanted := admin.KeyUpdate{Name: optional(s, "name", f.name), Scopes: optional(s, "scope", f.scopes), AllowedCidrs: optional(s, "cidr", f.cidrs)}
	for _, pair := range [][]string{
		{"expires-in", "expires-at", "never-expires"},
		{"cidr", "no-cidrs"},
		{"rate", "plan-rate"},
		{"scope", "add-scope"},
		{"scope", "remove-scope"},
	} {
		if err := s.exclusive(pair...); err != nil {
			return wanted, err
		}
	}
	var err error
	if wanted.Metadata, err = s.metadata(f.pairs, f.document); err != nil {
		return wanted, err
	}
	limit, err := s.limit(&f.rate, f.burst)
	if err != nil {
		return wanted, err
	}
	switch {
	case f.planned:
		wanted.RateLimit = admin.Null[admin.Rate]()
	case limit != nil:
		wanted.RateLimit = admin.Set(*limit)
	}
	if f.noCIDRs {
		wanted.AllowedCidrs = &[]string{}
	}
	if f.never {
		wanted.ExpiresAt = admin.Null[time.Time]()
	} else if at := f.expiry(s.config.now()); at != nil {
		wanted.ExpiresAt = admin.Set(*at)
	}
	return wanted, nil
}

// rescope adds to and takes from the scopes that the key has, and holds the
// update to the version that they were read with.
func (s *session) rescope(ctx context.Context, key string, f *keyUpdateFlags, wanted *admin.KeyUpdate) error {
	current, err := s.client.GetKey(ctx, key)
	if err != nil {
		return err
	}
	scopes := slices.DeleteFunc(slices.Concat(current.Scopes, f.add), func(scope string) bool { return slices.Contains(f.remove, scope) })
	slices.Sort(scopes)
	scopes = slices.Compact(scopes)
	wanted.Scopes = &scopes
	if s.ifVersion == 0 {
		s.ifVersion = current.Version
	}
	return nil
}
