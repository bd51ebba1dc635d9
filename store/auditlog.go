package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/supportstation/keystile/authz"
	"github.com/supportstation/keystile/authz/manage"
)

// auditRecord is a row as AppendAudit hands it over. before and after go as strings:
// their MAC is over the very bytes.
type auditRecord struct {
	ID             any             `json:"id"`
	OrganizationID any             `json:"organization_id"`
	Sequence       int64           `json:"sequence"`
	At             json.RawMessage `json:"at"`
	Revision       int64           `json:"revision"`
	ActorType      string          `json:"actor_type"`
	ActorID        string          `json:"actor_id"`
	Action         string          `json:"action"`
	Target         string          `json:"target"`
	Before         any             `json:"before"`
	After          any             `json:"after"`
	Address        any             `json:"address"`
	RequestID      string          `json:"request_id"`
	KeyID          string          `json:"key_id"`
	PreviousMAC    any             `json:"previous_mac"`
	MAC            string          `json:"mac"`
}

// AppendAudit implements manage.Writer, in one statement.
func (c *Change) AppendAudit(ctx context.Context, events []manage.AuditEvent) error {
	records := make([]auditRecord, len(events))
	for i := range events {
		e := &events[i]
		at, err := json.Marshal(e.At)
		if err != nil {
			return fmt.Errorf("append to the audit log: %w", err)
		}
		records[i] = auditRecord{
			ID: uuid(e.ID), OrganizationID: uuid(e.Chain), Sequence: e.Sequence, At: at, Revision: e.Revision,
			ActorType: e.ActorType, ActorID: e.ActorID, Action: e.Action, Target: e.Target, Before: document(e.Before),
			After: document(e.After), RequestID: e.RequestID, KeyID: e.KeyID, MAC: hex.EncodeToString(e.MAC),
		}
		if e.Address.IsValid() {
			records[i].Address = e.Address.String()
		}
		if e.PreviousMAC != nil {
			records[i].PreviousMAC = hex.EncodeToString(e.PreviousMAC)
		}
	}
	return c.insertRecords(ctx, everyone(), "append to the audit log", `
		INSERT INTO audit_log (id, organization_id, sequence, at, revision, actor_type, actor_id, action, target, before, after,
			address, request_id, key_id, previous_mac, mac)
		SELECT r.id, r.organization_id, r.sequence, r.at, $4::bigint, r.actor_type, r.actor_id, r.action, r.target,
			r.before::json, r.after::json, r.address, r.request_id, r.key_id, decode(r.previous_mac, 'hex'), decode(r.mac, 'hex')
		FROM json_to_recordset($3::json) AS r(id uuid, organization_id uuid, sequence bigint, at timestamptz,
			actor_type text, actor_id text, action text, target text, before text, after text, address text,
			request_id text, key_id text, previous_mac text, mac text)
		WHERE ($1::boolean OR r.organization_id = $2::uuid)`, len(records), records, c.revision)
}

// document is NULL for no document.
func document(text []byte) any {
	if text == nil {
		return nil
	}
	return string(text)
}

type headRow struct {
	Chain    authz.OrganizationID `db:"organization_id"`
	Sequence int64                `db:"sequence"`
	Revision int64                `db:"revision"`
	MAC      []byte               `db:"mac"`
}

func (r headRow) thing() (manage.ChainHead, error) { return manage.ChainHead(r), nil }

// ofChain is the condition for one chain, of $3. NULL needs its own words to use its index.
func ofChain(chain authz.OrganizationID) string {
	if chain.IsZero() {
		return ` AND organization_id IS NULL AND $3::uuid IS NULL`
	}
	return ` AND organization_id = $3::uuid`
}

// AuditHead implements manage.Writer.
func (c *Change) AuditHead(ctx context.Context, chain authz.OrganizationID) (manage.ChainHead, error) {
	heads, err := list[manage.ChainHead, headRow](ctx, &c.reads, "find the end of a chain", `
		SELECT organization_id, sequence, revision, mac FROM audit_log
		WHERE ($1::boolean OR organization_id = $2::uuid)`+ofChain(chain)+` ORDER BY sequence DESC LIMIT 1`,
		true, nil, chain)
	if err != nil || len(heads) == 0 {
		return manage.ChainHead{}, err
	}
	return heads[0], nil
}

