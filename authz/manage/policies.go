package manage

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/supportstation/keystile/authz"
)

// The actions on policies.
const (
	actionPolicyGet      = "policy.get"
	actionPolicyList     = "policy.list"
	actionPolicyTest     = "policy.test"
	actionPolicyActivate = "policy.activate"
	actionPolicyRollback = "policy.rollback"
	actionPolicyRecover  = "policy.recover"
	actionPolicyStepBack = "policy.step_back"
)

const (
	// maxPolicyNote bounds what is said about an activation, in bytes.
	maxPolicyNote = 1000
	// maxActivations bounds how far back is looked for a policy to go back to.
	maxActivations = 10_000
)

// Policies tries policies, and knows which one is in force. It is implemented by authz/policy.
type Policies interface {
	// TryFiles measures a policy, given as its files by their paths, by another one's archive
	// (nil is the built-in one), and returns it whole for keeping when it could be read. What
	// is wrong with it is in the report; the error is of a trial that could not be made.
	// Called concurrently.
	TryFiles(ctx context.Context, files map[string]string, against []byte, accept []string) (*authz.PolicyReport, []byte, error)
	// TryArchive is TryFiles for a policy that was kept; alone tries it by itself.
	TryArchive(ctx context.Context, archive, against []byte, accept []string, alone bool) (*authz.PolicyReport, error)
	// Replay asks the policy in force here and another one, given by its files or its archive
	// (neither is the built-in one), about recorded requests. told hears how many were asked
	// about. One that does not load is a *authz.PolicyRefusedError; any other error is of a
	// replay that could not be made.
	Replay(ctx context.Context, files map[string]string, archive []byte, traffic authz.Traffic, told func(int64)) (*authz.PolicyDiff, error)
	// Shadowable says whether a policy, given as for Replay, can be asked beside the one in force,
	// and returns its revision and archive. One that does not load is a *authz.PolicyRefusedError.
	Shadowable(ctx context.Context, files map[string]string, archive []byte) (revision string, whole []byte, err error)
	// Narrow asks the policy in force here about recorded requests of a key, and of the same key
	// with other scopes.
	Narrow(ctx context.Context, k *authz.Key, scopes []authz.Scope, traffic []authz.RecordedOfKey) (*authz.Narrowing, error)
	// Analyze tells what the answers of the policy in force here can depend on.
	Analyze() (revision string, entrypoints []authz.PolicyAnalysis, err error)
	// Loads says why a policy that was kept cannot be in force here, nil when it can.
	Loads(ctx context.Context, archive []byte) error
	// State tells which policy is in force here, Failing how it fails at run time.
	State() authz.PolicyState
	Failing() authz.PolicyFailing
	// BuiltIn is the revision of the policy that the program is built with.
	BuiltIn() string
	// Origin is where this service takes its policy from: what is activated is in force
	// where that is OriginDatabase, and nowhere else.
	Origin() authz.PolicyOrigin
}

// PolicyInForce is which policy decides, and since when.
type PolicyInForce struct {
	// State and Failing are of the replica that answers.
	State   authz.PolicyState
	Failing authz.PolicyFailing
	// Origin is where policies come from here.
	Origin authz.PolicyOrigin
	// Activation is the newest one in the database; nil while there is none.
	Activation *authz.PolicyActivation
}

// PolicyInput is a policy that is to be tried or activated: Files, or the Revision of one
// that was activated before.
type PolicyInput struct {
	Files    map[string]string
	Revision string
	// Accept names the tests of the policy in force that may fail.
	Accept []string
	// Note and SecurityFix are authz.PolicyActivation's.
	Note        string
	SecurityFix bool
}

// PolicyChange is the answer of a change of what is in force.
type PolicyChange struct {
	Activation authz.PolicyActivation
	// Report is what came of trying it; nil for the built-in one.
	Report *authz.PolicyReport
	// Effective tells which replicas decide by it.
	Effective *Effective `json:"-"`
}

// Policy tells which policy is in force. Platform admins alone.
func (s *Service) Policy(ctx context.Context, r Request) (*PolicyInForce, error) {
	var out *PolicyInForce
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		if err := s.may(ctx, r, operation{action: actionPolicyGet}, nil, nil); err != nil {
			return err
		}
		if s.policies == nil {
			return errNoPolicies()
		}
		latest, err := re.Activations(ctx, TenantOf(r.Actor), 0, 1)
		if err != nil {
			return err //nolint:wrapcheck // read does
		}
		out = &PolicyInForce{State: s.policies.State(), Failing: s.policies.Failing(), Origin: s.policies.Origin()}
		if len(latest) > 0 {
			out.Activation = &latest[0]
		}
		return nil
	})
	return out, err
}

