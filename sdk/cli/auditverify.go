package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

const (
	// maxCheckpointLine is the longest line that the service reads.
	maxCheckpointLine = 64 << 10
	// maxVerifyLines and maxVerifyBytes bound what one request holds.
	maxVerifyLines = 10_000
	maxVerifyBytes = 1 << 20
)

const auditLogVerifyLong = `Check that no event of a chain has been edited, removed or moved: an
organization's chain with --org, else all of them.

Whoever can write to the database could cut a chain's end off. Checkpoints, which
the service writes to its log, show that: --checkpoint reads such a log (- is
standard input), or a file of checkpoints, and holds its lines against the chains.

It ends with 4 when something is wrong.`

func (c Config) auditLogVerify() *cobra.Command {
	var org, name string
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that the trail has not been edited or cut", Long: auditLogVerifyLong,
		Example: "  keystile audit-log verify --checkpoint /var/log/keystile.log",
	}
	cmd.Flags().StringVar(&org, "org", "", "the id of the organization whose chain it is")
	cmd.Flags().StringVar(&name, "checkpoint", "", "a log, or a file of checkpoints, to hold against the chains; - is standard input")
	return c.reading(cmd, func(ctx context.Context, s *session, _ []string) error {
		batches := [][]string{nil}
		if name != "" {
			in, _, err := openInput(name, cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer func() { _ = in.Close() }()
			if batches, err = readCheckpoints(in); err != nil {
				return usage(fmt.Errorf("--checkpoint: %w", err))
			}
		}
		var result admin.AuditLogVerification
		err := s.chain(ctx, org, func(org string) (err error) {
			result, err = s.verify(ctx, org, batches)
			return err
		})
		if err != nil {
			return err
		}
		return s.verified(&result)
	})
}

// verify asks once for each batch, and joins the answers.
func (s *session) verify(ctx context.Context, org string, batches [][]string) (admin.AuditLogVerification, error) {
	all := admin.AuditLogVerification{Valid: true, Problems: []admin.AuditProblem{}}
	for _, batch := range batches {
		one, err := s.client.VerifyAuditLog(ctx, org, batch)
		if err != nil {
			return all, err
		}
		all.Valid = all.Valid && one.Valid
		all.Chains, all.Rows = one.Chains, one.Rows
		all.Checkpoints += one.Checkpoints
		for _, problem := range one.Problems {
			if !slices.ContainsFunc(all.Problems, func(known admin.AuditProblem) bool { return sameProblem(known, problem) }) {
				all.Problems = append(all.Problems, problem)
			}
		}
	}
	return all, nil
}

func sameProblem(a, b admin.AuditProblem) bool {
	return a.Code == b.Code && a.Message == b.Message && chainText(a) == chainText(b) && sequenceText(a) == sequenceText(b)
}

func (s *session) verified(result *admin.AuditLogVerification) error {
	sound := result.Valid && len(result.Problems) == 0
	err := s.show(result, func(p *page) {
		checked := fmt.Sprintf("%s in %s, %s", plural(result.Rows, "event"), plural(result.Chains, "chain"), plural(int64(result.Checkpoints), "checkpoint"))
		if sound {
			p.headline("32", "SOUND", checked)
			return
		}
		p.headline("31", "NOT SOUND", checked)
		rows := make([][]string, len(result.Problems))
		for i, problem := range result.Problems {
			rows[i] = []string{chainText(problem), sequenceText(problem), string(problem.Code), problem.Message}
		}
		p.table([]string{"chain", "#", "problem", "what"}, rows)
	})
	switch {
	case err != nil:
		return err
	case !sound:
		s.say("keep the database and the log as they are; `keystile audit-log list --org ORG --oldest` shows what is around a number")
		return &ExitError{Code: ExitFindings}
	case result.Checkpoints == 0:
		s.say("a cut end shows only against a checkpoint: give --checkpoint the service's log")
	}
	return nil
}

