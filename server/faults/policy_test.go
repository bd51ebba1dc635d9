package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/supportstation/keystile/policies"
	"github.com/supportstation/keystile/sdk/admin"
)

// policyFiles are files of a policy by path; "" removes one.
type policyFiles map[string]string

// badPolicy is a policy that must be refused.
type badPolicy struct {
	name  string
	files policyFiles
	// says is what the refusal must say: file and line, where there is one.
	says string
}

// rule is a rule of its own with this condition.
func rule(condition string) policyFiles {
	return policyFiles{"keystile/rules/bad/bad.rego": `# METADATA
# title: Bad
# scope: package
# schemas:
#   - input: schema.check
package keystile.rules.bad

deny contains {"code": "bad", "message": "Bad."} if {
	` + condition + `
}
`}
}

func badPolicies() []badPolicy {
	const inRule = `keystile/rules/bad/bad\.rego:9: `
	return []badPolicy{
		{"syntax", rule("input.stale ==="), inRule},
		{"type", rule(`"a" + 1 == 2`), inRule + `.*type_error`},
		{"field of the input that is none", rule("input.reqest.method == `GET`"), inRule + `.*type_error`},
		{"strict: a variable that nothing uses", rule("unused := 1"), inRule + `.*unused`},
		{"http.send", rule(`http.send({"method": "GET", "url": "http://127.0.0.1"}).status_code == 200`), inRule + `.*http\.send`},
		{"the clock", rule(`time.now_ns() > 0`), inRule + `.*time\.now_ns`},
		{"a builtin replaced", rule("lower(`A`) with lower as `x`"), inRule},
		{"no entry point for checks", policyFiles{
			"keystile/check/check.rego": "package keystile.check\n\nverdict := true\n",
		}, `keystile/|data\.keystile\.check\.decision`},
		{"no entry point for admins", policyFiles{
			"keystile/admin/admin.rego": "package keystile.admin\n\nverdict := true\n", "keystile/admin/admin_test.rego": "",
		}, `data\.keystile\.admin\.decision`},
		{"data", policyFiles{"keystile/catalog/data.yaml": "scopes: [\n"}, `keystile/catalog/data\.yaml:[12]: `},
		{
			"tests that do not compile",
			policyFiles{"keystile/rules/bad/bad_test.rego": "package keystile.rules.bad_test\n\ntest_x if nowhere\n"},
			`keystile/rules/bad/bad_test\.rego:3: `,
		},
		{
			"a test that fails",
			policyFiles{"keystile/rules/bad/bad_test.rego": "package keystile.rules.bad_test\n\ntest_x if 1 == 2\n"},
			`keystile/rules/bad/bad_test\.rego:3: the test .*test_x fails`,
		},
		{
			"a result that is no boolean",
			policyFiles{"keystile/admin/admin.rego": "package keystile.admin\n\ndecision := {\"allow\": \"yes\", \"reasons\": []}\n", "keystile/admin/admin_test.rego": ""},
			`keystile/admin/admin\.rego:3: .*allow: it is string, not a boolean`,
		},
		{
			"a conflict",
			policyFiles{"keystile/check/bad.rego": "package keystile.check\n\nlimits := [{\"name\": \"none\"}]\n"},
			`keystile/check/(bad|limits)\.rego:\d+: .*conflict`,
		},
		{
			"an endless loop", rule("count([1 | some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); a * b == 0]) == 1"),
			inRule + `.*longer than its budget`,
		},
		{
			"5 MB of data",
			policyFiles{"keystile/rules/bad/data.yaml": "x: " + strings.Repeat("x", 5<<20) + "\n"},
			`keystile/rules/bad/data\.yaml: a policy's data has at most`,
		},
		{
			"a guarantee that is gone", policyFiles{
				"keystile/check/check.rego": "package keystile.check\n\nimport data.keystile.catalog\n\ndecision := {\"allow\": true, \"reasons\": [], \"required_scopes\": [], " +
					"\"missing_scopes\": [], \"route\": null, \"limits\": catalog.plan_limits.standard}\n",
				"keystile/check/check_test.rego": "",
			}, `keystile/check/check\.rego:5: .*never allowed`,
		},
	}
}

