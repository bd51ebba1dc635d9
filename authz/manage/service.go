// Package manage has the operations on organizations, keys, callers and admins: one
// service layer under the JSON API and the pages. Who may do what stands here and in
// the store's WHERE; policy can only narrow it.
package manage

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/supportstation/keystile/authz"
)

// Policy narrows what actors may do, and lists scopes and plans. It is implemented
// by authz/policy.
type Policy interface {
	// DecideAdmin asks the active policy about one management action. An error means
	// that it could not be decided. Called concurrently.
	DecideAdmin(ctx context.Context, q authz.AdminQuestion) (authz.AdminVerdict, error)
	// Catalogue returns what the active policy lists.
	Catalogue() authz.Catalogue
}

// Options are what a Service needs.
type Options struct {
	Store  Store
	Policy Policy
	// Format is the form of the secrets that are made.
	Format authz.KeyFormat
	// Policies tries policies that want to be in force; nil where policy cannot be managed.
	Policies Policies
	// Auditor judges how keys are used; nil where they cannot be audited.
	Auditor Auditor
	// AuditKeys seal the audit log; see AuditKeys.
	AuditKeys authz.Peppers
	// AcceptsForeign tells whether a text has the form of secrets that were imported,
	// which must not become names; nil for none.
	AcceptsForeign func(text string) bool
	// Decisions is what is said of decisions that are not there.
	Decisions DecisionsKept
}

// Service does the management operations. Safe for concurrent use.
//
// Its errors are *authz.Error with a code and a sentence that may be shown:
// KindInvalid, KindForbidden, KindNotFound, KindConflict, KindPrecondition,
// KindUnavailable; everything else is an unexpected fault.
type Service struct {
	store  Store
	policy Policy
	// policies is nil where they cannot be managed.
	policies Policies
	// auditor is nil where keys cannot be audited.
	auditor Auditor
	format  authz.KeyFormat
	keys    authz.Peppers
	// foreign is Options.AcceptsForeign.
	foreign   func(string) bool
	decisions DecisionsKept

	// marking is held while checkpoints are made; marked is where chains ended at the last.
	marking sync.Mutex
	marked  map[authz.OrganizationID]ChainHead
}

// New returns a Service, or an error when a part is missing.
func New(o Options) (*Service, error) {
	if o.Store == nil || o.Policy == nil {
		return nil, errors.New("management needs a store and a policy")
	}
	if len(o.AuditKeys.IDs()) == 0 {
		return nil, errors.New("management needs keys for the audit log")
	}
	return &Service{
		store: o.Store, policy: o.Policy, policies: o.Policies, auditor: o.Auditor, format: o.Format, keys: o.AuditKeys,
		foreign: o.AcceptsForeign, decisions: o.Decisions,
	}, nil
}

// Request is who asks, and how.
type Request struct {
	Actor *authz.Admin
	// RequestID and Address go into the audit log.
	RequestID string
	Address   netip.Addr
	// Operation is method and route; with IdempotencyKey it is where that key counts.
	Operation string
	// IdempotencyKey is empty when none was sent.
	IdempotencyKey string
	// Fingerprint is a hash of the whole request.
	Fingerprint [32]byte
	// DryRun keeps nothing.
	DryRun bool
	// IfVersion, when not 0, is the version that a change is meant for.
	IfVersion int
}

// operation is one change as it runs: what it is about and what it found.
type operation struct {
	action string
	// roles may do it in their own organization; platform admins always may.
	roles []authz.Role
}

// allows is the ceiling of roles, which no policy can raise.
func (o operation) allows(a *authz.Admin) error {
	if a == nil || !a.Role.Valid() {
		return forbidden(o.action)
	}
	if a.Role == authz.RolePlatformAdmin {
		return nil
	}
	for _, r := range o.roles {
		if a.Role == r {
			return nil
		}
	}
	return forbidden(o.action)
}

// decide asks policy, after ceiling and tenant have been seen to.
func (s *Service) decide(ctx context.Context, r Request, action string, o *Organization, current, wanted map[string]any) error {
	q := authz.AdminQuestion{Actor: r.Actor, Action: action, Current: current, Wanted: wanted}
	if o != nil {
		q.Organization = o.document()
	}
	verdict, err := s.policy.DecideAdmin(ctx, q)
	if err != nil {
		return authz.Unavailable("policy could not decide about this; see the log", fmt.Errorf("%w: %w", errPolicy, err))
	}
	if !verdict.Allow {
		return &authz.Error{
			Kind: authz.KindForbidden, Code: string(authz.CodePolicyDenied),
			Message: "policy does not allow this; see reasons", Reasons: verdict.Reasons,
		}
	}
	return nil
}

