package main

import (
	"slices"
	"strconv"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/ratelimit"
	"github.com/supportstation/keystile/server"
	"github.com/supportstation/keystile/store"
)

// readiness tells how the parts are.
func (s *service) readiness() server.Readiness {
	st, limiter, revision := s.store.Health(), s.limiter.Health(), s.policy.engine.Revision()
	state, failing := s.policy.keeper.State(), s.policy.keeper.Failing()
	r := server.Readiness{
		Ready: st.Known && revision != "",
		Details: map[string]any{
			"store": map[string]any{
				"known": st.Known, "revision": st.Revision, "cached_keys": st.CachedKeys, "cached_key_bytes": st.CachedKeyBytes,
				"lookup_statements": st.Lookups, "live_replicas": st.LiveReplicas, "put_back": st.PutBack,
				"contact_age_seconds": st.ContactAge.Round(time.Millisecond).Seconds(),
			},
			"limiter": limiter,
			"policy":  policyDetails(revision, state, failing),
			"decisions": map[string]any{
				"kept": st.KeptDecisions, "kept_dropped": st.DroppedDecisions, "log": decisionLogDetails(s.decisions),
			},
		},
		Figures: slices.Concat(figures(st, limiter), policyFigures(state), s.failingFigures(failing), decisionFigures(s.decisions), s.shadowFigures()),
	}
	if limiter.Degraded {
		r.Degraded = append(r.Degraded, "limiter")
	}
	if st.Degraded {
		r.Degraded = append(r.Degraded, "store")
	}
	return r
}

// policyDetails tell which policy is in force, and which is not and why.
func policyDetails(revision string, state authz.PolicyState, f authz.PolicyFailing) map[string]any {
	details := map[string]any{"revision": revision, "origin": state.Origin, "refused": nil, "runtime_errors": nil}
	if f.Errors > 0 {
		details["runtime_errors"] = map[string]any{
			"errors": f.Errors, "organizations": f.Organizations, "window_seconds": f.Window.Seconds(), "kind": f.Kind, "where": f.Where, "stays": f.Stays,
		}
	}
	if !state.Since.IsZero() {
		details["age_seconds"] = time.Since(state.Since).Round(time.Millisecond).Seconds()
	}
	if r := state.Refused; r != nil {
		details["refused"] = map[string]any{
			"revision": r.Revision, "origin": r.Origin, "age_seconds": time.Since(r.At).Round(time.Millisecond).Seconds(), "problems": r.Problems,
		}
	}
	if b := state.Bundle; b != nil {
		details["bundle"] = bundleDetails(*b)
	}
	return details
}

// failingFigures tell how policies fail at run time.
func (s *service) failingFigures(f authz.PolicyFailing) []server.Figure {
	all := []server.Figure{
		{Name: "policy_failing_organizations", Help: "Organizations with checks that the policy in force did not decide in the last 30 seconds.", Value: float64(f.Organizations)},
	}
	for kind, n := range f.Total {
		all = append(all, server.Figure{
			Name: "policy_runtime_errors_total", Help: "Checks that a policy did not decide, by why.", Value: float64(n),
			Labels: map[string]string{"kind": string(kind)},
		})
	}
	if s.watch != nil {
		all = append(all, server.Figure{
			Name: "policy_stepped_back_total", Help: "Times that this replica took a policy back by itself.", Value: float64(s.watch.steppedBack.Load()),
		})
	}
	return all
}

// bundleDetails tell how it stands with the server that publishes policies.
func bundleDetails(b authz.PolicyBundle) map[string]any {
	details := map[string]any{
		"url": b.URL, "version": b.Version, "contact_age_seconds": nil, "error": b.Error, "failing_seconds": nil, "storage_error": b.StorageError,
	}
	if !b.ContactAt.IsZero() {
		details["contact_age_seconds"] = time.Since(b.ContactAt).Round(time.Millisecond).Seconds()
	}
	if !b.FailingSince.IsZero() {
		details["failing_seconds"] = time.Since(b.FailingSince).Round(time.Millisecond).Seconds()
	}
	return details
}

func bundleFigures(b authz.PolicyBundle) []server.Figure {
	failing, unkept, age := 0.0, 0.0, -1.0
	if b.Error != "" {
		failing = 1
	}
	if b.StorageError != "" {
		unkept = 1
	}
	if !b.ContactAt.IsZero() {
		age = time.Since(b.ContactAt).Seconds()
	}
	return []server.Figure{
		{Name: "policy_bundle_version", Help: "Version of the policy bundle in force, 0 before the first.", Value: float64(b.Version)},
		{Name: "policy_bundle_failing", Help: "1 while no policy bundle can be fetched, and what is in force stays.", Value: failing},
		{Name: "policy_bundle_contact_age_seconds", Help: "Time since the bundle server last answered; -1 before the first time.", Value: age},
		{Name: "policy_bundle_storage_failing", Help: "1 while a start without the bundle server would not have what is in force.", Value: unkept},
	}
}

