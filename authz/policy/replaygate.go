package policy

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime/metrics"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// replayTimeout is how long a replay may take.
	replayTimeout = 90 * time.Second
	// replayRows bounds what goes to a replay's process at once.
	replayRows = 4096
)

// Replay is two policies, and recorded requests to ask them about.
type Replay struct {
	// Active is the policy in force, Candidate another one.
	Active, Candidate *Source
	// BuiltIn is the policy for which requests are recorded: what its rules do not look at is
	// not kept.
	BuiltIn *Source
	Traffic authz.Traffic
	// Told hears now and then how many requests were asked about; nil for nobody.
	Told func(int64)
}

// Replay asks, in a process of its own: see authz.PolicyDiff. A candidate that does not load
// is a *authz.PolicyRefusedError; any other error is of a replay that could not be made.
func (g *Gate) Replay(ctx context.Context, r Replay) (*authz.PolicyDiff, error) {
	message := trialMessage{Timeout: replayTimeout, Replay: true}
	for _, part := range []struct {
		to   *[]byte
		from *Source
	}{{&message.Candidate, r.Candidate}, {&message.Active, r.Active}, {&message.BuiltIn, r.BuiltIn}} {
		var err error
		if *part.to, err = part.from.Archive(); err != nil {
			return nil, err
		}
	}
	select {
	case g.replays <- struct{}{}:
		defer func() { <-g.replays }()
	default:
		return nil, authz.Unavailable("another policy is being compared already; try again", nil)
	}
	limited, cancel := context.WithTimeoutCause(ctx, replayTimeout+gateGrace, errGateTimeout)
	defer cancel()
	cmd, said, complained := g.process(limited)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start a replay: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the process that tries policies: %w", err)
	}
	fed := feed(limited, in, message, r)
	ended := cmd.Wait()
	var answer replayMessage
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("replay: %w", context.Cause(ctx))
	case limited.Err() != nil:
		return nil, authz.Unavailable(fmt.Sprintf("the replay took longer than %v; ask about less time, or about one organization", replayTimeout), nil)
	case fed != nil && !errors.Is(fed, errReplayEnded):
		return nil, fed
	case ended != nil:
		return nil, authz.Unavailable("the replay took more memory than it may, or failed: "+oneLine(tail(complained.String())), nil)
	}
	if err := json.Unmarshal(said.Bytes(), &answer); err != nil {
		return nil, fmt.Errorf("read what a replay has found: %w", err)
	}
	switch {
	case answer.Refused != nil:
		return nil, &authz.PolicyRefusedError{Report: answer.Refused}
	case answer.Diff == nil || answer.Diff.Candidate != r.Candidate.revision || answer.Diff.Active != r.Active.revision:
		return nil, errors.New("a replay has found something about other policies")
	}
	return answer.Diff, nil
}

var errReplayEnded = errors.New("the replay's process has ended")

// feed writes the trial and then the traffic to the process, and closes its input.
func feed(ctx context.Context, in io.WriteCloser, message trialMessage, r Replay) error {
	defer func() { _ = in.Close() }()
	raw, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("write a replay: %w", err)
	}
	if _, err := in.Write(raw); err != nil {
		return errReplayEnded
	}
	w := newReplayWriter(in, r.Told)
	if err := r.Traffic(ctx, w.add); err != nil {
		return err
	}
	return w.end()
}

// replayMessage is what such a process says.
type replayMessage struct {
	Diff    *authz.PolicyDiff
	Refused *authz.PolicyReport
}

// replayBatch is recorded requests on their way to the process; Rows name Keys, Callers and
// Shapes by their places. The last one is marked: an input that ends before it is cut off.
type replayBatch struct {
	Keys    []wireKey
	Callers []wireCaller
	Shapes  []authz.Shape
	Rows    []wireRow
	// Gone are requests that nobody would be asked about now.
	Gone int64
	Last bool
}

type wireRow struct {
	Key, Caller, Shape int32
	Requests           int64
}

type wireKey struct {
	ID           string
	Name         string
	Environment  authz.Environment
	Scopes       []authz.Scope
	AllowedCIDRs []netip.Prefix
	RateLimit    *authz.Rate
	Restricted   bool
	Metadata     authz.Metadata

	OrganizationID         string
	OrganizationName       string
	OrganizationExternalID string
	OrganizationMetadata   authz.Metadata
	Plan                   string
}

func newWireKey(k *authz.Key) wireKey {
	o := k.Organization
	return wireKey{
		k.ID.String(), k.Name, k.Environment, k.Scopes, k.AllowedCIDRs, k.RateLimit, k.Restricted, k.Metadata,
		o.ID.String(), o.Name, o.ExternalID, o.Metadata, o.Plan,
	}
}

func (w wireKey) key() (*authz.Key, error) {
	o := &authz.Organization{Name: w.OrganizationName, ExternalID: w.OrganizationExternalID, Metadata: w.OrganizationMetadata, Plan: w.Plan}
	k := &authz.Key{
		Name: w.Name, Environment: w.Environment, Scopes: w.Scopes, AllowedCIDRs: w.AllowedCIDRs, RateLimit: w.RateLimit,
		Restricted: w.Restricted, Metadata: w.Metadata, Organization: o,
	}
	return k, errors.Join(k.ID.UnmarshalText([]byte(w.ID)), o.ID.UnmarshalText([]byte(w.OrganizationID)))
}

