package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"time"

	"github.com/lib/pq"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// keptDecision is one row of decisions.
type keptDecision struct {
	ID             authz.DecisionID     `db:"id"`
	At             time.Time            `db:"at"`
	OrganizationID authz.OrganizationID `db:"organization_id"`
	KeyID          authz.KeyID          `db:"key_id"`
	SecretID       authz.SecretID       `db:"secret_id"`
	CallerID       authz.CallerID       `db:"caller_id"`
	Environment    string               `db:"environment"`
	Method         string               `db:"method"`
	Route          string               `db:"route"`
	Action         string               `db:"action"`
	Code           string               `db:"code"`
	Status         int                  `db:"status"`
	Reasons        pq.StringArray       `db:"reasons"`
	Required       pq.StringArray       `db:"required"`
	Missing        pq.StringArray       `db:"missing"`
	PolicyRevision string               `db:"policy_revision"`
	Network        sql.NullString       `db:"network"`
	Degraded       pq.StringArray       `db:"degraded"`
	Browser        bool                 `db:"browser"`
}

func (r keptDecision) thing() (manage.Decision, error) {
	d := manage.Decision{
		ID: r.ID, At: r.At.UTC(), Organization: r.OrganizationID, Key: r.KeyID, Secret: r.SecretID, Caller: r.CallerID,
		Environment: authz.Environment(r.Environment), Method: r.Method, Route: r.Route, Action: r.Action,
		Code: authz.Code(r.Code), Status: r.Status, Reasons: strung[authz.Code](r.Reasons),
		Required: strung[authz.Scope](r.Required), Missing: strung[authz.Scope](r.Missing), PolicyRevision: r.PolicyRevision,
		Degraded: r.Degraded, Browser: r.Browser,
	}
	if r.Network.Valid {
		var err error
		if d.Network, err = netip.ParsePrefix(r.Network.String); err != nil {
			return d, fmt.Errorf("the network of a decision: %w", err)
		}
	}
	return d, nil
}

// Decision implements manage.Reader. What no organization owns is Everyone's alone.
func (r *reads) Decision(ctx context.Context, t manage.Tenant, id authz.DecisionID) (*manage.Decision, error) {
	return one[manage.Decision, keptDecision](ctx, r, "read a decision", `
		SELECT id, at, organization_id, key_id, secret_id, caller_id, environment, method, route, action, code, status,
			reasons, required, missing, policy_revision, network::text AS network, degraded, browser
		FROM decisions WHERE ($1::boolean OR organization_id = $2::uuid) AND id = $3::uuid`, t.Everyone(), t.Organization(), id)
}
