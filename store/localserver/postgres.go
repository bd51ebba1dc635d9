package localserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"
)

const (
	superuser = "keystile"
	// minPostgres is the oldest major version that will do.
	minPostgres = 14
	// readyLimit bounds how long a server has to accept connections.
	readyLimit = 30 * time.Second
	// maxSocketDirectory leaves room for the socket's name in the 108 bytes of a Unix address.
	maxSocketDirectory = 80
)

// PostgresOptions are what StartPostgres needs.
type PostgresOptions struct {
	// Dir is where the cluster lives; made if need be, kept for the next start.
	Dir string
	// Password is the superuser's, and must be the same at each start.
	Password string
	// Port on 127.0.0.1; 0 takes a free one.
	Port int
	// FsyncOff trades durability for speed: for tests.
	FsyncOff bool
	// Logger gets what happens; nil discards it.
	Logger *slog.Logger
}

// Postgres is a running private server. Safe for concurrent use.
type Postgres struct {
	process  *process
	password string
	port     int
	sockets  string
	// ownSockets tells that the socket directory is a temporary one.
	ownSockets bool
}

// StartPostgres starts a private Postgres and returns when it accepts connections. A
// server that an earlier start left behind in the same directory is ended first. As
// root it runs as user postgres or nobody. A *MissingError tells what to install.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	binary, err := findPostgres(ctx)
	if err != nil {
		return nil, err
	}
	as, name, err := dropPrivileges()
	if err != nil {
		return nil, err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	if err := makeDirectory(o.Dir, as, name); err != nil {
		return nil, err
	}
	data := filepath.Join(o.Dir, "data")
	if err := endLeftover(ctx, postmasterPID(data), syscall.SIGINT, "postgres", data); err != nil {
		return nil, err
	}
	if err := initCluster(ctx, binary, o, data, as); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		p, err := startPostgres(ctx, binary, o, data, as)
		if err == nil || o.Port != 0 || attempt == startAttempts || ctx.Err() != nil {
			return p, err
		}
	}
}

func findPostgres(ctx context.Context) (string, error) {
	missing := &MissingError{
		Program: fmt.Sprintf("PostgreSQL (%d or later)", minPostgres),
		Install: "on Debian or Ubuntu `apt-get install postgresql`, on Fedora `dnf install postgresql-server`, on macOS `brew install postgresql@17`",
	}
	binary, ok := findProgram("postgres", "/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin", "/opt/homebrew/bin", "/usr/local/pgsql/bin")
	if !ok {
		return "", missing
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(binary), "initdb")); err != nil {
		missing.Program = "initdb, which belongs beside " + binary + ","
		return "", missing
	}
	major, err := postgresVersion(ctx, binary)
	if err != nil {
		return "", err
	}
	if major < minPostgres {
		missing.Program = fmt.Sprintf("PostgreSQL %d or later (%s is version %d)", minPostgres, binary, major)
		return "", missing
	}
	return binary, nil
}

func postgresVersion(ctx context.Context, binary string) (int, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output() //nolint:gosec // the binary that was found
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", binary, err)
	}
	// "postgres (PostgreSQL) 17.2 (Debian …)", "postgres (PostgreSQL) 18beta1"
	for field := range strings.FieldsSeq(string(out)) {
		digits := strings.IndexFunc(field, func(r rune) bool { return r < '0' || r > '9' })
		if digits < 0 {
			digits = len(field)
		}
		if n, err := strconv.Atoi(field[:digits]); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s does not tell its version", binary)
}

// postmasterPID reads the number of the server that holds a data directory, or 0.
func postmasterPID(data string) int {
	raw, err := os.ReadFile(filepath.Join(data, "postmaster.pid")) //nolint:gosec // our own directory
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	pid, _ := strconv.Atoi(strings.TrimSpace(first)) // 0 for what is no number
	return pid
}

