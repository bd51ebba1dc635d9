package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/supportstation/keystile/authz"
)

const (
	// checkPath is the check's entry point as a path of OPA's.
	checkPath = "keystile/check/decision"
	// maskBudget is how long a mask may take. Nobody waits for it, and a busy machine must not
	// hide what a mask would show.
	maskBudget = 250 * time.Millisecond
	// bundleName is under which an event names the policy's revision.
	bundleName = "keystile"
)

// EventEncoder writes decisions down as OPA logs them (EventV1), masked by the policy in
// force. It is for one goroutine.
type EventEncoder struct {
	engine *Engine
	labels map[string]string
	// lane has the large calls of masks: those of checks never wait for them.
	lane *lane
	// inForce is the engine's snapshot, masking the same one on the encoder's lane.
	inForce, masking *Snapshot
	budget           time.Duration
}

// NewEventEncoder returns an encoder for the decisions of an Engine. The labels say whose
// they are, and stand in every event.
func NewEventEncoder(e *Engine, labels map[string]string) *EventEncoder {
	return &EventEncoder{engine: e, labels: labels, lane: newLane(), budget: maskBudget}
}

// event is OPA's EventV1, as far as there is something to say. Its field error is left out:
// OPA itself cannot read it again.
type event struct {
	Labels      map[string]string      `json:"labels"`
	DecisionID  string                 `json:"decision_id"`
	Bundles     map[string]eventBundle `json:"bundles,omitempty"`
	Path        string                 `json:"path,omitempty"`
	Input       *any                   `json:"input,omitempty"`
	Result      *any                   `json:"result,omitempty"`
	Erased      []string               `json:"erased,omitempty"`
	Masked      []string               `json:"masked,omitempty"`
	RequestedBy string                 `json:"requested_by,omitempty"`
	Timestamp   time.Time              `json:"timestamp"`
	Custom      map[string]any         `json:"custom,omitempty"`
}

type eventBundle struct {
	Revision string `json:"revision"`
}

// Encode returns one event as JSON on one line, without its newline. Where the mask has no
// answer that can be relied on, question and answer are left out as a whole, and hidden
// says why: doubt hides.
//
// Input is what the policy saw, or would have seen: a decision made before policy is asked
// has no path, and whatever is not known by then is empty in its input. Result is what was
// answered, limits included. A decision that the policy does not want logged has no line: see
// dropEntrypoint. Where it could not say, custom.drop tells why.
func (e *EventEncoder) Encode(ctx context.Context, r *authz.DecisionRecord) (line []byte, hidden string) {
	d := &r.Decision
	out := event{
		Labels: e.labels, DecisionID: d.ID.String(), Timestamp: d.At().UTC(),
	}
	if c := r.Check.Caller; c != nil {
		out.RequestedBy = c.ID.String()
	}
	if d.PolicyRevision != "" {
		out.Bundles = map[string]eventBundle{bundleName: {d.PolicyRevision}}
	}
	if d.AskedPolicy() {
		out.Path = checkPath
	}
	hidden, unwanted := e.fill(ctx, &out, r)
	if unwanted {
		return nil, ""
	}
	if hidden != "" {
		out.Input, out.Result, out.Masked = nil, nil, nil
		out.Erased = []string{"/" + partInput, "/" + partResult}
		out.set("hidden", hidden)
	}
	line, err := json.Marshal(out)
	if err != nil { // of values that a mask put there; there is none in what is left
		out.Input, out.Result, out.Masked = nil, nil, nil
		out.Erased, hidden = []string{"/" + partInput, "/" + partResult}, hiddenNotMask
		out.set("hidden", hidden)
		line, _ = json.Marshal(out)
	}
	return line, hidden
}

func (e *event) set(name string, value any) {
	if e.Custom == nil {
		e.Custom = make(map[string]any)
	}
	e.Custom[name] = value
}

