package manage

import (
	"context"
	"fmt"
	"time"

	"github.com/supportstation/keystile/authz"
)

// StepBackWithin is how long after its activation a policy that fails at run time is taken back
// without anybody asking, by Postgres' clock. Later it is what everybody works with.
const StepBackWithin = 10 * time.Minute

// StepBack is what a replica has seen of a policy that fails at run time.
type StepBack struct {
	// Change is the number of the activation that is to be taken back, and no other one is.
	Change int64
	// Failing is what the replica called Replica has counted.
	Failing authz.PolicyFailing
	Replica string
}

// StepBackPolicy puts the policy in force again that was before, because the one in force fails
// at run time for several organizations. Replicas ask for it, each for itself and without being
// asked: of those that ask at once one is heard, and the others are told policy_changed.
//
// It only undoes what has just been done. Who activated a policy more than StepBackWithin ago,
// rolled back to it, or marked it as a security fix, knows what is in force, and has the alarm;
// and a policy that a security fix replaced comes back by nobody but a person. It is a
// KindConflict then, which another attempt will not change. The policy before it was in force a
// moment ago and is loaded, not tried again: a trial would take the processors from a service
// in trouble. The policy in force is not asked whether it may be replaced.
func (s *Service) StepBackPolicy(ctx context.Context, in StepBack) (*PolicyChange, error) {
	if s.policies == nil {
		return nil, errNoPolicies()
	}
	if origin := s.policies.Origin(); origin != authz.OriginDatabase {
		return nil, errPolicyOrigin(origin)
	}
	everyone, builtIn := Tenant{everyone: true}, s.policies.BuiltIn()
	var history []authz.PolicyActivation
	var archive []byte
	a := authz.PolicyActivation{By: authz.ByReplica(in.Replica), RolledBack: true}
	err := s.read(ctx, func(ctx context.Context, re Reader) (err error) {
		if history, err = re.Activations(ctx, everyone, 0, maxActivations); err != nil {
			return err //nolint:wrapcheck // read does
		}
		if a.Revision, err = automaticStep(history, builtIn, in.Change, re.Now()); err == nil && a.Revision != "" {
			archive, err = re.PolicyArchive(ctx, everyone, a.Revision)
		}
		return err //nolint:wrapcheck // read does
	})
	if err != nil {
		return nil, err
	}
	if err := s.policies.Loads(ctx, archive); err != nil {
		return nil, conflict("policy_refused", "the policy before it cannot be loaded by this version: "+err.Error())
	}
	before := policyNow{history: history}
	a.Note = stepBackNote(in, before.revision(builtIn))
	out := &PolicyChange{}
	revision := policyNow{history: []authz.PolicyActivation{a}}.revision(builtIn)
	_, err = s.store.Write(ctx, true, func(ctx context.Context, w Writer) error {
		latest, err := w.Activations(ctx, everyone, 0, 1)
		if err != nil {
			return err //nolint:wrapcheck // translate below
		}
		// Under the revision's lock: of two replicas the second finds another activation.
		if now := (policyNow{history: latest}); now.change() != in.Change {
			return errPolicyChanged()
		}
		if err := mayStepBack(latest[0], w.Now()); err != nil {
			return err
		}
		if err := w.ActivatePolicy(ctx, everyone, &a, nil); err != nil {
			return err //nolint:wrapcheck // translate below
		}
		out.Activation = a
		e, err := event(authz.OrganizationID{}, actionPolicyStepBack, revision,
			map[string]any{"revision": before.revision(builtIn)}, stepBackDocument(a, builtIn, in))
		if err != nil {
			return err
		}
		e.ActorType, e.ActorID = "replica", in.Replica
		return s.record(ctx, w, Request{}, []AuditEvent{e})
	})
	if err != nil {
		return nil, translate(err)
	}
	effective := s.policyEffective(context.WithoutCancel(ctx), revision)
	out.Effective = &effective
	return out, nil
}

// automaticStep finds what a service may go back to by itself, "" for the built-in policy.
func automaticStep(history []authz.PolicyActivation, builtIn string, change int64, now time.Time) (string, error) {
	if (policyNow{history: history}).change() != change || change == 0 {
		return "", errPolicyChanged()
	}
	if len(history) >= maxActivations {
		return "", conflict("no_step_back", "the history is too long to know whether a security fix would be taken back")
	}
	newest := history[0]
	if err := mayStepBack(newest, now); err != nil {
		return "", err
	}
	target, err := stepBack(history, builtIn, PolicyRollback{})
	if err != nil {
		return "", err
	}
	named := func(revision string) string {
		if revision == builtIn {
			return ""
		}
		return revision
	}
	if named(target) == named(newest.Revision) {
		return "", conflict("no_step_back", "the policy before it is the same one")
	}
	// stepBack sees what is taken off now. A fix may also have been taken off before, by
	// somebody who said so; that was no leave to bring back what it replaced.
	for i, fix := range history {
		if !fix.SecurityFix {
			continue
		}
		wasInForce := named(target) == "" // at first
		for _, older := range history[i+1:] {
			wasInForce = wasInForce || named(older.Revision) == named(target)
		}
		if named(fix.Revision) == named(newest.Revision) || wasInForce && named(fix.Revision) != named(target) {
			return "", errPastSecurityFix("a service does not do so by itself")
		}
	}
	return target, nil
}

// mayStepBack says why an activation is not taken back without anybody asking.
func mayStepBack(a authz.PolicyActivation, now time.Time) error {
	switch {
	case a.RolledBack:
		return conflict("no_step_back", "it was gone back to, and further back nobody has asked for")
	case now.Sub(a.At) > StepBackWithin:
		return conflict("no_step_back", fmt.Sprintf("it was activated more than %d minutes ago", int(StepBackWithin.Minutes())))
	}
	return nil
}

// stepBackNote is for people; it names no organization.
func stepBackNote(in StepBack, from string) string {
	where := ""
	if in.Failing.Where != "" {
		where = ", at " + in.Failing.Where
	}
	return fmt.Sprintf("stepped back by itself from %s: it did not decide %d checks of %d organizations within %d s (%s%s)", from, in.Failing.NewErrors,
		in.Failing.NewOrganizations, int(in.Failing.Window.Seconds()), in.Failing.Kind, where)
}

// stepBackDocument is policyDocument with what was seen.
func stepBackDocument(a authz.PolicyActivation, builtIn string, in StepBack) map[string]any {
	document := policyDocument(a, builtIn)
	document["runtime_errors"] = map[string]any{
		"errors": in.Failing.NewErrors, "organizations": in.Failing.NewOrganizations, "window_seconds": int(in.Failing.Window.Seconds()),
		"kind": string(in.Failing.Kind), "where": in.Failing.Where,
	}
	return document
}
