package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

func (c Config) auditLogExport() *cobra.Command {
	var f auditFilter
	var name string
	cmd := &cobra.Command{
		Use: "export", Short: "Write all events as JSON lines, oldest first",
		Long: `Write all events of a chain as JSON lines, oldest first, to standard output or to
a new file.`,
		Example: "  keystile audit-log export --org org_… --file acme.jsonl",
	}
	f.flags(cmd)
	cmd.Flags().StringVar(&name, "file", "", "write to this new file (0600)")
	cmd = c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		return s.chain(ctx, f.org, func(org string) error {
			// A refusal comes with the first page, before anything is written.
			newest := f.params(s, admin.ListAuditLogParamsOrderNewest)
			one := 1
			newest.Limit = &one
			page, err := s.client.ListAuditLog(ctx, org, newest)
			if err != nil {
				return err
			}
			total := int64(-1)
			if len(page.Items) > 0 && newest.Action == nil && newest.Target == nil {
				total = page.Items[0].Sequence
			}
			return s.export(ctx, org, name, total, f.params(s, admin.ListAuditLogParamsOrderOldest))
		})
	})
	if output := cmd.Flags().Lookup("output"); output != nil {
		output.Hidden = true // its data has one form
	}
	return cmd
}

func (s *session) export(ctx context.Context, org, name string, total int64, filter admin.ListAuditLogParams) error {
	w := s.cmd.OutOrStdout()
	if name != "" {
		file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator names the file
		if errors.Is(err, fs.ErrExist) {
			return usage(fmt.Errorf("--file: %s is there already; name a new file", name))
		}
		if err != nil {
			return usage(fmt.Errorf("--file: %w", err))
		}
		count, err := s.exportTo(ctx, file, org, total, filter)
		return s.exported(count, org, name, errors.Join(err, file.Close()))
	}
	count, err := s.exportTo(ctx, w, org, total, filter)
	return s.exported(count, org, "", err)
}

func (s *session) exportTo(ctx context.Context, w io.Writer, org string, total int64, filter admin.ListAuditLogParams) (int64, error) {
	page := maxPage
	filter.Limit = &page
	out := bufio.NewWriter(w)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	bar := s.progress("exporting", total, false)
	defer bar.finish()
	var count int64
	for event, err := range s.client.AuditLog(ctx, org, filter) {
		if err != nil {
			return count, errors.Join(err, out.Flush())
		}
		if err := encoder.Encode(event); err != nil {
			return count, printed(err)
		}
		count++
		bar.add(1)
	}
	return count, printed(out.Flush())
}

func (s *session) exported(count int64, org, name string, err error) error {
	where := ""
	if name != "" {
		where = " to " + name
	}
	if err != nil {
		s.say("broken off after %s%s; the rest is missing", plural(count, "event"), where)
		return err
	}
	s.say("exported %s%s", plural(count, "event"), where)
	verify := "keystile audit-log verify"
	if org != "" {
		verify += " --org " + org
	}
	s.next("to check the chain", verify)
	return nil
}
