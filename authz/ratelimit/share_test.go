package ratelimit

import (
	"fmt"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/supportstation/keystile/authz"
)

// standIns are replicas whose Redis is away.
func standIns(t *testing.T, clock *fakeClock, n int) []*local {
	t.Helper()
	all := make([]*local, n)
	for i := range all {
		var err error
		if all[i], err = newLocal(clock, func() int { return n }, false); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func drain(ls []*local, r authz.Rate) (admitted int) {
	for _, l := range ls {
		for l.charge("b", r, 1).Allowed {
			admitted++
		}
	}
	return admitted
}

func TestLocal_ReplicasStartWithAQuarterAndRefillTogetherAtTheRate(t *testing.T) {
	clock, rate := newFakeClock(), perMinute(120).Rate
	ls := standIns(t, clock, 3)
	if got := drain(ls, rate); got != 30 {
		t.Errorf("%d of 120 are admitted at the start", got)
	}
	clock.advance(30 * time.Second)
	if got := drain(ls, rate); got != 60 {
		t.Errorf("%d come back in half of the time", got)
	}
	clock.advance(time.Hour)
	if got := drain(ls, rate); got != 120 {
		t.Errorf("%d when all are full", got)
	}
	clock.advance(time.Hour)
	for _, l := range ls {
		l.epoch.Add(1) // Redis was back for a while
	}
	if got := drain(ls, rate); got != 30 {
		t.Errorf("%d at the start of another outage", got)
	}
}

func TestLocal_WhatRedisHasSaidBoundsTheStart(t *testing.T) {
	clock, rate := newFakeClock(), perMinute(120).Rate
	ls := standIns(t, clock, 3)
	now := clock.Now().UnixNano()
	for _, l := range ls { // 6 units were left
		l.note(now, "b", rate, now+int64(57*time.Second))
	}
	if got := drain(ls, rate); got != 6 {
		t.Errorf("%d of 6 are admitted", got)
	}
}

func TestLocal_ABurstBelowTheNumberOfReplicasIsStillAdmittedInTime(t *testing.T) {
	clock, rate := newFakeClock(), perMinute(2).Rate
	ls := standIns(t, clock, 5)
	admitted := 0
	for range 20 {
		clock.advance(30 * time.Second)
		admitted += drain(ls, rate)
	}
	if admitted < 15 || admitted > 25 {
		t.Errorf("%d of 20 are admitted in ten minutes", admitted)
	}
}

func TestLocal_AFewerReplicasShareTheSameUnits(t *testing.T) {
	clock, n := newFakeClock(), 4
	l, err := newLocal(clock, func() int { return n }, false)
	if err != nil {
		t.Fatal(err)
	}
	rate := authz.Rate{Rate: 1, Period: time.Hour, Burst: 64}
	if c := l.charge("b", rate, 1); !c.Allowed { // of 64/4/4
		t.Fatalf("%+v", c)
	}
	n = 1
	if got := drain([]*local{l}, rate); got != 3 {
		t.Errorf("%d are admitted of the 3 that were left", got)
	}
}

func TestLocal_TheOnlyReplicaThatHasSeenAllStartsWithWhatIsThere(t *testing.T) {
	clock, n := newFakeClock(), 1
	l, err := newLocal(clock, func() int { return n }, false)
	if err != nil {
		t.Fatal(err)
	}
	rate := perMinute(40).Rate
	for name, want := range map[string]int{"just started": 10} {
		if got := drain([]*local{l}, rate); got != want {
			t.Errorf("%s: %d", name, got)
		}
	}
	busy := func() {
		for range 120 {
			clock.advance(time.Second)
			l.share(clock.Now().UnixNano())
		}
	}
	busy()
	l.epoch.Add(1)
	if got := drain([]*local{l}, rate); got != 40 {
		t.Errorf("alone for a window: %d", got)
	}
	busy()
	l.epoch.Add(1)
	n = 2
	l.share(clock.Now().UnixNano())
	n = 1
	if got := drain([]*local{l}, rate); got != 10 {
		t.Errorf("another was there: %d", got)
	}
}

// A replica that nobody asked anything does not know who was there, and spent what it is
// about to admit once more.
func TestCharge_AnIdleReplicaDoesNotTakeItselfForTheOnlyOne(t *testing.T) {
	redis, clock, n := miniredis.RunT(t), newFakeClock(), 3
	redis.SetTime(clock.Now())
	o := Options{URL: "redis://" + redis.Addr(), Clock: clock, Replicas: func() int { return n }}
	busy, idle := newLimiter(t, o), newLimiter(t, o)
	busy.keeper.running.Store(true) // no goroutine
	idle.keeper.running.Store(true)
	clock.advance(10 * time.Minute)
	redis.SetTime(clock.Now())
	k, limit, admitted := newKey(), perMinute(100), 0
	for charge(t, busy, k, limit).Allowed {
		admitted++
	}
	redis.SetError("READONLY You can't write against a read only replica.")
	n = 1 // the others leave
	for charge(t, idle, k.Copy(), limit).Allowed {
		admitted++
	}
	if admitted < 100 || admitted > 125 {
		t.Errorf("%d of a burst of 100 are admitted", admitted)
	}
}

func TestTouched_IsBoundedAndCountsWhatItDrops(t *testing.T) {
	var list touched
	for i := range maxTouched + 7 {
		list.add(&bucket{name: fmt.Sprint(i)})
	}
	if list.size() != maxTouched || list.dropped.Load() != 7 {
		t.Errorf("%d are listed, %d dropped", list.size(), list.dropped.Load())
	}
	if b := list.pop(); b.name != "7" || b.listed.Load() {
		t.Errorf("%s is the oldest", b.name)
	}
}
