package manage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/supportstation/keystile/authz"
)

const (
	// MaxImportRows bounds one import, importBatch one transaction of it.
	MaxImportRows = 10_000
	importBatch   = 500
)

// ImportRow is one line of an import as it was read.
type ImportRow struct {
	// Line counts from 1.
	Line        int
	Name        string
	Environment authz.Environment
	Scopes      []authz.Scope
	Hash        authz.SecretHash
	// ExpiresAt is zero for a key that does not expire.
	ExpiresAt time.Time
	// Hint is what may be shown of the secret, or empty.
	Hint string
	// Problem says why the line could not be read, and Pointer where; the other
	// fields mean nothing then.
	Problem, Pointer string
}

// The codes of rejected rows.
const (
	RejectedInvalid   = "invalid_row"
	RejectedDuplicate = "duplicate"
	RejectedByPolicy  = "policy_denied"
)

// RejectedRow is a row that was not imported.
type RejectedRow struct {
	Line    int
	Code    string
	Pointer string
	Message string
}

// ImportResult tells what became of the rows.
type ImportResult struct {
	Imported int
	// Rejected are in the order of their lines.
	Rejected []RejectedRow
}

// ImportKeys stores keys that another system has made, by the hashes of their
// secrets, in transactions of at most 500. Platform admins alone; the plan's number of
// keys does not bound an import. A bad row stops nothing. A hash that is there
// already, in whatever organization, is rejected without telling where.
func (s *Service) ImportKeys(
	ctx context.Context, r Request, org authz.OrganizationID, f authz.ForeignFormat, rows []ImportRow,
) (*ImportResult, error) {
	op := operation{action: actionKeysImport}
	out := &ImportResult{}
	if len(rows) == 0 {
		rows = []ImportRow{{Line: 1, Problem: "the body has no rows; send JSON lines"}} // who may ask is told first
	}
	seen := make(map[authz.SecretHash]bool, len(rows))
	replayed := false
	for batch := range slices.Chunk(rows, importBatch) {
		var part ImportResult
		// The rows are idempotent by themselves; the key only gives the same answer again.
		step := r
		step.IdempotencyKey = ""
		_, err := s.change(ctx, step, nil, func(ctx context.Context, w Writer) (outcome, error) {
			part = ImportResult{} // of this transaction
			o, err := livingFor(ctx, w, r, op, org)
			if err != nil {
				return outcome{}, err
			}
			if err := s.checkImport(f, rows); err != nil {
				return outcome{}, err
			}
			if scope := r.scope(); scope != nil && out.Imported+len(out.Rejected) == 0 {
				if replayed, err = recall(ctx, w, *scope, r, out); err != nil || replayed {
					return outcome{}, err
				}
			}
			return s.importBatch(ctx, w, r, o, f, batch, seen, &part)
		})
		if err != nil {
			return nil, importStopped(err, out)
		}
		if replayed {
			return out, nil
		}
		out.Imported += part.Imported
		out.Rejected = append(out.Rejected, part.Rejected...)
	}
	return out, s.rememberImport(ctx, r, out)
}

func (s *Service) checkImport(f authz.ForeignFormat, rows []ImportRow) error {
	switch {
	case len(rows) > MaxImportRows:
		return outOfRange("", "an import has at most 10,000 rows; send the rest in another one")
	case s.format.Overlaps(f):
		return outOfRange("", "the format is that of this service's own secrets, but without their checksum: every typing error would be looked up")
	}
	return nil
}

// importStopped tells how far an import had got: what is committed stays.
func importStopped(err error, out *ImportResult) error {
	var known *authz.Error
	if out.Imported == 0 || !errors.As(err, &known) {
		return err
	}
	stopped := *known
	stopped.Message = fmt.Sprintf("%s; %d rows are imported already, and a second run imports nothing twice", known.Message, out.Imported)
	return &stopped
}

func recall(ctx context.Context, w Writer, scope IdempotencyScope, r Request, out *ImportResult) (bool, error) {
	earlier, err := w.Remembered(ctx, scope)
	if err != nil || earlier == nil {
		return false, err //nolint:wrapcheck // change does
	}
	_, err = replay(earlier, r, out)
	return err == nil, err
}

func (s *Service) rememberImport(ctx context.Context, r Request, out *ImportResult) error {
	scope := r.scope()
	if scope == nil {
		return nil
	}
	_, err := s.store.Write(context.WithoutCancel(ctx), true, func(ctx context.Context, w Writer) error {
		return remember(ctx, w, *scope, r, outcome{}, out)
	})
	return translate(err)
}

