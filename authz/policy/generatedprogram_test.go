package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

// decideAll is what the program is asked: all questions of one policy at once.
const decideAll = `[answer | some question in input.questions; answer := data.keystile.check.decision with input as question]`

// The same as the program says: an auditor who runs `opa eval` on a policy's folder, with a
// question as its input, reads what the service decides.
func TestEngine_AnswersAsTheStockProgramDoes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 6))
	policies := generatedPolicies
	if raceEnabled {
		policies /= 25
	}
	decided, undecided := 0, 0
	for n := range policies {
		files := generated(t, random)
		dir := written(t, files)
		engine := NewEngine(mustLoad(t, files))
		var questions, hopeless []any
		var want []authz.Verdict
		for range generatedChecks {
			k, c := generatedKey(random), generatedCheck(random)
			got, err := evaluate(t, engine, k, c)
			question := plainInput(t, engine.names, k, c)
			if err != nil {
				hopeless = append(hopeless, question)
				continue
			}
			got.Revision = ""
			questions, want = append(questions, question), append(want, got)
		}
		answers, err := askProgram(t, dir, questions)
		if err != nil || len(answers) != len(questions) {
			t.Fatalf("policy %d: %d answers to %d questions, %v\n%s", n, len(answers), len(questions), err, files["keystile/rules/generated/generated.rego"].Data)
		}
		for i, answer := range answers {
			stock, err := verdictOf(answer)
			if err != nil {
				t.Fatalf("policy %d: %v", n, err)
			}
			want[i].Cataloged = false // the service's own knowledge
			if diff := cmp.Diff(stock, want[i]); diff != "" {
				t.Fatalf("policy %d: (-stock +ours)\n%s\n%s", n, diff, files["keystile/rules/generated/generated.rego"].Data)
			}
		}
		decided, undecided = decided+len(questions), undecided+len(hopeless)
		// One of those that the service did not decide, by itself: an error ends all.
		if len(hopeless) > 0 {
			answers, err := askProgram(t, dir, hopeless[:1])
			if err == nil && len(answers) == 1 {
				_, err = verdictOf(answers[0])
			}
			if err == nil && len(answers) == 1 {
				t.Fatalf("policy %d: stock says %v to %v\n%s", n, answers, hopeless[0], files["keystile/rules/generated/generated.rego"].Data)
			}
		}
	}
	t.Logf("%d decided, %d undecided", decided, undecided)
	if decided == 0 || undecided == 0 && !raceEnabled {
		t.Error("the policies are too much alike")
	}
}

// written is a folder with these files.
func written(t *testing.T, files fstest.MapFS) string {
	t.Helper()
	dir := t.TempDir()
	for name, f := range files {
		at := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o750), os.WriteFile(at, f.Data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// plainInput is a question as a file would have it.
func plainInput(t *testing.T, n *names, k *authz.Key, c *authz.Check) any {
	t.Helper()
	input, err := n.input(k, c)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ast.JSON(input.Value)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func verdictOf(answer any) (authz.Verdict, error) {
	value, err := ast.InterfaceToValue(answer)
	if err != nil {
		return authz.Verdict{}, err
	}
	return verdict(value)
}

// askProgram runs `opa eval` on a folder.
func askProgram(t *testing.T, dir string, questions []any) ([]any, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	input, err := json.Marshal(map[string]any{"questions": questions})
	if err != nil {
		t.Fatal(err)
	}
	opa := exec.CommandContext(t.Context(), self, "opa", "eval", "--strict-builtin-errors", "--format", "json", "--data", dir, "--stdin-input", decideAll)
	opa.Stdin = bytes.NewReader(input)
	out, err := opa.Output()
	var answer struct {
		Errors []struct{ Message string }
		Result []struct{ Expressions []struct{ Value []any } }
	}
	decoder := json.NewDecoder(bytes.NewReader(out))
	decoder.UseNumber()
	switch wrong := decoder.Decode(&answer); {
	case wrong != nil:
		return nil, errors.Join(err, fmt.Errorf("%w: %s", wrong, out))
	case len(answer.Errors) > 0:
		return nil, errors.New(answer.Errors[0].Message)
	case err != nil:
		return nil, err
	case len(answer.Result) != 1 || len(answer.Result[0].Expressions) != 1:
		return nil, fmt.Errorf("no answer: %s", out)
	}
	return answer.Result[0].Expressions[0].Value, nil
}
