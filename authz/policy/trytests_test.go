package policy

import (
	"maps"
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
