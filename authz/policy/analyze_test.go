package policy

import (
	"slices"
	"strings"
	"testing"
)

func TestAnalyze_TellsWhatAnAnswerDependsOn(t *testing.T) {
	all := mustLoad(t, minimal("decision := "+allowing("allowed")+"\n\ndefault allowed := false\n\n"+
		"allowed if {\n\tinput.request.method == \"GET\"\n\tsome scope in input.key.scopes\n\tdata.known[scope] == input.organization.plan\n\thelps(lower(input.request.path))\n}\n\n"+
		"helps(x) if startswith(x, \"/\")\n\nunreached if input.never.read\n", "data.yaml", "known: {a: b}\n")).Analyze()
	a := all[0]
	if a.Entrypoint != checkEntrypoint || !a.Deterministic() {
		t.Fatalf("%+v", a)
	}
	if want := []string{"input.key.scopes", "input.organization.plan", "input.request.method", "input.request.path"}; !slices.Equal(a.Reads, want) {
		t.Errorf("it reads %v, wanted %v", a.Reads, want)
	}
	if !slices.Contains(a.Builtins, "lower") || !slices.Contains(a.Builtins, "startswith") || strings.Contains(strings.Join(a.Builtins, " "), "guarded") {
		t.Errorf("builtins: %v", a.Builtins)
	}
	if !slices.Equal(a.Data, []string{"data.known"}) {
		t.Errorf("data: %v", a.Data)
	}
}

func TestAnalyze_ABareInputIsAllOfIt(t *testing.T) {
	a := mustLoad(t, minimal("decision := "+allowing("allowed")+"\n\ndefault allowed := false\n\nallowed if {\n\tx := input\n\tx.key.id == \"\"\n\tinput.request.method == \"\"\n}\n")).Analyze()[0]
	if !slices.Equal(a.Reads, []string{"input"}) {
		t.Errorf("%v", a.Reads)
	}
}

func TestAnalyze_TheShippedPolicyIsDeterministic(t *testing.T) {
	for _, a := range mustLoad(t, shipped()).Analyze() {
		if !a.Deterministic() || a.Rules == 0 || len(a.Reads) == 0 || a.Entrypoint == checkEntrypoint && slices.Contains(a.Reads, "input") {
			t.Errorf("%+v", a)
		}
		t.Logf("%+v", a)
	}
}

// The rest of a chain is a rule of its own.
func TestAnalyze_TellsWhatAnElseReads(t *testing.T) {
	a := mustLoad(t, minimal("decision := "+allowing("true")+" if {\n\tinput.request.method == \"GET\"\n} else := "+allowing("allowed")+"\n\n"+
		"default allowed := false\n\nallowed if input.key.id != \"\"\n")).Analyze()[0]
	if want := []string{"input.key.id", "input.request.method"}; !slices.Equal(a.Reads, want) {
		t.Errorf("it reads %v, wanted %v", a.Reads, want)
	}
}
