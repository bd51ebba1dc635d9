package store

import "testing"

// When there is no room for all, what was learned last is there, and what is not is counted.
func TestNotes_TheOldestAreForgottenAndCounted(t *testing.T) {
	const most, all = 10, 95
	n := newNotes[int, int](most)
	for i := range all {
		n.set(i, i)
		n.set(i, i) // again changes nothing
		for last := max(0, i-most+1); last <= i; last++ {
			if v, ok := n.get(last); !ok || v != last {
				t.Fatalf("%d is forgotten after %d", last, i)
			}
		}
		if n.len() > 2*most || int64(n.len())+n.forgotten != int64(i+1) {
			t.Fatalf("%d are remembered and %d forgotten of %d", n.len(), n.forgotten, i+1)
		}
	}
	n.set(all-most-1, 7) // what is learned again is young again
	for i := range most - 1 {
		n.set(1000+i, 0)
	}
	if v, _ := n.get(all - most - 1); v != 7 {
		t.Error("what was learned again is forgotten as an old one")
	}
}
