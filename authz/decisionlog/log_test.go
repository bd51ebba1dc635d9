package decisionlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/supportstation/keystile/authz"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plainly writes a decision's id.
type plainly struct{ hidden string }

func (p plainly) Encode(_ context.Context, r *authz.DecisionRecord) ([]byte, string) {
	return []byte(`"` + r.Decision.ID.String() + `"`), p.hidden
}

// sink does what a test says.
type sink struct {
	write  func(events [][]byte) (int, error)
	linger time.Duration
}

func (s *sink) Write(_ context.Context, events [][]byte) (int, error) { return s.write(events) }
func (s *sink) Linger() time.Duration                                 { return s.linger }
func (*sink) Close() error                                            { return nil }

func decide(l *Log, n int) {
	for range n {
		l.Decided(&authz.Check{Path: "/x"}, &authz.Decision{ID: authz.NewDecisionID(time.Now())})
	}
}

// quick is a log that retries and ends sooner than in earnest.
func quick(e Encoder, s Sink) *Log {
	l := New(e, s, nil)
	l.minRetry, l.maxRetry, l.flushLimit = time.Millisecond, 4*time.Millisecond, 50*time.Millisecond
	return l
}

// A sink that takes nothing costs checks nothing but a count: what is lost is counted exactly.
func TestLog_ABlockedSinkStopsNobodyAndEveryLossIsCounted(t *testing.T) {
	blocked, unblock := make(chan struct{}), make(chan struct{})
	var once sync.Once
	l := quick(plainly{}, &sink{write: func(events [][]byte) (int, error) {
		once.Do(func() { close(blocked) })
		<-unblock
		return len(events), nil
	}})
	l.Start()
	decide(l, 1)
	<-blocked
	const n = 3*maxQueued + 7
	decided := make(chan struct{})
	go func() { decide(l, n); close(decided) }()
	select {
	case <-decided:
	case <-time.After(10 * time.Second):
		t.Fatal("checks wait for the sink")
	}
	if h := l.Health(); h.Dropped != n-maxQueued || h.Waiting != maxQueued || h.Written != 0 {
		t.Errorf("%+v, want %d waiting and %d dropped", h, maxQueued, n-maxQueued)
	}
	if err := l.Close(); err == nil {
		t.Error("a sink that was left behind is no error")
	}
	if h := l.Health(); h.Dropped+h.Written != n+1 || h.Waiting != 0 {
		t.Errorf("%+v: not each of %d is written or dropped", h, n+1)
	}
	close(unblock)
	<-l.done
}

// selective leaves every third decision out.
type selective struct{ n *int }

func (s selective) Encode(context.Context, *authz.DecisionRecord) ([]byte, string) {
	if *s.n++; *s.n%3 == 0 {
		return nil, ""
	}
	return []byte(`{}`), ""
}

// A decision that is not to be logged is not, and is counted as that.
func TestLog_WhatIsNotWantedIsNotWritten(t *testing.T) {
	var out bytes.Buffer
	l := New(selective{new(int)}, NewLines(&out), nil)
	decide(l, 3*maxBatch) // before it writes
	l.Start()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if h := l.Health(); h.Written != 2*maxBatch || h.Unwanted != maxBatch || h.Dropped != 0 || strings.Count(out.String(), "{}\n") != 2*maxBatch {
		t.Errorf("%+v, %d lines", h, strings.Count(out.String(), "\n"))
	}
}

