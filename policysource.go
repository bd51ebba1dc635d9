package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/authz/policy/origin"
	"github.com/supportstation/keystile/policies"
	"github.com/supportstation/keystile/store"
)

// policySource keeps that policy in force which this service's one source wants: a
// directory's, or a bundle server's, or else the one that was activated in the database, or
// else the built-in one.
type policySource struct {
	engine  *policy.Engine
	keeper  *policy.Keeper
	gate    *policy.Gate
	builtIn *policy.Source
	// directory and bundle are nil where the policy comes from elsewhere.
	directory *origin.Directory
	bundle    *origin.Bundle
	// kept is the directory's last good policy, unkept tells that it could not be kept the last time.
	kept   *origin.Kept
	unkept bool
	// last is what was kept when this service began: the directory is measured by it even where
	// it cannot be in force any more. nil for none.
	last      *policy.Source
	log       *slog.Logger
	following sync.WaitGroup
	stop      context.CancelFunc
}

// newPolicySource loads a directory's policy, which must prove itself before anything is
// served. A bundle server may be away, and what is in the database is not known yet: until
// then nothing is in force, but for the last good bundle, which was kept.
func newPolicySource(ctx context.Context, cfg Config, log *slog.Logger) (*policySource, error) {
	builtIn, err := builtInPolicy(ctx)
	if err != nil {
		return nil, err
	}
	gate, err := newGate()
	if err != nil {
		return nil, err
	}
	p := &policySource{engine: policy.NewEngine(nil), gate: gate, builtIn: builtIn, log: log, stop: func() {}}
	keeper := policy.KeeperOptions{Engine: p.engine, Gate: gate, BuiltIn: builtIn, Origin: authz.OriginDatabase, Logger: log}
	switch {
	case cfg.PolicyDir != "":
		keeper.Origin, p.directory = authz.OriginDirectory, origin.NewDirectory(cfg.PolicyDir)
		p.keeper, p.kept = policy.NewKeeper(keeper), p.directory.Keep(stateDir(cfg))
		err = p.beginDirectory(ctx)
	case cfg.PolicyBundleURL != nil:
		if p.bundle, err = newPolicyBundle(cfg, log); err != nil {
			break
		}
		keeper.Origin, keeper.Bundle = authz.OriginBundle, p.bundle.State
		p.keeper = policy.NewKeeper(keeper)
		err = p.bundle.Begin(ctx, p.offerBundle)
	default:
		p.keeper = policy.NewKeeper(keeper)
	}
	if err != nil {
		p.close()
		return nil, configError(fmt.Errorf("policies: %w", err))
	}
	return p, nil
}

// beginDirectory measures a directory's policy by the last good one, as the service that ran
// before would have: to start it again puts nothing in force that it refused. What is refused
// ends the start only where there is no such policy.
func (p *policySource) beginDirectory(ctx context.Context) error {
	var err error
	switch p.last, err = p.kept.Load(); {
	case err != nil:
		p.log.Warn("the policy is measured by itself alone", slog.Any("error", err))
	case p.last != nil:
		_ = p.tellUntried(p.keeper.Offer(ctx, policy.Offer{Source: p.last, Origin: p.keeper.Origin()}))
	}
	for range beginAttempts { // it may change while it is tried
		if err = p.offer(ctx, p.directory.Begin(ctx)); !errors.Is(err, policy.ErrMoved) {
			break
		}
	}
	var refused *authz.PolicyRefusedError
	switch {
	case err == nil || p.keeper.Active() == nil && p.last == nil:
		return err
	case p.keeper.Active() == nil:
		return fmt.Errorf("%w; it was measured by the last good policy of the directory, which cannot be in force any more: remove %s to begin anew",
			err, p.kept.Path())
	case errors.As(err, &refused):
		p.log.Error("the last good policy of the directory is in force, not what is there now; mend that, or remove the file to begin anew",
			slog.String("file", p.kept.Path()))
	default:
		_ = p.tellUntried(err)
		p.directory.Again()
	}
	return nil
}

// beginAttempts is how often a directory is tried at the start that changes meanwhile.
const beginAttempts = 5

// keep keeps the policy in force of a directory, and tells once when that is not possible.
func (p *policySource) keep() {
	err := p.kept.Store(p.keeper.Active())
	if err != nil && !p.unkept {
		p.log.Warn("a start would measure the directory's policy by itself alone; KEYSTILE_STATE_DIR names the folder", slog.Any("error", err))
	}
	p.unkept = err != nil
}

// builtInPolicy is the one that this program is built with.
func builtInPolicy(ctx context.Context) (*policy.Source, error) {
	source, err := policy.ReadSource(ctx, policies.FS)
	if err != nil {
		return nil, fmt.Errorf("read the built-in policy: %w", err)
	}
	return source, nil
}

