package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/localserver"
)

const (
	devDatabase      = "keystile"
	examplesDatabase = "examples"
	examplesRole     = "examples"
	// devStopLimit bounds how long the servers have to stop.
	devStopLimit = 10 * time.Second
)

func newDevCommand() *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:   "dev [-- COMMAND...]",
		Short: "Run everything on this machine, with demonstration data",
		Long: `Run the service with a private Postgres and Redis of its own, on loopback alone,
with two demonstration organizations, their keys and callers.

COMMAND runs beside it with KEYSTILE_URL, KEYSTILE_TOKEN_TICKETS,
KEYSTILE_TOKEN_CUSTOMERS, KEYSTILE_ADMIN_TOKEN and EXAMPLES_DATABASE_URL; when it
ends, dev ends. A second start with the same directory keeps data and secrets.`,
		Example: "  keystile dev\n  keystile dev --data ./demo -o json\n  keystile dev -- go run ./myapp",
	}
	cmd.Flags().StringVar(&o.dir, "data", "", "directory of its servers, data and secrets (default: the user's data directory)")
	cmd.Flags().StringVar(&o.listen, "listen", "127.0.0.1:8080", "address of the check API; loopback only, port 0 takes a free one")
	cmd.Flags().StringVar(&o.opsListen, "ops-listen", "127.0.0.1:9090", "address of metrics and detailed readiness; loopback only")
	cmd.Flags().StringVarP(&o.output, "output", "o", "text", "what to print when ready: text or json")
	cmd.Flags().StringVar(&o.examples, "examples", "", "also run the example apps, from the binaries tickets and customers in this directory")
	cmd.Flags().StringVar(&o.ticketsListen, "tickets-listen", "127.0.0.1:8081", "address of the tickets app of --examples")
	cmd.Flags().StringVar(&o.customersListen, "customers-listen", "127.0.0.1:8082", "address of the customers app of --examples")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if o.output != "text" && o.output != "json" {
			return usageError(fmt.Errorf("--output is %q; accepted: text, json", o.output))
		}
		o.command = args
		o.out, o.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
		return runDev(cmd.Context(), o)
	}
	return cmd
}

type devOptions struct {
	dir, listen, opsListen, output           string
	examples, ticketsListen, customersListen string
	command                                  []string
	out, err                                 io.Writer
}

// dev is a running demonstration.
type dev struct {
	options  devOptions
	secrets  devSecrets
	cfg      Config
	postgres *localserver.Postgres
	redis    *localserver.Redis // nil without a redis-server
	service  *service
	info     devInfo
	// examplesURL is the database of the example apps.
	examplesURL string
	commands    []*devCommand
	ended       chan error
}

// devInfo is what dev.json and -o json tell. Absent things are null.
type devInfo struct {
	URL           string            `json:"url"`
	OpsURL        string            `json:"ops_url"`
	AdminToken    string            `json:"admin_token"`
	Callers       map[string]string `json:"callers"`
	Organizations demoValues        `json:"organizations"`
	Keys          demoValues        `json:"keys"`
	SetupURL      *string           `json:"setup_url"`
	DatabaseURL   string            `json:"database_url"`
	RedisURL      *string           `json:"redis_url"`
	Env           map[string]string `json:"env"`
	PIDs          devPIDs           `json:"pids"`
}

// demoValues are ids or secrets by their names in the demonstration; "" is null, of what was
// deleted.
type demoValues map[string]string

// MarshalJSON implements json.Marshaler.
func (v demoValues) MarshalJSON() ([]byte, error) {
	all := make(map[string]*string, len(v))
	for name, value := range v {
		all[name] = nil
		if value != "" {
			all[name] = &value
		}
	}
	return json.Marshal(all) //nolint:wrapcheck // strings always can
}

type devPIDs struct {
	Keystile int  `json:"keystile"`
	Postgres int  `json:"postgres"`
	Redis    *int `json:"redis"`
}

// runDev starts everything, tells so, and waits for a signal or the end of a part.
func runDev(ctx context.Context, o devOptions) (err error) {
	for name, address := range map[string]string{
		"--listen": o.listen, "--ops-listen": o.opsListen, "--tickets-listen": o.ticketsListen, "--customers-listen": o.customersListen,
	} {
		if !loopback(address) {
			return usageError(fmt.Errorf("%s %s is not a loopback address; dev serves this machine alone, use 127.0.0.1:PORT", name, address))
		}
	}
	if o.dir, err = devDirectory(o.dir); err != nil {
		return err
	}
	unlock, err := lockDirectory(o.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()

	d := &dev{options: o, ended: make(chan error, 4)}
	info := filepath.Join(o.dir, "dev.json")
	if err := os.Remove(info); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the dev.json of an earlier start: %w", err)
	}
	defer func() {
		_ = os.Remove(info) // absent when the start failed
		err = errors.Join(err, d.stop())
	}()
	if err := d.start(ctx); err != nil {
		return err
	}
	line, err := json.Marshal(d.info)
	if err != nil {
		return fmt.Errorf("write dev.json: %w", err)
	}
	line = append(line, '\n')
	if err := writeByRename(info, line); err != nil {
		return err
	}
	if err := d.startCommands(ctx); err != nil {
		return err
	}
	if o.output == "json" {
		_, err = o.out.Write(line)
	} else {
		err = d.banner(o.out)
	}
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return d.wait(ctx)
}