func TestLog_LargeDecisionsAreBoundedByBytes(t *testing.T) {
	l := quick(plainly{}, &sink{write: func(events [][]byte) (int, error) { return len(events), nil }})
	q := &authz.Check{Path: strings.Repeat("x", 64<<10)}
	for range maxQueued {
		l.Decided(q, &authz.Decision{})
	}
	if h := l.Health(); h.Waiting > 2*maxQueuedBytes/(64<<10) || h.Dropped == 0 {
		t.Errorf("%+v", h)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left := l.bytes.Load(); left != 0 {
		t.Errorf("%d bytes are said to wait in an empty queue", left)
	}
}

func TestLog_WhatIsLeftAtTheEndIsWritten(t *testing.T) {
	var out bytes.Buffer
	l := New(plainly{hidden: "why"}, NewLines(&out), nil)
	decide(l, 2*maxBatch+1) // before it writes
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if h, lines := l.Health(), strings.Count(out.String(), "\n"); h.Written != 2*maxBatch+1 || int64(lines) != h.Written || h.Hidden != h.Written {
		t.Errorf("%+v, %d lines", h, lines)
	}
	decide(l, 1)
	if h := l.Health(); h.Dropped != 1 {
		t.Errorf("after its end: %+v", h)
	}
}

// A sink that fails is asked again, from where it stopped on; what it refuses is given up.
func TestLog_AFailingSinkIsAskedAgain(t *testing.T) {
	var got []string
	failures, taken := 3, make(chan struct{})
	l := quick(plainly{}, &sink{write: func(events [][]byte) (int, error) {
		switch {
		case failures > 0:
			failures--
			got = append(got, string(events[0]))
			return 1, errors.New("away")
		case len(events) > 3:
			return 0, fmt.Errorf("no: %w", ErrTooLarge)
		}
		for _, e := range events {
			got = append(got, string(e))
		}
		if len(events) > 0 {
			close(taken)
		}
		return len(events), nil
	}})
	decide(l, 9)
	l.Start()
	<-taken
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, id := range got {
		seen[id] = true
	}
	if h := l.Health(); h.Written != 6 || h.Dropped != 3 || len(seen) != 6 || h.Failing {
		t.Errorf("%+v, %d different", h, len(seen))
	}
	refusing := quick(plainly{}, &sink{write: func([][]byte) (int, error) { return 0, ErrRefused }})
	decide(refusing, 5)
	if err := refusing.Close(); err != nil {
		t.Fatal(err)
	}
	if h := refusing.Health(); h.Dropped != 5 || h.Written != 0 {
		t.Errorf("refused: %+v", h)
	}
}

func TestLog_AClosedLogDoesNotWaitForASinkThatIsAway(t *testing.T) {
	l := quick(plainly{}, &sink{write: func([][]byte) (int, error) { return 0, errors.New("away") }})
	l.Start()
	decide(l, 5)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if h := l.Health(); h.Dropped != 5 || !h.Failing {
		t.Errorf("%+v", h)
	}
}

// tearing writes only so many bytes at a time.
type tearing struct {
	bytes.Buffer

	at int
}

func (w *tearing) Write(p []byte) (int, error) {
	if len(p) > w.at {
		n, _ := w.Buffer.Write(p[:w.at])
		return n, errors.New("no room")
	}
	return w.Buffer.Write(p)
}

func TestLines_AWriteThatFailsTearsNoLine(t *testing.T) {
	for at := 1; at < 12; at++ {
		w := &tearing{at: at}
		l := NewLines(w)
		events := [][]byte{[]byte("first"), []byte("2"), []byte("third")}
		for turns := 0; len(events) > 0 && turns < 100; turns++ {
			done, _ := l.Write(t.Context(), events)
			events = events[done:]
		}
		if got := w.String(); got != "first\n2\nthird\n" {
			t.Errorf("torn at %d: %q", at, got)
		}
	}
}

// What a killed process or a full disk has left of a line does not take the next event with it.
func TestFile_ALineThatWasLeftTornIsEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.log")
	for _, c := range []struct{ left, want string }{
		{"", "event\n"},
		{"whole\n", "whole\nevent\n"},
		{"whole\n{\"to", "whole\n{\"to\nevent\n"},
	} {
		if err := os.WriteFile(path, []byte(c.left), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := NewFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = l.Write(t.Context(), [][]byte{[]byte("event")})
		if err := errors.Join(err, l.Close()); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != c.want {
			t.Errorf("behind %q: %q, %v", c.left, got, err)
		}
	}
}

func TestFile_IsMadeAnewWhenItWasMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.log")
	l, err := NewFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if _, err := l.Write(t.Context(), [][]byte{[]byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("two")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write("three")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old, _ := os.ReadFile(path + ".1")
	now, _ := os.ReadFile(path)
	info, err := os.Stat(path)
	if err != nil || string(old) != "one\n" || string(now) != "three\n" || info.Mode().Perm() != 0o600 {
		t.Errorf("%q, then %q, %v, %v", old, now, info, err)
	}
}

// collector takes uploads as a service for OPA's decision logs does.
type collector struct {
	mu     sync.Mutex
	events []string
	tokens []string
	// answer is the status of an upload of so many events.
	answer func(n int) int
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var events []string
	zip, err := gzip.NewReader(r.Body)
	if err == nil && r.Header.Get("Content-Encoding") == "gzip" && r.Header.Get("Content-Type") == "application/json" {
		raw, _ := io.ReadAll(zip)
		err = json.Unmarshal(raw, &events)
	}
	if err != nil || r.Method != http.MethodPost {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	status := c.answer(len(events))
	c.tokens = append(c.tokens, r.Header.Get("Authorization"))
	if status == http.StatusFound {
		w.Header().Set("Location", "/elsewhere")
	}
	if status < 300 {
		c.events = append(c.events, events...)
	}
	w.WriteHeader(status)
}

func TestUpload_PostsAsOPADoes(t *testing.T) {
	c := &collector{answer: func(n int) int {
		if n > 4 {
			return http.StatusRequestEntityTooLarge
		}
		return http.StatusNoContent
	}}
	server := httptest.NewServer(c)
	defer server.Close()
	u := NewUpload(server.URL+"/logs", "word")
	defer func() { _ = u.Close() }()
	var events [][]byte
	for i := range 10 {
		events = append(events, fmt.Appendf(nil, `"%d"`, i))
	}
	done, err := u.Write(t.Context(), events)
	if err != nil || done != 10 || strings.Join(c.events, "") != "0123456789" || c.tokens[0] != "Bearer word" {
		t.Errorf("%d, %v; %q with %q", done, err, c.events, c.tokens[0])
	}
}

func TestUpload_WhatCanBeMendedComesAgainAndTheRestIsGivenUp(t *testing.T) {
	status := 0
	c := &collector{answer: func(int) int { return status }}
	server := httptest.NewServer(c)
	defer server.Close()
	u := NewUpload(server.URL, "word")
	defer func() { _ = u.Close() }()
	for code, want := range map[int]error{
		302: nil, 401: nil, 403: nil, 404: nil, 429: nil, 500: nil, 503: nil, 400: ErrRefused, 422: ErrRefused, 413: ErrTooLarge,
	} {
		status = code
		done, err := u.Write(t.Context(), [][]byte{[]byte(`"1"`)})
		final := errors.Is(err, ErrRefused) || errors.Is(err, ErrTooLarge)
		if done != 0 || err == nil || want != nil && !errors.Is(err, want) || want == nil && final || strings.Contains(err.Error(), "word") {
			t.Errorf("HTTP %d: %d, %v", code, done, err)
		}
	}
	if n := len(c.tokens); n != 10 {
		t.Errorf("%d requests: a redirect was followed", n)
	}
}

func BenchmarkDecided(b *testing.B) {
	l := New(plainly{}, NewLines(io.Discard), nil)
	defer func() { _ = l.Close() }()
	q, d := &authz.Check{Method: "GET", Path: "/api/v1/tickets/42", Segments: []string{"api", "v1", "tickets", "42"}}, &authz.Decision{Code: authz.CodeAllowed, Required: []authz.Scope{"tickets:read"}}
	l.Start()
	b.ReportAllocs()
	for b.Loop() {
		l.Decided(q, d)
	}
}
