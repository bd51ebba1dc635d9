package policy

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

// Offer is a policy that its source wants in force.
type Offer struct {
	Source *Source
	Origin authz.PolicyOrigin
	// AcceptRemoved is Trial's.
	AcceptRemoved []string
	// Against is what it is measured by while nothing is in force; nil is nothing.
	Against *Source
	// Still tells, when it was tried, that its source still has it; nil is always. What has changed
	// meanwhile is neither in force nor refused: ErrMoved.
	Still func() bool
	// Proved tells that it was tried when it was activated: it is loaded, and not tried again.
	Proved bool
}

// ErrMoved says that a policy was another one by the time that it was tried.
var ErrMoved = errors.New("the policy has changed while it was tried")

// Keeper keeps one policy in force: whatever is offered goes live when it proves itself, and
// else the last good one stays and everyone can see why. Safe for concurrent use.
type Keeper struct {
	engine  *Engine
	gate    *Gate
	builtIn *Source
	origin  authz.PolicyOrigin
	bundle  func() authz.PolicyBundle
	log     *slog.Logger

	// offering is held while an offer is looked at: they go live in the order in which they come.
	offering sync.Mutex
	active   atomic.Pointer[Source]
	state    atomic.Pointer[authz.PolicyState]
	stays    atomic.Pointer[stay]
}

// stay is why a policy that fails at run time is not taken back.
type stay struct{ revision, why string }

// KeeperOptions are what a Keeper needs.
type KeeperOptions struct {
	Engine *Engine
	Gate   *Gate
	// BuiltIn is the policy that the program is built with.
	BuiltIn *Source
	// Origin is where policies come from here.
	Origin authz.PolicyOrigin
	// Bundle tells how it stands with the server that publishes policies; nil for none. It asks
	// nobody.
	Bundle func() authz.PolicyBundle
	// Logger gets what comes into force and what is refused; nil discards it.
	Logger *slog.Logger
}

// NewKeeper returns a keeper that has no policy in force yet.
func NewKeeper(o KeeperOptions) *Keeper {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{engine: o.Engine, gate: o.Gate, builtIn: o.BuiltIn, origin: o.Origin, bundle: o.Bundle, log: o.Logger}
	k.state.Store(&authz.PolicyState{})
	return k
}

// Origin is where policies come from here.
func (k *Keeper) Origin() authz.PolicyOrigin { return k.origin }

// BuiltIn is the revision of the policy that the program is built with.
func (k *Keeper) BuiltIn() string { return k.builtIn.revision }

// State tells which policy is in force. It asks nobody.
func (k *Keeper) State() authz.PolicyState {
	state := *k.state.Load()
	if k.bundle != nil {
		bundle := k.bundle()
		state.Bundle = &bundle
	}
	return state
}

// Failing tells how the policy in force fails at run time here.
func (k *Keeper) Failing() authz.PolicyFailing {
	f := k.engine.Failing()
	if s := k.stays.Load(); s != nil && s.revision == f.Revision && f.Errors > 0 {
		f.Stays = s.why
	}
	return f
}

// Stay notes why a policy that fails at run time is not taken back, until another one is
// offered.
func (k *Keeper) Stay(revision, why string) { k.stays.Store(&stay{revision, why}) }

// Loads says why a policy that was kept cannot be in force here, nil when it can. The
// archive of the built-in one is nil.
func (k *Keeper) Loads(ctx context.Context, archive []byte) error {
	source, err := k.sourceOf(archive)
	if err == nil {
		_, err = source.Load(ctx)
	}
	return err
}

// Active returns the policy that is in force, nil before the first.
func (k *Keeper) Active() *Source { return k.active.Load() }

// Analyze tells what the answers of the policy in force can depend on, and its revision.
func (k *Keeper) Analyze() (revision string, entrypoints []authz.PolicyAnalysis, err error) {
	snapshot := k.engine.current.Load()
	if snapshot == nil {
		return "", nil, errNoneInForce()
	}
	return snapshot.revision, snapshot.Analyze(), nil
}

func errNoneInForce() error {
	return authz.Unavailable("there is no policy in force yet; try again", nil)
}

// Try measures a policy by the one that is in force, and puts nothing in force.
func (k *Keeper) Try(ctx context.Context, candidate *Source, acceptRemoved []string) (*authz.PolicyReport, error) {
	return k.gate.Try(ctx, Trial{Candidate: candidate, Active: k.active.Load(), AcceptRemoved: acceptRemoved})
}

// TryFiles tries a policy's files by their paths against another one's archive, nil for the
// built-in one; what cannot be read is reported as well. It also returns the policy's archive,
// nil for what could not be read.
func (k *Keeper) TryFiles(
	ctx context.Context, files map[string]string, against []byte, accept []string,
) (*authz.PolicyReport, []byte, error) {
	source, err := SourceOf(files)
	if err != nil {
		return Unreadable(err), nil, nil
	}
	archive, err := source.Archive()
	if err != nil {
		return nil, nil, err
	}
	active, err := k.sourceOf(against)
	if err != nil {
		return nil, nil, err
	}
	report, err := k.gate.Try(ctx, Trial{Candidate: source, Active: active, AcceptRemoved: accept})
	return report, archive, err
}

// TryArchive is TryFiles for a policy's archive; alone tries it by itself.
func (k *Keeper) TryArchive(ctx context.Context, archive, against []byte, accept []string, alone bool) (*authz.PolicyReport, error) {
	t := Trial{AcceptRemoved: accept}
	var err error
	if t.Candidate, err = ReadArchive(archive); err == nil && !alone {
		t.Active, err = k.sourceOf(against)
	}
	if err != nil {
		return nil, err
	}
	return k.gate.Try(ctx, t)
}

