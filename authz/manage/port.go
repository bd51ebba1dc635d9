package manage

import (
	"context"
	"errors"
	"time"

	"github.com/supportstation/keystile/authz"
)

// ErrNotFound says that there is no such row within the Tenant: unknown and foreign
// are one.
var ErrNotFound = errors.New("not found")

// ConflictError says that a change would break something that is unique.
type ConflictError struct {
	// Field is external_id or name.
	Field string
}

// Error implements error.
func (e *ConflictError) Error() string { return e.Field + " is taken" }

// Store keeps what is managed. It is implemented by store. Safe for concurrent use.
type Store interface {
	// Read runs fn on one consistent snapshot.
	Read(ctx context.Context, fn func(context.Context, Reader) error) error
	// Write runs fn in one transaction under the next revision. Transactions run one
	// after the other, each seeing all before it. It commits, and wakes every
	// replica, when fn returns nil and keep is true; else nothing is kept. It returns
	// the revision under which the change is visible. A ctx that ends while the
	// transaction still waits for its turn ends it; once fn runs, it is run to its end.
	Write(ctx context.Context, keep bool, fn func(context.Context, Writer) error) (revision int64, err error)
	// Effective waits until all live replicas have applied a revision, a second at
	// most, and tells how far it got.
	Effective(ctx context.Context, revision int64) (Effective, error)
	// Counted waits until all live replicas have written what they had counted before they
	// applied a revision, a few seconds at most, and tells which have.
	Counted(ctx context.Context, revision int64) (Effective, error)
	// PolicyEffective is Effective for a policy: it waits until all live replicas decide by it.
	PolicyEffective(ctx context.Context, policyRevision string) (Effective, error)
	// Replicas lists the replicas that may still serve, and the current revision.
	Replicas(ctx context.Context) ([]Replica, int64, error)
}

// Page is a part of a list, newest first: at most Limit rows with an id smaller than
// After, in its kind's text form; "" is the first page.
type Page struct {
	After string
	Limit int
}

// OrganizationFilter narrows a list; empty fields do not.
type OrganizationFilter struct {
	// Status "" lists all but the deleted.
	Status     string
	ExternalID string
}

// KeyFilter narrows a list; empty fields do not.
type KeyFilter struct {
	Status      string
	Environment authz.Environment
	Scope       authz.Scope
	ExternalID  string
	// Unused true lists keys that were never used, false those that were.
	Unused *bool
}

// AdminFilter narrows a list; empty fields do not.
type AdminFilter struct {
	Status       string
	Organization authz.OrganizationID
}

// AuditFilter narrows a list of a chain; empty fields do not.
type AuditFilter struct {
	Action string
	Target string
	// OldestFirst follows the chain; else it is the other way.
	OldestFirst bool
	// After is the sequence behind which the page begins; 0 is the first page.
	After int64
	Limit int
}