// runningProgram is this very program on Linux, also when its file was replaced meanwhile:
// another version must not try what this one will load.
const runningProgram = "/proc/self/exe"

// newGate starts this very program to try a policy.
func newGate() (*policy.Gate, error) {
	self := runningProgram
	if _, err := os.Stat(self); err != nil {
		if self, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find this program, which tries policies in a process of its own: %w", err)
		}
	}
	return policy.NewGate(policy.DefaultGateTimeout, self, "policy", "gate"), nil
}

// offer hands the keeper what a directory or a bundle server has.
func (p *policySource) offer(ctx context.Context, v origin.Version) error {
	from := p.keeper.Origin()
	if v.Err != nil {
		return p.keeper.Refuse(v.Revision(), from, v.Err) //nolint:wrapcheck // it says file and line
	}
	err := p.keeper.Offer(ctx, policy.Offer{Source: v.Source, Origin: from, AcceptRemoved: v.AcceptRemoved, Still: v.Still, Against: p.last})
	if err == nil && p.kept != nil {
		p.keep()
	}
	return err //nolint:wrapcheck // it says file and line
}

// offerBundle is offer for who tells nobody what could not be tried.
func (p *policySource) offerBundle(ctx context.Context, v origin.Version) error {
	err := p.offer(ctx, v)
	p.tellUntried(err)
	return err
}

// follow puts in force what the store knows by now, and then whatever changes, until close.
func (p *policySource) follow(ctx context.Context, s *store.Store) {
	ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	if p.directory != nil {
		s.DecidesBy(p.keeper.State().Revision)
		p.following.Go(func() {
			p.directory.Watch(ctx, func(ctx context.Context, v origin.Version) bool {
				tried := p.tellUntried(p.offer(ctx, v))
				s.DecidesBy(p.keeper.State().Revision)
				return tried
			})
		})
		return
	}
	if p.bundle != nil {
		s.DecidesBy(p.keeper.State().Revision)
		p.following.Go(func() {
			p.bundle.Watch(ctx, func(ctx context.Context, v origin.Version) error {
				err := p.offerBundle(ctx, v)
				s.DecidesBy(p.keeper.State().Revision)
				return err
			})
		})
		return
	}
	p.takeActivated(ctx, s)
	p.following.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.PolicyChanged():
				p.takeActivated(ctx, s)
			}
		}
	})
}

// takeActivated puts in force what the database says is. It has proved itself when it was
// activated; what this program cannot load all the same is refused, and the last good one
// stays. A service that never had one decides nothing: the built-in policy is not what
// was asked for.
func (p *policySource) takeActivated(ctx context.Context, s *store.Store) {
	wanted := s.Policy()
	if wanted == nil {
		return
	}
	source, from := p.builtIn, authz.OriginBuiltIn
	if wanted.Activation != nil && wanted.Activation.Revision != "" {
		var err error
		if source, err = policy.ReadArchive(wanted.Archive); err == nil && source.Revision() != wanted.Activation.Revision {
			err = errors.New("what the database keeps of the policy is not what was activated")
		}
		if err != nil {
			_ = p.keeper.Refuse(wanted.Activation.Revision, authz.OriginDatabase, err)
			return
		}
		from = authz.OriginDatabase
	}
	_ = p.tellUntried(p.keeper.Offer(ctx, policy.Offer{Source: source, Origin: from, Proved: true}))
	s.DecidesBy(p.keeper.State().Revision)
}

// tellUntried logs what the keeper does not, a trial that could not be made, and tells
// whether it was made.
func (p *policySource) tellUntried(err error) (tried bool) {
	var refused *authz.PolicyRefusedError
	if err == nil || errors.As(err, &refused) {
		return true
	}
	if errors.Is(err, policy.ErrMoved) {
		return false // what it has become comes next
	}
	p.log.Error("a policy could not be tried; what is in force stays", slog.Any("error", err))
	return false
}

// close stops following and waits.
func (p *policySource) close() {
	p.stop()
	p.following.Wait()
	if p.bundle != nil {
		p.bundle.Close()
	}
}

// loadPolicies compiles the policies that are in force as far as configuration tells: a
// directory's, or the built-in ones.
func loadPolicies(ctx context.Context, cfg Config) (*policy.Engine, error) {
	source, err := builtInPolicy(ctx)
	if cfg.PolicyDir != "" {
		version := origin.NewDirectory(cfg.PolicyDir).Read(ctx)
		source, err = version.Source, version.Err
	}
	if err == nil {
		var snapshot *policy.Snapshot
		if snapshot, err = source.Load(ctx); err == nil {
			return policy.NewEngine(snapshot), nil
		}
	}
	return nil, configError(fmt.Errorf("policies: %w", err))
}
