package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// maxRow bounds one line of an import in bytes.
const maxRow = 16 << 10

// ImportKeys implements api.StrictServerInterface.
func (m *management) ImportKeys(ctx context.Context, in api.ImportKeysRequestObject) (api.ImportKeysResponseObject, error) {
	ctx, r := requestOf(ctx)
	var org authz.OrganizationID
	if err := pathID(in.Org, &org, "organization"); err != nil {
		return nil, err
	}
	format, err := authz.NewForeignFormat(in.Params.FormatPrefix, in.Params.FormatLength, in.Params.FormatAlphabet)
	if err != nil {
		return nil, badField("", err.Error()) // its sentences are made of bounds alone
	}
	body, err := io.ReadAll(in.Body)
	if err != nil {
		return nil, fmt.Errorf("read a buffered body: %w", err)
	}
	result, err := m.service.ImportKeys(ctx, r, org, format, readRows(body))
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.ImportKeys200JSONResponse{
		Imported: result.Imported, Rejected: each(result.Rejected, toRejectedRow), DryRun: r.DryRun,
	}, nil
}

// readRows reads JSON lines, one more than an import may have at most: manage tells
// that it is too many. A blank line counts as a line and is no row.
func readRows(body []byte) []manage.ImportRow {
	var rows []manage.ImportRow
	line := 0
	for text := range bytes.Lines(body) {
		line++
		if text = bytes.TrimSpace(text); len(text) == 0 {
			continue
		}
		if len(rows) > manage.MaxImportRows {
			break
		}
		row := readRow(text)
		row.Line = line
		rows = append(rows, row)
	}
	return rows
}

// importedRow is one line of an import, by exact names.
type importedRow struct {
	Name        string   `json:"name"`
	Environment string   `json:"environment"`
	Scopes      []string `json:"scopes"`
	SHA256      string   `json:"sha256"`
	ExpiresAt   *string  `json:"expires_at"`
	Hint        *string  `json:"hint"`
}

// rowFields are its names, as they are told.
const rowFields = "name, environment, scopes, sha256, expires_at, hint"

// readRow reads one line strictly; what is wrong is in the row's Problem, without
// anything of the line.
func readRow(text []byte) manage.ImportRow {
	problem := func(pointer, message string) manage.ImportRow {
		return manage.ImportRow{Pointer: pointer, Problem: message}
	}
	if len(text) > maxRow {
		return problem("", "the line must have at most 16384 bytes")
	}
	if text[0] != '{' {
		return problem("", "the line must be a JSON object")
	}
	var in importedRow
	if err := json.Unmarshal(text, &in, json.RejectUnknownMembers(true)); err != nil {
		return problem(rowProblem(err))
	}
	row := manage.ImportRow{
		Name: in.Name, Environment: authz.Environment(in.Environment), Scopes: words[authz.Scope](in.Scopes), Hint: value(in.Hint),
	}
	if in.SHA256 != "" {
		hash, ok := authz.ParseSecretHash(in.SHA256)
		if !ok {
			return problem("/sha256", "must be the SHA-256 of the secret as 64 hexadecimal characters")
		}
		row.Hash = hash
	}
	if in.ExpiresAt != nil {
		if row.ExpiresAt.UnmarshalText([]byte(*in.ExpiresAt)) != nil {
			return problem("/expires_at", "must be an RFC 3339 time such as 2027-01-31T00:00:00Z")
		}
		if row.ExpiresAt.IsZero() { // to manage that would mean never
			return problem("/expires_at", "must be in the future")
		}
	}
	return row
}

// rowProblem says where a line is wrong, and how.
func rowProblem(err error) (pointer, message string) {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return "", "has a field twice"
	}
	if errors.Is(err, json.ErrUnknownName) {
		return "", "has a field that is not one of " + rowFields + "; names are case-sensitive"
	}
	var semantic *json.SemanticError
	if !errors.As(err, &semantic) {
		return "", "is not valid JSON in UTF-8"
	}
	// The pointer is told as far as its names are ours.
	field, _, _ := strings.Cut(strings.TrimPrefix(string(semantic.JSONPointer), "/"), "/")
	switch {
	case field == "scopes":
		return "/scopes", "must be a list of strings"
	case slices.Contains(strings.Split(rowFields, ", "), field):
		return "/" + field, "must be a string"
	}
	return "", "must be a JSON object of " + rowFields
}
