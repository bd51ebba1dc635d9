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
)

// RedisOptions say how to run a private Redis.
type RedisOptions struct {
	// Dir is the server's directory, its own alone: made when absent, refused when it
	// has anything else in it. Nothing of value is kept there. Required.
	Dir string
	// Password is what clients need, 1 to 256 printable ASCII characters; empty makes one.
	Password string
	// Port is the TCP port on 127.0.0.1; 0 takes a free one at every start.
	Port int
	// Program is the redis-server or valkey-server. Empty searches PATH and where
	// Debian, Fedora and Homebrew put them.
	Program string
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

// Redis is a running server. It prints without its password. Safe for concurrent use.
type Redis struct {
	process  *process
	home     *home
	port     int
	data     string
	sockets  string
	password string
}

const (
	redisSocket = "redis.sock"
	redisPIDs   = "server.pid"
)

// StartRedis starts a private Redis, or Valkey, and returns when it answers: some
// ten milliseconds. It keeps nothing on disk, listens on 127.0.0.1 and a Unix
// socket, and asks for the password on both. As root it runs as user redis or
// valkey, else nobody, and where that user cannot reach Dir it gets a directory in /tmp.
//
// A server that an earlier, killed process left running in the directory is stopped
// first. ctx bounds the start alone. Errors to tell apart: *MissingError,
// *PortInUseError, *InUseError, *UnreachableError, *StartError.
func StartRedis(ctx context.Context, o RedisOptions) (*Redis, error) {
	return startRedis(ctx, o, nil)
}

// startRedis is StartRedis with further lines of configuration for each attempt.
func startRedis(ctx context.Context, o RedisOptions, more func(port int) ([]string, error)) (_ *Redis, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Password == "" {
		o.Password = rand.Text()
	}
	if err := checkPassword(o.Password); err != nil {
		return nil, err
	}
	program := o.Program
	if program == "" {
		if program, err = findRedis(os.Getenv("PATH")); err != nil {
			return nil, err
		}
	} else if !executable(program) {
		return nil, redisMissing()
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
	s := redisStart{options: o, program: program, home: h, data: h.path(dataName), more: more}
	if s.as, err = chooseAccount(s.data, "redis", "valkey", "nobody"); err != nil {
		return nil, err
	}
	var closed *UnreachableError
	switch err := reach(ctx, program, h.dir, s.as); {
	case errors.As(err, &closed):
		s.data = h.outside() // nothing of value is kept
	case err != nil:
		return nil, err
	}
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	if err := s.as.mkdir(s.data); err != nil {
		return nil, err
	}
	s.sockets = s.data
	if closed == nil {
		if s.sockets, err = h.socketDir(s.as, redisSocket); err != nil {
			return nil, err
		}
	}
	return s.start(ctx)
}

// redisStart is one start of a Redis.
type redisStart struct {
	options                RedisOptions
	program, data, sockets string
	home                   *home
	as                     account
	more                   func(port int) ([]string, error)
}

// recover ends the server that a killed process has left, if it still runs.
func (s *redisStart) recover(ctx context.Context) error {
	path := s.home.path(redisPIDs)
	text, err := os.ReadFile(path) //nolint:gosec // in our directory
	if err != nil {
		return nil //nolint:nilerr // nothing was left
	}
	pid, port, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if n, err := strconv.Atoi(pid); err == nil {
		for _, program := range []string{"redis", "valkey"} {
			if err := stopLeftover(ctx, n, program, s.data, loopback+":"+port, syscall.SIGTERM); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the process id of a server that has ended: %w", err)
	}
	return nil
}

// start tries ports until one holds, the wanted one once.
func (s *redisStart) start(ctx context.Context) (*Redis, error) {
	for attempt := 1; ; attempt++ {
		port, err := freePort(ctx, "Redis", s.options.Port)
		if err != nil {
			return nil, err
		}
		r, err := s.startOn(ctx, port)
		var ended *StartError
		if err == nil || !errors.As(err, &ended) || !strings.Contains(ended.Said, "Address already in use") {
			return r, err
		}
		if s.options.Port != 0 {
			return nil, &PortInUseError{Server: "Redis", Port: port}
		}
		if attempt == portAttempts {
			return nil, err
		}
	}
}

func (s *redisStart) startOn(ctx context.Context, port int) (*Redis, error) {
	password := redisQuote(s.options.Password)
	socket := filepath.Join(s.sockets, redisSocket)
	config := []string{
		"bind " + loopback, "port " + strconv.Itoa(port), "protected-mode yes",
		"unixsocket " + redisQuote(socket), "unixsocketperm 700",
		"requirepass " + password, "masterauth " + password,
		"dir " + redisQuote(s.data), `save ""`, "appendonly no", "daemonize no",
		"loglevel notice", `logfile ""`, "always-show-logo no",
	}
	if s.more != nil {
		more, err := s.more(port)
		if err != nil {
			return nil, err
		}
		config = append(config, more...)
	}
	process, err := runProcess(command{
		name: "Redis", file: s.program, dir: s.data, logFile: s.home.path(logName), as: s.as, log: s.options.Logger,
		// By standard input: a command line is everyone's to read, and a file stays.
		args: []string{"-"}, stdin: strings.Join(config, "\n") + "\n",
		polite: syscall.SIGTERM, firm: syscall.SIGKILL,
	})
	if err != nil {
		return nil, err
	}
	r := &Redis{process: process, home: s.home, port: port, data: s.data, sockets: s.sockets, password: s.options.Password}
	err = writeNew(s.home.path(redisPIDs), fmt.Sprintf("%d %d\n", r.PID(), port))
	if err == nil {
		err = process.awaitReady(ctx, func(ctx context.Context) (bool, error) {
			reply, err := r.Do(ctx, "PING")
			return err == nil && reply == "PONG", nil // the end of the process tells the rest
		})
	}
	if err != nil {
		process.stop(ctx)
		return nil, err
	}
	return r, nil
}

// redisQuote writes a string for redis.conf with every byte that could mean
// something there escaped.
func redisQuote(s string) string {
	b := []byte{'"'}
	for i := range len(s) {
		if c := s[i]; c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte("/._-", c) >= 0 {
			b = append(b, c)
			continue
		}
		b = fmt.Appendf(b, `\x%02x`, s[i])
	}
	return string(append(b, '"'))
}

// URL returns the URL for go-redis over loopback. It holds the password.
func (r *Redis) URL() string {
	u := url.URL{Scheme: "redis", User: url.UserPassword("", r.password), Host: address(r.port)}
	return u.String()
}

// SocketURL is URL over the Unix socket, which only the server's user and root can open.
func (r *Redis) SocketURL() string {
	u := url.URL{Scheme: "unix", User: url.UserPassword("", r.password), Path: filepath.Join(r.sockets, redisSocket)}
	return u.String()
}

// Port is the TCP port on 127.0.0.1.
func (r *Redis) Port() int { return r.port }

// PID is the server's process id.
func (r *Redis) PID() int { return r.process.os.Pid }

// Done is closed when the server has ended, by itself or by Stop.
func (r *Redis) Done() <-chan struct{} { return r.process.done }

// Stop ends the server and waits until it has ended; after 5 s, or when ctx ends,
// it is killed. It may be called again, and for a server that has ended by itself.
func (r *Redis) Stop(ctx context.Context) error {
	r.process.stop(ctx)
	defer r.home.close()
	for _, path := range []string{r.home.path(redisPIDs), r.sockets, r.data} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("tidy up after a server that has ended: %w", err)
		}
	}
	return nil
}

// String names the server without its password.
func (r *Redis) String() string { return "Redis at " + address(r.port) }

// GoString is String, so that %#v shows no password either.
func (r *Redis) GoString() string { return r.String() }
