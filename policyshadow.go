package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/server"
	"github.com/supportstation/keystile/store"
)

const (
	// shadowWriteEvery is how often it is written what came of a shadow.
	shadowWriteEvery = 2 * time.Second
	// shadowEndPause is what lies between two attempts to say that one has ended.
	shadowEndPause = 5 * time.Second
	// shadowLastWrite bounds the last writing.
	shadowLastWrite = 2 * time.Second
)

// policyShadows asks the policy beside the one in force that the database says, on this replica.
type policyShadows struct {
	store  *store.Store
	engine *policy.Engine
	gate   *policy.Gate
	// origin is where policies come from here.
	origin authz.PolicyOrigin
	// end is manage's.
	end func(context.Context, manage.ShadowEnd) error
	log *slog.Logger

	mu sync.Mutex
	// running is nil while there is none, over what came of those before.
	running *runningShadow
	over    authz.PolicyShadowCounts

	// What follows is run's. failed is the shadow that this replica asks no more, toSay why until
	// the database has heard it, tried when it was last told.
	failed int64
	toSay  *manage.ShadowEnd
	tried  time.Time
}

// runningShadow is one that is asked here.
type runningShadow struct {
	*policy.Shadow

	change    int64
	candidate string
	stop      context.CancelFunc
	// done has why it has ended, once.
	done chan error
	// tried tells that a row of it was to be written, wrote that there is one, last what is in it.
	tried, wrote bool
	last         [2]int64
}

// run follows the database until ctx ends.
func (p *policyShadows) run(ctx context.Context) {
	tick := time.NewTicker(shadowWriteEvery)
	defer tick.Stop()
	for {
		p.follow(ctx)
		var done chan error
		var begun <-chan struct{}
		if r := p.running; r != nil {
			if done = r.done; !r.tried {
				begun = r.Begun()
			}
		}
		select {
		case <-ctx.Done():
			p.finish(context.WithoutCancel(ctx))
			return
		case <-p.store.PolicyShadowChanged():
		case <-begun:
			// That it is asked here. Once: if it cannot be written now, the tick does.
			p.running.tried = true
			p.write(ctx)
		case err := <-done:
			p.ended(ctx, err)
		case <-tick.C:
			p.write(ctx)
		}
	}
}

// follow begins and ends what is to be asked now.
func (p *policyShadows) follow(ctx context.Context) {
	wanted, now := p.store.PolicyShadow(), p.store.Clock().Now()
	if wanted != nil && (wanted.End(now) != "" || wanted.Change == p.failed) {
		wanted = nil
	}
	if wanted != nil && p.engine.Revision() == wanted.Candidate {
		// Of what a directory or a bundle puts in force the database does not know. Otherwise it ends
		// a shadow itself, and this replica is but behind: the others go on asking.
		if p.origin == authz.OriginDirectory || p.origin == authz.OriginBundle {
			p.failed, p.toSay = wanted.Change, &manage.ShadowEnd{Change: wanted.Change, Reason: authz.ShadowInForce}
		}
		wanted = nil
	}
	if r := p.running; r != nil && (wanted == nil || wanted.Change != r.change) {
		p.finish(ctx)
	}
	p.say(ctx)
	if wanted != nil && p.running == nil && wanted.Change != p.failed {
		p.begin(ctx, wanted)
	}
}

func (p *policyShadows) begin(ctx context.Context, wanted *store.PolicyShadow) {
	candidate, err := policy.ReadArchive(wanted.Archive)
	if err == nil && candidate.Revision() != wanted.Candidate {
		err = errors.New("what the database keeps of it is not what was started")
	}
	if err != nil {
		p.fail(wanted.Change, err)
		return
	}
	ctx, stop := context.WithCancel(ctx)
	r := &runningShadow{
		Shadow: policy.NewShadow(policy.ShadowOptions{
			Engine: p.engine, Gate: p.gate, Candidate: candidate, Share: wanted.Share, PerSecond: wanted.PerSecond, Clock: p.store.Clock(),
		}),
		change: wanted.Change, candidate: wanted.Candidate, stop: stop, done: make(chan error, 1),
	}
	p.mu.Lock()
	p.running = r
	p.mu.Unlock()
	p.log.Info("a policy is asked beside the one in force", slog.String("revision", wanted.Candidate), slog.Time("until", wanted.EndsAt))
	go func() { r.done <- r.ask(ctx) }()
}

// ask is Run; a panic ends the shadow, and not the service. What it says may quote a question.
func (r *runningShadow) ask(ctx context.Context) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("asking it panicked")
		}
	}()
	return r.Run(ctx) //nolint:wrapcheck // it says file and line
}

// fail notes why this replica cannot ask a candidate.
func (p *policyShadows) fail(change int64, why error) {
	p.log.Error("a policy cannot be asked beside the one in force; nothing that is decided has changed", slog.Any("error", why))
	p.failed, p.toSay, p.tried = change, &manage.ShadowEnd{Change: change, Reason: authz.ShadowFailed, Why: why.Error()}, time.Time{}
}