// AuditChains implements manage.Reader. Each end is one step in the chain's index, and
// depends on no column that could have been changed to hide it.
func (r *reads) AuditChains(ctx context.Context, t manage.Tenant) ([]manage.ChainHead, error) {
	return list[manage.ChainHead, headRow](ctx, r, "find the ends of chains", `
		SELECT a.organization_id, a.sequence, a.revision, a.mac FROM organizations o CROSS JOIN LATERAL (
			SELECT organization_id, sequence, revision, mac FROM audit_log WHERE organization_id = o.id
			ORDER BY sequence DESC LIMIT 1) a
		WHERE ($1::boolean OR o.id = $2::uuid)
		UNION ALL
		(SELECT organization_id, sequence, revision, mac FROM audit_log WHERE organization_id IS NULL AND $1::boolean
		ORDER BY sequence DESC LIMIT 1)`, t.Everyone(), t.Organization())
}

// saneAt is NULL for what Go or JSON cannot hold, such as infinity: one such row must not
// hide all others.
const saneAt = `CASE WHEN at BETWEEN '0001-01-03' AND '9999-12-29' THEN at END`

type auditRow struct {
	ID          authz.EventID        `db:"id"`
	Chain       authz.OrganizationID `db:"organization_id"`
	Sequence    int64                `db:"sequence"`
	At          sql.NullTime         `db:"at"`
	Revision    int64                `db:"revision"`
	ActorType   string               `db:"actor_type"`
	ActorID     string               `db:"actor_id"`
	Action      string               `db:"action"`
	Target      string               `db:"target"`
	Before      []byte               `db:"before"`
	After       []byte               `db:"after"`
	Address     sql.NullString       `db:"address"`
	RequestID   sql.NullString       `db:"request_id"`
	KeyID       string               `db:"key_id"`
	PreviousMAC []byte               `db:"previous_mac"`
	MAC         []byte               `db:"mac"`
}

// thing keeps what cannot be read as it is: a row that was meddled with must come out
// for its MAC to be found wrong.
func (r auditRow) thing() (manage.AuditEvent, error) { //nolint:unparam // list asks for it
	address, _ := netip.ParseAddr(r.Address.String)
	return manage.AuditEvent{
		ID: r.ID, Chain: r.Chain, Sequence: r.Sequence, At: utc(r.At), Revision: r.Revision, ActorType: r.ActorType,
		ActorID: r.ActorID, Action: r.Action, Target: r.Target, Before: r.Before, After: r.After, Address: address,
		RequestID: r.RequestID.String, KeyID: r.KeyID, PreviousMAC: r.PreviousMAC, MAC: r.MAC,
	}, nil
}

// AuditEvents implements manage.Reader.
func (r *reads) AuditEvents(
	ctx context.Context, t manage.Tenant, chain authz.OrganizationID, f manage.AuditFilter,
) ([]manage.AuditEvent, error) {
	page := ` AND ($6::bigint = 0 OR sequence < $6::bigint) ORDER BY sequence DESC LIMIT $7`
	if f.OldestFirst {
		page = ` AND sequence > $6::bigint ORDER BY sequence LIMIT $7`
	}
	return list[manage.AuditEvent, auditRow](ctx, r, "read the audit log", `
		SELECT id, organization_id, sequence, `+saneAt+` AS at, revision, actor_type, actor_id, action, target, before, after,
			address, request_id, key_id, previous_mac, mac
		FROM audit_log WHERE ($1::boolean OR organization_id = $2::uuid)`+ofChain(chain)+`
			AND ($4::text = '' OR action = $4::text) AND ($5::text = '' OR target = $5::text)`+page,
		t.Everyone(), t.Organization(), chain, f.Action, f.Target, f.After, f.Limit)
}
