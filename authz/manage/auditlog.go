package manage

import (
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/supportstation/keystile/authz"
)

// AuditEvent is one row of the audit log: one management change. Rows form one
// chain for the platform and one for each organization.
type AuditEvent struct {
	ID authz.EventID
	// Chain is whose chain it is in; zero for the platform's.
	Chain authz.OrganizationID
	// Sequence counts from 1 in its chain, without gaps.
	Sequence int64
	// At is in whole microseconds, UTC.
	At time.Time
	// Revision is that of the change's transaction.
	Revision           int64
	ActorType, ActorID string
	// Action is resource.verb, for example keys.revoke; Target is the thing's id.
	Action, Target string
	// Before and After are JSON objects, or nil; never with a secret.
	Before, After []byte
	// Address is the actor's; the zero Addr is unknown.
	Address   netip.Addr
	RequestID string
	// KeyID names the key of the MAC.
	KeyID string
	// PreviousMAC is the MAC of the row before; nil for the first.
	PreviousMAC []byte
	// MAC is HMAC-SHA-256 over everything above.
	MAC []byte
}

// ChainHead is the last row of a chain. The zero ChainHead is that of a chain
// without rows.
type ChainHead struct {
	Chain    authz.OrganizationID
	Sequence int64
	Revision int64
	MAC      []byte
}

// auditKeyLabel parts the audit log's keys from the peppers that they may be made of.
const auditKeyLabel = "keystile audit log v1"

// AuditKeys returns the keys of the audit log: those that are configured, else keys
// derived from the peppers. They never stand in the database: who can write rows
// there cannot make their MACs.
func AuditKeys(configured, peppers authz.Peppers) authz.Peppers {
	if len(configured.IDs()) > 0 {
		return configured
	}
	return peppers.Derive(auditKeyLabel)
}

// seal gives e its place behind head and its MAC under the first key.
func (e *AuditEvent) seal(keys authz.Peppers, head ChainHead) error {
	ids := keys.IDs()
	if len(ids) == 0 {
		return authz.ErrNoPepper
	}
	e.Sequence, e.PreviousMAC, e.KeyID = head.Sequence+1, head.MAC, ids[0]
	mac, err := keys.MAC(e.KeyID, e.appendSealed(nil))
	if err != nil {
		return fmt.Errorf("seal a row of the audit log: %w", err)
	}
	e.MAC = mac[:]
	return nil
}

// sealed tells whether the MAC is the row's own. known is false when its key is not
// among the keys.
func (e *AuditEvent) sealed(keys authz.Peppers) (valid, known bool) {
	mac, err := keys.MAC(e.KeyID, e.appendSealed(nil))
	if err != nil {
		return false, false
	}
	return hmac.Equal(mac[:], e.MAC), true
}

// appendSealed appends what the MAC is over: every field behind its length, so that
// no two rows have the same text.
func (e *AuditEvent) appendSealed(b []byte) []byte {
	field := func(text []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(text))) //nolint:gosec // bounded far below
		b = append(b, text...)
	}
	number := func(n int64) { b = binary.BigEndian.AppendUint64(b, uint64(n)) } //nolint:gosec // bits, not a quantity
	optional := func(text []byte) {
		if text == nil {
			b = append(b, 0)
			return
		}
		b = append(b, 1)
		field(text)
	}
	field([]byte("keystile audit row v1"))
	field([]byte(chainName(e.Chain)))
	number(e.Sequence)
	field(e.ID.AppendTo(nil))
	number(e.At.UnixMicro())
	number(e.Revision)
	for _, text := range []string{e.ActorType, e.ActorID, e.Action, e.Target} {
		field([]byte(text))
	}
	optional(e.Before)
	optional(e.After)
	address := ""
	if e.Address.IsValid() {
		address = e.Address.String()
	}
	field([]byte(address))
	field([]byte(e.RequestID))
	field([]byte(e.KeyID))
	optional(e.PreviousMAC)
	return b
}

// platformChain is the name of the chain that belongs to no organization.
const platformChain = "platform"

func chainName(id authz.OrganizationID) string {
	if id.IsZero() {
		return platformChain
	}
	return id.String()
}
