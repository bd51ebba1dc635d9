package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // the driver of sqlx

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/sdk/admin"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/localserver"
)

// password is that of the servers, which are on loopback and end with their row.
const password = "faults"

// site is what a row breaks: a Postgres and a Redis of its own, with a migrated
// database, an organization, a caller and an admin; and the replicas on them. Not safe
// for concurrent use, but for what says so.
type site struct {
	*trial

	dir          string
	postgres     *localserver.Postgres
	redis        *localserver.Redis
	env          map[string]string
	peppers      authz.Peppers
	format       authz.KeyFormat
	organization authz.OrganizationID
	caller       authz.Secret
	admin        authz.Secret
	replicas     []*replica
	clients      map[*replica]*admin.Client
	seeding      *store.Store // open until the first replica starts
	began        time.Time
	stalls       *stallWatch
	// program builds what replicas run; nil is the program as it is.
	program func() (path string, err error)

	mu sync.Mutex
	// secrets are all that were ever made here: none may be in a log.
	secrets []authz.Secret
	wrong   wrongAllows
	// answers are those of all loads that have ended.
	answers answers
	// logJudged tells that the log of Postgres was looked at.
	logJudged bool
}

// newSite starts the servers. Everything ends with the row, after which the logs are
// looked at and what was answered is judged: see inspect.
func newSite(t *trial) *site {
	t.Helper()
	s := &site{trial: t, clients: make(map[*replica]*admin.Client), wrong: make(wrongAllows), began: time.Now(), stalls: watchStalls()}
	var err error
	if s.dir, err = os.MkdirTemp("", "keystile-faults-"); err == nil {
		err = os.Chmod(s.dir, 0o711) // Postgres does not run as root: its user must be able to pass through
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(s.dir) })
	t.Cleanup(func() { s.inspect() })
	s.startPostgres()
	s.startRedis()
	t.Cleanup(func() {
		for _, stop := range []func(context.Context) error{s.postgres.Stop, s.redis.Stop} {
			if err := stop(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(s.drain)
	measured.servers(t, s.postgres, s.redis)
	s.env = map[string]string{
		"KEYSTILE_DATABASE_URL": s.postgres.URL("postgres"),
		"KEYSTILE_REDIS_URL":    s.redis.URL(),
		"KEYSTILE_PEPPERS":      authz.NewPepper("faults"),
		"KEYSTILE_LISTEN":       "127.0.0.1:0",
		"KEYSTILE_OPS_LISTEN":   "127.0.0.1:0",
		"KEYSTILE_LOG_LEVEL":    "debug",
		"KEYSTILE_STATE_DIR":    filepath.Join(s.dir, "state"),
	}
	s.note("servers are ready")
	s.populate()
	return s
}

// populate migrates, and makes the organization, the caller and the admin.
func (s *site) populate() {
	s.Helper()
	if _, _, err := store.Migrate(s.Context(), s.database()); err != nil {
		s.Fatal(err)
	}
	var err error
	if s.peppers, err = authz.ParsePeppers(s.env["KEYSTILE_PEPPERS"]); err != nil {
		s.Fatal(err)
	}
	if s.format, err = authz.NewKeyFormat(authz.DefaultKeyPrefix); err != nil {
		s.Fatal(err)
	}
	if s.seeding, err = store.Open(s.Context(), store.Options{URL: s.database(), Peppers: s.peppers}); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = s.seeding.Close() })
	first, err := manage.Bootstrap(s.Context(), s.seeding, manage.AuditKeys(authz.Peppers{}, s.peppers), "faults", manage.MaxAdminDays)
	if err != nil {
		s.Fatal(err)
	}
	s.admin, s.caller = first.Secret, authz.CallerTokens().Generate()
	s.seed(func(ctx context.Context, c *store.Change) error {
		s.organization = authz.NewOrganizationID(c.Now())
		caller := &authz.Caller{
			ID: authz.NewCallerID(c.Now()), Name: "load", Permissions: []authz.Permission{authz.PermissionCheck},
			Environments: []authz.Environment{authz.EnvironmentLive},
		}
		return errors.Join(c.AddOrganization(ctx, &authz.Organization{ID: s.organization, Name: "Acme", Plan: "standard"}),
			c.AddCaller(ctx, caller, s.caller))
	})
	s.keep(s.caller, s.admin)
}

// seed writes to the database as a replica would. It may be used until the first replica
// starts: no receipt waits for it.
func (s *site) seed(do func(context.Context, *store.Change) error) {
	s.Helper()
	if len(s.replicas) > 0 {
		s.Fatal("replicas have started: what a row needs is stored before")
	}
	if _, err := s.seeding.Change(s.Context(), do); err != nil {
		s.Fatal(err)
	}
}

func (s *site) database() store.DatabaseURL {
	s.Helper()
	parsed, err := store.ParseDatabaseURL(s.env["KEYSTILE_DATABASE_URL"])
	if err != nil {
		s.Fatal(err)
	}
	return parsed
}

// keep remembers secrets that must be in no log. Safe for concurrent use.
func (s *site) keep(secrets ...authz.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets = append(s.secrets, secrets...)
}

// plenty is a limit that no load reaches.
func plenty() *authz.Rate { return &authz.Rate{Rate: 600_000, Period: time.Minute, Burst: 600_000} }

// addKeys stores keys with this limit of their own; nil is the plan's, 100 a minute.
func (s *site) addKeys(n int, limit *authz.Rate) []*key {
	s.Helper()
	keys := s.makeKeys(n)
	everyone := manage.TenantOf(&authz.Admin{Role: authz.RolePlatformAdmin})
	s.seed(func(ctx context.Context, c *store.Change) error {
		for part := range slices.Chunk(keys, 1000) {
			rows := make([]manage.ImportedKey, len(part))
			for i, k := range part {
				k.id, k.stored = authz.NewKeyID(c.Now()), true
				rows[i] = manage.ImportedKey{Hash: k.secret.Hash(), Key: manage.Key{
					ID: k.id, OrganizationID: s.organization, Name: "k", Environment: authz.EnvironmentLive,
					Scopes: []authz.Scope{"tickets:read"}, RateLimit: limit, CreatedBy: "faults",
					Secrets: []manage.KeySecret{{ID: authz.NewSecretID(c.Now()), Hint: s.format.Hint(k.secret)}},
				}}
			}
			if duplicates, err := c.ImportKeys(ctx, everyone, rows); err != nil || len(duplicates) > 0 {
				return fmt.Errorf("%d duplicates, %w", len(duplicates), err)
			}
		}
		return nil
	})
	return keys
}

// makeKeys makes keys that nobody has stored. They are well formed, and must never be allowed.
func (s *site) makeKeys(n int) []*key {
	keys := make([]*key, n)
	for i := range keys {
		keys[i] = s.newKey(s.format.Generate(authz.EnvironmentLive))
	}
	return keys
}

// startPostgres starts it, at the place it had before.
func (s *site) startPostgres() {
	s.Helper()
	options := localserver.PostgresOptions{Dir: s.dir + "/postgres", Password: password, FsyncOff: true}
	if s.postgres != nil {
		options.Port = s.postgres.Port()
	}
	started, err := localserver.StartPostgres(s.Context(), options)
	if err != nil {
		s.Fatal(err)
	}
	s.postgres = started
}

// startRedis starts it, at the place it had before.
func (s *site) startRedis() {
	s.Helper()
	options := localserver.RedisOptions{Dir: s.dir + "/redis", Password: password}
	if s.redis != nil {
		options.Port = s.redis.Port()
	}
	started, err := localserver.StartRedis(s.Context(), options)
	if err != nil {
		s.Fatal(err)
	}
	s.redis = started
}

// killPostgres kills the postmaster, and returns when it was dead.
func (s *site) killPostgres() time.Time {
	s.Helper()
	s.signal(s.postgres.PID(), syscall.SIGKILL)
	<-s.postgres.Done()
	died := time.Now()
	_ = s.postgres.Stop(s.Context()) // it has ended: this lets go of its directory
	return died
}

// killRedis kills it, and returns when it was dead.
func (s *site) killRedis() time.Time {
	s.Helper()
	s.signal(s.redis.PID(), syscall.SIGKILL)
	<-s.redis.Done()
	died := time.Now()
	_ = s.redis.Stop(s.Context())
	return died
}

// note logs what the row does, beside what inspect logs by the second.
func (s *site) note(format string, args ...any) {
	s.Helper()
	s.Logf("second %.1f: "+format, append([]any{time.Since(s.began).Seconds()}, args...)...)
}

// signal sends a signal to a process of this row's.
func (s *site) signal(pid int, sig syscall.Signal) {
	s.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		s.Fatalf("send %v to process %d: %v", sig, pid, err)
	}
}

