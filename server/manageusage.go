package server

import (
	"context"
	"math"
	"net/netip"
	"time"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// GetOrganizationUsage implements api.StrictServerInterface.
func (m *management) GetOrganizationUsage(
	ctx context.Context, in api.GetOrganizationUsageRequestObject,
) (api.GetOrganizationUsageResponseObject, error) {
	ctx, r := requestOf(ctx)
	var id authz.OrganizationID
	if err := pathID(in.Org, &id, "organization"); err != nil {
		return nil, err
	}
	u, err := m.service.OrganizationUsage(ctx, r, id, usageInput(in.Params.Since, in.Params.Until, in.Params.Step, in.Params.Top))
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.GetOrganizationUsage200JSONResponse(toUsage(u)), nil
}

// GetOrganizationKeyUsage implements api.StrictServerInterface.
func (m *management) GetOrganizationKeyUsage(
	ctx context.Context, in api.GetOrganizationKeyUsageRequestObject,
) (api.GetOrganizationKeyUsageResponseObject, error) {
	u, err := m.keyUsage(ctx, &in.Org, in.Key, usageInput(in.Params.Since, in.Params.Until, in.Params.Step, in.Params.Top))
	return api.GetOrganizationKeyUsage200JSONResponse(u), err
}

// GetKeyUsage implements api.StrictServerInterface.
func (m *management) GetKeyUsage(ctx context.Context, in api.GetKeyUsageRequestObject) (api.GetKeyUsageResponseObject, error) {
	u, err := m.keyUsage(ctx, nil, in.Key, usageInput(in.Params.Since, in.Params.Until, in.Params.Step, in.Params.Top))
	return api.GetKeyUsage200JSONResponse(u), err
}

func (m *management) keyUsage(ctx context.Context, org *string, key string, wanted manage.UsageInput) (api.Usage, error) {
	ctx, r := requestOf(ctx)
	organization, id, err := keyPath(org, key)
	if err != nil {
		return api.Usage{}, err
	}
	u, err := m.service.KeyUsage(ctx, r, organization, id, wanted)
	if err != nil {
		return api.Usage{}, err //nolint:wrapcheck // fail reads it
	}
	return toUsage(u), nil
}

func usageInput(since, until *time.Time, step *api.UsageStep, top *int) manage.UsageInput {
	return manage.UsageInput{Since: value(since), Until: value(until), Step: manage.UsageStep(value(step)), Top: value(top)}
}

func toUsage(u *manage.Usage) api.Usage {
	out := api.Usage{
		OrganizationID: u.Organization.String(), At: u.At, Since: u.Since, Until: u.Until, Step: api.UsageStep(u.Step),
		CountedSince: optionalTime(u.CountedSince), Totals: toUsageCounts(u.UsageCounts), Denied: []api.UsageCode{},
		Series: each(u.Series, func(p manage.UsagePoint) api.UsagePoint {
			return api.UsagePoint{At: p.At, Requests: p.Requests, Allowed: p.Allowed, Denied: p.Denied(), Limited: p.Limited}
		}),
		UnusedScopes: words[string](u.UnusedScopes()),
		Scopes: each(u.Scopes, func(s manage.UsageScope) api.UsageScope {
			return api.UsageScope{Scope: string(s.Scope), Granted: s.Granted, Requests: s.Requests, LastUse: toLastUse(s.Use)}
		}),
		Rotation: toUsageRotation(u),
	}
	if since, until := u.Covers(); !since.IsZero() {
		out.Covers = &api.UsageCover{Since: since, Until: until, Days: math.Round(until.Sub(since).Hours()/24*10) / 10}
	}
	for _, c := range u.Codes {
		if c.Code != authz.CodeAllowed {
			out.Denied = append(out.Denied, api.UsageCode{Code: string(c.Code), Title: c.Code.Title(), Requests: c.Requests})
		}
	}
	toUsageLists(u, &out)
	if k := u.Subject; k != nil {
		out.Key = &api.UsageSubject{ID: k.ID.String(), Name: k.Name, Environment: api.Environment(k.Environment)}
		if live := k.LiveSecrets(u.At); len(live) > 0 {
			out.Key.Hint = &live[0].Hint
		}
	}
	return out
}

// toUsageLists fills in what has a rest.
func toUsageLists(u *manage.Usage, out *api.Usage) {
	out.Routes.Items = each(u.Routes.Items, func(r manage.UsageRoute) api.UsageRoute {
		return api.UsageRoute{
			Method: optional(r.Method), Route: optional(r.Route), Action: optional(r.Action),
			Requests: r.Requests, Allowed: r.Allowed, Denied: r.Denied(), Limited: r.Limited,
		}
	})
	out.Routes.Rest = api.UsageRest{Rows: u.Routes.Rest, Requests: u.Routes.RestRequests}
	out.Callers.Items = each(u.Callers.Items, func(c manage.UsageCaller) api.UsageCaller {
		return api.UsageCaller{
			ID: optionalID(c.ID), Name: optional(c.Name), Requests: c.Requests, Allowed: c.Allowed, Denied: c.Denied(), Limited: c.Limited,
		}
	})
	out.Callers.Rest = api.UsageRest{Rows: u.Callers.Rest, Requests: u.Callers.RestRequests}
	out.Networks.Items = each(u.Networks.Items, func(n manage.UsageNetwork) api.UsageNetwork {
		return api.UsageNetwork{Network: optionalNetwork(n.Network), Requests: n.Requests, Allowed: n.Allowed, Denied: n.Denied()}
	})
	out.Networks.Rest = api.UsageRest{Rows: u.Networks.Rest, Requests: u.Networks.RestRequests}
	if u.Subject != nil {
		return
	}
	out.Keys = &api.UsageKeys{
		Rest: api.UsageRest{Rows: u.Keys.Rest, Requests: u.Keys.RestRequests},
		Items: each(u.Keys.Items, func(k manage.UsageKey) api.UsageKey {
			return api.UsageKey{
				ID: k.ID.String(), Name: optional(k.Name), Environment: optional(string(k.Environment)),
				Requests: k.Requests, Allowed: k.Allowed, Denied: k.Denied(), Limited: k.Limited,
			}
		}),
	}
}

func toUsageCounts(c manage.UsageCounts) api.UsageCounts {
	return api.UsageCounts{Requests: c.Requests, Allowed: c.Allowed, Denied: c.Denied(), Limited: c.Limited}
}

// toUsageRotation is nil for a key that has one secret.
func toUsageRotation(u *manage.Usage) *api.UsageRotation {
	if len(u.Secrets) == 0 {
		return nil
	}
	var all, recent int64
	for _, s := range u.Secrets {
		all, recent = all+s.Requests, recent+s.Recent
	}
	return &api.UsageRotation{RecentSince: u.Recent, Secrets: each(u.Secrets, func(s manage.UsageSecret) api.UsageSecret {
		return api.UsageSecret{
			ID: s.ID.String(), Hint: s.Hint, CreatedAt: s.CreatedAt, ExpiresAt: optionalTime(s.ExpiresAt),
			Requests: s.Requests, Share: share(s.Requests, all), RecentRequests: s.Recent, RecentShare: share(s.Recent, recent),
			LastUse: toLastUse(s.Use),
		}
	})}
}

func share(n, of int64) *float64 {
	if of == 0 {
		return nil
	}
	part := float64(n) / float64(of)
	return &part
}

func toLastUse(u manage.LastUse) *api.UsageLastUse {
	if u.Last.IsZero() {
		return nil
	}
	return &api.UsageLastUse{
		FirstAt: optionalTime(u.First), At: u.Last, CallerID: optionalID(u.Caller), CallerName: optional(u.CallerName), Network: optionalNetwork(u.Network),
	}
}

func optionalNetwork(p netip.Prefix) *string {
	if !p.IsValid() {
		return nil
	}
	return optional(p.String())
}
