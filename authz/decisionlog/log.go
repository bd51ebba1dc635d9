// Package decisionlog hands decisions on to where an operator collects them: standard output,
// a file, or a service that takes OPA's decision logs. Checks never wait for it.
package decisionlog

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// maxQueued and maxQueuedBytes bound what waits while the sink is slow or away.
	maxQueued      = 10_000
	maxQueuedBytes = 32 << 20
	// maxBatch and maxBatchBytes bound what is handed on at once.
	maxBatch      = 500
	maxBatchBytes = 512 << 10
	// flushLimit bounds the last handing on of a log that is closed, and abandonAfter how
	// long a sink that does not come back is waited for beyond that.
	flushLimit   = 3 * time.Second
	abandonAfter = 500 * time.Millisecond
	// minRetry and maxRetry are how long a sink that failed is left alone.
	minRetry = 100 * time.Millisecond
	maxRetry = 10 * time.Second
	// noticeEvery is how often the service's log tells of what is lost or hidden.
	noticeEvery = 10 * time.Second
)

// Encoder writes a decision down as one event. It is implemented by authz/policy.
type Encoder interface {
	// Encode returns JSON on one line, without its newline, and why question and answer
	// are left out of it, "" when they are not. Called by one goroutine.
	// Nil is a decision that is not to be logged.
	Encode(ctx context.Context, r *authz.DecisionRecord) (event []byte, hidden string)
}

// Sink takes events. Called by one goroutine.
type Sink interface {
	// Write hands events on and returns how many of them, from the first on, are done. The
	// rest comes again after a while, unless the error is ErrRefused or ErrTooLarge.
	Write(ctx context.Context, events [][]byte) (done int, err error)
	// Linger is how long it is worth to wait for more events before the first is written.
	Linger() time.Duration
	Close() error
}

// Why events are given up at once. They come wrapped; use errors.Is.
var (
	// ErrRefused says that a sink will never take the events that it did not take.
	ErrRefused = errors.New("the events were refused")
	// ErrTooLarge says so of the first of them alone.
	ErrTooLarge = errors.New("the event is too large")
)

// Log is the decision log. Safe for concurrent use.
type Log struct {
	encoder Encoder
	sink    Sink
	log     *slog.Logger
	queue   chan *authz.DecisionRecord
	// bytes is about what waits in the queue.
	bytes atomic.Int64

	written, dropped, hidden, unwanted atomic.Int64
	// flying are those that the sink has been given and that are not done.
	flying  atomic.Int64
	failing atomic.Bool

	// stop ends the writer once the queue is empty, cancel at once; done tells that it has ended.
	stop, done chan struct{}
	work       context.Context //nolint:containedctx // the writer's own, from New to Close
	cancel     context.CancelFunc
	begin      sync.Once
	closing    sync.Once
	closed     atomic.Bool
	err        error

	minRetry, maxRetry, flushLimit time.Duration
	notices                        notices
}

var _ authz.DecisionRecorder = (*Log)(nil)

// New returns a log that takes decisions, and writes none before Start. Close it.
func New(e Encoder, s Sink, log *slog.Logger) *Log {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &Log{
		encoder: e, sink: s, log: log, queue: make(chan *authz.DecisionRecord, maxQueued),
		stop: make(chan struct{}), done: make(chan struct{}), minRetry: minRetry, maxRetry: maxRetry, flushLimit: flushLimit,
	}
	l.work, l.cancel = context.WithCancel(context.Background())
	return l
}

// Start begins to write, once.
func (l *Log) Start() { l.begin.Do(func() { go l.run() }) }

// Decided implements authz.DecisionRecorder: a copy into the queue, or a count when that is full.
func (l *Log) Decided(q *authz.Check, d *authz.Decision) {
	if len(l.queue) == cap(l.queue) || l.bytes.Load() >= maxQueuedBytes || l.closed.Load() {
		l.dropped.Add(1)
		return
	}
	r := authz.RecordDecision(q, d)
	size := int64(r.Size())
	l.bytes.Add(size)
	select {
	case l.queue <- r:
	default:
		l.bytes.Add(-size)
		l.dropped.Add(1)
	}
}

// Health tells what became of the decisions.
type Health struct {
	// Written were handed on, Dropped lost, and Unwanted are those that the policy has not logged:
	// one of the three becomes of every decision.
	Written, Dropped, Unwanted int64
	// Hidden were handed on without question and answer, because the mask did not tell what to hide.
	Hidden int64
	// Waiting are in the queue.
	Waiting int
	// Failing tells that the sink did not take the last that it was given.
	Failing bool
}

// Health is safe for concurrent use.
func (l *Log) Health() Health {
	return Health{
		Written: l.written.Load(), Dropped: l.dropped.Load(), Hidden: l.hidden.Load(), Unwanted: l.unwanted.Load(), Waiting: len(l.queue), Failing: l.failing.Load(),
	}
}

