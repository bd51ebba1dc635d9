package store

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/supportstation/keystile/authz"
)

// The simulation runs real replicas (cache, look-ups, follower, clock, authz.Checker) on
// a simulated database, notifier and limiter, in simulated time. Everything random
// follows from one seed, which is printed when something is wrong:
//
//	KEYSTILE_SIMULATION_SEED=17 go test -run Simulation ./store
//
// Whatever a check answers must be right for a state of the database between the
// revision that the replica had applied when the check began and the newest when it
// ended; and that state must not be older than the stale limit.
const (
	simulatedTime     = 40 * time.Second
	simulatedReplicas = 3
	simulatedKeys     = 6
	simulatedStaleMax = 8 * time.Second
)

// seeds are those of one run of the tests; more by KEYSTILE_SIMULATION_SEEDS.
func seeds(t *testing.T) []uint64 {
	t.Helper()
	number := func(name string, fallback uint64) uint64 {
		n, err := strconv.ParseUint(os.Getenv(name), 10, 64)
		if err != nil {
			return fallback
		}
		return n
	}
	if one := number("KEYSTILE_SIMULATION_SEED", 0); one != 0 {
		return []uint64{one}
	}
	all := make([]uint64, number("KEYSTILE_SIMULATION_SEEDS", 12))
	first := rand.Uint64N(1 << 40)
	for i := range all {
		all[i] = first + uint64(i)
	}
	return all
}

func TestSimulation_EveryAnswerIsRightForAStateThatWas(t *testing.T) {
	for _, seed := range seeds(t) {
		if trouble, _ := simulate(t, seed, false); len(trouble) > 0 {
			t.Fatalf("KEYSTILE_SIMULATION_SEED=%d: %d answers are wrong, the first: %s", seed, len(trouble), trouble[0])
		}
	}
}

// After the database was put back to an earlier state, too, nobody who has seen a key
// revoked allows it.
func TestSimulation_NothingRevokedIsUnlearned(t *testing.T) {
	for _, seed := range seeds(t) {
		if trouble, _ := simulate(t, seed, true); len(trouble) > 0 {
			t.Fatalf("KEYSTILE_SIMULATION_SEED=%d: %d answers are wrong, the first: %s", seed, len(trouble), trouble[0])
		}
	}
}

func TestSimulation_OneSeedIsOneHistory(t *testing.T) {
	for seed := range uint64(3) {
		_, first := simulate(t, seed, false)
		if _, second := simulate(t, seed, false); first != second || first == 0 {
			t.Errorf("seed %d: two runs differ", seed)
		}
	}
}

// simulate runs one history and returns what was wrong in it, and a hash of it.
func simulate(t *testing.T, seed uint64, putBack bool) (trouble []string, history uint64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(t, seed)
		s.run(putBack)
		trouble, history = s.trouble, s.history()
	})
	return trouble, history
}

// simulation is one history. Its maps are guarded by the database's lock.
type simulation struct {
	t        *testing.T
	seed     uint64
	db       *simulatedDB
	replicas []*simulatedReplica
	trouble  []string
	events   []string
	checks   int
}

type simulatedReplica struct {
	*Store

	index   int
	checker *authz.Checker
	// refuted are the secrets that it has called revoked.
	refuted map[authz.SecretHash]bool
}

func (s *simulation) random(actor string) *rand.Rand {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, actor)
	return rand.New(rand.NewPCG(s.seed, h.Sum64()))
}

func newSimulation(t *testing.T, seed uint64) *simulation {
	t.Helper()
	s := &simulation{t: t, seed: seed, db: newSimulatedDB()}
	pepper, err := authz.ParsePeppers(authz.NewPepper("p1"))
	if err != nil {
		t.Fatal(err)
	}
	s.db.peppers = pepper
	random := s.random("setup")
	for i := range simulatedKeys {
		s.db.addKey(i, random)
	}
	for i := range simulatedReplicas {
		s.replicas = append(s.replicas, s.newReplica(i, pepper))
	}
	return s
}

