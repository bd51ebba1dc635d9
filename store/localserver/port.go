package localserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
)

const (
	loopback = "127.0.0.1"
	// portAttempts is how often a free port is looked for: somebody else may take
	// it between our look and the server's start.
	portAttempts = 5
)

func address(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }

// freePort returns a port of loopback that is free, the wanted one if it is not 0.
func freePort(ctx context.Context, server string, want int) (int, error) {
	if want < 0 || want > 65535 {
		return 0, fmt.Errorf("port %d of %s is not between 0 and 65535", want, server)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp4", address(want))
	if errors.Is(err, syscall.EADDRINUSE) {
		return 0, &PortInUseError{Server: server, Port: want}
	}
	if err != nil {
		return 0, fmt.Errorf("look for a port for %s: %w", server, err)
	}
	_, text, err := net.SplitHostPort(l.Addr().String())
	if err := errors.Join(err, l.Close()); err != nil {
		return 0, fmt.Errorf("look for a port for %s: %w", server, err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("look for a port for %s: %w", server, err)
	}
	return port, nil
}
