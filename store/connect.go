package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// The four kinds of Postgres connection, by how long a single read may take.
// lib/pq ignores a context's deadline while the server is stuck, so the deadline
// sits on the socket.
const (
	// lookupReadDeadline is for look-ups on behalf of checks. Those wait for no longer
	// than their budget; what is found out later is remembered for the next, and a
	// connection is not thrown away for one slow answer.
	lookupReadDeadline = time.Second
	// manageReadDeadline is for management, migrations and usage.
	manageReadDeadline = 30 * time.Second
	// listenReadDeadline is for LISTEN, which is pinged each listenPing, and for
	// reading what has changed: a Postgres that is slow is not one that is away.
	listenReadDeadline = 1500 * time.Millisecond
	listenPing         = 500 * time.Millisecond

	// briefReadDeadline is for who an admin is and whom a receipt waits for: that is told soon,
	// or that it cannot be known, also when Postgres does not answer any more.
	briefReadDeadline = time.Second

	checkPoolSize   = 8
	changesPoolSize = 1
	managePoolSize  = 6
	briefPoolSize   = 4
	connectTimeout  = time.Second
	idleConnection  = 5 * time.Minute
)

// DatabaseURL is a parsed KEYSTILE_DATABASE_URL. Its text holds a password: it
// prints without one.
type DatabaseURL struct{ u *url.URL }

// ParseDatabaseURL reads `postgres://user:password@host:port/database?…`. Without
// an sslmode it is disable for loopback and Unix sockets and verify-full for
// everything else. An error never repeats the URL.
func ParseDatabaseURL(s string) (DatabaseURL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return DatabaseURL{}, errors.New("database URL must have the form postgres://user:password@host:5432/database")
	}
	q := u.Query()
	if q.Get("sslmode") == "" {
		q.Set("sslmode", "verify-full")
		if localHost(u.Hostname()) && localHost(q.Get("host")) {
			q.Set("sslmode", "disable")
		}
	}
	if q.Get("application_name") == "" {
		q.Set("application_name", "keystile")
	}
	u.RawQuery = q.Encode()
	if _, err := pq.NewConnector(u.String()); err != nil {
		// lib/pq's own words could repeat a part of the URL.
		return DatabaseURL{}, errors.New("database URL has a parameter that lib/pq does not accept")
	}
	return DatabaseURL{u}, nil
}

func localHost(host string) bool {
	if host == "" || host == "localhost" || strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// String returns the URL without its password.
func (d DatabaseURL) String() string {
	if d.u == nil {
		return ""
	}
	return d.u.Redacted()
}

// dsn returns the URL with what one kind of connection needs, password included.
func (d DatabaseURL) dsn(binary bool) string {
	u := *d.u
	q := u.Query()
	q.Set("connect_timeout", strconv.Itoa(int(connectTimeout/time.Second)))
	if binary {
		// One round trip for an unprepared query in place of two.
		q.Set("binary_parameters", "yes")
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// pool opens a bounded pool whose every read has the given deadline. It does not
// connect yet. The end may be nil.
func (d DatabaseURL) pool(size int, read time.Duration, binary bool, end *ending) (*sqlx.DB, error) {
	if d.u == nil {
		return nil, errors.New("no database URL")
	}
	connector, err := pq.NewConnector(d.dsn(binary))
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	connector.Dialer(deadlineDialer{read, end})
	db := sqlx.NewDb(openDB(connector), "postgres")
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	db.SetConnMaxIdleTime(idleConnection)
	return db, nil
}

// deadlineDialer dials connections whose reads time out.
type deadlineDialer struct {
	read time.Duration
	end  *ending // nil: there is none
}

var _ pq.DialerContext = deadlineDialer{}

// Dial implements pq.Dialer.
func (d deadlineDialer) Dial(network, address string) (net.Conn, error) {
	return d.DialTimeout(network, address, connectTimeout)
}

// DialTimeout implements pq.Dialer.
func (d deadlineDialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// DialContext implements pq.DialerContext.
func (d deadlineDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err //nolint:wrapcheck // lib/pq inspects it
	}
	c := &deadlineConn{Conn: conn, read: d.read, end: d.end}
	d.end.add(c)
	return c, nil
}

// deadlineConn sets a deadline before every read and write.
type deadlineConn struct {
	net.Conn

	read time.Duration
	end  *ending
	// setting orders deadlines: one that was worked out before the end was known is not set
	// after it.
	setting sync.Mutex
}

func (c *deadlineConn) prepare(set func(time.Time) error) error {
	c.setting.Lock()
	defer c.setting.Unlock()
	return set(c.end.bound(time.Now().Add(c.read)))
}

// Read implements net.Conn.
func (c *deadlineConn) Read(b []byte) (int, error) {
	if err := c.prepare(c.SetReadDeadline); err != nil {
		return 0, err //nolint:wrapcheck // lib/pq inspects it
	}
	return c.Conn.Read(b) //nolint:wrapcheck // lib/pq inspects it
}

// Write implements net.Conn.
func (c *deadlineConn) Write(b []byte) (int, error) {
	if err := c.prepare(c.SetWriteDeadline); err != nil {
		return 0, err //nolint:wrapcheck // lib/pq inspects it
	}
	return c.Conn.Write(b) //nolint:wrapcheck // lib/pq inspects it
}

// Close implements net.Conn.
func (c *deadlineConn) Close() error {
	c.end.remove(c)
	return c.Conn.Close() //nolint:wrapcheck // lib/pq inspects it
}
