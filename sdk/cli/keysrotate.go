package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

const keysRotateLong = `Give a key a new secret. The old one works on for the grace, so that nothing
stops while the new one is brought to where it is used. There is no default:
--grace 24h is a day, --grace 0 ends the old secret at once.

The new secret is printed once, last, on a line of its own; with --secret-file it
is written to a new file instead.`

const keysRotateExample = `  keystile keys rotate key_… --grace 24h --secret-file new.key
  keystile keys rotate key_… --reason compromised`

func (c Config) keysRotate() *cobra.Command {
	var grace, expiresIn span
	var sink secretSink
	var reason string
	var dropOldest bool
	cmd := &cobra.Command{Use: "rotate KEY", Short: "Give a key a new secret", Long: keysRotateLong, Example: keysRotateExample, Args: cobra.ExactArgs(1)}
	cmd.Flags().Var(&grace, "grace", "how long the old secret works on, such as 24h or 0")
	cmd.Flags().Var(&expiresIn, "expires-in", "the key's new life, such as 90d (default: its original lifetime afresh)")
	cmd.Flags().StringVar(&reason, "reason", "", "scheduled, compromised or other; compromised ends the old secret at once")
	cmd.Flags().BoolVar(&dropOldest, "drop-oldest", false, "while an earlier grace lasts, end the oldest secret now")
	sink.flags(cmd)
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("KEY", "key", args[0]); err != nil {
			return err
		}
		wanted := admin.KeyRotate{Reason: optional(s, "reason", admin.KeyRotateReason(reason))}
		compromised := wanted.Reason != nil && *wanted.Reason == admin.Compromised
		if !grace.set && !compromised {
			return usage(errors.New("give --grace: how long the old secret works on, such as --grace 24h; --grace 0 ends it at once"))
		}
		var err error
		if wanted.GraceSeconds, err = grace.seconds("--grace"); err != nil {
			return err
		}
		if wanted.ExpiresInDays, err = expiresIn.days(); err != nil {
			return err
		}
		if dropOldest {
			oldest := admin.KeyRotateDropOldest
			wanted.Drop = &oldest
		}
		if err := sink.open(s); err != nil {
			return err
		}
		defer sink.close()
		change, err := s.client.RotateKey(ctx, args[0], wanted, s.options()...)
		if err != nil {
			return adviseOnRotation(err)
		}
		s.did("rotate", "rotated", "key "+args[0])
		if err := s.handOverKey(&sink, change, s.rotationReached); err != nil {
			return err
		}
		s.afterRotation(&change.Key)
		return nil
	})
}

// rotationReached is what replicas do that know of a rotation: they deny the old secret, or, for
// its grace, both work.
func (s *session) rotationReached(k *admin.Key) reached {
	if len(k.Secrets) < 2 {
		return reached{verb: "old secret denied"}
	}
	until := "until it is revoked"
	if end := k.Secrets[1].ExpiresAt; end != nil {
		until = "until " + moment(*end, s.config.now())
	}
	return reached{verb: "known", besides: "the old secret works " + until}
}

// adviseOnRotation knows the one conflict that has a flag.
func adviseOnRotation(err error) error {
	var refusal *admin.Error
	if errors.As(err, &refusal) && refusal.Code == "rotation_in_progress" {
		return &ExitError{Code: ExitUnexpected, Err: &toldError{
			text:  printable(err.Error()) + "; wait for the earlier grace to end, or give --drop-oldest to end the oldest secret now",
			cause: err,
		}}
	}
	return err
}

// afterRotation tells how to see that the old secret is no longer used, and how
// to end it then.
func (s *session) afterRotation(k *admin.Key) {
	if len(k.Secrets) < 2 {
		s.next("to see the key", "keystile keys get "+k.ID)
		return
	}
	s.next("watch the old secret's last use", "keystile keys get "+k.ID)
	for _, old := range k.Secrets[1:] {
		s.next("then end it", fmt.Sprintf("keystile keys secrets revoke %s %s", k.ID, old.ID))
	}
}
