package manage

import (
	"context"

	"github.com/supportstation/keystile/authz"
)

// Catalogue returns the scopes and plans of the policy that is in force.
func (s *Service) Catalogue(ctx context.Context, r Request) (authz.Catalogue, error) {
	var out authz.Catalogue
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		own, err := s.ownOrganization(ctx, re, r)
		if err != nil {
			return err
		}
		out = s.policy.Catalogue()
		return s.may(ctx, r, operation{"scopes.list", readers()}, own, nil)
	})
	if err != nil {
		return authz.Catalogue{}, err
	}
	return out, nil
}

// Replicas lists the replicas and the revision that changes have reached. Platform
// admins alone.
func (s *Service) Replicas(ctx context.Context, r Request) ([]Replica, int64, error) {
	if err := s.may(ctx, r, operation{action: "replicas.list"}, nil, nil); err != nil {
		return nil, 0, err
	}
	replicas, revision, err := s.store.Replicas(ctx)
	return replicas, revision, translate(err)
}
