package origin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/logging"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/plugins/rest"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy/bundle"
)

const (
	// DefaultBundlePoll is how often a bundle server is asked, unless it answers late on
	// purpose: so often that a new bundle is in force two seconds later.
	DefaultBundlePoll = 500 * time.Millisecond
	// MinBundlePoll is the shortest that may be configured.
	MinBundlePoll = 100 * time.Millisecond
	// MaxBundlePoll is the longest.
	MaxBundlePoll = time.Hour
	// retryMost is how long a server that does not answer is left alone, unless it is asked
	// less often anyhow.
	retryMost = 2 * time.Second
	// maxDoublings bounds how often the pause before the next try is doubled.
	maxDoublings = 10
)

// BundleOptions are what a Bundle needs.
type BundleOptions struct {
	// URL is http or https, and may have credentials and a query; neither is ever shown.
	URL *url.URL
	// Keys are those of whoever may publish.
	Keys bundle.Keys
	// StateDir is where the last good bundle is kept; it is made if it is not there.
	StateDir string
	// MinVersion is the lowest version that is taken, whatever was kept.
	MinVersion int64
	// Poll is how often the server is asked, at most; 0 means DefaultBundlePoll. In fact it is
	// between that and half of it, so that replicas spread.
	Poll time.Duration
	// Plaintext accepts being led to an http URL that is not of this machine.
	Plaintext bool
	// Logger gets how it stands with the server and with what is kept; nil discards it.
	Logger *slog.Logger
}

// Bundle is a policy that a bundle server publishes. Its bundles are signed and numbered:
// what has a lower version than one that was in force here is refused, also after a restart.
//
// OPA's plugin manager runs it, and has the client for the server. It is not OPA's own bundle
// plugin, because that puts in force, and keeps, what our gate has not seen; and not the
// downloader below that, which reads a body of any length for any time, and fetches a refused
// bundle again and again.
type Bundle struct {
	o       BundleOptions
	manager *plugins.Manager
	runner  *runner
	// path is the URL's, with its query; keptAt is the file with the last good bundle, markAt
	// that with its version.
	path, keptAt, markAt string
	state                atomic.Pointer[authz.PolicyBundle]
	patience             patience

	// All below belongs to whoever polls: Begin, and then the runner.

	// hand is whom versions are handed to.
	hand func(context.Context, Version) error
	// etag and seen are of the last bundle that was fetched, whatever became of it.
	etag string
	seen [sha256.Size]byte
	// version is the highest that was in force, with its revision and archive.
	version  int64
	revision string
	archive  []byte
	// kept tells that the archive is kept.
	kept bool
	// untried is a bundle that could not be tried yet, nil for none.
	untried *candidate
}

// candidate is a bundle whose signature holds.
type candidate struct {
	policy  *bundle.Policy
	archive []byte
}

