package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/audit"
	"github.com/supportstation/keystile/authz/decisionlog"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/ratelimit"
	"github.com/supportstation/keystile/server"
	"github.com/supportstation/keystile/store"
)

func newServeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the service",
		Long: `Run the service until SIGINT or SIGTERM, then drain.

It needs a migrated database (keystile migrate), a Redis and peppers; see
"keystile config show". With -o json it prints one line when it is ready.`,
		Args: cobra.NoArgs,
	}
	var output string
	cmd.Flags().StringVarP(&output, "output", "o", "text", "what to print when ready: text or json")
	load := addConfigFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output != "text" && output != "json" {
			return usageError(fmt.Errorf("--output is %q; accepted: text, json", output))
		}
		cfg, err := load(cmd, needsService)
		if err != nil {
			return err
		}
		s, err := startService(cmd.Context(), cfg, newLogger(cfg, cmd.ErrOrStderr()))
		if err != nil {
			return err
		}
		if err := s.announce(cmd.OutOrStdout(), output); err != nil {
			return errors.Join(err, s.close())
		}
		return s.wait()
	}
	return cmd
}

// service is a running keystile: all the wiring stands in start.
type service struct {
	url, adminURL, opsURL string
	store                 *store.Store
	policy                *policySource
	limiter               *ratelimit.Limiter
	decisions             *decisionlog.Log // nil while the decision log is off
	cancel                context.CancelFunc
	served                chan error
	// stopMarking ends the audit log's checkpoints, with a last one.
	stopMarking context.CancelFunc
	marking     sync.WaitGroup
	// watch looks at how the policy in force fails, until stopWatching.
	watch        *policyWatch
	stopWatching context.CancelFunc
	watching     sync.WaitGroup
	// shadows asks policies beside the one in force, until stopShadows.
	shadows     *policyShadows
	stopShadows context.CancelFunc
	shadowing   sync.WaitGroup
}

// startService wires the parts and serves. It returns when the listeners accept.
// The service ends with ctx; wait for it.
func startService(ctx context.Context, cfg Config, log *slog.Logger) (*service, error) {
	s := &service{served: make(chan error, 1)}
	if err := s.start(ctx, cfg, log); err != nil {
		return nil, errors.Join(err, s.closeParts())
	}
	return s, nil
}

func (s *service) start(ctx context.Context, cfg Config, log *slog.Logger) error {
	var err error
	if s.policy, err = newPolicySource(ctx, cfg, log); err != nil {
		return err
	}
	engine := s.policy.engine
	tlsConfig, err := loadTLS(cfg)
	if err != nil {
		return configError(err)
	}
	s.store, err = store.Open(ctx, store.Options{
		URL: cfg.DatabaseURL, Peppers: cfg.Peppers, StaleMax: cfg.StaleMax, Deployment: cfg.Deployment,
		UsageRetention: cfg.UsageRetention, UsageDaysRetention: cfg.UsageDaysRetention, UsageNetwork: cfg.UsageNetwork,
		SpillDir: stateDir(cfg), Decisions: cfg.Decisions, Logger: log,
	})
	if err != nil {
		return dependencyError(err)
	}
	s.policy.follow(ctx, s.store)
	s.limiter, err = ratelimit.New(ratelimit.Options{
		URL: cfg.RedisURL, OnOutage: cfg.OnLimiterOutage, Clock: s.store.Clock(), Replicas: s.store.LiveReplicas, Logger: log,
	})
	if err != nil {
		return configError(err)
	}
	// Nothing waits for Redis, and a wrong address would be told by the first checks alone.
	if err := tryThrice(func() error { return s.limiter.Ping(ctx) }); err != nil {
		log.Warn("Redis does not answer at the start; limits are stood in for until it does",
			slog.String("mode", string(cfg.OnLimiterOutage)), slog.Any("error", err))
	}
	recorders := []authz.DecisionRecorder{s.store}
	if s.decisions, err = newDecisionLog(cfg, engine, log); err != nil {
		return err
	}
	if s.decisions != nil {
		recorders = append(recorders, s.decisions)
	}
	checker, err := authz.NewChecker(authz.CheckerOptions{
		Keys: s.store, Policy: engine, Limiter: s.limiter, Clock: s.store.Clock(), Decisions: recorders,
		Realm: cfg.Realm, Opaque401: cfg.Opaque401,
	})
	if err != nil {
		return configError(err)
	}
	management, err := manage.New(manage.Options{
		Store: s.store, Policy: engine, Policies: s.policy.keeper, Format: cfg.KeyFormat, AuditKeys: manage.AuditKeys(cfg.AuditKeys, cfg.Peppers),
		Auditor: audit.New(engine), AcceptsForeign: s.store.AcceptsForeign,
		Decisions: manage.DecisionsKept{For: cfg.Decisions.For, Sample: cfg.Decisions.Sample},
	})
	if err != nil {
		return configError(err)
	}
	web, err := server.New(server.Options{
		Checker: checker, Callers: authz.NewCallers(s.store, s.store.Clock()), Format: cfg.KeyFormat,
		AcceptsForeign: s.store.AcceptsForeign, Management: management, Admins: authz.NewAdmins(s.store, s.store.Clock()),
		TrustedProxies: cfg.TrustedProxies, Ready: func() server.Readiness { return s.readiness() },
		Pprof: cfg.Pprof, TLS: tlsConfig, Logger: log,
	})
	if err != nil {
		return fmt.Errorf("make the server: %w", err)
	}
	marks, err := newCheckpoints(management, cfg.AuditCheckpoints, log)
	if err != nil {
		return err
	}
	api, ops, admin, err := s.listen(ctx, cfg, tlsConfig != nil)
	if err != nil {
		return err
	}
	ctx, s.cancel = context.WithCancel(ctx)
	go tuneGC(ctx)
	var marking context.Context
	marking, s.stopMarking = context.WithCancel(context.WithoutCancel(ctx))
	s.marking.Go(func() { marks.run(marking, manage.CheckpointInterval) })
	s.startWatch(ctx, management, log)
	s.startShadows(ctx, management, log)
	go func() { s.served <- web.Serve(ctx, api, ops, admin) }()
	return nil
}

