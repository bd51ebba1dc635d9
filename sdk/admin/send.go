package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"time"
)

const (
	idempotencyKey = "Idempotency-Key"

	mediaJSON  = "application/json"
	mediaLines = "application/x-ndjson"
)

// credential is reached by a pointer, which prints as an address.
type credential struct{ token, authorization string }

// sender is below the generated requests: it names the admin, bounds the time,
// repeats what is safe to repeat, and turns refusals into errors.
type sender struct {
	http    *http.Client
	timeout time.Duration
	admin   *credential
}

// Do returns an answer with a status of 2xx and its whole body in memory; else
// an [*Error] or a [*TransportError].
func (s *sender) Do(req *http.Request) (*http.Response, error) {
	asked := req.Context()
	ctx, cancel := context.WithTimeout(asked, s.timeout)
	defer cancel()
	req = req.WithContext(ctx)
	s.address(req, mediaJSON)
	if req.Method == http.MethodPost && req.Header.Get(idempotencyKey) == "" {
		req.Header.Set(idempotencyKey, rand.Text())
	}
	resp, body, err := s.attempt(req)
	if err != nil && ctx.Err() == nil && repeatable(req) && !errors.Is(err, ErrAnswerTooLong) {
		resp, body, err = s.again(req)
	}
	switch {
	case err != nil:
		return nil, s.unreachable(asked, err)
	case resp.StatusCode < http.StatusOK || resp.StatusCode >= http.StatusMultipleChoices:
		return nil, refusal(resp, body, s.admin.token)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// repeatable tells whether a second request does what the first would have
// done, should that have arrived.
func repeatable(req *http.Request) bool {
	safe := req.Method == http.MethodGet || req.Method == http.MethodPost && req.Header.Get(idempotencyKey) != ""
	return safe && (req.Body == nil || req.GetBody != nil)
}

func (s *sender) again(req *http.Request) (*http.Response, []byte, error) {
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, nil, err
		}
		req.Body = body
	}
	return s.attempt(req)
}

func (s *sender) attempt(req *http.Request) (*http.Response, []byte, error) {
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswerBytes+1))
	if err != nil {
		return nil, nil, err
	}
	if len(body) > MaxAnswerBytes {
		return nil, nil, ErrAnswerTooLong
	}
	return resp, body, nil
}

// unreachable leaves the URL out of what the standard library says.
func (s *sender) unreachable(asked context.Context, err error) *TransportError {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	switch {
	case errors.Is(err, ErrAnswerTooLong):
		return &TransportError{Detail: err.Error(), cause: err}
	case asked.Err() != nil:
		return &TransportError{Detail: "the caller gave up before the service answered", cause: asked.Err()}
	case errors.Is(err, context.DeadlineExceeded):
		return &TransportError{Detail: fmt.Sprintf("the service did not answer within %v", s.timeout), cause: err}
	}
	return &TransportError{Detail: "the service did not answer", cause: err}
}

// address says who asks, and for what.
func (s *sender) address(req *http.Request, media string) {
	req.Header.Set("Authorization", s.admin.authorization)
	req.Header.Set("Accept", media)
	req.Header.Set("User-Agent", userAgent)
}

func hasMedia(resp *http.Response, wanted string) bool {
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return err == nil && media == wanted
}

// strange is for an answer that is not the management API's.
func strange(resp *http.Response) *Error {
	return &Error{
		Status: resp.StatusCode, Code: CodeInvalidAnswer, RequestID: resp.Header.Get("X-Request-Id"),
		Detail: "the answer is not one of Keystile's management API; is the URL right?",
	}
}

// decode reads the one document of an answer.
func decode[T any](resp *http.Response, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	value := new(T)
	if !hasMedia(resp, mediaJSON) || json.NewDecoder(resp.Body).Decode(value) != nil {
		return nil, strange(resp)
	}
	return value, nil
}
