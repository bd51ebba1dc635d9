package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime/metrics"
	"slices"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// DefaultCoverageFloor is how many percent of a policy's lines its own tests must reach.
	DefaultCoverageFloor = 80
	// DefaultGateTimeout is how long a policy may take to be tried: less than clients wait.
	// The shipped one takes half a second.
	DefaultGateTimeout = 25 * time.Second
	// gateHeap is how much memory a policy may take while it is tried, in bytes, and
	// gateMemory what ends the process however fast it grows.
	gateHeap   = 512 << 20
	gateMemory = 2 << 30
	// trialNiceness is how far behind the service a trial is, whose outcome somebody waits for,
	// and asideNiceness how far what nobody waits for.
	trialNiceness = 5
	asideNiceness = 10
	// gateTrials bounds the trials that run at a time; others wait.
	gateTrials = 2
	// gateGrace is how much longer the process may take to say that it took too long.
	gateGrace = 2 * time.Second
	// maxReport bounds what such a process may say.
	maxReport = 16 << 20
	// maxStageProblems bounds the problems of one stage: the first ones are what to mend.
	maxStageProblems = 20
)

// Trial is a policy that wants to be in force, and what it is measured by.
type Trial struct {
	Candidate *Source
	// Active is the policy that is in force, whose tests must go on to hold; nil for none.
	Active *Source
	// AcceptRemoved are the names of tests of Active that may fail, such as
	// data.keystile.check_test.test_x; one that ends in .* is all of a package.
	AcceptRemoved []string
	// CoverageFloor is in percent; 0 means DefaultCoverageFloor.
	CoverageFloor float64

	// where is told where the trial is; nil for nobody.
	where *whereabouts
}

// Try tries a policy in this process: see Gate, which puts bounds around it.
func (t Trial) Try(ctx context.Context) *authz.PolicyReport {
	started := time.Now()
	r := &authz.PolicyReport{Revision: t.Candidate.revision, Problems: []authz.PolicyProblem{}, Tests: []authz.PolicyTest{}}
	t.try(ctx, r)
	r.Seconds = time.Since(started).Seconds()
	return r
}

// try tries everything, one after the other; what cannot go on leaves the report incomplete,
// which is no pass.
func (t Trial) try(ctx context.Context, r *authz.PolicyReport) {
	if t.Active != nil {
		r.Against = t.Active.revision
	}
	snapshot, err := t.Candidate.Load(ctx)
	if err != nil {
		refuse(r, problemsOf(authz.StageLoad, err)...)
		return
	}
	p, err := t.Candidate.parse()
	if err != nil {
		refuse(r, problemsOf(authz.StageLoad, err)...)
		return
	}
	refuse(r, snapshot.unasked...)
	var broken []authz.PolicyProblem
	var endless bool
	r.Questions, broken, endless = invariants(ctx, snapshot, p.data)
	refuse(r, broken...)
	if endless {
		return
	}
	p.where = t.where
	if r.Tests, r.Coverage, r.Gaps, err = p.ownTests(ctx); err != nil {
		refuse(r, problemsOf(authz.StageTests, err)...)
		return
	}
	for _, result := range r.Tests {
		if result.Failed() {
			refuse(r, problemOf(result, authz.StageTests, "fails"))
		}
	}
	judgeCoverage(r, t.CoverageFloor)
	if t.Active != nil {
		if err := t.tryActive(ctx, p, r); err != nil {
			refuse(r, problemsOf(authz.StageActiveTests, err)...)
			return
		}
	}
	r.Complete = ctx.Err() == nil
}

// tryActive holds the candidate to the tests of the policy in force.
func (t Trial) tryActive(ctx context.Context, p *parsed, r *authz.PolicyReport) error {
	active, err := t.Active.parse()
	if err != nil {
		return fmt.Errorf("the policy in force cannot be read: %w", err)
	}
	packages := p.testsToRepeat(active)
	if len(packages) == 0 {
		return nil
	}
	if r.ActiveTests, err = p.activeTests(ctx, active, packages); err != nil {
		return err
	}
	for _, result := range r.ActiveTests {
		switch {
		case !result.Failed():
		case accepts(t.AcceptRemoved, result.Name):
			r.Accepted = append(r.Accepted, result.Name)
		default:
			refuse(r, problemOf(result, authz.StageActiveTests,
				"of the policy in force fails; if that is meant, name it in --accept-removed-tests"))
		}
	}
	return nil
}

