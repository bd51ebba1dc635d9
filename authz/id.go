package authz

import (
	"bytes"
	"crypto/rand"
	"database/sql/driver"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// ID is a TypeID (https://github.com/jetify-com/typeid): a short prefix that
// tells the kind, an underscore, and the 128 bits of a UUIDv7 as 26 lower-case
// Crockford base32 characters. The kind is part of the Go type, so that a key's
// id never passes for an organization's. The zero ID names nothing.
//
// In Postgres an ID is a uuid: it implements driver.Valuer and sql.Scanner.
type ID[K IDKind] struct{ uuid [16]byte }

// IDKind gives an ID its prefix. It is implemented by the kinds of this package alone.
type IDKind interface{ idPrefix() string }

// The kinds of ids and their prefixes.
type (
	// OrganizationID is written org_….
	OrganizationID = ID[organizationKind]
	// KeyID is written key_….
	KeyID = ID[keyKind]
	// SecretID is written sec_….
	SecretID = ID[secretKind]
	// DecisionID is written dec_….
	DecisionID = ID[decisionKind]
	// CallerID is written caller_….
	CallerID = ID[callerKind]
	// AdminID is written admin_….
	AdminID = ID[adminKind]
	// EventID is written evt_…; it names a row of the audit log.
	EventID = ID[eventKind]

	organizationKind struct{}
	keyKind          struct{}
	secretKind       struct{}
	decisionKind     struct{}
	callerKind       struct{}
	adminKind        struct{}
	eventKind        struct{}
)

func (organizationKind) idPrefix() string { return "org" }
func (keyKind) idPrefix() string          { return "key" }
func (secretKind) idPrefix() string       { return "sec" }
func (decisionKind) idPrefix() string     { return "dec" }
func (callerKind) idPrefix() string       { return "caller" }
func (adminKind) idPrefix() string        { return "admin" }
func (eventKind) idPrefix() string        { return "evt" }

const (
	crockford = "0123456789abcdefghjkmnpqrstvwxyz"
	// idSuffixLen is the length of 128 bits in base32: 26 characters, the first at most '7'.
	idSuffixLen = 26
)

// errID is what ParseID says; it never repeats the text it was given.
var errID = errors.New("not an id of this kind")

// newID makes an id from the given time (its first 48 bits, in milliseconds) and
// 74 random bits of crypto/rand, as RFC 9562 §5.7 says for UUIDv7.
func newID[K IDKind](now time.Time) ID[K] {
	var id ID[K]
	_, _ = rand.Read(id.uuid[6:]) // documented never to fail
	ms := uint64(max(now.UnixMilli(), 0))
	binary.BigEndian.PutUint32(id.uuid[0:4], uint32(ms>>16)) //nolint:gosec // the upper 32 of 48 bits
	binary.BigEndian.PutUint16(id.uuid[4:6], uint16(ms))     //nolint:gosec // the lower 16 of 48 bits
	id.uuid[6] = 0x70 | id.uuid[6]&0x0f
	id.uuid[8] = 0x80 | id.uuid[8]&0x3f
	return id
}

// NewOrganizationID makes an organization's id.
func NewOrganizationID(now time.Time) OrganizationID { return newID[organizationKind](now) }

// NewKeyID makes a key's id.
func NewKeyID(now time.Time) KeyID { return newID[keyKind](now) }

// NewSecretID makes the id of a key's secret or of a token.
func NewSecretID(now time.Time) SecretID { return newID[secretKind](now) }

// NewCallerID makes a caller's id.
func NewCallerID(now time.Time) CallerID { return newID[callerKind](now) }

// NewAdminID makes an admin's id.
func NewAdminID(now time.Time) AdminID { return newID[adminKind](now) }

// NewDecisionID makes a decision's id.
func NewDecisionID(now time.Time) DecisionID { return newID[decisionKind](now) }

// NewEventID makes the id of a row of the audit log.
func NewEventID(now time.Time) EventID { return newID[eventKind](now) }

// ParseID reads an id in its only spelling: its own prefix, lower case, 26 characters.
func ParseID[K IDKind](s string) (ID[K], error) {
	var id, none ID[K]
	prefix := id.Prefix()
	if len(s) != len(prefix)+1+idSuffixLen || s[:len(prefix)] != prefix || s[len(prefix)] != '_' {
		return none, errID
	}
	s = s[len(prefix)+1:]
	if s[0] > '7' {
		return none, errID // 26 characters carry 130 bits; the two highest must be zero
	}
	var hi, lo uint64
	for i := range len(s) {
		v := crockfordValue(s[i])
		if v < 0 {
			return none, errID
		}
		hi = hi<<5 | lo>>59
		lo = lo<<5 | uint64(v)
	}
	binary.BigEndian.PutUint64(id.uuid[:8], hi)
	binary.BigEndian.PutUint64(id.uuid[8:], lo)
	return id, nil
}

func crockfordValue(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'h':
		return int(c-'a') + 10
	case c == 'j' || c == 'k':
		return int(c-'j') + 18
	case c == 'm' || c == 'n':
		return int(c-'m') + 20
	case c >= 'p' && c <= 't':
		return int(c-'p') + 22
	case c >= 'v' && c <= 'z':
		return int(c-'v') + 27
	}
	return -1
}

