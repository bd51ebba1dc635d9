package manage

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

// The actions on keys, as policy and the audit log name them.
const (
	actionKeysList   = "keys.list"
	actionKeysGet    = "keys.get"
	actionKeysCreate = "keys.create"
	actionKeysUpdate = "keys.update"
	actionKeysRotate = "keys.rotate"
	actionKeysRevoke = "keys.revoke"
	actionKeysImport = "keys.import"

	// recordRevokeSecret is how the audit log tells the revocation of one secret from
	// that of a key; policy is asked about keys.revoke for both.
	recordRevokeSecret = "keys.revoke_secret"
)

// readers and writers are the organization roles that read and that change keys.
func readers() []authz.Role {
	return []authz.Role{authz.RoleOwner, authz.RoleDeveloper, authz.RoleAuditor}
}

func writers() []authz.Role { return []authz.Role{authz.RoleOwner, authz.RoleDeveloper} }

// KeyChange is the answer of a change of a key.
type KeyChange struct {
	Key Key
	// At is when; a key's status is as of then.
	At time.Time
	// Secret is the new one after a create or a rotation, empty otherwise.
	Secret authz.Secret `json:"-"`
	// SecretAlreadyShown tells that an earlier answer had it.
	SecretAlreadyShown bool
	// Effective is set when rights were taken away.
	Effective *Effective `json:"-"`
}

// KeyInput is what a new key is made of.
type KeyInput struct {
	Name        string
	Environment authz.Environment
	Scopes      []authz.Scope
	// ExpiresAt or ExpiresInDays, or neither.
	ExpiresAt     time.Time
	ExpiresInDays int
	AllowedCIDRs  []string
	RateLimit     *authz.Rate
	// Metadata is a JSON object, or nil.
	Metadata   []byte
	ExternalID string
}

// ListKeys lists an organization's keys, newest first.
func (s *Service) ListKeys(ctx context.Context, r Request, org authz.OrganizationID, f KeyFilter, p Page) (List[Key], error) {
	var out List[Key]
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		o, err := organization(ctx, re, r, org)
		if err != nil {
			return err
		}
		if err := s.may(ctx, r, operation{actionKeysList, readers()}, o, nil); err != nil {
			return err
		}
		keys, err := re.Keys(ctx, TenantOf(r.Actor), org, f, p.more())
		out = paged(keys, p, re.Now(), func(k *Key) string { return k.ID.String() })
		return err //nolint:wrapcheck // read does
	})
	return out, err
}

// GetKey returns a key of an organization, or of any within when org is zero.
func (s *Service) GetKey(ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID) (*Key, time.Time, error) {
	var key *Key
	var now time.Time
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		k, o, err := s.key(ctx, re, r, org, id)
		if err != nil {
			return err
		}
		key, now = k, re.Now()
		return s.may(ctx, r, operation{actionKeysGet, readers()}, o, k.document(now))
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	return key, now, nil
}

// CreateKey makes a key and its secret, which is in this answer alone.
func (s *Service) CreateKey(ctx context.Context, r Request, org authz.OrganizationID, in KeyInput) (*KeyChange, error) {
	out := &KeyChange{}
	return s.changeKey(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		op := operation{actionKeysCreate, writers()}
		o, err := livingFor(ctx, w, r, op, org)
		if err != nil {
			return outcome{}, err
		}
		k, err := s.newKey(w.Now(), r, o, in)
		if err != nil {
			return outcome{}, err
		}
		if err := s.quota(ctx, w, r, o); err != nil {
			return outcome{}, err
		}
		if err := s.decide(ctx, r, op.action, o, nil, k.document(w.Now())); err != nil {
			return outcome{}, err
		}
		secret := s.format.Generate(k.Environment)
		k.Secrets[0].Hint = s.format.Hint(secret)
		if err := w.InsertKey(ctx, TenantOf(r.Actor), k, secret); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Key, out.At, out.Secret = *k, w.Now(), secret
		return logged(outcome{}, org, op.action, k.ID.String(), nil, k.document(w.Now()))
	})
}

