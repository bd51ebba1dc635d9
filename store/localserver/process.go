package localserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// politeStop is how long a server has for an orderly end.
	politeStop = 5 * time.Second
	// firmStop is how long it then has for an immediate one, before it is killed.
	firmStop = 2 * time.Second
	// pollEvery is how often something is looked at that cannot be waited for.
	pollEvery = 5 * time.Millisecond
)

// process is a running server. Safe for concurrent use.
type process struct {
	name    string
	os      *os.Process
	logFile string
	// polite, then firm, then SIGKILL end it.
	polite, firm syscall.Signal

	done     chan struct{} // closed when it has ended
	stopping atomic.Bool
	stopOnce sync.Once
	log      *slog.Logger
}

// command is a server that is to be started.
type command struct {
	name, file, dir, logFile string
	args                     []string
	stdin                    string
	as                       account
	polite, firm             syscall.Signal
	log                      *slog.Logger
}

// runProcess starts a server. Its goroutine, and with it the operating system's
// thread, lives as long as the server: the kernel's parent-death signal is sent
// when the thread that started a process ends, not when the program does, and Go
// ends threads as it likes.
func runProcess(c command) (*process, error) {
	// Ours, in a directory of ours: what the server says cannot be led elsewhere.
	logFile, err := os.OpenFile(c.logFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", c.name, err)
	}
	defer func() { _ = logFile.Close() }() // the server has it
	// Not bound to a context: it lives until Stop.
	cmd := exec.CommandContext(context.Background(), c.file, c.args...) //nolint:gosec // found by this package
	cmd.Dir, cmd.Env = c.dir, c.as.environment()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if c.stdin != "" {
		cmd.Stdin = strings.NewReader(c.stdin)
	}
	cmd.SysProcAttr = c.as.attributes(c.polite)
	p := &process{
		name: c.name, logFile: c.logFile, polite: c.polite, firm: c.firm, done: make(chan struct{}), log: c.log,
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.os = cmd.Process
		started <- nil
		err := cmd.Wait()
		if !p.stopping.Load() {
			p.log.Warn("a server ended by itself", slog.String("server", p.name), slog.Any("status", err), slog.String("log", p.logFile))
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	return p, nil
}

// stop ends the server and waits until it has ended. The end of ctx takes the
// patience away, not the wait: a server is never left behind.
func (p *process) stop(ctx context.Context) {
	p.stopOnce.Do(func() {
		p.stopping.Store(true)
		for _, step := range []struct {
			sig      syscall.Signal
			patience time.Duration
		}{{p.polite, politeStop}, {p.firm, firmStop}, {syscall.SIGKILL, 0}} {
			if ctx.Err() != nil && step.sig != syscall.SIGKILL {
				continue
			}
			// Both fail only for what has ended already. A stopped process would not
			// see the first before it is continued.
			_ = p.os.Signal(step.sig)
			_ = p.os.Signal(syscall.SIGCONT)
			if step.sig == syscall.SIGKILL {
				break
			}
			timer := time.NewTimer(step.patience)
			select {
			case <-p.done:
				timer.Stop()
				return
			case <-timer.C:
			case <-ctx.Done():
			}
			timer.Stop()
			p.log.Warn("a server does not stop; it gets a harder signal", slog.String("server", p.name), slog.String("after", step.sig.String()))
		}
	})
	<-p.done
}

// awaitReady asks until ready says so, the server ends, or ctx does.
func (p *process) awaitReady(ctx context.Context, ready func(context.Context) (bool, error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if ok, err := ready(ctx); ok || err != nil {
			return err
		}
		select {
		case <-p.done:
			return p.startError()
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
		case <-tick.C:
		}
	}
}

func (p *process) startError() *StartError {
	return &StartError{Server: p.name, Log: p.logFile, Said: lastLines(p.logFile)}
}

// lastLines returns the end of a log in one line, at most a few hundred bytes.
func lastLines(file string) string {
	const most = 600
	f, err := os.Open(file) //nolint:gosec // a log of ours
	if err != nil {
		return "it said nothing"
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd) // else the beginning
	}
	text, _ := io.ReadAll(io.LimitReader(f, most))
	lines := strings.FieldsFunc(strings.TrimSpace(string(text)), func(r rune) bool { return r == '\n' })
	if len(lines) == 0 {
		return "it said nothing"
	}
	return strings.Join(lines[max(0, len(lines)-4):], " | ")
}

// stopLeftover ends a server that an earlier process left behind, and waits until
// it has ended. Whatever else now has its id is left alone. The signal goes to the
// very process that was looked at, not to whoever has its id by then (pidfd).
func stopLeftover(ctx context.Context, pid int, program, dir, mark string, signals ...syscall.Signal) error {
	if pid <= 1 || !isAlive(pid) {
		return nil
	}
	leftover, err := os.FindProcess(pid)
	if err != nil {
		return nil // it has ended meanwhile
	}
	defer func() { _ = leftover.Release() }()
	if !isServer(pid, program, dir, mark) {
		return nil
	}
	for _, sig := range append(signals, syscall.SIGKILL) {
		if err := leftover.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stop the %s that an earlier start left behind (process %d): %w", program, pid, err)
		}
		_ = leftover.Signal(syscall.SIGCONT)
		if gone, err := awaitGone(ctx, pid); err != nil {
			return fmt.Errorf("stop the %s that an earlier start left behind (process %d): %w", program, pid, err)
		} else if gone {
			return nil
		}
	}
	return fmt.Errorf("the %s that an earlier start left behind (process %d) does not end", program, pid)
}

func awaitGone(ctx context.Context, pid int) (bool, error) {
	patience := time.NewTimer(politeStop)
	defer patience.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for isAlive(pid) {
		select {
		case <-ctx.Done():
			return false, ctx.Err() //nolint:wrapcheck // the caller says what was being done
		case <-patience.C:
			return false, nil
		case <-tick.C:
		}
	}
	return true, nil
}
