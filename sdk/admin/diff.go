package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// DiffTimeout bounds a DiffPolicy, which asks about many requests.
const DiffTimeout = 3 * time.Minute

// DiffPolicy tells what another policy would decide otherwise, of requests that were
// recorded. told hears now and then how many of how many were asked about; it may be nil. A
// policy that does not load is policy_refused, with a reason a problem. It is not repeated.
func (c *Client) DiffPolicy(ctx context.Context, wanted PolicyDiffRequest, told func(asked, of int64)) (*PolicyDiff, error) {
	bounded, cancel := context.WithTimeoutCause(ctx, DiffTimeout, fmt.Errorf("the service did not answer within %v", DiffTimeout))
	defer cancel()
	req, err := NewDiffPolicyRequest(c.base, wanted)
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
	limited := &io.LimitedReader{R: resp.Body, N: MaxAnswerBytes}
	for lines := json.NewDecoder(limited); ; {
		var line PolicyDiffLine
		var syntax *json.SyntaxError
		switch err := lines.Decode(&line); {
		case errors.As(err, &syntax):
			return nil, strange(resp)
		case limited.N <= 0:
			return nil, c.sender.unreachable(ctx, ErrAnswerTooLong)
		case err != nil:
			return nil, c.sender.unreachable(ctx, err)
		case line.Diff != nil:
			return line.Diff, nil
		case line.Problem != nil:
			return nil, c.sender.lateRefusal(resp, line.Problem)
		case line.Progress != nil && told != nil:
			told(line.Progress.Asked, line.Progress.Requests)
		}
	}
}

// lateRefusal is a refusal that came as the last line of an answer.
func (s *sender) lateRefusal(resp *http.Response, p *Problem) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return strange(resp)
	}
	resp.StatusCode = p.Status
	resp.Header.Set("Content-Type", "application/problem+json")
	return refusal(resp, raw, s.admin.token)
}

// stream is Do without its bounds, for an answer that is read as it comes: whoever calls it
// bounds both.
func (s *sender) stream(req *http.Request, media string) (*http.Response, error) {
	s.address(req, media)
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, s.unreachable(req.Context(), err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswerBytes))
	if err != nil {
		return nil, s.unreachable(req.Context(), err)
	}
	return nil, refusal(resp, body, s.admin.token)
}
