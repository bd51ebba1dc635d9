package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/supportstation/keystile/sdk/admin"
)

// activationPolicy is a policy as it is activated.
func (s *site) activationPolicy(dir string) admin.PolicyFiles {
	s.Helper()
	files := admin.PolicyFiles{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		if base := filepath.Base(path); err != nil || entry.IsDir() || filepath.Ext(base) != ".rego" && base != "data.yaml" {
			return err
		}
		raw, err := os.ReadFile(path)
		files[filepath.ToSlash(name)] = string(raw)
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	return files
}

// pushByActivation activates bad policies; each must be refused with what is wrong.
func (s *site) pushByActivation(on *replica, all []badPolicy) (refused int) {
	s.Helper()
	client := s.management(on)
	for _, bad := range all {
		files := s.activationPolicy(s.policyDir(bad.name+" activated", bad.files))
		_, err := client.ActivatePolicy(s.Context(), admin.PolicyActivate{Files: &files})
		var refusal *admin.Error
		said := ""
		if errors.As(err, &refusal) {
			for _, reason := range refusal.Reasons {
				said += reason.Message + "\n"
			}
		}
		if refusal != nil && refusal.Code == "policy_refused" && regexp.MustCompile(bad.says).MatchString(said) {
			refused++
			continue
		}
		s.exact(false, "%s, activated: %v, reasons %.400q", bad.name, err, said)
	}
	return refused
}

// pushByDirectory edits the directory of a replica; each bad edit must be refused, and said
// on the ops listener.
func (s *site) pushByDirectory(r *replica, dir string, all []badPolicy) (refused int) {
	s.Helper()
	for _, bad := range all {
		undo := s.edit(dir, bad.files)
		said, says := "", regexp.MustCompile(bad.says)
		if within(patience, func() bool { said = s.refusal(r); return says.MatchString(said) }) {
			refused++
		} else {
			s.exact(false, "%s, edited: the ops listener says %.600q", bad.name, said)
		}
		s.edit(dir, undo)
		s.eventually("the directory is good again", func() bool { return s.refusal(r) == "" })
	}
	return refused
}

// refusal is why a replica refuses what is to be in force there, a problem a line; "" when
// it refuses nothing.
func (s *site) refusal(r *replica) string {
	s.Helper()
	_, page, err := fetch(s.Context(), r.opsURL+"/readyz")
	if err != nil {
		s.Fatal(err)
	}
	var told struct {
		Details struct {
			Policy struct {
				Refused *struct {
					Problems []struct {
						File, Message string
						Line          int
					}
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(page), &told); err != nil {
		s.Fatalf("the ops listener said %q", page)
	}
	if told.Details.Policy.Refused == nil {
		return ""
	}
	text := "refused:\n"
	for _, p := range told.Details.Policy.Refused.Problems {
		switch {
		case p.File == "":
			text += p.Message + "\n"
		case p.Line == 0:
			text += p.File + ": " + p.Message + "\n"
		default:
			text += fmt.Sprintf("%s:%d: %s\n", p.File, p.Line, p.Message)
		}
	}
	return text
}

// edit writes files, or removes them, and returns what undoes that.
func (s *site) edit(dir string, files policyFiles) (undo policyFiles) {
	s.Helper()
	undo = policyFiles{}
	for name, text := range files {
		path := filepath.Join(dir, name)
		raw, _ := os.ReadFile(path)
		undo[name] = string(raw)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		switch {
		case err != nil:
		case text == "":
			err = os.Remove(path)
		default:
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil {
			s.Fatal(err)
		}
	}
	return undo
}

// goodEdit is a rule that changes nothing that is asked here, with its test.
func goodEdit() policyFiles {
	return policyFiles{
		"keystile/rules/good/good.rego": `# METADATA
# title: Good
# description: good. For tests.
package keystile.rules.good

deny contains {"code": "good", "message": "Good."} if input.request.method == "TRACE"
`,
		"keystile/rules/good/good_test.rego": `package keystile.rules.good_test

import data.keystile.rules.good

test_denied if count(good.deny) == 1 with input as {"request": {"method": "TRACE"}}

test_not_denied if count(good.deny) == 0 with input as {"request": {"method": "GET"}}
`,
	}
}

// activatesEverywhere states how long a good policy takes to decide on every replica.
func (s *site) activatesEverywhere(replicas []*replica) {
	s.Helper()
	files := s.activationPolicy(s.policyDir("good edit", goodEdit()))
	began := time.Now()
	change, err := s.management(replicas[0]).ActivatePolicy(s.Context(), admin.PolicyActivate{Files: &files})
	if err != nil {
		s.exact(false, "a good policy is refused: %v", err)
		return
	}
	took := time.Since(began)
	e := change.Effective
	s.exact(e != nil && len(e.Silent) == 0, "a good one, activated, decides on %d of %d replicas by its receipt", e.Acknowledged, e.Replicas)
	s.timed(took <= 2*time.Second, "after %.2f s (≤ 2 s)", took.Seconds())
}