func (s *Service) importBatch(
	ctx context.Context, w Writer, r Request, o *Organization, f authz.ForeignFormat, batch []ImportRow,
	seen map[authz.SecretHash]bool, part *ImportResult,
) (outcome, error) {
	var keys []ImportedKey
	var lines []int
	reject := func(line int, code, pointer, message string) {
		part.Rejected = append(part.Rejected, RejectedRow{line, code, pointer, message})
	}
	const duplicate = "a key with this hash is there already"
	for i := range batch {
		row := &batch[i]
		k, err := s.importedKey(w.Now(), r, o, f, row)
		if err == nil && seen[row.Hash] {
			reject(row.Line, RejectedDuplicate, "/sha256", duplicate)
			continue
		}
		if err == nil {
			seen[row.Hash] = true
			err = s.decide(ctx, r, actionKeysImport, o, nil, k.document(w.Now()))
		}
		var refused *authz.Error
		switch {
		case err == nil:
			keys, lines = append(keys, ImportedKey{*k, row.Hash}), append(lines, row.Line)
		case !errors.As(err, &refused):
			return outcome{}, err
		case refused.Kind == authz.KindInvalid:
			reject(row.Line, RejectedInvalid, refused.Pointer, refused.Message)
		case refused.Kind == authz.KindForbidden:
			reject(row.Line, RejectedByPolicy, "", reasons(refused))
		default:
			return outcome{}, err
		}
	}
	duplicates, err := w.ImportKeys(ctx, TenantOf(r.Actor), keys)
	if err != nil {
		return outcome{}, err //nolint:wrapcheck // change does
	}
	out := outcome{}
	for i := range keys {
		if slices.Contains(duplicates, i) {
			reject(lines[i], RejectedDuplicate, "/sha256", duplicate)
			continue
		}
		k := &keys[i].Key
		if out, err = logged(out, o.ID, actionKeysImport, k.ID.String(), nil, k.document(w.Now())); err != nil {
			return outcome{}, err
		}
		part.Imported++
	}
	slices.SortFunc(part.Rejected, func(a, b RejectedRow) int { return a.Line - b.Line })
	if part.Imported == 0 {
		return out, nil
	}
	// Only what came with a key: a typing error in a format must not stay for ever.
	declared, err := w.DeclareFormat(ctx, TenantOf(r.Actor), f)
	if err != nil || !declared {
		return out, err //nolint:wrapcheck // change does
	}
	return logged(out, authz.OrganizationID{}, recordDeclareFormat, o.ID.String(), nil, map[string]any{
		"prefix": f.Prefix, "length": f.Length, "alphabet": f.Alphabet,
	})
}

// recordDeclareFormat is how the audit log tells that a format came with an import.
const recordDeclareFormat = "formats.declare"

// MayImport tells, before any row is read, whether an actor may import into an
// organization: a refusal is the one that ImportKeys would give.
func (s *Service) MayImport(ctx context.Context, r Request, org authz.OrganizationID) error {
	if r.Actor.Role == authz.RolePlatformAdmin {
		return nil
	}
	return s.read(ctx, func(ctx context.Context, re Reader) error {
		_, err := livingFor(ctx, re, r, operation{action: actionKeysImport}, org)
		return err
	})
}

func reasons(err *authz.Error) string {
	texts := make([]string, 0, len(err.Reasons))
	for _, r := range err.Reasons {
		texts = append(texts, r.Message)
	}
	if len(texts) == 0 {
		return err.Message
	}
	return strings.Join(texts, " ")
}

// importedKey checks one row.
func (s *Service) importedKey(
	now time.Time, r Request, o *Organization, f authz.ForeignFormat, row *ImportRow,
) (*Key, error) {
	if row.Problem != "" {
		return nil, invalid(RejectedInvalid, row.Pointer, row.Problem)
	}
	if row.Hash == (authz.SecretHash{}) {
		return nil, invalid("missing_field", "/sha256", "is required: the SHA-256 of the secret as 64 hexadecimal characters")
	}
	if row.Hash == authz.NewSecret("").Hash() {
		return nil, outOfRange("/sha256", "must not be that of the empty text: whoever sends no key would have this one")
	}
	if row.Hash == authz.NewSecret(row.Name).Hash() || f.Accepts(row.Name) {
		return nil, outOfRange("/name", "must not be a secret")
	}
	k, err := s.newKey(now, r, o, KeyInput{
		Name: row.Name, Environment: row.Environment, Scopes: row.Scopes, ExpiresAt: row.ExpiresAt,
	})
	if err != nil {
		return nil, err
	}
	k.Secrets[0].Hint, err = importedHint(f, row)
	return k, err
}

// importedHint refuses a hint that tells more of a secret than our own hints do:
// the prefix, four characters, "…", four characters.
func importedHint(f authz.ForeignFormat, row *ImportRow) (string, error) {
	if row.Hint == "" {
		return f.Prefix + "…", nil
	}
	hint := strings.Replace(row.Hint, "...", "…", 1)
	head, tail, ok := strings.Cut(hint, "…")
	head, prefixed := strings.CutPrefix(head, f.Prefix)
	if !ok || !prefixed || utf8.RuneCountInString(head) > 4 || utf8.RuneCountInString(tail) > 4 ||
		strings.Trim(head+tail, f.Alphabet) != "" {
		return "", outOfRange("/hint", "must be the format's prefix, at most 4 characters, … and at most 4 characters; never the secret")
	}
	return hint, nil
}
