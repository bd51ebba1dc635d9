package store

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz"
)

const (
	// DefaultKeepDecisions is how long decisions are kept.
	DefaultKeepDecisions = 7 * 24 * time.Hour
	// DefaultDecisionSample is of how many allows one is kept.
	DefaultDecisionSample = 1000
)

// Decisions that are kept cost a flood's victim nothing: so many a second, so many at once, and
// nobody's crowd out everybody else's.
const (
	// decisionsEvery is how often what is noted is written.
	decisionsEvery = time.Second
	// decisionsPerSecond is how many a replica writes in the long run: some six million in
	// seven days. decisionsAhead is how many more it may write when it wrote fewer before.
	decisionsPerSecond = 10
	decisionsAhead     = 10_000
	// maxDecisionsOfOne bounds what waits of one key with one code, or of one caller where the
	// key is not known.
	maxDecisionsOfOne = 20
	// maxPendingDecisions bounds what waits; the last placesForFirsts are for those of whom
	// nothing waits yet.
	maxPendingDecisions = 5_000
	placesForFirsts     = 1_000
	// maxDecisionsAtOnce bounds one statement.
	maxDecisionsAtOnce = 1_000
	// expireEvery is how often what is too old is deleted: expireAtOnce rows a statement, in
	// maxExpireTurns of them at most.
	expireEvery    = 10 * time.Second
	expireAtOnce   = 2_000
	maxExpireTurns = 10
)

// DecisionsKept tells which decisions are kept, and what of them. The zero value keeps none.
type DecisionsKept struct {
	// For is how long they are kept; 0 keeps none, and what is there goes after
	// DefaultKeepDecisions.
	For time.Duration
	// Sample: of allows one in so many is kept, 0 none. Denials are all kept, as far as
	// there is room.
	Sample int
	// NoNetworks leaves out the client's network: /24 of IPv4, /48 of IPv6.
	NoNetworks bool
}

var _ authz.DecisionRecorder = (*Store)(nil)

// decisions holds what is to be written. Safe for concurrent use.
type decisions struct {
	kept DecisionsKept

	mu      sync.Mutex
	pending []decisionRow
	// waiting counts what is pending by whose it is.
	waiting map[decisionShare]int

	written, dropped atomic.Int64

	// What follows is the writer's.

	// unwritten are those that Postgres did not take.
	unwritten []decisionRow
	// budget is how many may be written, as of earned.
	budget  float64
	earned  time.Time
	expired time.Time
}

func newDecisions(kept DecisionsKept) *decisions {
	return &decisions{kept: kept, waiting: make(map[decisionShare]int), budget: decisionsAhead}
}

// decisionShare is whose decisions count together. One code does not crowd out another of the
// same key: what a key lacks is kept while its client runs into the limit.
type decisionShare struct {
	key    authz.KeyID
	caller authz.CallerID // where there is no key
	code   authz.Code
}

// Decided implements authz.DecisionRecorder: it counts each decision, and keeps denials and a
// sample of allows.
func (s *Store) Decided(q *authz.Check, d *authz.Decision) {
	s.count(q, d)
	kept := &s.decisions.kept
	if kept.For <= 0 || d.Allow && !d.ID.OneIn(kept.Sample) {
		return
	}
	s.decisions.add(q, d)
}

