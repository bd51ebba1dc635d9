package manage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/supportstation/keystile/authz"
)

// The actions on admins.
const (
	actionAdminsList      = "admins.list"
	actionAdminsGet       = "admins.get"
	actionAdminsCreate    = "admins.create"
	actionAdminsRotate    = "admins.rotate"
	actionAdminsDelete    = "admins.delete"
	actionAdminsBootstrap = "admins.bootstrap"
)

// MaxAdminDays is the longest life of an admin's token in days.
const MaxAdminDays = 90

// maxAdminGrace is how long an admin's old token works on at most.
const maxAdminGrace = day

// AdminChange is the answer of a change of an admin.
type AdminChange struct {
	Admin Admin
	// At is when; its status is as of then.
	At time.Time
	// Secret is the new token after a create or a rotation, empty otherwise.
	Secret             authz.Secret `json:"-"`
	SecretAlreadyShown bool
}

// AdminInput is what a new admin is made of.
type AdminInput struct {
	Name string
	Role authz.Role
	// Organization is zero for a platform admin, and required for every other role.
	Organization authz.OrganizationID
	// ExpiresInDays is required, and at most MaxAdminDays.
	ExpiresInDays int
}

// ListAdmins lists admins, newest first; organization roles see those of their own.
func (s *Service) ListAdmins(ctx context.Context, r Request, f AdminFilter, p Page) (List[Admin], error) {
	var out List[Admin]
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		own, err := s.ownOrganization(ctx, re, r)
		if err != nil {
			return err
		}
		op := operation{actionAdminsList, []authz.Role{authz.RoleOwner, authz.RoleAuditor}}
		if err := s.may(ctx, r, op, own, nil); err != nil {
			return err
		}
		items, err := re.Admins(ctx, TenantOf(r.Actor), f, p.more())
		out = paged(items, p, re.Now(), func(a *Admin) string { return a.ID.String() })
		return err //nolint:wrapcheck // read does
	})
	return out, err
}

// ownOrganization is the actor's, nil for a platform admin.
func (s *Service) ownOrganization(ctx context.Context, re Reader, r Request) (*Organization, error) {
	if r.Actor.Organization.IsZero() {
		return nil, nil //nolint:nilnil // belonging to none is an answer
	}
	return organization(ctx, re, r, r.Actor.Organization)
}

// GetAdmin returns an admin, and the time as of which its status is.
func (s *Service) GetAdmin(ctx context.Context, r Request, id authz.AdminID) (*Admin, time.Time, error) {
	var out *Admin
	var at time.Time
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		a, o, err := s.admin(ctx, re, r, id)
		if err != nil {
			return err
		}
		op := operation{actionAdminsGet, []authz.Role{authz.RoleOwner, authz.RoleAuditor}}
		if a.ID == r.Actor.ID {
			op.roles = readers()
		}
		out, at = a, re.Now()
		return s.may(ctx, r, op, o, a.document(at))
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	return out, at, nil
}

// CreateAdmin makes an admin and its token, which is in this answer alone. Platform
// admins alone: organization roles never make admins.
func (s *Service) CreateAdmin(ctx context.Context, r Request, in AdminInput) (*AdminChange, error) {
	out := &AdminChange{}
	return s.changeAdmin(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		op := operation{action: actionAdminsCreate}
		if err := op.allows(r.Actor); err != nil {
			return outcome{}, err
		}
		a, err := newAdmin(w.Now(), in)
		if err := first(err, s.notKey("/name", in.Name)); err != nil {
			return outcome{}, err
		}
		a.CreatedBy = r.Actor.ID.String()
		var o *Organization
		if !in.Organization.IsZero() {
			if o, err = livingFor(ctx, w, r, op, in.Organization); err != nil {
				return outcome{}, err
			}
		}
		if err := s.decide(ctx, r, op.action, o, nil, a.document(w.Now())); err != nil {
			return outcome{}, err
		}
		out.Secret, err = insertAdmin(ctx, w, TenantOf(r.Actor), a)
		if err != nil {
			return outcome{}, err
		}
		out.Admin, out.At = *a, w.Now()
		return logged(outcome{}, a.OrganizationID, op.action, a.ID.String(), nil, a.document(w.Now()))
	})
}

