package authz

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/big"
	"strings"
	"testing"
)

func testFormat(t testing.TB) KeyFormat {
	t.Helper()
	f, err := NewKeyFormat(DefaultKeyPrefix)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSecret_GeneratedSecretsAreDistinctAndAccepted(t *testing.T) {
	f := testFormat(t)
	seen := make(map[string]bool)
	for range 20_000 {
		s := f.Generate(EnvironmentLive)
		if env, ok := f.Accepts(s.Reveal()); !ok || env != EnvironmentLive {
			t.Fatal("a generated secret is not accepted as live")
		}
		if seen[s.Reveal()] {
			t.Fatal("a secret came twice")
		}
		seen[s.Reveal()] = true
	}
	if env, ok := f.Accepts(f.Generate(EnvironmentTest).Reveal()); !ok || env != EnvironmentTest {
		t.Error("a test secret is not accepted as test")
	}
}

// The contract spells the checksum: CRC-32 (IEEE) in base62, most significant first.
func TestSecret_ChecksumIsTheContracts(t *testing.T) {
	f := testFormat(t)
	text := f.Generate(EnvironmentLive).Reveal()
	body, sum := text[:len(text)-6], text[len(text)-6:]
	n, want := big.NewInt(int64(crc32.ChecksumIEEE([]byte(body)))), ""
	for range 6 {
		var digit big.Int
		n.DivMod(n, big.NewInt(62), &digit)
		want = string("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[digit.Int64()]) + want
	}
	if sum != want {
		t.Errorf("checksum %s, want %s", sum, want)
	}
}

func TestSecret_EveryChangedCharacterIsNoticed(t *testing.T) {
	f := testFormat(t)
	text := f.Generate(EnvironmentLive).Reveal()
	for i := range len(text) {
		for _, c := range []byte("0Zz_- é\x00") {
			changed := []byte(text)
			if changed[i] == c {
				continue
			}
			changed[i] = c
			if _, ok := f.Accepts(string(changed)); ok {
				t.Errorf("a secret with character %d changed is accepted", i)
			}
		}
	}
	for _, wrong := range []string{"", text[1:], text + "0", " " + text, text + "\n", strings.ToUpper(text)} {
		if _, ok := f.Accepts(wrong); ok {
			t.Error("a secret of the wrong form is accepted")
		}
	}
}

func TestSecret_PrintsRedactedHoweverItIsPrinted(t *testing.T) {
	s := testFormat(t).Generate(EnvironmentLive)
	wrapped := struct{ S Secret }{s}
	asJSON, err := json.Marshal(map[string]any{"a": s, "b": wrapped, "c": &s})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "w", wrapped)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s, "w", wrapped)
	out := string(asJSON) + log.String() + s.String() + s.GoString()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		out += fmt.Sprintf(verb, s) + fmt.Sprintf(verb, wrapped) + fmt.Sprintf(verb, &s)
	}
	tail := s.Reveal()[8:]
	if strings.Contains(out, tail) || strings.Contains(out, fmt.Sprintf("%x", tail)) || strings.Contains(out, fmt.Sprintf("%X", tail)) {
		t.Error("a secret was printed")
	}
	if !strings.Contains(out, "[REDACTED]") {
		t.Error("nothing says that a secret was redacted")
	}
}

func TestSecret_HintShowsEightCharacters(t *testing.T) {
	f := testFormat(t)
	s := f.Generate(EnvironmentTest)
	text := s.Reveal()
	if got, want := f.Hint(s), text[:12]+"…"+text[len(text)-4:]; got != want {
		t.Errorf("hint %q, want %q", got, want)
	}
	if got := f.Hint(NewSecret("something else")); got != "" {
		t.Errorf("a foreign text has the hint %q", got)
	}
}

func TestKeyFormat_PrefixesOfTokensAndOddOnesAreRefused(t *testing.T) {
	for _, prefix := range []string{"", "ksc", "ksa", "SK", "9k", "s_k", "s-k", "sk ", strings.Repeat("a", 17)} {
		if _, err := NewKeyFormat(prefix); err == nil {
			t.Errorf("prefix %q was taken", prefix)
		}
	}
	if _, ok := (KeyFormat{}).Accepts(""); ok {
		t.Error("the zero format accepts something")
	}
}

func TestTokenFormat_CallersAndAdminsDoNotPassForEachOther(t *testing.T) {
	caller, admin := CallerTokens().Generate().Reveal(), AdminTokens().Generate().Reveal()
	if !CallerTokens().Accepts(caller) || CallerTokens().Accepts(admin) || AdminTokens().Accepts(caller) {
		t.Error("tokens of callers and admins are mixed up")
	}
}

func TestPeppers_DigestsDependOnPepperAndSecret(t *testing.T) {
	old, fresh := NewPepper("p1"), NewPepper("p2")
	both, err := ParsePeppers(fresh + "," + old)
	if err != nil {
		t.Fatal(err)
	}
	only, err := ParsePeppers(old)
	if err != nil {
		t.Fatal(err)
	}
	hash := NewSecret("x").Hash()
	d, id, err := both.Digest(hash)
	if err != nil || id != "p2" {
		t.Fatalf("digest under %q, %v", id, err)
	}
	was, _, _ := only.Digest(hash)
	all := both.AppendDigests(nil, hash)
	if len(all) != 2 || all[0] != d || all[1] != was || was == d {
		t.Error("look-ups do not try both peppers, the first first")
	}
	if _, _, err := (Peppers{}).Digest(hash); err == nil {
		t.Error("without a pepper there is a digest")
	}
	a, _ := both.Fingerprint("p1")
	b, _ := only.Fingerprint("p1")
	if a != b || a == "" {
		t.Error("a pepper's fingerprint depends on its place")
	}
}

func TestPeppers_WrongOnesAreRefusedWithoutRepeatingThem(t *testing.T) {
	good := NewPepper("p1")
	key := strings.TrimPrefix(good, "p1:")
	for _, s := range []string{"", "p1", "p1:", "P1:" + key, ":" + key, "p1:AAAA", good + "," + good, good + ",p2:" + key, "p1:***" + key} {
		_, err := ParsePeppers(s)
		if err == nil {
			t.Errorf("a wrong form was taken (%d characters)", len(s))
		} else if strings.Contains(err.Error(), key) {
			t.Error("an error repeats a pepper")
		}
	}
	p, err := ParsePeppers(good)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, _ := json.Marshal(p)
	if out := fmt.Sprintf("%v %+v %#v %x %s %s", p, p, p, p, p, asJSON); strings.Contains(out, key) || !strings.Contains(out, "p1") {
		t.Error("peppers print more or less than their ids")
	}
}

func FuzzKeyFormat_Accepts(f *testing.F) {
	format := testFormat(f)
	f.Add(format.Generate(EnvironmentLive).Reveal())
	f.Add("sk_live_")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		env, ok := format.Accepts(s)
		if ok != env.Valid() {
			t.Error("accepted without an environment, or the other way round")
		}
		if ok && (len(s) != 44 || format.Hint(NewSecret(s)) == "") {
			t.Error("accepted a secret of another length, or one without a hint")
		}
		if p := PresentSecret(format, s); (p.state == presentedHash) != ok {
			t.Error("something malformed would be looked up")
		}
	})
}
