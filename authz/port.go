package authz

import (
	"context"
	"time"
)

// Clock tells the time by which everything expires: Postgres' own, as an offset
// on this machine's monotonic clock. Safe for concurrent use.
type Clock interface{ Now() time.Time }

// FoundKey is what a look-up knows of a presented secret. The zero FoundKey is an
// unknown key.
type FoundKey struct {
	// Key is nil when no key has such a secret.
	Key *Key
	// Secret is the one of the key's secrets that was presented.
	Secret *KeySecret
	// Degraded tells that the store does not answer and the record comes from memory.
	Degraded bool
	// Stale tells that the record has not been confirmed for so long that policy may care.
	Stale bool
}

// KeyReader finds keys. It is implemented by the store.
type KeyReader interface {
	// FindKey returns the key that has the secret with this hash, in whatever state
	// the key is: revoked, expired and disabled keys are found. The zero FoundKey
	// means that the store has answered and there is none.
	//
	// An error of KindUnavailable means that it could not be found out, one of
	// KindThrottled that this caller has more look-ups waiting than its share.
	// Called by Checker alone, concurrently.
	FindKey(ctx context.Context, caller CallerID, hash SecretHash) (FoundKey, error)
}

// CallerReader finds callers. It is implemented by the store.
type CallerReader interface {
	// FindCaller returns the caller that has the token with this hash, in whatever
	// state it is, or nil when the store has answered and there is none.
	//
	// An error of KindUnavailable means that it could not be found out.
	// Called by Callers alone, concurrently.
	FindCaller(ctx context.Context, hash SecretHash) (*Caller, error)
}

// DecisionRecorder takes note of what was decided. It is implemented by the store and by
// authz/decisionlog.
type DecisionRecorder interface {
	// Decided is told of every decision, after it is made and before it is answered. It must
	// not block. Records of keys, secrets and callers are never changed and may be kept;
	// everything else of q and d is the asker's, and is copied (RecordDecision) or let go.
	// Called by Checker alone, concurrently.
	Decided(q *Check, d *Decision)
}

// PolicyEvaluator lets policy decide. It is implemented by authz/policy.
type PolicyEvaluator interface {
	// Evaluate asks the active policy about one check of one key. An error means
	// that it could not be decided (no policy, a failed or endless evaluation, an
	// answer that is not a decision); the Verdict is then zero but for its Revision.
	// Neither argument is changed or kept.
	// Called by Checker alone, concurrently.
	Evaluate(ctx context.Context, k *Key, c *Check) (Verdict, error)
	// Revision returns the active policy's revision, "" before the first.
	Revision() string
}

// Verdict is a policy's answer. The zero Verdict denies.
type Verdict struct {
	Allow    bool
	Reasons  []Reason
	Required []Scope
	Missing  []Scope
	// Route is the template that the path matched, or "".
	Route string
	// Cataloged tells that Route is a template of the policy's catalogue, and not a text that
	// it made up.
	Cataloged bool
	// Limits are asked in this order; a single one named Unlimited means none.
	Limits []Limit
	// Revision is the revision that answered.
	Revision string
}

// Reason is one reason of a decision.
type Reason struct {
	Code Code
	// Message is a sentence for humans.
	Message string
	// Status overrides the code's HTTP status: 404 with unknown_route alone. 0 means
	// the code's own.
	Status int
}
