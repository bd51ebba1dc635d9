package server

import (
	"context"
	"time"

	"github.com/oapi-codegen/nullable"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
	"github.com/supportstation/keystile/server/api"
)

// ListKeys implements api.StrictServerInterface.
func (m *management) ListKeys(ctx context.Context, in api.ListKeysRequestObject) (api.ListKeysResponseObject, error) {
	ctx, r := requestOf(ctx)
	var org authz.OrganizationID
	if err := pathID(in.Org, &org, "organization"); err != nil {
		return nil, err
	}
	page, err := pageOf(in.Params.Cursor, in.Params.Limit, &authz.KeyID{})
	if err != nil {
		return nil, err
	}
	list, err := m.service.ListKeys(ctx, r, org, manage.KeyFilter{
		Status: string(value(in.Params.Status)), Environment: authz.Environment(value(in.Params.Environment)),
		Scope: authz.Scope(value(in.Params.Scope)), ExternalID: value(in.Params.ExternalID),
		Unused: in.Params.Unused,
	}, page)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	items := each(list.Items, func(k manage.Key) api.Key { return toKey(k, list.At) })
	return api.ListKeys200JSONResponse{Items: items, NextCursor: optional(list.Next)}, nil
}

// CreateKey implements api.StrictServerInterface.
func (m *management) CreateKey(ctx context.Context, in api.CreateKeyRequestObject) (api.CreateKeyResponseObject, error) {
	ctx, r := requestOf(ctx)
	var org authz.OrganizationID
	if err := pathID(in.Org, &org, "organization"); err != nil {
		return nil, err
	}
	input := manage.KeyInput{
		Name: in.Body.Name, Environment: authz.Environment(in.Body.Environment), Scopes: words[authz.Scope](in.Body.Scopes),
		ExpiresInDays: value(in.Body.ExpiresInDays), AllowedCIDRs: value(in.Body.AllowedCidrs),
		Metadata: in.Body.Metadata, ExternalID: value(in.Body.ExternalID),
	}
	if in.Body.ExpiresAt != nil {
		if err := checkMoment(*in.Body.ExpiresAt); err != nil {
			return nil, err
		}
		input.ExpiresAt = *in.Body.ExpiresAt
	}
	if in.Body.RateLimit != nil {
		input.RateLimit = fromRate(*in.Body.RateLimit)
	}
	change, err := m.service.CreateKey(ctx, r, org, input)
	if err != nil {
		return nil, err //nolint:wrapcheck // fail reads it
	}
	return api.CreateKey201JSONResponse(toKeyChange(change, r.DryRun)), nil
}

// checkMoment refuses the one moment that to manage would mean never.
func checkMoment(t time.Time) error {
	if t.IsZero() {
		return badField("/expires_at", "must be in the future")
	}
	return nil
}

// keyPath reads the ids of a key's path. Without org, as in /v1/keys, the key may be
// of any organization that the admin sees.
func keyPath(org *string, key string) (authz.OrganizationID, authz.KeyID, error) {
	var organization authz.OrganizationID
	var id authz.KeyID
	if org != nil {
		if err := pathID(*org, &organization, "key"); err != nil {
			return organization, id, err
		}
	}
	return organization, id, pathID(key, &id, "key")
}

func (m *management) getKey(ctx context.Context, org *string, key string) (api.Key, *string, error) {
	ctx, r := requestOf(ctx)
	organization, id, err := keyPath(org, key)
	if err != nil {
		return api.Key{}, nil, err
	}
	k, at, err := m.service.GetKey(ctx, r, organization, id)
	if err != nil {
		return api.Key{}, nil, err //nolint:wrapcheck // fail reads it
	}
	return toKey(*k, at), etag(k.Version), nil
}