// outcome is what a change leaves beside its answer.
type outcome struct {
	// takes tells that rights were taken away, or that replicas are told to do something, so that
	// the answer waits for them.
	takes bool
	// gives tells that the answer has a token that every replica must have heard of before it
	// knows it: the answer waits for that, and tells nothing of it.
	gives bool
	// policy is the revision of a policy that came into force: the answer waits until all
	// replicas decide by it.
	policy string
	// events go into the audit log with it.
	events []AuditEvent
}

// answered is what became of a change.
type answered struct {
	effective *Effective
	// replayed tells that an earlier answer was given again.
	replayed bool
}

// remembered is an answer as it is kept for its Idempotency-Key.
type remembered struct {
	Takes bool `json:"takes"`
	// Policy is outcome.policy.
	Policy string          `json:"policy,omitempty"`
	Answer json.RawMessage `json:"answer"`
}

// errReplayed ends a transaction whose answer has been given before.
var errReplayed = errors.New("replayed")

// change runs do in one transaction with its audit rows and what an Idempotency-Key
// needs. answer is what do fills in; it is filled from memory when the same request
// has been answered before. It must survive JSON, without its secret.
func (s *Service) change(
	ctx context.Context, r Request, answer any, do func(context.Context, Writer) (outcome, error),
) (answered, error) {
	var out outcome
	var done answered
	var earlier *Remembered
	revision, err := s.store.Write(ctx, !r.DryRun, func(ctx context.Context, w Writer) error {
		live, err := w.StillLive(ctx, r.Actor)
		if err != nil {
			return fmt.Errorf("confirm the actor: %w", err)
		}
		if !live {
			return &authz.Error{Kind: authz.KindUnauthenticated, Code: "admin_unauthorized", Message: "this admin's token is not accepted any more"}
		}
		scope := r.scope()
		if scope != nil {
			if earlier, err = w.Remembered(ctx, *scope); err != nil {
				return fmt.Errorf("look for an earlier answer: %w", err)
			}
			if earlier != nil {
				return errReplayed
			}
		}
		if out, err = do(ctx, w); err != nil {
			return err
		}
		if err := s.record(ctx, w, r, out.events); err != nil {
			return err
		}
		if scope == nil {
			return nil
		}
		return remember(ctx, w, *scope, r, out, answer)
	})
	switch {
	case errors.Is(err, errReplayed):
		if out, err = replay(earlier, r, answer); err != nil {
			return answered{}, err
		}
		done.replayed, revision = true, earlier.Revision
	case err != nil:
		return answered{}, translate(err)
	}
	switch {
	case r.DryRun:
	case out.policy != "":
		effective := s.policyEffective(context.WithoutCancel(ctx), out.policy)
		done.effective = &effective
	case out.takes:
		effective := s.effective(context.WithoutCancel(ctx), revision)
		done.effective = &effective
	case out.gives:
		s.effective(context.WithoutCancel(ctx), revision)
	}
	return done, nil
}

// replay fills answer with what the same request was answered before, and tells
// what replicas are waited for.
func replay(earlier *Remembered, r Request, answer any) (outcome, error) {
	if earlier.Fingerprint != r.Fingerprint {
		return outcome{}, invalid("idempotency_mismatch", "", "this Idempotency-Key was used for another request; use a new one")
	}
	var kept remembered
	if err := json.Unmarshal(earlier.Answer, &kept); err != nil {
		return outcome{}, fmt.Errorf("read an earlier answer: %w", err)
	}
	if err := json.Unmarshal(kept.Answer, answer); err != nil {
		return outcome{}, fmt.Errorf("read an earlier answer: %w", err)
	}
	return outcome{takes: kept.Takes, policy: kept.Policy}, nil
}

// effective waits for the receipt. The change is committed: what cannot be found
// out is told as not acknowledged.
func (s *Service) effective(ctx context.Context, revision int64) Effective {
	e, err := s.store.Effective(ctx, revision)
	if err != nil {
		return Effective{Silent: []SilentReplica{{Replica: unknownReplica, ServesUntil: time.Now().Add(maxStale).UTC()}}}
	}
	return e
}