// gone are rules that go with their tests: that is noticed by the policy in force alone.
func gone() badPolicy {
	return badPolicy{
		"a rule that goes with its test", policyFiles{
			"keystile/rules/browser_use/browser_use.rego": "", "keystile/rules/browser_use/browser_use_test.rego": "",
			"keystile/rules/browser_use/data.yaml": "",
		}, `keystile/rules/browser_use/browser_use_test\.rego:\d+: the test .* of the policy in force fails`,
	}
}

// policyDir copies the shipped policies, with some files in place of others.
func (s *site) policyDir(name string, files policyFiles) string {
	s.Helper()
	dir := filepath.Join(s.dir, "policy-"+strings.ReplaceAll(name, " ", "-"))
	if err := os.CopyFS(dir, policies.FS); err != nil {
		s.Fatal(err)
	}
	for path, content := range files {
		path = filepath.Join(dir, path)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if content == "" {
			err = os.Remove(path)
		} else if err == nil {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			s.Fatal(err)
		}
	}
	return dir
}

// kinds of checks: one key for each code that is decided without a limit.
func (s *site) kinds(on *replica) map[*key]string {
	s.Helper()
	home := s.organization.String()
	create := func(change func(*admin.KeyCreate)) *key { return s.createKey(on, home, change) }
	at := func(path string) *key {
		k := create(nil)
		k.request = s.question(k, path)
		return k
	}
	client, yes := s.management(on), true
	revoked, disabled := create(nil), create(nil)
	organization := s.newOrganization(on, "Globex")
	suspended := s.createKey(on, organization, nil)
	_, err := client.RevokeKey(s.Context(), revoked.id.String())
	if err == nil {
		_, err = client.UpdateKey(s.Context(), disabled.id.String(), admin.KeyUpdate{Disabled: &yes})
	}
	if err == nil {
		_, err = client.UpdateOrganization(s.Context(), organization, admin.OrganizationUpdate{Suspended: &yes})
	}
	if err != nil {
		s.Fatal(err)
	}
	malformed := s.makeKeys(1)[0]
	malformed.request = s.checkWith([]byte(`{"key":"sk_live_x","method":"GET","path":"/api/v1/tickets"}`))
	return map[*key]string{
		create(nil): "allowed", at("/api/v1/tickets/42"): "allowed", at("/api/v1/tickets/../x"): "ambiguous_path",
		at("/api/v1/nowhere"): "unknown_route", at("/api/v1/customers"): "insufficient_scope",
		create(func(k *admin.KeyCreate) { k.Scopes = []string{"customers:read"} }):           "insufficient_scope",
		create(func(k *admin.KeyCreate) { k.Environment = admin.Test }):                      "environment_mismatch",
		create(func(k *admin.KeyCreate) { k.AllowedCidrs = &admin.CIDRs{"203.0.113.0/24"} }): "ip_not_allowed",
		revoked: "key_revoked", disabled: "key_disabled", suspended: "organization_suspended",
		s.makeKeys(1)[0]: "key_unknown", malformed: "key_malformed",
	}
}

