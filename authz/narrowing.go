package authz

// RecordedOfKey are requests of one key and shape, through one caller, as they were decided.
type RecordedOfKey struct {
	// CallerID is the caller's, Caller as it is now; nil when it is gone and asks no more.
	CallerID CallerID
	Caller   *Caller
	Shape    Shape
	// Requests is how many there were, Passed those of them that were not denied by policy:
	// allowed, rate limited, or not decided.
	Requests int64
	Passed   int64
}

// Narrowing is what the policy in force says of a key's recorded requests: of the key as it
// is, and of the same key with fewer scopes.
type Narrowing struct {
	// Policy is the revision that was asked.
	Policy string `json:"policy_revision"`
	// Requests are the gravest first, and of those the most frequent.
	Requests []NarrowedRequests `json:"requests"`
}

// NarrowedRequests are recorded requests of one shape, and what becomes of them.
type NarrowedRequests struct {
	Outcome NarrowingOutcome `json:"outcome"`
	Method  string           `json:"method"`
	// Path is the route's template, or the path with "_" for what was not recorded.
	Path   string `json:"path"`
	Action string `json:"action"`
	// Caller is its name, "" for one that is gone.
	Caller string `json:"caller"`
	// Requests and Passed are RecordedOfKey's.
	Requests int64 `json:"requests"`
	Passed   int64 `json:"passed"`
	// Before and After are "" for what was not asked.
	Before Code `json:"before"`
	After  Code `json:"after"`
	// Missing are the scopes that the key would lack.
	Missing []Scope `json:"missing_scopes"`
	// Why says why nothing is known, for NarrowingDoubtful alone.
	Why string `json:"why"`
}

// NarrowingOutcome is what fewer scopes do to requests.
type NarrowingOutcome string

// The outcomes, the gravest first.
const (
	// NarrowingDenies: allowed now, and denied then.
	NarrowingDenies NarrowingOutcome = "denied"
	// NarrowingDoubtful: they passed, and not enough of them was recorded to know whether they would.
	NarrowingDoubtful NarrowingOutcome = "doubtful"
	// NarrowingKeeps: allowed now and then, in the same way.
	NarrowingKeeps NarrowingOutcome = "kept"
	// NarrowingSpares: not allowed now either, so that nothing is taken.
	NarrowingSpares NarrowingOutcome = "not_allowed"
	// NarrowingGone: through a caller that is gone and asks no more.
	NarrowingGone NarrowingOutcome = "caller_gone"
)

// Rank orders outcomes, the gravest first; what is none is graver than all.
func (o NarrowingOutcome) Rank() int {
	switch o {
	case NarrowingDenies:
		return 1
	case NarrowingDoubtful:
		return 2
	case NarrowingKeeps:
		return 3
	case NarrowingSpares:
		return 4
	case NarrowingGone:
		return 5
	}
	return 0
}

// Safe tells that nothing which passed would be denied, as far as was recorded.
func (o NarrowingOutcome) Safe() bool { return o.Rank() >= NarrowingKeeps.Rank() }

// Against are the requests for which the scopes must stay: those that would be denied, and
// those of which it is not known.
func (n *Narrowing) Against() []NarrowedRequests {
	for i, r := range n.Requests {
		if r.Outcome.Safe() {
			return n.Requests[:i]
		}
	}
	return n.Requests
}
