package cli

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

// NewCallersCommand returns `callers`, with what is done to the backend services
// that ask for checks.
func NewCallersCommand(config Config) *cobra.Command {
	return group("callers", "Manage callers: the services that ask for checks", `A caller is a backend service that asks for checks, with a token (ksc_…). Platform
admins manage callers.`,
		config.callersList(), config.callersGet(), config.callersCreate(), config.callersRotate(), config.callersDelete())
}

func (c Config) callersList() *cobra.Command {
	var pages paging
	var status string
	cmd := &cobra.Command{Use: "list", Short: "List callers, newest first"}
	pages.flags(cmd)
	cmd.Flags().StringVar(&status, "status", "", "only these: active or revoked")
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		filter := admin.ListCallersParams{Status: optional(s, "status", admin.CallerStatus(status))}
		found, err := collect(pages, func(cursor *string, limit *int) ([]admin.Caller, *string, error) {
			filter.Cursor, filter.Limit = cursor, limit
			page, err := s.client.ListCallers(ctx, filter)
			if err != nil {
				return nil, nil, err
			}
			return page.Items, page.NextCursor, nil
		})
		if err != nil {
			return err
		}
		return showList(s, "callers", found, []string{"id", "name", "env", "status", "permissions"}, func(o admin.Caller) []string {
			return []string{o.ID, shortName(o.Name), joined(o.Environments), string(o.Status), joined(o.Permissions)}
		})
	})
}

func (c Config) callersGet() *cobra.Command {
	cmd := &cobra.Command{Use: "get CALLER", Short: "Show a caller and its tokens' hints", Args: cobra.ExactArgs(1)}
	return c.reading(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("CALLER", "caller", args[0]); err != nil {
			return err
		}
		o, err := s.client.GetCaller(ctx, args[0])
		if err != nil {
			return err
		}
		return s.show(o, func(p *page) { c.caller(p, o) })
	})
}

func (c Config) caller(p *page, o *admin.Caller) {
	now := c.now()
	p.row("caller", o.ID)
	p.row("name", o.Name)
	p.row("environments", joined(o.Environments))
	p.row("permissions", joined(o.Permissions))
	p.row("status", string(o.Status))
	p.row("created", moment(o.CreatedAt, now)+" by "+o.CreatedBy)
	p.tokens(o.Tokens, now)
}

func (p *page) tokens(tokens []admin.Token, now time.Time) {
	for _, token := range tokens {
		line := token.ID + "  " + token.Hint
		if token.ExpiresAt != nil {
			line += ", ends " + moment(*token.ExpiresAt, now)
		}
		p.row("token", line)
	}
}

// joined lists words of any kind.
func joined[T ~string](words []T) string {
	texts := make([]string, len(words))
	for i, word := range words {
		texts[i] = string(word)
	}
	return strings.Join(texts, " ")
}

const tokenLong = `
The token is printed once, last, on a line of its own; with --secret-file it is
written to a new file instead.`

func (c Config) callersCreate() *cobra.Command {
	var wanted admin.CallerCreate
	var environments, permissions []string
	var expiresIn span
	var sink secretSink
	cmd := &cobra.Command{
		Use: "create", Short: "Create a caller", Long: "Create a caller." + tokenLong,
		Example: "  keystile callers create --name tickets --env live --env test --secret-file tickets.token",
	}
	cmd.Flags().StringVar(&wanted.Name, "name", "", "what people call it")
	cmd.Flags().StringSliceVar(&environments, "env", nil, "whose keys it may ask about: live or test; repeat it for both")
	cmd.Flags().StringSliceVar(&permissions, "permission", nil, "check (the default), explain, introspect or search; repeat it for more")
	cmd.Flags().Var(&expiresIn, "expires-in", "how long its token lives, such as 90d (default: for ever)")
	sink.flags(cmd)
	return c.changing(cmd, func(ctx context.Context, s *session, _ []string) error {
		if err := s.needs("--name NAME", "--env live or --env test or both"); err != nil {
			return err
		}
		var err error
		if wanted.ExpiresInDays, err = expiresIn.days(); err != nil {
			return err
		}
		wanted.Environments = words[admin.Environment](environments)
		wanted.Permissions = optional(s, "permission", words[admin.Permission](permissions))
		if err := sink.open(s); err != nil {
			return err
		}
		defer sink.close()
		change, err := s.client.CreateCaller(ctx, wanted, s.options()...)
		if err != nil {
			return err
		}
		s.did("create", "created", "caller "+change.Caller.ID)
		if err := s.handOverCaller(&sink, change, reached{}); err != nil {
			return err
		}
		s.next("give it to the service", "KEYSTILE_TOKEN (or KEYSTILE_TOKEN_FILE) in its environment")
		s.next("renew it without downtime", "keystile callers rotate "+change.Caller.ID+" --grace 24h")
		return nil
	})
}