// newKey checks what was asked for.
func (s *Service) newKey(now time.Time, r Request, o *Organization, in KeyInput) (*Key, error) {
	k := &Key{
		ID: authz.NewKeyID(now), OrganizationID: o.ID, ExternalID: in.ExternalID, Name: in.Name, Environment: in.Environment,
		CreatedAt: now, CreatedBy: r.Actor.ID.String(), RateLimit: in.RateLimit, Version: 1,
		Secrets: []KeySecret{{ID: authz.NewSecretID(now), CreatedAt: now}},
	}
	catalogue := s.policy.Catalogue()
	plan, _ := catalogue.Plan(o.Plan) // without one no rate is within it
	days, err := lifetime(in.ExpiresInDays, maxLifetimeDays)
	switch {
	case err != nil:
		return nil, err
	case days > 0 && !in.ExpiresAt.IsZero():
		return nil, outOfRange("/expires_in_days", "must not be sent together with expires_at")
	case days > 0:
		k.ExpiresAt = now.Add(days)
	case !in.ExpiresAt.IsZero():
		k.ExpiresAt = in.ExpiresAt.UTC().Truncate(time.Microsecond)
		err = checkExpiry(now, k.ExpiresAt)
	}
	if !k.ExpiresAt.IsZero() {
		k.Lifetime = k.ExpiresAt.Sub(now)
	}
	var scopesErr, cidrsErr, metadataErr error
	k.Scopes, scopesErr = checkScopes(catalogue, in.Scopes)
	k.AllowedCIDRs, cidrsErr = ParseCIDRs(in.AllowedCIDRs)
	k.Metadata, metadataErr = checkMetadata(in.Metadata)
	if !in.Environment.Valid() {
		err = first(err, outOfRange("/environment", "must be live or test"))
	}
	return k, first(checkName(in.Name), s.notKey("/name", in.Name), s.notKey("/external_id", in.ExternalID), err, scopesErr, cidrsErr, checkRate(r.Actor, plan, in.RateLimit),
		metadataErr, checkExternalID(in.ExternalID))
}

// quota refuses a key beyond the plan's number.
func (s *Service) quota(ctx context.Context, re Reader, r Request, o *Organization) error {
	plan, ok := s.policy.Catalogue().Plan(o.Plan)
	if !ok {
		return conflict("unknown_plan", "the organization's plan is not in the policy's catalogue any more; give it another plan")
	}
	if plan.MaxKeys == 0 {
		return nil
	}
	n, err := re.CountKeys(ctx, TenantOf(r.Actor), o.ID)
	if err != nil {
		return err //nolint:wrapcheck // change does
	}
	if n >= plan.MaxKeys {
		return conflict("quota_exceeded", "the organization has as many keys as its plan permits; revoke unused ones, or give it another plan")
	}
	return nil
}

// KeyUpdate is what a PATCH changes; nil fields stay as they are.
type KeyUpdate struct {
	Name   *string
	Scopes []authz.Scope
	// ExpiresAt set to the zero time takes the expiry away.
	ExpiresAt    *time.Time
	AllowedCIDRs *[]string
	// RateLimit set to a nil rate gives the plan's back.
	RateLimit **authz.Rate
	Disabled  *bool
	Metadata  []byte
}

// UpdateKey changes a key.
func (s *Service) UpdateKey(ctx context.Context, r Request, org authz.OrganizationID, id authz.KeyID, in KeyUpdate) (*KeyChange, error) {
	out := &KeyChange{}
	op := operation{actionKeysUpdate, writers()}
	return s.changeKey(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		k, o, err := s.keyForChange(ctx, w, r, op, org, id)
		if err != nil {
			return outcome{}, err
		}
		before, was := k.document(w.Now()), *k
		if err := s.apply(w.Now(), r, o, k, in); err != nil {
			return outcome{}, err
		}
		if err := s.decide(ctx, r, op.action, o, before, k.document(w.Now())); err != nil {
			return outcome{}, err
		}
		if err := w.UpdateKey(ctx, TenantOf(r.Actor), k); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Key, out.At = *k, w.Now()
		// Asked again to disable, it tells again how far that has got.
		takes := narrowed(&was, k) || in.Disabled != nil && *in.Disabled
		return logged(outcome{takes: takes}, k.OrganizationID, op.action, k.ID.String(), before, k.document(w.Now()))
	})
}

