package policy

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

const (
	helperTest = "lib/lib_test.rego"
	// byHelper asks a helper of another package than its own.
	byHelper = "package keystile.rules.bad_test\n\nimport data.lib_test\n\ntest_stale_is_denied if lib_test.is_denied(true)\n"
	helper   = "package lib_test\n\nimport data.keystile.rules.bad\n\nis_denied(stale) if count(bad.deny) == 1 with input as {\"stale\": stale}\n"
)

func TestGate_AHelperInAnotherTestPackageIsNotWeakened(t *testing.T) {
	files := map[string]string{ruleRego: ruleOf("input.stale"), ruleTest: byHelper, helperTest: helper}
	active := light(t, files)
	all := (Trial{CoverageFloor: 1, Candidate: active}).Try(t.Context()).Tests
	for name, changes := range map[string]map[string]string{
		"it holds whatever it is asked": {helperTest: "package lib_test\n\nis_denied(stale) if stale\n"},
		"a file beside it does":         {"lib/zz_test.rego": "package lib_test\n\nis_denied(stale) if stale\n"},
	} {
		weaker := maps.Clone(files)
		weaker[ruleRego] = ruleOf("input.stale\n\tinput.request.method == \"NONE\"")
		maps.Copy(weaker, changes)
		r := Trial{CoverageFloor: 1, Candidate: light(t, weaker), Active: active}.Try(t.Context())
		if r.Passed() || len(r.Problems) != 1 || r.Problems[0].Test != "data.keystile.rules.bad_test.test_stale_is_denied" {
			t.Errorf("%s: %v", name, r.Problems)
		}
		if len(r.ActiveTests) != len(all) {
			t.Errorf("%s: of %d tests in force %d were run", name, len(all), len(r.ActiveTests))
		}
	}

	// A rule more, with tests of its own, changes none of those in force.
	more := maps.Clone(files)
	more["more/more_test.rego"] = "package more_test\n\ntest_more if 1 == 1\n"
	if r := (Trial{CoverageFloor: 1, Candidate: light(t, more), Active: active}).Try(t.Context()); !r.Passed() || len(r.ActiveTests) != 0 {
		t.Errorf("a test more: %v, %d tests again", r.Problems, len(r.ActiveTests))
	}
}

// The candidate lacks a function that the tests in force speak of.
func TestGate_ATestThatDoesNotCompileAnyMoreDoesNotVanish(t *testing.T) {
	const pkg, ends = "data.keystile.rules.bad_test", "package keystile.rules.bad_test\n\nimport data.keystile.rules.bad\n"
	const lib = "package lib_test\n\nimport data.keystile.rules.bad\n\nallowed if not bad.holds(true)\n"
	for name, c := range map[string]struct {
		tests  map[string]string
		broken []string
	}{
		"a nested name": {
			map[string]string{ruleTest: ends + "\nstale.test_denied if bad.holds(true)\n\nstale[\"of old\"].test_denied[x] if some x in [bad.holds(true)]\n\nstale.todo_test_later if bad.holds(true)\n"},
			[]string{pkg + ".stale.test_denied", pkg + `.stale["of old"].test_denied`},
		},
		"a helper that is left out": {
			map[string]string{ruleTest: "package keystile.rules.bad_test\n\nimport data.lib_test\n\ntest_denied if not lib_test.allowed\n", helperTest: lib},
			[]string{pkg + ".test_denied"},
		},
		"a helper's helper": {
			map[string]string{
				ruleTest:   "package keystile.rules.bad_test\n\ntest_denied if not data.between_test.allowed\n",
				helperTest: lib, "between/between_test.rego": "package between_test\n\nimport data.lib_test as of\n\nallowed if of.allowed\n",
			},
			[]string{pkg + ".test_denied"},
		},
		"a helper in two files": {
			map[string]string{
				ruleTest:                            ends + "\ncases contains 1\n\ntest_all if {\n\tevery c in cases { c > 0 }\n}\n",
				"keystile/rules/bad/more_test.rego": ends + "\ncases contains 0 if bad.holds(true)\n",
				"keystile/rules/bad/zz_test.rego":   ends + "\ntest_other if count(bad.deny) == 0\n",
			},
			[]string{pkg + ".test_all"},
		},
	} {
		with := maps.Clone(c.tests)
		with[ruleRego] = ruleOf("holds(input.stale)") + "\nholds(x) if x\n"
		trial := Trial{CoverageFloor: 1, Active: light(t, with), Candidate: light(t, map[string]string{ruleRego: ruleOf("input.stale")})}
		r := trial.Try(t.Context())
		var failed []string
		for _, p := range r.Problems {
			failed = append(failed, p.Test)
			if p.File != ruleTest || p.Line == 0 || !strings.Contains(p.Message, "does not compile any more") {
				t.Errorf("%s: it is not told where and why: %v", name, p)
			}
		}
		if !slices.Equal(failed, c.broken) {
			t.Errorf("%s: %v", name, r.Problems)
		}
		trial.AcceptRemoved = c.broken
		if r = trial.Try(t.Context()); !r.Passed() || !slices.Equal(r.Accepted, c.broken) {
			t.Errorf("%s, named: %v, accepted %v", name, r.Problems, r.Accepted)
		}
	}
}
