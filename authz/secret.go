package authz

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strings"
)

const (
	base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	// secretRandomLen characters carry 178 bits of crypto/rand.
	secretRandomLen = 30
	// secretChecksumLen characters hold 32 bits of CRC-32, left-padded with '0'.
	secretChecksumLen = 6
	secretTailLen     = secretRandomLen + secretChecksumLen
	// redacted is what a Secret prints as, whatever the verb or encoder.
	redacted = "[REDACTED]"
)

// Secret is the text of a key's or token's secret. However it is printed or
// encoded (fmt, JSON, slog, YAML) it comes out as "[REDACTED]"; Reveal is the
// one way to its text, so that every place which shows a secret can be found.
type Secret struct{ text string }

// NewSecret wraps a text that must not be printed.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the text. It belongs into the one response that shows a secret.
func (s Secret) Reveal() string { return s.text }

// Hash returns the SHA-256 of the text.
func (s Secret) Hash() SecretHash { return sha256.Sum256([]byte(s.text)) }

// String implements fmt.Stringer, redacted.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer, redacted.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter, so that no verb (%x, %d, %+v) reaches the text.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements encoding.TextMarshaler (JSON, YAML), redacted.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements json.Marshaler, redacted.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// LogValue implements slog.LogValuer, redacted.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// SecretHash is SHA-256(secret): what a caller may ask with, so that the secret never leaves it.
type SecretHash [sha256.Size]byte

// ParseSecretHash reads 64 hexadecimal characters of either case.
func ParseSecretHash(s string) (SecretHash, bool) {
	var h SecretHash
	if len(s) != hex.EncodedLen(len(h)) {
		return SecretHash{}, false
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return SecretHash{}, false
	}
	return h, true
}

// TokenFormat is the form of the tokens of callers or admins: a literal prefix,
// 30 random base62 characters and their checksum.
type TokenFormat struct{ prefix string }

// CallerTokens is the form of a caller's token, ksc_….
func CallerTokens() TokenFormat { return TokenFormat{"ksc_"} }

// AdminTokens is the form of an admin's token, ksa_….
func AdminTokens() TokenFormat { return TokenFormat{"ksa_"} }

// Generate makes a new token from crypto/rand.
func (f TokenFormat) Generate() Secret { return generate(f.prefix) }

// Accepts tells whether text has this form and a right checksum. It costs no I/O
// and no memory. The checksum stops typos, not forgers.
func (f TokenFormat) Accepts(text string) bool { return accepts(f.prefix, text) }

// Within tells whether a token of this form stands anywhere in a text.
func (f TokenFormat) Within(text string) bool { return within(f.prefix, text) }

// Hint returns what of a token may be shown: see KeyFormat.Hint.
func (f TokenFormat) Hint(s Secret) string { return hint(f.prefix, s.text) }

// KeyFormat is the form of the secrets of API keys: {prefix}_live_ or
// {prefix}_test_, 30 random base62 characters and 6 of checksum. The zero
// KeyFormat accepts nothing and must not generate.
type KeyFormat struct{ live, test string }

// DefaultKeyPrefix is the prefix of the guide. Scanners take it for Stripe's: an
// adopter should choose a prefix of its own.
const DefaultKeyPrefix = "sk"

// NewKeyFormat makes the form for a prefix of 1 to 16 characters: a lower-case
// letter, then lower-case letters and digits. "ksc" and "ksa" are refused: those
// are the prefixes of callers' and admins' tokens.
func NewKeyFormat(prefix string) (KeyFormat, error) {
	const accepted = "a lower-case letter, then up to 15 lower-case letters or digits, and not ksc or ksa"
	if prefix == "" || len(prefix) > 16 || prefix == "ksc" || prefix == "ksa" {
		return KeyFormat{}, errors.New("key prefix must be " + accepted)
	}
	for i := range len(prefix) {
		c := prefix[i]
		letter := c >= 'a' && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return KeyFormat{}, errors.New("key prefix must be " + accepted)
		}
	}
	return KeyFormat{live: prefix + "_live_", test: prefix + "_test_"}, nil
}

func (f KeyFormat) prefix(env Environment) string {
	switch env {
	case EnvironmentLive:
		return f.live
	case EnvironmentTest:
		return f.test
	}
	return ""
}

// Generate makes a new secret for a key of the given environment from crypto/rand.
// It panics on an environment that is neither live nor test, or on the zero
// KeyFormat: a secret without its prefix must never exist.
func (f KeyFormat) Generate(env Environment) Secret {
	prefix := f.prefix(env)
	if prefix == "" {
		panic("authz: generate a secret without a prefix")
	}
	return generate(prefix)
}

// Accepts tells whether text has the form of one of our secrets, checksum
// included, and for which environment its prefix stands. The environment that
// counts is the one stored on the key. It costs no I/O and no memory.
func (f KeyFormat) Accepts(text string) (Environment, bool) {
	switch {
	case f.live != "" && accepts(f.live, text):
		return EnvironmentLive, true
	case f.test != "" && accepts(f.test, text):
		return EnvironmentTest, true
	}
	return "", false
}

// Within tells whether one of our secrets stands anywhere in a text.
func (f KeyFormat) Within(text string) bool {
	return f.live != "" && (within(f.live, text) || within(f.test, text))
}

// Hint returns what of a secret may be shown: its prefix, the first 4 random
// characters, "…" and the last 4. A text that is not one of ours has no hint.
func (f KeyFormat) Hint(s Secret) string {
	env, ok := f.Accepts(s.text)
	if !ok {
		return ""
	}
	return hint(f.prefix(env), s.text)
}

func hint(prefix, text string) string {
	if !accepts(prefix, text) {
		return ""
	}
	return text[:len(prefix)+4] + "…" + text[len(text)-4:]
}

func accepts(prefix, text string) bool {
	if len(text) != len(prefix)+secretTailLen || !strings.HasPrefix(text, prefix) {
		return false
	}
	for i := len(prefix); i < len(text); i++ {
		c := text[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	body := len(text) - secretChecksumLen
	sum := checksum(text[:body])
	return text[body:] == string(sum[:])
}

func within(prefix, text string) bool {
	length := len(prefix) + secretTailLen
	for {
		at := strings.Index(text, prefix)
		if at < 0 || len(text) < at+length {
			return false
		}
		if accepts(prefix, text[at:at+length]) {
			return true
		}
		text = text[at+1:]
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // documented never to fail
	return b
}

func generate(prefix string) Secret {
	text := make([]byte, 0, len(prefix)+secretTailLen)
	text = append(text, prefix...)
	// 248 = 4·62: bytes from there on are thrown away, or some characters would
	// come up more often than others.
	const unbiased = 248
	var raw [64]byte
	for len(text) < len(prefix)+secretRandomLen {
		_, _ = rand.Read(raw[:]) // documented never to fail
		for _, b := range raw {
			if b < unbiased && len(text) < len(prefix)+secretRandomLen {
				text = append(text, base62[b%62])
			}
		}
	}
	sum := checksum(string(text))
	return Secret{string(append(text, sum[:]...))}
}

// checksum is CRC-32 (IEEE) in base62, most significant character first.
func checksum(s string) [secretChecksumLen]byte {
	// Byte by byte over the string: crc32.ChecksumIEEE would cost a copy of it.
	sum := ^uint32(0)
	for i := range len(s) {
		sum = crc32.IEEETable[sum&0xff^uint32(s[i])] ^ sum>>8
	}
	sum = ^sum
	var out [secretChecksumLen]byte
	for i := secretChecksumLen - 1; i >= 0; i-- {
		out[i] = base62[sum%62]
		sum /= 62
	}
	return out
}