// AnalyzePolicy tells, of the policy in force on the replica that answers, what its answers can
// depend on, and its revision. Platform admins alone.
func (s *Service) AnalyzePolicy(ctx context.Context, r Request) (revision string, entrypoints []authz.PolicyAnalysis, err error) {
	if err := s.may(ctx, r, operation{action: actionPolicyGet}, nil, nil); err != nil {
		return "", nil, err
	}
	if s.policies == nil {
		return "", nil, errNoPolicies()
	}
	return s.policies.Analyze() //nolint:wrapcheck // it says what is wrong
}

// PolicyHistory lists how policies came into force, newest first, from before a change on
// when it is not 0. Platform admins alone.
func (s *Service) PolicyHistory(ctx context.Context, r Request, before int64, p Page) (List[authz.PolicyActivation], error) {
	var out List[authz.PolicyActivation]
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		if err := s.may(ctx, r, operation{action: actionPolicyList}, nil, nil); err != nil {
			return err
		}
		items, err := re.Activations(ctx, TenantOf(r.Actor), before, p.more().Limit)
		out = paged(items, p, re.Now(), func(a *authz.PolicyActivation) string { return fmt.Sprint(a.Change) })
		return err //nolint:wrapcheck // read does
	})
	return out, err
}

// MayTestPolicy is nil for whoever may send a policy at all.
func (s *Service) MayTestPolicy(ctx context.Context, r Request) error {
	return s.may(ctx, r, operation{action: actionPolicyTest}, nil, nil)
}

// TestPolicy tries a policy and changes nothing. Platform admins alone.
func (s *Service) TestPolicy(ctx context.Context, r Request, in PolicyInput) (*authz.PolicyReport, error) {
	if err := s.MayTestPolicy(ctx, r); err != nil {
		return nil, err
	}
	if s.policies == nil {
		return nil, errNoPolicies()
	}
	now, err := s.policyNow(ctx, r, 1)
	if err != nil {
		return nil, err
	}
	report, _, err := s.tryPolicy(ctx, r, in, now)
	return report, err
}

// ActivatePolicy puts a policy in force on every replica, once it has proved itself by the
// newest one. Platform admins alone.
func (s *Service) ActivatePolicy(ctx context.Context, r Request, in PolicyInput) (*PolicyChange, error) {
	if err := s.mayChangePolicy(ctx, r, actionPolicyActivate, in.Note); err != nil {
		return nil, err
	}
	if out, err := s.answeredBefore(ctx, r); out != nil || err != nil {
		return out, err
	}
	now, err := s.policyNow(ctx, r, maxActivations)
	if err != nil {
		return nil, err
	}
	report, archive, err := s.tryPolicy(ctx, r, in, now)
	if err != nil {
		return nil, err
	}
	// The same files are the same policy, whether they are sent again or named.
	if takesBackFix(now.history, report.Revision, s.policies.BuiltIn()) {
		return nil, errPastSecurityFix("roll back to it with past_security_fix if that is meant")
	}
	if !report.Passed() {
		return nil, refused(report)
	}
	a := authz.PolicyActivation{Revision: report.Revision, Note: in.Note, SecurityFix: in.SecurityFix, Accepted: report.Accepted}
	return s.putInForce(ctx, r, actionPolicyActivate, a, report, archive, now)
}

// PolicyRollback is how far to go back.
type PolicyRollback struct {
	// Revision is the policy to go back to; "" is the one that was in force before.
	Revision string
	Note     string
	// PastSecurityFix goes back although a security fix is taken back with it.
	PastSecurityFix bool
}

// RollBackPolicy puts a policy in force again that was in force before. It must still prove
// itself, but not by the one that it replaces. Platform admins alone.
func (s *Service) RollBackPolicy(ctx context.Context, r Request, in PolicyRollback) (*PolicyChange, error) {
	if err := s.mayChangePolicy(ctx, r, actionPolicyRollback, in.Note); err != nil {
		return nil, err
	}
	if out, err := s.answeredBefore(ctx, r); out != nil || err != nil {
		return out, err
	}
	now, err := s.policyNow(ctx, r, maxActivations)
	if err != nil {
		return nil, err
	}
	target, err := stepBack(now.history, s.policies.BuiltIn(), in)
	if err != nil {
		return nil, err
	}
	a := authz.PolicyActivation{Revision: target, Note: in.Note, RolledBack: true}
	if target == "" { // the program's own needs no proof
		return s.putInForce(ctx, r, actionPolicyRollback, a, nil, nil, now)
	}
	archive, err := s.keptPolicy(ctx, r, target)
	if err != nil {
		return nil, err
	}
	report, err := s.policies.TryArchive(ctx, archive, nil, nil, true)
	if err != nil {
		return nil, untried(err)
	}
	if !report.Passed() {
		return nil, refused(report)
	}
	return s.putInForce(ctx, r, actionPolicyRollback, a, report, nil, now)
}

