package bundle

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	// maxKeys is how many keys may be in use: one, and others while they are exchanged.
	maxKeys = 16
	// minRSA and maxRSA bound RSA keys, in bits.
	minRSA, maxRSA = 2048, 8192
)

// Keys are the public keys of whoever may publish policies, by their ids. The zero Keys
// accepts nothing. It is immutable and safe for concurrent use.
type Keys struct{ byID map[string]publicKey }

// publicKey is a key for one algorithm, and no other.
type publicKey struct {
	algorithm Algorithm
	// pem is a PUBLIC KEY.
	pem string
}

// ParseKeys reads `id:key`, one after another, with commas or white space between them. A
// key is in PEM form (PUBLIC KEY), whose lines may also end in `\n`, or what stands between
// the lines of that as one line of base64. Ids have 1 to 64 characters a-z A-Z 0-9 . _ -. The
// key tells the algorithm: ES256 for ECDSA on P-256, RS256 for RSA from 2048 bits on.
func ParseKeys(text string) (Keys, error) {
	keys := Keys{byID: map[string]publicKey{}}
	rest := strings.ReplaceAll(text, `\n`, "\n")
	for n := 1; ; n++ {
		if rest = strings.TrimLeft(rest, ", \t\r\n"); rest == "" {
			break
		}
		if n > maxKeys {
			return Keys{}, fmt.Errorf("there are more than %d keys", maxKeys)
		}
		id, after, ok := strings.Cut(rest, ":")
		if !ok || !validKeyID(id) {
			return Keys{}, fmt.Errorf("key %d is not of the form id:key with an id of a-z A-Z 0-9 . _ -", n)
		}
		if _, ok := keys.byID[id]; ok {
			return Keys{}, fmt.Errorf("the key %q is there twice", id)
		}
		var key publicKey
		var err error
		if key, rest, err = cutKey(after); err != nil {
			return Keys{}, fmt.Errorf("the key %q: %w", id, err)
		}
		keys.byID[id] = key
	}
	if len(keys.byID) == 0 {
		return Keys{}, errors.New("there is no key")
	}
	return keys, nil
}

// IDs are the keys' ids, sorted.
func (k Keys) IDs() []string { return slices.Sorted(maps.Keys(k.byID)) }

func validKeyID(id string) bool {
	const accepted = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	return id != "" && len(id) <= 64 && strings.Trim(id, accepted) == ""
}

// cutKey reads the key at the start of a text, and returns what follows it.
func cutKey(text string) (key publicKey, rest string, err error) {
	text = strings.TrimLeft(text, " \t\r\n")
	if !strings.HasPrefix(text, "-----BEGIN ") {
		line := text
		if end := strings.IndexAny(text, ", \t\r\n"); end >= 0 {
			line, rest = text[:end], text[end:]
		}
		der, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return key, "", errors.New("it is neither in PEM form nor base64")
		}
		key, err = parsePublic("PUBLIC KEY", der)
		return key, rest, err
	}
	// Nothing but this key's own lines is looked at: what is behind it has another id.
	const end = "-----"
	length := strings.Index(text, "\n-----END ")
	if length >= 0 {
		if more := strings.Index(text[length+len("\n-----END "):], end); more >= 0 {
			length += len("\n-----END ") + more + len(end)
			text, rest = text[:length]+"\n", text[length:]
		}
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return key, "", errors.New("its PEM form is broken")
	}
	key, err = parsePublic(block.Type, block.Bytes)
	return key, rest, err
}

func parsePublic(kind string, der []byte) (publicKey, error) {
	var parsed any
	var err error
	switch kind {
	case "PUBLIC KEY":
		parsed, err = x509.ParsePKIXPublicKey(der)
	case "RSA PUBLIC KEY":
		parsed, err = x509.ParsePKCS1PublicKey(der)
	default:
		if strings.Contains(kind, "PRIVATE") {
			return publicKey{}, errors.New("it is a private key; only its public part belongs here (openssl pkey -pubout)")
		}
		return publicKey{}, errors.New("it is no PUBLIC KEY")
	}
	if err != nil {
		return publicKey{}, errors.New("it is no public key in the form of X.509 (SubjectPublicKeyInfo)")
	}
	algorithm, err := algorithmOf(parsed)
	if err != nil {
		return publicKey{}, err
	}
	if der, err = x509.MarshalPKIXPublicKey(parsed); err != nil {
		return publicKey{}, fmt.Errorf("write it in PEM form: %w", err)
	}
	return publicKey{algorithm, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}, nil
}

// algorithmOf is the one algorithm that a public key is used with.
func algorithmOf(key any) (Algorithm, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return ES256, nil
		}
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits >= minRSA && bits <= maxRSA {
			return RS256, nil
		}
	}
	return "", fmt.Errorf("accepted are ECDSA keys on P-256, and RSA keys of %d to %d bits", minRSA, maxRSA)
}
