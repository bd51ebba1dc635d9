package authz

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestID_SurvivesTextJSONAndSQL(t *testing.T) {
	now := time.UnixMilli(1_795_420_801_234)
	id := NewKeyID(now)
	text := id.String()
	if !strings.HasPrefix(text, "key_0") || len(text) != 30 || text != strings.ToLower(text) {
		t.Errorf("not a TypeID: %s", text)
	}
	if parsed, err := ParseID[keyKind](text); err != nil || parsed != id {
		t.Errorf("parsing: %v, %v", parsed, err)
	}
	if !id.Time().Equal(now.UTC()) {
		t.Errorf("made at %v, want %v", id.Time(), now)
	}
	value, err := id.Value()
	if err != nil {
		t.Fatal(err)
	}
	var scanned KeyID
	if err := scanned.Scan(value); err != nil || scanned != id {
		t.Errorf("scanning %v: %v, %v", value, scanned, err)
	}
	if s, _ := value.(string); s[14] != '7' || !strings.ContainsRune("89ab", rune(s[19])) {
		t.Errorf("not a UUIDv7: %v", value)
	}
	out, _ := json.Marshal(id)
	var in KeyID
	if err := json.Unmarshal(out, &in); err != nil || in != id {
		t.Errorf("JSON: %v, %v", in, err)
	}
}

// The example of the TypeID specification, version 0.3.0.
func TestID_IsSpelledAsTypeIDSays(t *testing.T) {
	var id KeyID
	if err := id.Scan("01890a5d-ac96-774b-bcce-b302099a8057"); err != nil {
		t.Fatal(err)
	}
	if got := id.String(); got != "key_01h455vb4pex5vsknk084sn02q" {
		t.Errorf("%s", got)
	}
}

func TestID_OtherKindsAndSpellingsAreRefused(t *testing.T) {
	text := NewKeyID(time.Now()).String()
	for _, s := range []string{
		"", "key_", text[4:], "org_" + text[4:], strings.ToUpper(text), text + "0", text[:29], "key_8" + text[5:],
		text[:10] + "i" + text[11:], text[:10] + "l" + text[11:], text[:10] + "o" + text[11:], text[:10] + "u" + text[11:],
	} {
		if _, err := ParseID[keyKind](s); err == nil {
			t.Errorf("%q is taken for a key's id", s)
		}
	}
}