// Reader reads within a Tenant. Methods that return one thing return ErrNotFound
// for what is not there or not within. Lists are newest first.
type Reader interface {
	// Now is Postgres' time of the transaction.
	Now() time.Time

	Organization(ctx context.Context, t Tenant, id authz.OrganizationID) (*Organization, error)
	Organizations(ctx context.Context, t Tenant, f OrganizationFilter, p Page) ([]Organization, error)

	// Key finds a key of an organization, or of any within when it is zero.
	Key(ctx context.Context, t Tenant, organization authz.OrganizationID, id authz.KeyID) (*Key, error)
	Keys(ctx context.Context, t Tenant, organization authz.OrganizationID, f KeyFilter, p Page) ([]Key, error)
	// CountKeys counts an organization's keys that are neither revoked nor expired.
	CountKeys(ctx context.Context, t Tenant, organization authz.OrganizationID) (int, error)
	// CountCallerTokens counts callers' tokens that work.
	CountCallerTokens(ctx context.Context, t Tenant) (int, error)

	// Callers belong to nobody: they are within Everyone alone.
	Caller(ctx context.Context, t Tenant, id authz.CallerID) (*Caller, error)
	Callers(ctx context.Context, t Tenant, status string, p Page) ([]Caller, error)

	// Platform admins are within Everyone alone.
	Admin(ctx context.Context, t Tenant, id authz.AdminID) (*Admin, error)
	Admins(ctx context.Context, t Tenant, f AdminFilter, p Page) ([]Admin, error)

	// Activations lists how policies came into force, newest first: at most limit of those
	// before the change before, or from the newest on when it is 0. Policies belong to
	// nobody: they are within Everyone alone.
	Activations(ctx context.Context, t Tenant, before int64, limit int) ([]authz.PolicyActivation, error)
	// PolicyArchive returns a policy that was activated, whole.
	PolicyArchive(ctx context.Context, t Tenant, policyRevision string) ([]byte, error)

	// PolicyShadow returns the newest shadow, over or not. It is within Everyone alone.
	PolicyShadow(ctx context.Context, t Tenant) (*authz.PolicyShadow, error)
	// PolicyShadowReport adds what came of a shadow, on all replicas, with at most so many
	// differences.
	PolicyShadowReport(ctx context.Context, t Tenant, out *authz.PolicyShadowReport, differences int) error

	// Recorded hands out the requests that policy was asked about, those of one key together;
	// RecordedRequests is how many there are.
	Recorded(ctx context.Context, t Tenant, f RecordedFilter, each func(authz.Recorded) error) error
	RecordedRequests(ctx context.Context, t Tenant, f RecordedFilter) (int64, error)

	// Usage tells what was asked of an organization's keys, or of one: nothing where the
	// organization is not within. Series has the steps in which something was asked, Secrets all
	// secrets that are known of, Scopes those that were used.
	Usage(ctx context.Context, t Tenant, f UsageFilter) (*Usage, error)
	// Evidence hands out what is known of each key that was there, used or not, by id;
	// EvidenceKeys is how many there are. The Evidence is each's only while it runs.
	Evidence(ctx context.Context, t Tenant, f EvidenceFilter, each func(*authz.Evidence) error) error
	EvidenceKeys(ctx context.Context, t Tenant, f EvidenceFilter) (int64, error)
	// KeyTraffic reads what was recorded of one key.
	KeyTraffic(ctx context.Context, t Tenant, f KeyTrafficFilter) (*KeyTraffic, error)
	// KeyNarrowing returns the newest narrowing of a key that was not undone and was made
	// after since.
	KeyNarrowing(ctx context.Context, t Tenant, key authz.KeyID, since time.Time) (*KeyNarrowing, error)

	// Decision finds a decision that is kept. Those of no organization are within Everyone alone.
	Decision(ctx context.Context, t Tenant, id authz.DecisionID) (*Decision, error)

	// AuditEvents lists one chain; the platform's (zero) is within Everyone alone.
	AuditEvents(ctx context.Context, t Tenant, chain authz.OrganizationID, f AuditFilter) ([]AuditEvent, error)
	// AuditChains lists the organizations within that have a chain, each with its
	// last row, and the platform's (zero) for Everyone.
	AuditChains(ctx context.Context, t Tenant) ([]ChainHead, error)
}