func policyFigures(state authz.PolicyState) []server.Figure {
	refused, refusedAge, age := 0.0, 0.0, 0.0
	if state.Refused != nil {
		refused, refusedAge = 1, time.Since(state.Refused.At).Seconds()
	}
	if !state.Since.IsZero() {
		age = time.Since(state.Since).Seconds()
	}
	all := []server.Figure{
		{Name: "policy_refused", Help: "1 while the last policy that was to be in force is refused, and the one before it stays.", Value: refused},
		{Name: "policy_refused_age_seconds", Help: "Time since it was refused; 0 while none is.", Value: refusedAge},
		{Name: "policy_age_seconds", Help: "Time since the policy in force came into force.", Value: age},
		{
			Name: "policy_info", Help: "The policy in force.", Value: 1,
			Labels: map[string]string{"revision": state.Revision, "origin": string(state.Origin)},
		},
	}
	if state.Bundle != nil {
		all = append(all, bundleFigures(*state.Bundle)...)
	}
	if r := state.Refused; r != nil {
		labels := map[string]string{"revision": r.Revision, "origin": string(r.Origin), "stage": "", "file": "", "line": ""}
		if len(r.Problems) > 0 {
			p := r.Problems[0]
			labels["stage"], labels["file"], labels["line"] = string(p.Stage), p.File, strconv.Itoa(p.Line)
		}
		all = append(all, server.Figure{
			Name: "policy_refused_info", Help: "The policy that is refused, and where its first problem is.", Value: 1, Labels: labels,
		})
	}
	return all
}

// figures are the parts' own, for /metrics.
func figures(st store.Health, limiter ratelimit.Health) []server.Figure {
	return []server.Figure{
		{Name: "store_revision", Help: "The revision up to which every change is applied.", Value: float64(st.Revision)},
		{Name: "store_contact_age_seconds", Help: "Time since Postgres last confirmed what is in memory.", Value: st.ContactAge.Seconds()},
		{Name: "store_put_back_total", Help: "Times that the database was put back to an earlier state.", Value: float64(st.PutBack)},
		{Name: "store_forgotten_changes_total", Help: "Changes that found no room to be remembered any more: the database put back to an earlier state would undo them here.", Value: float64(st.Forgotten)},
		{Name: "store_lookup_statements_total", Help: "Statements that looked keys up.", Value: float64(st.Lookups)},
		{Name: "usage_counted_total", Help: "Decisions that were counted.", Value: float64(st.CountedUsage)},
		{Name: "usage_stored_total", Help: "Counted decisions that are in Postgres.", Value: float64(st.StoredUsage)},
		{Name: "usage_dropped_total", Help: "Counted decisions that found no place while they could not be written.", Value: float64(st.DroppedUsage)},
		{Name: "decisions_kept_total", Help: "Decisions that were kept in Postgres.", Value: float64(st.KeptDecisions)},
		{Name: "decisions_kept_dropped_total", Help: "Decisions that were to be kept and are not: more than there is room for, or they could not be written.", Value: float64(st.DroppedDecisions)},
		{Name: "key_cache_records", Help: "Key records in memory.", Value: float64(st.CachedKeys)},
		{Name: "key_cache_bytes", Help: "About what the key records in memory take.", Value: float64(st.CachedKeyBytes)},
		{Name: "replicas_live", Help: "Replicas with a fresh heartbeat, as Postgres last said.", Value: float64(st.LiveReplicas)},
		{Name: "limiter_exact_total", Help: "Charges that Redis counted.", Value: float64(limiter.Exact)},
		{Name: "limiter_stood_in_total", Help: "Charges that were counted without Redis.", Value: float64(limiter.StoodIn)},
		{Name: "limiter_denied_locally_total", Help: "Charges denied because Redis had just said so.", Value: float64(limiter.DeniedLocally)},
		{Name: "limiter_failed_total", Help: "Charges for which Redis was asked in vain.", Value: float64(limiter.Failed)},
		{Name: "limiter_settled_units_total", Help: "Units charged in Redis afterwards for what was admitted without it.", Value: float64(limiter.SettledUnits)},
	}
}
