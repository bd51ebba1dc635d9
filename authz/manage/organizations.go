package manage

import (
	"context"
	"time"

	"github.com/supportstation/keystile/authz"
)

// The actions on organizations.
const (
	actionOrganizationsList   = "organizations.list"
	actionOrganizationsGet    = "organizations.get"
	actionOrganizationsCreate = "organizations.create"
	actionOrganizationsUpdate = "organizations.update"
	actionOrganizationsDelete = "organizations.delete"
)

// OrganizationChange is the answer of a change of an organization.
type OrganizationChange struct {
	Organization Organization
	// Effective is set when rights were taken away.
	Effective *Effective `json:"-"`
}

// OrganizationInput is what a new organization is made of.
type OrganizationInput struct {
	Name, Plan, ExternalID string
	// Metadata is a JSON object, or nil.
	Metadata []byte
}

// ListOrganizations lists organizations, newest first; organization roles see their own.
func (s *Service) ListOrganizations(ctx context.Context, r Request, f OrganizationFilter, p Page) (List[Organization], error) {
	var out List[Organization]
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		// A role of an organization may read that one, and so this list of one.
		own, action := (*Organization)(nil), actionOrganizationsList
		if r.Actor.Role != authz.RolePlatformAdmin {
			var err error
			if own, err = organization(ctx, re, r, r.Actor.Organization); err != nil {
				return err
			}
			action = actionOrganizationsGet
		}
		if err := s.may(ctx, r, operation{action, readers()}, own, nil); err != nil {
			return err
		}
		items, err := re.Organizations(ctx, TenantOf(r.Actor), f, p.more())
		out = paged(items, p, re.Now(), func(o *Organization) string { return o.ID.String() })
		return err //nolint:wrapcheck // read does
	})
	return out, err
}

// GetOrganization returns an organization.
func (s *Service) GetOrganization(ctx context.Context, r Request, id authz.OrganizationID) (*Organization, error) {
	var out *Organization
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		o, err := organization(ctx, re, r, id)
		if err != nil {
			return err
		}
		out = o
		return s.may(ctx, r, operation{actionOrganizationsGet, readers()}, o, o.document())
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// CreateOrganization makes an organization. Platform admins alone.
func (s *Service) CreateOrganization(ctx context.Context, r Request, in OrganizationInput) (*OrganizationChange, error) {
	out := &OrganizationChange{}
	return s.changeOrganization(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		op := operation{actionOrganizationsCreate, nil}
		if err := op.allows(r.Actor); err != nil {
			return outcome{}, err
		}
		metadata, err := checkMetadata(in.Metadata)
		if err := first(checkName(in.Name), s.notKey("/name", in.Name), s.checkPlan(in.Plan), err, checkOrganizationExternalID(in.ExternalID), s.notKey("/external_id", in.ExternalID)); err != nil {
			return outcome{}, err
		}
		o := &Organization{
			ID: authz.NewOrganizationID(w.Now()), ExternalID: in.ExternalID, Name: in.Name, Plan: in.Plan,
			Metadata: metadata, CreatedAt: w.Now(), Version: 1,
		}
		if err := s.decide(ctx, r, op.action, nil, nil, o.document()); err != nil {
			return outcome{}, err
		}
		if err := w.InsertOrganization(ctx, TenantOf(r.Actor), o); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Organization = *o
		return logged(outcome{}, o.ID, op.action, o.ID.String(), nil, o.document())
	})
}

// checkPlan takes a plan of the catalogue.
func (s *Service) checkPlan(name string) error {
	if _, ok := s.policy.Catalogue().Plan(name); !ok {
		return outOfRange("/plan", "must be one of the policy's plans; GET /v1/scopes lists them")
	}
	return nil
}

// OrganizationUpdate is what a PATCH changes; nil fields stay as they are.
type OrganizationUpdate struct {
	Name, Plan *string
	// ExternalID set to "" takes it away.
	ExternalID *string
	Suspended  *bool
	Metadata   []byte
}