type wireCaller struct {
	ID           string
	Name         string
	Environments []authz.Environment
}

func (w wireCaller) caller() (*authz.Caller, error) {
	c := &authz.Caller{Name: w.Name, Environments: w.Environments}
	return c, c.ID.UnmarshalText([]byte(w.ID))
}

// replayWriter writes batches. Not safe for concurrent use.
type replayWriter struct {
	out     *gob.Encoder
	told    func(int64)
	batch   replayBatch
	key     *authz.Key
	callers map[*authz.Caller]int32
	shapes  map[authz.Shape]int32
	sent    int64
}

func newReplayWriter(out io.Writer, told func(int64)) *replayWriter {
	w := &replayWriter{out: gob.NewEncoder(out), told: told}
	w.begin()
	return w
}

// begin begins a batch.
func (w *replayWriter) begin() {
	w.batch, w.key = replayBatch{}, nil
	w.callers, w.shapes = map[*authz.Caller]int32{}, map[authz.Shape]int32{}
}

func (w *replayWriter) add(r authz.Recorded) error {
	b := &w.batch
	if r.Key == nil {
		w.batch.Gone += r.Requests
		w.sent += r.Requests
		return nil
	}
	if r.Key != w.key {
		w.key, b.Keys = r.Key, append(b.Keys, newWireKey(r.Key))
	}
	caller, ok := w.callers[r.Caller]
	if !ok {
		b.Callers = append(b.Callers, wireCaller{r.Caller.ID.String(), r.Caller.Name, r.Caller.Environments})
		caller = lastOf(b.Callers)
		w.callers[r.Caller] = caller
	}
	shape, ok := w.shapes[r.Shape]
	if !ok {
		b.Shapes = append(b.Shapes, r.Shape)
		shape = lastOf(b.Shapes)
		w.shapes[r.Shape] = shape
	}
	b.Rows = append(b.Rows, wireRow{lastOf(b.Keys), caller, shape, r.Requests})
	w.sent += r.Requests
	if len(b.Rows) < replayRows {
		return nil
	}
	return w.flush()
}

// lastOf is the place of the last one; a batch is small.
func lastOf[T any](all []T) int32 { return int32(len(all) - 1) } //nolint:gosec // see above

func (w *replayWriter) flush() error {
	if err := w.out.Encode(w.batch); err != nil {
		return errReplayEnded
	}
	w.begin()
	if w.told != nil {
		w.told(w.sent)
	}
	return nil
}

// end marks the end.
func (w *replayWriter) end() error {
	w.batch.Last = true
	return w.flush()
}

// serveReplay is what a replay's process does with what comes after its message.
func serveReplay(ctx context.Context, message trialMessage, in io.Reader, out io.Writer) error {
	stepBehind(asideNiceness)
	answer, err := message.replay(ctx, in)
	if err != nil {
		return err
	}
	return writeReport(out, answer)
}

func (message trialMessage) replay(ctx context.Context, in io.Reader) (*replayMessage, error) {
	sources := make([]*Source, 3)
	for i, archive := range [][]byte{message.Active, message.Candidate, message.BuiltIn} {
		var err error
		if sources[i], err = ReadArchive(archive); err != nil {
			return nil, err
		}
	}
	active, candidate, builtIn := sources[0], sources[1], sources[2]
	started := time.Now()
	after, err := candidate.Load(ctx)
	if err != nil {
		report := Unreadable(err)
		report.Revision = candidate.revision
		return &replayMessage{Refused: report}, nil
	}
	before, err := active.Load(ctx)
	if err != nil {
		return nil, err
	}
	r, err := newReplay(active, candidate, builtIn, before, after)
	if err != nil {
		return nil, err
	}
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	for decoder := gob.NewDecoder(in); ; {
		if metrics.Read(heap); heap[0].Value.Uint64() > gateHeap {
			return nil, fmt.Errorf("the policies and what they were asked take more than %d MiB", gateHeap>>20)
		}
		var b replayBatch
		if err := decoder.Decode(&b); err != nil {
			return nil, fmt.Errorf("read recorded requests: %w", err)
		}
		if err := r.addBatch(ctx, b); err != nil {
			return nil, err
		}
		if b.Last {
			break
		}
	}
	diff := r.end()
	diff.Seconds = time.Since(started).Seconds()
	return &replayMessage{Diff: diff}, nil
}

func (r *replay) addBatch(ctx context.Context, b replayBatch) error {
	keys, err := each(b.Keys, wireKey.key)
	if err != nil {
		return err
	}
	callers, err := each(b.Callers, wireCaller.caller)
	if err != nil {
		return err
	}
	r.diff.Skipped.Gone += b.Gone
	for _, row := range b.Rows {
		r.add(ctx, authz.Recorded{Key: keys[row.Key], Caller: callers[row.Caller], Shape: b.Shapes[row.Shape], Requests: row.Requests})
	}
	return nil
}

func each[F, T any](from []F, read func(F) (T, error)) ([]T, error) {
	out := make([]T, 0, len(from))
	for _, f := range from {
		t, err := read(f)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}