// RecoverPolicy puts the policy in force that the program is built with, straight on the
// database, for the case that the one in force lets nobody in who could take it back.
func RecoverPolicy(ctx context.Context, store Store, keys authz.Peppers, builtIn, note string) (*authz.PolicyActivation, error) {
	s := &Service{store: store, keys: keys}
	out := &authz.PolicyActivation{By: authz.ByDatabase, Note: note, RolledBack: true}
	_, err := store.Write(ctx, true, func(ctx context.Context, w Writer) error {
		everyone := Tenant{everyone: true}
		latest, err := w.Activations(ctx, everyone, 0, 1)
		if err != nil {
			return err //nolint:wrapcheck // translate below
		}
		before := policyNow{history: latest}
		if err := w.ActivatePolicy(ctx, everyone, out, nil); err != nil {
			return err //nolint:wrapcheck // translate below
		}
		e, err := event(authz.OrganizationID{}, actionPolicyRecover, builtIn, map[string]any{"revision": before.revision(builtIn)}, policyDocument(*out, builtIn))
		if err != nil {
			return err
		}
		e.ActorType, e.ActorID = "database", "recover"
		return s.record(ctx, w, Request{}, []AuditEvent{e})
	})
	if err != nil {
		return nil, translate(err)
	}
	return out, nil
}

// policyNow is what the database has in force, as of when it was read.
type policyNow struct {
	// history is newest first, as far as it was asked for.
	history []authz.PolicyActivation
	// archive is nil for the built-in one.
	archive []byte
}

// change is the number of the newest activation, 0 before the first.
func (n policyNow) change() int64 {
	if len(n.history) == 0 {
		return 0
	}
	return n.history[0].Change
}

// revision is that of the policy in force.
func (n policyNow) revision(builtIn string) string {
	if len(n.history) == 0 || n.history[0].Revision == "" {
		return builtIn
	}
	return n.history[0].Revision
}

func (s *Service) policyNow(ctx context.Context, r Request, most int) (now policyNow, err error) {
	err = s.read(ctx, func(ctx context.Context, re Reader) (err error) {
		if now.history, err = re.Activations(ctx, TenantOf(r.Actor), 0, most); err != nil {
			return err //nolint:wrapcheck // read does
		}
		if len(now.history) > 0 && now.history[0].Revision != "" {
			now.archive, err = re.PolicyArchive(ctx, TenantOf(r.Actor), now.history[0].Revision)
		}
		return err //nolint:wrapcheck // read does
	})
	return now, err
}

// takesBackFix tells whether a policy was in force, and a security fix came into force since.
func takesBackFix(history []authz.PolicyActivation, revision, builtIn string) bool {
	fixed := false
	for _, a := range withMarks(history) {
		if a.Revision == revision || a.Revision == "" && revision == builtIn {
			return fixed
		}
		fixed = fixed || a.SecurityFix
	}
	return fixed && revision == builtIn // which was in force at first
}

// withMarks has a policy that was marked once as a security fix be one each time.
func withMarks(history []authz.PolicyActivation) []authz.PolicyActivation {
	marked := map[string]bool{}
	for _, a := range history {
		marked[a.Revision] = marked[a.Revision] || a.SecurityFix
	}
	all := slices.Clone(history)
	for i := range all {
		all[i].SecurityFix = marked[all[i].Revision]
	}
	return all
}

// stepBack finds what to go back to, "" for the built-in policy. Going back twice goes
// further back, and not forth again.
func stepBack(history []authz.PolicyActivation, builtIn string, in PolicyRollback) (string, error) {
	// What was in force, one on the other; a roll-back takes off what it took back.
	stack := []authz.PolicyActivation{{}} // at first the built-in one
	for _, a := range slices.Backward(withMarks(history)) {
		if a.RolledBack {
			if i := lastOf(stack, a.Revision); i >= 0 {
				stack = stack[:i+1]
				continue
			}
		}
		stack = append(stack, a)
	}
	wanted := in.Revision
	if wanted == builtIn {
		wanted = ""
	}
	to := len(stack) - 2
	if in.Revision != "" {
		if to = lastOf(stack[:len(stack)-1], wanted); to < 0 {
			return "", &authz.Error{
				Kind: authz.KindNotFound, Code: "not_found",
				Message: "no such policy was in force before this one; GET /v1/policy/history lists them",
			}
		}
	}
	if to < 0 {
		return "", conflict("nothing_to_roll_back", "nothing was ever activated: the built-in policy is in force")
	}
	for _, a := range stack[to+1:] {
		if a.SecurityFix && !in.PastSecurityFix {
			return "", errPastSecurityFix("say past_security_fix if that is meant")
		}
	}
	return stack[to].Revision, nil
}

