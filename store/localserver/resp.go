package localserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	// respDeadline bounds one exchange with a Redis.
	respDeadline = 2 * time.Second
	// maxReply bounds what is read of a reply.
	maxReply = 1 << 20
)

// Do sends one command on a connection of its own and returns its reply, which must
// be a status, a number or a string. It is for setting a server up and looking at
// it, not for work. A reply of Redis that is an error comes as one, in Redis' words.
func (r *Redis) Do(ctx context.Context, args ...string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("ask Redis: no command")
	}
	ctx, cancel := context.WithTimeout(ctx, respDeadline)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address(r.port))
	if err != nil {
		return "", fmt.Errorf("reach Redis: %w", err)
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", fmt.Errorf("reach Redis: %w", err)
	}
	reader := bufio.NewReader(conn)
	if _, err := exchange(conn, reader, "AUTH", r.password); err != nil {
		return "", err
	}
	return exchange(conn, reader, args...)
}

// exchange speaks as much of RESP2 as one command and a plain reply need
// (https://redis.io/docs/latest/develop/reference/protocol-spec/).
func exchange(conn io.Writer, reader *bufio.Reader, args ...string) (string, error) {
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
	if line == "" {
		return "", errors.New("ask Redis: it does not speak its protocol")
	}
	switch line[0] {
	case '+', ':':
		return line[1:], nil
	case '-':
		return "", fmt.Errorf("Redis says: %s", line[1:])
	case '$':
		n, err := strconv.Atoi(line[1:])
		if err != nil || n < 0 || n > maxReply {
			return "", errors.New("ask Redis: no value, or too long a one")
		}
		body := make([]byte, n+len("\r\n"))
		if _, err := io.ReadFull(reader, body); err != nil {
			return "", fmt.Errorf("ask Redis: %w", err)
		}
		return string(body[:n]), nil
	}
	return "", errors.New("ask Redis: the reply is not a plain one")
}
