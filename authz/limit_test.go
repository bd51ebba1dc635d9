package authz

import (
	"testing"
	"time"
)

func minute(rate, burst int) Rate { return Rate{Rate: rate, Period: time.Minute, Burst: burst} }

func TestRate_RemainingIsTheFormulaOfTheContract(t *testing.T) {
	standard := minute(100, 100)
	for _, c := range []struct {
		reset time.Duration
		want  int
	}{
		{0, 100},
		{600 * time.Millisecond, 99},
		{599999 * time.Microsecond, 99},
		{601 * time.Millisecond, 98},
		{3 * time.Second, 95},
		{time.Minute, 0},
		{59999 * time.Millisecond, 0},
		{59400 * time.Millisecond, 1},
		{2 * time.Minute, 0},
		{-time.Second, 100},
	} {
		if got := standard.Remaining(c.reset); got != c.want {
			t.Errorf("full again after %v: %d remaining, want %d", c.reset, got, c.want)
		}
	}
}

// Every bucket after n charges at once has exactly burst − n left, whatever its rate.
func TestRate_RemainingCountsEveryCharge(t *testing.T) {
	for _, r := range []Rate{minute(100, 100), minute(50, 50), minute(7, 13), {1, time.Hour, 3}, {10_000, time.Second, 10_000}, {3, time.Second, 1000}} {
		for n := range r.Burst + 1 {
			// redis_rate computes in float seconds; so may an answer be a hair off.
			reset := time.Duration(float64(n) * r.EmissionInterval() * float64(time.Second))
			for _, hair := range []time.Duration{0, -1, 1, 500} {
				if got := r.Remaining(reset + hair); got != r.Burst-n {
					t.Fatalf("%+v after %d charges (%v): %d remaining", r, n, hair, got)
				}
			}
		}
	}
}

func TestRate_NextUnitIsWhenRemainingGrows(t *testing.T) {
	standard := minute(100, 100)
	for reset, want := range map[time.Duration]int{0: 0, 600 * time.Millisecond: 1, 3 * time.Second: 1, time.Minute: 1} {
		if got := standard.NextUnit(reset); got != want {
			t.Errorf("after %v: t=%d, want %d", reset, got, want)
		}
	}
	hourly := Rate{1, time.Hour, 2}
	if got := hourly.NextUnit(2 * time.Hour); got != 3600 {
		t.Errorf("an empty hourly bucket: t=%d", got)
	}
	if got := hourly.NextUnit(90 * time.Minute); got != 1800 {
		t.Errorf("half an hour before the first unit: t=%d", got)
	}
}

func TestRate_WindowIsTheTimeToFillTheBucket(t *testing.T) {
	for r, want := range map[Rate]int{minute(100, 100): 60, minute(100, 50): 30, minute(50, 50): 60, minute(7, 1): 9} {
		if got := r.Window(); got != want {
			t.Errorf("%+v: w=%d, want %d", r, got, want)
		}
	}
}

func TestLimit_WhatRedisRateMisunderstandsIsRefused(t *testing.T) {
	good := Limit{Name: "key", Rate: minute(100, 100), Cost: 1}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Limit){
		"zero rate":       func(l *Limit) { l.Rate.Rate = 0 },
		"negative rate":   func(l *Limit) { l.Rate.Rate = -1 },
		"zero burst":      func(l *Limit) { l.Burst = 0 },
		"zero period":     func(l *Limit) { l.Period = 0 },
		"fraction":        func(l *Limit) { l.Period = 1500 * time.Millisecond },
		"zero cost":       func(l *Limit) { l.Cost = 0 },
		"negative cost":   func(l *Limit) { l.Cost = -1 },
		"cost over burst": func(l *Limit) { l.Cost = 101 },
		"too fast":        func(l *Limit) { l.Rate.Rate, l.Period = 10_001, time.Second },
		"too long":        func(l *Limit) { l.Rate.Rate, l.Burst, l.Period = 1, 1000, 200*24*time.Hour },
		"no name":         func(l *Limit) { l.Name = "" },
		"name with quote": func(l *Limit) { l.Name = `k"` },
	} {
		l := good
		change(&l)
		if l.Validate() == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if (Limit{}).Validate() == nil {
		t.Error("the zero limit is valid")
	}
}
