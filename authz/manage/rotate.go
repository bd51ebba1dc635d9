package manage

import (
	"context"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

// KeyRotation is how a key gets a new secret.
type KeyRotation struct {
	// Grace is how long the old secret works on; 0 ends it at once.
	Grace time.Duration
	// ExpiresInDays is the new life; 0 is the key's original lifetime afresh.
	ExpiresInDays int
	// Compromised ends every other secret at once, whatever Grace is.
	Compromised bool
	// DropOldest ends the oldest secret when two work already.
	DropOldest bool
}

// MaxGrace bounds how long an old secret works beside a new one.
const MaxGrace = 90 * day

// maxLiveSecrets is how many of a key's secrets may work at once.
const maxLiveSecrets = 2

// RotateKey gives a key a new secret: same id, name, scopes and statistics.
func (s *Service) RotateKey(
	ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID, in KeyRotation,
) (*KeyChange, error) {
	out := &KeyChange{}
	op := operation{actionKeysRotate, writers()}
	return s.changeKey(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		k, o, err := s.keyForChange(ctx, w, r, op, org, id)
		if err != nil {
			return outcome{}, err
		}
		if in.Compromised {
			in.Grace = 0
		}
		if in.Grace < 0 || in.Grace > MaxGrace {
			return outcome{}, outOfRange("/grace_seconds", "must be from 0 to 7776000, which is 90 days")
		}
		before := k.document(w.Now())
		ended, err := s.rotate(w.Now(), k, in)
		if err != nil {
			return outcome{}, err
		}
		if err := s.decide(ctx, r, op.action, o, before, k.document(w.Now())); err != nil {
			return outcome{}, err
		}
		secret := s.format.Generate(k.Environment)
		k.Secrets[0].Hint = s.format.Hint(secret)
		for i := range ended {
			if err := w.EndSecret(ctx, TenantOf(r.Actor), k, &ended[i]); err != nil {
				return outcome{}, err //nolint:wrapcheck // change does
			}
		}
		if err := w.InsertSecret(ctx, TenantOf(r.Actor), k, &k.Secrets[0], secret); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		if err := w.UpdateKey(ctx, TenantOf(r.Actor), k); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Key, out.At, out.Secret = *k, w.Now(), secret
		after := k.document(w.Now())
		if in.Compromised {
			after["rotated_because"] = "compromised"
		}
		return logged(outcome{takes: len(ended) > 0}, k.OrganizationID, op.action, k.ID.String(), before, after)
	})
}

// rotate puts a new secret, still without its hint, first, and returns those whose
// end it brought nearer.
func (s *Service) rotate(now time.Time, k *Key, in KeyRotation) (ended []KeySecret, err error) {
	live := k.LiveSecrets(now)
	// An expired key has no secret that works: its old ones stay dead.
	expired := !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt)
	if len(live) >= maxLiveSecrets && !expired && !in.Compromised && !in.DropOldest {
		return nil, conflict("rotation_in_progress",
			`two secrets work already; wait until the old one's grace is over, revoke it, or send "drop":"oldest"`)
	}
	life := k.Lifetime
	if in.ExpiresInDays != 0 {
		if life, err = lifetime(in.ExpiresInDays, maxLifetimeDays); err != nil {
			return nil, err
		}
	}
	until := now.Add(in.Grace)
	for i := range k.Secrets {
		secret := &k.Secrets[i]
		if !secret.live(now) {
			continue
		}
		oldest := len(live) >= maxLiveSecrets && secret.ID == live[len(live)-1].ID
		if in.Grace == 0 || expired || oldest {
			secret.RevokedAt = now
		} else {
			// Never longer than it would have lived: the key's new life is the new secret's.
			secret.ExpiresAt = authz.Earlier(authz.Earlier(secret.ExpiresAt, k.ExpiresAt), until)
		}
		ended = append(ended, *secret)
	}
	k.Secrets = slices.DeleteFunc(k.Secrets, func(s KeySecret) bool { return !s.RevokedAt.IsZero() })
	k.ExpiresAt = time.Time{}
	if life > 0 {
		k.ExpiresAt = now.Add(life)
	}
	k.Secrets = slices.Insert(k.Secrets, 0, KeySecret{ID: authz.NewSecretID(now), CreatedAt: now})
	return ended, nil
}

// RevokeKey revokes a key with all its secrets, for ever. Again it changes nothing.
func (s *Service) RevokeKey(ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID) (*KeyChange, error) {
	out := &KeyChange{}
	op := operation{actionKeysRevoke, writers()}
	return s.changeKey(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		k, o, err := s.key(ctx, w, r, org, id)
		if err != nil {
			return outcome{}, err
		}
		before := k.document(w.Now())
		if err := s.may(ctx, r, op, o, before); err != nil {
			return outcome{}, err
		}
		if !k.RevokedAt.IsZero() {
			// A repeated revocation wants to know how far the first has got.
			out.Key, out.At = *k, w.Now()
			return outcome{takes: true}, nil
		}
		k.RevokedAt = w.Now()
		if err := w.UpdateKey(ctx, TenantOf(r.Actor), k); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Key, out.At = *k, w.Now()
		return logged(outcome{takes: true}, k.OrganizationID, op.action, k.ID.String(), before, k.document(w.Now()))
	})
}

// RevokeKeySecret revokes one of a key's secrets, for ever.
func (s *Service) RevokeKeySecret(
	ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID, secretID authz.SecretID,
) (*KeyChange, error) {
	out := &KeyChange{}
	op := operation{actionKeysRevoke, writers()}
	return s.changeKey(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		k, o, err := s.key(ctx, w, r, org, id)
		if err != nil {
			return outcome{}, err
		}
		before := k.document(w.Now())
		if err := s.may(ctx, r, op, o, before); err != nil {
			return outcome{}, err
		}
		i := slices.IndexFunc(k.Secrets, func(s KeySecret) bool { return s.ID == secretID })
		if i < 0 {
			return outcome{}, notFound("secret that is not revoked already")
		}
		secret := k.Secrets[i]
		secret.RevokedAt = w.Now()
		k.Secrets = slices.Delete(k.Secrets, i, i+1)
		if err := w.EndSecret(ctx, TenantOf(r.Actor), k, &secret); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Key, out.At = *k, w.Now()
		after := k.document(w.Now())
		after["revoked_secret"] = secret.ID.String()
		return logged(outcome{takes: true}, k.OrganizationID, recordRevokeSecret, k.ID.String(), before, after)
	})
}