func (p *decisions) add(q *authz.Check, d *authz.Decision) {
	share := decisionShare{code: d.Code}
	switch {
	case d.Key != nil:
		share.key = d.Key.ID
	case q.Caller != nil:
		share.caller = q.Caller.ID
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	rank, places := p.waiting[share], maxPendingDecisions
	if rank > 0 {
		places -= placesForFirsts
	}
	if rank >= maxDecisionsOfOne || len(p.pending) >= places {
		p.dropped.Add(1)
		return
	}
	row := newDecisionRow(q, d, p.kept)
	row.rank = rank
	share.code = authz.Code(row.Code) // a copy: the other's text may be a part of a question's body
	p.waiting[share] = rank + 1
	p.pending = append(p.pending, row)
}

// take returns what is to be written now, in fair shares: everybody's first before anybody's
// second. What is beyond the budget is dropped.
func (p *decisions) take(now time.Time) []decisionRow {
	if !p.earned.IsZero() {
		p.budget = min(p.budget+now.Sub(p.earned).Seconds()*decisionsPerSecond, decisionsAhead)
	}
	p.earned = now
	p.mu.Lock()
	rows := p.pending
	p.pending = nil
	clear(p.waiting)
	p.mu.Unlock()
	slices.SortStableFunc(rows, func(a, b decisionRow) int { return a.rank - b.rank })
	if n := int(p.budget); len(rows) > n {
		p.dropped.Add(int64(len(rows) - n))
		rows = rows[:n]
	}
	p.budget -= float64(len(rows))
	return rows
}

// recordDecisions writes until ctx ends, and what is left then.
func (s *Store) recordDecisions(ctx context.Context) {
	record(ctx, decisionsEvery, func(ctx context.Context) error {
		err := s.flushDecisions(ctx)
		if now := time.Now(); err == nil && now.Sub(s.decisions.expired) >= expireEvery {
			s.decisions.expired = now
			if err := s.expireDecisions(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("old decisions cannot be deleted; it is tried again", slog.Any("error", err))
			}
		}
		return err
	}, func(err error) {
		s.log.Warn("decisions cannot be kept; they wait, and are dropped when there are too many", slog.Any("error", err))
	}, s.flushLastDecisions)
}

// flushLastDecisions writes what a store that is closed has left.
func (s *Store) flushLastDecisions(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlushLimit)
	defer cancel()
	err := s.flushDecisions(ctx)
	p := s.decisions
	if lost := len(p.unwritten); lost > 0 {
		p.dropped.Add(int64(lost))
		s.log.Warn("the last decisions could not be kept", slog.Any("error", err), slog.Int("decisions", lost))
	}
}

// flushDecisions writes what is pending. What cannot be written because Postgres is away
// comes again; what it refuses is dropped, for it would be refused again.
func (s *Store) flushDecisions(ctx context.Context) error {
	if !s.admitted.Load() {
		return nil // nothing is written into a database that may be another's
	}
	p := s.decisions
	if len(p.unwritten) == 0 {
		p.unwritten = p.take(time.Now())
	}
	for len(p.unwritten) > 0 {
		batch := p.unwritten[:min(len(p.unwritten), maxDecisionsAtOnce)]
		err := s.writeDecisions(ctx, batch)
		switch {
		case err == nil:
			p.written.Add(int64(len(batch)))
		case authz.KindOf(err) == authz.KindUnavailable:
			return err
		default:
			p.dropped.Add(int64(len(batch)))
			s.log.Error("decisions were refused and are not kept", slog.Any("error", err), slog.Int("decisions", len(batch)))
		}
		p.unwritten = p.unwritten[len(batch):]
	}
	return nil
}

func (s *Store) writeDecisions(ctx context.Context, batch []decisionRow) error {
	text, err := json.Marshal(batch)
	if err != nil {
		return translate("keep decisions", err)
	}
	// Those that came before an answer was lost are there already.
	_, err = s.manage.ExecContext(ctx, `
		INSERT INTO decisions (id, at, organization_id, key_id, secret_id, caller_id, environment, method, route, action, code, status,
			reasons, required, missing, policy_revision, network, degraded, browser)
		SELECT id, at, organization_id, key_id, secret_id, caller_id, environment, method, route, action, code, status,
			reasons, required, missing, policy_revision, network, degraded, browser
		FROM json_populate_recordset(NULL::decisions, $1::json)
		ON CONFLICT (id) DO NOTHING`, string(text))
	return translate("keep decisions", err)
}

// expireDecisions deletes what is too old, a part at a time, the oldest first. Any replica does
// it at any time: rows that another one is deleting are left to it.
func (s *Store) expireDecisions(ctx context.Context) error {
	if !s.admitted.Load() {
		return nil
	}
	keep := s.decisions.kept.For
	if keep <= 0 {
		keep = DefaultKeepDecisions
	}
	before := authz.NewDecisionID(s.clock.Now().Add(-keep))
	for range maxExpireTurns {
		result, err := s.manage.ExecContext(ctx, `
			DELETE FROM decisions WHERE id IN (SELECT id FROM decisions WHERE id < $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)`,
			before, expireAtOnce)
		if err != nil {
			return translate("delete old decisions", err)
		}
		if n, err := result.RowsAffected(); err != nil || n < expireAtOnce {
			return translate("delete old decisions", err)
		}
	}
	return nil
}

