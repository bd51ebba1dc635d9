package store

// notes are what is remembered of things by their ids, in two generations: when the younger one
// is full it becomes the older one, and what that was is forgotten. So memory is bounded, what
// was learned last is always remembered, and nobody looks for the oldest. Not safe for
// concurrent use.
type notes[K comparable, V any] struct {
	young, old map[K]V
	// most bounds each generation: so many are remembered at least, and twice as many at most.
	most int
	// forgotten counts those that found no room any more.
	forgotten int64
}

func newNotes[K comparable, V any](most int) notes[K, V] {
	return notes[K, V]{young: make(map[K]V), most: most}
}

func (n *notes[K, V]) get(k K) (V, bool) {
	if v, ok := n.young[k]; ok {
		return v, true
	}
	v, ok := n.old[k]
	return v, ok
}

// set remembers v of k, as what was learned last.
func (n *notes[K, V]) set(k K, v V) {
	delete(n.old, k)
	if _, ok := n.young[k]; !ok && len(n.young) >= n.most {
		n.forgotten += int64(len(n.old))
		n.old, n.young = n.young, make(map[K]V)
	}
	n.young[k] = v
}

func (n *notes[K, V]) len() int { return len(n.young) + len(n.old) }
