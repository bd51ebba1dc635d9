package store

import (
	"context"
	"fmt"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

const (
	// recordedAtOnce bounds the rows of recorded requests in memory.
	recordedAtOnce = 10_000
	// maxKnownShapes bounds the shapes in memory; then they are read anew.
	maxKnownShapes = 200_000
)

// recordedWhere picks what policy was asked about. Its arguments are the tenant, the
// organization (NULL for all), and from when until when.
const recordedWhere = `
	WHERE ($1::boolean OR u.organization_id = $2::uuid) AND ($3::uuid IS NULL OR u.organization_id = $3::uuid)
		AND u.hour >= $4::timestamptz AND u.hour < $5::timestamptz
		AND u.key_id <> '` + noUUID + `'::uuid AND u.shape_id <> '` + noUUID + `'::uuid`

// RecordedRequests implements manage.Reader.
func (r *reads) RecordedRequests(ctx context.Context, t manage.Tenant, f manage.RecordedFilter) (int64, error) {
	var n int64
	err := r.tx.GetContext(ctx, &n, `SELECT COALESCE(sum(u.requests), 0)::bigint FROM usage_hours u`+recordedWhere, recordedArgs(t, f)...)
	return n, translate("count recorded requests", err)
}

func recordedArgs(t manage.Tenant, f manage.RecordedFilter) []any {
	return []any{t.Everyone(), t.Organization(), f.Organization, f.Since, f.Until}
}

// Recorded implements manage.Reader. It reads by a cursor, so that whatever there is takes no
// more memory than a part of it.
func (r *reads) Recorded(ctx context.Context, t manage.Tenant, f manage.RecordedFilter, each func(authz.Recorded) error) error {
	callers, err := r.callersByID(ctx, t)
	if err != nil {
		return err
	}
	_, err = r.tx.ExecContext(ctx, `
		DECLARE recorded NO SCROLL CURSOR FOR
		SELECT u.key_id, u.caller_id, u.shape_id, sum(u.requests)::bigint AS requests
		FROM usage_hours u`+recordedWhere+`
		GROUP BY u.key_id, u.caller_id, u.shape_id ORDER BY u.key_id`, recordedArgs(t, f)...)
	if err != nil {
		return translate("read recorded requests", err)
	}
	shapes := map[string]authz.Shape{}
	for {
		var rows []recordedRow
		if err := r.tx.SelectContext(ctx, &rows, fmt.Sprintf(`FETCH %d FROM recorded`, recordedAtOnce)); err != nil {
			return translate("read recorded requests", err)
		}
		if len(rows) == 0 {
			_, err := r.tx.ExecContext(ctx, `CLOSE recorded`)
			return translate("read recorded requests", err)
		}
		keys, err := r.recordedKeys(ctx, t, rows)
		if err != nil {
			return err
		}
		if err := r.recordedShapes(ctx, shapes, rows); err != nil {
			return err
		}
		for _, row := range rows {
			shape, known := shapes[row.ShapeID]
			if !known {
				shape = authz.CollapsedShape() // whatever became of it
			}
			recorded := authz.Recorded{Key: keys[row.KeyID], Caller: callers[row.CallerID], Shape: shape, Requests: row.Requests}
			if recorded.Key == nil || recorded.Caller == nil {
				recorded = authz.Recorded{Shape: shape, Requests: row.Requests}
			}
			if err := each(recorded); err != nil {
				return err
			}
		}
	}
}

type recordedRow struct {
	KeyID    authz.KeyID    `db:"key_id"`
	CallerID authz.CallerID `db:"caller_id"`
	ShapeID  string         `db:"shape_id"`
	Requests int64          `db:"requests"`
}

// recordedKeys are the rows' keys that policy is still asked about.
func (r *reads) recordedKeys(ctx context.Context, t manage.Tenant, rows []recordedRow) (map[authz.KeyID]*authz.Key, error) {
	var ids pq.StringArray
	for i, row := range rows {
		if i == 0 || rows[i-1].KeyID != row.KeyID {
			ids = append(ids, uuidOrZero(row.KeyID))
		}
	}
	keys, err := r.keysOf(ctx, t, ids)
	for id, k := range keys {
		if !k.Asked(r.now) {
			delete(keys, id)
		}
	}
	return keys, err
}

// keysOf are keys as checks know them, but for those that cannot be read.
func (r *reads) keysOf(ctx context.Context, t manage.Tenant, ids pq.StringArray) (map[authz.KeyID]*authz.Key, error) {
	var found []keyRow
	err := r.tx.SelectContext(ctx, &found, `
		SELECT `+keyColumns+`, `+keyFinite+` AS finite
		FROM api_keys k JOIN organizations o ON o.id = k.organization_id
		WHERE ($1::boolean OR k.organization_id = $2::uuid) AND k.id = ANY ($3::uuid[])`, t.Everyone(), t.Organization(), ids)
	if err != nil {
		return nil, translate("read the keys of recorded requests", err)
	}
	keys := make(map[authz.KeyID]*authz.Key, len(found))
	organizations := map[authz.OrganizationID]*authz.Organization{}
	for i := range found {
		row := &found[i]
		organization := organizations[row.OrganizationID]
		if organization == nil {
			if organization, err = row.organization(); err != nil {
				continue // a bad row is not decided, nor asked about
			}
			organizations[row.OrganizationID] = organization
		}
		if k, err := row.keyOf(organization); err == nil {
			keys[k.ID] = k
		}
	}
	return keys, nil
}

// recordedShapes adds those of the rows that are not known yet. Shapes are nobody's: what
// tells tenants apart is not in them.
func (r *reads) recordedShapes(ctx context.Context, known map[string]authz.Shape, rows []recordedRow) error {
	if len(known) > maxKnownShapes {
		clear(known)
	}
	var ids pq.StringArray
	wanted := map[string]bool{}
	for _, row := range rows {
		if _, ok := known[row.ShapeID]; !ok && !wanted[row.ShapeID] {
			wanted[row.ShapeID] = true
			ids = append(ids, row.ShapeID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	var found []struct {
		ID                   string              `db:"id"`
		Policy               string              `db:"policy"`
		Method               string              `db:"method"`
		Path                 string              `db:"path"`
		Route                string              `db:"route"`
		Ambiguous            bool                `db:"ambiguous"`
		Collapsed            bool                `db:"collapsed"`
		Action               string              `db:"action"`
		Environment          authz.Environment   `db:"environment"`
		ResourceType         string              `db:"resource_type"`
		ResourceID           bool                `db:"resource_id"`
		ResourceOrganization authz.ResourceOwner `db:"resource_organization"`
		Address              authz.AddressKind   `db:"address"`
		Relative             int64               `db:"relative"`
		Browser              bool                `db:"browser"`
		Stale                bool                `db:"stale"`
	}
	err := r.tx.SelectContext(ctx, &found, `
		SELECT id, policy, method, path, route, ambiguous, collapsed, action, environment, resource_type, resource_id,
			resource_organization, address, relative, browser, stale
		FROM usage_shapes WHERE id = ANY ($1::uuid[])`, ids)
	if err != nil {
		return translate("read recorded shapes", err)
	}
	for _, s := range found {
		known[s.ID] = authz.Shape{
			Policy: s.Policy, Method: s.Method, Path: s.Path, Route: s.Route, Ambiguous: s.Ambiguous, Collapsed: s.Collapsed, Action: s.Action,
			Environment: s.Environment, ResourceType: s.ResourceType, ResourceID: s.ResourceID,
			ResourceOrganization: s.ResourceOrganization, Address: s.Address,
			Relative: uint64(s.Relative), //nolint:gosec // the same bits
			Browser:  s.Browser, Stale: s.Stale,
		}
	}
	return nil
}

// callersByID are those that are there now, as checks know them.
func (r *reads) callersByID(ctx context.Context, t manage.Tenant) (map[authz.CallerID]*authz.Caller, error) {
	return r.readCallersForPolicy(ctx, `
		SELECT id, name, environments FROM callers WHERE $1::boolean AND disabled_at IS NULL AND revoked_at IS NULL`, t.Everyone())
}

// readCallersForPolicy reads what policy sees of callers.
func (r *reads) readCallersForPolicy(ctx context.Context, query string, args ...any) (map[authz.CallerID]*authz.Caller, error) {
	var rows []struct {
		ID           authz.CallerID `db:"id"`
		Name         string         `db:"name"`
		Environments pq.StringArray `db:"environments"`
	}
	if err := r.tx.SelectContext(ctx, &rows, query, args...); err != nil {
		return nil, translate("read the callers of recorded requests", err)
	}
	callers := make(map[authz.CallerID]*authz.Caller, len(rows))
	for _, row := range rows {
		callers[row.ID] = &authz.Caller{ID: row.ID, Name: row.Name, Environments: strung[authz.Environment](row.Environments)}
	}
	return callers, nil
}