// policyEffective is effective for a policy that came into force.
func (s *Service) policyEffective(ctx context.Context, revision string) Effective {
	e, err := s.store.PolicyEffective(ctx, revision)
	if err != nil {
		return Effective{Silent: []SilentReplica{{Replica: unknownReplica}}}
	}
	return e
}

// unknownReplica is silent when it cannot be found out who is.
const unknownReplica = "unknown"

// maxStale is the longest that any replica is configured to serve what it knows.
const maxStale = 24 * time.Hour

func (r Request) scope() *IdempotencyScope {
	if r.IdempotencyKey == "" || r.DryRun {
		return nil
	}
	return &IdempotencyScope{Actor: r.Actor.ID, Operation: r.Operation, KeyHash: sha256.Sum256([]byte(r.IdempotencyKey))}
}

func remember(ctx context.Context, w Writer, scope IdempotencyScope, r Request, out outcome, answer any) error {
	text, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("keep the answer: %w", err)
	}
	if text, err = json.Marshal(remembered{out.takes, out.policy, text}); err != nil {
		return fmt.Errorf("keep the answer: %w", err)
	}
	if err := w.Remember(ctx, scope, Remembered{Fingerprint: r.Fingerprint, Answer: text, Revision: w.Revision()}); err != nil {
		return fmt.Errorf("keep the answer: %w", err)
	}
	return nil
}

// record seals the rows of a change onto their chains.
func (s *Service) record(ctx context.Context, w Writer, r Request, events []AuditEvent) error {
	heads := make(map[authz.OrganizationID]ChainHead)
	for i := range events {
		e := &events[i]
		head, ok := heads[e.Chain]
		if !ok {
			var err error
			if head, err = w.AuditHead(ctx, e.Chain); err != nil {
				return fmt.Errorf("find the end of the audit log: %w", err)
			}
		}
		e.ID, e.At, e.Revision = authz.NewEventID(w.Now()), w.Now().UTC().Truncate(time.Microsecond), w.Revision()
		if r.Actor != nil {
			e.ActorType, e.ActorID = "admin", r.Actor.ID.String()
		}
		e.Address, e.RequestID = r.Address, r.RequestID
		if err := e.seal(s.keys, head); err != nil {
			return err
		}
		heads[e.Chain] = ChainHead{Chain: e.Chain, Sequence: e.Sequence, Revision: e.Revision, MAC: e.MAC}
	}
	if len(events) == 0 {
		return nil
	}
	if err := w.AppendAudit(ctx, events); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}

// event is a row about one thing, with what it was and what it is.
func event(chain authz.OrganizationID, action, target string, before, after map[string]any) (AuditEvent, error) {
	e := AuditEvent{Chain: chain, Action: action, Target: target}
	var err error
	if before != nil {
		if e.Before, err = json.Marshal(before); err != nil {
			return AuditEvent{}, fmt.Errorf("write the audit log: %w", err)
		}
	}
	if after != nil {
		if e.After, err = json.Marshal(after); err != nil {
			return AuditEvent{}, fmt.Errorf("write the audit log: %w", err)
		}
	}
	return e, nil
}

// organization finds an organization for an actor: a foreign one is not there.
func organization(ctx context.Context, re Reader, r Request, id authz.OrganizationID) (*Organization, error) {
	o, err := re.Organization(ctx, TenantOf(r.Actor), id)
	if errors.Is(err, ErrNotFound) {
		return nil, notFound("organization")
	}
	return o, err //nolint:wrapcheck // change and read do
}

// livingFor is organization for changes: the actor's role must permit the operation,
// and nothing in a deleted one changes any more.
func livingFor(ctx context.Context, re Reader, r Request, op operation, id authz.OrganizationID) (*Organization, error) {
	o, err := organization(ctx, re, r, id)
	if err != nil {
		return nil, err
	}
	if err := op.allows(r.Actor); err != nil {
		return nil, err
	}
	if !o.DeletedAt.IsZero() {
		return nil, conflict("organization_deleted", "the organization is deleted; nothing in it can be changed")
	}
	return o, nil
}

// read runs fn on one snapshot.
func (s *Service) read(ctx context.Context, fn func(context.Context, Reader) error) error {
	return translate(s.store.Read(ctx, fn))
}