// refuse adds problems, as many of a stage as anyone reads.
func refuse(r *authz.PolicyReport, problems ...authz.PolicyProblem) {
	for _, p := range problems {
		n := 0
		for _, q := range r.Problems {
			if q.Stage == p.Stage {
				n++
			}
		}
		if n < maxStageProblems {
			r.Problems = append(r.Problems, p)
		}
	}
}

func judgeCoverage(r *authz.PolicyReport, floor float64) {
	if floor == 0 {
		floor = DefaultCoverageFloor
	}
	if r.Coverage >= floor {
		return
	}
	p := authz.PolicyProblem{Stage: authz.StageCoverage, Message: fmt.Sprintf("the policy's tests reach %.1f %% of its lines; at least %.0f %% are needed", r.Coverage, floor)}
	if len(r.Gaps) > 0 {
		first := r.Gaps[0]
		p.File, p.Line = first.File, first.From
		p.Message += fmt.Sprintf("; the first that they do not reach is here, and there are %d more places", len(r.Gaps)-1)
	}
	refuse(r, p)
}

func problemOf(t authz.PolicyTest, stage authz.PolicyStage, what string) authz.PolicyProblem {
	return authz.PolicyProblem{Stage: stage, File: t.File, Line: t.Line, Test: t.Name, Message: fmt.Sprintf("the test %s %s: %s", t.Name, what, t.Message)}
}

// accepts tells whether a test is named, by itself or with all of its package.
func accepts(named []string, test string) bool {
	return slices.ContainsFunc(named, func(name string) bool {
		pkg, all := strings.CutSuffix(name, ".*")
		return name == test || all && strings.HasPrefix(test, pkg+".")
	})
}

// Gate tries policies in a process of its own, which has so much time and memory and no
// more: a policy is code from elsewhere, and must not take the service along. Safe for
// concurrent use.
type Gate struct {
	command []string
	timeout time.Duration
	places  chan struct{}
	// replays has a place of its own: nobody who goes back to another policy waits for one.
	replays chan struct{}
}

// NewGate returns a gate whose processes are started by a command that calls ServeGate.
// A timeout of 0 means DefaultGateTimeout.
func NewGate(timeout time.Duration, command ...string) *Gate {
	if timeout == 0 {
		timeout = DefaultGateTimeout
	}
	return &Gate{command, timeout, make(chan struct{}, gateTrials), make(chan struct{}, 1)}
}

// trialMessage is a Trial on its way to a gate's process.
type trialMessage struct {
	Candidate, Active []byte
	AcceptRemoved     []string
	CoverageFloor     float64
	Timeout           time.Duration
	// Replay tells that recorded requests come next, and are asked about; BuiltIn is for
	// replays alone.
	Replay  bool
	BuiltIn []byte
	// Shadow tells that questions of checks come next; Traced that it is to be known at any time
	// where in the policy an evaluation is, which takes several times as long.
	Shadow, Traced bool
}

// Try tries a policy. The error is of a trial that could not be made; what is wrong with
// the policy is in the report, also when it took too long or too much.
func (g *Gate) Try(ctx context.Context, t Trial) (*authz.PolicyReport, error) {
	message := trialMessage{AcceptRemoved: t.AcceptRemoved, CoverageFloor: t.CoverageFloor, Timeout: g.timeout}
	var err error
	if message.Candidate, err = t.Candidate.Archive(); err != nil {
		return nil, err
	}
	if t.Active != nil {
		if message.Active, err = t.Active.Archive(); err != nil {
			return nil, err
		}
	}
	raw, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("write a trial: %w", err)
	}
	release, err := takePlace(ctx, g.places)
	if err != nil {
		return nil, err
	}
	defer release()
	started := time.Now()
	limited, cancel := context.WithTimeoutCause(ctx, g.timeout+gateGrace, errGateTimeout)
	defer cancel()
	cmd, said, complained := g.process(limited)
	// One processor, the others are the service's; garbage is collected rarely, which saves a
	// quarter of a trial, until gateHeap is near.
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1", "GOGC=400", "GOMEMLIMIT=384MiB")
	cmd.Stdin = bytes.NewReader(raw)
	err = cmd.Run()
	var report authz.PolicyReport
	switch {
	case err == nil:
		if err := json.Unmarshal(said.Bytes(), &report); err != nil {
			return nil, fmt.Errorf("read what a trial has found: %w", err)
		}
		if report.Revision != t.Candidate.revision {
			return nil, errors.New("a trial has found something about another policy")
		}
		return &report, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("try a policy: %w", context.Cause(ctx))
	}
	var ended *exec.ExitError
	if !errors.As(err, &ended) {
		return nil, fmt.Errorf("start the process that tries policies: %w", err)
	}
	report = authz.PolicyReport{Revision: t.Candidate.revision, Tests: []authz.PolicyTest{}, Seconds: time.Since(started).Seconds()}
	why := "trying the policy took more memory than it may, or failed: " + oneLine(tail(complained.String()))
	if limited.Err() != nil {
		why = fmt.Sprintf("trying the policy took longer than %v", g.timeout)
	}
	report.Problems = []authz.PolicyProblem{{Stage: authz.StageProcess, Message: why}}
	return &report, nil
}

