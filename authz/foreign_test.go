package authz_test

import (
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
)

func TestForeignFormat_AcceptsItsOwnFormAlone(t *testing.T) {
	f, err := authz.NewForeignFormat("acme_", 32, "hex")
	if err != nil {
		t.Fatal(err)
	}
	good := "acme_" + strings.Repeat("0f", 16)
	if !f.Accepts(good) {
		t.Error("its own form is refused")
	}
	for name, text := range map[string]string{
		"empty": "", "shorter": good[:len(good)-1], "longer": good + "0", "another prefix": "acmE_" + good[5:],
		"another character": good[:10] + "g" + good[11:], "upper case": good[:10] + "F" + good[11:], "NUL": good[:10] + "\x00" + good[11:],
	} {
		if f.Accepts(text) {
			t.Errorf("%s is accepted", name)
		}
	}
	if (authz.ForeignFormat{}).Accepts("") || (authz.ForeignFormat{}).Accepts("x") {
		t.Error("the zero format accepts something")
	}
}

func TestForeignFormat_WhatCouldBeGuessedOrMixedUpIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		prefix   string
		length   int
		alphabet string
	}{
		"127 bits":                   {"a_", 31, "hex"},
		"digits alone":               {"a_", 36, "0123456789"},
		"no prefix":                  {"", 64, "hex"},
		"a long prefix":              {strings.Repeat("a", 33), 64, "hex"},
		"white space":                {"a b", 64, "hex"},
		"a caller's token":           {"ksc_", 36, "base62"},
		"an admin's token":           {"ksa_x", 36, "base62"},
		"a part of a caller's token": {"ks", 38, "base62"},
		"the first letter of tokens": {"k", 64, "hex"},
		"no length":                  {"a_", 0, "hex"},
		"no alphabet":                {"a_", 64, ""},
		"an unknown alphabet":        {"a_", 64, "base99"},
		"doubled characters":         {"a_", 64, "00123456789abcdef"},
		"an alphabet of space":       {"a_", 64, "0123456789abcde "},
		"too long":                   {"a_", 257, "hex"},
	} {
		if _, err := authz.NewForeignFormat(tt.prefix, tt.length, tt.alphabet); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := authz.NewForeignFormat("a_", 43, "abcdefghijklmnop"[:16]); err != nil {
		t.Errorf("sixteen characters of its own: %v", err)
	}
}

// A foreign format must not undo the checksum of our own secrets.
func TestKeyFormat_OverlapIsNoticed(t *testing.T) {
	own, err := authz.NewKeyFormat("sk")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		prefix string
		length int
		want   bool
	}{
		{"sk_live_", 36, true},
		{"sk_", 41, true},
		{"sk_test_a", 35, true},
		{"sk_live_", 37, false},
		{"pk_live_", 36, false},
	} {
		f, err := authz.NewForeignFormat(tt.prefix, tt.length, "base62")
		if err != nil {
			t.Fatal(err)
		}
		if own.Overlaps(f) != tt.want {
			t.Errorf("%s%d: want %t", tt.prefix, tt.length, tt.want)
		}
	}
}

func TestPeppers_DerivedKeysAreOthers(t *testing.T) {
	p, err := authz.ParsePeppers(authz.NewPepper("a") + "," + authz.NewPepper("b"))
	if err != nil {
		t.Fatal(err)
	}
	d := p.Derive("one")
	if got := d.IDs(); len(got) != 2 || got[0] != "a" {
		t.Fatalf("ids %v", got)
	}
	seen := map[[32]byte]string{}
	for name, keys := range map[string]authz.Peppers{"peppers": p, "one": d, "other": p.Derive("other")} {
		for _, id := range keys.IDs() {
			mac, err := keys.MAC(id, []byte("text"))
			if err != nil {
				t.Fatal(err)
			}
			if other, ok := seen[mac]; ok {
				t.Errorf("%s %s and %s are the same", name, id, other)
			}
			seen[mac] = name + " " + id
		}
	}
	if read, err := authz.ParsePeppers(d.Reveal()); err != nil {
		t.Error(err)
	} else if a, _ := read.MAC("b", nil); a == [32]byte{} {
		t.Error("what is revealed makes no MACs")
	} else if b, _ := d.MAC("b", nil); a != b {
		t.Error("what is revealed makes other MACs")
	}
	again, _ := p.Derive("one").MAC("a", []byte("text"))
	if want, _ := d.MAC("a", []byte("text")); again != want {
		t.Error("deriving twice gives different keys")
	}
	if _, err := d.MAC("c", nil); err == nil {
		t.Error("an unknown key makes MACs")
	}
}