// NewBundle returns a bundle that is not asked for yet. It must be closed.
func NewBundle(o BundleOptions) (*Bundle, error) {
	if o.Poll == 0 {
		o.Poll = DefaultBundlePoll
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	shown := shownURL(o.URL)
	kept := filepath.Join(o.StateDir, keptName(shown))
	b := &Bundle{
		o: o, path: strings.TrimPrefix(o.URL.RequestURI(), "/"), keptAt: kept + ".tar.gz", markAt: kept + ".version",
		patience: patience{holdFor, answerWithin, transferWithin},
	}
	b.runner = &runner{bundle: b, transport: newTransport()}
	b.state.Store(&authz.PolicyBundle{URL: shown})
	server := url.URL{Scheme: o.URL.Scheme, User: o.URL.User, Host: o.URL.Host}
	config, err := json.Marshal(map[string]any{"services": map[string]any{
		pluginName: map[string]any{"url": server.String(), "credentials": map[string]any{"plugin": pluginName}},
	}})
	if err != nil {
		return nil, fmt.Errorf("configure OPA's plugin manager: %w", err)
	}
	// Its log would have the URL with all that is in it.
	b.manager, err = plugins.New(config, "keystile", inmem.New(), plugins.Logger(logging.NewNoOpLogger()), plugins.ConsoleLogger(logging.NewNoOpLogger()))
	if err != nil {
		return nil, errors.New("configure OPA's plugin manager: it does not accept the URL")
	}
	b.manager.Register(pluginName, b.runner)
	return b, nil
}

// State tells how it stands with the server. It asks nobody; safe for concurrent use.
func (b *Bundle) State() authz.PolicyBundle { return *b.state.Load() }

func (b *Bundle) update(change func(*authz.PolicyBundle)) {
	state := *b.state.Load()
	change(&state)
	b.state.Store(&state)
}

// Begin hands over what was kept, and then what the server has, if it answers; Watch goes on
// from there. The error is of a place where nothing can be kept.
//
// hand tells with a *authz.PolicyRefusedError that a version is refused, and with any other
// error that it could not be tried: then it is handed over again a moment later.
func (b *Bundle) Begin(ctx context.Context, hand func(context.Context, Version) error) error {
	b.hand = hand
	if err := b.openState(); err != nil {
		return err
	}
	b.takeKept(ctx)
	b.poll(ctx)
	return nil
}

// Watch hands over whatever the server publishes until ctx ends.
func (b *Bundle) Watch(ctx context.Context, hand func(context.Context, Version) error) {
	b.hand = hand
	if err := b.manager.Start(ctx); err != nil && ctx.Err() == nil {
		b.lost(errors.New("OPA's plugin manager does not start"))
	}
	<-ctx.Done()
	b.Close()
}

// Close stops and waits. Nothing is handed over afterwards.
func (b *Bundle) Close() { b.manager.Stop(context.Background()) }

// Look reads what the server has, and hands over nothing. The error is a *ContactError when it
// could not be asked, and else why what it has is refused. It must not run beside Begin or
// Watch.
func (b *Bundle) Look(ctx context.Context) (*bundle.Policy, error) {
	archive, _, err := b.fetch(ctx)
	if err != nil {
		return nil, &ContactError{err}
	}
	return bundle.Read(archive, b.o.Keys) //nolint:wrapcheck // it says what is wrong
}

// ContactError is why a server could not be asked.
type ContactError struct{ err error }

// Error says it.
func (e *ContactError) Error() string { return e.err.Error() }

// Unwrap is its cause.
func (e *ContactError) Unwrap() error { return e.err }

// Kept reads what a start without the server would have.
func (b *Bundle) Kept() (*bundle.Policy, error) {
	c, err := b.readKept()
	if err != nil {
		return nil, err
	}
	return c.policy, nil
}

// pluginName is the name of the service, and of the plugin that asks it.
const pluginName = "keystile_policy_bundle"

// runner is the plugin that OPA's manager runs; it makes the client of its service, too.
type runner struct {
	bundle    *Bundle
	transport *http.Transport
	stop      context.CancelFunc
	running   sync.WaitGroup
}

var (
	_ plugins.Plugin      = (*runner)(nil)
	_ rest.HTTPAuthPlugin = (*runner)(nil)
)

// Start implements plugins.Plugin.
func (r *runner) Start(ctx context.Context) error {
	ctx, r.stop = context.WithCancel(ctx)
	r.running.Go(func() { r.bundle.run(ctx) })
	return nil
}

// Stop implements plugins.Plugin.
func (r *runner) Stop(context.Context) {
	if r.stop != nil {
		r.stop()
	}
	r.running.Wait()
	r.transport.CloseIdleConnections()
}

// Reconfigure implements plugins.Plugin; nothing does.
func (*runner) Reconfigure(context.Context, any) {}

// run polls until ctx ends. Requests begin so far apart as they may: a server that holds its
// answer back until there is something new is asked again at once.
func (b *Bundle) run(ctx context.Context) {
	failures := 0
	asked := time.Now()
	for {
		next := time.NewTimer(time.Until(asked.Add(b.pause(failures))))
		select {
		case <-ctx.Done():
			next.Stop()
			return
		case <-next.C:
		}
		asked = time.Now()
		if b.poll(ctx) {
			failures = 0
		} else {
			failures++
		}
	}
}

// pause is how far apart requests are after so many failures.
func (b *Bundle) pause(failures int) time.Duration {
	pause := b.o.Poll
	if failures > 0 {
		pause = min(pause<<min(failures, maxDoublings), max(pause, retryMost))
	}
	half := max(pause/2, 1)
	return half + rand.N(half) //nolint:gosec // to spread, not to hide
}

// poll asks once, and hands over what is new. It tells whether the server answered.
func (b *Bundle) poll(ctx context.Context) bool {
	b.keep() // if it could not be kept before
	archive, etag, err := b.fetch(ctx)
	if err != nil && ctx.Err() != nil {
		return false
	}
	if err != nil {
		b.lost(err)
		b.offer(ctx, b.untried)
		return false
	}
	b.reached()
	b.etag = etag
	if archive == nil || sha256.Sum256(archive) == b.seen {
		b.offer(ctx, b.untried)
		return true
	}
	b.seen, b.untried = sha256.Sum256(archive), nil
	b.take(ctx, archive)
	return true
}

// take judges what came from the server, and hands it over.
func (b *Bundle) take(ctx context.Context, archive []byte) {
	p, err := bundle.Read(archive, b.o.Keys)
	if err != nil {
		_ = b.hand(ctx, Version{Err: err}) // it is refused, and says so
		return
	}
	revision := p.Source.Revision()
	switch {
	case p.Version < b.o.MinVersion:
		err = b.tooLow(p)
	case p.Version < b.version:
		err = fmt.Errorf("the bundle's version %d is lower than %d, which was in force here; to go back, publish the older policy with a higher version", p.Version, b.version)
	case p.Version == b.version && revision != b.revision:
		err = fmt.Errorf("the bundle's version %d was in force here with other files (%s); publish a change with a higher version", p.Version, b.revision)
	}
	if err != nil {
		_ = b.hand(ctx, Version{Source: p.Source, Err: err})
		return
	}
	b.offer(ctx, &candidate{p, archive})
}

// tooLow says why a version is not even looked at.
func (b *Bundle) tooLow(p *bundle.Policy) error {
	return fmt.Errorf("the bundle's version %d is lower than %d, which KEYSTILE_POLICY_BUNDLE_MIN_VERSION asks for", p.Version, b.o.MinVersion)
}

// offer hands over a candidate, if there is one, and notes what becomes of it.
func (b *Bundle) offer(ctx context.Context, c *candidate) {
	if c == nil {
		return
	}
	err := b.hand(ctx, Version{Source: c.policy.Source, AcceptRemoved: c.policy.AcceptRemoved})
	var refused *authz.PolicyRefusedError
	switch {
	case err == nil:
		b.untried = nil
		b.inForce(c)
	case errors.As(err, &refused):
		b.untried = nil
	default:
		b.untried = c
	}
}

// inForce notes that a candidate is in force, and keeps it.
func (b *Bundle) inForce(c *candidate) {
	b.raise(c)
	b.update(func(s *authz.PolicyBundle) { s.Version = c.policy.Version })
	b.keep()
}

// raise notes the highest version. What is the same but for its signature takes the other
// one's place: the key of that may be on its way out.
func (b *Bundle) raise(c *candidate) {
	if bytes.Equal(b.archive, c.archive) {
		return
	}
	b.version, b.revision = c.policy.Version, c.policy.Source.Revision()
	b.archive, b.kept = c.archive, false
}
