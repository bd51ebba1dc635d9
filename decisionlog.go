package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/supportstation/keystile/authz/decisionlog"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/server"
)

// newDecisionLog opens where decisions are logged; nil when they are not.
func newDecisionLog(cfg Config, engine *policy.Engine, log *slog.Logger) (*decisionlog.Log, error) {
	var sink decisionlog.Sink
	path, isFile := strings.CutPrefix(cfg.DecisionLog, "file:")
	switch {
	case cfg.DecisionLog == "":
		return nil, nil //nolint:nilnil // none is an answer
	case cfg.DecisionLog == "stdout":
		// A reader that has gone must not end the service: the write says so instead.
		signal.Ignore(syscall.SIGPIPE)
		sink = decisionlog.NewLines(os.Stdout)
	case isFile:
		file, err := decisionlog.NewFile(path)
		if err != nil {
			return nil, configError(fmt.Errorf("KEYSTILE_DECISION_LOG: %w; name a file that can be written", err))
		}
		sink = file
	default:
		sink = decisionlog.NewUpload(cfg.DecisionLog, cfg.DecisionLogToken)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	encoder := policy.NewEventEncoder(engine, map[string]string{
		"app": "keystile", "id": fmt.Sprintf("%s:%d", host, os.Getpid()), "version": readVersion().Version,
	})
	return decisionlog.New(encoder, sink, log), nil
}

// decisionLogDetails are for /readyz; nil while the decision log is off.
func decisionLogDetails(l *decisionlog.Log) any {
	if l == nil {
		return nil
	}
	h := l.Health()
	return map[string]any{"written": h.Written, "dropped": h.Dropped, "unwanted": h.Unwanted, "hidden": h.Hidden, "waiting": h.Waiting, "failing": h.Failing}
}

// decisionFigures are those of the decision log, zero while it is off.
func decisionFigures(l *decisionlog.Log) []server.Figure {
	var h decisionlog.Health
	if l != nil {
		h = l.Health()
	}
	failing := 0.0
	if h.Failing {
		failing = 1
	}
	return []server.Figure{
		{Name: "decision_log_written_total", Help: "Decisions that the decision log has handed on.", Value: float64(h.Written)},
		{Name: "decision_log_dropped_total", Help: "Decisions that the decision log has lost: its queue was full, or they were refused.", Value: float64(h.Dropped)},
		{Name: "decision_log_unwanted_total", Help: "Decisions that the policy in force has not logged (data.system.log.drop).", Value: float64(h.Unwanted)},
		{Name: "decision_log_hidden_total", Help: "Decisions logged without question and answer, because the mask did not tell what to hide.", Value: float64(h.Hidden)},
		{Name: "decision_log_waiting", Help: "Decisions that wait in the decision log's queue.", Value: float64(h.Waiting)},
		{Name: "decision_log_failing", Help: "1 while the decision log cannot be written.", Value: failing},
	}
}
