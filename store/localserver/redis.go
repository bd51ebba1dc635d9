package localserver

import (
	"bufio"
	"context"
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
)

// RedisOptions are what StartRedis needs.
type RedisOptions struct {
	// Dir is the server's directory; made if need be. Nothing of value is kept there.
	Dir string
	// Password that clients need.
	Password string
	// Port on 127.0.0.1; 0 takes a free one.
	Port int
	// Logger gets what happens; nil discards it.
	Logger *slog.Logger
	// config is further configuration, a line each.
	config []string
}

// Redis is a running private server. Safe for concurrent use.
type Redis struct {
	process  *process
	password string
	port     int
	pidFile  string
}

// StartRedis starts a private redis-server (or valkey-server) without persistence,
// and returns when it answers. One that an earlier start left behind in the same
// directory is ended first. A *MissingError tells what to install.
func StartRedis(ctx context.Context, o RedisOptions) (*Redis, error) {
	binary, err := findRedis()
	if err != nil {
		return nil, err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("start Redis: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start Redis: %w", err)
	}
	pidFile := filepath.Join(o.Dir, "redis.pid")
	if err := endLeftoverRedis(ctx, pidFile); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		r, err := startRedis(ctx, binary, pidFile, o)
		if err == nil || o.Port != 0 || attempt == startAttempts || ctx.Err() != nil {
			return r, err
		}
	}
}

func findRedis() (string, error) {
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, ok := findProgram(name, "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin"); ok {
			return path, nil
		}
	}
	return "", &MissingError{
		Program: "redis-server",
		Install: "on Debian or Ubuntu `apt-get install redis-server`, on Fedora `dnf install redis` (or valkey), on macOS `brew install redis`",
	}
}

// endLeftoverRedis ends the server whose number and port an earlier start wrote down.
func endLeftoverRedis(ctx context.Context, pidFile string) error {
	raw, err := os.ReadFile(pidFile) //nolint:gosec // our own directory
	if err != nil {
		return nil //nolint:nilerr // there was none
	}
	pid, port, _ := strings.Cut(strings.TrimSpace(string(raw)), " ")
	n, err := strconv.Atoi(pid)
	if err != nil || port == "" {
		return nil //nolint:nilerr // not a file of ours: nothing is ended by it
	}
	return endLeftover(ctx, n, syscall.SIGTERM, "-server", "127.0.0.1:"+port)
}