func newAdmin(now time.Time, in AdminInput) (*Admin, error) {
	life, err := lifetime(in.ExpiresInDays, MaxAdminDays)
	switch {
	case err != nil || life == 0:
		return nil, outOfRange("/expires_in_days", "must be from 1 to 90")
	case !in.Role.Valid():
		return nil, outOfRange("/role", "must be platform_admin, owner, developer or auditor")
	case in.Role == authz.RolePlatformAdmin && !in.Organization.IsZero():
		return nil, outOfRange("/organization_id", "must be absent: a platform admin belongs to no organization")
	case in.Role != authz.RolePlatformAdmin && in.Organization.IsZero():
		return nil, invalid("missing_field", "/organization_id", "is required for this role")
	}
	return &Admin{
		ID: authz.NewAdminID(now), Name: in.Name, Role: in.Role, OrganizationID: in.Organization,
		CreatedAt: now, ExpiresAt: now.Add(life), Lifetime: life,
		Tokens: []Token{{ID: authz.NewSecretID(now), CreatedAt: now, ExpiresAt: now.Add(life)}},
	}, checkName(in.Name)
}

func insertAdmin(ctx context.Context, w Writer, t Tenant, a *Admin) (authz.Secret, error) {
	token := authz.AdminTokens().Generate()
	a.Tokens[0].Hint = authz.AdminTokens().Hint(token)
	return token, w.InsertAdmin(ctx, t, a, token) //nolint:wrapcheck // change does
}

// RotateAdmin gives an admin a new token and a new life. Organization roles rotate
// their own alone, because who gets another's token could act in its name, and each
// time for no longer than a platform admin granted.
func (s *Service) RotateAdmin(ctx context.Context, r Request, id authz.AdminID, in TokenRotation) (*AdminChange, error) {
	out := &AdminChange{}
	return s.changeAdmin(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		a, o, err := s.admin(ctx, w, r, id)
		if err != nil {
			return outcome{}, err
		}
		op := operation{action: actionAdminsRotate}
		if a.ID == r.Actor.ID {
			op.roles = readers()
		}
		if err := op.allows(r.Actor); err != nil {
			return outcome{}, err
		}
		if !a.RevokedAt.IsZero() {
			return outcome{}, conflict("admin_revoked", "the admin is removed for ever; create another one")
		}
		now := w.Now()
		before := a.document(now)
		life, err := lifetime(in.ExpiresInDays, MaxAdminDays)
		if err != nil || life == 0 {
			return outcome{}, outOfRange("/expires_in_days", "must be from 1 to 90")
		}
		if r.Actor.Role == authz.RolePlatformAdmin {
			a.Lifetime = life
		} else if life > a.Lifetime {
			return outcome{}, outOfRange("/expires_in_days", fmt.Sprintf(
				"must be at most %d, which is what was granted; a platform admin can grant more", int(a.Lifetime/day)))
		}
		ended, kept, err := endTokens(now, a.Tokens, in.Grace, maxAdminGrace)
		if err != nil {
			return outcome{}, err
		}
		a.ExpiresAt = now.Add(life)
		a.Tokens = slices.Insert(kept, 0, Token{ID: authz.NewSecretID(now), CreatedAt: now, ExpiresAt: a.ExpiresAt})
		if err := s.decide(ctx, r, op.action, o, before, a.document(now)); err != nil {
			return outcome{}, err
		}
		for i := range ended {
			if err := w.EndAdminToken(ctx, TenantOf(r.Actor), a, &ended[i]); err != nil {
				return outcome{}, err //nolint:wrapcheck // change does
			}
		}
		token := authz.AdminTokens().Generate()
		a.Tokens[0].Hint = authz.AdminTokens().Hint(token)
		if err := w.InsertAdminToken(ctx, TenantOf(r.Actor), a, &a.Tokens[0], token); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		if err := w.UpdateAdmin(ctx, TenantOf(r.Actor), a); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Admin, out.At, out.Secret = *a, now, token
		return logged(outcome{}, a.OrganizationID, op.action, a.ID.String(), before, a.document(now))
	})
}

