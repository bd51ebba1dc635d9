package manage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz"
)

// The actions on shadows.
const (
	actionShadowGet   = "policy.shadow.get"
	actionShadowStart = "policy.shadow.start"
	actionShadowStop  = "policy.shadow.stop"
	actionShadowEnd   = "policy.shadow.end"
)

// How long a shadow runs, and how much it asks, unless told otherwise, and at most.
const (
	DefaultShadowFor       = 15 * time.Minute
	minShadowFor           = time.Second
	maxShadowFor           = 24 * time.Hour
	DefaultShadowPerSecond = 100
	maxShadowPerSecond     = 10_000
	// maxShadowDifferences bounds those that are told.
	maxShadowDifferences = 1_000
)

// PolicyShadowInput is another policy, Files or the Revision of one that was activated before,
// and how much of the traffic it is asked about.
type PolicyShadowInput struct {
	Files    map[string]string
	Revision string
	// For is how long; 0 is DefaultShadowFor.
	For time.Duration
	// Share is of how many checks it is asked at most; 0 is all. PerSecond bounds how many that
	// are on each replica; 0 is DefaultShadowPerSecond.
	Share     float64
	PerSecond int
	Note      string
}

// withDefaults says what is wrong with how much is to be asked.
func (in PolicyShadowInput) withDefaults() (PolicyShadowInput, error) {
	if in.For == 0 {
		in.For = DefaultShadowFor
	}
	if in.Share == 0 {
		in.Share = 1
	}
	if in.PerSecond == 0 {
		in.PerSecond = DefaultShadowPerSecond
	}
	switch {
	case (in.Revision == "") == (in.Files == nil):
		return in, invalid("missing_field", "/files", "send either files, or the revision of a policy that was activated before")
	case in.For < minShadowFor || in.For > maxShadowFor:
		return in, outOfRange("/duration_seconds", fmt.Sprintf("must be between 1 and %d", int(maxShadowFor.Seconds())))
	case !(in.Share > 0 && in.Share <= 1): // not a number neither
		return in, outOfRange("/share", "must be above 0, and 1 at most")
	case in.PerSecond < 1 || in.PerSecond > maxShadowPerSecond:
		return in, outOfRange("/per_second", fmt.Sprintf("must be between 1 and %d", maxShadowPerSecond))
	case len(in.Note) > maxPolicyNote:
		return in, invalid("string_too_long", "/note", fmt.Sprintf("must be at most %d bytes", maxPolicyNote))
	}
	return in, nil
}

// StartPolicyShadow has every replica ask another policy beside the one in force, in place of the
// one that is asked now. It must load in the sandbox, in bounded time and memory; its tests may
// fail, because it decides nothing, and what it decides otherwise is what one wants to know before
// they are written. Platform admins alone.
func (s *Service) StartPolicyShadow(ctx context.Context, r Request, in PolicyShadowInput) (*authz.PolicyShadowReport, *Effective, error) {
	if err := s.may(ctx, r, operation{action: actionShadowStart}, nil, nil); err != nil {
		return nil, nil, err
	}
	if s.policies == nil {
		return nil, nil, errNoPolicies()
	}
	in, err := in.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	if err := s.notKey("/note", in.Note); err != nil {
		return nil, nil, err
	}
	var archive []byte // nil with a revision is the built-in one
	if in.Revision != "" && in.Revision != s.policies.BuiltIn() {
		if archive, err = s.keptPolicy(ctx, r, in.Revision); err != nil {
			return nil, nil, err
		}
	}
	candidate, archive, err := s.policies.Shadowable(ctx, in.Files, archive)
	var unfit *authz.PolicyRefusedError
	switch {
	case errors.As(err, &unfit):
		return nil, nil, unloadable(unfit.Report)
	case err != nil:
		return nil, nil, untried(err)
	case candidate == s.policies.State().Revision:
		return nil, nil, conflict("policy_in_force", "this policy is in force already, so there is nothing to compare it with")
	}
	out := &authz.PolicyShadowReport{}
	done, err := s.change(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		before, err := runningShadow(ctx, w, TenantOf(r.Actor))
		if err != nil {
			return outcome{}, err
		}
		shadow := authz.PolicyShadow{
			Candidate: candidate, StartedAt: w.Now(), EndsAt: w.Now().Add(in.For), StartedBy: r.Actor.ID.String(), Note: in.Note,
			Share: in.Share, PerSecond: in.PerSecond,
		}
		if err := w.StartPolicyShadow(ctx, TenantOf(r.Actor), &shadow, archive); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		*out = authz.PolicyShadowReport{Shadow: shadow}
		return logged(outcome{takes: true}, authz.OrganizationID{}, actionShadowStart, candidate, shadowDocument(before), shadowDocument(&shadow))
	})
	if err != nil {
		return nil, nil, err
	}
	return out, done.effective, nil
}

// runningShadow is the one that is asked now, nil for none.
func runningShadow(ctx context.Context, re Reader, t Tenant) (*authz.PolicyShadow, error) {
	shadow, err := re.PolicyShadow(ctx, t)
	if errors.Is(err, ErrNotFound) || err == nil && shadow.End(re.Now()) != "" {
		return nil, nil //nolint:nilnil // none is an answer
	}
	return shadow, err //nolint:wrapcheck // change does
}

// shadowDocument is what the audit log has of a shadow; nil of none.
func shadowDocument(s *authz.PolicyShadow) map[string]any {
	if s == nil {
		return nil
	}
	document := map[string]any{
		"candidate": s.Candidate, "ends_at": s.EndsAt.UTC().Format(time.RFC3339), "share": s.Share, "per_second": s.PerSecond, "note": s.Note,
	}
	if !s.EndedAt.IsZero() {
		document["reason"], document["why"] = string(s.Reason), s.Why
	}
	return document
}

