package manage

import (
	"strings"
	"testing"
)

func TestShadowWhy_IsATextThatPostgresTakes(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "",
		"a.rego:3: too slow":                   "a.rego:3: too slow",
		"a\x00b\xffc":                          "abc",
		strings.Repeat("x", 999) + "\u00e9and": strings.Repeat("x", 999), // the cut is within it
	} {
		if got := shadowWhy(text); got != want {
			t.Errorf("%q is %q", text, got)
		}
	}
}
