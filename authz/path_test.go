package authz

import (
	"slices"
	"strings"
	"testing"
)

func TestSplitPath_DecodesSegmentsOnce(t *testing.T) {
	for path, want := range map[string][]string{
		"/":                         {},
		"/api/v1/tickets":           {"api", "v1", "tickets"},
		"/api/v1/tickets/42":        {"api", "v1", "tickets", "42"},
		"/a%20b/%C3%A9":             {"a b", "é"},
		"/file.json/a.b..c/...":     {"file.json", "a.b..c", "..."},
		"/a+b/~c/@d:e/$f&g=h,i!j'k": {"a+b", "~c", "@d:e", "$f&g=h,i!j'k"},
		"/日本":                       {"日本"},
	} {
		got, ambiguous := SplitPath(path)
		if ambiguous || !slices.Equal(got, want) {
			t.Errorf("%q: %q, ambiguous %v; want %q", path, got, ambiguous, want)
		}
	}
}

func TestSplitPath_WhatTwoReadersCouldReadDifferentlyIsAmbiguous(t *testing.T) {
	for _, path := range []string{
		"", "*", "api", "//", "/a//b", "//a", "/a/", "/.", "/..", "/a/..", "/a/../b", "/./a", "/a/.",
		"/a;b", "/a/..;/b", `/a\b`, "/a%2fb", "/a%2Fb", "/%2e", "/%2E%2e", "/a/%2e%2e/b", "/a%2ejson", "/a%252fb", "/a%25",
		"/a%5cb", "/a%3bb", "/a%", "/a%2", "/a%zz", "/a%00", "/a\x00b", "/a\nb", "/a%0ab", "/a\x7f", "/a%7f", "/a%c2%85",
		"/a%ff", "/\xff", "/a%c0%af", "/a%c0%ae", "/a?b", "/a#b", "http://x/a",
	} {
		if got, ambiguous := SplitPath(path); !ambiguous || got != nil {
			t.Errorf("%q is not ambiguous: %q", path, got)
		}
	}
}

func FuzzSplitPath(f *testing.F) {
	for _, s := range []string{"/", "/api/v1/tickets/42", "/a%2fb", "/a/../b", "/a;b", "/%25", "//", "/a%c3%a9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		segments, ambiguous := SplitPath(path)
		if ambiguous {
			if segments != nil {
				t.Error("an ambiguous path has segments")
			}
			return
		}
		if path != "/" && strings.Count(path, "/") != len(segments) {
			t.Error("segments were lost or won")
		}
		for _, s := range segments {
			if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\\;\x00\n\r%") {
				t.Errorf("segment %q of an unambiguous path", s)
			}
		}
	})
}