func words[T ~string](given []string) []T {
	typed := make([]T, len(given))
	for i, word := range given {
		typed[i] = T(word)
	}
	return typed
}

func (s *session) handOverCaller(sink *secretSink, change *admin.CallerChange, what reached) error {
	s.warnOfSilence(change.Effective)
	return s.handOver(sink, issued{
		secret: &change.Secret, alreadyShown: change.SecretAlreadyShown,
		noun: "token", rotate: "keystile callers rotate " + change.Caller.ID + " --grace 0",
	}, change, func(p *page) { s.callerPage(p, change, what) })
}

func (s *session) callerPage(p *page, change *admin.CallerChange, what reached) {
	s.config.caller(p, &change.Caller)
	p.receiptOf(change.Effective, what, s.config.now())
}

func (c Config) callersRotate() *cobra.Command {
	var grace, expiresIn span
	var sink secretSink
	cmd := &cobra.Command{
		Use: "rotate CALLER", Short: "Give a caller a new token", Args: cobra.ExactArgs(1),
		Long: `Give a caller a new token. The old one works on for the grace, which has no
default: --grace 24h is a day, --grace 0 ends the old token at once.
` + tokenLong,
		Example: "  keystile callers rotate caller_… --grace 24h --secret-file new.token",
	}
	cmd.Flags().Var(&grace, "grace", "how long the old token works on, such as 24h or 0")
	cmd.Flags().Var(&expiresIn, "expires-in", "how long the new token lives, such as 90d")
	sink.flags(cmd)
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("CALLER", "caller", args[0]); err != nil {
			return err
		}
		if !grace.set {
			return usage(errors.New("give --grace: how long the old token works on, such as --grace 24h; --grace 0 ends it at once"))
		}
		var wanted admin.CallerRotate
		var err error
		if wanted.GraceSeconds, err = grace.seconds("--grace"); err != nil {
			return err
		}
		if wanted.ExpiresInDays, err = expiresIn.days(); err != nil {
			return err
		}
		if err := sink.open(s); err != nil {
			return err
		}
		defer sink.close()
		change, err := s.client.RotateCaller(ctx, args[0], wanted, s.options()...)
		if err != nil {
			return err
		}
		s.did("rotate", "rotated", "caller "+args[0])
		told := reached{verb: "old token denied"}
		if wanted.GraceSeconds > 0 {
			told = reached{verb: "known", besides: "the old token works until its grace is over"}
		}
		if err := s.handOverCaller(&sink, change, told); err != nil {
			return err
		}
		s.next("when the old token ends", "keystile callers get "+args[0])
		return nil
	})
}

func (c Config) callersDelete() *cobra.Command {
	cmd := &cobra.Command{Use: "delete CALLER", Short: "Remove a caller: its tokens are refused for ever", Args: cobra.ExactArgs(1)}
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("CALLER", "caller", args[0]); err != nil {
			return err
		}
		change, err := s.client.DeleteCaller(ctx, args[0], s.options()...)
		if err != nil {
			return err
		}
		s.warnOfSilence(change.Effective)
		if err := s.show(change, func(p *page) { s.callerPage(p, change, reached{verb: "denied"}) }); err != nil {
			return err
		}
		s.did("delete", "deleted", "caller "+args[0])
		s.next("what is left", "keystile callers list --status active")
		return nil
	})
}
