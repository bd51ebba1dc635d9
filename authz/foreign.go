package authz

import (
	"errors"
	"math"
	"strings"
)

// ForeignFormat is the form of secrets that another system has made and whose
// digests were imported: a literal prefix and Length characters of Alphabet. Only
// strings of our own or of a declared form are ever looked up. The zero
// ForeignFormat accepts nothing.
type ForeignFormat struct {
	Prefix string
	// Length is the number of characters after the prefix.
	Length int
	// Alphabet is the set of those characters, sorted and without duplicates.
	Alphabet string
}

// The bounds of a foreign format.
const (
	minForeignBits   = 128
	maxForeignPrefix = 32
	maxForeignLength = 256
	minForeignSet    = 16
	// MaxForeignFormats bounds how many can be declared.
	MaxForeignFormats = 64
)

// NewForeignFormat makes a format. The alphabet is one of the names hex, base32,
// base36, base58, base62, base64, base64url, or the characters themselves: at least
// 16 different printable ASCII ones. Length and alphabet must hold at least 128
// bits, and the prefix must not be that of tokens.
func NewForeignFormat(prefix string, length int, alphabet string) (ForeignFormat, error) {
	switch {
	case prefix == "" || len(prefix) > maxForeignPrefix || !printableASCII(prefix):
		return ForeignFormat{}, errors.New("the prefix must be 1 to 32 printable ASCII characters")
	case alike(prefix, CallerTokens().prefix) || alike(prefix, AdminTokens().prefix):
		return ForeignFormat{}, errors.New("the prefix must not be that of callers' or admins' tokens, nor a part of it")
	case length < 1 || length > maxForeignLength:
		return ForeignFormat{}, errors.New("the length must be from 1 to 256 characters after the prefix")
	}
	set, err := alphabetOf(alphabet)
	if err != nil {
		return ForeignFormat{}, err
	}
	if float64(length)*math.Log2(float64(len(set))) < minForeignBits {
		return ForeignFormat{}, errors.New("length and alphabet hold less than 128 bits: such secrets could be guessed")
	}
	return ForeignFormat{Prefix: prefix, Length: length, Alphabet: set}, nil
}

// alike tells whether a text can begin with both.
func alike(a, b string) bool { return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) }

func alphabetOf(name string) (string, error) {
	const digits, upper, lower = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
	switch name {
	case "hex":
		return digits + "abcdef", nil
	case "base32":
		return "234567" + upper, nil
	case "base36":
		return digits + lower, nil
	case "base58":
		return "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", nil
	case "base62":
		return digits + upper + lower, nil
	case "base64":
		return "+/" + digits + "=" + upper + lower, nil
	case "base64url":
		return "-" + digits + "=" + upper + "_" + lower, nil
	}
	var seen [128]bool
	n := 0
	for i := range len(name) {
		c := name[i]
		if c <= ' ' || c > '~' || seen[c] {
			return "", errors.New("the alphabet must be hex, base32, base36, base58, base62, base64, base64url, or different printable ASCII characters")
		}
		seen[c] = true
		n++
	}
	if n < minForeignSet {
		return "", errors.New("the alphabet must be hex, base32, base36, base58, base62, base64, base64url, or at least 16 characters")
	}
	set := make([]byte, 0, n)
	for c, in := range seen {
		if in {
			set = append(set, byte(c))
		}
	}
	return string(set), nil
}

// Accepts tells whether text has this form. It costs no I/O and no memory.
func (f ForeignFormat) Accepts(text string) bool {
	if f.Length == 0 || len(text) != len(f.Prefix)+f.Length || !strings.HasPrefix(text, f.Prefix) {
		return false
	}
	for i := len(f.Prefix); i < len(text); i++ {
		if strings.IndexByte(f.Alphabet, text[i]) < 0 {
			return false
		}
	}
	return true
}

// Overlaps tells whether every typing error in one of our own secrets would pass
// for a secret of this format, which would undo the checksum.
func (f KeyFormat) Overlaps(foreign ForeignFormat) bool {
	for _, own := range []string{f.live, f.test} {
		if own != "" && len(own)+secretTailLen == len(foreign.Prefix)+foreign.Length &&
			alike(own, foreign.Prefix) {
			return true
		}
	}
	return false
}