// changeKey runs a change of one key.
func (m *management) changeKey(
	ctx context.Context, org *string, key string,
	do func(context.Context, manage.Request, authz.OrganizationID, authz.KeyID) (*manage.KeyChange, error),
) (api.KeyChange, *string, error) {
	ctx, r := requestOf(ctx)
	organization, id, err := keyPath(org, key)
	if err != nil {
		return api.KeyChange{}, nil, err
	}
	change, err := do(ctx, r, organization, id)
	if err != nil {
		return api.KeyChange{}, nil, err
	}
	return toKeyChange(change, r.DryRun), etag(change.Key.Version), nil
}

func (m *management) updateKey(ctx context.Context, org *string, key string, in *api.KeyUpdate) (api.KeyChange, *string, error) {
	return m.changeKey(ctx, org, key, func(
		ctx context.Context, r manage.Request, org authz.OrganizationID, id authz.KeyID,
	) (*manage.KeyChange, error) {
		update := manage.KeyUpdate{
			Name: in.Name, AllowedCIDRs: in.AllowedCidrs, Disabled: in.Disabled, Metadata: in.Metadata,
		}
		if in.Scopes != nil {
			update.Scopes = words[authz.Scope](*in.Scopes)
		}
		if in.ExpiresAt.IsSpecified() {
			at, err := momentOrNever(in.ExpiresAt)
			if err != nil {
				return nil, err
			}
			update.ExpiresAt = &at
		}
		if in.RateLimit.IsSpecified() {
			var own *authz.Rate
			if limit, err := in.RateLimit.Get(); err == nil {
				own = fromRate(limit)
			}
			update.RateLimit = &own
		}
		return m.service.UpdateKey(ctx, r, org, id, update) //nolint:wrapcheck // fail reads it
	})
}

// momentOrNever reads a time that is not null, or the zero time for null.
func momentOrNever(in nullable.Nullable[time.Time]) (time.Time, error) {
	at, err := in.Get()
	if err != nil {
		return time.Time{}, nil //nolint:nilerr // null takes the expiry away
	}
	return at, checkMoment(at)
}

func (m *management) rotateKey(ctx context.Context, org *string, key string, in *api.KeyRotate) (api.KeyChange, *string, error) {
	return m.changeKey(ctx, org, key, func(
		ctx context.Context, r manage.Request, org authz.OrganizationID, id authz.KeyID,
	) (*manage.KeyChange, error) {
		return m.service.RotateKey(ctx, r, org, id, manage.KeyRotation{ //nolint:wrapcheck // fail reads it
			Grace: time.Duration(in.GraceSeconds) * time.Second, ExpiresInDays: value(in.ExpiresInDays),
			Compromised: value(in.Reason) == api.Compromised, DropOldest: value(in.Drop) == api.KeyRotateDropOldest,
		})
	})
}

func (m *management) revokeKeySecret(ctx context.Context, org *string, key, secret string) (api.KeyChange, *string, error) {
	return m.changeKey(ctx, org, key, func(
		ctx context.Context, r manage.Request, org authz.OrganizationID, id authz.KeyID,
	) (*manage.KeyChange, error) {
		var secretID authz.SecretID
		if err := pathID(secret, &secretID, "secret that is not revoked already"); err != nil {
			return nil, err
		}
		return m.service.RevokeKeySecret(ctx, r, org, id, secretID) //nolint:wrapcheck // fail reads it
	})
}

// GetKey implements api.StrictServerInterface.
func (m *management) GetKey(ctx context.Context, in api.GetKeyRequestObject) (api.GetKeyResponseObject, error) {
	body, tag, err := m.getKey(ctx, nil, in.Key)
	return api.GetKey200JSONResponse{Body: body, Headers: api.GetKey200ResponseHeaders{ETag: tag}}, err
}

// GetOrganizationKey implements api.StrictServerInterface.
func (m *management) GetOrganizationKey(
	ctx context.Context, in api.GetOrganizationKeyRequestObject,
) (api.GetOrganizationKeyResponseObject, error) {
	body, tag, err := m.getKey(ctx, &in.Org, in.Key)
	return api.GetOrganizationKey200JSONResponse{
		Body: body, Headers: api.GetOrganizationKey200ResponseHeaders{ETag: tag},
	}, err
}

