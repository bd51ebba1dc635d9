package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

const (
	// watchEvery is how often it is looked whether the policy in force fails at run time.
	watchEvery = time.Second
	// alarmEvery is how often the same alarm is given.
	alarmEvery = time.Minute
	// stepBackBudget bounds one attempt to step back, stepBackPause what lies between two.
	stepBackBudget = 10 * time.Second
	stepBackPause  = 5 * time.Second
)

// policyWatch gives the alarm when the policy in force fails at run time, and takes it back
// when it has just been activated and fails several organizations. Every replica has one and
// none leads: the database hears the first that asks.
type policyWatch struct {
	failing func() authz.PolicyFailing
	// activation is the newest one that this replica knows, nil for none.
	activation func() *authz.PolicyActivation
	// stepBack is nil where the policy does not come from the database: there is only the alarm.
	stepBack func(context.Context, manage.StepBack) (*manage.PolicyChange, error)
	// stay notes why a policy is not taken back.
	stay    func(revision, why string)
	replica string
	now     func() time.Time
	log     *slog.Logger

	// steppedBack counts.
	steppedBack atomic.Int64
	// alarmed is when the last alarm was given, and of what; tried when the last attempt ended.
	alarmed, tried time.Time
	revision       string
	widespread     bool
	// settled is the number of the activation that is not asked about again.
	settled int64
}

// run looks until ctx ends.
func (w *policyWatch) run(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			w.look(ctx)
		}
	}
}

// look is one look.
func (w *policyWatch) look(ctx context.Context) {
	f := w.failing()
	if f.Errors == 0 {
		return
	}
	if w.revision != f.Revision || f.Widespread && !w.widespread || w.now().Sub(w.alarmed) >= alarmEvery {
		w.revision, w.widespread, w.alarmed = f.Revision, f.Widespread, w.now()
		w.log.Error("the policy in force fails at run time; these checks are denied", failingAttributes(f)...)
	}
	if f.Widespread {
		w.considerStepBack(ctx, f)
	}
}

// considerStepBack asks the database to take a policy back that fails several organizations.
func (w *policyWatch) considerStepBack(ctx context.Context, f authz.PolicyFailing) {
	if w.stepBack == nil {
		w.stay(f.Revision, "it was not activated in the database")
		return
	}
	a := w.activation()
	if a == nil || a.Revision != f.Revision || a.Change == w.settled || w.now().Sub(w.tried) < stepBackPause {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stepBackBudget)
	defer cancel()
	change, err := w.stepBack(ctx, manage.StepBack{Change: a.Change, Failing: f, Replica: w.replica})
	w.tried = w.now()
	var refused *authz.Error
	switch {
	case err == nil:
		w.settled = a.Change
		w.steppedBack.Add(1)
		w.log.Error("stepped back by itself: the policy before is in force again", append(failingAttributes(f),
			slog.String("to", cmp.Or(change.Activation.Revision, string(authz.OriginBuiltIn))), slog.Int("replicas", change.Effective.Replicas),
			slog.Int("acknowledged", change.Effective.Acknowledged))...)
	case errors.As(err, &refused) && refused.Code == "policy_changed":
		w.settled = a.Change // another replica was heard, or a person
	case errors.As(err, &refused) && (refused.Kind == authz.KindConflict || refused.Kind == authz.KindNotFound):
		w.settled = a.Change
		w.stay(f.Revision, refused.Message)
		w.log.Error("the policy in force fails several organizations and stays; roll it back if that is right",
			slog.String("revision", f.Revision), slog.String("why", refused.Message))
	default:
		w.log.Error("a policy that fails at run time could not be taken back yet", slog.String("revision", f.Revision), slog.Any("error", err))
	}
}

// failingAttributes are for the log.
func failingAttributes(f authz.PolicyFailing) []any {
	some := make([]string, len(f.Some))
	for i, id := range f.Some {
		some[i] = id.String()
	}
	return []any{
		slog.String("revision", f.Revision), slog.String("kind", string(f.Kind)), slog.String("where", f.Where), slog.Int("errors", f.Errors),
		slog.Int("organizations", f.Organizations), slog.Int("new_organizations", f.NewOrganizations), slog.Any("some", some),
		slog.Duration("within", f.Window),
	}
}

// startWatch watches the policy in force of a service until stop.
func (s *service) startWatch(ctx context.Context, management *manage.Service, log *slog.Logger) {
	keeper := s.policy.keeper
	s.watch = &policyWatch{
		failing: keeper.Failing, stay: keeper.Stay, replica: s.store.ReplicaName(), now: time.Now, log: log,
		activation: func() *authz.PolicyActivation {
			if p := s.store.Policy(); p != nil {
				return p.Activation
			}
			return nil
		},
	}
	if keeper.Origin() == authz.OriginDatabase {
		s.watch.stepBack = management.StepBackPolicy
	}
	ctx, s.stopWatching = context.WithCancel(ctx)
	s.watching.Go(func() { s.watch.run(ctx) })
}