func chainText(p admin.AuditProblem) string {
	switch {
	case p.OrganizationID != nil:
		return *p.OrganizationID
	case p.Code == admin.BadCheckpoint && p.Sequence == nil:
		return "-" // it is about a line, and no chain
	}
	return "platform"
}

func sequenceText(p admin.AuditProblem) string {
	if p.Sequence == nil {
		return "-"
	}
	return strconv.FormatInt(*p.Sequence, 10)
}

// readCheckpoints finds the checkpoints among the lines of a log.
func readCheckpoints(in io.Reader) ([][]string, error) {
	var batches [][]string
	var batch []string
	size := 0
	lines := lineReader{in: bufio.NewReaderSize(in, 2*maxCheckpointLine)} // a log quotes what it holds
	for {
		line, err := lines.next()
		switch {
		case errors.Is(err, errLineTooLong):
			continue
		case errors.Is(err, io.EOF):
			if len(batch) > 0 {
				batches = append(batches, batch)
			}
			if len(batches) == 0 {
				return nil, errors.New("it holds no checkpoint; the service writes them to its log")
			}
			return batches, nil
		case err != nil:
			return nil, fmt.Errorf("read line %d: %w", lines.number, err)
		}
		checkpoint := checkpointIn(line)
		if checkpoint == "" {
			continue
		}
		if len(batch) == maxVerifyLines || len(batch) > 0 && size+len(checkpoint) > maxVerifyBytes {
			batches, batch, size = append(batches, batch), nil, 0
		}
		batch, size = append(batch, checkpoint), size+len(checkpoint)
	}
}

// checkpointMark is the first member of a checkpoint.
const checkpointMark = "keystile_checkpoint"

// checkpointShape is where a checkpoint begins, quoted or not and however damaged;
// the mere word is none.
var checkpointShape = regexp.MustCompile(`\{[\s\\"]*` + checkpointMark + `|"` + checkpointMark + `\\*"\s*:`)

// checkpointIn returns the checkpoint that a line is, or holds under the key
// "checkpoint" of a JSON or text log; "" for none. One that is no longer JSON is
// returned as well: that it has been damaged is for the service to say.
func checkpointIn(line []byte) string {
	if !bytes.Contains(line, []byte(checkpointMark)) {
		return ""
	}
	// What collects logs puts its own words in front.
	if start := bytes.IndexByte(line, '{'); start >= 0 {
		var fields map[string]json.RawMessage
		if json.Unmarshal(line[start:], &fields) == nil {
			return checkpointOf(line[start:], fields)
		}
	}
	return checkpointInText(string(line))
}

// checkpointOf is checkpointIn for a line of JSON.
func checkpointOf(line []byte, fields map[string]json.RawMessage) string {
	if _, ok := fields[checkpointMark]; ok {
		return string(line)
	}
	var embedded string
	if json.Unmarshal(fields["checkpoint"], &embedded) == nil && checkpointShape.MatchString(embedded) {
		return embedded
	}
	// What a log collector has wrapped, such as {"log":"…"} or {"MESSAGE":"…"}.
	for _, field := range fields {
		var wrapped string
		if json.Unmarshal(field, &wrapped) != nil || !strings.Contains(wrapped, checkpointMark) {
			continue
		}
		if found := checkpointIn([]byte(wrapped)); found != "" {
			return found
		}
	}
	return ""
}

// checkpointInText is checkpointIn for a line that is no JSON, such as one of
// slog's TextHandler, which quotes as Go does.
func checkpointInText(line string) string {
	for rest, found := line, true; found; {
		if _, rest, found = strings.Cut(rest, "checkpoint="); !strings.HasPrefix(rest, `"`) {
			continue
		}
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			continue
		}
		if value, err := strconv.Unquote(quoted); err == nil && checkpointShape.MatchString(value) {
			return value
		}
	}
	if at := checkpointShape.FindStringIndex(line); at != nil {
		return line[at[0]:]
	}
	return ""
}
