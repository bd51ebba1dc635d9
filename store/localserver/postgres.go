package localserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Superuser is the role of URL and SocketURL.
const Superuser = "keystile"

// PostgresOptions say how to run a private Postgres.
type PostgresOptions struct {
	// Dir is the server's directory, its own alone: made when absent, refused when it
	// has anything else in it. The data is kept from one start to the next. Required.
	Dir string
	// Password is the superuser's, 1 to 256 printable ASCII characters. It holds from
	// the first start with a directory on. Empty makes one, which a later start with
	// the same data could not know: for data that is not kept.
	Password string
	// Port is the TCP port on 127.0.0.1; 0 takes a free one at every start.
	Port int
	// FsyncOff gives durability away for speed, for tests: a crash of the machine, not
	// of the server, may lose the data.
	FsyncOff bool
	// Programs is the directory of initdb and postgres. Empty searches PATH and where
	// Debian, Fedora and Homebrew put them, for version 14 or newer, or for the very
	// version that has made the data.
	Programs string
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

// Postgres is a running server. It prints without its password. Safe for
// concurrent use.
type Postgres struct {
	process *process
	home    *home
	port    int
	sockets string
	login   *url.Userinfo
}

// StartPostgres starts a private Postgres and returns when it takes connections:
// about half a second for a new directory, a tenth for an old one. It listens on
// 127.0.0.1 and a Unix socket, and asks for the password on both. As root it runs
// as user postgres, else nobody.
//
// A server that an earlier, killed process left running in the directory is stopped
// first. ctx bounds the start alone. Errors to tell apart: *MissingError,
// *VersionError, *PortInUseError, *InUseError, *UnreachableError, *StartError.
func StartPostgres(ctx context.Context, o PostgresOptions) (_ *Postgres, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Password == "" {
		o.Password = rand.Text()
	}
	if err := checkPassword(o.Password); err != nil {
		return nil, err
	}
	h, err := openHome(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	data := h.path(dataName)
	as, err := chooseAccount(data, "postgres", "_postgres", "nobody")
	if err != nil {
		return nil, err
	}
	want, err := dataVersion(data)
	if err != nil {
		return nil, err
	}
	dirs := []string{o.Programs}
	if o.Programs == "" {
		dirs = postgresDirs(os.Getenv("PATH"))
	} else if !executable(filepath.Join(o.Programs, "initdb")) || !executable(filepath.Join(o.Programs, "postgres")) {
		return nil, postgresMissing([]string{"not in " + o.Programs})
	}
	bin, err := choosePostgres(ctx, dirs, as, h.dir, want)
	if err != nil {
		return nil, err
	}
	if err := reach(ctx, filepath.Join(bin.dir, "postgres"), h.dir, as); err != nil {
		return nil, err
	}
	c := cluster{bin: bin, home: h, as: as, data: data, options: o}
	if err := c.recover(ctx); err != nil {
		return nil, err
	}
	if want == 0 {
		if err := c.initialize(ctx); err != nil {
			return nil, err
		}
	}
	return c.start(ctx)
}

// start tries ports until one holds, the wanted one once.
func (c *cluster) start(ctx context.Context) (*Postgres, error) {
	sockets, err := c.home.socketDir(c.as, ".s.PGSQL.65535.lock")
	if err != nil {
		return nil, err
	}
	// The backends of a killed server end by themselves, but keep the data until then.
	patience := time.Now().Add(politeStop)
	for attempt := 1; ; {
		port, err := freePort(ctx, "Postgres", c.options.Port)
		if err != nil {
			return nil, err
		}
		p, err := c.startOn(ctx, port, sockets)
		var ended *StartError
		switch {
		case err == nil:
			return p, nil
		case !errors.As(err, &ended):
			return nil, err
		case strings.Contains(ended.Said, "Address already in use"):
			if c.options.Port != 0 {
				return nil, &PortInUseError{Server: "Postgres", Port: port}
			}
			if attempt++; attempt > portAttempts {
				return nil, err
			}
		case strings.Contains(ended.Said, "is still in use") && time.Now().Before(patience):
			if err := pause(ctx, 10*pollEvery); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
	}
}

func (c *cluster) startOn(ctx context.Context, port int, sockets string) (*Postgres, error) {
	args := []string{
		"-D", c.data,
		"-c", "listen_addresses=" + loopback,
		"-c", "port=" + strconv.Itoa(port),
		"-c", "unix_socket_directories=" + sockets,
		"-c", "unix_socket_permissions=0700",
		"-c", "password_encryption=scram-sha-256",
		"-c", "max_connections=200",
		"-c", "timezone=UTC",
		"-c", "log_timezone=UTC",
		// A statement that fails may hold a password: it is not logged.
		"-c", "log_min_error_statement=panic",
		"-c", "log_statement=none",
	}
	if c.options.FsyncOff {
		args = append(args, "-c", "fsync=off", "-c", "full_page_writes=off")
	}
	process, err := runProcess(command{
		name: "Postgres", file: filepath.Join(c.bin.dir, "postgres"), args: args, dir: c.data,
		logFile: c.home.path(logName), as: c.as, log: c.options.Logger,
		// Fast shutdown, then immediate; SIGTERM would wait for clients.
		polite: syscall.SIGINT, firm: syscall.SIGQUIT,
	})
	if err != nil {
		return nil, err
	}
	p := &Postgres{
		process: process, home: c.home, port: port, sockets: sockets, login: url.UserPassword(Superuser, c.options.Password),
	}
	err = process.awaitReady(ctx, func(context.Context) (bool, error) { return c.isReady(process.os.Pid), nil })
	if err == nil {
		err = p.checkLogin(ctx)
	}
	if err != nil {
		process.stop(ctx)
		return nil, err
	}
	return p, nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for an earlier server to end: %w", ctx.Err())
	case <-t.C:
		return nil
	}
}

// URL returns a lib/pq URL for the superuser over loopback. It holds the password.
func (p *Postgres) URL(database string) string { return p.url(p.login, database) }

// UserURL is URL for another role.
func (p *Postgres) UserURL(database, role, password string) string {
	return p.url(url.UserPassword(role, password), database)
}

func (p *Postgres) url(login *url.Userinfo, database string) string {
	u := url.URL{
		Scheme: "postgres", User: login, Host: address(p.port), Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// SocketURL is URL over the Unix socket, which only the server's user and root can open.
func (p *Postgres) SocketURL(database string) string {
	q := url.Values{"host": {p.sockets}, "port": {strconv.Itoa(p.port)}, "sslmode": {"disable"}}
	u := url.URL{Scheme: "postgres", User: p.login, Path: "/" + database, RawQuery: q.Encode()}
	return u.String()
}

// Port is the TCP port on 127.0.0.1.
func (p *Postgres) Port() int { return p.port }

// PID is the server's process id.
func (p *Postgres) PID() int { return p.process.os.Pid }

// Done is closed when the server has ended, by itself or by Stop.
func (p *Postgres) Done() <-chan struct{} { return p.process.done }

// Stop ends the server and waits until it has ended: at once for clients, orderly
// for the data; after 5 s immediately; after 2 s more, or when ctx ends, killed,
// from which the next start recovers. It may be called again, and for a server that
// has ended by itself. The error is nil whenever the server has ended.
func (p *Postgres) Stop(ctx context.Context) error {
	p.process.stop(ctx)
	removeSocketDir(p.sockets)
	p.home.close()
	return nil
}

// String names the server without its password.
func (p *Postgres) String() string { return "Postgres at " + address(p.port) }

// GoString is String, so that %#v shows no password either.
func (p *Postgres) GoString() string { return p.String() }

// checkPassword keeps to what needs no thought in any place where it is written.
func checkPassword(password string) error {
	if len(password) > 256 {
		return errors.New("a server's password must have at most 256 characters")
	}
	for i := range len(password) {
		if password[i] <= ' ' || password[i] > '~' {
			return errors.New("a server's password must be printable ASCII without spaces")
		}
	}
	return nil
}