// Replay asks the policy in force and another one about recorded requests: see Gate.Replay.
// The other one is given by its files or its archive; neither is the built-in one.
func (k *Keeper) Replay(
	ctx context.Context, files map[string]string, archive []byte, traffic authz.Traffic, told func(int64),
) (*authz.PolicyDiff, error) {
	active := k.active.Load()
	if active == nil {
		return nil, errNoneInForce()
	}
	candidate, err := k.candidateOf(files, archive)
	if err != nil {
		return nil, err
	}
	return k.gate.Replay(ctx, Replay{Active: active, Candidate: candidate, BuiltIn: k.builtIn, Traffic: traffic, Told: told})
}

// Shadowable says whether a policy, given as for Replay, can be asked beside the one in force: it
// is loaded in a process of its own. It returns its revision and archive.
func (k *Keeper) Shadowable(ctx context.Context, files map[string]string, archive []byte) (revision string, whole []byte, err error) {
	candidate, err := k.candidateOf(files, archive)
	if err != nil {
		return "", nil, err
	}
	if err := k.gate.Loads(ctx, candidate); err != nil {
		return "", nil, err
	}
	whole, err = candidate.Archive()
	return candidate.revision, whole, err
}

// candidateOf is a policy given by its files or its archive; neither is the built-in one. Files
// that cannot be read are a *authz.PolicyRefusedError.
func (k *Keeper) candidateOf(files map[string]string, archive []byte) (*Source, error) {
	if files == nil {
		return k.sourceOf(archive)
	}
	candidate, err := SourceOf(files)
	if err != nil {
		return nil, &authz.PolicyRefusedError{Report: Unreadable(err)}
	}
	return candidate, nil
}

// sourceOf is a policy's archive, or the built-in policy.
func (k *Keeper) sourceOf(archive []byte) (*Source, error) {
	if archive == nil {
		return k.builtIn, nil
	}
	return ReadArchive(archive)
}

// Offer puts a policy in force, at once and for every check that begins afterwards. What
// does not prove itself is a *authz.PolicyRefusedError, and the last good one stays; any
// other error is of a trial that could not be made.
func (k *Keeper) Offer(ctx context.Context, o Offer) error {
	k.offering.Lock()
	defer k.offering.Unlock()
	k.stays.Store(nil)
	if active := k.active.Load(); active != nil && active.revision == o.Source.revision && k.State().Origin == o.Origin {
		k.taken()
		return nil
	}
	if !o.Proved {
		active := k.active.Load()
		if active == nil {
			active = o.Against
		}
		report, err := k.gate.Try(ctx, Trial{Candidate: o.Source, Active: active, AcceptRemoved: o.AcceptRemoved})
		if err != nil {
			return err
		}
		if o.Still != nil && !o.Still() {
			return ErrMoved
		}
		if !report.Passed() {
			k.refuse(o.Source.revision, o.Origin, report.Problems)
			return &authz.PolicyRefusedError{Report: report}
		}
	}
	snapshot, err := o.Source.Load(ctx)
	if err != nil {
		return k.refuseFor(o.Source.revision, o.Origin, err)
	}
	k.engine.Swap(snapshot)
	k.active.Store(o.Source)
	k.state.Store(&authz.PolicyState{Revision: o.Source.revision, Origin: o.Origin, Since: time.Now()})
	k.log.Info("a policy is in force", slog.String("revision", o.Source.revision), slog.String("origin", string(o.Origin)))
	return nil
}

// Unreadable is the report of a policy that could not even be read.
func Unreadable(why error) *authz.PolicyReport {
	return &authz.PolicyReport{Problems: problemsOf(authz.StageLoad, why), Tests: []authz.PolicyTest{}}
}

// Refuse notes a candidate that could not even be read, and returns why as an
// *authz.PolicyRefusedError. revision is "" when it has none.
func (k *Keeper) Refuse(revision string, origin authz.PolicyOrigin, why error) error {
	k.offering.Lock()
	defer k.offering.Unlock()
	return k.refuseFor(revision, origin, why)
}

// refuseFor is Refuse for who holds offering.
func (k *Keeper) refuseFor(revision string, origin authz.PolicyOrigin, why error) error {
	report := Unreadable(why)
	report.Revision = revision
	k.refuse(revision, origin, report.Problems)
	return &authz.PolicyRefusedError{Report: report}
}

// refuse tells a refusal once.
func (k *Keeper) refuse(revision string, origin authz.PolicyOrigin, problems []authz.PolicyProblem) {
	state := k.State()
	if r := state.Refused; r != nil && r.Revision == revision && r.Origin == origin && slices.Equal(r.Problems, problems) {
		return
	}
	state.Refused = &authz.PolicyRefusal{Revision: revision, Origin: origin, At: time.Now(), Problems: problems}
	k.state.Store(&state)
	first := ""
	if len(problems) > 0 {
		first = problems[0].String()
	}
	k.log.Error("a policy is refused; what is in force stays", slog.String("revision", revision),
		slog.String("origin", string(origin)), slog.String("active", state.Revision), slog.Int("problems", len(problems)),
		slog.String("first", first))
}

// taken forgets a refusal: what is wanted is in force.
func (k *Keeper) taken() {
	if state := k.State(); state.Refused != nil {
		state.Refused = nil
		k.state.Store(&state)
	}
}