func (s *simulation) newReplica(index int, peppers authz.Peppers) *simulatedReplica {
	st, err := newStore(Options{Peppers: peppers, StaleMax: simulatedStaleMax, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	name := fmt.Sprint("replica ", index)
	random := s.random(name)
	st.replica.id, st.replica.name = name, name
	// The machine's clock may be wrong by an hour either way.
	st.clock.offset.Add(int64(time.Duration(random.Int64N(int64(2*time.Hour))) - time.Hour))
	st.follows(&simulatedSource{
		db: s.db, index: index, random: random, looking: s.random(name + "'s look-ups"),
		missing: s.random(name + "'s learning"),
	}, DefaultLookupBudget)
	checker, err := authz.NewChecker(authz.CheckerOptions{Keys: st, Policy: simulatedPolicy{}, Limiter: simulatedLimiter{}, Clock: st.clock})
	if err != nil {
		s.t.Fatal(err)
	}
	return &simulatedReplica{st, index, checker, map[authz.SecretHash]bool{}}
}

// run lets replicas, admins, clients and the notifier do what they do, each in its own time.
func (s *simulation) run(putBack bool) {
	ctx, stop := context.WithTimeout(s.t.Context(), simulatedTime)
	defer stop()
	var actors sync.WaitGroup
	for _, r := range s.replicas {
		random := s.random(fmt.Sprint("start ", r.index))
		pause(random, 300*time.Millisecond)
		r.start(ctx, func(ctx context.Context) { s.notify(ctx, r, s.random(fmt.Sprint("notifier ", r.index))) })
		for client := range 2 {
			random := s.random(fmt.Sprint("client ", r.index, client))
			actors.Go(func() {
				for ctx.Err() == nil {
					pause(random, 40*time.Millisecond)
					s.check(ctx, r, random, putBack)
				}
			})
		}
	}
	for admin := range 3 {
		random := s.random(fmt.Sprint("admin ", admin))
		actors.Go(func() {
			for ctx.Err() == nil {
				pause(random, 400*time.Millisecond)
				s.change(ctx, random, putBack)
			}
		})
	}
	actors.Go(func() { s.trip(ctx, s.random("outages")) })
	if putBack {
		actors.Go(func() {
			random := s.random("restore")
			for ctx.Err() == nil {
				pause(random, 6*time.Second)
				s.db.save()
				pause(random, 6*time.Second)
				s.db.restore()
			}
		})
	}
	actors.Wait()
	for _, r := range s.replicas {
		r.stop()
		r.followed.Wait()
		r.lookups.close()
		r.keys.close()
	}
	if s.checks < 500 {
		s.t.Fatalf("only %d checks were made", s.checks)
	}
}

func pause(random *rand.Rand, most time.Duration) {
	sleep(1 + time.Duration(random.Int64N(int64(most))))
}

// sleep lets simulated time pass.
func sleep(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // it is the simulated clock

// notify wakes a replica some time after each commit, or twice, or never: and so later
// changes before earlier ones.
func (s *simulation) notify(ctx context.Context, r *simulatedReplica, random *rand.Rand) {
	var late sync.WaitGroup
	defer late.Wait()
	commits := s.db.listen(r.index)
	for {
		select {
		case <-ctx.Done():
			return
		case <-commits:
		}
		for range random.IntN(3) {
			most := 400 * time.Millisecond
			if random.IntN(2) == 0 {
				most = 2 * time.Millisecond
			}
			wait := time.Duration(random.Int64N(int64(most)))
			late.Go(func() {
				sleep(wait + 1)
				r.wakeUp()
			})
		}
	}
}

// trip takes the database away from one replica for a while, or from all.
func (s *simulation) trip(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		pause(random, 5*time.Second)
		until := time.Now().Add(time.Duration(random.Int64N(int64(2 * simulatedStaleMax))))
		which := random.IntN(simulatedReplicas + 1)
		s.db.mu.Lock()
		for i := range simulatedReplicas {
			if which == i || which == simulatedReplicas {
				s.db.away[i] = until
			}
		}
		s.db.mu.Unlock()
	}
}

func (s *simulation) event(format string, args ...any) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.events = append(s.events, time.Now().Format("15:04:05.000000000 ")+fmt.Sprintf(format, args...))
}

func (s *simulation) wrong(format string, args ...any) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.trouble = append(s.trouble, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (s *simulation) history() uint64 {
	h := fnv.New64a()
	slices.Sort(s.events) // what happens in one instant has no order
	for _, e := range s.events {
		_, _ = fmt.Fprintln(h, e)
	}
	return h.Sum64()
}

// change is one management change, with its receipt.
func (s *simulation) change(ctx context.Context, random *rand.Rand, putBack bool) {
	what, n := s.db.change(random)
	s.event("%s: revision %d", what, n)
	if putBack {
		return // a revision does not mean the same afterwards
	}
	for deadline := time.Now().Add(effectiveWithin); ctx.Err() == nil && time.Now().Before(deadline); {
		if s.db.acknowledged(n) {
			s.db.effective(n)
			return
		}
		sleep(effectivePoll)
	}
}

// check asks a replica about a key and judges the answer.
func (s *simulation) check(ctx context.Context, r *simulatedReplica, random *rand.Rand, putBack bool) {
	key, second := random.IntN(simulatedKeys), random.IntN(3) == 0
	secret := s.db.secretOf(key, second)
	q := &authz.Check{Presented: authz.PresentHash(secret), Cost: 1}
	applied, began := r.applied.Load(), time.Now()
	receipt := s.db.receipt()
	d, err := r.checker.Check(ctx, q)
	if err != nil {
		s.wrong("replica %d: %v", r.index, err)
		return
	}
	ended := time.Now()
	s.event("replica %d, key %d: %s", r.index, key, d.Code)
	s.db.mu.Lock()
	s.checks++
	s.db.mu.Unlock()
	if d.Code == authz.CodeUnavailable {
		return
	}
	if putBack {
		s.checkUnlearned(r, secret, d)
		return
	}
	// A receipt says that every replica has applied its revision, whatever it believes.
	from := max(applied, receipt)
	codes, newest := s.db.codes(secret, from, began, ended)
	if !slices.Contains(codes, d.Code) {
		s.wrong("replica %d says %s of key %d from revision %d (receipt %d) on: the database said %v",
			r.index, d.Code, key, applied, receipt, codes)
		return
	}
	if late := began.Sub(newest[d.Code]); late > simulatedStaleMax+time.Second {
		s.wrong("replica %d says %s of key %d, which has not been so for %v", r.index, d.Code, key, late)
	}
}

// checkUnlearned holds a replica to what it has said: a secret that was revoked stays so.
func (s *simulation) checkUnlearned(r *simulatedReplica, secret authz.SecretHash, d *authz.Decision) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	switch {
	case d.Code == authz.CodeKeyRevoked:
		r.refuted[secret] = true
	case d.Allow && r.refuted[secret]:
		s.trouble = append(s.trouble, fmt.Sprintf("replica %d allows what it has called revoked", r.index))
	}
}

// simulatedPolicy allows who has tickets:read.
type simulatedPolicy struct{}

func (simulatedPolicy) Revision() string { return "simulated" }

func (simulatedPolicy) Evaluate(_ context.Context, k *authz.Key, _ *authz.Check) (authz.Verdict, error) {
	v := authz.Verdict{
		Allow:  slices.Contains(k.Scopes, "tickets:read"),
		Limits: []authz.Limit{{Name: "key", Cost: 1, Rate: authz.Rate{Rate: 100, Period: time.Minute, Burst: 100}}},
	}
	if !v.Allow {
		v.Reasons = []authz.Reason{{Code: authz.CodeInsufficientScope, Message: "The key lacks tickets:read."}}
	}
	return v, nil
}

type simulatedLimiter struct{}

func (simulatedLimiter) Charge(context.Context, *authz.Key, authz.Limit, int) (authz.Charge, error) {
	return authz.Charge{Allowed: true, Mode: authz.LimiterExact}, nil
}
