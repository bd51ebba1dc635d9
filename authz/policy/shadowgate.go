package policy

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/supportstation/keystile/authz"
)

const (
	// shadowBudget is how long one answer of a candidate may take: more than one of a check, so
	// that a busy machine is not taken for a slow policy. What takes more processor time than a
	// check has, DefaultBudget, is too slow as well.
	shadowBudget = 5 * DefaultBudget
	// shadowPatience is how long is waited for an answer before the process is ended.
	shadowPatience = 5 * time.Second
	// shadowHeap is how much memory a candidate may take, in bytes, and shadowMemory what ends
	// its process however fast it grows.
	shadowHeap   = 256 << 20
	shadowMemory = 1 << 30
	// maxShadowSaid bounds what a process may answer to one batch, in bytes.
	maxShadowSaid = 32 << 20
)

// shadowBatch is questions on their way to the process; they name Keys and Callers by their places.
type shadowBatch struct {
	Keys      []wireKey
	Callers   []wireCaller
	Questions []wireQuestion
}

// wireQuestion is all of a question that a policy sees.
type wireQuestion struct {
	Key, Caller              int32
	Method, Path             string
	Segments                 []string
	Ambiguous                bool
	Action                   string
	Environment              authz.Environment
	Resource                 authz.Resource
	ClientIP                 netip.Addr
	Browser, Stale, NoCaller bool
}

// shadowAnswer is what a process says: first that it is ready, or why it never will be, and then
// to each question.
type shadowAnswer struct {
	Answer authz.PolicyAnswer
	// Route is a template of the candidate's catalogue.
	Route string
	// Failure is why the candidate did not decide, Where the place in it.
	Failure authz.PolicyFailure
	Where   string
	// Took is 0 when it was traced.
	Took time.Duration
	// Abandoned tells that a call was left running.
	Abandoned bool
	// Refused is why the candidate does not load, Fatal why the process ends.
	Refused *authz.PolicyReport
	Fatal   string
}

// newShadowBatch packs questions.
func newShadowBatch(all []shadowed) shadowBatch {
	var b shadowBatch
	keys, callers := map[*authz.Key]int32{}, map[*authz.Caller]int32{}
	for i := range all {
		c := &all[i].check
		key, ok := keys[all[i].key]
		if !ok {
			b.Keys = append(b.Keys, newWireKey(all[i].key))
			key = lastOf(b.Keys)
			keys[all[i].key] = key
		}
		q := wireQuestion{
			Key: key, Method: c.Method, Path: c.Path, Segments: c.Segments, Ambiguous: c.Ambiguous, Action: c.Action, Environment: c.Environment,
			Resource: c.Resource, ClientIP: c.ClientIP, Browser: c.Browser, Stale: c.Stale, NoCaller: c.Caller == nil,
		}
		if c.Caller != nil {
			if q.Caller, ok = callers[c.Caller]; !ok {
				b.Callers = append(b.Callers, wireCaller{c.Caller.ID.String(), c.Caller.Name, c.Caller.Environments})
				q.Caller = lastOf(b.Callers)
				callers[c.Caller] = q.Caller
			}
		}
		b.Questions = append(b.Questions, q)
	}
	return b
}

// shadowProcess is a process that a candidate is asked in. Not safe for concurrent use.
type shadowProcess struct {
	cmd        *exec.Cmd
	stop       context.CancelFunc
	in         io.WriteCloser
	questions  *gob.Encoder
	said       *io.LimitedReader
	answers    *gob.Decoder
	complained *bounded
	late       atomic.Bool
	ended      sync.Once
}