// listen opens all listeners, or none. admin is nil when management is on the check API's.
func (s *service) listen(ctx context.Context, cfg Config, withTLS bool) (api, ops, admin net.Listener, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, l := range []net.Listener{api, ops, admin} {
			if l != nil {
				err = errors.Join(err, l.Close())
			}
		}
	}()
	if api, err = listen(ctx, "--listen", cfg.Listen); err != nil {
		return nil, nil, nil, err
	}
	if ops, err = listen(ctx, "--ops-listen", cfg.OpsListen); err != nil {
		return api, nil, nil, err
	}
	scheme := "http://"
	if withTLS {
		scheme = "https://"
	}
	s.url, s.opsURL = scheme+api.Addr().String(), "http://"+ops.Addr().String()
	s.adminURL = s.url
	if cfg.AdminListen != "" {
		if admin, err = listen(ctx, "--admin-listen", cfg.AdminListen); err != nil {
			return api, ops, nil, err
		}
		s.adminURL = scheme + admin.Addr().String()
	}
	return api, ops, admin, nil
}

func listen(ctx context.Context, flag, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, dependencyError(fmt.Errorf("cannot listen on %s: %w; choose another address with %s (port 0 takes a free one)",
			address, err, flag))
	}
	return l, nil
}

// loadTLS reads certificate, key and client authorities; nil without a certificate.
// tryThrice is for what may take longer the first time, such as a connection.
func tryThrice(do func() error) (err error) {
	for range 3 {
		if err = do(); err == nil {
			return nil
		}
	}
	return err
}

func loadTLS(cfg Config) (*tls.Config, error) {
	if cfg.TLSCert == "" {
		return nil, nil //nolint:nilnil // plain HTTP is an answer
	}
	pair, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("KEYSTILE_TLS_CERT and KEYSTILE_TLS_KEY: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if cfg.TLSClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(cfg.TLSClientCA)
	if err != nil {
		return nil, fmt.Errorf("KEYSTILE_TLS_CLIENT_CA: %w", err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("KEYSTILE_TLS_CLIENT_CA holds no certificate in PEM form")
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}

func newLogger(cfg Config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// announce prints that the service is ready: one JSON line, or a sentence. Decisions that are
// logged to standard output come behind it.
func (s *service) announce(w io.Writer, output string) error {
	if s.decisions != nil {
		defer s.decisions.Start()
	}
	var err error
	if output == "json" {
		err = json.NewEncoder(w).Encode(struct {
			URL      string `json:"url"`
			AdminURL string `json:"admin_url"`
			OpsURL   string `json:"ops_url"`
			PID      int    `json:"pid"`
		}{s.url, s.adminURL, s.opsURL, os.Getpid()})
	} else {
		_, err = fmt.Fprintf(w, "keystile answers checks on %s (health and metrics on %s)\n", s.url, s.opsURL)
	}
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// wait returns when the service has ended and drained. A database that turns out not to
// fit, after it did not answer at the start, ends it.
func (s *service) wait() error {
	var refused error
	select {
	case err := <-s.served:
		return errors.Join(err, s.closeParts())
	case refused = <-s.store.Refused():
		s.cancel()
	}
	return errors.Join(dependencyError(refused), <-s.served, s.closeParts())
}

// close ends the service and waits for it.
func (s *service) close() error {
	s.cancel()
	return s.wait()
}

func (s *service) closeParts() error {
	var errs []error
	if s.store != nil {
		s.store.EndSoon()
	}
	if s.stopWatching != nil {
		s.stopWatching()
		s.watching.Wait()
	}
	if s.stopShadows != nil {
		s.stopShadows()
		s.shadowing.Wait()
	}
	if s.stopMarking != nil {
		s.stopMarking()
		s.marking.Wait()
	}
	if s.decisions != nil {
		errs = append(errs, s.decisions.Close())
	}
	if s.policy != nil {
		s.policy.close()
	}
	if s.limiter != nil {
		errs = append(errs, s.limiter.Close())
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}
