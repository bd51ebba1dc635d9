package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	// AuditTimeout bounds an audit, which judges every key.
	AuditTimeout = 12 * time.Minute
	// maxFindingsLine bounds one line of its answer, in bytes.
	maxFindingsLine = 4 << 20
)

// FindingsReader takes what an audit finds, as it comes. Nil functions take nothing; the first
// error of one ends the audit.
type FindingsReader struct {
	// Progress hears now and then how many of how many keys were judged.
	Progress func(judged, of int64)
	// Key gets each key with findings, or with too little evidence for some.
	Key func(*KeyFindings) error
	// Text gets, in place of keys, the parts of the document that was asked for.
	Text func(string) error
}

// Findings audits the keys of an organization, or of all organizations when org is "" (platform
// admins). What was read is whole only when there is no error. It is not repeated.
func (c *Client) Findings(ctx context.Context, org string, wanted ListFindingsParams, to FindingsReader) (*FindingsSummary, error) {
	bounded, cancel := context.WithTimeoutCause(ctx, AuditTimeout, fmt.Errorf("the service did not answer within %v", AuditTimeout))
	defer cancel()
	var req *http.Request
	var err error
	if org == "" {
		req, err = NewListFindingsRequest(c.base, &wanted)
	} else {
		own := ListOrganizationFindingsParams{
			Since: wanted.Since, Key: wanted.Key, Code: wanted.Code, Severity: wanted.Severity,
			Document: (*ListOrganizationFindingsParamsDocument)(wanted.Document),
		}
		req, err = NewListOrganizationFindingsRequest(c.base, id(org), &own)
	}
	if err != nil {
		return nil, fmt.Errorf("keystile: %w", err)
	}
	resp, err := c.sender.stream(req.WithContext(bounded), mediaLines)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if !hasMedia(resp, mediaLines) {
		return nil, strange(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxFindingsLine)
	for lines.Scan() {
		var line FindingsLine
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			return nil, strange(resp)
		}
		switch {
		case line.Summary != nil:
			return line.Summary, nil
		case line.Problem != nil:
			return nil, c.sender.lateRefusal(resp, line.Problem)
		}
		if err := to.take(&line); err != nil {
			return nil, err
		}
	}
	if lines.Err() == nil {
		return nil, strange(resp) // it ended before its end
	}
	return nil, c.sender.unreachable(ctx, lines.Err())
}

func (to FindingsReader) take(line *FindingsLine) error {
	switch {
	case line.Progress != nil && to.Progress != nil:
		to.Progress(line.Progress.Judged, line.Progress.Keys)
	case line.Key != nil && to.Key != nil:
		return to.Key(line.Key)
	case line.Text != nil && to.Text != nil:
		return to.Text(*line.Text)
	}
	return nil
}

// ApplyFindings narrows a key to the scopes that its findings propose, if nothing that was
// recorded would be denied. [WithIfMatch] guards against a lost race.
func (c *Client) ApplyFindings(ctx context.Context, key string, wanted FindingsApply, opts ...RequestEditorFn) (*FindingsChange, error) {
	return decode[FindingsChange](c.api.ApplyKeyFindings(ctx, id(key), nil, wanted, opts...)) //nolint:bodyclose // decode does
}

// UndoFindings gives a key back the scopes that ApplyFindings took last.
func (c *Client) UndoFindings(ctx context.Context, key string, opts ...RequestEditorFn) (*FindingsChange, error) {
	return decode[FindingsChange](c.api.UndoKeyFindings(ctx, id(key), nil, opts...)) //nolint:bodyclose // decode does
}