// Writer is one transaction that changes. Whatever it writes carries the
// transaction's revision. Writes that touch no row within the Tenant return
// ErrNotFound; what is unique and taken is a *ConflictError.
type Writer interface {
	Reader

	Revision() int64
	// StillLive tells whether an admin and its token may be used as of this
	// transaction: it may have been removed since it was recognized.
	StillLive(ctx context.Context, a *authz.Admin) (bool, error)

	InsertOrganization(ctx context.Context, t Tenant, o *Organization) error
	// UpdateOrganization writes name, external id, plan, metadata, suspension and
	// deletion, and raises o.Version.
	UpdateOrganization(ctx context.Context, t Tenant, o *Organization) error

	// InsertKey stores a key with its first secret.
	InsertKey(ctx context.Context, t Tenant, k *Key, secret authz.Secret) error
	// UpdateKey writes all that can change but the secrets, and raises k.Version.
	UpdateKey(ctx context.Context, t Tenant, k *Key) error
	// InsertKeyNarrowing keeps what was taken from a key; it sets n.Revision and n.At.
	InsertKeyNarrowing(ctx context.Context, t Tenant, n *KeyNarrowing) error
	// EndKeyNarrowing writes n.UndoneAt and n.UndoneBy.
	EndKeyNarrowing(ctx context.Context, t Tenant, n *KeyNarrowing) error
	// InsertSecret adds a further secret to a key.
	InsertSecret(ctx context.Context, t Tenant, k *Key, s *KeySecret, secret authz.Secret) error
	// EndSecret writes a secret's ExpiresAt and RevokedAt.
	EndSecret(ctx context.Context, t Tenant, k *Key, s *KeySecret) error
	// RevokeKeys revokes all keys of an organization, and returns how many were not.
	RevokeKeys(ctx context.Context, t Tenant, organization authz.OrganizationID) (int, error)
	// RevokeAdmins revokes all admins of an organization.
	RevokeAdmins(ctx context.Context, t Tenant, organization authz.OrganizationID) (int, error)
	// ImportKeys stores keys by the hash of their one secret. Hashes that are there
	// already, in any organization or of any token, are left out; their indexes are returned.
	ImportKeys(ctx context.Context, t Tenant, keys []ImportedKey) (duplicates []int, err error)
	// DeclareFormat lets secrets of a foreign format pass to look-ups, and tells whether
	// they did not before.
	DeclareFormat(ctx context.Context, t Tenant, f authz.ForeignFormat) (declared bool, err error)

	InsertCaller(ctx context.Context, t Tenant, c *Caller, token authz.Secret) error
	// UpdateCaller writes the revocation.
	UpdateCaller(ctx context.Context, t Tenant, c *Caller) error
	InsertCallerToken(ctx context.Context, t Tenant, c *Caller, token *Token, secret authz.Secret) error
	// EndCallerToken writes a token's ExpiresAt and RevokedAt.
	EndCallerToken(ctx context.Context, t Tenant, c *Caller, token *Token) error

	InsertAdmin(ctx context.Context, t Tenant, a *Admin, token authz.Secret) error
	// UpdateAdmin writes expiry and revocation.
	UpdateAdmin(ctx context.Context, t Tenant, a *Admin) error
	InsertAdminToken(ctx context.Context, t Tenant, a *Admin, token *Token, secret authz.Secret) error
	// EndAdminToken writes a token's ExpiresAt and RevokedAt.
	EndAdminToken(ctx context.Context, t Tenant, a *Admin, token *Token) error
	// OtherPlatformAdmins counts those that are live, but for one.
	OtherPlatformAdmins(ctx context.Context, but authz.AdminID) (int, error)
	// Bootstrap claims the one bootstrap of this database's life; false when it, or
	// any admin, has been there before.
	Bootstrap(ctx context.Context) (bool, error)

	// ActivatePolicy puts a policy in force for all replicas, with this transaction; it sets
	// a.Change and a.At. The archive is nil for one that is kept already, or the built-in one.
	ActivatePolicy(ctx context.Context, t Tenant, a *authz.PolicyActivation, archive []byte) error

	// StartPolicyShadow has all replicas ask a policy, given whole, in place of the one before,
	// which is forgotten with what came of it; it sets s.Change.
	StartPolicyShadow(ctx context.Context, t Tenant, s *authz.PolicyShadow, archive []byte) error
	// EndPolicyShadow writes why a shadow has ended.
	EndPolicyShadow(ctx context.Context, t Tenant, s authz.PolicyShadow) error

	// AuditHead returns a chain's last row; the zero head for a new chain.
	AuditHead(ctx context.Context, chain authz.OrganizationID) (ChainHead, error)
	AppendAudit(ctx context.Context, events []AuditEvent) error

	// Remembered returns the answer that was given to a request, nil when there is
	// none within 24 hours.
	Remembered(ctx context.Context, s IdempotencyScope) (*Remembered, error)
	Remember(ctx context.Context, s IdempotencyScope, r Remembered) error
}

// ImportedKey is a key with the hash of a secret that another system has made.
type ImportedKey struct {
	Key  Key
	Hash authz.SecretHash
}

// IdempotencyScope is where one Idempotency-Key means one request.
type IdempotencyScope struct {
	Actor authz.AdminID
	// Operation is method and route, with the organization where the route has one.
	Operation string
	// KeyHash is the SHA-256 of the Idempotency-Key.
	KeyHash [32]byte
}

// Remembered is an answer that has been given; never a secret.
type Remembered struct {
	// Fingerprint is a hash of the request.
	Fingerprint [32]byte
	// Answer is JSON.
	Answer []byte
	// Revision is that of the change.
	Revision int64
}
