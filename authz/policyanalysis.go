package authz

// PolicyAnalysis is what can be proved of one entry point of a policy without asking it.
type PolicyAnalysis struct {
	Entrypoint string `json:"entrypoint"`
	// Rules is how many rules it reaches.
	Rules int `json:"rules"`
	// Builtins are those that it may call, by name.
	Builtins []string `json:"builtins"`
	// Nondeterministic are those of them whose answers may differ from one time to the
	// next; in the sandbox there is none.
	Nondeterministic []string `json:"nondeterministic"`
	// Reads is its read-set: the parts of the input on which the answer may depend. A part
	// stands for everything below it; "input" is all of it.
	Reads []string `json:"reads"`
	// Data are the parts of the policy's own data on which the answer may depend.
	Data []string `json:"data"`
}

// Deterministic tells that the answer follows from what is read alone.
func (a PolicyAnalysis) Deterministic() bool { return len(a.Nondeterministic) == 0 }
