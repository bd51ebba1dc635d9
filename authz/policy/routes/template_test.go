package routes

import (
	"regexp"
	"strings"
	"testing"
)

// soundTemplate is the catalogue's own test's.
var soundTemplate = regexp.MustCompile(`^/$|^(/([A-Za-z0-9._~-]+|\{[a-z][a-z0-9_]*\}))+$`)

func TestTemplate_VariablesAreWholeSegmentsInLowerCase(t *testing.T) {
	for path, want := range map[string]string{
		"/":                            "/",
		"/a":                           "/a",
		"/a/{id}":                      "/a/{id}",
		"/a/{ticketId}":                "/a/{ticket_id}",
		"/a/{ticketID}/{HTTPCode}":     "/a/{ticket_id}/{http_code}",
		"/a/{ticket-id}/{ticket.name}": "/a/{ticket_id}/{ticket_name}",
		"/{a}/{A}/{a}":                 "/{a}/{a_2}/{a_3}",
		"/{2fa}/{_x_}/{é}":             "/{p2fa}/{x}/{p}",
		"/a-b_c.d~e/v1.2":              "/a-b_c.d~e/v1.2",
		"/%61b":                        "/ab",
	} {
		got, err := Template("", path)
		if err != nil || got != want || !soundTemplate.MatchString(got) {
			t.Errorf("%s: %s, %v; wanted %s", path, got, err, want)
		}
	}
	for _, base := range []string{"/v1", "/v1/"} {
		if got, err := Template(base, "/a"); err != nil || got != "/v1/a" {
			t.Errorf("below %s: %s, %v", base, got, err)
		}
	}
	for _, path := range []string{"", "a", "/a/", "//", "/a//b", "/.", "/a/..", "/%2e%2e", "/%", "/a b", "/ä", "/{}", "/{a", "/a}", "/{a}{b}", "/{a*}", "/{a...}", "/a?b", "/a#b"} {
		if got, err := Template("", path); err == nil {
			t.Errorf("%q is taken as %s", path, got)
		}
	}
	for _, base := range []string{"v1", "/v1/{a", "/v1?x"} {
		if got, err := Template(base, "/a"); err == nil {
			t.Errorf("below %q: %s", base, got)
		}
	}
}

// Two templates are mistaken for each other when some path matches both and neither matches only
// what the other does: tried with every path.
func TestAmbiguous_IsWhatNoRuleDecides(t *testing.T) {
	var templates, paths []string
	for _, a := range []string{"x", "y", "{a}"} {
		for _, b := range []string{"x", "y", "{b}"} {
			for _, c := range []string{"x", "{c}"} {
				templates = append(templates, "/"+a+"/"+b+"/"+c)
			}
		}
	}
	for _, a := range "xyz" {
		for _, b := range "xyz" {
			for _, c := range "xyz" {
				paths = append(paths, "/"+string(a)+"/"+string(b)+"/"+string(c))
			}
		}
	}
	matches := func(template, path string) bool {
		in := strings.Split(path[1:], "/")
		for i, s := range segments(template) {
			if !isVariable(s) && s != in[i] {
				return false
			}
		}
		return true
	}
	found := 0
	for _, a := range templates {
		for _, b := range templates {
			if shape(a) == shape(b) {
				continue
			}
			both, onlyA, onlyB := false, false, false
			for _, p := range paths {
				inA, inB := matches(a, p), matches(b, p)
				both, onlyA, onlyB = both || inA && inB, onlyA || inA && !inB, onlyB || inB && !inA
			}
			want := both && onlyA && onlyB
			if got := ambiguous(a, b); got != want {
				t.Errorf("%s and %s: %t", a, b, got)
			}
			if want {
				found++
			}
		}
	}
	if found == 0 {
		t.Error("nothing is ambiguous")
	}
}
