package decisionlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	// uploadTimeout bounds one upload, its answer included.
	uploadTimeout = 10 * time.Second
	// uploadLinger is how long a first event waits for others.
	uploadLinger = time.Second
	// maxAnswer is how much of an answer is read, so that its connection can be used again.
	maxAnswer = 64 << 10
)

// Upload posts events as OPA does: a gzipped JSON array. An event whose answer was lost is
// posted again; its decision_id tells.
type Upload struct {
	url, token string
	client     *http.Client
}

var _ Sink = (*Upload)(nil)

// NewUpload returns a sink that posts to a URL, with a bearer token unless that is empty.
// Redirects are not followed: the token is for that URL alone.
func NewUpload(url, token string) *Upload {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: uploadTimeout, ForceAttemptHTTP2: true,
		MaxIdleConns: 1, MaxConnsPerHost: 1, IdleConnTimeout: time.Minute,
	}
	return &Upload{url: url, token: token, client: &http.Client{
		Transport: transport, Timeout: uploadTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Linger implements Sink.
func (*Upload) Linger() time.Duration { return uploadLinger }

// Close implements Sink.
func (u *Upload) Close() error {
	u.client.CloseIdleConnections()
	return nil
}

// Write implements Sink. What is too large for the other side is posted in halves.
func (u *Upload) Write(ctx context.Context, events [][]byte) (done int, err error) {
	status, err := u.post(ctx, events)
	switch {
	case err != nil:
		return 0, fmt.Errorf("upload the decision log: %w", err)
	case status >= 200 && status < 300:
		return len(events), nil
	case status == http.StatusRequestEntityTooLarge && len(events) > 1:
		half := len(events) / 2
		if done, err = u.Write(ctx, events[:half]); err != nil {
			return done, err
		}
		rest, err := u.Write(ctx, events[half:])
		return done + rest, err
	}
	err = fmt.Errorf("upload the decision log: the answer is HTTP %d", status)
	switch status {
	case http.StatusRequestEntityTooLarge:
		err = errors.Join(err, ErrTooLarge)
	case http.StatusBadRequest, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		err = errors.Join(err, ErrRefused)
	}
	return 0, err
}

func (u *Upload) post(ctx context.Context, events [][]byte) (status int, err error) {
	body, err := packed(events)
	if err != nil {
		return 0, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, u.url, body)
	if err != nil {
		return 0, err //nolint:wrapcheck // Write does
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Content-Encoding", "gzip")
	if u.token != "" {
		request.Header.Set("Authorization", "Bearer "+u.token)
	}
	answer, err := u.client.Do(request)
	if err != nil {
		return 0, err //nolint:wrapcheck // Write does
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer)) // only its status counts
	_ = answer.Body.Close()
	return answer.StatusCode, nil
}

// packed is a gzipped JSON array.
func packed(events [][]byte) (*bytes.Buffer, error) {
	var body bytes.Buffer
	zip := gzip.NewWriter(&body)
	for i, event := range events {
		lead := ","
		if i == 0 {
			lead = "["
		}
		if _, err := io.WriteString(zip, lead); err != nil {
			return nil, fmt.Errorf("pack events: %w", err)
		}
		if _, err := zip.Write(event); err != nil {
			return nil, fmt.Errorf("pack events: %w", err)
		}
	}
	if _, err := io.WriteString(zip, "]"); err != nil {
		return nil, fmt.Errorf("pack events: %w", err)
	}
	if err := zip.Close(); err != nil {
		return nil, fmt.Errorf("pack events: %w", err)
	}
	return &body, nil
}