func lastOf(stack []authz.PolicyActivation, revision string) int {
	for i := len(stack) - 1; i >= 0; i-- {
		if stack[i].Revision == revision {
			return i
		}
	}
	return -1
}

func (s *Service) mayChangePolicy(ctx context.Context, r Request, action, note string) error {
	if err := s.may(ctx, r, operation{action: action}, nil, nil); err != nil {
		return err
	}
	if s.policies == nil {
		return errNoPolicies()
	}
	if origin := s.policies.Origin(); origin != authz.OriginDatabase {
		return errPolicyOrigin(origin)
	}
	if len(note) > maxPolicyNote {
		return invalid("string_too_long", "/note", fmt.Sprintf("must be at most %d bytes", maxPolicyNote))
	}
	return s.notKey("/note", note)
}

// tryPolicy measures what was sent, or what was kept before, by what is in force.
func (s *Service) tryPolicy(ctx context.Context, r Request, in PolicyInput, now policyNow) (*authz.PolicyReport, []byte, error) {
	if (in.Revision == "") == (in.Files == nil) {
		return nil, nil, invalid("missing_field", "/files", "send either files, or the revision of a policy that was activated before")
	}
	if in.Files != nil {
		report, archive, err := s.policies.TryFiles(ctx, in.Files, now.archive, in.Accept)
		return report, archive, untried(err)
	}
	archive, err := s.keptPolicy(ctx, r, in.Revision)
	if err != nil {
		return nil, nil, err
	}
	report, err := s.policies.TryArchive(ctx, archive, now.archive, in.Accept, false)
	return report, nil, untried(err)
}

// keptPolicy is the archive of a policy that was activated.
func (s *Service) keptPolicy(ctx context.Context, r Request, revision string) (archive []byte, err error) {
	err = s.read(ctx, func(ctx context.Context, re Reader) (err error) {
		archive, err = re.PolicyArchive(ctx, TenantOf(r.Actor), revision)
		if errors.Is(err, ErrNotFound) {
			return notFound("policy")
		}
		return err //nolint:wrapcheck // read does
	})
	return archive, err
}

// answeredBefore is the answer to the same request under its Idempotency-Key, before anything
// is tried that may come out otherwise by now; nil when there is none.
func (s *Service) answeredBefore(ctx context.Context, r Request) (*PolicyChange, error) {
	scope := r.scope()
	if scope == nil {
		return nil, nil //nolint:nilnil // there is none
	}
	known := false
	_, err := s.store.Write(ctx, false, func(ctx context.Context, w Writer) error {
		earlier, err := w.Remembered(ctx, *scope)
		known = earlier != nil
		return err //nolint:wrapcheck // translate does
	})
	if err != nil || !known {
		return nil, translate(err)
	}
	out := &PolicyChange{}
	done, err := s.change(ctx, r, out, func(context.Context, Writer) (outcome, error) {
		return outcome{}, conflict("policy_changed", "the earlier answer to this request is not kept any more; try again")
	})
	if err != nil {
		return nil, err
	}
	out.Effective = done.effective
	return out, nil
}

// putInForce writes an activation, unless another one came first: before is what it was
// measured by.
func (s *Service) putInForce(
	ctx context.Context, r Request, action string, a authz.PolicyActivation, report *authz.PolicyReport, archive []byte, before policyNow,
) (*PolicyChange, error) {
	out, builtIn := &PolicyChange{}, s.policies.BuiltIn()
	done, err := s.change(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		latest, err := w.Activations(ctx, TenantOf(r.Actor), 0, 1)
		if err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		if now := (policyNow{history: latest}); now.change() != before.change() {
			return outcome{}, errPolicyChanged()
		}
		a.By = r.Actor.ID.String()
		if err := w.ActivatePolicy(ctx, TenantOf(r.Actor), &a, archive); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		*out = PolicyChange{Activation: a, Report: report}
		revision := policyNow{history: []authz.PolicyActivation{a}}.revision(builtIn)
		ended, err := endShadowInForce(ctx, w, TenantOf(r.Actor), revision, a.By)
		if err != nil {
			return outcome{}, err
		}
		return logged(outcome{policy: revision, events: ended}, authz.OrganizationID{}, action, revision,
			map[string]any{"revision": before.revision(builtIn)}, policyDocument(a, builtIn))
	})
	if err != nil {
		return nil, err
	}
	out.Effective = done.effective
	return out, nil
}

// policyDocument is what the audit log has of an activation.
func policyDocument(a authz.PolicyActivation, builtIn string) map[string]any {
	accepted := make([]any, len(a.Accepted))
	for i, name := range a.Accepted {
		accepted[i] = name
	}
	return map[string]any{
		"revision": policyNow{history: []authz.PolicyActivation{a}}.revision(builtIn), "note": a.Note, "security_fix": a.SecurityFix,
		"rolled_back": a.RolledBack, "accepted_tests": accepted,
	}
}
