package origin

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A server that holds its answer back until there is something new is not asked in between.
func TestBundle_AServerMayHoldItsAnswerBack(t *testing.T) {
	s, key := newBundleServer(t), newBundleSigner(t, "k")
	s.hold = true
	s.publish(archiveOf(t, key, 1, someRego))
	f := follow(t, s.URL+"/b", key.Keys(), t.TempDir())
	f.next(t)
	until(t, "it waits", func() bool { n, _ := s.counts(); return n == 2 })
	s.mu.Lock()
	prefer := s.last.Get("Prefer")
	s.mu.Unlock()
	if prefer != "modes=snapshot;wait=10" {
		t.Errorf("Prefer: %q", prefer)
	}
	s.publish(archiveOf(t, key, 2, otherRe))
	if rego, _ := f.next(t); rego != otherRe {
		t.Error(rego)
	}
	until(t, "it waits again", func() bool { n, _ := s.counts(); return n == 3 })
}

// However a server fails: it is told, and no credential with it.
func TestBundle_AnOutageIsToldWithoutCredentials(t *testing.T) {
	s, key := newBundleServer(t), newBundleSigner(t, "k")
	at, err := url.Parse(s.URL + "/b.tar.gz?signature=presigned-and-secret")
	if err != nil {
		t.Fatal(err)
	}
	at.User = url.UserPassword("reader", "a-password")
	var seen http.Header
	s.publish(archiveOf(t, key, 1, someRego))
	log := &logBuffer{}
	gone := make(chan struct{})
	f := followWith(t, BundleOptions{
		URL: at, Keys: key.Keys(), StateDir: t.TempDir(), Poll: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, log, func(b *Bundle) {
		b.patience = patience{hold: 50 * time.Millisecond, answer: 100 * time.Millisecond, transfer: 100 * time.Millisecond}
	})
	f.next(t)
	s.mu.Lock()
	seen = s.last
	s.mu.Unlock()
	if user, password, ok := (&http.Request{Header: seen}).BasicAuth(); !ok || user != "reader" || password != "a-password" {
		t.Errorf("the server was asked without credentials: %v", seen)
	}
	told := func(name, says string, answer http.HandlerFunc) {
		t.Helper()
		s.answer(answer)
		until(t, name, func() bool { return strings.Contains(f.State().Error, says) })
		s.answer(nil)
		until(t, "it is back", func() bool { return f.State().Error == "" })
	}
	told("an error", "500 Internal Server Error", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	told("no answer", "does not answer in time", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-gone:
		}
	})
	told("half an answer, and no more", "does not answer in time", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("x"))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-gone:
		}
	})
	told("an answer that breaks off", "breaks off", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte("x"))
	})
	told("a connection that breaks off", "cannot be reached", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	told("in plain text to elsewhere", "leads to bundles.example, which is not https", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://bundles.example/b", http.StatusFound)
	})
	told("in circles", "again and again", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/b", http.StatusFound) })
	close(gone)
	s.Close()
	until(t, "it is away", func() bool { return strings.Contains(f.State().Error, "refused") })
	f.stop()
	for _, said := range []string{log.String(), f.State().URL, f.State().Error} {
		if strings.Contains(said, "password") || strings.Contains(said, "presigned") || strings.Contains(said, "reader") {
			t.Errorf("a credential is told: %s", said)
		}
	}
}

// Whoever is led elsewhere tells the other server neither where it comes from nor its credentials.
func TestBundle_ARedirectTakesNoCredentialsAlong(t *testing.T) {
	s, key := newBundleServer(t), newBundleSigner(t, "k")
	archive := archiveOf(t, key, 1, someRego)
	headers := make(chan http.Header, 1)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case headers <- r.Header.Clone():
		default:
		}
		_, _ = w.Write(archive)
	}))
	t.Cleanup(other.Close)
	elsewhere := strings.Replace(other.URL, "127.0.0.1", "localhost", 1)
	s.answer(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere+"/there", http.StatusFound)
	})
	at := strings.Replace(s.URL, "http://", "http://reader:a-password@", 1)
	f := follow(t, at+"/b?token=secret", key.Keys(), t.TempDir())
	f.next(t)
	if h := <-headers; h.Get("Authorization") != "" || h.Get("Referer") != "" {
		t.Errorf("%v", h)
	}
}

func TestBundle_AStartIsRefusedWhereNothingCanBeKept(t *testing.T) {
	s, key, dir := newBundleServer(t), newBundleSigner(t, "k"), t.TempDir()
	write(t, filepath.Join(dir, "file"), "x")
	at, err := url.Parse(s.URL + "/b")
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewBundle(BundleOptions{URL: at, Keys: key.Keys(), StateDir: filepath.Join(dir, "file")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Begin(t.Context(), func(context.Context, Version) error { return nil }); err == nil || !strings.Contains(err.Error(), "is kept") {
		t.Error(err)
	}
}

// Without an ETag the same bundle comes again and again; it is nothing new.
func TestBundle_AServerWithoutETagIsNoReasonToTryAgain(t *testing.T) {
	s, key := newBundleServer(t), newBundleSigner(t, "k")
	archive := archiveOf(t, key, 1, someRego)
	s.answer(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, bytes.NewReader(archive)) })
	f := follow(t, s.URL+"/b", key.Keys(), t.TempDir())
	f.next(t)
	f.quiet(t, s)
}