// fill writes question and answer into out, masked, unless the decision is not wanted at all.
func (e *EventEncoder) fill(ctx context.Context, out *event, r *authz.DecisionRecord) (hidden string, unwanted bool) {
	defer func() {
		if recover() != nil {
			hidden, unwanted = hiddenError, false
		}
	}()
	s := e.snapshot()
	if s == nil {
		return hiddenNoPolicy, false
	}
	if s.revision != r.Decision.PolicyRevision {
		out.set("mask_revision", s.revision)
	}
	input, err := e.engine.names.inputOf(r)
	if err != nil {
		return hiddenNoInput, false
	}
	result := answerOf(&r.Decision)
	asked, err := out.term(input, result)
	if err != nil {
		return hiddenNoInput, false
	}
	unwanted, doubt := s.drops(ctx, asked, newDeadline(ctx, e.budget))
	if unwanted {
		return "", true
	}
	if doubt != "" {
		out.set("drop", doubt)
	}
	ops, hidden := s.maskOf(ctx, asked, newDeadline(ctx, e.budget))
	if hidden != "" {
		return hidden, false
	}
	question, err := ast.JSON(input.Value)
	if err != nil {
		return hiddenNoInput, false
	}
	parts := maskable{partInput: question, partResult: result}
	out.Erased, out.Masked = parts.apply(ops)
	if left, ok := parts[partInput]; ok {
		out.Input = &left
	}
	if left, ok := parts[partResult]; ok {
		out.Result = &left
	}
	return "", false
}

// snapshot is the one in force, with its large calls on the encoder's lane.
func (e *EventEncoder) snapshot() *Snapshot {
	s := e.engine.current.Load()
	if s != e.inForce {
		e.inForce, e.masking = s, nil
		if s != nil {
			e.masking = s.in(e.lane)
		}
	}
	return e.masking
}

// term is the event as a mask sees it.
func (e *event) term(input *ast.Term, result any) (*ast.Term, error) {
	rest, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("write the event: %w", err)
	}
	value, err := ast.ValueFromReader(bytes.NewReader(rest))
	if err != nil {
		return nil, fmt.Errorf("read the event: %w", err)
	}
	object, ok := value.(ast.Object)
	if !ok {
		return nil, fmt.Errorf("the event is %s", ast.ValueName(value))
	}
	answer, err := ast.InterfaceToValue(result)
	if err != nil {
		return nil, fmt.Errorf("write the answer: %w", err)
	}
	object.Insert(ast.InternedTerm(partInput), input)
	object.Insert(ast.InternedTerm(partResult), ast.NewTerm(answer))
	return ast.NewTerm(object), nil
}

// answerOf is what was answered, of plain JSON values.
func answerOf(d *authz.Decision) any {
	reasons := make([]any, len(d.Reasons))
	for i, r := range d.Reasons {
		reasons[i] = map[string]any{"code": string(r.Code), "message": r.Message}
	}
	degraded := []any{}
	if d.Degraded.Limiter {
		degraded = append(degraded, "limiter")
	}
	if d.Degraded.Store {
		degraded = append(degraded, "store")
	}
	result := map[string]any{
		"allow": d.Allow, "code": string(d.Code), "status": d.Status, "reasons": reasons,
		"required_scopes": plain(d.Required), "missing_scopes": plain(d.Missing), "route": nil, "rate_limit": nil, "degraded": degraded,
	}
	if d.Route != "" {
		result["route"] = d.Route
	}
	if l := d.RateLimit; l != nil {
		result["rate_limit"] = map[string]any{
			"name": l.Name, "limit": l.Burst, "remaining": l.Remaining, "period_seconds": l.Window(),
			"reset_seconds": l.ResetSeconds, "retry_after_seconds": l.RetryAfterSeconds, "mode": string(l.Mode),
		}
	}
	return result
}

func plain(scopes []authz.Scope) []any {
	out := make([]any, len(scopes))
	for i, s := range scopes {
		out[i] = string(s)
	}
	return out
}

// inputOf is the input document of a decision's question, with what was known by then.
func (n *names) inputOf(r *authz.DecisionRecord) (*ast.Term, error) {
	if k := r.Decision.Key; k != nil {
		return n.input(k, &r.Check)
	}
	c := &r.Check
	return ast.ObjectTerm(
		[2]*ast.Term{n.caller, n.callerTerm(c.Caller)},
		[2]*ast.Term{n.organization, ast.ObjectTerm(
			[2]*ast.Term{n.id, n.empty}, [2]*ast.Term{n.externalID, n.empty},
			[2]*ast.Term{n.plan, n.empty}, [2]*ast.Term{n.metadata, n.emptyMap},
		)},
		[2]*ast.Term{n.key, ast.ObjectTerm(
			[2]*ast.Term{n.id, n.empty}, [2]*ast.Term{n.environment, n.empty}, [2]*ast.Term{n.scopes, n.emptyArray},
			[2]*ast.Term{n.metadata, n.emptyMap}, [2]*ast.Term{n.allowedCIDRs, n.emptyArray},
			[2]*ast.Term{n.rateLimit, n.null}, [2]*ast.Term{n.restricted, n.no},
		)},
		[2]*ast.Term{n.request, n.requestTerm(c)},
		[2]*ast.Term{n.stale, n.bool(c.Stale)},
	), nil
}
