package origin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/authz/policy/bundle"
)

// bundleServer publishes one bundle, with its ETag.
type bundleServer struct {
	*httptest.Server

	mu      sync.Mutex
	archive []byte
	// instead answers in its place.
	instead http.HandlerFunc
	// news is closed when there is a new bundle: with hold set, who has the old one waits for it.
	news chan struct{}
	hold bool
	// requests and downloads are how often it was asked, and how often it sent all of it.
	requests, downloads int
	last                http.Header
}

func newBundleServer(t *testing.T) *bundleServer {
	t.Helper()
	s := &bundleServer{news: make(chan struct{})}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *bundleServer) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests++
	s.last = r.Header.Clone()
	archive, instead, news, hold := s.archive, s.instead, s.news, s.hold
	s.mu.Unlock()
	if instead != nil {
		instead(w, r)
		return
	}
	if hold && r.Header.Get("If-None-Match") == tagOf(archive) {
		select {
		case <-news:
		case <-r.Context().Done():
			return
		}
		s.mu.Lock()
		archive = s.archive
		s.mu.Unlock()
	}
	if archive == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", tagOf(archive))
	if r.Header.Get("If-None-Match") == tagOf(archive) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	s.mu.Lock()
	s.downloads++
	s.mu.Unlock()
	_, _ = w.Write(archive)
}

func tagOf(archive []byte) string {
	sum := sha256.Sum256(archive)
	return `"` + hex.EncodeToString(sum[:8]) + `"`
}

// publish has it send another bundle, or answer in another way.
func (s *bundleServer) publish(archive []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.archive, s.instead = archive, nil
	close(s.news)
	s.news = make(chan struct{})
}

func (s *bundleServer) answer(instead http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instead = instead
}

func (s *bundleServer) counts() (requests, downloads int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.downloads
}

// asked waits until it was asked n more times.
func (s *bundleServer) asked(t *testing.T, n int) {
	t.Helper()
	before, _ := s.counts()
	until(t, "the server is asked", func() bool { now, _ := s.counts(); return now >= before+n })
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func newBundleSigner(t *testing.T, id string) *bundle.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := bundle.NewSigner(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), id, "")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// archiveOf is a bundle with one file.
func archiveOf(t *testing.T, s *bundle.Signer, version int64, rego string) []byte {
	t.Helper()
	source, err := policy.SourceOf(map[string]string{"a.rego": rego})
	if err != nil {
		t.Fatal(err)
	}
	archive, err := bundle.Contents{Source: source, Version: version, AcceptRemoved: []string{"data.a_test.*"}}.Pack(s)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// following is a bundle that is asked for, and whom it is handed to: what answer says becomes of it.
type following struct {
	*Bundle

	options  BundleOptions
	log      *logBuffer
	versions chan Version
	stop     func()

	mu     sync.Mutex
	answer func(Version) error
}

// hand is what a keeper would do: what must not be in force is refused.
func (f *following) hand(_ context.Context, v Version) error {
	f.mu.Lock()
	answer := f.answer
	f.mu.Unlock()
	err := error(nil)
	if v.Err != nil {
		err = &authz.PolicyRefusedError{Report: policy.Unreadable(v.Err)}
	} else if answer != nil {
		err = answer(v)
	}
	f.versions <- v
	return err
}

func (f *following) says(answer func(Version) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

func refusedByTests(Version) error {
	return &authz.PolicyRefusedError{Report: policy.Unreadable(errors.New("its tests fail"))}
}

// follow asks a server as a service does, from Begin on.
func follow(t *testing.T, at string, keys bundle.Keys, state string) *following {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	return followWith(t, BundleOptions{
		URL: u, Keys: keys, StateDir: state, Poll: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(log, nil)),
	}, log, nil)
}

func followWith(t *testing.T, o BundleOptions, log *logBuffer, change func(*Bundle)) *following {
	t.Helper()
	b, err := NewBundle(o)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(b)
	}
	f := &following{Bundle: b, options: o, log: log, versions: make(chan Version, 64)}
	if err := b.Begin(t.Context(), f.hand); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Watch(ctx, f.hand)
	}()
	f.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(f.stop)
	return f
}

// again is the same after a restart.
func (f *following) again(t *testing.T) *following {
	t.Helper()
	f.stop()
	log, o := &logBuffer{}, f.options
	o.Logger = slog.New(slog.NewTextHandler(log, nil))
	return followWith(t, o, log, nil)
}

// next is the version that is handed over next, with its one rule.
func (f *following) next(t *testing.T) (rego string, v Version) {
	t.Helper()
	v = next(t, f.versions)
	if v.Source != nil {
		rego = v.Source.Files()["a.rego"]
	}
	return rego, v
}

// quiet tells that nothing is handed over while the server is asked a few times.
func (f *following) quiet(t *testing.T, s *bundleServer) {
	t.Helper()
	s.asked(t, 3)
	select {
	case v := <-f.versions:
		t.Errorf("something is handed over: %+v", v)
	default:
	}
}
