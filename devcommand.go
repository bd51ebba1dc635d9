package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// exampleReadyLimit bounds how long an example app has to answer.
const exampleReadyLimit = 15 * time.Second

// devCommand is a program that runs beside the demonstration.
type devCommand struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// startCommands starts the example apps and the user's command.
func (d *dev) startCommands(ctx context.Context) error {
	if d.options.examples != "" {
		if err := d.startExamples(ctx); err != nil {
			return err
		}
	}
	if len(d.options.command) > 0 {
		return d.startCommand(d.options.command[0], d.options.command[1:]...)
	}
	return nil
}

func (d *dev) startExamples(ctx context.Context) error {
	apps := map[string]string{"tickets": d.options.ticketsListen, "customers": d.options.customersListen}
	for _, at := range apps {
		if err := portIsFree(ctx, at); err != nil {
			return err
		}
	}
	for name, at := range apps {
		if err := d.startCommand(filepath.Join(d.options.examples, name), "-listen", at); err != nil {
			return err
		}
	}
	for _, at := range apps {
		if err := d.waitForListener(ctx, at); err != nil {
			return err
		}
	}
	return nil
}

// startCommand starts a program; d.ended tells of its end.
func (d *dev) startCommand(name string, args ...string) error {
	cmd := exec.Command(name, args...) //nolint:gosec,noctx // the user's own command; stop ends it
	cmd.Stderr = d.options.err
	if d.options.output != "json" && d.options.examples == "" {
		cmd.Stdin, cmd.Stdout = os.Stdin, d.options.out
	}
	cmd.Env = append(os.Environ(),
		"KEYSTILE_URL="+d.info.URL,
		"KEYSTILE_TOKEN_TICKETS="+d.secrets.Callers["tickets"],
		"KEYSTILE_TOKEN_CUSTOMERS="+d.secrets.Callers["customers"],
		"KEYSTILE_ADMIN_TOKEN="+d.secrets.AdminToken,
		"EXAMPLES_DATABASE_URL="+d.examplesURL,
	)
	cmd.SysProcAttr = ownGroup()
	c := &devCommand{cmd, make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel ends the program with the thread that started it, so that
		// thread lives as long as the program.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(c.done)
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		d.ended <- commandEnd(name, cmd.Wait())
	}()
	if err := <-started; err != nil {
		return dependencyError(fmt.Errorf("cannot start %s: %w", name, err))
	}
	d.commands = append(d.commands, c)
	return nil
}

// commandEnd is what the end of a command means for dev: its exit status is ours.
func commandEnd(name string, err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exitWith(exit.ExitCode(), fmt.Errorf("%s ended with exit status %d", name, exit.ExitCode()))
	}
	if err != nil {
		return fmt.Errorf("%s ended: %w", name, err)
	}
	return nil
}

// stop ends the program with its whole group: kindly, and when ctx ends, at once.
func (c *devCommand) stop(ctx context.Context) {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM) // it may have ended
	select {
	case <-c.done:
	case <-ctx.Done():
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		<-c.done
	}
}

// portIsFree tells clearly, before anything is started, that an app could not listen.
func portIsFree(ctx context.Context, address string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return dependencyError(fmt.Errorf("an example app needs %s: %w; end whatever listens there", address, err))
	}
	if err := l.Close(); err != nil {
		return fmt.Errorf("try %s: %w", address, err)
	}
	return nil
}

// waitForListener waits until an app accepts connections, or ends.
func (d *dev) waitForListener(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, exampleReadyLimit,
		fmt.Errorf("nothing answers on %s after %v", address, exampleReadyLimit))
	defer cancel()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close() //nolint:wrapcheck // it has been opened to be closed
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-d.ended:
			return errors.Join(errors.New("an example app ended at its start"), err)
		case <-retry.C:
		}
	}
}
