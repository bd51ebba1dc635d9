package manage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz"
)

// How the audit log tells that a key was narrowed to what it uses, and that this was undone.
const (
	recordRightSize     = "keys.rightsize"
	recordRightSizeUndo = "keys.rightsize_undo"
)

const (
	// maxKeyTraffic bounds the kinds of requests of a key that policy is asked about, and
	// maxLateTraffic those that came while it was, about which it is asked within the change:
	// nobody else's change is made meanwhile.
	maxKeyTraffic  = 20_000
	maxLateTraffic = 50
	// maxToldRequests bounds the kinds of requests that an answer, or a refusal, tells.
	maxToldRequests = 100
	maxToldReasons  = 16
)

// NarrowingInput is how a key is to be narrowed.
type NarrowingInput struct {
	// Since is the begin of the evidence; DefaultAuditWindow ago when it is zero.
	Since time.Time
	// Keep are scopes that stay, whatever is proposed.
	Keep []authz.Scope
}

// NarrowingChange is the answer to a narrowing, and to its undoing.
type NarrowingChange struct {
	KeyChange

	// Narrowing tells what the key had and what it was left with. After an undoing it is the
	// one that was undone.
	Narrowing KeyNarrowing
	// Findings are why. They, Asked and AskedUntil are not set by an undoing.
	Findings *authz.KeyFindings
	// Asked is what policy said of the recorded requests, the gravest and most frequent first;
	// Kinds is how many kinds there were, and Requests how many of all.
	Asked    *authz.Narrowing
	Kinds    int
	Requests int64
	// AskedUntil is when the question was asked: what was counted before is part of it.
	AskedUntil time.Time
}

// UndoableUntil is how long it can be undone.
func (n *KeyNarrowing) UndoableUntil() time.Time { return n.At.Add(UndoneFor) }