// UpdateOrganization changes an organization. Owners may change its name; plan,
// suspension, external id and metadata, by which policy decides, are the platform's.
func (s *Service) UpdateOrganization(
	ctx context.Context, r Request, id authz.OrganizationID, in OrganizationUpdate,
) (*OrganizationChange, error) {
	out := &OrganizationChange{}
	op := operation{actionOrganizationsUpdate, nil}
	if in.Plan == nil && in.ExternalID == nil && in.Suspended == nil && in.Metadata == nil {
		op.roles = []authz.Role{authz.RoleOwner}
	}
	return s.changeOrganization(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		o, err := livingFor(ctx, w, r, op, id)
		if err != nil {
			return outcome{}, err
		}
		if err := precondition(r, o.Version); err != nil {
			return outcome{}, err
		}
		before, was := o.document(), *o
		if err := s.applyOrganization(w.Now(), o, in); err != nil {
			return outcome{}, err
		}
		if err := s.decide(ctx, r, op.action, o, before, o.document()); err != nil {
			return outcome{}, err
		}
		if err := w.UpdateOrganization(ctx, TenantOf(r.Actor), o); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Organization = *o
		// Asked again to suspend, it tells again how far that has got.
		takes := in.Suspended != nil && *in.Suspended || was.Plan != o.Plan ||
			was.ExternalID != o.ExternalID || was.Metadata != o.Metadata // by which policy decides
		return logged(outcome{takes: takes}, o.ID, op.action, o.ID.String(), before, o.document())
	})
}

func (s *Service) applyOrganization(now time.Time, o *Organization, in OrganizationUpdate) (err error) {
	if in.Name != nil {
		o.Name = *in.Name
		err = first(checkName(o.Name), s.notKey("/name", o.Name))
	}
	if in.Plan != nil {
		o.Plan = *in.Plan
		err = first(err, s.checkPlan(o.Plan))
	}
	if in.ExternalID != nil {
		o.ExternalID = *in.ExternalID
		err = first(err, checkOrganizationExternalID(o.ExternalID), s.notKey("/external_id", o.ExternalID))
	}
	if in.Suspended != nil {
		switch {
		case !*in.Suspended:
			o.SuspendedAt = time.Time{}
		case o.SuspendedAt.IsZero():
			o.SuspendedAt = now
		}
	}
	if in.Metadata != nil {
		metadata, e := checkMetadata(in.Metadata)
		o.Metadata, err = metadata, first(err, e)
	}
	return err
}

// DeleteOrganization revokes all keys and admins of an organization, for ever. Its
// trail is kept; its external id becomes free.
func (s *Service) DeleteOrganization(ctx context.Context, r Request, id authz.OrganizationID) (*OrganizationChange, error) {
	out := &OrganizationChange{}
	op := operation{actionOrganizationsDelete, nil}
	return s.changeOrganization(ctx, r, out, func(ctx context.Context, w Writer) (outcome, error) {
		o, err := organization(ctx, w, r, id)
		if err != nil {
			return outcome{}, err
		}
		before := o.document()
		if err := s.may(ctx, r, op, o, before); err != nil {
			return outcome{}, err
		}
		if !o.DeletedAt.IsZero() {
			out.Organization = *o
			return outcome{takes: true}, nil
		}
		keys, err := w.RevokeKeys(ctx, TenantOf(r.Actor), id)
		if err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		admins, err := w.RevokeAdmins(ctx, TenantOf(r.Actor), id)
		if err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		o.DeletedAt, o.ExternalID = w.Now(), ""
		if err := w.UpdateOrganization(ctx, TenantOf(r.Actor), o); err != nil {
			return outcome{}, err //nolint:wrapcheck // change does
		}
		out.Organization = *o
		after := o.document()
		after["keys_revoked"], after["admins_revoked"] = keys, admins
		return logged(outcome{takes: true}, o.ID, op.action, o.ID.String(), before, after)
	})
}

func (s *Service) changeOrganization(
	ctx context.Context, r Request, out *OrganizationChange, do func(context.Context, Writer) (outcome, error),
) (*OrganizationChange, error) {
	done, err := s.change(ctx, r, out, do)
	if err != nil {
		return nil, err
	}
	out.Effective = done.effective
	return out, nil
}
