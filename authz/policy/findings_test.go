package policy

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/supportstation/keystile/authz"
)

// What a key is told does not depend on how figures are rounded, as shipped.
func TestFindings_AClassIsJudgedAsItsExactEvidence(t *testing.T) {
	s := mustLoad(t, shipped())
	judge := s.in(newLane()).Findings(invariantBudget)
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	kinds := map[authz.FindingCode]int{}
	for range 4_000 {
		exact := randomFacts(random, judge.Steps(), s.catalogue)
		rounded := exact
		rounded.Scopes = slices.Clone(exact.Scopes)
		rounded.Round(judge.Steps())
		want, err := judge.Judge(t.Context(), &exact)
		if err != nil {
			t.Fatal(err)
		}
		got, err := judge.Judge(t.Context(), &rounded)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(want, got) {
			t.Fatalf("of %+v is found\n%+v\nand of its class\n%+v", exact, want, got)
		}
		for _, f := range got.Findings {
			kinds[f.Code]++
		}
		for _, code := range got.Undecided {
			kinds[code+" undecided"]++
		}
	}
	if len(kinds) != 16 {
		t.Errorf("only %v are found", kinds)
	}
}

// A policy from before there were findings goes on; who asks for an audit is told what it lacks.
func TestFindings_APolicyWithoutThemServesAndSaysWhatItLacks(t *testing.T) {
	e := NewEngine(mustLoad(t, minimal("decision := "+allowing("true")+"\n")))
	_, err := e.Findings()
	var told *authz.Error
	if !errors.As(err, &told) || told.Kind != authz.KindConflict || !strings.Contains(told.Message, "keystile policy export") {
		t.Fatalf("it says %v", err)
	}
	if _, err = NewEngine(nil).Findings(); !errors.Is(err, ErrNoPolicy) {
		t.Errorf("without a policy it says %v", err)
	}
}

// A policy is refused whose findings depend on what is rounded away, or are none.
func TestGate_FindingsThatCannotBeReliedOnAreRefused(t *testing.T) {
	const rules, data = "keystile/findings/calls.rego", "keystile/findings/data.yaml"
	for name, edit := range map[string]struct {
		file, from, to string
		want           string
	}{
		"compared between steps": {
			rules, "input.key.networks >= least.shared_key.networks", "input.key.networks > least.shared_key.networks",
			"networks was",
		},
		"a threshold that is no step": {data, "shared_key: {networks: 20}", "shared_key: {networks: 15}", "test_each_threshold_is_a_step"},
		"a figure without steps": {
			rules, "input.key.networks >= least.shared_key.networks", "input.key.denied_requests >= 3",
			"denied_requests was",
		},
		"steps that do not ascend": {data, "networks: [20]", "networks: [20, 20]", "steps are whole numbers that ascend from above 0"},
		"steps of nothing":         {data, "  networks: [20]", "  network: [20]", `there is no figure "network"`},
		"an unknown field":         {rules, "input.key.networks >=", "input.key.network >=", "undefined ref"},
		"an unknown severity":      {data, "shared_key: medium", "shared_key: urgent", "it is one of high, medium or low"},
		"an unknown remedy":        {rules, `"remedy": "split_key"`, `"remedy": "split"`, "it is one of narrow_scopes"},
		"an unknown placeholder":   {rules, "{networks network}", "{network network}", "no placeholder {network}"},
		"a noun of no number":      {rules, "{limited_last_on}", "{limited_last_on day}", "no number"},
		"a scope that is not removed": {
			rules, `"remedy": "split_key",` + "\n\t\"remove_scopes\": []", `"remedy": "split_key",` + "\n\t\"remove_scopes\": [s.scope | some s in input.scopes]",
			"removes the scope",
		},
		"another scope": {
			rules, "\"code\": \"shared_key\",\n\t\"confidence\": \"medium\",\n\t\"scopes\": []", "\"code\": \"shared_key\",\n\t\"confidence\": \"medium\",\n\t\"scopes\": [\"no:such\"]",
			"which the evidence does not have",
		},
		"no object": {
			"keystile/findings/findings.rego", `findings := {"findings": told, "not_enough_evidence": left_open}`, `findings := {"findings": told}`,
			"type_error",
		},
	} {
		t.Run(name, func(t *testing.T) {
			text := mustRead(t, with(t, nil)).Files()[edit.file]
			if strings.Count(text, edit.from) != 1 {
				t.Fatalf("%s has %q %d times", edit.file, edit.from, strings.Count(text, edit.from))
			}
			r := (Trial{Candidate: candidate(t, map[string]string{edit.file: strings.Replace(text, edit.from, edit.to, 1)})}).Try(t.Context())
			if r.Passed() || !slices.ContainsFunc(r.Problems, func(p authz.PolicyProblem) bool { return strings.Contains(p.String(), edit.want) }) {
				t.Errorf("it says %v", r.Problems)
			}
		})
	}
}

func BenchmarkFindings(b *testing.B) {
	s := mustLoad(b, shipped())
	judge := s.in(newLane()).Findings(findingsBudget)
	random := rand.New(rand.NewPCG(1, 2))
	facts := make([]authz.Facts, 256)
	for i := range facts {
		facts[i] = randomFacts(random, judge.Steps(), s.catalogue)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := judge.Judge(b.Context(), &facts[i%len(facts)]); err != nil {
			b.Fatal(err)
		}
	}
}