// StopPolicyShadow ends the shadow that runs. Platform admins alone.
func (s *Service) StopPolicyShadow(ctx context.Context, r Request) (*authz.PolicyShadowReport, error) {
	if err := s.may(ctx, r, operation{action: actionShadowStop}, nil, nil); err != nil {
		return nil, err
	}
	out := &authz.PolicyShadowReport{}
	_, err := s.change(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		shadow, err := runningShadow(ctx, w, TenantOf(r.Actor))
		if err != nil {
			return outcome{}, err
		}
		if shadow == nil {
			return outcome{}, notFound("shadow that runs")
		}
		before := shadowDocument(shadow)
		shadow.EndedAt, shadow.EndedBy, shadow.Reason = w.Now(), r.Actor.ID.String(), authz.ShadowStopped
		if err := w.EndPolicyShadow(ctx, TenantOf(r.Actor), *shadow); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		if *out, err = shadowReport(ctx, w, TenantOf(r.Actor), *shadow); err != nil {
			return outcome{}, err
		}
		return logged(outcome{}, authz.OrganizationID{}, actionShadowStop, shadow.Candidate, before, shadowDocument(shadow))
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// endShadowInForce ends the shadow of a policy that comes into force with this transaction.
func endShadowInForce(ctx context.Context, w Writer, t Tenant, revision, by string) ([]AuditEvent, error) {
	shadow, err := runningShadow(ctx, w, t)
	if err != nil || shadow == nil || shadow.Candidate != revision {
		return nil, err
	}
	return endShadow(ctx, w, t, shadow, authz.PolicyShadow{EndedBy: by, Reason: authz.ShadowInForce})
}

func endShadow(ctx context.Context, w Writer, t Tenant, shadow *authz.PolicyShadow, end authz.PolicyShadow) ([]AuditEvent, error) {
	before := shadowDocument(shadow)
	shadow.EndedAt, shadow.EndedBy, shadow.Reason, shadow.Why = w.Now(), end.EndedBy, end.Reason, end.Why
	if err := w.EndPolicyShadow(ctx, t, *shadow); err != nil {
		return nil, err //nolint:wrapcheck // change does
	}
	e, err := event(authz.OrganizationID{}, actionShadowEnd, shadow.Candidate, before, shadowDocument(shadow))
	return []AuditEvent{e}, err
}

// ShadowEnd is why a replica asks a shadow's candidate no more.
type ShadowEnd struct {
	// Change is the number of the shadow, and no other one is meant.
	Change int64
	// Reason is authz.ShadowFailed or authz.ShadowInForce, Why says more.
	Reason  authz.PolicyShadowEnd
	Why     string
	Replica string
}

// maxShadowWhy bounds what is said of a candidate that failed, in bytes.
const maxShadowWhy = 1000

// shadowWhy is as much of it as is kept, a text that Postgres takes: a cut may be within a
// character, and a candidate may say anything.
func shadowWhy(text string) string {
	text = text[:min(len(text), maxShadowWhy)]
	return strings.ReplaceAll(strings.ToValidUTF8(text, ""), "\x00", "")
}

// EndPolicyShadow ends a shadow for all replicas, because one of them cannot ask its candidate, or
// decides by it. Replicas ask for it without being asked; of those that ask at once one is heard.
func (s *Service) EndPolicyShadow(ctx context.Context, in ShadowEnd) error {
	everyone := Tenant{everyone: true}
	in.Why = shadowWhy(in.Why)
	_, err := s.store.Write(ctx, true, func(ctx context.Context, w Writer) error {
		shadow, err := runningShadow(ctx, w, everyone)
		if err != nil {
			return err
		}
		if shadow == nil || shadow.Change != in.Change {
			return errShadowOver
		}
		events, err := endShadow(ctx, w, everyone, shadow, authz.PolicyShadow{EndedBy: authz.ByReplica(in.Replica), Reason: in.Reason, Why: in.Why})
		if err != nil {
			return err
		}
		events[0].ActorType, events[0].ActorID = "replica", in.Replica
		return s.record(ctx, w, Request{}, events)
	})
	if errors.Is(err, errShadowOver) {
		return nil
	}
	return translate(err)
}

// errShadowOver ends a transaction in which there is nothing to end.
var errShadowOver = errors.New("the shadow is over")

// PolicyShadow tells what came of the newest shadow, on all replicas. Platform admins alone.
func (s *Service) PolicyShadow(ctx context.Context, r Request) (*authz.PolicyShadowReport, error) {
	var out authz.PolicyShadowReport
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		if err := s.may(ctx, r, operation{action: actionShadowGet}, nil, nil); err != nil {
			return err
		}
		shadow, err := re.PolicyShadow(ctx, TenantOf(r.Actor))
		if errors.Is(err, ErrNotFound) {
			return notFound("shadow: none was started")
		}
		if err != nil {
			return err //nolint:wrapcheck // read does
		}
		out, err = shadowReport(ctx, re, TenantOf(r.Actor), *shadow)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// shadowReport is a shadow with what came of it, and why it has ended by now.
func shadowReport(ctx context.Context, re Reader, t Tenant, shadow authz.PolicyShadow) (authz.PolicyShadowReport, error) {
	out := authz.PolicyShadowReport{Shadow: shadow}
	if out.Shadow.Reason = shadow.End(re.Now()); out.Shadow.Reason == authz.ShadowOver {
		out.Shadow.EndedAt = shadow.EndsAt
	}
	err := re.PolicyShadowReport(ctx, t, &out, maxShadowDifferences)
	return out, err //nolint:wrapcheck // who calls does
}
