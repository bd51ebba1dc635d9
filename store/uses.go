package store

import (
	"net/netip"
	"strings"
	"time"

	"github.com/supportstation/keystile/authz"
)

// When secrets and scopes were last used stands in tables of its own: a key's row must not
// change, and wake every replica, because the key was used.

// useEvery is how exact the last use is while there are more; once there are none for a
// second it is exact.
const useEvery = 10 * time.Second

// useTimes are those of what one count counts, in milliseconds since 1970.
type useTimes struct {
	// first is the first one that was not told, last the last one, told the last that was.
	first, last, told int64
	// network is that of the last.
	network netip.Prefix
}

// keyUse is a use that is told: the first and the last since the one before. The zero keyUse is none.
type keyUse struct {
	first, last int64
	network     netip.Prefix
}

func (t *useTimes) add(from sighting) {
	if t.first == 0 || from.at < t.first {
		t.first = from.at
	}
	if from.at >= t.last {
		t.last, t.network = from.at, from.network
	}
}

// take tells the use: when it is time again, or at the end of a series.
func (t *useTimes) take(end bool) (use keyUse, told bool) {
	if t.last == t.told || !end && t.last-t.told < useEvery.Milliseconds() {
		return keyUse{}, false
	}
	use = keyUse{t.first, t.last, t.network}
	t.told, t.first = t.last, 0
	return use, true
}

// useRecord is the use of a secret, or of a scope, as Postgres takes it.
type useRecord struct {
	KeyID    string  `json:"key_id"`
	SecretID string  `json:"secret_id,omitempty"`
	Scope    string  `json:"scope,omitempty"`
	FirstAt  float64 `json:"first_at"`
	At       float64 `json:"at"`
	CallerID *string `json:"caller_id"`
	Network  *string `json:"network"`
}

// merge keeps the first and the last of both.
func (r *useRecord) merge(other *useRecord) {
	if first := min(r.FirstAt, other.FirstAt); other.At > r.At {
		*r = *other
		r.FirstAt = first
	} else {
		r.FirstAt = first
	}
}

// useRecords are the uses that rows tell: of secrets that work, whatever policy and limits
// then said, and of the scopes that allowed requests needed.
func useRecords(rows []usageRow) (secrets, scopes []*useRecord) {
	secrets, scopes = []*useRecord{}, []*useRecord{}
	type named struct{ id, scope string }
	known := map[named]*useRecord{}
	for i := range rows {
		r := &rows[i]
		if r.use == (keyUse{}) || r.key.IsZero() || r.secret.IsZero() || !r.code.AskedPolicy() {
			continue
		}
		use := useRecord{KeyID: uuidOrZero(r.key), FirstAt: float64(r.use.first) / 1000, At: float64(r.use.last) / 1000}
		if !r.caller.IsZero() {
			id := uuidOrZero(r.caller)
			use.CallerID = &id
		}
		if n := r.use.network; n.IsValid() && n != noNetwork {
			text := n.String()
			use.Network = &text
		}
		note := func(list *[]*useRecord, name named, use useRecord) {
			if before := known[name]; before != nil {
				before.merge(&use)
				return
			}
			known[name] = &use
			*list = append(*list, &use)
		}
		ofSecret := use
		ofSecret.SecretID = uuidOrZero(r.secret)
		note(&secrets, named{id: ofSecret.SecretID}, ofSecret)
		if r.code != authz.CodeAllowed {
			continue
		}
		for _, scope := range strings.Fields(r.scopes) {
			use.Scope = scope
			note(&scopes, named{use.KeyID, scope}, use)
		}
	}
	return secrets, scopes
}