// Close hands on what waits, for flushLimit at most, and counts the rest as dropped. It is
// for when nobody decides any more. A sink that does not come back is left behind.
func (l *Log) Close() error {
	l.closing.Do(func() {
		l.closed.Store(true)
		close(l.stop)
		l.Start() // a log that never wrote has something to hand on as well
		limit := time.AfterFunc(l.flushLimit, l.cancel)
		defer limit.Stop()
		abandon := time.NewTimer(l.flushLimit + abandonAfter)
		defer abandon.Stop()
		select {
		case <-l.done:
			l.err = l.sink.Close()
		case <-abandon.C:
			l.dropped.Add(l.flying.Load())
			l.err = errors.New("the decision log's sink does not take what it was given; it was left behind")
		}
		l.cancel()
		if lost := l.discard(); lost > 0 {
			l.log.Warn("the last decisions could not be logged", slog.Int64("decisions", lost))
		}
	})
	return l.err
}

// discard counts what is left in the queue as dropped.
func (l *Log) discard() (lost int64) {
	for {
		select {
		case <-l.queue:
			lost++
			l.dropped.Add(1)
		default:
			return lost
		}
	}
}

// run hands on until the log is closed, and what is left then.
func (l *Log) run() {
	defer close(l.done)
	stopping := false
	for {
		select {
		case r := <-l.queue:
			l.deliver(l.batch(r, stopping))
		default:
			if stopping {
				return
			}
			select {
			case r := <-l.queue:
				l.deliver(l.batch(r, false))
			case <-l.stop:
				stopping = true
			}
		}
		if l.work.Err() != nil {
			return
		}
		l.notice()
	}
}

// batch encodes a decision and those behind it, and waits for more as long as the sink says.
func (l *Log) batch(r *authz.DecisionRecord, stopping bool) [][]byte {
	var events [][]byte
	size, taken := 0, 0
	add := func(r *authz.DecisionRecord) {
		l.bytes.Add(-int64(r.Size()))
		taken++
		event, hidden := l.encoder.Encode(l.work, r)
		if event == nil {
			l.unwanted.Add(1)
			return
		}
		if hidden != "" {
			l.hidden.Add(1)
			l.notices.hidden = hidden
		}
		events, size = append(events, event), size+len(event)
	}
	full := func() bool { return taken == maxBatch || size >= maxBatchBytes }
	add(r)
	var more <-chan time.Time
	if linger := l.sink.Linger(); linger > 0 && !stopping {
		timer := time.NewTimer(linger)
		defer timer.Stop()
		more = timer.C
	}
	stop := l.stop
	if stopping {
		stop = nil
	}
	for !full() {
		select {
		case r := <-l.queue:
			add(r)
			continue
		default:
		}
		if more == nil {
			break
		}
		select {
		case r := <-l.queue:
			add(r)
		case <-more:
			more = nil
		case <-stop:
			more = nil
		}
	}
	return events
}

// deliver hands events on, again and again while the sink fails: what comes meanwhile waits
// in the queue or is dropped there.
func (l *Log) deliver(events [][]byte) {
	wait, stop := l.minRetry, l.stop
	l.flying.Store(int64(len(events)))
	for len(events) > 0 {
		done, err := l.sink.Write(l.work, events)
		l.written.Add(int64(done))
		events = events[done:]
		l.flying.Store(int64(len(events)))
		switch {
		case err == nil:
			l.recovered()
			wait = l.minRetry
			continue
		case errors.Is(err, ErrTooLarge) && len(events) > 0:
			l.dropped.Add(1)
			events = events[1:]
			continue
		}
		l.failed(err)
		if errors.Is(err, ErrRefused) || l.work.Err() != nil {
			l.dropped.Add(int64(len(events)))
			l.flying.Store(0)
			return
		}
		pause := time.NewTimer(wait/2 + rand.N(wait/2+1)) //nolint:gosec // jitter
		select {
		case <-pause.C:
			wait = min(2*wait, l.maxRetry)
		case <-stop:
			wait, stop = l.minRetry, nil // once more at once, and not so rarely from here on
		case <-l.work.Done():
		}
		pause.Stop()
	}
}

// notices is what the service's log was last told. It is the writer's.
type notices struct {
	at      time.Time
	dropped int64
	hidden  string
}

func (l *Log) failed(err error) {
	if !l.failing.Swap(true) {
		l.log.Warn("the decision log cannot be written; decisions wait, and are dropped when there are too many", slog.Any("error", err))
	}
}

func (l *Log) recovered() {
	if l.failing.Swap(false) {
		l.log.Info("the decision log is written again", slog.Int64("dropped", l.dropped.Load()))
	}
}

// notice tells now and then what was lost or hidden.
func (l *Log) notice() {
	n := &l.notices
	dropped := l.dropped.Load()
	if n.hidden == "" && dropped == n.dropped || time.Since(n.at) < noticeEvery {
		return
	}
	if n.hidden != "" {
		l.log.Warn("decisions are logged without question and answer", slog.String("reason", n.hidden), slog.Int64("decisions", l.hidden.Load()))
	}
	if dropped != n.dropped {
		l.log.Warn("decisions were not logged: they came faster than they could be written", slog.Int64("decisions", dropped))
	}
	*n = notices{at: time.Now(), dropped: dropped}
}