// Prefix returns the kind's prefix without the underscore, for example "key".
func (ID[K]) Prefix() string {
	var k K
	return k.idPrefix()
}

// IsZero tells whether the id names nothing.
func (id ID[K]) IsZero() bool { return id.uuid == [16]byte{} }

// Compare orders ids as Postgres does, which is by the time at which they were made.
func (id ID[K]) Compare(o ID[K]) int { return bytes.Compare(id.uuid[:], o.uuid[:]) }

// String returns the id as a TypeID.
func (id ID[K]) String() string {
	return string(id.AppendTo(make([]byte, 0, len("caller_")+idSuffixLen)))
}

// AppendTo appends the TypeID to b; it allocates only when b must grow.
func (id ID[K]) AppendTo(b []byte) []byte {
	b = append(b, id.Prefix()...)
	b = append(b, '_')
	hi, lo := binary.BigEndian.Uint64(id.uuid[:8]), binary.BigEndian.Uint64(id.uuid[8:])
	var out [idSuffixLen]byte
	for i := idSuffixLen - 1; i >= 0; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return append(b, out[:]...)
}

// Time returns the millisecond at which the id was made.
func (id ID[K]) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id.uuid[:8]) >> 16)).UTC()
}

// OneIn tells whether the id is among one in n of all, by its random bits: whoever asks, and
// whenever, comes to the same. One in 0 is none, one in 1 all.
func (id ID[K]) OneIn(n int) bool {
	const random = 1<<62 - 1 // but for the two bits of the variant
	return n > 0 && binary.BigEndian.Uint64(id.uuid[8:])&random%uint64(n) == 0
}

// MarshalText implements encoding.TextMarshaler with the TypeID.
func (id ID[K]) MarshalText() ([]byte, error) { return id.AppendTo(nil), nil }

// UnmarshalText implements encoding.TextUnmarshaler as ParseID does.
func (id *ID[K]) UnmarshalText(text []byte) error {
	parsed, err := ParseID[K](string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// Value implements driver.Valuer with the canonical text of a uuid, and NULL for the zero id.
func (id ID[K]) Value() (driver.Value, error) {
	if id.IsZero() {
		return nil, nil
	}
	var out [36]byte
	u := id.uuid[:]
	hex.Encode(out[0:8], u[0:4])
	hex.Encode(out[9:13], u[4:6])
	hex.Encode(out[14:18], u[6:8])
	hex.Encode(out[19:23], u[8:10])
	hex.Encode(out[24:36], u[10:16])
	out[8], out[13], out[18], out[23] = '-', '-', '-', '-'
	return string(out[:]), nil
}

// Scan implements sql.Scanner for a uuid: its canonical text, its 16 bytes, or NULL.
func (id *ID[K]) Scan(src any) error {
	var text []byte
	switch v := src.(type) {
	case nil:
		*id = ID[K]{}
		return nil
	case []byte:
		text = v
	case string:
		text = []byte(v)
	default:
		return fmt.Errorf("read a uuid: unexpected %T", src)
	}
	if len(text) == 16 {
		copy(id.uuid[:], text)
		return nil
	}
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return errors.New("read a uuid: not in its canonical form")
	}
	var bare [32]byte
	n := 0
	for _, part := range [][]byte{text[0:8], text[9:13], text[14:18], text[19:23], text[24:36]} {
		n += copy(bare[n:], part)
	}
	if _, err := hex.Decode(id.uuid[:], bare[:]); err != nil {
		return fmt.Errorf("read a uuid: %w", err)
	}
	return nil
}
