package manage_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/store"
	"github.com/supportstation/keystile/store/storetest"
)

// The model of a key: what the outside is promised, and nothing of how it is kept.
type modelKey struct {
	id       authz.KeyID
	revoked  bool
	disabled bool
	// ends is zero for never; life is what a rotation gives afresh.
	ends    time.Time
	life    time.Duration
	secrets []*modelSecret // newest first
}

type modelSecret struct {
	id      authz.SecretID
	hash    authz.SecretHash
	ends    time.Time
	revoked bool
}

func (m *modelKey) expired(at time.Time) bool { return !m.ends.IsZero() && !at.Before(m.ends) }

func (s *modelSecret) live(at time.Time) bool {
	return !s.revoked && (s.ends.IsZero() || at.Before(s.ends))
}

// want is what a check of a secret must say at a moment.
func (m *modelKey) want(s *modelSecret, suspended bool, at time.Time) authz.Code {
	switch {
	case m.revoked || s.revoked:
		return authz.CodeKeyRevoked
	case m.expired(at) || !s.live(at):
		return authz.CodeKeyExpired
	case m.disabled:
		return authz.CodeKeyDisabled
	case suspended:
		return authz.CodeOrganizationSuspended
	}
	return authz.CodeAllowed
}

// rotate does in the model what the contract says, and tells whether it is refused.
func (m *modelKey) rotate(now time.Time, grace time.Duration, compromised, drop bool) (refused bool) {
	var live []*modelSecret
	for _, s := range m.secrets {
		if s.live(now) {
			live = append(live, s)
		}
	}
	if m.revoked || len(live) > 1 && !m.expired(now) && !compromised && !drop {
		return true
	}
	for i, s := range live {
		switch {
		case grace == 0 || compromised || m.expired(now) || i > 0 && len(live) > 1:
			s.revoked = true
		default:
			for _, end := range []time.Time{m.ends, now.Add(grace)} {
				if s.ends.IsZero() || !end.IsZero() && end.Before(s.ends) {
					s.ends = end
				}
			}
		}
	}
	m.ends = time.Time{}
	if m.life > 0 {
		m.ends = now.Add(m.life)
	}
	return false
}

type allowAll struct{}

func (allowAll) Evaluate(context.Context, *authz.Key, *authz.Check) (authz.Verdict, error) {
	return authz.Verdict{Allow: true, Limits: []authz.Limit{{Name: authz.Unlimited}}, Revision: "test"}, nil
}

func (allowAll) Revision() string { return "test" }

type noLimiter struct{}

func (noLimiter) Charge(context.Context, *authz.Key, authz.Limit, int) (authz.Charge, error) {
	return authz.Charge{}, nil
}

// step is one operation on one key; steps of different keys run at once.
type step struct {
	key   int
	what  string
	which int
}

// Whatever is done to keys, in whatever order and at once, every replica answers as
// a small model says: now, within a grace, after it, and long after.
func TestKeys_EveryReplicaAnswersAsTheModel(t *testing.T) {
	r := newRig(t)
	replicas := []*store.Store{storetest.Open(t, r.at, r.peppers), storetest.Open(t, r.at, r.peppers)}
	rapid.Check(t, func(rt *rapid.T) { runModel(t, rt, r, replicas) })
}

func runModel(t *testing.T, rt *rapid.T, r *rig, replicas []*store.Store) {
	t.Helper()
	org := r.organization(t, "model")
	suspended := false
	var keys []*modelKey
	for i := range rapid.IntRange(1, 4).Draw(rt, "keys") {
		days := rapid.SampledFrom([]int{0, 1}).Draw(rt, fmt.Sprintf("days of key %d", i))
		in := keyInput()
		in.ExpiresInDays = days
		made, err := r.CreateKey(t.Context(), r.as(r.platform), org, in)
		if err != nil {
			rt.Fatal(err)
		}
		m := &modelKey{id: made.Key.ID, life: time.Duration(days) * 24 * time.Hour}
		if days > 0 {
			m.ends = time.Now().Add(m.life)
		}
		m.secrets = []*modelSecret{{id: made.Key.Secrets[0].ID, hash: made.Secret.Hash()}}
		keys = append(keys, m)
	}
	for range rapid.IntRange(1, 6).Draw(rt, "batches") {
		if rapid.Float64Range(0, 1).Draw(rt, "whole organization") < 0.2 {
			suspended = !suspended
			on := suspended
			if _, err := r.UpdateOrganization(t.Context(), r.as(r.platform), org, manage.OrganizationUpdate{Suspended: &on}); err != nil {
				rt.Fatal(err)
			}
		}
		var batch []step
		for i := range keys {
			if what := rapid.SampledFrom(steps()).Draw(rt, fmt.Sprintf("key %d", i)); what != "" {
				batch = append(batch, step{i, what, rapid.IntRange(0, 3).Draw(rt, "which")})
			}
		}
		complaints := make([]string, len(batch))
		var all sync.WaitGroup
		for i, s := range batch {
			all.Go(func() { complaints[i] = r.do(t.Context(), org, keys[s.key], s) })
		}
		all.Wait()
		if told := strings.TrimSpace(strings.Join(complaints, "\n")); told != "" {
			rt.Fatal(told)
		}
		for _, replica := range replicas {
			if err := replica.Synchronize(t.Context()); err != nil {
				rt.Fatal(err)
			}
			judge(t, rt, replica, keys, suspended)
		}
	}
}

