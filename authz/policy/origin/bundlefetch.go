package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/open-policy-agent/opa/v1/plugins/rest"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy/bundle"
)

const (
	// holdFor is how long a server may hold back its answer that there is nothing new: OPA's
	// long polling. One that does not know it answers at once.
	holdFor = 10 * time.Second
	// answerWithin is how long a server may take for anything else: to be connected to, and to
	// begin its answer.
	answerWithin = 5 * time.Second
	// transferWithin is how long a bundle may take to arrive.
	transferWithin = 30 * time.Second
	// maxRedirects bounds how often the server may lead elsewhere, and maxHeader its headers,
	// in bytes.
	maxRedirects = 5
	maxHeader    = 64 << 10
)

// patience is how long a server is waited for.
type patience struct{ hold, answer, transfer time.Duration }

var errSilent = errors.New("the bundle server does not answer in time")

// fetch asks for the bundle; the archive is nil when there is nothing new. Its length is
// bounded; what has a byte more than it may is for who reads it to refuse.
func (b *Bundle) fetch(ctx context.Context) (archive []byte, etag string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client, within, prefer := b.manager.Client(pluginName), b.patience.answer, "modes=snapshot"
	if b.etag != "" {
		client, within = client.WithHeader("If-None-Match", b.etag), b.patience.answer+b.patience.hold
		prefer = fmt.Sprintf("modes=snapshot;wait=%d", int(b.patience.hold.Seconds()))
	}
	late := time.AfterFunc(within, func() { cancel(errSilent) })
	defer late.Stop()
	response, err := client.WithHeader("Prefer", prefer).Do(ctx, http.MethodGet, b.path)
	if err != nil {
		return nil, "", b.failed(ctx, err)
	}
	defer func() { _ = response.Body.Close() }()
	late.Reset(b.patience.transfer)
	switch {
	case response.StatusCode == http.StatusNotModified && b.etag != "":
		return nil, b.etag, nil
	case response.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("the bundle server answers %d %s", response.StatusCode, http.StatusText(response.StatusCode))
	}
	archive, err = io.ReadAll(io.LimitReader(response.Body, bundle.MaxArchive+1))
	if err != nil {
		return nil, "", b.failed(ctx, fmt.Errorf("the bundle server's answer breaks off: %w", err))
	}
	return archive, response.Header.Get("ETag"), nil
}

// failed is an error without the URL, which may have credentials. The connection may be a
// dead one, and is not used again.
func (b *Bundle) failed(ctx context.Context, err error) error {
	b.runner.transport.CloseIdleConnections()
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		return errSilent
	}
	var in *url.Error
	if errors.As(err, &in) {
		return fmt.Errorf("the bundle server cannot be reached: %w", in.Err)
	}
	return err
}

// lost notes that the server does not answer as it should.
func (b *Bundle) lost(err error) {
	before := b.State()
	b.update(func(s *authz.PolicyBundle) {
		if s.Error = err.Error(); s.FailingSince.IsZero() {
			s.FailingSince = time.Now()
		}
	})
	if before.Error == "" {
		b.o.Logger.Error("no policy bundle can be fetched; what is in force stays", slog.String("url", before.URL), slog.Any("error", err))
	}
}

// reached notes that the server answered.
func (b *Bundle) reached() {
	before := b.State()
	b.update(func(s *authz.PolicyBundle) { s.ContactAt, s.Error, s.FailingSince = time.Now(), "", time.Time{} })
	if before.Error != "" {
		b.o.Logger.Info("policy bundles can be fetched again", slog.String("url", before.URL),
			slog.Duration("after", time.Since(before.FailingSince).Round(time.Millisecond)))
	}
}

// newTransport is of the server's client alone. The system's certificate authorities count.
func newTransport() *http.Transport {
	dialer := net.Dialer{Timeout: answerWithin}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSHandshakeTimeout: answerWithin,
		MaxResponseHeaderBytes: maxHeader, MaxConnsPerHost: 2, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		// A bundle is compressed by itself, and what is unpacked is counted.
		DisableCompression: true,
	}
}

// NewClient implements rest.HTTPAuthPlugin: OPA's client follows redirects as they come.
func (r *runner) NewClient(rest.Config) (*http.Client, error) {
	return &http.Client{Transport: r.transport, CheckRedirect: r.checkRedirect}, nil
}

// Prepare implements rest.HTTPAuthPlugin; credentials are in the URL.
func (*runner) Prepare(*http.Request) error { return nil }

// checkRedirect stops a server that would have us send credentials where anybody can read
// them: in plain text, or to another server in the address that we come from.
func (r *runner) checkRedirect(next *http.Request, before []*http.Request) error {
	next.Header.Del("Referer")
	switch {
	case len(before) > maxRedirects:
		return errors.New("it leads elsewhere again and again")
	case next.URL.Scheme != "https" && !r.bundle.o.Plaintext && !Local(next.URL):
		return fmt.Errorf("it leads to %s, which is not https", next.URL.Host)
	}
	return nil
}

// Local tells whether a URL is of this machine.
func Local(u *url.URL) bool {
	if u.Hostname() == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return err == nil && ip.IsLoopback()
}

// shownURL is a URL without what may be secret in it.
func shownURL(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	return shown.String()
}
