package policy

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/supportstation/keystile/authz"
)

// candidate is the shipped policy with files changed: an empty text leaves one out. With the
// race detector it has all of its tests but the one that takes as long as all others, and
// findings only where they are changed.
func candidate(t *testing.T, changes map[string]string) *Source {
	t.Helper()
	files := with(t, changes)
	if raceEnabled {
		withoutFindings(files, changes)
	}
	if f := files[checkTest]; raceEnabled && f != nil {
		before, rest, ok := strings.Cut(string(f.Data), "test_allowed_in_place_exactly_as_by_rule if {")
		if _, after, ends := strings.Cut(rest, "\n}\n"); ok && ends {
			files[checkTest] = &fstest.MapFile{Data: []byte(before + after)}
		}
	}
	return mustRead(t, files)
}

// light is candidate without the shipped tests that take long, where they are not the point.
func light(t *testing.T, changes map[string]string) *Source {
	t.Helper()
	changes = maps.Clone(changes)
	if changes == nil {
		changes = map[string]string{}
	}
	for _, name := range []string{checkTest, "keystile/catalog/catalog_test.rego", "system/log/mask_test.rego"} {
		changes[name] = ""
	}
	files := with(t, changes)
	withoutFindings(files, changes)
	return mustRead(t, files)
}

// withoutFindings takes the package out unless it is what is changed: the gate asks it much.
func withoutFindings(files fstest.MapFS, changes map[string]string) {
	const findings = "keystile/findings/"
	for name := range changes {
		if strings.HasPrefix(name, findings) {
			return
		}
	}
	for name := range files {
		if strings.HasPrefix(name, findings) {
			delete(files, name)
		}
	}
}

