package service

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"

	keystile "github.com/supportstation/keystile/sdk"
)

// App is one application: its name, where it listens by default, its tables, and
// how its routes are made.
type App struct {
	Name          string
	DefaultListen string
	// Schema is SQL that makes the tables and can run again.
	Schema string
	// New returns the application's handler.
	New func(db *sqlx.DB, checker keystile.Checker, log *slog.Logger) (http.Handler, error)
}

// Main runs app until SIGINT or SIGTERM and returns the exit code: 0 when it
// was stopped, 2 for wrong usage, 1 for anything else.
func Main(app App) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	config, err := ConfigFrom(app.Name, app.DefaultListen, os.Args[1:], os.LookupEnv, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", app.Name, err)
		return 2
	}
	if err := Run(ctx, app, config, os.Stdout, os.Stderr); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", app.Name, err)
		return 1
	}
	return 0
}

// Run serves app until ctx ends, then finishes the requests under way within 10
// seconds. Once it can serve, it writes one line to out, with JSON as
// {"url":"http://…"}; the log goes to talk.
func Run(ctx context.Context, app App, config Config, out, talk io.Writer) error {
	client, err := keystile.New(config.KeystileURL, config.Token)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	db, err := Open(ctx, config.DatabaseURL, app.Schema)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	log := newLog(talk, config).With("app", app.Name)
	handler, err := app.New(db, client, log)
	if err != nil {
		return err
	}
	// Last, so that an open port means a service that works.
	listener, err := listen(ctx, config.Listen)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	if err := ready(out, app.Name, listener.Addr(), config.JSON); err != nil {
		return fmt.Errorf("write the ready line: %w", err)
	}
	return serve(ctx, listener, handler, log)
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is in use; stop what listens there, or choose another address with LISTEN or -listen (port 0 takes a free one)", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listener, nil
}

func ready(out io.Writer, name string, address net.Addr, asJSON bool) error {
	url := "http://" + address.String()
	if tcp, ok := address.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		url = fmt.Sprintf("http://127.0.0.1:%d", tcp.Port)
	}
	if asJSON {
		return json.NewEncoder(out).Encode(map[string]string{"url": url})
	}
	_, err := fmt.Fprintf(out, "%s: ready on %s\n", name, url)
	return err
}

func newLog(w io.Writer, config Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if config.Verbose {
		options.Level = slog.LevelDebug
	}
	if config.JSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

func serve(ctx context.Context, listener net.Listener, handler http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      15 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	// The context has ended; what is under way gets one of its own.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
