package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz/manage"
)

// checkpoints writes the audit log's signed checkpoints to the log and, when one is
// named, to a file: away from the database, whose rows they hold to account.
type checkpoints struct {
	service *manage.Service
	log     *slog.Logger
	file    io.WriteCloser // nil without one
}

// newCheckpoints opens the file, which is only ever appended to.
func newCheckpoints(service *manage.Service, path string, log *slog.Logger) (*checkpoints, error) {
	c := &checkpoints{service: service, log: log}
	if path == "" {
		return c, nil
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600) //nolint:gosec // the operator names it
	if err != nil {
		return nil, configError(fmt.Errorf("KEYSTILE_AUDIT_CHECKPOINTS: %w; name a file that can be written", err))
	}
	c.file = file
	return c, nil
}

// run writes until ctx ends, and once more then: what a replica has changed before
// it stops is told as well.
func (c *checkpoints) run(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	c.write(ctx)
	for {
		select {
		case <-tick.C:
			c.write(ctx)
		case <-ctx.Done():
			c.writeLast(ctx)
			return
		}
	}
}

func (c *checkpoints) writeLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastCheckpointLimit)
	defer cancel()
	c.write(ctx)
	if c.file != nil {
		_ = c.file.Close() // every line is written already
	}
}

// lastCheckpointLimit bounds the last look at the audit log.
const lastCheckpointLimit = 2 * time.Second

func (c *checkpoints) write(ctx context.Context) {
	lines, problems, err := c.service.Checkpoints(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.log.Warn("the audit log's checkpoint could not be made; it is tried again", slog.Any("error", err))
		}
		return
	}
	for _, p := range problems {
		c.log.Error("the audit log was cut or changed; run keystile audit-log verify with earlier checkpoints",
			slog.String("chain", p.Chain), slog.Int64("sequence", p.Sequence))
	}
	for _, line := range lines {
		c.log.Info("audit checkpoint", slog.String("checkpoint", line))
	}
	if c.file == nil {
		return
	}
	// One write, so that replicas which share the file do not mix their lines.
	if _, err := io.WriteString(c.file, strings.Join(lines, "\n")+"\n"); err != nil {
		c.log.Error("a checkpoint of the audit log could not be written to its file; it stands in this log alone", slog.Any("error", err))
	}
}