// initCluster makes the cluster, unless it is there: beside its place and then by
// rename, so that one that was interrupted is never taken for whole.
func initCluster(ctx context.Context, binary string, o PostgresOptions, data string, as *syscall.Credential) error {
	if raw, err := os.ReadFile(filepath.Join(data, "PG_VERSION")); err == nil { //nolint:gosec // our own directory
		major, err := postgresVersion(ctx, binary)
		if err != nil {
			return err
		}
		if made := strings.TrimSpace(string(raw)); made != strconv.Itoa(major) {
			return fmt.Errorf("%s was made by PostgreSQL %s, but %s is version %d: install PostgreSQL %s, or remove the directory to start afresh",
				data, made, binary, major, made)
		}
		return nil
	}
	fresh := data + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("make a Postgres cluster: %w", err)
	}
	passwordFile := filepath.Join(o.Dir, "password")
	if err := writeOwned(passwordFile, o.Password+"\n", as); err != nil {
		return err
	}
	defer func() { _ = os.Remove(passwordFile) }()
	args := []string{
		"-D", fresh, "-U", superuser, "--auth=scram-sha-256", "--pwfile=" + passwordFile, "--encoding=UTF8", "--locale=C", "--no-instructions",
	}
	if o.FsyncOff {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(binary), "initdb"), args...) //nolint:gosec // the binary that was found
	cmd.Dir = o.Dir
	cmd.SysProcAttr = childAttributes(syscall.SIGKILL)
	cmd.SysProcAttr.Credential = as
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make a Postgres cluster in %s: %w: %s", data, err, strings.TrimSpace(string(out)))
	}
	if err := os.Rename(fresh, data); err != nil {
		return fmt.Errorf("make a Postgres cluster: %w", err)
	}
	return nil
}

func writeOwned(path, content string, as *syscall.Credential) error {
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if as == nil {
		return nil
	}
	if err := os.Chown(path, int(as.Uid), int(as.Gid)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func startPostgres(ctx context.Context, binary string, o PostgresOptions, data string, as *syscall.Credential) (p *Postgres, err error) {
	p = &Postgres{password: o.Password}
	if p.port, err = choosePort(ctx, o.Port); err != nil {
		return nil, err
	}
	if err := p.chooseSockets(o.Dir, as); err != nil {
		return nil, err
	}
	logPath := filepath.Join(o.Dir, "server.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) //nolint:gosec // our own directory
	if err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	defer func() { _ = log.Close() }()
	args := []string{
		"-D", data, "-p", strconv.Itoa(p.port), "-k", p.sockets, "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_permissions=0700", "-c", "max_connections=100", "-c", "logging_collector=off",
	}
	if o.FsyncOff {
		args = append(args, "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
	}
	cmd := exec.Command(binary, args...) //nolint:gosec,noctx // its life is Stop's, not ctx's
	cmd.Dir = o.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if p.process, err = startProcess(cmd, as, syscall.SIGINT); err != nil {
		return nil, err
	}
	if err := p.waitReady(ctx); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("start Postgres in %s: %w; its log ends with:\n%s", o.Dir, err, tail(logPath)), p.Stop(stop))
	}
	if o.Logger != nil {
		o.Logger.Debug("Postgres is ready", slog.Int("port", p.port), slog.Int("pid", p.PID()))
	}
	return p, nil
}

// chooseSockets takes a directory in the cluster's own, or a short temporary one
// where that would be too long for a Unix address.
func (p *Postgres) chooseSockets(dir string, as *syscall.Credential) error {
	p.sockets = filepath.Join(dir, "sockets")
	if len(p.sockets) > maxSocketDirectory {
		var err error
		if p.sockets, err = os.MkdirTemp("/tmp", "ks-"); err != nil {
			return fmt.Errorf("make a directory for sockets: %w", err)
		}
		p.ownSockets = true
	}
	if err := os.MkdirAll(p.sockets, 0o700); err != nil {
		return fmt.Errorf("make a directory for sockets: %w", err)
	}
	if as == nil {
		return nil
	}
	if err := os.Chown(p.sockets, int(as.Uid), int(as.Gid)); err != nil {
		return fmt.Errorf("make a directory for sockets: %w", err)
	}
	return nil
}

func (p *Postgres) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("it did not accept connections within %v", readyLimit))
	defer cancel()
	connector, err := pq.NewConnector(p.URL("postgres"))
	if err != nil {
		return errors.New("its URL is not accepted by lib/pq")
	}
	db := sql.OpenDB(connector)
	defer func() { _ = db.Close() }()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		var answered *pq.Error
		if errors.As(err, &answered) && answered.Code.Class() == "28" {
			return errors.New("it refuses the password: the data directory was made with another one")
		}
		select {
		case <-retry.C:
		case <-p.process.done:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// URL returns the superuser's lib/pq URL of a database, over loopback TCP.
func (p *Postgres) URL(database string) string { return p.UserURL(database, superuser, p.password) }

// UserURL returns the lib/pq URL of a database for another role.
func (p *Postgres) UserURL(database, role, password string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(role, password), Path: "/" + database, RawQuery: "sslmode=disable",
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)),
	}
	return u.String()
}