// DeleteAdmin removes an admin, at once. The last platform admin stays.
func (s *Service) DeleteAdmin(ctx context.Context, r Request, id authz.AdminID) (*AdminChange, error) {
	out := &AdminChange{}
	op := operation{actionAdminsDelete, []authz.Role{authz.RoleOwner}}
	return s.changeAdmin(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		a, o, err := s.admin(ctx, w, r, id)
		if err != nil {
			return outcome{}, err
		}
		before := a.document(w.Now())
		if err := s.may(ctx, r, op, o, before); err != nil {
			return outcome{}, err
		}
		out.Admin, out.At = *a, w.Now()
		if !a.RevokedAt.IsZero() {
			return outcome{}, nil
		}
		if a.Role == authz.RolePlatformAdmin {
			others, err := w.OtherPlatformAdmins(ctx, a.ID)
			if err != nil {
				return outcome{}, err //nolint:wrapcheck // change does
			}
			if others == 0 {
				return outcome{}, conflict("last_platform_admin", "the last platform admin stays; create another one first")
			}
		}
		a.RevokedAt = w.Now()
		if err := w.UpdateAdmin(ctx, TenantOf(r.Actor), a); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Admin = *a
		return logged(outcome{}, a.OrganizationID, op.action, a.ID.String(), before, a.document(w.Now()))
	})
}

// admin finds an admin and its organization for an actor: foreign ones are not there.
func (s *Service) admin(ctx context.Context, re Reader, r Request, id authz.AdminID) (*Admin, *Organization, error) {
	a, err := re.Admin(ctx, TenantOf(r.Actor), id)
	if errors.Is(err, ErrNotFound) {
		return nil, nil, notFound("admin")
	}
	if err != nil || a.OrganizationID.IsZero() {
		return a, nil, err //nolint:wrapcheck // change and read do
	}
	o, err := organization(ctx, re, r, a.OrganizationID)
	return a, o, err
}

func (s *Service) changeAdmin(
	ctx context.Context, r Request, out *AdminChange, do func(context.Context, Writer) (outcome, error),
) (*AdminChange, error) {
	done, err := s.change(ctx, r, out, do)
	if err != nil {
		return nil, err
	}
	out.SecretAlreadyShown = done.replayed
	if r.DryRun && out.Secret != (authz.Secret{}) {
		out.Secret, out.Admin.Tokens = authz.Secret{}, out.Admin.Tokens[1:]
	}
	return out, nil
}

// ErrBootstrapped says that the first admin has been made already.
var ErrBootstrapped = errors.New("this database has had its first admin already; " +
	"a platform admin creates further ones with `keystile admins create`")

// Bootstrap makes the very first platform admin, once in a database's life: a
// tombstone outlives every admin. It needs no actor, because whoever runs it has the
// database.
func Bootstrap(ctx context.Context, store Store, keys authz.Peppers, name string, days int) (*AdminChange, error) {
	s := &Service{store: store, keys: keys}
	out := &AdminChange{}
	_, err := store.Write(ctx, true, func(ctx context.Context, w Writer) error {
		a, err := newAdmin(w.Now(), AdminInput{Name: name, Role: authz.RolePlatformAdmin, ExpiresInDays: days})
		if err != nil {
			return err
		}
		a.CreatedBy = "bootstrap"
		ours, err := w.Bootstrap(ctx)
		if err != nil {
			return err //nolint:wrapcheck // translate below
		}
		if !ours {
			return ErrBootstrapped
		}
		if out.Secret, err = insertAdmin(ctx, w, Tenant{everyone: true}, a); err != nil {
			return err
		}
		out.Admin, out.At = *a, w.Now()
		e, err := event(authz.OrganizationID{}, actionAdminsBootstrap, a.ID.String(), nil, a.document(w.Now()))
		if err != nil {
			return err
		}
		e.ActorType, e.ActorID = "database", "bootstrap"
		return s.record(ctx, w, Request{}, []AuditEvent{e})
	})
	if err != nil {
		return nil, translate(err)
	}
	return out, nil
}