// ended is of a shadow that has ended by itself.
func (p *policyShadows) ended(ctx context.Context, err error) {
	r := p.running
	r.done <- err // finish reads it
	p.finish(ctx)
	if err != nil {
		p.fail(r.change, err)
	}
}

// finish ends what is asked, waits, and writes what came of it.
func (p *policyShadows) finish(ctx context.Context) {
	r := p.running
	if r == nil {
		return
	}
	r.stop()
	err := <-r.done
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shadowLastWrite)
	defer cancel()
	p.write(ctx)
	p.mu.Lock()
	p.over.Add(r.Counts())
	p.running = nil
	p.mu.Unlock()
	p.log.Info("a policy is not asked beside the one in force any more", slog.String("revision", r.candidate), slog.Bool("by_itself", err != nil))
}

// say tells the database that a shadow has ended, until it has heard it.
func (p *policyShadows) say(ctx context.Context) {
	if p.toSay == nil || time.Since(p.tried) < shadowEndPause {
		return
	}
	p.toSay.Replica, p.tried = p.store.ReplicaName(), time.Now()
	if err := p.end(ctx, *p.toSay); err != nil {
		p.log.Warn("it could not be said yet that a policy is not asked any more", slog.Any("error", err))
		return
	}
	p.toSay = nil
}

// write writes what came of it so far, when there is more than was written before.
func (p *policyShadows) write(ctx context.Context) {
	r := p.running
	if r == nil {
		return
	}
	counts, changed, written := r.Report()
	sum := [2]int64{counts.Seen, counts.Asked + counts.Dropped + counts.Undecided + counts.Restarts}
	if r.wrote && sum == r.last {
		return
	}
	select {
	case <-r.Begun():
	default:
		return
	}
	if err := p.store.WritePolicyShadow(ctx, r.change, counts, changed); err != nil {
		p.log.Warn("what a policy beside the one in force decides otherwise could not be written; it waits", slog.Any("error", err))
		return
	}
	r.wrote, r.last = true, sum
	written()
}

// counts are of all shadows since the program started; running tells whether there is one.
func (p *policyShadows) counts() (c authz.PolicyShadowCounts, running bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.Add(p.over)
	if p.running != nil {
		c.Add(p.running.Counts())
	}
	return c, p.running != nil
}

// figures are for /metrics.
func (p *policyShadows) figures() []server.Figure {
	c, running := p.counts()
	on := 0.0
	if running {
		on = 1
	}
	all := []server.Figure{
		{Name: "policy_shadow_running", Help: "1 while a policy is asked beside the one in force.", Value: on},
		{Name: "policy_shadow_seen_total", Help: "Checks that policy decided while another one was asked beside it.", Value: float64(c.Seen)},
		{Name: "policy_shadow_asked_total", Help: "Checks that the policy beside the one in force was asked about.", Value: float64(c.Asked)},
		{Name: "policy_shadow_failed_total", Help: "Checks that the policy beside the one in force did not decide.", Value: float64(c.Failed)},
		{Name: "policy_shadow_dropped_total", Help: "Checks that the policy beside the one in force was to be asked about, and had no time.", Value: float64(c.Dropped)},
		{Name: "policy_shadow_restarts_total", Help: "Times that the process of a policy beside the one in force ended and was started again.", Value: float64(c.Restarts)},
	}
	for _, kind := range authz.PolicyDifferenceKinds() {
		all = append(all, server.Figure{
			Name: "policy_shadow_differences_total", Help: "Checks that the policy beside the one in force decides otherwise, by kind of difference.",
			Value: float64(c.Totals[kind]), Labels: map[string]string{"kind": string(kind)},
		})
	}
	for _, took := range []struct {
		policy string
		of     *authz.DurationCounts
	}{{"candidate", &c.Took}, {"active", &c.ActiveTook}} {
		for quantile, share := range map[string]float64{"0.5": 0.5, "0.99": 0.99} {
			all = append(all, server.Figure{
				Name:  "policy_shadow_seconds",
				Help:  "How long answers took of the policy beside the one in force, and of that one to the same checks, but for those from memory.",
				Value: took.of.Quantile(share).Seconds(), Labels: map[string]string{"policy": took.policy, "quantile": quantile},
			})
		}
	}
	return all
}

// shadowFigures are for /metrics; none before the service has started.
func (s *service) shadowFigures() []server.Figure {
	if s.shadows == nil {
		return nil
	}
	return s.shadows.figures()
}

// startShadows asks policies beside the one in force of a service, until stopShadows.
func (s *service) startShadows(ctx context.Context, management *manage.Service, log *slog.Logger) {
	s.shadows = &policyShadows{
		store: s.store, engine: s.policy.engine, gate: s.policy.gate, origin: s.policy.keeper.Origin(),
		end: management.EndPolicyShadow, log: log,
		over: authz.PolicyShadowCounts{Totals: map[authz.PolicyDifferenceKind]int64{}},
	}
	ctx, s.stopShadows = context.WithCancel(context.WithoutCancel(ctx))
	s.shadowing.Go(func() { s.shadows.run(ctx) })
}