// Bounds of texts in a row, in bytes.
const (
	maxKeptMethod = 20
	maxKeptRoute  = 512
	maxKeptCodes  = 16
	maxKeptScopes = 50
)

// decisionRow is one decision as it is written. Its texts are nobody else's.
type decisionRow struct {
	ID             any       `json:"id"`
	At             time.Time `json:"at"`
	OrganizationID any       `json:"organization_id"`
	KeyID          any       `json:"key_id"`
	SecretID       any       `json:"secret_id"`
	CallerID       any       `json:"caller_id"`
	Environment    string    `json:"environment"`
	Method         string    `json:"method"`
	Route          string    `json:"route"`
	Action         string    `json:"action"`
	Code           string    `json:"code"`
	Status         int       `json:"status"`
	Reasons        []string  `json:"reasons"`
	Required       []string  `json:"required"`
	Missing        []string  `json:"missing"`
	PolicyRevision string    `json:"policy_revision"`
	Network        *string   `json:"network"`
	Degraded       []string  `json:"degraded"`
	Browser        bool      `json:"browser"`

	// rank is how many of the same share waited before it.
	rank int
}

// newDecisionRow takes of a decision what is kept. What clients write freely is not: no path,
// and no text that could be anything else than what it should be.
func newDecisionRow(q *authz.Check, d *authz.Decision, kept DecisionsKept) decisionRow {
	row := decisionRow{
		ID: uuid(d.ID), At: d.At().UTC(), Environment: strings.Clone(string(q.Environment)), Method: keptMethod(q.Method), Route: keptRoute(d.Route),
		Code: string(d.Code.Plain()), Status: d.Status, Reasons: []string{}, Required: keptScopes(d.Required), Missing: keptScopes(d.Missing),
		PolicyRevision: d.PolicyRevision, Degraded: []string{}, Browser: q.Browser,
	}
	if d.Key != nil {
		row.KeyID, row.Environment = uuid(d.Key.ID), string(d.Key.Environment)
		if d.Key.Organization != nil {
			row.OrganizationID = uuid(d.Key.Organization.ID)
		}
	}
	if d.Secret != nil {
		row.SecretID = uuid(d.Secret.ID)
	}
	if q.Caller != nil {
		row.CallerID = uuid(q.Caller.ID)
	}
	if scope := authz.Scope(q.Action); scope.Valid() {
		row.Action = strings.Clone(q.Action)
	}
	for _, r := range d.Reasons[:min(len(d.Reasons), maxKeptCodes)] {
		row.Reasons = append(row.Reasons, string(r.Code.Plain()))
	}
	if network := authz.TruncateAddr(q.ClientIP); network.IsValid() && !kept.NoNetworks {
		text := network.String()
		row.Network = &text
	}
	if d.Degraded.Limiter {
		row.Degraded = append(row.Degraded, "limiter")
	}
	if d.Degraded.Store {
		row.Degraded = append(row.Degraded, "store")
	}
	return row
}

// keptMethod is a method of HTTP's form, or "".
func keptMethod(s string) string {
	if len(s) > maxKeptMethod || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" {
		return ""
	}
	return strings.Clone(s)
}

// maxKeptWord is shorter than the random part of any secret of ours.
const maxKeptWord = 35

// keptRoute is a template, or "" for what cannot be one: a policy may call the raw path a
// route, and a client may write a secret into that.
func keptRoute(s string) string {
	if len(s) > maxKeptRoute {
		return ""
	}
	word := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c > '~':
			return ""
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z':
			word++
		default:
			word = 0
		}
		if word > maxKeptWord {
			return ""
		}
	}
	return strings.Clone(s)
}

func keptScopes(in []authz.Scope) []string {
	out := make([]string, 0, min(len(in), maxKeptScopes))
	for _, s := range in {
		if len(out) < maxKeptScopes && s.Valid() {
			out = append(out, strings.Clone(string(s)))
		}
	}
	return out
}