// shadow starts a process for a candidate, which is ready when this returns. A candidate that
// does not load is a *ShadowFailedError, and so is one that cannot be loaded in time. The process
// ends with ctx, or end.
func (g *Gate) shadow(ctx context.Context, candidate *Source, traced bool) (*shadowProcess, error) {
	message := trialMessage{Timeout: g.timeout, Shadow: true, Traced: traced}
	var err error
	if message.Candidate, err = candidate.Archive(); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("write a policy: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	p := &shadowProcess{stop: stop}
	p.cmd, _, p.complained = g.process(ctx)
	p.cmd.Stdout = nil // it answers more than once
	var out io.Reader
	if p.in, err = p.cmd.StdinPipe(); err == nil {
		if out, err = p.cmd.StdoutPipe(); err == nil {
			err = p.cmd.Start()
		}
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("start the process that tries policies: %w", err)
	}
	p.questions, p.said = gob.NewEncoder(p.in), &io.LimitedReader{R: out, N: maxShadowSaid}
	p.answers = gob.NewDecoder(p.said)
	defer p.within(g.timeout + gateGrace)()
	if _, err := p.in.Write(raw); err != nil {
		return nil, p.died()
	}
	ready, failed := p.read()
	switch {
	case failed != nil:
		p.end() // what says why it ends may still run
		return nil, failed
	case ready.Refused != nil:
		p.end()
		return nil, &ShadowFailedError{Why: "it does not load: " + (&authz.PolicyRefusedError{Report: ready.Refused}).Error(), final: true, refused: ready.Refused}
	}
	return p, nil
}

// Loads says why a candidate cannot be asked, nil when it can: it is loaded in a process of its
// own. What is wrong with it is a *authz.PolicyRefusedError.
func (g *Gate) Loads(ctx context.Context, candidate *Source) error {
	release, err := takePlace(ctx, g.places)
	if err != nil {
		return err
	}
	defer release()
	p, err := g.shadow(ctx, candidate, false)
	var failed *ShadowFailedError
	switch {
	case err == nil:
		p.end()
		return nil
	case ctx.Err() != nil || !errors.As(err, &failed):
		return err
	case failed.refused != nil:
		return &authz.PolicyRefusedError{Report: failed.refused}
	}
	problem := authz.PolicyProblem{Stage: authz.StageProcess, Message: failed.Why}
	return &authz.PolicyRefusedError{Report: &authz.PolicyReport{
		Revision: candidate.revision, Problems: []authz.PolicyProblem{problem}, Tests: []authz.PolicyTest{},
	}}
}

// within ends the process when it takes longer; what it returns stops waiting.
func (p *shadowProcess) within(d time.Duration) (stop func()) {
	timer := time.AfterFunc(d, func() {
		p.late.Store(true)
		p.stop()
	})
	return func() { timer.Stop() }
}

// send asks; each question is answered.
func (p *shadowProcess) send(all []shadowed) error {
	defer p.within(shadowPatience)()
	p.said.N = maxShadowSaid
	if err := p.questions.Encode(newShadowBatch(all)); err != nil {
		return p.died()
	}
	return nil
}

// answer is to the next question, or why there is none.
func (p *shadowProcess) answer() (shadowAnswer, *ShadowFailedError) {
	defer p.within(shadowPatience)()
	return p.read()
}

func (p *shadowProcess) read() (shadowAnswer, *ShadowFailedError) {
	var a shadowAnswer
	if err := p.answers.Decode(&a); err != nil {
		return a, p.died()
	}
	if a.Fatal != "" {
		return a, &ShadowFailedError{Why: a.Fatal, Where: a.Where}
	}
	return a, nil
}

// died says why a process has ended, or has to.
func (p *shadowProcess) died() *ShadowFailedError {
	if late := p.late.Load(); !late {
		// It may be about to say why.
		defer p.within(gateGrace)()
		_ = p.in.Close()
		p.ended.Do(func() { _ = p.cmd.Wait() })
	}
	p.end()
	if p.late.Load() {
		return &ShadowFailedError{Why: "it does not answer in time"}
	}
	return &ShadowFailedError{Why: "it took more memory than it may, or failed: " + oneLine(tail(p.complained.String()))}
}

// end ends the process and waits for it.
func (p *shadowProcess) end() {
	p.stop()
	_ = p.in.Close()
	p.ended.Do(func() { _ = p.cmd.Wait() })
}

// shadowServer is such a process.
type shadowServer struct {
	snapshot *Snapshot
	names    *names
	// tracer is nil, or where: always when it is traced.
	tracer topdown.QueryTracer
	traced bool
	where  *whereabouts

	mu  sync.Mutex
	out *gob.Encoder
}

// serveShadow is what such a process does with what comes after its message.
func serveShadow(ctx context.Context, message trialMessage, in io.Reader, out io.Writer) error {
	if err := stepAside(shadowMemory); err != nil {
		return err
	}
	stepBehind(asideNiceness)
	// One asks, one collects garbage or looks after it; the other processors are the service's.
	runtime.GOMAXPROCS(2)
	debug.SetMemoryLimit(shadowHeap / 4 * 3)
	candidate, err := ReadArchive(message.Candidate)
	if err != nil {
		return err
	}
	s := &shadowServer{names: newNames(), where: new(whereabouts), out: gob.NewEncoder(out)}
	if s.traced = message.Traced; s.traced {
		s.tracer = s.where
	}
	done, ready := make(chan error, 1), make(chan struct{})
	go func() {
		snapshot, err := candidate.Load(ctx)
		if err != nil {
			report := Unreadable(err)
			report.Revision = candidate.revision
			done <- s.say(shadowAnswer{Refused: report})
			return
		}
		s.snapshot = snapshot.in(newLane())
		if err := s.say(shadowAnswer{}); err != nil {
			done <- err
			return
		}
		close(ready)
		done <- s.serve(ctx, in)
	}()
	return s.watch(message.Timeout, ready, done)
}

func (s *shadowServer) say(a shadowAnswer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.out.Encode(a); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// watch waits for the end, and ends what takes too long to load, or too much memory.
func (s *shadowServer) watch(timeout time.Duration, ready <-chan struct{}, done <-chan error) error {
	late := time.NewTimer(timeout)
	defer late.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	for {
		var why string
		select {
		case err := <-done:
			return err
		case <-ready:
			late.Stop()
			ready = nil
			continue
		case <-late.C:
			why = fmt.Sprintf("it takes longer than %v to load", timeout)
		case <-look.C:
			if metrics.Read(heap); heap[0].Value.Uint64() < shadowHeap {
				continue
			}
			why = fmt.Sprintf("it takes more than %d MiB of memory", shadowHeap>>20)
		}
		return s.say(shadowAnswer{Fatal: why, Where: placeIn(s.where.at.Load())})
	}
}

// serve answers until there are no more questions.
func (s *shadowServer) serve(ctx context.Context, in io.Reader) error {
	for decoder := gob.NewDecoder(in); ; {
		var b shadowBatch
		if err := decoder.Decode(&b); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read questions: %w", err)
		}
		keys, err := each(b.Keys, wireKey.key)
		if err != nil {
			return err
		}
		callers, err := each(b.Callers, wireCaller.caller)
		if err != nil {
			return err
		}
		for _, q := range b.Questions {
			c := &authz.Check{
				Method: q.Method, Path: q.Path, Segments: q.Segments, Ambiguous: q.Ambiguous, Action: q.Action, Environment: q.Environment,
				Resource: q.Resource, ClientIP: q.ClientIP, Browser: q.Browser, Stale: q.Stale, Cost: authz.MinCost,
			}
			if !q.NoCaller {
				c.Caller = callers[q.Caller]
			}
			if err := s.say(s.answer(ctx, keys[q.Key], c)); err != nil {
				return err
			}
		}
	}
}

// answer asks the candidate.
func (s *shadowServer) answer(ctx context.Context, k *authz.Key, c *authz.Check) shadowAnswer {
	traced := s.tracer != nil // which takes longer, and says nothing of how long checks would
	started, processor := time.Now(), processorTime()
	x := &explainer{s: s.snapshot, names: s.names, until: newDeadline(ctx, shadowBudget)}
	v, err := s.ask(ctx, x, k, c)
	if err == nil {
		if why := v.Undecided(); why != nil {
			err = fmt.Errorf("%w: %w", errNoDecision, why)
		}
	}
	if used := processorTime() - processor; err == nil && used > DefaultBudget && !traced {
		err = errOverBudget
	}
	a := shadowAnswer{Answer: authz.AnswerOf(v, err), Took: time.Since(started), Abandoned: x.until.abandoned != nil}
	if traced {
		a.Took = 0
	}
	if s.snapshot.templates[v.Route] {
		a.Route = v.Route
	}
	if err != nil {
		if a.Failure, a.Where = failureOf(err), placeOf(err); a.Where == "" && a.Failure == authz.FailureTimeout {
			a.Where = placeIn(s.where.at.Load())
		}
	}
	// Of one that takes too long it is found out where, the next time. When that takes too long as
	// well it may be of the finding out, and the one after it is asked as checks are.
	if s.tracer = nil; s.traced || a.Failure == authz.FailureTimeout && !traced {
		s.tracer = s.where
	}
	return a
}

func (s *shadowServer) ask(ctx context.Context, x *explainer, k *authz.Key, c *authz.Check) (v authz.Verdict, err error) {
	defer func() {
		if r := recover(); r != nil {
			v, err = authz.Verdict{}, fmt.Errorf("panic: %v", r)
		}
	}()
	return x.ask(ctx, k, c, s.tracer)
}