// SocketURL returns the superuser's lib/pq URL of a database, over the Unix socket.
func (p *Postgres) SocketURL(database string) string {
	q := url.Values{"host": {p.sockets}, "port": {strconv.Itoa(p.port)}, "sslmode": {"disable"}}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(superuser, p.password), Path: "/" + database, RawQuery: q.Encode()}
	return u.String()
}

// PID returns the postmaster's process number.
func (p *Postgres) PID() int { return p.process.cmd.Process.Pid }

// Port returns the port on 127.0.0.1.
func (p *Postgres) Port() int { return p.port }

// Done is closed when the server has ended, by Stop or by itself.
func (p *Postgres) Done() <-chan struct{} { return p.process.done }

// Stop ends the server: at once for its clients, but with its data written; when that
// takes too long, by force. It waits for the end. Stopping twice is harmless.
func (p *Postgres) Stop(ctx context.Context) error {
	p.process.stop(ctx, syscall.SIGINT, syscall.SIGQUIT)
	if p.ownSockets {
		if err := os.RemoveAll(p.sockets); err != nil {
			return fmt.Errorf("remove a directory for sockets: %w", err)
		}
	}
	return nil
}

// CreateDatabase makes a database, unless it is there. With a role, that role is made
// too, can log in with the password, and owns the database; nobody else connects to it.
func (p *Postgres) CreateDatabase(ctx context.Context, name, role, password string) error {
	connector, err := pq.NewConnector(p.URL("postgres"))
	if err != nil {
		return errors.New("create a database: the URL is not accepted by lib/pq")
	}
	db := sql.OpenDB(connector)
	defer func() { _ = db.Close() }()
	owner := superuser
	if role != "" {
		owner = role
		if err := ensure(ctx, db, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, role,
			"CREATE ROLE "+pq.QuoteIdentifier(role)+" LOGIN"); err != nil {
			return err
		}
		_, err := db.ExecContext(ctx, "ALTER ROLE "+pq.QuoteIdentifier(role)+" PASSWORD "+pq.QuoteLiteral(password))
		if err != nil {
			return fmt.Errorf("set the password of role %s: %w", role, err)
		}
	}
	if err := ensure(ctx, db, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name,
		"CREATE DATABASE "+pq.QuoteIdentifier(name)+" OWNER "+pq.QuoteIdentifier(owner)); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, "REVOKE CONNECT ON DATABASE "+pq.QuoteIdentifier(name)+" FROM PUBLIC"); err != nil {
		return fmt.Errorf("close database %s to others: %w", name, err)
	}
	return nil
}

func ensure(ctx context.Context, db *sql.DB, exists, name, create string) error {
	var there bool
	if err := db.QueryRowContext(ctx, exists, name).Scan(&there); err != nil {
		return fmt.Errorf("look for %s: %w", name, err)
	}
	if there {
		return nil
	}
	if _, err := db.ExecContext(ctx, create); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return nil
}