// UpdateKey implements api.StrictServerInterface.
func (m *management) UpdateKey(ctx context.Context, in api.UpdateKeyRequestObject) (api.UpdateKeyResponseObject, error) {
	body, tag, err := m.updateKey(ctx, nil, in.Key, in.Body)
	return api.UpdateKey200JSONResponse{Body: body, Headers: api.UpdateKey200ResponseHeaders{ETag: tag}}, err
}

// UpdateOrganizationKey implements api.StrictServerInterface.
func (m *management) UpdateOrganizationKey(
	ctx context.Context, in api.UpdateOrganizationKeyRequestObject,
) (api.UpdateOrganizationKeyResponseObject, error) {
	body, tag, err := m.updateKey(ctx, &in.Org, in.Key, in.Body)
	return api.UpdateOrganizationKey200JSONResponse{
		Body: body, Headers: api.UpdateOrganizationKey200ResponseHeaders{ETag: tag},
	}, err
}

// RotateKey implements api.StrictServerInterface.
func (m *management) RotateKey(ctx context.Context, in api.RotateKeyRequestObject) (api.RotateKeyResponseObject, error) {
	body, tag, err := m.rotateKey(ctx, nil, in.Key, in.Body)
	return api.RotateKey200JSONResponse{Body: body, Headers: api.RotateKey200ResponseHeaders{ETag: tag}}, err
}

// RotateOrganizationKey implements api.StrictServerInterface.
func (m *management) RotateOrganizationKey(
	ctx context.Context, in api.RotateOrganizationKeyRequestObject,
) (api.RotateOrganizationKeyResponseObject, error) {
	body, tag, err := m.rotateKey(ctx, &in.Org, in.Key, in.Body)
	return api.RotateOrganizationKey200JSONResponse{
		Body: body, Headers: api.RotateOrganizationKey200ResponseHeaders{ETag: tag},
	}, err
}

// RevokeKey implements api.StrictServerInterface.
func (m *management) RevokeKey(ctx context.Context, in api.RevokeKeyRequestObject) (api.RevokeKeyResponseObject, error) {
	body, tag, err := m.changeKey(ctx, nil, in.Key, m.service.RevokeKey)
	return api.RevokeKey200JSONResponse{Body: body, Headers: api.RevokeKey200ResponseHeaders{ETag: tag}}, err
}

// RevokeOrganizationKey implements api.StrictServerInterface.
func (m *management) RevokeOrganizationKey(
	ctx context.Context, in api.RevokeOrganizationKeyRequestObject,
) (api.RevokeOrganizationKeyResponseObject, error) {
	body, tag, err := m.changeKey(ctx, &in.Org, in.Key, m.service.RevokeKey)
	return api.RevokeOrganizationKey200JSONResponse{
		Body: body, Headers: api.RevokeOrganizationKey200ResponseHeaders{ETag: tag},
	}, err
}

// RevokeKeySecret implements api.StrictServerInterface.
func (m *management) RevokeKeySecret(
	ctx context.Context, in api.RevokeKeySecretRequestObject,
) (api.RevokeKeySecretResponseObject, error) {
	body, tag, err := m.revokeKeySecret(ctx, nil, in.Key, in.Secret)
	return api.RevokeKeySecret200JSONResponse{Body: body, Headers: api.RevokeKeySecret200ResponseHeaders{ETag: tag}}, err
}

// RevokeOrganizationKeySecret implements api.StrictServerInterface.
func (m *management) RevokeOrganizationKeySecret(
	ctx context.Context, in api.RevokeOrganizationKeySecretRequestObject,
) (api.RevokeOrganizationKeySecretResponseObject, error) {
	body, tag, err := m.revokeKeySecret(ctx, &in.Org, in.Key, in.Secret)
	return api.RevokeOrganizationKeySecret200JSONResponse{
		Body: body, Headers: api.RevokeOrganizationKeySecret200ResponseHeaders{ETag: tag},
	}, err
}