func mustRead(t *testing.T, fsys fs.FS) *Source {
	t.Helper()
	s, err := ReadSource(t.Context(), fsys)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// edited is a file of the shipped policy with one text in place of another.
func edited(t *testing.T, name, from, to string) string {
	t.Helper()
	raw, err := fs.ReadFile(shipped(), name)
	if err != nil || strings.Count(string(raw), from) != 1 {
		t.Fatalf("%s: %q is there %d times, not once; %v", name, from, strings.Count(string(raw), from), err)
	}
	return strings.Replace(string(raw), from, to, 1)
}

const (
	checkRego  = "keystile/check/check.rego"
	fencesRego = "keystile/check/fences.rego"
	adminRego  = "keystile/admin/admin.rego"
	checkTest  = "keystile/check/check_test.rego"
	ruleRego   = "keystile/rules/bad/bad.rego"
	ruleTest   = "keystile/rules/bad/bad_test.rego"
)

// ruleOf is a deny rule of its own with this condition.
func ruleOf(condition string) string {
	return "# METADATA\n# title: Bad\n# description: bad. For tests.\npackage keystile.rules.bad\n\n" +
		"deny contains {\"code\": \"bad\", \"message\": \"Bad.\"} if {\n\t" + condition + "\n}\n"
}

func TestTrial_TheShippedPolicyPasses(t *testing.T) {
	r := Trial{Candidate: mustRead(t, shipped()), CoverageFloor: 100}.Try(t.Context())
	if !r.Passed() {
		t.Fatal(r.Problems)
	}
	passed, failed, skipped := r.Counts()
	if passed < 80 || failed+skipped > 0 || r.Coverage != 100 || r.Questions < 100 || r.Against != "" {
		t.Errorf("%d passed, %d failed, %d skipped, %.1f %%, %d questions, against %q", passed, failed, skipped, r.Coverage, r.Questions, r.Against)
	}
	t.Logf("%d tests, %d questions, %.2f s", passed, r.Questions, r.Seconds)
}

// Each is one way to break a policy; its problem names file, line and reason.
func TestTrial_ABrokenPolicyIsRefusedWithFileLineAndReason(t *testing.T) {
	loop := "count([1 | some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); a * b == 0]) == 1"
	for name, c := range map[string]struct {
		changes map[string]string
		stage   authz.PolicyStage
		wants   string
	}{
		"syntax":                 {map[string]string{ruleRego: ruleOf("input.stale ===")}, authz.StageLoad, `^keystile/rules/bad/bad\.rego:7: rego_parse_error`},
		"type":                   {map[string]string{ruleRego: ruleOf(`"a" + 1 == 2`)}, authz.StageLoad, `^keystile/rules/bad/bad\.rego:7: rego_type_error`},
		"unknown field of input": {map[string]string{ruleRego: ruleOf("input.reqest.method == `GET`")}, authz.StageLoad, `^keystile/rules/bad/bad\.rego:7: rego_type_error.*reqest`},
		"forbidden builtin":      {map[string]string{ruleRego: ruleOf("time.now_ns() > 0")}, authz.StageLoad, `^keystile/rules/bad/bad\.rego:7: rego_type_error.*time\.now_ns`},
		"missing entry point": {
			map[string]string{checkRego: "package keystile.check\n\nverdict := true\n"}, authz.StageLoad, `^keystile/check/.*\.rego:\d+: .*decision`,
		},
		"failing test": {
			map[string]string{
				ruleRego: ruleOf("input.stale"),
				ruleTest: "package keystile.rules.bad_test\n\nimport data.keystile.rules.bad\n\ntest_x if count(bad.deny) == 2 with input as {\"stale\": true}\n",
			}, authz.StageTests, `^keystile/rules/bad/bad_test\.rego:5: the test data\.keystile\.rules\.bad_test\.test_x fails: it does not hold`,
		},
		"result that is no boolean": {
			map[string]string{
				adminRego: "package keystile.admin\n\ndecision := {\"allow\": \"no\", \"reasons\": []}\n", "keystile/admin/admin_test.rego": "",
			}, authz.StageInvariants, `^keystile/admin/admin\.rego:3: .*allow: it is string, not a boolean`,
		},
		"conflict": {
			map[string]string{ruleRego: "package keystile.check\n\nlimits := [{\"name\": \"none\"}]\n"},
			authz.StageInvariants,
			`^keystile/(check/limits|rules/bad/bad)\.rego:\d+: .*eval_conflict_error`,
		},
		"endless loop": {
			map[string]string{ruleRego: ruleOf(loop)}, authz.StageInvariants, `^keystile/rules/bad/bad\.rego:7: .*took longer than its budget`,
		},
		"5 MB of data": {
			map[string]string{"keystile/rules/bad/data.yaml": "x: " + strings.Repeat("x", 5<<20) + "\n"},
			authz.StageLoad,
			`^keystile/rules/bad/data\.yaml: a policy's data has at most 4194304 bytes`,
		},
		"untested rule": {
			map[string]string{
				ruleRego: ruleOf("input.stale") + strings.Repeat("\nunused(x) if {\n\tx > 1\n\tx > 2\n\tx > 3\n}\n", 60),
			}, authz.StageCoverage, `^keystile/rules/bad/bad\.rego:\d+: the policy's tests reach \d+\.\d % of its lines; at least 80 %`,
		},
	} {
		source, err := ReadSource(t.Context(), with(t, c.changes))
		var r *authz.PolicyReport
		if err != nil {
			r = Unreadable(err)
		} else {
			r = Trial{Candidate: source}.Try(t.Context())
		}
		if r.Passed() {
			t.Errorf("%s: it passed", name)
			continue
		}
		wanted := regexp.MustCompile(c.wants)
		if !slices.ContainsFunc(r.Problems, func(p authz.PolicyProblem) bool { return p.Stage == c.stage && wanted.MatchString(p.String()) }) {
			t.Errorf("%s: no problem of stage %s matches %s: %v", name, c.stage, c.wants, r.Problems)
		}
	}
}

// Each takes one guarantee out of the policy, and its tests as well: only the invariants are left to notice.
func TestInvariants_NoPolicyBreaksAGuarantee(t *testing.T) {
	for name, c := range map[string]struct {
		changes map[string]string
		wants   string
	}{
		"scopes": {
			map[string]string{"keystile/check/scopes.rego": edited(t, "keystile/check/scopes.rego", "\tnot held(scope)\n", "\tscope == \"none\"\n")},
			"a key with no scope at all is never allowed",
		},
		"environment": {
			map[string]string{fencesRego: edited(t, fencesRego, "\tinput.request.environment in {\"\", input.key.environment}\n", "")},
			"a key of another environment than the one asked for is never allowed",
		},
		"organization": {
			map[string]string{fencesRego: edited(t, fencesRego, "{\"\", input.organization.id, input.organization.external_id}", "{x | some x in [object.get(input.request.resource, \"organization\", \"\")]}")},
			"a key is never allowed what belongs to another organization",
		},
		"address": {
			map[string]string{fencesRego: edited(t, fencesRego, "\tnet.cidr_contains(cidr, input.request.client_ip)\n", "\tcidr != \"\"\n")},
			"a key that is fenced by address is never allowed from outside",
		},
		"limits": {
			map[string]string{"keystile/check/limits.rego": edited(t, "keystile/check/limits.rego", "catalog.plan_limits[input.organization.plan] if", "[] if")},
			"was allowed without a limit",
		},
		"admins": {
			map[string]string{adminRego: edited(t, adminRego, "\tinput.actor.organization == input.organization.id\n\t[resource", "\t[resource")},
			"an admin of an organization may never do anything in another",
		},
		"way back": {
			map[string]string{adminRego: edited(t, adminRego, "permitted if input.actor.role == \"platform_admin\"", "permitted if {\n\tinput.actor.role == \"platform_admin\"\n\tnot startswith(input.action, \"policy.\")\n}")},
			"a platform admin may always do policy",
		},
	} {
		loaded, err := candidate(t, c.changes).Load(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p, err := candidate(t, c.changes).parse()
		if err != nil {
			t.Fatal(err)
		}
		_, problems, _ := invariants(t.Context(), loaded, p.data)
		if !strings.Contains(fmt.Sprint(problems), c.wants) {
			t.Errorf("%s: the invariants found %v", name, problems)
		}
	}
}

// A guarantee holds whatever else is true of a request, and is asked about in each of these.
func TestInvariants_HoldInEverySetting(t *testing.T) {
	for _, s := range settings()[1:] {
		condition := map[string]string{
			" while Postgres does not answer": "input.stale", " of a resource": `input.request.resource.type == "ticket"`,
			" from an IPv6 address":         `contains(input.request.client_ip, ":")`,
			" with a key that has metadata": "input.key.metadata.invariant", " from a browser": "input.request.browser",
			" with a restricted key": "input.key.restricted", " without a client's address": `input.request.client_ip == ""`,
		}[s.name]
		if condition == "" {
			t.Fatalf("no condition for %q", s.name)
		}
		weaker := candidate(t, map[string]string{
			"keystile/check/scopes.rego": edited(t, "keystile/check/scopes.rego", "\tnot held(scope)\n", "\tnot held(scope)\n\tnot open\n") + "\nopen if " + condition + "\n",
			// What is denied anyhow is nobody's loss.
			"keystile/rules/browser_use/data.yaml": "enabled: false\n",
		})
		loaded, err := weaker.Load(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		p, err := weaker.parse()
		if err != nil {
			t.Fatal(err)
		}
		_, problems, _ := invariants(t.Context(), loaded, p.data)
		if said := fmt.Sprint(problems); !strings.Contains(said, "a key with no scope at all is never allowed") || !strings.Contains(said, s.name+" was allowed") {
			t.Errorf("%s: the invariants found %v", s.name, problems)
		}
	}
}

// A rule where no decision looks for one is taken for being in force, and is not.
func TestTrial_ARuleThatNobodyAsksIsRefused(t *testing.T) {
	const deep = "keystile/rules/team/bad/bad.rego"
	r := Trial{Candidate: candidate(t, map[string]string{
		deep: "package keystile.rules.team.bad\n\ndeny contains {\"code\": \"closed\", \"message\": \"Closed.\"} if input.stale\n",
	}), CoverageFloor: 1}.Try(t.Context())
	if r.Passed() || r.Problems[0].File != deep || r.Problems[0].Line != 1 || !strings.Contains(r.Problems[0].Message, "keystile.rules.NAME") {
		t.Errorf("%v", r.Problems)
	}
}

// Whoever mistypes a rule's package, or writes its switch in quotes, takes it for being in force.
func TestTrial_ARuleThatWouldDenyNothingIsRefusedWithItsPlaceAndWhatToWrite(t *testing.T) {
	const rule, data = "keystile/rules/bad/bad.rego", "keystile/rules/bad/data.yaml"
	denying := func(name string) string {
		return "package " + name + "\n\ndeny contains {\"code\": \"closed\", \"message\": \"Closed.\"} if input.stale\n"
	}
	for name, c := range map[string]struct {
		files map[string]string
		file  string
		line  int
		want  string
	}{
		"rule, not rules":          {map[string]string{rule: denying("keystile.rule.bad")}, rule, 1, "write: package keystile.rules.bad"},
		"the name of another":      {map[string]string{rule: "# a rule\n\n" + denying("keystile.rules.bed")}, rule, 3, "write: package keystile.rules.bad"},
		"elsewhere, asked by none": {map[string]string{"keystile/more/more.rego": denying("keystile.more")}, "keystile/more/more.rego", 1, "keystile.rules.NAME"},
		"a string for a switch":    {map[string]string{rule: denying("keystile.rules.bad"), data: "# on\nenabled: \"yes\"\n"}, data, 2, "the string \"yes\"; write enabled: true"},
		"a number for a switch":    {map[string]string{rule: denying("keystile.rules.bad"), data: "enabled: 1\n"}, data, 1, "the number 1; write enabled: true"},
		"nothing for a switch":     {map[string]string{rule: denying("keystile.rules.bad"), data: "enabled:\n"}, data, 1, "null; write enabled: true"},
		"a switch from above": {
			map[string]string{rule: denying("keystile.rules.bad"), "keystile/rules/data.yaml": "bad:\n  x: 1\n  enabled: [true]\n"},
			"keystile/rules/data.yaml", 3, "a list; write enabled: true",
		},
	} {
		r := Trial{Candidate: light(t, c.files), CoverageFloor: 1}.Try(t.Context())
		if r.Passed() || r.Problems[0].File != c.file || r.Problems[0].Line != c.line || !strings.Contains(r.Problems[0].Message, c.want) {
			t.Errorf("%s: %v; want %s:%d: %s", name, r.Problems, c.file, c.line, c.want)
		}
	}
	for name, files := range map[string]map[string]string{
		"a helper that a rule asks": {
			rule:                           "package keystile.rules.bad\n\nimport data.lib\n\ndeny contains {\"code\": \"closed\", \"message\": \"Closed.\"} if lib.closed\n",
			"lib/lib.rego":                 "package lib\n\nclosed if input.stale\n",
			"keystile/rules/bad/data.yaml": "enabled: false\n",
		},
		"a helper below a rule": {
			rule:                              "package keystile.rules.bad\n\nimport data.keystile.rules.bad.lib\n\ndeny contains {\"code\": \"closed\", \"message\": \"Closed.\"} if lib.closed\n",
			"keystile/rules/bad/lib/lib.rego": "package keystile.rules.bad.lib\n\nclosed if input.stale\n",
		},
		"data of another kind": {"keystile/admin/more/data.yaml": "enabled: \"yes\"\n"},
	} {
		if r := (Trial{Candidate: light(t, files), CoverageFloor: 1}).Try(t.Context()); !r.Passed() {
			t.Errorf("%s: %v", name, r.Problems)
		}
	}
}

const testedRule = "package keystile.rules.bad_test\n\nimport data.keystile.rules.bad\n\n" +
	"test_stale_is_denied if count(bad.deny) == 1 with input as {\"stale\": true}\n\n" +
	"test_fresh_is_not if count(bad.deny) == 0 with input as {\"stale\": false}\n"

func TestTrial_TheActivePolicysTestsMustGoOnToHold(t *testing.T) {
	active := light(t, map[string]string{ruleRego: ruleOf("input.stale"), ruleTest: testedRule})
	const denied, fresh = "data.keystile.rules.bad_test.test_stale_is_denied", "data.keystile.rules.bad_test.test_fresh_is_not"

	gone := Trial{CoverageFloor: 1, Candidate: light(t, nil), Active: active}
	r := gone.Try(t.Context())
	if r.Passed() || len(r.Problems) != 2 || r.Problems[1].Test != denied || r.Problems[1].Line != 5 || r.Against != active.revision {
		t.Errorf("a rule that is gone with its test: %v", r.Problems)
	}
	if all := (Trial{CoverageFloor: 1, Candidate: active}).Try(t.Context()).Tests; len(r.ActiveTests) != len(all) {
		t.Errorf("of %d tests in force %d were run: one package's can hold by another's helpers", len(all), len(r.ActiveTests))
	}
	for _, accept := range [][]string{{denied, fresh}, {"data.keystile.rules.bad_test.*"}} {
		gone.AcceptRemoved = accept
		if r = gone.Try(t.Context()); !r.Passed() || !slices.Equal(r.Accepted, []string{fresh, denied}) {
			t.Errorf("accepted as %v: %v, %v", accept, r.Problems, r.Accepted)
		}
	}
	gone.AcceptRemoved = []string{fresh, "data.keystile.rules.*x"}
	if r = gone.Try(t.Context()); r.Passed() {
		t.Error("another test was accepted")
	}

	// The rule is weaker, and its test was weakened along.
	weaker := light(t, map[string]string{
		ruleRego: ruleOf("input.stale\n\tinput.request.method == \"POST\""),
		ruleTest: strings.ReplaceAll(testedRule, "{\"stale\": true}", "{\"stale\": true, \"request\": {\"method\": \"POST\"}}"),
	})
	if r = (Trial{CoverageFloor: 1, Candidate: weaker, Active: active}).Try(t.Context()); r.Passed() || r.Problems[0].Stage != authz.StageActiveTests {
		t.Errorf("a rule that is weakened with its test: %v", r.Problems)
	}

	// A function is gone: the test does not even compile any more.
	functions := light(t, map[string]string{
		ruleRego: ruleOf("holds(input.stale)") + "\nholds(x) if x\n",
		ruleTest: testedRule + "\ntest_holds if bad.holds(true)\n",
	})
	r = Trial{CoverageFloor: 1, Candidate: light(t, map[string]string{ruleRego: ruleOf("input.stale"), ruleTest: testedRule}), Active: functions}.Try(t.Context())
	if r.Passed() || !strings.Contains(fmt.Sprint(r.Problems), "test_holds") || !strings.Contains(fmt.Sprint(r.Problems), "does not compile any more") {
		t.Errorf("a function that is gone: %v", r.Problems)
	}

	if r = (Trial{CoverageFloor: 1, Candidate: active, Active: active}).Try(t.Context()); !r.Passed() || r.Against != active.revision || len(r.ActiveTests) != 0 {
		t.Errorf("the same policy: %v, %d tests again", r.Problems, len(r.ActiveTests))
	}
}

func TestGate_ReportsAsTheTrialItselfDoes(t *testing.T) {
	source := candidate(t, nil)
	r, err := newTestGate(t, 0).Try(t.Context(), Trial{Candidate: source, Active: source})
	if err != nil || !r.Passed() || r.Revision != source.revision || len(r.Tests) < 80 {
		t.Fatalf("%+v, %v", r, err)
	}
	bad := candidate(t, map[string]string{ruleRego: ruleOf("input.reqest == 1")})
	if r, err = newTestGate(t, 0).Try(t.Context(), Trial{Candidate: bad}); err != nil || r.Passed() || r.Problems[0].Line != 7 {
		t.Errorf("%+v, %v", r, err)
	}
}

// What a builtin does in one step no deadline of OPA's ends.
func TestGate_TimeAndMemoryAreBounded(t *testing.T) {
	t.Parallel()
	slow := "package keystile.rules.bad_test\n\ntest_slow if {\n\tx := numbers.range(1, 100000)\n\ty := [a | some a in x; some b in x; a + b < 0]\n\tcount(y) == 0\n}\n"
	r, err := newTestGate(t, 8*time.Second).Try(t.Context(), Trial{Candidate: candidate(t, map[string]string{ruleTest: slow})})
	if err != nil || r.Passed() || !strings.Contains(fmt.Sprint(r.Problems), "longer than") {
		t.Errorf("time: %+v, %v", r, err)
	} else if p := r.Problems[0]; p.File != ruleTest || p.Line < 3 {
		t.Errorf("time: the place is not told: %v", p)
	}
	large := "package keystile.rules.bad_test\n\ntest_large if {\n\tx := concat(\"\", [\"0123456789\" | some _ in numbers.range(1, 100000)])\n" +
		"\ty := concat(\"\", [x | some _ in numbers.range(1, 700)])\n\tz := lower(y)\n\tz != upper(z)\n}\n"
	r, err = newTestGate(t, 30*time.Second).Try(t.Context(), Trial{Candidate: candidate(t, map[string]string{ruleTest: large})})
	says := "MiB of memory; this is where it was"
	if raceEnabled {
		says = "memory" // the detector takes several times as much, and meets the last bound first
	}
	if err != nil || r.Passed() || !strings.Contains(fmt.Sprint(r.Problems), says) {
		t.Errorf("memory: %+v, %v", r, err)
	}
}

func TestGate_ATrialThatCannotBeMadeIsAnError(t *testing.T) {
	if r, err := NewGate(0, "/nonexistent/program").Try(t.Context(), Trial{Candidate: candidate(t, nil)}); err == nil {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := newTestGate(t, 0).Try(ctx, Trial{Candidate: candidate(t, nil)}); err == nil {
		t.Errorf("%+v", r)
	}
}

func TestArchive_ThePolicyComesBackAsItWas(t *testing.T) {
	source := candidate(t, nil)
	archive, err := source.Archive()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ReadArchive(archive)
	if err != nil || back.revision != source.revision || len(back.files) != len(source.files) {
		t.Fatalf("%v, %v", back, err)
	}
	again, err := source.Archive()
	if err != nil || !bytes.Equal(again, archive) {
		t.Error("the same policy has another archive")
	}
	if _, err := SourceOf(back.Files()); err != nil {
		t.Error(err)
	}
	for _, broken := range [][]byte{nil, []byte("no gzip"), archive[:len(archive)/2]} {
		if s, err := ReadArchive(broken); err == nil {
			t.Errorf("an archive of %d bytes gave %v", len(broken), s)
		}
	}
}

func TestSourceOf_PathsStayInside(t *testing.T) {
	for _, name := range []string{"../x.rego", "/x.rego", "a/../../x.rego", ".x.rego", "a/.x/y.rego", `a\x.rego`, "", "x.json", "x.txt", "a/b.yaml"} {
		if s, err := SourceOf(map[string]string{"a.rego": "package a\n", name: "package b\n"}); err == nil {
			t.Errorf("%q was taken: %v", name, s)
		}
	}
}

// An input that lacks its caller is asked for last of all; what never ends there is found too.
func TestTrial_AnAnswerThatNeverEndsIsNoPass(t *testing.T) {
	loop := "not input.caller\n\tcount([1 | some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); a * b == 0]) == 1"
	r := Trial{Candidate: candidate(t, map[string]string{ruleRego: ruleOf(loop)})}.Try(t.Context())
	if r.Passed() || r.Complete || !strings.Contains(fmt.Sprint(r.Problems), "longer than its budget") {
		t.Errorf("%+v", r.Problems)
	}
}

func TestTrial_WhatWasNotTriedHasNotPassed(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	source := light(t, nil)
	cancel()
	if r := (Trial{CoverageFloor: 1, Candidate: source, Active: light(t, map[string]string{ruleRego: ruleOf("input.stale"), ruleTest: testedRule})}).Try(ctx); r.Passed() {
		t.Errorf("%+v", r)
	}
	p, err := source.parse()
	if err != nil {
		t.Fatal(err)
	}
	if results, err := runTests(ctx, p.all, p.data, nil); err == nil {
		t.Errorf("of a trial that was ended %d results are a pass", len(results))
	}
	if (&authz.PolicyReport{Revision: source.revision}).Passed() || new(authz.PolicyReport).Passed() {
		t.Error("a report of nothing passes")
	}
}

func TestTrial_NothingOfTheCandidateHelpsTheTestsInForce(t *testing.T) {
	const withHelper = testedRule + "\nis_denied(stale) if count(bad.deny) == 1 with input as {\"stale\": stale}\n\ntest_by_helper if is_denied(true)\n"
	active := light(t, map[string]string{ruleRego: ruleOf("input.stale"), ruleTest: withHelper})
	// The rule is gone; a file beside the tests, or a rule of the policy, would have them hold.
	weaker := map[string]string{ruleRego: ruleOf("input.stale\n\tinput.request.method == \"NONE\""), ruleTest: withHelper}
	beside := maps.Clone(weaker)
	beside["keystile/rules/bad/zz_test.rego"] = "package keystile.rules.bad_test\n\nis_denied(_) if 1 == 1\n"
	r := Trial{CoverageFloor: 1, Candidate: light(t, beside), Active: active}.Try(t.Context())
	if r.Passed() || !slices.ContainsFunc(r.ActiveTests, func(x authz.PolicyTest) bool { return strings.HasSuffix(x.Name, ".test_by_helper") && x.Failed() }) {
		t.Errorf("a file beside the tests: %v", r.ActiveTests)
	}
	for _, text := range []string{
		"package keystile.rules\n\nbad_test.is_denied(_) if 1 == 1\n",
		"package keystile\n\nrules[x].is_denied := 1 if some x in [\"bad_test\"]\n",
		"package keystile.rules.bad_test.more\n\nx := 1\n",
	} {
		leading := maps.Clone(weaker)
		leading["keystile/rules/bad/zz.rego"] = text
		if r := (Trial{CoverageFloor: 1, Candidate: light(t, leading), Active: active}).Try(t.Context()); r.Passed() || !strings.Contains(fmt.Sprint(r.Problems), "leads into a package *_test") {
			t.Errorf("a rule that leads into the tests: %v", r.Problems)
		}
	}
}
