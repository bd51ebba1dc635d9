package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz/manage"
)

func trust(prefix string) worldOption {
	return func(o *Options, _ *manage.Options) { o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(prefix)} }
}

func listenLocal(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestServe_ManagementIsOnItsOwnListenerAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, separate := range map[string]bool{"one listener": false, "two listeners": true} {
		api, admin := listenLocal(t), net.Listener(nil)
		at := api
		if separate {
			admin = listenLocal(t)
			at = admin
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Serve(ctx, api, nil, admin) }()
		for path, wants := range map[string][2]int{
			"/healthz": {200, 200}, "/readyz": {200, 200}, "/openapi.yaml": {404, 200}, "/v1/scopes": {404, 401}, "/v1/check": {405, 404},
		} {
			checks, management := wants[0], wants[1]
			if !separate { // the one has both
				checks, management = max(wants[0], wants[1]), max(wants[0], wants[1])
				if wants[0] == 404 {
					checks, management = wants[1], wants[1]
				}
			}
			if got := status(t, api, path); got != checks {
				t.Errorf("%s: %s on the listener of checks: %d, want %d", name, path, got, checks)
			}
			if got := status(t, at, path); got != management {
				t.Errorf("%s: %s on the listener of management: %d, want %d", name, path, got, management)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		w.draining.Store(false)
	}
}

func status(t *testing.T, l net.Listener, path string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

// deadlines is a response writer that remembers what it was allowed.
type deadlines struct {
	http.ResponseWriter

	read, write time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error  { d.read = t; return nil }
func (d *deadlines) SetWriteDeadline(t time.Time) error { d.write = t; return nil }

func TestManagement_ChangesHaveTimeToBeAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for path, wants := range map[string][2]bool{ // read, write
		"GET /v1/scopes": {false, true}, "POST /v1/audit-log/verify": {true, true}, "POST /v1/keys/" + w.acme.key + "/revoke?dry_run=true": {false, true},
		"POST /v1/organizations/" + w.acme.id + "/keys/import?format_prefix=x&format_length=32&format_alphabet=hex": {true, true},
	} {
		method, target, _ := strings.Cut(path, " ")
		for _, token := range []string{"", w.platform} {
			r, err := http.NewRequestWithContext(t.Context(), method, target, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+token)
			d := &deadlines{ResponseWriter: newDiscard()}
			w.Handler().ServeHTTP(d, r)
			known := token != ""
			if wants[0] && known && d.write.Sub(d.read) < time.Minute {
				t.Errorf("%s: a body that comes late leaves %v for its answer", path, d.write.Sub(d.read))
			}
			if !d.read.IsZero() != (wants[0] && known) || !d.write.IsZero() != (wants[1] && known) {
				t.Errorf("%s, admin %v: read until %v, write until %v", path, known, d.read, d.write)
			}
		}
	}
}

type discard struct{ header http.Header }

func newDiscard() *discard                     { return &discard{make(http.Header)} }
func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}
