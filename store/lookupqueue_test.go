package store

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

func digestOf(n int) (d authz.Digest) {
	binary.BigEndian.PutUint64(d[:], uint64(n))
	return d
}

// The flood of one caller keeps no other waiting: of each statement everyone has a share.
func TestLookupQueue_EveryCallerHasItsShare(t *testing.T) {
	q := newLookupQueue()
	flood, quiet := authz.NewCallerID(time.Now()), authz.NewCallerID(time.Now())
	put := func(caller authz.CallerID, n int) error {
		w, err := q.add(caller, digestOf(n))
		if err == nil {
			w.askers++
		}
		return err
	}
	for n := range maxCallerWaiting {
		if err := put(flood, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(flood, -1); authz.KindOf(err) != authz.KindThrottled {
		t.Errorf("beyond its share: %v", err)
	}
	for n := range 100 {
		if err := put(quiet, 1_000_000+n); err != nil {
			t.Fatal(err)
		}
	}
	_, taken := q.take(maxLookupDigests)
	if len(taken) != maxLookupDigests {
		t.Fatalf("%d are taken", len(taken))
	}
	for n := range 100 {
		if taken[digestOf(1_000_000+n)] == nil {
			t.Fatalf("the quiet caller's look-up %d has to wait", n)
		}
	}
	if err := put(flood, -1); err != nil {
		t.Errorf("with places again: %v", err)
	}
}

// What nobody waits for any more takes no place, neither in a line nor in a statement.
func TestLookupQueue_WhoeverLeftIsNotReadFor(t *testing.T) {
	q, caller := newLookupQueue(), authz.NewCallerID(time.Now())
	for n := range maxCallerWaiting {
		if _, err := q.add(caller, digestOf(n)); err != nil { // and leaves at once
			t.Fatal(err)
		}
	}
	q.lines[caller].left = maxCallerWaiting
	w, err := q.add(caller, digestOf(-1)) // tidies the line, which was full
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.add(caller, digestOf(-2)); err != nil { // this one leaves later
		t.Fatal(err)
	}
	w.askers++
	if _, taken := q.take(maxLookupDigests); len(taken) != 1 || taken[digestOf(-1)] != w || q.len() != 0 || len(q.lines) != 0 {
		t.Errorf("taken are %d, %d wait in %d lines", len(taken), q.len(), len(q.lines))
	}
}
