package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	keystile "github.com/supportstation/keystile/sdk"
	"github.com/supportstation/keystile/sdk/admin"
)

func (c Config) policyWhy() *cobra.Command {
	cmd := &cobra.Command{
		Use: "why DECISION", Short: "Tell what was decided, and why",
		Long: `Tell what was decided, and why, by the decision's id: dec_… in every answer, and in every problem that a
client was sent.

Denials are kept for some days, and of allows one in so many; of a flood only a part is kept. What was
presented, the path and the whole address are never kept.
`,
		Example: "  keystile policy why dec_01m86xwgdnfq2tq87cd00mzsxq", Args: cobra.ExactArgs(1),
	}
	return c.reading(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := checkID("the decision", "dec", args[0]); err != nil {
			return err
		}
		d, err := s.client.GetDecision(ctx, args[0])
		var refusal *admin.Error
		if errors.As(err, &refusal) && refusal.Status == http.StatusNotFound {
			// The service says why, as far as the id tells it; no list would tell more.
			return &ExitError{Code: ExitUnexpected, Err: &toldError{text: printable(err.Error()), cause: err}}
		}
		if err != nil {
			return err
		}
		if err := s.show(d, func(p *page) { p.keptDecision(d, c) }); err != nil {
			return err
		}
		if command := explaining(d); command != "" {
			s.next("which rule, and what would allow it", command)
		}
		return nil
	})
}

func (p *page) keptDecision(d *admin.KeptDecision, c Config) {
	colour, word := "31", "DENIED"
	if d.Allow {
		colour, word = "32", "ALLOWED"
	}
	p.headline(colour, word, fmt.Sprintf("%s (%d)", d.Code, d.Status))
	p.row("why", whyText(d))
	for _, code := range d.Reasons {
		if code != d.Code {
			p.row("also", code)
		}
	}
	p.row("at", moment(d.At, c.now()))
	p.row("request", requestText(d))
	p.row("action", orEmpty(d.Action))
	p.row("required", strings.Join(d.RequiredScopes, " "))
	p.row("missing", strings.Join(d.MissingScopes, " "))
	if d.KeyID != nil {
		p.row("key", *d.KeyID+", "+cmp.Or(orEmpty(d.Environment), "of no environment"))
		p.row("secret", orEmpty(d.SecretID))
		p.row("organization", orEmpty(d.OrganizationID))
	}
	p.row("asked by", orEmpty(d.CallerID))
	client := orEmpty(d.Network)
	if d.Browser {
		client = strings.TrimPrefix(client+", a browser", ", ")
	}
	p.row("client", client)
	p.row("policy", orEmpty(d.PolicyRevision))
	for _, part := range d.Degraded {
		p.row("degraded", string(part)+" did not answer, and was stood in for")
	}
	p.row("decision", d.ID)
}

func requestText(d *admin.KeptDecision) string {
	switch {
	case d.Method == nil && d.Route == nil:
		return ""
	case d.Route == nil:
		return orEmpty(d.Method) + " of a path that matched no route, or was not looked at"
	}
	return strings.TrimSpace(orEmpty(d.Method) + " " + *d.Route)
}

// whyText is the code in a sentence.
func whyText(d *admin.KeptDecision) string {
	switch keystile.Code(d.Code) {
	case keystile.CodeAllowed:
		return "Nothing was against it."
	case keystile.CodeKeyMissing:
		return "The client sent no key."
	case keystile.CodeKeyMalformed:
		return "What the client sent does not have the form of a key: it is cut off, mistyped, or something else."
	case keystile.CodeKeyUnknown:
		return "No key has the secret that the client sent."
	case keystile.CodeKeyRevoked:
		return "The key, or the secret that the client sent, was revoked."
	case keystile.CodeKeyExpired:
		return "The key, or the secret that the client sent, had expired."
	case keystile.CodeKeyDisabled:
		return "The key was disabled."
	case keystile.CodeOrganizationSuspended:
		return "The key's organization was suspended."
	case keystile.CodeEnvironmentMismatch:
		return "The key's environment is not one that the caller serves, or not the one asked for."
	case keystile.CodeOrganizationMismatch:
		return "The resource belongs to another organization than the key."
	case keystile.CodeIPNotAllowed:
		return "The key is fenced by address, and the client's was outside or unknown."
	case keystile.CodeAmbiguousPath:
		return "Two readers could understand the path differently."
	case keystile.CodeUnknownRoute:
		return "The policy's catalogue has no such route or action."
	case keystile.CodeBrowserUse:
		return "The key was used in a browser."
	case keystile.CodeInsufficientScope:
		return "The key lacked " + cmp.Or(strings.Join(d.MissingScopes, " and "), "a scope") + "."
	case keystile.CodeRateLimited:
		return "The limit was used up."
	case keystile.CodeUnavailable:
		return "It could not be decided; the service's log says why."
	case keystile.CodePolicyDenied:
		return "A rule of the policy denied it: " + cmp.Or(strings.Join(d.Reasons, ", "), "without a code") + "."
	}
	return d.Title + "."
}

// explaining is the command that tells more, "" where policy had no part in it.
func explaining(d *admin.KeptDecision) string {
	if d.Allow || d.KeyID == nil || d.Status == http.StatusUnauthorized || d.Method == nil {
		return ""
	}
	words := []string{*d.Method, cmp.Or(orEmpty(d.Route), "PATH")}
	if d.Action != nil {
		words = append(words, "--action", *d.Action)
	}
	return "keystile policy explain " + strings.Join(words, " ") + " --key-file FILE"
}