func steps() []string {
	return []string{
		"", "rotate", "rotate at once", "rotate, compromised", "rotate, drop", "revoke secret", "revoke", "disable", "enable",
		"expire soon", "never expire", "rename",
	}
}

// do runs one step on service and model, and complains when they differ.
func (r *rig) do(ctx context.Context, org authz.OrganizationID, m *modelKey, s step) string {
	const grace = time.Hour
	yes, no, soon, never, name := true, false, time.Now().Add(2*time.Hour), time.Time{}, "renamed"
	update := func(in manage.KeyUpdate, then func()) (wanted string, err error) {
		_, err = r.UpdateKey(ctx, r.as(r.platform), org, m.id, in)
		if m.revoked {
			return "key_revoked", err
		}
		then()
		return "", err
	}
	rotate := func(in manage.KeyRotation) (wanted string, err error) {
		was := m.revoked
		refused := m.rotate(time.Now(), in.Grace, in.Compromised, in.DropOldest)
		change, err := r.RotateKey(ctx, r.as(r.platform), org, m.id, in)
		switch {
		case was:
			return "key_revoked", err
		case refused:
			return "rotation_in_progress", err
		case err == nil:
			if live := change.Key.LiveSecrets(change.At); len(live) > 2 || change.Key.ID != m.id {
				return "at most two secrets of the same key", nil
			}
			m.secrets = append([]*modelSecret{{id: change.Key.Secrets[0].ID, hash: change.Secret.Hash()}}, m.secrets...)
		}
		return "", err
	}
	var wanted string
	var err error
	switch s.what {
	case "rotate":
		wanted, err = rotate(manage.KeyRotation{Grace: grace})
	case "rotate at once":
		wanted, err = rotate(manage.KeyRotation{})
	case "rotate, compromised":
		wanted, err = rotate(manage.KeyRotation{Grace: grace, Compromised: true})
	case "rotate, drop":
		wanted, err = rotate(manage.KeyRotation{Grace: grace, DropOldest: true})
	case "revoke secret":
		secret := m.secrets[s.which%len(m.secrets)]
		if secret.revoked {
			wanted = "not_found"
		}
		_, err = r.RevokeKeySecret(ctx, r.as(r.platform), org, m.id, secret.id)
		secret.revoked = true
	case "revoke":
		m.revoked = true
		_, err = r.RevokeKey(ctx, r.as(r.platform), org, m.id)
	case "disable":
		wanted, err = update(manage.KeyUpdate{Disabled: &yes}, func() { m.disabled = true })
	case "enable":
		wanted, err = update(manage.KeyUpdate{Disabled: &no}, func() { m.disabled = false })
	case "expire soon":
		wanted, err = update(manage.KeyUpdate{ExpiresAt: &soon}, func() {
			m.ends = soon
			if m.life == 0 {
				m.life = 2 * time.Hour
			}
		})
	case "never expire":
		wanted, err = update(manage.KeyUpdate{ExpiresAt: &never}, func() { m.ends, m.life = time.Time{}, 0 })
	case "rename":
		wanted, err = update(manage.KeyUpdate{Name: &name}, func() {})
	}
	if code(err) != wanted {
		return fmt.Sprintf("%s of %s: %q, want %q", s.what, m.id, code(err), wanted)
	}
	return ""
}

// judge asks one replica about every secret, at moments between and behind all ends.
func judge(t *testing.T, rt *rapid.T, replica *store.Store, keys []*modelKey, suspended bool) {
	t.Helper()
	for _, ahead := range []time.Duration{0, 30 * time.Minute, 90 * time.Minute, 150 * time.Minute, 30 * time.Hour} {
		checker, err := authz.NewChecker(authz.CheckerOptions{
			Keys: replica, Policy: allowAll{}, Limiter: noLimiter{}, Clock: shifted{replica.Clock(), ahead},
			Budget: time.Minute, // a busy machine changes no answer
		})
		if err != nil {
			rt.Fatal(err)
		}
		for _, m := range keys {
			for i, s := range m.secrets {
				d, err := checker.Check(t.Context(), &authz.Check{Presented: authz.PresentHash(s.hash), Method: "GET", Path: "/", Cost: 1})
				if err != nil {
					rt.Fatal(err)
				}
				if want := m.want(s, suspended, time.Now().Add(ahead)); d.Code != want {
					rt.Fatalf("secret %d of %s in %v: %s, want %s (%v)", i, m.id, ahead, d.Code, want, d.Cause)
				}
			}
		}
	}
}