// start brings up servers, schema, data and service, in this order.
func (d *dev) start(ctx context.Context) error {
	format, err := authz.NewKeyFormat(authz.DefaultKeyPrefix)
	if err != nil {
		return fmt.Errorf("demonstration: %w", err)
	}
	if d.secrets, err = loadDevSecrets(d.options.dir, format); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(d.options.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d.postgres, err = localserver.StartPostgres(ctx, localserver.PostgresOptions{
		Dir: filepath.Join(d.options.dir, "postgres"), Password: d.secrets.DatabasePassword, Logger: log,
	})
	if err != nil {
		return dependencyError(err)
	}
	if err := d.startRedis(ctx, log); err != nil {
		return err
	}
	if err := d.postgres.CreateDatabase(ctx, devDatabase, "", ""); err != nil {
		return dependencyError(err)
	}
	if err := d.postgres.CreateDatabase(ctx, examplesDatabase, examplesRole, d.secrets.ExamplesPassword); err != nil {
		return dependencyError(err)
	}
	env := d.environment()
	if d.cfg, err = configFromEnvironment(env); err != nil {
		return err
	}
	if _, _, err := store.Migrate(ctx, d.cfg.DatabaseURL); err != nil {
		return dependencyError(err)
	}
	if err := store.MarkDeployment(ctx, d.cfg.DatabaseURL, store.DeploymentDev); err != nil {
		return dependencyError(err)
	}
	// Served until it is told to stop, not until the signal: what runs beside it
	// has its last checks answered.
	if d.service, err = startService(context.WithoutCancel(ctx), d.cfg, log); err != nil {
		return err
	}
	organizations, err := seedDemo(ctx, d.service.store, d.secrets, format)
	if err != nil {
		return dependencyError(err)
	}
	if err := d.service.store.Synchronize(ctx); err != nil {
		return dependencyError(err)
	}
	d.examplesURL = d.postgres.UserURL(examplesDatabase, examplesRole, d.secrets.ExamplesPassword)
	d.describe(env, organizations)
	return nil
}

func (d *dev) startRedis(ctx context.Context, log *slog.Logger) error {
	redis, err := localserver.StartRedis(ctx, localserver.RedisOptions{
		Dir: filepath.Join(d.options.dir, "redis"), Password: d.secrets.RedisPassword, Logger: log,
	})
	var missing *localserver.MissingError
	if errors.As(err, &missing) {
		return nil // the in-process limiter stands in, and the banner says so
	}
	if err != nil {
		return dependencyError(err)
	}
	d.redis = redis
	return nil
}

// environment is the service's own configuration.
func (d *dev) environment() map[string]string {
	env := map[string]string{
		"KEYSTILE_DATABASE_URL": d.postgres.URL(devDatabase),
		"KEYSTILE_PEPPERS":      d.secrets.Peppers,
		"KEYSTILE_DEPLOYMENT":   store.DeploymentDev,
		"KEYSTILE_LISTEN":       d.options.listen,
		"KEYSTILE_OPS_LISTEN":   d.options.opsListen,
		// Beside the database, as in earnest: `audit-log verify --checkpoint` reads it.
		"KEYSTILE_AUDIT_CHECKPOINTS": filepath.Join(d.options.dir, "audit-checkpoints"),
		"KEYSTILE_STATE_DIR":         filepath.Join(d.options.dir, "state"),
	}
	if d.redis != nil {
		env["KEYSTILE_REDIS_URL"] = d.redis.URL()
	}
	return env
}

// describe fills what dev.json tells. Its env is for a second replica: free ports.
func (d *dev) describe(env, organizations map[string]string) {
	env["KEYSTILE_LISTEN"], env["KEYSTILE_OPS_LISTEN"] = "127.0.0.1:0", "127.0.0.1:0"
	known, keys := make(demoValues), make(demoValues)
	for name := range demoOrganizations() {
		known[name] = organizations[name]
	}
	for _, k := range demoKeys() {
		keys[k.name] = ""
		if known[k.organization] != "" {
			keys[k.name] = d.secrets.Keys[k.name]
		}
	}
	d.info = devInfo{
		URL: d.service.url, OpsURL: d.service.opsURL, AdminToken: d.secrets.AdminToken, Callers: d.secrets.Callers,
		Organizations: known, Keys: keys, DatabaseURL: d.postgres.URL(devDatabase), Env: env,
		PIDs: devPIDs{Keystile: os.Getpid(), Postgres: d.postgres.PID()},
	}
	if d.redis != nil {
		url, pid := d.redis.URL(), d.redis.PID()
		d.info.RedisURL, d.info.PIDs.Redis = &url, &pid
	}
}

// wait returns at a signal, or when a part ends by itself.
func (d *dev) wait(ctx context.Context) error {
	var redisEnded <-chan struct{}
	if d.redis != nil {
		redisEnded = d.redis.Done()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-d.ended:
			return err
		case err := <-d.service.served:
			d.service.served <- err // for stop, which waits for it
			return errors.Join(errors.New("the service ended by itself"), err)
		case <-d.postgres.Done():
			return errors.New("Postgres ended by itself; see " + filepath.Join(d.options.dir, "postgres"))
		case <-redisEnded:
			redisEnded = nil
			_, _ = fmt.Fprintln(d.options.err, "redis-server ended by itself; limits are counted in this process from here on")
		}
	}
}

// stop ends everything that was started, the last first.
func (d *dev) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), devStopLimit)
	defer cancel()
	for _, c := range d.commands {
		c.stop(ctx)
	}
	var errs []error
	if d.service != nil {
		errs = append(errs, d.service.close())
	}
	if d.redis != nil {
		errs = append(errs, d.redis.Stop(ctx))
	}
	if d.postgres != nil {
		errs = append(errs, d.postgres.Stop(ctx))
	}
	return errors.Join(errs...)
}
