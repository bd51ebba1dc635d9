package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/sdk/admin"
)

const (
	// importChunk is how many lines go in one request: as many as the service
	// puts into one transaction.
	importChunk = 500
	// maxImportBytes bounds one request besides, and maxImportLine one line.
	maxImportBytes = 1 << 20
	maxImportLine  = 64 << 10
)

const keysImportLong = `Import keys of another system by the SHA-256 of their secrets (platform admins).

FILE (- is standard input) has one JSON object a line, such as
{"name":"ci","environment":"live","scopes":["tickets:read"],"sha256":"…"}, with
expires_at and hint if there are any. The format tells which presented keys are
looked up: a literal prefix, and how many characters of which alphabet follow.

A bad row stops nothing: it is printed with its line, never with its content, and
the command ends with 4. What is there already is a duplicate, so that a second
run imports nothing twice, and ends with 0.`

const keysImportExample = `  keystile keys import --org org_… --prefix acme_ --length 32 --alphabet base62 keys.jsonl
  keystile keys import --org org_… --prefix acme_ --length 32 --alphabet base62 --dry-run - <keys.jsonl`

func (c Config) keysImport() *cobra.Command {
	var org string
	var format admin.ImportKeysParams
	cmd := &cobra.Command{
		Use: "import FILE|-", Short: "Import keys of another system", Long: keysImportLong, Example: keysImportExample, Args: cobra.ExactArgs(1),
	}
	orgFlag(cmd, &org)
	cmd.Flags().StringVar(&format.FormatPrefix, "prefix", "", "the literal with which every secret begins")
	cmd.Flags().IntVar(&format.FormatLength, "length", 0, "how many characters follow it")
	cmd.Flags().StringVar(&format.FormatAlphabet, "alphabet", "", "of which: hex, base32, base36, base58, base62, base64, base64url, or the characters")
	return c.changing(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := s.needs("--prefix PREFIX", "--length N", "--alphabet base62"); err != nil {
			return err
		}
		in, size, err := openInput(args[0], cmd.InOrStdin())
		if err != nil {
			return err
		}
		defer func() { _ = in.Close() }()
		org, err := s.organization(ctx, org)
		if err != nil {
			return err
		}
		run := &importRun{s: s, org: org, format: format, rows: newRowWriter(s), bar: s.progress("importing", size, true)}
		err = run.all(ctx, in)
		return run.finish(err)
	})
}

// openInput opens a file that the operator names, and tells its size; -1 when
// that is not known.
func openInput(name string, stdin io.Reader) (io.ReadCloser, int64, error) {
	if name == "-" {
		return io.NopCloser(stdin), -1, nil
	}
	file, err := os.Open(name) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, 0, usage(err)
	}
	info, err := file.Stat()
	switch {
	case err != nil:
		_ = file.Close()
		return nil, 0, usage(err)
	case info.IsDir():
		_ = file.Close()
		return nil, 0, usage(fmt.Errorf("%s is a directory; name a file of JSON lines", name))
	case !info.Mode().IsRegular():
		return file, -1, nil
	}
	return file, info.Size(), nil
}

// importRun brings one file in, chunk after chunk.
type importRun struct {
	s      *session
	org    string
	format admin.ImportKeysParams
	rows   *rowWriter
	bar    *progress

	chunk []byte
	// lines are the file's line numbers of the chunk's lines.
	lines []int
	// answered is set by the first chunk that went through.
	answered                      bool
	imported, rejected, duplicate int
}

func (r *importRun) all(ctx context.Context, in io.Reader) error {
	lines := lineReader{in: bufio.NewReaderSize(in, maxImportLine)}
	for {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return r.send(ctx)
		case errors.Is(err, errLineTooLong):
			// In the order of the file.
			if err := r.send(ctx); err != nil {
				return err
			}
			if err := r.reject(admin.RejectedRow{Line: lines.number, Code: admin.InvalidRow, Message: "is longer than 64 KiB"}); err != nil {
				return err
			}
			continue
		case err != nil:
			return fmt.Errorf("read line %d: %w", lines.number, err)
		case len(line) == 0:
			continue
		}
		if len(r.lines) > 0 && len(r.chunk)+len(line) >= maxImportBytes {
			if err := r.send(ctx); err != nil {
				return err
			}
		}
		r.chunk = append(append(r.chunk, line...), '\n')
		r.lines = append(r.lines, lines.number)
		if len(r.lines) == importChunk {
			if err := r.send(ctx); err != nil {
				return err
			}
		}
	}
}

func (r *importRun) send(ctx context.Context) error {
	if len(r.lines) == 0 {
		return nil
	}
	result, err := r.s.client.ImportKeys(ctx, r.org, r.format, r.chunk, r.s.options()...)
	if err != nil {
		return err
	}
	r.answered = true
	r.imported += result.Imported
	for _, row := range result.Rejected {
		if row.Line < 1 || row.Line > len(r.lines) {
			return fmt.Errorf("the service rejects line %d of %d; this client does not fit it", row.Line, len(r.lines))
		}
		row.Line = r.lines[row.Line-1]
		if err := r.reject(row); err != nil {
			return err
		}
	}
	r.bar.add(len(r.chunk))
	r.chunk, r.lines = r.chunk[:0], r.lines[:0]
	return nil
}

func (r *importRun) reject(row admin.RejectedRow) error {
	r.rejected++
	if row.Code == admin.Duplicate {
		r.duplicate++
	}
	r.bar.clear()
	return r.rows.write(row)
}

// finish prints the summary, of a run that broke off as well.
func (r *importRun) finish(broken error) error {
	r.bar.finish()
	if broken != nil && !r.answered && r.rejected == 0 {
		return broken
	}
	err := errors.Join(broken, r.rows.close(r.imported, r.rejected, r.s.dryRun))
	would := "imported"
	if r.s.dryRun {
		would = "nothing has changed; would have imported"
	}
	r.s.say("%s %s; %d rejected, %d of them duplicates", would, plural(int64(r.imported), "key"), r.rejected, r.duplicate)
	switch {
	case broken != nil && len(r.lines) > 0:
		r.s.say("broken off at line %d: mend that and run it again, it imports nothing twice", r.lines[0])
		return err
	case err != nil:
		return err
	case r.rejected > r.duplicate:
		r.s.say("mend the rejected rows and run it again; what is imported becomes a duplicate")
		return &ExitError{Code: ExitFindings}
	}
	r.s.next("to see them", "keystile keys list --org "+r.org)
	return nil
}

var errLineTooLong = errors.New("the line is too long")

// lineReader reads lines of a bounded length, and goes on after a longer one.
type lineReader struct {
	in     *bufio.Reader
	number int
}

// next returns a line without its end and surrounding white space; it is valid
// until the next call.
func (l *lineReader) next() ([]byte, error) {
	line, err := l.in.ReadSlice('\n')
	l.number++
	tooLong := errors.Is(err, bufio.ErrBufferFull)
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = l.in.ReadSlice('\n')
	}
	switch {
	case tooLong && (err == nil || errors.Is(err, io.EOF)):
		return nil, errLineTooLong
	case err == nil, errors.Is(err, io.EOF) && len(line) > 0:
		return bytes.TrimSpace(line), nil
	}
	return nil, err
}