// start starts replicas, and ends what is stored before; with further variables when some are given.
func (s *site) start(n int, more ...map[string]string) []*replica {
	s.Helper()
	if err := s.seeding.Close(); err != nil {
		s.Fatal(err)
	}
	env := maps.Clone(s.env)
	for _, m := range more {
		maps.Copy(env, m)
	}
	started := make([]*replica, n)
	for i := range started {
		started[i] = s.startReplica(env)
		s.note("replica %d is ready", len(s.replicas)-1)
	}
	return started
}

// management is an admin's client of one replica.
func (s *site) management(r *replica) *admin.Client {
	s.Helper()
	if s.clients[r] == nil {
		client, err := admin.New(r.adminURL, s.admin.Reveal())
		if err != nil {
			s.Fatal(err)
		}
		s.Cleanup(client.CloseIdleConnections)
		s.clients[r] = client
	}
	return s.clients[r]
}

// db is a connection of somebody else's to the row's database, for as long as do runs.
func (s *site) db(do func(*sqlx.DB)) {
	s.Helper()
	db, err := sqlx.ConnectContext(s.Context(), "postgres", s.postgres.URL("postgres"))
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	do(db)
}

func queryText(t *trial, url, query string) (text string) {
	t.Helper()
	db, err := sqlx.ConnectContext(t.Context(), "postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.GetContext(t.Context(), &text, query); err != nil {
		t.Fatal(err)
	}
	return text
}