// apply puts an update into a key.
func (s *Service) apply(now time.Time, r Request, o *Organization, k *Key, in KeyUpdate) (err error) {
	catalogue := s.policy.Catalogue()
	plan, _ := catalogue.Plan(o.Plan)
	if in.Name != nil {
		k.Name = *in.Name
		err = first(checkName(k.Name), s.notKey("/name", k.Name))
	}
	if in.Scopes != nil {
		scopes, e := checkScopes(catalogue, in.Scopes)
		k.Scopes, err = scopes, first(err, e)
	}
	if in.ExpiresAt != nil {
		k.ExpiresAt = in.ExpiresAt.UTC().Truncate(time.Microsecond)
		switch {
		case in.ExpiresAt.IsZero():
			k.ExpiresAt, k.Lifetime = time.Time{}, 0
		default:
			err = first(err, checkExpiry(now, k.ExpiresAt))
			if k.Lifetime == 0 {
				k.Lifetime = k.ExpiresAt.Sub(now)
			}
		}
	}
	if in.AllowedCIDRs != nil {
		cidrs, e := ParseCIDRs(*in.AllowedCIDRs)
		k.AllowedCIDRs, err = cidrs, first(err, e)
	}
	if in.RateLimit != nil {
		k.RateLimit = *in.RateLimit
		err = first(err, checkRate(r.Actor, plan, k.RateLimit))
	}
	if in.Disabled != nil {
		switch {
		case !*in.Disabled:
			k.DisabledAt = time.Time{}
		case k.DisabledAt.IsZero():
			k.DisabledAt = now
		}
	}
	if in.Metadata != nil {
		metadata, e := checkMetadata(in.Metadata)
		k.Metadata, err = metadata, first(err, e)
	}
	return err
}

// narrowed tells whether a key may do less than it could, or may by what a policy reads of it.
func narrowed(was, is *Key) bool {
	if !is.DisabledAt.IsZero() && was.DisabledAt.IsZero() {
		return true
	}
	for _, s := range was.Scopes {
		if !slices.Contains(is.Scopes, s) {
			return true
		}
	}
	if authz.Earlier(was.ExpiresAt, is.ExpiresAt) != was.ExpiresAt {
		return true
	}
	return !slices.Equal(was.AllowedCIDRs, is.AllowedCIDRs) && len(is.AllowedCIDRs) > 0 && !covers(is.AllowedCIDRs, was.AllowedCIDRs) ||
		!sameRate(was.RateLimit, is.RateLimit) || was.Metadata != is.Metadata
}

// covers tells whether every address of inner is in outer; an empty inner is every address there is.
func covers(outer, inner []netip.Prefix) bool {
	for _, in := range inner {
		if !slices.ContainsFunc(outer, func(out netip.Prefix) bool { return out.Bits() <= in.Bits() && out.Contains(in.Addr()) }) {
			return false
		}
	}
	return len(inner) > 0
}

func sameRate(a, b *authz.Rate) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// key finds a key and its organization for an actor: foreign ones are not there.
func (s *Service) key(
	ctx context.Context, re Reader, r Request, org authz.OrganizationID, id authz.KeyID,
) (*Key, *Organization, error) {
	k, err := re.Key(ctx, TenantOf(r.Actor), org, id)
	if errors.Is(err, ErrNotFound) {
		return nil, nil, notFound("key")
	}
	if err != nil {
		return nil, nil, err //nolint:wrapcheck // change and read do
	}
	o, err := organization(ctx, re, r, k.OrganizationID)
	return k, o, err
}

// keyForChange finds a key that can still change, for an actor whose role may.
func (s *Service) keyForChange(
	ctx context.Context, re Reader, r Request, op operation, org authz.OrganizationID, id authz.KeyID,
) (*Key, *Organization, error) {
	k, o, err := s.key(ctx, re, r, org, id)
	if err != nil {
		return nil, nil, err
	}
	if err := op.allows(r.Actor); err != nil {
		return nil, nil, err
	}
	if err := precondition(r, k.Version); err != nil {
		return nil, nil, err
	}
	if !o.DeletedAt.IsZero() || !k.RevokedAt.IsZero() {
		return nil, nil, conflict("key_revoked", "the key is revoked for ever; create another one")
	}
	return k, o, nil
}

func (s *Service) changeKey(
	ctx context.Context, r Request, out *KeyChange, do func(context.Context, Writer) (outcome, error),
) (*KeyChange, error) {
	done, err := s.change(ctx, r, out, do)
	if err != nil {
		return nil, err
	}
	out.Effective = done.effective
	out.SecretAlreadyShown = done.replayed
	if r.DryRun && out.Secret != (authz.Secret{}) {
		// Nothing was kept: neither the secret nor its id will ever exist.
		out.Secret, out.Key.Secrets = authz.Secret{}, out.Key.Secrets[1:]
	}
	return out, nil
}

// may is the ceiling of roles and then policy, for what leaves nothing wanted.
func (s *Service) may(ctx context.Context, r Request, op operation, o *Organization, current map[string]any) error {
	if err := op.allows(r.Actor); err != nil {
		return err
	}
	return s.decide(ctx, r, op.action, o, current, nil)
}

// logged adds the row of the audit log to an outcome.
func logged(out outcome, chain authz.OrganizationID, action, target string, before, after map[string]any) (outcome, error) {
	e, err := event(chain, action, target, before, after)
	out.events = append(out.events, e)
	return out, err
}

// first returns the first error there is.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