// badPolicyPushed pushes policies in all four ways: a replica starts with a new
// KEYSTILE_POLICY_DIR, and only when it is ready would an old one be asked to end; the
// directory of one that serves is edited; one is published by a bundle server; one is
// activated.
func badPolicyPushed(t *trial) {
	s := newSite(t)
	replicas := s.start(3)
	want := s.kinds(replicas[0])
	var keys []*key
	for k := range want {
		keys = append(keys, k)
	}
	changed := func(all answers) answers {
		return all.where(func(a *answer) bool { return a.outcome() != want[a.key] })
	}
	s.eventually("every kind of check is answered as it should be", func() bool { return len(changed(s.once(replicas, keys...))) == 0 })
	revisions := s.revisions(replicas)
	l := s.startLoad(plan{to: replicas, keys: keys, rate: either(t, 1000, 60)})
	refused := 0
	for _, bad := range badPolicies() {
		dir := s.policyDir(bad.name, bad.files)
		end := s.tryServe(map[string]string{"KEYSTILE_POLICY_DIR": dir})
		if says := regexp.MustCompile(bad.says).MatchString(end.stderr); end.code == 3 && says {
			refused++
		} else {
			t.exact(false, "%s: exit code %d (3), what is wrong and where is told: %t: %.300q", bad.name, end.code, says, end.stderr)
		}
	}
	t.exact(refused == len(badPolicies()), "pushed by a rolling restart with another KEYSTILE_POLICY_DIR: "+
		"%d of %d bad ones refused at start, exit code 3, with file, line and reason", refused, len(badPolicies()))
	activated := append(badPolicies(), gone())
	refused = s.pushByActivation(replicas[0], activated)
	t.exact(refused == len(activated), "activated: %d of %d refused, with file, line and reason", refused, len(activated))
	dir := s.policyDir("watched", nil)
	watching := s.start(1, map[string]string{"KEYSTILE_POLICY_DIR": dir})
	s.eventually("every kind of check is answered there as well", func() bool { return len(changed(s.once(watching, keys...))) == 0 })
	l.join(watching[0])
	edited := activated[:either(t, len(activated), 3)]
	refused = s.pushByDirectory(watching[0], dir, edited)
	t.exact(refused == len(edited), "edited in a directory that is watched: %d of %d refused, with file, line and reason", refused, len(edited))
	l.leave(watching[0])
	// A receipt would name it: it takes its policy from elsewhere.
	if err := watching[0].terminate(); err != nil {
		t.Error(err)
	}
	publisher := s.newPublisher()
	publisher.publish(1, nil)
	taking := s.start(either(t, 3, 1), publisher.env)
	for _, r := range taking {
		l.join(r)
	}
	refused, pushed := s.pushByBundle(publisher, taking, activated[:either(t, len(activated), 2)])
	t.exact(refused == pushed && pushed > 0, "published by a bundle server: %d of %d that can be signed refused on all of %d, with file, line and reason", refused, pushed, len(taking))
	for _, r := range taking {
		l.leave(r)
		if err := r.terminate(); err != nil {
			t.Error(err)
		}
	}
	t.exact(s.revisions(replicas) == revisions, "the old ones serve the same revision")

	good := s.start(1, map[string]string{"KEYSTILE_POLICY_DIR": s.policyDir("good", nil)})
	l.join(good[0])
	t.exact(within(patience, func() bool { return len(changed(s.once(good, keys...))) == 0 }), "a good one is taken, and decides the same")
	l.leave(good[0])
	if err := good[0].terminate(); err != nil {
		t.Error(err)
	}
	s.activatesEverywhere(replicas)
	all := l.stop()
	// What a busy machine could not decide in time is no other decision.
	t.exact(len(all) > 0 && len(changed(all).except("unavailable", "no answer")) == 0, "changed decisions: %d of %d, of %d kinds",
		len(changed(all).except("unavailable", "no answer")), len(all), len(want))
	t.timed(len(changed(all)) == 0, "not decided: %v", changed(all))
}

var revisionText = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// revisions are the policies in force.
func (s *site) revisions(replicas []*replica) string {
	s.Helper()
	all := []string{}
	for _, r := range replicas {
		_, page, err := fetch(s.Context(), r.opsURL+"/readyz")
		if err != nil {
			s.Fatal(err)
		}
		all = append(all, revisionText.FindString(page))
	}
	return fmt.Sprint(all)
}