func startRedis(ctx context.Context, binary, pidFile string, o RedisOptions) (r *Redis, err error) {
	r = &Redis{password: o.Password, pidFile: pidFile}
	if r.port, err = choosePort(ctx, o.Port); err != nil {
		return nil, err
	}
	logPath := filepath.Join(o.Dir, "server.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) //nolint:gosec // our own directory
	if err != nil {
		return nil, fmt.Errorf("start Redis: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(binary, "-") //nolint:gosec,noctx // its life is Stop's, not ctx's
	cmd.Dir = o.Dir
	cmd.Stdout, cmd.Stderr = log, log
	// By standard input: a password on a command line is everyone's to read.
	lines := append([]string{
		"bind 127.0.0.1", "port " + strconv.Itoa(r.port), "requirepass " + strconv.Quote(o.Password), "masterauth " + strconv.Quote(o.Password),
		"save \"\"", "appendonly no", "daemonize no", "dir " + strconv.Quote(o.Dir),
	}, o.config...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if r.process, err = startProcess(cmd, nil, syscall.SIGKILL); err != nil {
		return nil, err
	}
	if err = r.waitReady(ctx); err == nil {
		err = os.WriteFile(pidFile, fmt.Appendf(nil, "%d %d\n", r.PID(), r.port), 0o600)
	}
	if err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("start Redis in %s: %w; its log ends with:\n%s", o.Dir, err, tail(logPath)), r.Stop(stop))
	}
	if o.Logger != nil {
		o.Logger.Debug("Redis is ready", slog.Int("port", r.port), slog.Int("pid", r.PID()))
	}
	return r, nil
}

func (r *Redis) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("it did not answer within %v", readyLimit))
	defer cancel()
	retry := time.NewTicker(5 * time.Millisecond)
	defer retry.Stop()
	for {
		reply, err := r.Do(ctx, "PING")
		if err == nil && reply == "PONG" {
			return nil
		}
		select {
		case <-retry.C:
		case <-r.process.done:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Do sends one command on a connection of its own and returns a simple reply: a
// status, a number or a string. It is for setting a server up, not for work.
func (r *Redis) Do(ctx context.Context, args ...string) (string, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", r.address())
	if err != nil {
		return "", fmt.Errorf("reach Redis: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", fmt.Errorf("reach Redis: %w", err)
	}
	reader := bufio.NewReader(conn)
	if _, err := exchange(conn, reader, "AUTH", r.password); err != nil {
		return "", err
	}
	return exchange(conn, reader, args...)
}

// exchange speaks as much RESP2 as one command and a simple reply need.
func exchange(conn net.Conn, reader *bufio.Reader, args ...string) (string, error) {
	request := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, a := range args {
		request = fmt.Appendf(request, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := conn.Write(request); err != nil {
		return "", fmt.Errorf("ask Redis: %w", err)
	}
	line, err := reader.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("ask Redis: %w", err)
	}
	line = strings.TrimSuffix(line, "\r\n")
	switch {
	case strings.HasPrefix(line, "+"), strings.HasPrefix(line, ":"):
		return line[1:], nil
	case strings.HasPrefix(line, "$"):
		n, err := strconv.Atoi(line[1:])
		if err != nil || n < 0 || n > 1<<20 {
			return "", errors.New("ask Redis: no such value")
		}
		body := make([]byte, n+2)
		if _, err := readFull(reader, body); err != nil {
			return "", fmt.Errorf("ask Redis: %w", err)
		}
		return string(body[:n]), nil
	}
	return "", fmt.Errorf("Redis says: %s", strings.TrimPrefix(line, "-")) //nolint:staticcheck // a name
}

func readFull(r *bufio.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err //nolint:wrapcheck // exchange does
}

func (r *Redis) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// URL returns the server's redis:// URL, password included.
func (r *Redis) URL() string {
	u := url.URL{Scheme: "redis", User: url.UserPassword("", r.password), Host: r.address()}
	return u.String()
}

// PID returns the server's process number.
func (r *Redis) PID() int { return r.process.cmd.Process.Pid }

// Port returns the port on 127.0.0.1.
func (r *Redis) Port() int { return r.port }

// Done is closed when the server has ended, by Stop or by itself.
func (r *Redis) Done() <-chan struct{} { return r.process.done }

// Stop ends the server and waits for it. Stopping twice is harmless.
func (r *Redis) Stop(ctx context.Context) error {
	r.process.stop(ctx, syscall.SIGTERM)
	if err := os.Remove(r.pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("stop Redis: %w", err)
	}
	return nil
}

// RedisCluster is three masters that share the slots.
type RedisCluster struct{ nodes []*Redis }

// StartRedisCluster starts a cluster of three masters and returns when it serves all slots.
func StartRedisCluster(ctx context.Context, o RedisOptions) (*RedisCluster, error) {
	const masters, slots = 3, 16384
	c := &RedisCluster{}
	fail := func(err error) (*RedisCluster, error) {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return nil, errors.Join(err, c.Stop(stop))
	}
	for i := range masters {
		bus, err := choosePort(ctx, 0)
		if err != nil {
			return fail(err)
		}
		node, err := StartRedis(ctx, RedisOptions{
			Dir: filepath.Join(o.Dir, "node"+strconv.Itoa(i)), Password: o.Password, Logger: o.Logger,
			config: []string{"cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-port " + strconv.Itoa(bus), "cluster-node-timeout 2000"},
		})
		if err != nil {
			return fail(err)
		}
		c.nodes = append(c.nodes, node)
		from, to := i*slots/masters, (i+1)*slots/masters-1
		if _, err := node.Do(ctx, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(from), strconv.Itoa(to)); err != nil {
			return fail(err)
		}
		if i > 0 {
			if _, err := c.nodes[0].Do(ctx, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(node.port), strconv.Itoa(bus)); err != nil {
				return fail(err)
			}
		}
	}
	if err := c.waitReady(ctx); err != nil {
		return fail(err)
	}
	return c, nil
}

func (c *RedisCluster) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("the cluster did not form within %v", readyLimit))
	defer cancel()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		ready := 0
		for _, n := range c.nodes {
			info, err := n.Do(ctx, "CLUSTER", "INFO")
			if err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3") {
				ready++
			}
		}
		if ready == len(c.nodes) {
			return nil
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// URL returns the cluster's URL for go-redis: one node, and the others as addr= parameters.
func (c *RedisCluster) URL() string {
	q := url.Values{}
	for _, n := range c.nodes[1:] {
		q.Add("addr", n.address())
	}
	first := c.nodes[0]
	u := url.URL{Scheme: "redis", User: url.UserPassword("", first.password), Host: first.address(), RawQuery: q.Encode()}
	return u.String()
}

// Nodes returns the masters.
func (c *RedisCluster) Nodes() []*Redis { return c.nodes }

// Stop ends all nodes.
func (c *RedisCluster) Stop(ctx context.Context) error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.Stop(ctx))
	}
	return errors.Join(errs...)
}