// ApplyFindings narrows a key to the scopes that its findings propose. Before, the policy in
// force is asked about all that was recorded of the key in the window, with and without what
// would go; what would be denied, or is in doubt, keeps the key as it is.
//
// What replicas have counted and not yet written is waited for, twice: before policy is asked,
// and when every replica knows of the change. What came between is asked about then; if it
// needs what was taken, or might, the key gets it back and the answer is an error.
func (s *Service) ApplyFindings(
	ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID, in NarrowingInput,
) (*NarrowingChange, error) {
	if s.auditor == nil || s.policies == nil {
		return nil, errNoAuditor()
	}
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		_, _, err := s.keyForChange(ctx, re, r, operation{actionFindingsApply, writers()}, org, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	var plan *narrowingPlan
	at, answered, err := s.settle(ctx, r)
	if err == nil && !answered {
		plan, err = s.planNarrowing(ctx, r, org, id, in, at)
	}
	if err != nil {
		return nil, err
	}
	out := &NarrowingChange{}
	once := r
	if !answered {
		once.IdempotencyKey = "" // it is answered once it is confirmed
	}
	done, err := s.change(ctx, once, out, func(ctx context.Context, w Writer) (outcome, error) {
		if plan == nil {
			return outcome{}, conflict("key_changed", "the earlier answer to this request is not kept any more; try again")
		}
		return s.narrow(ctx, w, r, org, id, plan, out)
	})
	if err != nil {
		return nil, err
	}
	out.Effective = done.effective
	if !answered && !r.DryRun {
		if err := s.confirmNarrowing(context.WithoutCancel(ctx), r, plan, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// settle waits until what was counted so far is written, and tells until when that is. A
// request that was answered before needs none of it.
func (s *Service) settle(ctx context.Context, r Request) (at time.Time, answered bool, err error) {
	// A change of nothing: what a replica has counted before it hears of it was decided before.
	revision, err := s.store.Write(ctx, true, func(ctx context.Context, w Writer) error {
		at = w.Now()
		scope := r.scope()
		if scope == nil {
			return nil
		}
		earlier, err := w.Remembered(ctx, *scope)
		answered = earlier != nil
		return err //nolint:wrapcheck // translate does
	})
	if err != nil || answered {
		return at, answered, translate(err)
	}
	counted, err := s.store.Counted(ctx, revision)
	if err != nil {
		return at, false, translate(err)
	}
	if len(counted.Silent) == 0 {
		return at, false, nil
	}
	e := &authz.Error{
		Kind: authz.KindConflict, Code: "usage_not_written",
		Message: fmt.Sprintf("%d of %d replicas have not written what they counted, so not all traffic is known; see reasons, and try again",
			len(counted.Silent), counted.Replicas),
	}
	for _, silent := range counted.Silent[:min(len(counted.Silent), maxToldReasons)] {
		e.Reasons = append(e.Reasons, authz.Reason{
			Code: "usage_not_written", Message: fmt.Sprintf("Replica %s counts until %s unless it is heard of.", silent.Replica, timestamp(silent.ServesUntil)),
		})
	}
	return at, false, e
}

// narrowingPlan is what was found out before a key is narrowed, of one state of it.
type narrowingPlan struct {
	findings *authz.KeyFindings
	// scopes are what the key would be left with.
	scopes                []authz.Scope
	key, organization     int // their versions
	asked                 *authz.Narrowing
	known                 map[kindOfTraffic]bool
	at                    time.Time
	requests, askedPassed int64
}

// kindOfTraffic is what is asked about once.
type kindOfTraffic struct {
	caller authz.CallerID
	shape  authz.Shape
	passed bool
}

func kindOf(r authz.RecordedOfKey) kindOfTraffic {
	return kindOfTraffic{r.CallerID, r.Shape, r.Passed > 0}
}

// planNarrowing finds what is proposed for a key, and asks the recorded traffic. Nothing is
// locked meanwhile.
func (s *Service) planNarrowing(
	ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID, in NarrowingInput, at time.Time,
) (*narrowingPlan, error) {
	plan := &narrowingPlan{at: at, known: map[kindOfTraffic]bool{}}
	var traffic *KeyTraffic
	var granted []authz.Scope
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		k, o, err := s.keyForChange(ctx, re, r, operation{actionFindingsApply, writers()}, org, id)
		if err != nil {
			return err
		}
		plan.key, plan.organization, granted = k.Version, o.Version, k.Scopes
		since, until, err := auditWindow(re.Now(), in.Since)
		if err != nil {
			return err
		}
		f := EvidenceFilter{Organization: k.OrganizationID, Key: id, Since: since, Until: until}
		_, err = s.audit(ctx, re, r, f, func(found *authz.KeyFindings) error {
			plan.findings = found
			return nil
		})
		if err != nil {
			return err
		}
		if plan.findings == nil {
			return errors.New("narrow a key: there is no evidence of it")
		}
		traffic, err = re.KeyTraffic(ctx, TenantOf(r.Actor), KeyTrafficFilter{
			Organization: k.OrganizationID, Key: id, Since: since, Until: until, Limit: maxKeyTraffic,
		})
		return err //nolint:wrapcheck // read does
	})
	if err != nil {
		return nil, err
	}
	if plan.scopes, err = narrower(granted, plan.findings, in.Keep); err != nil {
		return nil, err
	}
	if plan.asked, err = s.ask(ctx, traffic, plan.scopes, maxKeyTraffic); err != nil {
		return nil, err
	}
	for _, rows := range traffic.Recorded {
		plan.known[kindOf(rows)] = true
		plan.requests += rows.Requests
		plan.askedPassed += rows.Passed
	}
	return plan, againstNarrowing(plan.asked)
}

// narrower is what a key is to be left with: what it is granted, without what findings would
// remove and nobody wants to keep.
func narrower(granted []authz.Scope, found *authz.KeyFindings, keep []authz.Scope) ([]authz.Scope, error) {
	for _, k := range keep {
		if !slices.Contains(granted, k) {
			return nil, outOfRange("/keep", "must be scopes of the key")
		}
	}
	left := make([]authz.Scope, 0, len(granted))
	for _, scope := range granted {
		if slices.Contains(found.ProposedScopes, scope) || slices.Contains(keep, scope) {
			left = append(left, scope)
		}
	}
	switch {
	case len(left) == len(granted):
		return nil, conflict("nothing_to_apply", "no scope of the key is proposed to go; "+found.Coverage)
	case len(left) == 0:
		return nil, conflict("nothing_left", "the key would have no scope left: revoke it, or name those that it keeps; "+found.Coverage)
	}
	return left, nil
}

// ask asks policy about traffic.
func (s *Service) ask(ctx context.Context, traffic *KeyTraffic, scopes []authz.Scope, limit int) (*authz.Narrowing, error) {
	switch {
	case traffic.Key == nil:
		return nil, conflict("key_unreadable", "the key's record cannot be read, so policy cannot be asked about it")
	case traffic.More:
		return nil, conflict("traffic_too_varied",
			fmt.Sprintf("more than %d kinds of requests were recorded of the key, so not all can be asked about; ask about less time", limit))
	}
	asked, err := s.policies.Narrow(ctx, traffic.Key, scopes, traffic.Recorded)
	if err != nil {
		return nil, authz.Unavailable("policy could not be asked about the recorded requests; see the log", fmt.Errorf("%w: %w", errPolicy, err))
	}
	return asked, nil
}

// againstNarrowing refuses a narrowing by which something would be denied, or might be.
func againstNarrowing(asked *authz.Narrowing) error {
	against := asked.Against()
	if len(against) == 0 {
		return nil
	}
	e := &authz.Error{
		Kind: authz.KindConflict, Code: "traffic_needs_scopes",
		Message: several(int64(len(against)), "kind") + " of recorded requests would be denied, or it is not known; the key stays as it is. " +
			"See reasons; keep their scopes, or change the scopes of the key by hand",
	}
	for _, requests := range against[:min(len(against), maxToldReasons)] {
		e.Reasons = append(e.Reasons, authz.Reason{Code: authz.Code(requests.Outcome), Message: sentenceAbout(requests)})
	}
	return e
}

// sentenceAbout tells one kind of requests and what is against taking its scopes.
func sentenceAbout(r authz.NarrowedRequests) string {
	what := strings.TrimSpace(r.Method + " " + r.Path)
	switch {
	case what == "" && r.Action == "":
		what = "requests of kinds that were not kept"
	case what == "":
		what = r.Action
	case r.Action != "":
		what += " (" + r.Action + ")"
	}
	why := r.Why
	if r.Outcome == authz.NarrowingDenies {
		why = fmt.Sprintf("allowed now, %s then", r.After)
		if len(r.Missing) > 0 {
			why += ": it needs " + scopesText(r.Missing)
		}
	}
	times := "once"
	if r.Requests != 1 {
		times = several(r.Requests, "time")
	}
	return fmt.Sprintf("%s, %s: %s.", what, times, why)
}

// several is a number of something.
func several(n int64, name string) string {
	if n != 1 {
		name += "s"
	}
	return strconv.FormatInt(n, 10) + " " + name
}

func scopesText(scopes []authz.Scope) string {
	words := make([]string, len(scopes))
	for i, s := range scopes {
		words[i] = string(s)
	}
	return strings.Join(words, " ")
}

// narrow makes the change, if everything is still as the plan has it.
func (s *Service) narrow(
	ctx context.Context, w Writer, r Request, org authz.OrganizationID, id authz.KeyID, plan *narrowingPlan, out *NarrowingChange,
) (outcome, error) {
	op := operation{actionFindingsApply, writers()}
	k, o, err := s.keyForChange(ctx, w, r, op, org, id)
	if err != nil {
		return outcome{}, err
	}
	switch {
	case k.Version != plan.key || o.Version != plan.organization:
		return outcome{}, conflict("key_changed", "the key or its organization changed while its traffic was asked about; try again")
	case s.policies.State().Revision != plan.asked.Policy:
		return outcome{}, errPolicyChanged()
	}
	if err := s.askLate(ctx, w, r, k, plan); err != nil {
		return outcome{}, err
	}
	before, was := k.document(w.Now()), k.Scopes
	k.Scopes = plan.scopes
	if err := s.decideScopes(ctx, r, op.action, o, before, k.document(w.Now())); err != nil {
		return outcome{}, err
	}
	if err := w.UpdateKey(ctx, TenantOf(r.Actor), k); err != nil {
		return outcome{}, err //nolint:wrapcheck // change does
	}
	evidence := plan.document()
	n := KeyNarrowing{
		Key: k.ID, Organization: k.OrganizationID, By: r.Actor.ID.String(), Before: was, After: k.Scopes, Version: k.Version,
	}
	if n.Evidence, err = json.Marshal(evidence); err != nil {
		return outcome{}, fmt.Errorf("keep the evidence: %w", err)
	}
	if err := w.InsertKeyNarrowing(ctx, TenantOf(r.Actor), &n); err != nil {
		return outcome{}, err //nolint:wrapcheck // change does
	}
	out.Key, out.At, out.Narrowing, out.Findings, out.AskedUntil = *k, w.Now(), n, plan.findings, plan.at
	out.Kinds, out.Requests, out.Asked = len(plan.asked.Requests), plan.requests, plan.asked
	out.Asked.Requests = out.Asked.Requests[:min(len(out.Asked.Requests), maxToldRequests)]
	if !TenantOf(r.Actor).Everyone() {
		for i := range out.Asked.Requests {
			out.Asked.Requests[i].Caller = "" // callers are the platform's
		}
	}
	after := k.document(w.Now())
	after["evidence"] = evidence
	return logged(outcome{takes: true}, k.OrganizationID, recordRightSize, k.ID.String(), before, after)
}

// askLate asks about kinds of requests that have come since the plan was made.
func (s *Service) askLate(ctx context.Context, w Writer, r Request, k *Key, plan *narrowingPlan) error {
	traffic, err := w.KeyTraffic(ctx, TenantOf(r.Actor), KeyTrafficFilter{
		Organization: k.OrganizationID, Key: k.ID, Since: plan.at, Until: w.Now(), Limit: maxKeyTraffic,
	})
	if err != nil {
		return err //nolint:wrapcheck // change does
	}
	traffic.Recorded = slices.DeleteFunc(traffic.Recorded, func(rows authz.RecordedOfKey) bool { return plan.known[kindOf(rows)] })
	if len(traffic.Recorded) > maxLateTraffic {
		return conflict("key_changed", "the key is used in many new ways just now; try again")
	}
	if len(traffic.Recorded) == 0 && !traffic.More {
		return nil
	}
	asked, err := s.ask(ctx, traffic, plan.scopes, maxKeyTraffic)
	if err != nil {
		return err
	}
	if asked.Policy != plan.asked.Policy {
		return errPolicyChanged()
	}
	return againstNarrowing(asked)
}

// decideScopes asks policy whether the actor may do it, and whether the key may be changed so.
func (s *Service) decideScopes(ctx context.Context, r Request, action string, o *Organization, current, wanted map[string]any) error {
	if err := s.decide(ctx, r, action, o, current, wanted); err != nil {
		return err
	}
	return s.decide(ctx, r, actionKeysUpdate, o, current, wanted)
}

// document is the evidence as it is kept and as the audit log has it.
func (p *narrowingPlan) document() map[string]any {
	findings := make([]any, 0, len(p.findings.Findings))
	for _, f := range p.findings.Findings {
		if f.Remedy == authz.RemedyNarrow {
			findings = append(findings, map[string]any{"code": f.Code, "scopes": f.RemoveScopes, "message": f.Message})
		}
	}
	return map[string]any{
		"since": timestamp(p.findings.Evidence.Window.Since), "until": timestamp(p.at), "coverage": p.findings.Coverage, "findings": findings,
		"policy_revision": p.asked.Policy, "kinds": len(p.asked.Requests), "requests": p.requests, "passed": p.askedPassed,
	}
}

// UndoFindings gives back the scopes that the newest narrowing of a key took which was not
// undone: the key has then exactly those that it had. All else of the key stays as it is by
// now. It is refused when the scopes were changed otherwise since, and when one of them is not
// in the catalogue any more.
func (s *Service) UndoFindings(ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID) (*NarrowingChange, error) {
	return s.undoNarrowing(ctx, r, org, id, nil)
}

// undoNarrowing undoes the newest narrowing, which must be the one that is given, if any is.
func (s *Service) undoNarrowing(
	ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID, only *confirmed,
) (*NarrowingChange, error) {
	op := operation{actionFindingsUndo, writers()}
	out := &NarrowingChange{}
	_, err := s.change(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		k, o, err := s.keyForChange(ctx, w, r, op, org, id)
		if err != nil {
			return outcome{}, err
		}
		n, err := w.KeyNarrowing(ctx, TenantOf(r.Actor), id, w.Now().Add(-UndoneFor))
		if errors.Is(err, ErrNotFound) {
			return outcome{}, conflict("nothing_to_undo", "nothing was taken from the key in the last 400 days that it has not got back")
		}
		if err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		if err := first(only.is(n), undoable(s.policy.Catalogue(), k, n)); err != nil {
			return outcome{}, err
		}
		before := k.document(w.Now())
		k.Scopes = n.Before
		if err := s.decideScopes(ctx, r, op.action, o, before, k.document(w.Now())); err != nil {
			return outcome{}, err
		}
		if err := w.UpdateKey(ctx, TenantOf(r.Actor), k); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		n.UndoneAt, n.UndoneBy = w.Now(), r.Actor.ID.String()
		if err := w.EndKeyNarrowing(ctx, TenantOf(r.Actor), n); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Key, out.At, out.Narrowing = *k, w.Now(), *n
		after := k.document(w.Now())
		undone := map[string]any{"narrowed_at": timestamp(n.At), "narrowed_by": n.By}
		if only != nil {
			undone["because"] = only.why.Code
		}
		after["undone"] = undone
		return logged(outcome{}, k.OrganizationID, recordRightSizeUndo, k.ID.String(), before, after)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// undoable refuses to undo what does not say any more what the key should have.
func undoable(c authz.Catalogue, k *Key, n *KeyNarrowing) error {
	if !slices.Equal(k.Scopes, n.After) {
		return conflict("scopes_changed", fmt.Sprintf(
			"on %s the key was left with %s, and its scopes were changed since, to %s; give it by hand what it should have of %s",
			n.At.Format(time.DateOnly), scopesText(n.After), scopesText(k.Scopes), scopesText(n.Before)))
	}
	if n.Widened { // somebody has decided anew what it should have
		return conflict("scopes_changed", fmt.Sprintf(
			"on %s the key was left with %s; it was given scopes since, and they were taken from it again; give it by hand what it should have of %s",
			n.At.Format(time.DateOnly), scopesText(n.After), scopesText(n.Before)))
	}
	var gone []authz.Scope
	for _, scope := range n.Before {
		if !c.Has(scope) {
			gone = append(gone, scope)
		}
	}
	if len(gone) > 0 {
		return conflict("scopes_gone", fmt.Sprintf(
			"the key had %s, of which the policy's catalogue has %s no more; give it by hand what it should have", scopesText(n.Before), scopesText(gone)))
	}
	return nil
}
