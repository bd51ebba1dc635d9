package authz

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"strings"
	"sync"
)

// Digest is HMAC-SHA-256(pepper, SHA-256(secret)): the only form in which a secret is stored.
type Digest [sha256.Size]byte

// minPepperLen is the least length of a pepper in bytes.
const minPepperLen = 32

// maxPeppers bounds the digests of one look-up. Two are in use while rotating.
const maxPeppers = 8

// Peppers are the secret keys under which digests are made, each with an id. The
// first is used for new secrets, all of them for look-ups. A Peppers prints as
// its ids alone, however it is printed. The zero Peppers makes no digest.
// Safe for concurrent use.
type Peppers struct{ list []*pepper }

type pepper struct {
	id  string
	key []byte
	// macs keeps keyed HMACs for reuse: keying one costs as much as using it.
	macs sync.Pool
}

// NewPepper makes a text that ParsePeppers reads, of 32 random bytes under the given id.
func NewPepper(id string) string {
	return id + ":" + base64.StdEncoding.EncodeToString(randomBytes(minPepperLen))
}

// ParsePeppers reads `id:base64[,…]`: ids of 1 to 32 characters a-z 0-9 _ -, each
// once, and at least 32 bytes behind each. An error never repeats what was given.
func ParsePeppers(s string) (Peppers, error) {
	parts := strings.Split(s, ",")
	if len(parts) > maxPeppers {
		return Peppers{}, fmt.Errorf("%d peppers; at most %d can be in use", len(parts), maxPeppers)
	}
	var p Peppers
	for i, part := range parts {
		id, encoded, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok || !validPepperID(id) {
			return Peppers{}, fmt.Errorf("pepper %d is not of the form id:base64 with an id of a-z 0-9 _ -", i+1)
		}
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return Peppers{}, fmt.Errorf("pepper %q is not base64", id)
		}
		if len(key) < minPepperLen {
			return Peppers{}, fmt.Errorf("pepper %q has %d bytes; it needs at least %d", id, len(key), minPepperLen)
		}
		for _, other := range p.list {
			if other.id == id {
				return Peppers{}, fmt.Errorf("pepper %q is given twice", id)
			}
			if hmac.Equal(other.key, key) {
				return Peppers{}, fmt.Errorf("peppers %q and %q are the same bytes", other.id, id)
			}
		}
		p.list = append(p.list, newPepper(id, key))
	}
	return p, nil
}

func newPepper(id string, key []byte) *pepper {
	p := &pepper{id: id, key: key}
	p.macs.New = func() any { return hmac.New(sha256.New, key) }
	return p
}

func validPepperID(id string) bool {
	if id == "" || len(id) > 32 {
		return false
	}
	return strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

func (p *pepper) digest(h SecretHash) Digest { return p.mac(h[:]) }

func (p *pepper) mac(data []byte) [sha256.Size]byte {
	mac, ok := p.macs.Get().(hash.Hash)
	if !ok {
		mac = hmac.New(sha256.New, p.key)
	}
	mac.Reset()
	_, _ = mac.Write(data) // a hash never fails
	var sum [sha256.Size]byte
	mac.Sum(sum[:0])
	p.macs.Put(mac)
	return sum
}

// ErrNoPepper says that a digest was asked for without any pepper.
var ErrNoPepper = errors.New("no pepper is configured")

// Digest returns the digest under the first pepper, and that pepper's id.
func (p Peppers) Digest(h SecretHash) (Digest, string, error) {
	if len(p.list) == 0 {
		return Digest{}, "", ErrNoPepper
	}
	first := p.list[0]
	return first.digest(h), first.id, nil
}

// AppendDigests appends the digest under every pepper, the first pepper's first.
func (p Peppers) AppendDigests(dst []Digest, h SecretHash) []Digest {
	for _, pep := range p.list {
		dst = append(dst, pep.digest(h))
	}
	return dst
}

// Derive returns keys of the same ids that are made of these for another purpose:
// HMAC-SHA-256(pepper, label). Nobody who knows them learns a pepper.
func (p Peppers) Derive(label string) Peppers {
	var out Peppers
	for _, pep := range p.list {
		key := pep.mac([]byte(label))
		out.list = append(out.list, newPepper(pep.id, key[:]))
	}
	return out
}

// Reveal returns what ParsePeppers reads. It belongs into the one command that prints
// keys for an operator to keep.
func (p Peppers) Reveal() string {
	parts := make([]string, len(p.list))
	for i, pep := range p.list {
		parts[i] = pep.id + ":" + base64.StdEncoding.EncodeToString(pep.key)
	}
	return strings.Join(parts, ",")
}

// MAC returns HMAC-SHA-256 of data under the key with the given id, or ErrNoPepper.
func (p Peppers) MAC(id string, data []byte) ([sha256.Size]byte, error) {
	for _, pep := range p.list {
		if pep.id == id {
			return pep.mac(data), nil
		}
	}
	return [sha256.Size]byte{}, ErrNoPepper
}

// Fingerprint identifies a pepper without telling it: the first 16 bytes, in hex,
// of its HMAC over a fixed text. It is stored beside the rows that use the pepper,
// so that a pepper with the right id and the wrong bytes is noticed at start.
func (p Peppers) Fingerprint(id string) (string, bool) {
	for _, pep := range p.list {
		if pep.id == id {
			mac := hmac.New(sha256.New, pep.key)
			_, _ = io.WriteString(mac, "keystile pepper fingerprint v1")
			return hex.EncodeToString(mac.Sum(nil)[:16]), true
		}
	}
	return "", false
}

// IDs returns the ids, the first pepper's first.
func (p Peppers) IDs() []string {
	ids := make([]string, len(p.list))
	for i, pep := range p.list {
		ids[i] = pep.id
	}
	return ids
}

// String implements fmt.Stringer with the ids alone.
func (p Peppers) String() string {
	var b strings.Builder
	for i, pep := range p.list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pep.id + ":" + redacted)
	}
	return b.String()
}

// GoString implements fmt.GoStringer with the ids alone.
func (p Peppers) GoString() string { return p.String() }

// Format implements fmt.Formatter, so that no verb reaches the bytes.
func (p Peppers) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, p.String()) }

// MarshalText implements encoding.TextMarshaler (JSON, YAML) with the ids alone.
func (p Peppers) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// LogValue implements slog.LogValuer with the ids alone.
func (p Peppers) LogValue() slog.Value { return slog.StringValue(p.String()) }
