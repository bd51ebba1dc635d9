package authz

import (
	"context"
	"errors"
)

// Explanation is what a check would be, and why. It allows nothing: nothing was charged,
// and who shows it to somebody has not let them in.
type Explanation struct {
	// WouldAllow tells that policy allows; limits are not asked.
	WouldAllow bool
	Code       Code
	Status     int
	// Key and Secret are nil while unknown. They are shared and must not be changed.
	Key            *Key
	Secret         *KeySecret
	Required       []Scope
	Missing        []Scope
	Route          string
	Reasons        []Reason
	Limits         []Limit
	Rules          []PolicyRule
	Remedies       []Remedy
	PolicyRevision string
	Degraded       Degraded
	// Cause tells the log why it could not be decided; nil otherwise.
	Cause error
}

// PolicyRule is a rule that was looked at.
type PolicyRule struct {
	// Name is such as data.keystile.check.missing_scopes.
	Name string
	// Title is its METADATA's, or "".
	Title string
	File  string
	Line  int
	// Fired tells that its body held.
	Fired bool
}

// Remedy is a smallest set of changes that would turn a denial into an allow.
type Remedy struct {
	Changes []RemedyChange
	// Tried tells that policy was asked with these changes, and allows then. What is not
	// tried is where to look.
	Tried bool
}

// RemedyChange is one change.
type RemedyChange struct {
	// Kind is stable, for programs: grant_scope, use_environment, ask_environment,
	// use_own_resource, call_from_allowed_address, call_from_server, use_method, spell_path,
	// drop_action, add_route, wait, use_other_key, use_newest_secret, extend_key, enable_key, resume_organization.
	Kind string
	// Message is a sentence for people.
	Message string
	// Scope is the scope to grant.
	Scope Scope
}

// PolicyExplainer explains what policy decides. It is implemented by authz/policy.
type PolicyExplainer interface {
	// Explain is Evaluate with the rules that were looked at and, for a denial, what
	// would change it. It takes a hundred times as long.
	// Called by Checker alone, concurrently.
	Explain(ctx context.Context, k *Key, c *Check) (PolicyExplanation, error)
}

// PolicyExplanation is a verdict with its reasons.
type PolicyExplanation struct {
	Verdict  Verdict
	Rules    []PolicyRule
	Remedies []Remedy
}

var errNoExplainer = errors.New("this policy evaluator does not explain")

// Explain tells what Check would decide, and why; it charges nothing, and notes no use. Its
// errors are Check's.
func (c *Checker) Explain(ctx context.Context, q *Check) (*Explanation, error) {
	explainer, ok := c.policy.(PolicyExplainer)
	if !ok {
		return nil, errNoExplainer
	}
	// Check's budget is for one evaluation, and here are many.
	ctx = context.WithoutCancel(ctx)
	d := &Decision{at: c.clock.Now()}
	passed, err := c.resolve(withBudget(ctx, c.budget), q, d)
	if err != nil {
		return nil, err
	}
	if !passed {
		e := d.explanation()
		e.Remedies = d.stateRemedy()
		return e, nil
	}
	explained, err := explainer.Explain(ctx, d.Key, q)
	d.PolicyRevision = explained.Verdict.Revision
	if err == nil {
		err = d.take(explained.Verdict)
	}
	if err != nil {
		d.undecided("The policy did not decide.", err)
		e := d.explanation()
		e.Rules = explained.Rules
		return e, nil
	}
	e := d.explanation()
	e.Limits, e.Rules, e.Remedies = explained.Verdict.Limits, explained.Rules, explained.Remedies
	return e, nil
}

// explanation is what a decision says of itself.
func (d *Decision) explanation() *Explanation {
	return &Explanation{
		WouldAllow: d.Allow, Code: d.Code, Status: d.Status, Key: d.Key, Secret: d.Secret, Required: d.Required, Missing: d.Missing,
		Route: d.Route, Reasons: d.Reasons, PolicyRevision: d.PolicyRevision, Degraded: d.Degraded, Cause: d.Cause,
	}
}

// stateRemedy is what helps a key that is denied before policy is asked.
func (d *Decision) stateRemedy() []Remedy {
	change := map[Code]RemedyChange{
		CodeKeyRevoked:            {Kind: "use_other_key", Message: "Use another key; revoking is for ever."},
		CodeKeyExpired:            {Kind: "extend_key", Message: "Rotate the key, or give it a later expires_at."},
		CodeKeyDisabled:           {Kind: "enable_key", Message: "Enable the key."},
		CodeOrganizationSuspended: {Kind: "resume_organization", Message: "Have the platform resume the organization."},
	}[d.Code]
	if d.secretEnded() {
		change = RemedyChange{Kind: "use_newest_secret", Message: "Use the newest secret of the same key, or rotate the key once more."}
	}
	if change.Kind == "" {
		return nil
	}
	return []Remedy{{Changes: []RemedyChange{change}}}
}