// takePlace waits for its turn among the processes; release gives it to the next one.
func takePlace(ctx context.Context, places chan struct{}) (release func(), err error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("try a policy: %w", context.Cause(ctx))
	}
}

// process is one that calls ServeGate, not started yet; it ends with ctx.
func (g *Gate) process(ctx context.Context) (cmd *exec.Cmd, said, complained *bounded) {
	said, complained = &bounded{}, &bounded{}
	cmd = exec.CommandContext(ctx, g.command[0], g.command[1:]...) //nolint:gosec // our own program
	cmd.Stdout, cmd.Stderr = said, complained
	// Nothing of the service's own: a policy could not read it, and nobody has to believe that.
	cmd.Env = []string{"GOTRACEBACK=none", "GOMEMLIMIT=1GiB"}
	cmd.SysProcAttr = apart()
	cmd.WaitDelay = time.Second
	return cmd, said, complained
}

var errGateTimeout = errors.New("trying the policy took too long")

// bounded keeps what is written, and takes no more than maxReport.
type bounded struct{ bytes.Buffer }

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxReport {
		return 0, errors.New("a trial says too much")
	}
	return b.Buffer.Write(p)
}

// tail is the last line of a text.
func tail(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// ServeGate is what a gate's process does: it reads one trial, and writes its report. It
// must be all that the process does: when the trial takes too long or too much, it ends it.
func ServeGate(ctx context.Context, in io.Reader, out io.Writer) error {
	if err := stepAside(gateMemory); err != nil {
		return err
	}
	var message trialMessage
	decoder := json.NewDecoder(in)
	if err := decoder.Decode(&message); err != nil {
		return fmt.Errorf("read a trial: %w", err)
	}
	if message.Shadow {
		return serveShadow(ctx, message, io.MultiReader(decoder.Buffered(), in), out)
	}
	if message.Replay {
		return serveReplay(ctx, message, io.MultiReader(decoder.Buffered(), in), out)
	}
	t := Trial{AcceptRemoved: message.AcceptRemoved, CoverageFloor: message.CoverageFloor, where: new(whereabouts)}
	var err error
	if t.Candidate, err = ReadArchive(message.Candidate); err != nil {
		return err
	}
	if len(message.Active) > 0 {
		if t.Active, err = ReadArchive(message.Active); err != nil {
			return err
		}
	}
	stepBehind(trialNiceness)
	done := make(chan *authz.PolicyReport, 1)
	go func() { done <- t.Try(ctx) }()
	report := watchTrial(t, message.Timeout, done)
	return writeReport(out, report)
}

func writeReport(out io.Writer, report any) error {
	if err := json.NewEncoder(out).Encode(report); err != nil {
		return fmt.Errorf("write a report: %w", err)
	}
	return nil
}

// watchTrial waits for a trial, and gives up on one that takes too long or too much memory,
// with the place where it was.
func watchTrial(t Trial, timeout time.Duration, done <-chan *authz.PolicyReport) *authz.PolicyReport {
	late := time.NewTimer(timeout)
	defer late.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	for {
		var why string
		select {
		case report := <-done:
			return report
		case <-late.C:
			why = fmt.Sprintf("trying the policy takes longer than %v; this is where it was", timeout)
		case <-look.C:
			if metrics.Read(heap); heap[0].Value.Uint64() < gateHeap {
				continue
			}
			why = fmt.Sprintf("trying the policy takes more than %d MiB of memory; this is where it was", gateHeap>>20)
		}
		p := authz.PolicyProblem{Stage: authz.StageProcess, Message: why}
		if l := t.where.at.Load(); l != nil {
			p.File, p.Line = l.File, l.Row
		}
		return &authz.PolicyReport{Revision: t.Candidate.revision, Problems: []authz.PolicyProblem{p}, Tests: []authz.PolicyTest{}, Seconds: timeout.Seconds()}
	}
}
